"""What ``pptp_nat/bpf/gre.c`` and this process tell each other: layouts, and counts in memory.

The maps `legs` and `origins` are written here and read there; `counts` is written
there, and is memory of this process too: reading it asks nobody.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address, Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.bpf_object import BpfObject
from pptp_nat.linux.datapath import LegOrder, Tally
from pptp_nat.linux.leg_table import grown, match_of

# The structs of gre.c, field by field.
_MATCH: Final = struct.Struct("=10sH")
_LEG: Final = struct.Struct("=10sBBIII")
_ORIGIN: Final = struct.Struct("=10sBx")
_COUNT: Final = struct.Struct("=5Q2I16x")
_TALLY: Final = struct.Struct("=2Q")
_TALLIES: Final = struct.Struct("=2Q48x")
_NUMBER: Final = struct.Struct("=Q")
_ZERO: Final = bytes(_COUNT.size)
_MORE: Final = 1024  #: slots by which the part grows that is mapped, at least

#: What the programs count besides: the order of ``enum told``.
TOLD: Final = (
    "fragment_unknown", "icmp_error_unknown", "icmp_error_translated", "sequence_missing",
    "sequence_late",
)  # fmt: skip


#: Where a packet's addresses are written: ``enum where``.
UNCHANGED, ARRIVING, LEAVING = 0, 1, 2


class Row(NamedTuple):
    """One entry of a map."""

    key: bytes
    value: bytes


class Rows(NamedTuple):
    """What one leg is in the maps."""

    legs: tuple[Row, ...]  #: of a hairpin two
    #: of a hairpin as it is between the two, where this router may complain
    origin: Row | None = None


_NOTHING: Final = Rows(())


class Watched(NamedTuple):
    """What a leg's packets have shown."""

    tally: Tally
    last: float | None  #: when the last one came, in monotonic seconds, to 10 ms
    missing: int  #: sequence numbers that were skipped
    late: int  #: packets that came after one with a higher number


def match_key(source: Address, destination: Address, key: int, stage: int = 0) -> bytes:
    """Return what a map is asked for."""
    return _MATCH.pack(source + destination + key.to_bytes(2, "big"), stage)


def rows(leg: Leg, mark: int, slot: int) -> Rows:
    """Return what the maps are to hold for *leg*, whose counts are in *slot*."""
    source, destination, key, new_source, new_destination, new_key = leg
    arrived = source + destination + key.to_bytes(2, "big")
    left = new_source + new_destination + new_key.to_bytes(2, "big")
    if source != new_source and destination != new_destination:
        # A hairpin: a source of this router's own would not get past routing.
        half = source + left[4:]
        first = Row(_MATCH.pack(arrived, 0), _leg(arrived, half, mark, slot, ARRIVING, again=True))
        second = Row(_MATCH.pack(half, 1), _leg(half, left, mark, slot, LEAVING))
        return Rows((first, second), Row(_MATCH.pack(half, 0), _ORIGIN.pack(arrived, ARRIVING)))
    if arrived == left:
        return Rows((Row(_MATCH.pack(arrived, 0), _leg(arrived, left, mark, slot, UNCHANGED)),))
    where = ARRIVING if source == new_source else LEAVING
    row = Row(_MATCH.pack(arrived, 0), _leg(arrived, left, mark, slot, where))
    return Rows((row,), Row(_MATCH.pack(left, 0), _ORIGIN.pack(arrived, where)))


def _leg(
    arrived: bytes, left: bytes, mark: int, slot: int, where: int, *, again: bool = False
) -> bytes:
    return _LEG.pack(left, where, again, mark, slot, grown(arrived[:8], left[:8]))


