"""What GRE entries have counted, read quickly: some look at the whole table every few seconds.

The kernel writes all entries of one sort alike, so the places of what matters are
found once per datagram and taken for granted in the rest of it, where each entry
must show the same headers.  What is laid out otherwise is read in full.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.linux.conntrack_alike import START, size_alike
from pptp_nat.linux.conntrack_wire import (
    ARRIVING_HEADERS,
    COUNT_HEADERS,
    CT_DELETE,
    CT_NEW,
    FAMILY,
    GRE,
    Entry,
    read_entry,
)
from pptp_nat.linux.datapath import Match, Tally, match_of_leg
from pptp_nat.linux.netlink import HEADER, Received

_ARRIVING: Final = struct.Struct("!4x12s4s4s4s24sH")  # of an entry, up to its original key
_COUNTS: Final = struct.Struct("!8xQ4xQ")
_COUNTS_SIZE: Final = _COUNTS.size
_SHORTEST: Final = HEADER.size + _ARRIVING.size


def read_count(body: bytes) -> tuple[Match, Tally] | None:
    """Read what a GRE entry matches and what came: six times as fast as `read_entry`."""
    if len(body) >= _ARRIVING.size:
        start, source, between, destination, protocol, key = _ARRIVING.unpack_from(body)
        at = body.find(COUNT_HEADERS[0], _ARRIVING.size)
        if (start, between, protocol) == ARRIVING_HEADERS and 0 < at <= len(body) - _COUNTS_SIZE:
            make = tuple.__new__
            return (
                make(Match, (source, destination, key)),
                make(Tally, _COUNTS.unpack_from(body, at)),
            )
    entry = read_entry(body)
    if entry is None or entry.original.protocol != GRE:
        return None
    return match_of_leg(entry.leg), entry.carried or Tally(0, 0)


def read_counts(bodies: Iterable[bytes]) -> dict[Match, Tally]:
    """Read those of several entries."""
    return dict(filter(None, map(read_count, bodies)))


def read_datagram(datagram: bytes) -> dict[Match, Tally] | None:
    """Read a datagram of GRE entries that are all laid out alike; None if it is none."""
    size = size_alike(datagram, CT_NEW, _SHORTEST)
    at = datagram.find(COUNT_HEADERS[0], _SHORTEST, size)
    if not 0 < at <= size - _COUNTS_SIZE:
        return None
    expected = (datagram[:START], FAMILY[:1], *ARRIVING_HEADERS, *COUNT_HEADERS)
    make, found = tuple.__new__, {}
    for (
        head, family, start, source, between, destination, protocol, key,
        counted, packets, octets_header, octets,
    ) in _layout(size, at).iter_unpack(datagram):  # fmt: skip
        if (head, family, start, between, protocol, counted, octets_header) != expected:
            return None
        # What a NamedTuple's constructor does, without its detour over Python.
        found[make(Match, (source, destination, key))] = make(Tally, (packets, octets))
    return found


@functools.lru_cache(maxsize=8)
def _layout(size: int, at: int) -> struct.Struct:
    """Return the layout of an entry of *size* octets whose counters lie at *at*."""
    return struct.Struct(
        f"!6s10xs3x12s4s4s4s24sH{at - _SHORTEST}x8sQ4sQ{size - at - _COUNTS_SIZE}x"
    )


def last_counts(entries: Iterable[Entry], received: Iterable[Received]) -> dict[Leg, Tally]:
    """Return the last counts of *entries* that are deleted now.

    From the echoes of their ends; where the kernel sends none (it does not when
    net.netfilter.nf_conntrack_events was off when the entry was made), what was
    last read.
    """
    echoes = [message.body for message in received if message.kind == CT_DELETE]
    ended = read_counts(echoes)
    counted = {}
    for entry in entries:
        leg = entry.leg
        counted[leg] = ended.get(match_of_leg(leg)) or entry.carried or Tally(0, 0)
    return counted
