"""Legs by their names: the notes that all keep together, and the rows of the data path `queue`.

A *note* is one int for whoever keeps something of a leg: in its low bits the data
path says where it has the leg, above them `pptp_nat.router.totals` says whose it is
and what it has carried.  Two dictionaries with an int each would take 60 octets more
for every leg, and they would grow at different times.

A row, what is written in place of what arrives, is packed into one array.  As objects
of Python's, with two counters each, a leg took twice the memory, and a packet
read from eight places in it where it now reads from three.
"""

from __future__ import annotations

import functools
import mmap
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

#: Notes by the names of legs.  Who has nothing more to say of a leg clears his bits; a note
#: of which nothing is left goes.
Notes = dict[bytes, int]
PLACE_BITS: Final = 30  #: of a note, the lowest: its one digit in CPython
PLACE: Final = (1 << PLACE_BITS) - 1  #: a mask; 0: nothing carries the leg
_OTHERS: Final = ~PLACE


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

    Of a leg that has just begun they are made once for all who ask.
    """
    return _name(*leg[:3])


@functools.lru_cache(_RECENT)
def _name(source: Address, destination: Address, key: int) -> bytes:
    return source + destination + key.to_bytes(2, "big")


def name_once(leg: Leg | Match) -> bytes:
    """Return the same, of a leg that nobody else is about to ask for: it is not kept."""
    return leg[0] + leg[1] + leg[2].to_bytes(2, "big")


def match_of(name: bytes) -> Match:
    """Return what *name* names."""
    return Match(name[:4], name[4:8], int.from_bytes(name[8:], "big"))


def place_of(notes: Notes, name: bytes) -> int:
    """Return where the data path has *name*, 0 if nowhere."""
    return notes.get(name, 0) & PLACE


def give_place(notes: Notes, name: bytes, place: int) -> None:
    """Note that the data path has *name* at *place*; 0: no longer."""
    note = notes.get(name, 0) & _OTHERS | place
    if note:
        notes[name] = note
    else:
        notes.pop(name, None)


def placed(notes: Notes) -> list[bytes]:
    """Return the names of what the data path carries."""
    return [name for name, note in notes.items() if note & PLACE]


class LegTable:
    """Rows by name.

    Attributes:
        notes: the place in one is where in `rows` the leg's row begins.
        rows: the rows, and gaps where rows were; the first one is nobody's.
    """

    def __init__(self) -> None:
        self.notes: Notes = {}
        # Pages of its own: they are there when they are touched, and move without being copied.
        # What the allocator has for an array that grows leaves holes of its size behind.
        self.rows = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._free: list[int] = []
        self._end = ROW.size  # of the rows that have been in use

    def __contains__(self, name: bytes) -> bool:
        return self.notes.get(name, 0) & PLACE != 0

    def names(self) -> list[bytes]:
        """Return all names."""
        return placed(self.notes)

    def get(self, name: bytes) -> Row | None:
        """Return the row of *name* as it is now."""
        place = place_of(self.notes, name)
        return Row(*ROW.unpack_from(self.rows, place)) if place else None

    def put(self, name: bytes, row: Row) -> None:
        """Carry *name* by *row*, whatever carried it before."""
        note = self.notes.get(name, 0)
        place = note & PLACE
        if not place:
            if not self._free:
                self._grow()
            place = self._free.pop()
            self.notes[name] = note | place
        ROW.pack_into(self.rows, place, *row)

    def _grow(self) -> None:
        begin, self._end = self._end, self._end + _MORE * ROW.size
        if self._end > len(self.rows):
            self.rows.resize(2 * len(self.rows))
        self._free += range(self._end - ROW.size, begin - 1, -ROW.size)

    def pop(self, name: bytes) -> Row:
        """Stop carrying *name*; return what it was."""
        place = place_of(self.notes, name)
        row = Row(*ROW.unpack_from(self.rows, place))
        give_place(self.notes, name, 0)
        self._free.append(place)
        return row

    def tally(self, name: bytes) -> Tally | None:
        """Return what was carried under *name*."""
        place = place_of(self.notes, name)
        return Tally(*TALLY.unpack_from(self.rows, place)) if place else None

    def tallies(self, names: list[bytes]) -> Iterator[tuple[Match, Tally]]:
        """Yield what was carried under those of *names* that are there."""
        find, rows = self.notes.get, self.rows
        for name in names:
            place = find(name, 0) & PLACE
            if place:
                yield match_of(name), Tally(*TALLY.unpack_from(rows, place))

    def credit(self, name: bytes, packets: int, octets: int) -> None:
        """Count so many *packets* and *octets* more under *name*, if it is there."""
        place = place_of(self.notes, name)
        if place:
            before = TALLY.unpack_from(self.rows, place)
            TALLY.pack_into(self.rows, place, before[0] + packets, before[1] + octets)

    def remark(self, name: bytes, mark: int) -> None:
        """Give the packets of *name* another mark, if it is there."""
        place = place_of(self.notes, name)
        if place:
            _MARK.pack_into(self.rows, place + _MARK_AT, mark)