class LegMaps:
    """The maps `legs` and `origins` of *programs*."""

    def __init__(self, programs: BpfObject) -> None:
        self._update, self._delete = programs.update, programs.delete
        self._lookup = programs.lookup
        self._legs, self._origins = programs.map_fd("legs"), programs.map_fd("origins")

    def put(self, order: LegOrder, slot: int, before: LegOrder | None = None) -> int:
        """Have *order* carried instead of *before*; return an errno, 0 for success."""
        made = rows(order.leg, order.mark, slot)
        code = 0
        # A hairpin's second half is there before its first.
        for row in reversed(made.legs):
            code = code or self._update(self._legs, *row)
        if made.origin is not None:
            code = code or self._update(self._origins, *made.origin)
        if code:
            if before is None:
                self._take(made)
        elif before is not None and before.leg != order.leg:
            self._take(rows(before.leg, before.mark, slot), but=made)
        return code

    def take(self, leg: Leg) -> None:
        """Have *leg*, which is carried, carried no more."""
        self._take(rows(leg, 0, 0))

    def _take(self, gone: Rows, but: Rows = _NOTHING) -> None:
        kept = {row.key for row in but.legs}
        for row in gone.legs:
            if row.key not in kept:
                self._delete(self._legs, row.key)
        if gone.origin is not None and (but.origin is None or but.origin.key != gone.origin.key):
            self._delete(self._origins, gone.origin.key)

    def get(self, name: bytes) -> LegOrder | None:
        """Return what is carried under *name* (`pptp_nat.linux.leg_table.name_of`)."""
        found = self._lookup(self._legs, _MATCH.pack(name, 0), _LEG.size)
        if found is None:
            return None
        left, _, again, mark, _, _ = _LEG.unpack(found)
        if again:
            found = self._lookup(self._legs, _MATCH.pack(left, 1), _LEG.size)
            left = left if found is None else _LEG.unpack(found)[0]
        return LegOrder(Leg(*match_of(name), *match_of(left)), mark)


class Counts:
    """The map `counts`, and which of its slots are free.

    It is mapped into memory as far as slots have been in use: the kernel puts all
    pages of a mapping into a process at once, and they count as its memory.

    Args:
        fd: of the map; it stays the caller's.
        slots: how many it has; the first is nobody's, so that 0 can mean that there is none.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._fd, self._slots = fd, slots
        self._memory: mmap.mmap | None = None
        self._mapped = 0  # slots
        self._free: list[int] = []
        self._top = 1  # slots below this one have been in use

    def take(self) -> int:
        """Return a slot that counts from nothing; 0: all are taken.

        Raises:
            AdapterError: the kernel does not map more of them.
        """
        if self._free:
            slot = self._free.pop()
        elif self._top < self._slots:
            if self._top >= self._mapped:
                self._map(self._mapped + max(_MORE, self._mapped // 32))
            slot, self._top = self._top, self._top + 1
        else:
            return 0
        assert self._memory is not None
        self._memory[slot * _COUNT.size : (slot + 1) * _COUNT.size] = _ZERO
        return slot

    def _map(self, slots: int) -> None:
        slots = min(slots, self._slots)
        before, self._memory = self._memory, mapped(self._fd, slots * _COUNT.size)
        self._mapped = slots
        if before is not None:
            before.close()

    def give_back(self, slot: int) -> None:
        """Take note that no leg has *slot* any more."""
        self._free.append(slot)

    def tally(self, slot: int) -> Tally:
        """Return what the leg of *slot* has carried."""
        assert self._memory is not None
        return Tally(*_TALLY.unpack_from(self._memory, slot * _COUNT.size))

    def tallies(self, slots: Iterable[int]) -> Iterator[Tally]:
        """Yield what the legs of *slots* have carried; for many, a fifth of `tally`'s time."""
        if self._memory is None:
            return iter(())
        with memoryview(self._memory) as whole, whole[: self._top * _COUNT.size] as used:
            counts = list(_TALLIES.iter_unpack(used))
        return map(Tally._make, map(counts.__getitem__, slots))

    def watched(self, slot: int) -> Watched:
        """Return all that is known of the leg of *slot*."""
        assert self._memory is not None
        packets, octets, last, missing, late, _, _ = _COUNT.unpack_from(
            self._memory, slot * _COUNT.size
        )
        return Watched(Tally(packets, octets), last / 1e9 if last else None, missing, late)

    def close(self) -> None:
        """Unmap it."""
        if self._memory is not None:
            self._memory.close()


def told(memory: mmap.mmap) -> dict[str, int]:
    """Return what the programs have counted besides, by its slug."""
    return {
        slug: _NUMBER.unpack_from(memory, at * _NUMBER.size)[0] for at, slug in enumerate(TOLD)
    }


def mapped(fd: int, octets: int) -> mmap.mmap:
    """Return a map as memory of this process.

    Raises:
        AdapterError: the kernel does not map it.
    """
    page = mmap.PAGESIZE
    try:
        return mmap.mmap(fd, -(-octets // page) * page)
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None) or 22
        raise AdapterError("mapping the counts of the BPF programs", code) from error
