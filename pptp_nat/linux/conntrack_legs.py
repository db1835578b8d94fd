"""What our GRE entries carry, read in pieces: each a fraction of a millisecond.

A socket of its own is open from the first piece to the last, in the namespace of whoever
asks for the first.  An entry that comes or goes meanwhile may be left out, or come twice.

The same economy as in `pptp_nat.linux.conntrack_counts`: the kernel writes all entries of
one sort alike, so places are found once per datagram, and each entry must show the same
headers there.  What is laid out otherwise is read in full.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pptp_nat.core.parts import Part
from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_alike import START, TUPLES, TUPLES_END, size_alike
from pptp_nat.linux.conntrack_refusals import failed
from pptp_nat.linux.conntrack_wire import (
    ARRIVING_HEADERS,
    CT_NEW,
    CTA_MARK,
    CTA_TIMEOUT,
    FAMILY,
    GRE,
    LEAVING_HEADERS,
    by_mark,
    dump_message,
    read_entry,
)
from pptp_nat.linux.netlink import ATTRIBUTE, Netlink

_VALUE: Final = 8  #: octets of an attribute that is a number
_LIFETIME: Final = ATTRIBUTE.pack(_VALUE, CTA_TIMEOUT)
_MARK: Final = ATTRIBUTE.pack(_VALUE, CTA_MARK)


class Standing(NamedTuple):
    """A GRE entry of ours."""

    leg: Leg
    mark: int  #: CTA_MARK, with the bit that says it is ours
    seconds_left: int


def leg_pieces(entry_mark: int, part: Part) -> Iterator[list[Standing]]:
    """Yield our GRE entries of *part*; ours: with *entry_mark*.

    Raises:
        AdapterError: the kernel refused.
    """
    try:
        with Netlink() as reading:
            wanted = dump_message(by_mark(entry_mark))
            for piece in reading.pieces(wanted, read_alike, read_standing):
                yield piece if part.count == 1 else [e for e in piece if part.has_leg(e.leg)]
    except AdapterError as error:
        raise failed("listing our entries in conntrack", error.errno) from error


def read_standing(bodies: Iterable[bytes]) -> list[Standing]:
    """Read entries of GRE one by one; what is none is left out."""
    return [
        Standing(entry.leg, entry.mark, entry.seconds_left)
        for entry in map(read_entry, bodies)
        if entry is not None and entry.original.protocol == GRE
    ]


def read_alike(datagram: bytes) -> list[Standing] | None:
    """Read a datagram of GRE entries that are all laid out alike; None if it is none."""
    size = size_alike(datagram, CT_NEW, TUPLES_END)
    places = _places(datagram, size)
    if places is None:
        return None
    expected = (
        datagram[:START], FAMILY[:1], *ARRIVING_HEADERS, *LEAVING_HEADERS, _LIFETIME, _MARK
    )  # fmt: skip
    mark_first = places[1] < places[0]
    make, found = tuple.__new__, []
    for (
        head, family, start, source, between, destination, protocol, key,
        back, new_destination, back_between, new_source, back_protocol, new_key, back_key,
        first_header, first, second_header, second,
    ) in _layout(size, *sorted(places)).iter_unpack(datagram):  # fmt: skip
        left, mark = (second, first) if mark_first else (first, second)
        left_header, mark_header = (
            (second_header, first_header) if mark_first else (first_header, second_header)
        )
        if expected != (
            head, family, start, between, protocol, back, back_between, back_protocol, back_key,
            left_header, mark_header,
        ):  # fmt: skip
            return None
        # What a NamedTuple's constructor does, without its detour over Python.
        leg = make(Leg, (source, destination, key, new_source, new_destination, new_key))
        found.append(make(Standing, (leg, mark, left)))
    return found


def _places(datagram: bytes, size: int) -> tuple[int, int] | None:
    """Return where the first entry, of *size* octets, has its lifetime and its mark."""
    at, lifetime, mark = TUPLES_END, 0, 0
    while at + _VALUE <= size:
        header = datagram[at : at + ATTRIBUTE.size]
        if header == _LIFETIME:
            lifetime = at
        elif header == _MARK:
            mark = at
        length, _ = ATTRIBUTE.unpack(header)
        if length < ATTRIBUTE.size:
            return None
        at += length + 3 & ~3
    return (lifetime, mark) if lifetime and mark else None


@functools.lru_cache(maxsize=8)
def _layout(size: int, first: int, second: int) -> struct.Struct:
    """Return the layout of an entry of *size* octets with numbers at *first* and *second*."""
    gaps = first - TUPLES_END, second - first - _VALUE, size - second - _VALUE
    return struct.Struct("{}{}x4sI{}x4sI{}x".format(TUPLES, *gaps))
