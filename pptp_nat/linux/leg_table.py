"""The legs of the data path `queue`: what arrives, by what is written in its place.

A row is packed into one array and found by a dictionary of places.  As objects
of Python's, with two counters each, a leg took twice the memory, and a packet
read from eight places in it where it now reads from three.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from sys import byteorder
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address, Leg
from pptp_nat.linux.datapath import Match, Tally

#: packets, octets, what a checksum's complement grows by, the new key, source and destination,
#: the mark, and whether the next hook has to see the packet too
ROW: Final = struct.Struct("=QQH2s8sIB7x")
TALLY: Final = struct.Struct("=QQ")  #: the beginning of a row
_MARK: Final = struct.Struct("=I")
_MARK_AT: Final = 28
_RECENT: Final = 128  #: legs that begin at once, and some more
_MORE: Final = 64  #: rows by which the table grows


class Row(NamedTuple):
    """One leg, or one stage of it, at work."""

    packets: int
    octets: int
    delta: int
    key: bytes
    addresses: bytes
    mark: int
    again: int  #: the next hook has to see the packet too

    @classmethod
    def of(cls, leg: Leg, mark: int, *, again: bool = False) -> Row:
        """Return what carries *leg*, with nothing counted."""
        addresses = leg.new_source + leg.new_destination
        delta = grown(leg.source + leg.destination, addresses)
        return cls(0, 0, delta, leg.new_key.to_bytes(2, "big"), addresses, mark, again)


def grown(old: bytes, new: bytes) -> int:
    """Return the folded sum of ``~old + new``, what a checksum's complement grows by.

    In this machine's order of octets: the sum of words is the same in either, but for
    its own order (RFC 1071 section 2), and as one number modulo 0xFFFF the words are summed.
    """
    return (int.from_bytes(new, byteorder) - int.from_bytes(old, byteorder)) % 0xFFFF


def name_of(leg: Leg | Match) -> bytes:
    """Return the ten octets by which a packet's leg is found.

    Whoever keeps names of legs that have just begun gets the same object as the others do.
    """
    return _name(*leg[:3])


@functools.lru_cache(_RECENT)
def _name(source: Address, destination: Address, key: int) -> bytes:
    return source + destination + key.to_bytes(2, "big")


def match_of(name: bytes) -> Match:
    """Return what *name* names."""
    return Match(name[:4], name[4:8], int.from_bytes(name[8:], "big"))


class LegTable:
    """Rows by name.

    Attributes:
        places: by name, where in `rows` a leg's row begins.
        rows: the rows, and gaps where rows were.
    """

    def __init__(self) -> None:
        self.places: dict[bytes, int] = {}
        self.rows = bytearray()
        self._free: list[int] = []

    def __contains__(self, name: bytes) -> bool:
        return name in self.places

    def names(self) -> list[bytes]:
        """Return all names."""
        return list(self.places)

    def get(self, name: bytes) -> Row | None:
        """Return the row of *name* as it is now."""
        place = self.places.get(name)
        return None if place is None else Row(*ROW.unpack_from(self.rows, place))

    def put(self, name: bytes, row: Row) -> None:
        """Carry *name* by *row*, whatever carried it before."""
        place = self.places.get(name)
        if place is None:
            if not self._free:
                self._grow()
            place = self.places[name] = self._free.pop()
        ROW.pack_into(self.rows, place, *row)

    def _grow(self) -> None:
        begin = len(self.rows)
        self.rows += bytes(_MORE * ROW.size)  # which reserves, but does not touch, an eighth more
        self._free += range(len(self.rows) - ROW.size, begin - 1, -ROW.size)

    def pop(self, name: bytes) -> Row:
        """Stop carrying *name*; return what it was."""
        place = self.places.pop(name)
        self._free.append(place)
        return Row(*ROW.unpack_from(self.rows, place))

    def tally(self, name: bytes) -> Tally | None:
        """Return what was carried under *name*."""
        place = self.places.get(name)
        return None if place is None else Tally(*TALLY.unpack_from(self.rows, place))

    def tallies(self, names: list[bytes]) -> Iterator[tuple[Match, Tally]]:
        """Yield what was carried under those of *names* that are there."""
        find, rows = self.places.get, self.rows
        for name in names:
            place = find(name)
            if place is not None:
                yield match_of(name), Tally(*TALLY.unpack_from(rows, place))

    def credit(self, name: bytes, packets: int, octets: int) -> None:
        """Count so many *packets* and *octets* more under *name*, if it is there."""
        place = self.places.get(name)
        if place is not None:
            before = TALLY.unpack_from(self.rows, place)
            TALLY.pack_into(self.rows, place, before[0] + packets, before[1] + octets)

    def remark(self, name: bytes, mark: int) -> None:
        """Give the packets of *name* another mark, if it is there."""
        place = self.places.get(name)
        if place is not None:
            _MARK.pack_into(self.rows, place + _MARK_AT, mark)
