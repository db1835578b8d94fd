"""A bound queue taken up from a process that has ended: nothing that waits in it is lost.

What a dead process had not read yet waits in the socket.  What it had read and not
judged waits in the kernel alone, and nobody will ever read it again; but the kernel
gives one verdict to all packets up to a number (NFQNL_MSG_VERDICT_BATCH,
net/netfilter/nfnetlink_queue.c).  NF_REPEAT without the repeat mark sends them to the
beginning of the chain, whose rule queues them anew.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from pathlib import Path
from typing import Final

from pptp_nat.linux.nfqueue import PACKET, QUEUES, REPEAT, queue_counters

#: Packets in a queue that are all queued anew, so that those which the dead process had read
#: come first again.  They pass the rules' pace once more, which lets 4,000 of one host pass at
#: once (`ruleset_pace.MOST_AT_ONCE`).  Of more, only those come anew, and last.
IN_ORDER: Final = 2_000
_NETFILTER: Final = 12  # NETLINK_NETFILTER, linux/netlink.h
_BATCH: Final = 3 << 8 | 3  # NFQNL_MSG_VERDICT_BATCH
_REQUEST: Final = 1  # NLM_F_REQUEST
_MESSAGE: Final = struct.Struct("=IHHIIBB2sHH4sI")  # to the id of NFQA_VERDICT_HDR
_HEADER: Final = struct.Struct("=H18xI")  # nlmsg_type, and of nfqnl_msg_packet_hdr the id
_KEPT: Final = 28  #: octets of a message that say whose it is
_HALF: Final = 1 << 31


def is_bound(descriptor: int, number: int, table: Path = QUEUES) -> bool:
    """Whether *descriptor* is the socket that queue *number* is bound to."""
    try:
        with socket.socket(fileno=descriptor) as found:
            try:
                if (found.family, found.proto) != (socket.AF_NETLINK, _NETFILTER):
                    return False
                counters = queue_counters(number, table)
                return counters is not None and counters.portid == found.getsockname()[0]
            finally:
                found.detach()
    except OSError:  # it is no socket
        return False


def resume(queue: socket.socket, number: int, table: Path = QUEUES) -> int:
    """Have what waits in *queue*, bound to *number*, judged by who reads it from now on.

    In the order in which it came, if that are not very many packets (`IN_ORDER`).
    Return how many wait.

    Raises:
        OSError: the kernel does not take the verdict.
    """
    before = queue_counters(number, table)
    if before is None or not before.waiting:
        return 0
    first = _peek(queue)
    last = before.sequence
    if first is not None and (last - first) % (1 << 32) >= IN_ORDER:
        last = (first - 1) % (1 << 32)  # what is in the socket stays there
    _discard(queue, last)
    verdict = _MESSAGE.pack(
        _MESSAGE.size, _BATCH, _REQUEST, 0, 0, 0, 0, number.to_bytes(2, "big"),
        12, 2, REPEAT, socket.htonl(last),
    )  # fmt: skip
    queue.send(verdict)
    _discard(queue, last)  # one that was on its way into the socket: it has come anew as well
    return before.waiting


def _peek(queue: socket.socket) -> int | None:
    """Return the number of the packet that comes next; None: none waits in the socket."""
    while True:
        try:
            octets = queue.recv(_KEPT, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            continue
        if len(octets) == _KEPT:
            kind, packet = _HEADER.unpack_from(octets, 4)
            if kind == PACKET:
                return socket.ntohl(packet)
        with contextlib.suppress(OSError):  # a complaint about a verdict of the dead one's
            queue.recv(_KEPT, socket.MSG_DONTWAIT)


def _discard(queue: socket.socket, last: int) -> None:
    """Read away what was queued up to packet *last*."""
    while (packet := _peek(queue)) is not None and (last - packet) % (1 << 32) < _HALF:
        queue.recv(_KEPT, socket.MSG_DONTWAIT)
