"""The ends of our GRE entries by others' hands, each with its last counts, none left out.

Theory of operation
-------------------
Who empties the table of a router with 20,000 calls makes 40,000 events in a tenth of a
second, more than a socket's buffer holds.  An event that is dropped takes with it what
its entry has counted.  So this socket asks for reliable delivery
(NETLINK_BROADCAST_ERROR): where its buffer is full, the kernel keeps the entry, which
carries nothing any more, and tells of its end later (`nf_ct_delete` in
nf_conntrack_core.c).  What waits is never more than there were entries of ours, since
a socket filter lets in nothing else: the kernel keeps no entry of anybody else's for
us, however long we do not read.

Later is after a second, or when the next entry ends whose event finds room
(`nf_conntrack_ecache_work` in nf_conntrack_ecache.c); from then on it tries every ten
milliseconds.  So where the socket has had no room, an entry is made and ended.

What we end ourselves is filtered out too, by the port ID of the socket that did it.

The events are received one behind the other into one piece of memory, and read as
`pptp_nat.linux.conntrack_legs` reads a dump: all that are laid out alike at once.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from pptp_nat.core.parts import WHOLE, Part
from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_alike import START, TUPLES, TUPLES_END, size_alike
from pptp_nat.linux.conntrack_events import GROUPS, Change, end_filter, is_ours
from pptp_nat.linux.conntrack_wire import (
    ARRIVING_HEADERS,
    COUNT_HEADERS,
    CT_DELETE,
    FAMILY,
    LEAVING_HEADERS,
    end_message,
    new_message,
    read_entry,
)
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.netlink import (
    RECEIVE_OCTETS,
    SOL_NETLINK,
    Instruction,
    Netlink,
    walk,
)  # fmt: skip

# Specification: linux/netlink.h, asm-generic/socket.h.
NETLINK_BROADCAST_ERROR: Final = 4  # who makes an event learns that it found no room
NETLINK_NO_ENOBUFS: Final = 5
SO_MEMINFO: Final = 55

_MEMORY: Final = struct.Struct("=32xI")  # linux/sock_diag.h: SK_MEMINFO_DROPS is the last
#: between hosts of TEST-NET-1 (RFC 5737), whose packets nobody has
_NOBODYS: Final = Leg(*(bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), 1726) * 2)
_MANY: Final = 1 << 15  #: octets of events that are read at once: about 120
_COUNTS_SIZE: Final = struct.calcsize("!8sQ4sQ")


class _Reliable(Netlink):
    """A socket that listens and is told later what it has no room for."""

    def __init__(self, groups: int, program: Sequence[Instruction]) -> None:
        super().__init__(groups, program)
        self._room = memoryview(bytearray(_MANY + RECEIVE_OCTETS))
        for option in (NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def receive(self) -> bytes:
        """Return datagrams that are waiting, one behind the other."""
        filled, room = 0, self._room
        try:
            while filled <= _MANY:  # so that the longest one still fits
                filled += self._socket.recv_into(room[filled:])
        except BlockingIOError:
            pass
        except OSError as error:
            raise AdapterError("listening to conntrack", error.errno or 0) from error
        return bytes(room[:filled])

    def without_room(self) -> int:
        """Return how many messages have found no room, ever; always 0 before Linux 4.12."""
        try:
            memory = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMORY.size)
        except OSError:
            return 0
        return int(_MEMORY.unpack(memory)[0]) if len(memory) == _MEMORY.size else 0


class Ended(NamedTuple):
    """A leg whose entry somebody has deleted, and what that had carried."""

    leg: Leg
    tally: Tally  #: zeros where the kernel does not count


class Ends:
    """A socket that is told of each end of an entry of ours that is not our doing.

    Args:
        entry_mark: the bit of CTA_MARK that says an entry is ours.
        orders: the socket with which we change entries.
        part: of several workers, whose entries are meant.

    Raises:
        AdapterError: the kernel refuses the group or the filter.
    """

    def __init__(self, entry_mark: int, orders: Netlink, part: Part = WHOLE) -> None:
        self._entry_mark = entry_mark
        self._orders = orders
        self._part = part
        self._without_room = 0  # events, ever
        self._netlink = _Reliable(
            GROUPS[Change.DESTROY], end_filter(entry_mark, orders.portid, part)
        )

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has ended."""
        return self._netlink.fileno()

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def read(self) -> list[Ended]:
        """Return about a hundred ends that are waiting, less if there are less, without waiting.

        Raises:
            AdapterError: the kernel's octets make no sense.
        """
        octets = self._netlink.receive()
        if octets and (without_room := self._netlink.without_room()) != self._without_room:
            self._without_room = without_room
            self._end_one()
        ended = _read_alike(octets)
        if ended is None:
            ended = self._read_in_full(octets)
        if self._part.count == 1:
            return ended
        return [each for each in ended if self._part.has_leg(each.leg)]

    def _end_one(self) -> None:
        """Have the kernel tell now what it keeps; if it refuses, it tells in a second."""
        with contextlib.suppress(AdapterError):
            self._orders.exchange([new_message(_NOBODYS, 0, 0, 1), end_message(_NOBODYS)])

    def _read_in_full(self, octets: bytes) -> list[Ended]:
        found = []
        for kind, _, _, _, body in walk(octets):
            entry = read_entry(body) if kind == CT_DELETE else None
            if entry is not None and is_ours(entry, self._entry_mark):
                found.append(Ended(entry.leg, entry.carried or Tally(0, 0)))
        return found


def _read_alike(octets: bytes) -> list[Ended] | None:
    """Read events of GRE that are all laid out alike; None if they are not.

    They have passed the filter, so they are ours.
    """
    size = size_alike(octets, CT_DELETE, TUPLES_END)
    at = octets.find(COUNT_HEADERS[0], TUPLES_END, size)
    if not 0 < at <= size - _COUNTS_SIZE:
        return None
    expected = (
        octets[:START], FAMILY[:1], *ARRIVING_HEADERS, *LEAVING_HEADERS, *COUNT_HEADERS
    )  # fmt: skip
    make, found = tuple.__new__, []
    for (
        head, family, start, source, between, destination, protocol, key,
        back, new_destination, back_between, new_source, back_protocol, new_key, back_key,
        counted, packets, octets_header, count,
    ) in _layout(size, at).iter_unpack(octets):  # fmt: skip
        if expected != (
            head, family, start, between, protocol, back, back_between, back_protocol, back_key,
            counted, octets_header,
        ):  # fmt: skip
            return None
        # What a NamedTuple's constructor does, without its detour over Python.
        leg = make(Leg, (source, destination, key, new_source, new_destination, new_key))
        found.append(make(Ended, (leg, make(Tally, (packets, count)))))
    return found


@functools.lru_cache(maxsize=8)
def _layout(size: int, at: int) -> struct.Struct:
    """Return the layout of an event of *size* octets whose counters lie at *at*."""
    return struct.Struct(f"{TUPLES}{at - TUPLES_END}x8sQ4sQ{size - at - _COUNTS_SIZE}x")
