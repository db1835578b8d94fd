"""Packets from the kernel by NFQUEUE: one verdict for each, on every path.

A packet that goes on gets the repeat mark and NF_REPEAT, never NF_ACCEPT: it
enters the chain once more, passes our rule by its mark, and the administrator's
rules behind ours judge it as they would have (rules/README.md).

NetfilterQueue opens and binds the queue.  Its messages are read and answered
here: several verdicts travel in one send, a turn is bounded (its own loop never
returns under a flood), and ENOBUFS and refused verdicts are seen and counted.
Per control packet that saves a third of the time (docs/decisions).
"""

from __future__ import annotations

import errno
import socket
import struct
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

COPIED: Final = 0xFFFB  #: octets of a packet that the kernel hands over at most
QUEUES: Final = Path("/proc/self/net/netfilter/nfnetlink_queue")

DROP, ACCEPT, REPEAT = (n.to_bytes(4, "big") for n in (0, 1, 4))  # linux/netfilter.h
_ERROR: Final = 2  # NLMSG_ERROR, linux/netlink.h
PACKET: Final = 3 << 8  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_PACKET
_VERDICT: Final = 3 << 8 | 1  # NFQNL_MSG_VERDICT
_REQUEST: Final = 1  # NLM_F_REQUEST
_MARK, _PAYLOAD = 3, 10  # linux/netfilter/nfnetlink_queue.h
_KIND: Final = struct.Struct("=H")  # nlmsg_type
_ATTRIBUTE: Final = struct.Struct("=HH")
#: nlmsghdr, nfgenmsg, NFQA_VERDICT_HDR and NFQA_MARK, in the byte orders of the kernel's headers;
#: most of it is the same in every verdict of a queue
_BETWEEN: Final = struct.Struct("=HHIIBB2sHH")  # from nlmsg_type to NFQA_VERDICT_HDR's own header
_JUDGEMENT: Final = struct.Struct("=I20s4s4s4s4s")
_JUDGEMENT_SIZE: Final = _JUDGEMENT.size
_REWRITING: Final = struct.Struct("=I20s4s4s4s4sHH")  #: with the header of NFQA_PAYLOAD
_REWRITING_SIZE: Final = _REWRITING.size
_PADS: Final = (b"", bytes(3), bytes(2), bytes(1))  #: by what the length leaves modulo 4
_HEADER: Final = struct.Struct("=4s2xB")  # nfqnl_msg_packet_hdr: id, protocol, hook
_MARK_HEADER: Final = _ATTRIBUTE.pack(8, _MARK)
_HEADER_END: Final = 32  # of a packet message: behind NFQA_PACKET_HDR, which comes first
_BUFFER: Final = 1 << 17  #: octets, more than a message with `COPIED` octets of a packet has
_SEND: Final = 1 << 16  #: octets of verdicts in one send, well below any send buffer
_CONFIG: Final = 3 << 8 | 2  # NFQNL_MSG_CONFIG
_PARAMS: Final = 2  # NFQA_CFG_PARAMS: copy range, copy mode
_LENGTH: Final = 3  # NFQA_CFG_QUEUE_MAXLEN
_COPY_PACKET: Final = 2
_RECEIVE_BUFFER: Final = 33  # SO_RCVBUFFORCE, asm-generic/socket.h
#: What the library bound and somebody keeps: it would unbind a queue that it forgets.
_LEFT_BOUND: Final[list[netfilterqueue.NetfilterQueue]] = []

Judge = Callable[["Queue", "Packet"], None]


def is_cut(octets: bytes) -> bool:
    """Whether *octets* are only the beginning of an IPv4 packet: it is longer than `COPIED`."""
    return len(octets) >= COPIED and len(octets) < octets[2] << 8 | octets[3]


def mark_attribute(mark: int) -> bytes:
    """Return NFQA_MARK with its header."""
    return _MARK_HEADER + mark.to_bytes(4, "big")


class Packet:
    """A packet that waits for its verdict."""

    __slots__ = ("hook", "id", "mark", "octets")

    def __init__(self) -> None:
        self.id = b""  #: the kernel's name for it
        self.hook = 0
        self.mark = 0  #: of the packet, host order
        self.octets = b""  #: from the first of the IP header


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


def _nothing() -> None:
    """Do nothing."""


