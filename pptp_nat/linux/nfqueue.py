"""Packets from the kernel by NFQUEUE: one verdict for each, on every path.

A packet that goes on gets the repeat mark and NF_REPEAT, never NF_ACCEPT: it
enters the chain once more, passes our rule by its mark, and the administrator's
rules behind ours judge it as they would have (rules/README.md).

The library is NetfilterQueue.  Its `run` swallows ENOBUFS and, under a flood,
never returns; so packets are read here, counted, and handed to it one by one.
"""

from __future__ import annotations

import errno
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import netfilterqueue

from pptp_nat.errors import AdapterError

PREROUTING: Final = 0  #: hooks, linux/netfilter.h
LOCAL_IN: Final = 1
FORWARD: Final = 2
LOCAL_OUT: Final = 3
POSTROUTING: Final = 4
LOCAL_HOOKS: Final = frozenset((LOCAL_IN, LOCAL_OUT))

COPIED: Final = 4016  #: octets of a packet that the library lets us see (its MaxCopySize)
QUEUES: Final = Path("/proc/self/net/netfilter/nfnetlink_queue")

Packet = netfilterqueue.Packet  #: kept here so that one file names the library
Judge = Callable[["Queue", Packet], None]


def is_cut(octets: bytes) -> bool:
    """Whether *octets* are only the beginning of an IPv4 packet: it is longer than `COPIED`."""
    return len(octets) >= COPIED and len(octets) < octets[2] << 8 | octets[3]


class QueueCounters(NamedTuple):
    """What the kernel counts of a bound queue (net/netfilter/nfnetlink_queue.c)."""

    portid: int  #: of the netlink socket that is bound to it
    waiting: int  #: packets that wait for a verdict
    dropped: int  #: packets that found the queue full
    user_dropped: int  #: packets that found the socket's buffer full
    sequence: int  #: packets queued in all


def queue_counters(number: int, table: Path = QUEUES) -> QueueCounters | None:
    """Return the counters of queue *number*; None: nobody is bound to it, or no such table."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = [int(field) for field in line.split()]
        if fields and fields[0] == number:
            return QueueCounters(fields[1], fields[2], fields[5], fields[6], fields[7])
    return None


class _Reader:
    """The queue's socket, read at most so many times; what the library calls a socket."""

    def __init__(self, descriptor: int) -> None:
        # The library owns the descriptor; this is a second name for its socket.
        self.socket = socket.fromfd(descriptor, socket.AF_NETLINK, socket.SOCK_RAW)
        self.socket.setblocking(False)
        self.budget = 0
        self.overruns = 0

    def recv(self, size: int) -> bytes:
        """Return the next message; EAGAIN also when the budget is used up."""
        if self.budget <= 0:
            raise BlockingIOError(errno.EAGAIN, "budget used up")
        self.budget -= 1
        try:
            return self.socket.recv(size)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self.overruns += 1
            raise


class Queue:
    """One bound NFQUEUE.

    A packet of more than `COPIED` octets cannot be judged by what it holds, nor
    sent on changed: it is dropped and counted.

    Args:
        number: of the queue.
        judge: is called with each packet and must end in one of `let_pass`,
            `drop` and `hold`; whatever it forgets or raises becomes a drop, since
            TCP sends again and an untranslated packet must not pass.
        fault: is told of what *judge* raised.
        length: packets that the kernel keeps for us.
        buffer: octets of the socket's receive buffer.
        repeat_mark: the bit of the packet mark that means "was here before".

    Raises:
        AdapterError: the queue is taken, or we may not.
    """

    def __init__(
        self,
        number: int,
        judge: Judge,
        fault: Callable[[BaseException], None],
        *,
        length: int,
        buffer: int,
        repeat_mark: int,
    ) -> None:
        self.number = number
        self.faults = 0
        self.too_long = 0  #: packets dropped since they are longer than we can see
        self._judge = judge
        self._fault = fault
        self._mark = repeat_mark
        self._judged = False
        self._held: dict[int, Packet] = {}
        self._last_id = 0
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a smaller buffer is told by the start-up checks
                self._queue.bind(number, self._receive, max_len=length, sock_len=buffer)
        except OSError as error:
            raise AdapterError(
                f"binding queue {number}", error.errno or errno.EPERM,
                mend="is it taken by another program (/proc/net/netfilter/nfnetlink_queue), "
                "or CAP_NET_ADMIN missing?",
            ) from error  # fmt: skip
        self._reader = _Reader(self._queue.get_fd())

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._reader.socket.fileno()

    @property
    def overruns(self) -> int:
        """How often the kernel found the socket's buffer full (ENOBUFS)."""
        return self._reader.overruns

    def serve(self, budget: int) -> bool:
        """Judge up to *budget* waiting packets; return whether more may wait."""
        self._reader.budget = budget
        self._queue.run_socket(self._reader)  # type: ignore[arg-type]  # of a socket it needs recv
        return self._reader.budget <= 0

    def _receive(self, packet: Packet) -> None:
        self._judged = False
        try:
            if packet.get_payload_len() >= COPIED and is_cut(packet.get_payload()):
                self.too_long += 1
            else:
                self._judge(self, packet)
        except Exception as error:  # noqa: BLE001 - a packet without a verdict blocks the queue
            self.faults += 1
            self._fault(error)
        if not self._judged:
            packet.drop()

    def let_pass(self, packet: Packet, octets: bytes | None = None) -> None:
        """Let *packet* go on, as *octets* if given."""
        if octets is not None:
            packet.set_payload(octets)
        packet.set_mark(packet.get_mark() | self._mark)
        self._judged = True
        packet.repeat()

    def repeat(self, packet: Packet, octets: bytes) -> None:
        """Have *packet* judged once more, as *octets*: a later rule queues it again."""
        packet.set_payload(octets)
        self._judged = True
        packet.repeat()

    def accept(self, packet: Packet) -> None:
        """Let *packet* leave this chain at once, without the mark."""
        self._judged = True
        packet.accept()

    def drop(self, packet: Packet) -> None:
        """End *packet* here; TCP will send it again."""
        self._judged = True
        packet.drop()

    def next_id(self) -> int:
        """Return the identity that `hold` will give the next packet."""
        return self._last_id + 1

    def hold(self, packet: Packet) -> int:
        """Keep *packet* until `release`; return its identity."""
        packet.retain()
        self._judged = True
        self._last_id += 1
        self._held[self._last_id] = packet
        return self._last_id

    def release(self, packet_id: int, octets: bytes) -> None:
        """Let a held packet go on as *octets*."""
        packet = self._held.pop(packet_id)
        judged = self._judged
        self.let_pass(packet, octets)
        self._judged = judged

    def close(self) -> None:
        """Drop what is held and unbind; what waits in the kernel is dropped with it."""
        for packet in self._held.values():
            packet.drop()
        self._held.clear()
        self._reader.socket.close()
        self._queue.unbind()