class Queue:
    """One bound NFQUEUE.

    A packet of more than `COPIED` octets cannot be judged by what it holds, nor
    sent on changed: it is dropped and counted.

    Args:
        number: of the queue.
        judge: is called with each packet and must end in one of `let_pass`,
            `repeat`, `accept`, `drop` and `hold`; whatever it forgets or raises
            becomes a drop, since TCP sends again and an untranslated packet must
            not pass.  The packet is good until *judge* returns.
        fault: is told of what *judge* raised.
        length: packets that the kernel keeps for us.
        buffer: octets of the socket's receive buffer.
        repeat_mark: the bit of the packet mark that means "was here before".
        batch: verdicts that travel together at most.
        inherited: the descriptor of another process's socket that is bound already; ours now.

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
        batch: int = 16,
        inherited: int | None = None,
    ) -> None:
        self.number = number
        self.faults = 0
        self.overruns = 0  #: how often the kernel found the socket's buffer full (ENOBUFS)
        self.refusals = 0  #: verdicts that the kernel refused
        self.too_long = 0  #: packets dropped since they are longer than we can see
        self.is_kept = False  #: somebody else has its socket too, and it outlives us bound
        self._before = self._after = _nothing
        self._judge = judge
        self._fault = fault
        self.repeat_mark = repeat_mark
        self._mark_octets = repeat_mark.to_bytes(4, "big")
        self._number = number.to_bytes(2, "big")
        self.between = _BETWEEN.pack(_VERDICT, _REQUEST, 0, 0, 0, 0, self._number, 12, 2)
        self._judged = False
        self._batch = batch
        self._verdicts: list[bytes] = []  # piece by piece
        self._given = 0  # how many those are
        self._size = 0  # of those together, octets
        self._unsent: list[bytes] = []  # in one send each: a longer one might never be taken
        self._held: dict[int, Packet] = {}
        self._last_id = 0
        self._packet = Packet()
        self.buffer = bytearray(_BUFFER)
        self._view = memoryview(self.buffer)
        self._queue: netfilterqueue.NetfilterQueue | None = None
        if inherited is None:
            self._bind(length, buffer)
        else:
            self._socket = socket.socket(fileno=inherited)
            self._socket.setblocking(False)
            self._configure(_LENGTH, length.to_bytes(4, "big"))
            self._socket.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER, buffer)

    def _bind(self, length: int, buffer: int) -> None:
        number = self.number
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a smaller buffer is told by the start-up checks
                self._queue.bind(number, lambda _: None, max_len=length, sock_len=buffer)
        except OSError as error:
            raise AdapterError(
                f"binding queue {number}", error.errno or errno.EPERM,
                mend="is it taken by another program (/proc/net/netfilter/nfnetlink_queue), "
                "or CAP_NET_ADMIN missing?",
            ) from error  # fmt: skip
        # The library owns the descriptor; this is a second name for its socket.
        self._socket = socket.fromfd(self._queue.get_fd(), socket.AF_NETLINK, socket.SOCK_RAW)
        self._socket.setblocking(False)
        # The library asks for 4,016 octets of a packet at most; reassembled GRE may be longer.
        self._configure(_PARAMS, struct.pack(">IB3x", COPIED, _COPY_PACKET), padding=3)

    def _configure(self, attribute: int, value: bytes, *, padding: int = 0) -> None:
        size = 24 + len(value)
        self._socket.send(
            struct.pack("=IHHIIBB2s", size, _CONFIG, _REQUEST, 0, 0, 0, 0, self._number)
            + _ATTRIBUTE.pack(4 + len(value) - padding, attribute)
            + value
        )

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def serve(self, budget: int) -> None:
        """Judge up to *budget* waiting packets."""
        receive, buffer = self._socket.recv_into, self.buffer
        for _ in range(budget):
            try:
                size = receive(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            self._take(buffer, size)
        self.flush()

    def _take(self, message: bytearray, end: int) -> None:
        kind = _KIND.unpack_from(message, 4)[0]
        if kind != PACKET:
            self.refusals += kind == _ERROR
            return
        packet = self._packet
        packet.id, packet.hook = _HEADER.unpack_from(message, 24)
        packet.mark = 0
        at = _HEADER_END
        while at < end:
            size, name = _ATTRIBUTE.unpack_from(message, at)
            if name == _PAYLOAD:
                packet.octets = bytes(self._view[at + 4 : at + size])
                break
            if name == _MARK:
                packet.mark = int.from_bytes(message[at + 4 : at + 8], "big")
            at += size + 3 & ~3 or end
        self._judged = False
        try:
            if len(packet.octets) >= COPIED and is_cut(packet.octets):
                self.too_long += 1
            else:
                self._judge(self, packet)
        except Exception as error:  # noqa: BLE001 - a packet without a verdict blocks the queue
            self._tell(error)
        if not self._judged:
            self._give(packet, DROP, packet.mark)

    def _give(self, packet: Packet, verdict: bytes, mark: int, octets: bytes = b"") -> None:
        """Queue a verdict; *octets* are the packet's new ones, none for the old."""
        self._judged = True
        size = len(octets)
        mark_octets = self._mark_octets if mark == self.repeat_mark else mark.to_bytes(4, "big")
        if size:
            length = _REWRITING_SIZE + size
            parts: tuple[bytes, ...] = (
                _REWRITING.pack(
                    length, self.between, verdict, packet.id, _MARK_HEADER, mark_octets,
                    4 + size, _PAYLOAD,
                ),
                octets, _PADS[size & 3],
            )  # fmt: skip
        else:
            length = _JUDGEMENT_SIZE
            parts = (_JUDGEMENT.pack(
                length, self.between, verdict, packet.id, _MARK_HEADER, mark_octets,
            ),)  # fmt: skip
        if self._size + length > _SEND:
            self._relieve()
        self._verdicts += parts
        self._size += length + 3
        self._given += 1
        if self._given >= self._batch:
            self._relieve()

    def _relieve(self) -> None:
        """Send what was given so far.  Whoever judges need not care if the kernel takes none."""
        try:
            self.flush()
        except OSError as error:  # they are kept
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        self.faults += 1
        self._fault(error)

    def attend(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Have *before* done ahead of every send of verdicts, and *after* behind it.

        Both are called at the end of a turn too that gave none.  They must not raise.
        """
        self._before, self._after = before, after

    def flush(self) -> None:
        """Send the verdicts that were given; those packets go on before this returns.

        What could not be sent is kept for the next time.
        """
        self._before()
        unsent = self._unsent
        if self._given:
            unsent.append(b"".join(self._verdicts))
            self._verdicts = []
            self._size = self._given = 0
        while unsent:
            self._socket.send(unsent[0])
            del unsent[0]
        self._after()

    def keep(self, verdicts: bytes, count: int) -> None:
        """Keep *count* packed *verdicts* for the next `flush`."""
        self._verdicts.append(verdicts)
        self._size += len(verdicts)
        self._given += count

    def let_pass(self, packet: Packet, octets: bytes | None = None) -> None:
        """Let *packet* go on, as *octets* if given."""
        self._give(packet, REPEAT, packet.mark | self.repeat_mark, octets or b"")

    def repeat(self, packet: Packet, octets: bytes) -> None:
        """Have *packet* judged once more, as *octets*: a later rule queues it again."""
        self._give(packet, REPEAT, packet.mark, octets)

    def accept(self, packet: Packet) -> None:
        """Let *packet* leave this chain at once, without the mark."""
        self._give(packet, ACCEPT, packet.mark)

    def drop(self, packet: Packet) -> None:
        """End *packet* here; TCP will send it again."""
        self._give(packet, DROP, packet.mark)

    def next_id(self) -> int:
        """Return the identity that `hold` will give the next packet."""
        return self._last_id + 1

    def hold(self, packet: Packet) -> int:
        """Keep *packet* until `release`; return its identity."""
        self._judged = True
        self._last_id += 1
        self._held[self._last_id] = packet
        self._packet = Packet()  # this one is taken
        return self._last_id

    def release(self, packet_id: int, octets: bytes) -> None:
        """Let a held packet go on as *octets*."""
        judged = self._judged
        self.let_pass(self._held.pop(packet_id), octets)
        self._judged = judged

    def drop_held(self) -> None:
        """Drop what is held: TCP will send it again, to whoever serves this queue then."""
        for packet in self._held.values():
            self.drop(packet)
        self._held.clear()
        self.flush()

    def close(self) -> None:
        """Drop what is held and unbind; what waits in the kernel is dropped with it.

        A queue that somebody keeps stays bound, and what waits there goes on waiting.
        """
        self.drop_held()
        self._socket.close()  # an inherited one is the last that keeps the queue bound
        if self._queue is None:
            return
        if self.is_kept:
            _LEFT_BOUND.append(self._queue)
        else:
            self._queue.unbind()
