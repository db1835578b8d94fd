"""What ``pptp_nat/bpf/gre.c`` and this process tell each other: layouts, and counts in memory.

The maps `legs` and `origins` are written here and read there; `counts` is written
there, and is memory of this process too: reading it asks nobody.
"""

from __future__ import annotations

import enum
import mmap
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address, Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Tally

# The structs of gre.c, field by field.
_MATCH: Final = struct.Struct("=4s4s2sH")
_LEG: Final = struct.Struct("=4s4s2sBBIII")
_ORIGIN: Final = struct.Struct("=4s4s2sBx")
_COUNT: Final = struct.Struct("=5Q2I16x")
_TALLY: Final = struct.Struct("=2Q")
_TALLIES: Final = struct.Struct("=2Q48x")
_NUMBER: Final = struct.Struct("=Q")

#: What the programs count besides: the order of ``enum told``.
TOLD: Final = (
    "fragment_unknown", "icmp_error_unknown", "icmp_error_translated", "sequence_missing",
    "sequence_late",
)  # fmt: skip


class Where(enum.IntEnum):
    """Where a packet's addresses are written: ``enum where``."""

    UNCHANGED = 0
    ARRIVING = 1
    LEAVING = 2


class Row(NamedTuple):
    """One entry of a map."""

    key: bytes
    value: bytes


class Rows(NamedTuple):
    """What one leg is in the maps."""

    legs: tuple[Row, ...]  #: of a hairpin two
    origin: Row | None  #: of a hairpin as it is between the two, where this router may complain


class Watched(NamedTuple):
    """What a leg's packets have shown."""

    tally: Tally
    last: float | None  #: when the last one came, in monotonic seconds, to 10 ms
    missing: int  #: sequence numbers that were skipped
    late: int  #: packets that came after one with a higher number


def match_key(source: Address, destination: Address, key: int, stage: int = 0) -> bytes:
    """Return what a map is asked for."""
    return _MATCH.pack(source, destination, key.to_bytes(2, "big"), stage)


def rows(leg: Leg, mark: int, slot: int) -> Rows:
    """Return what the maps are to hold for *leg*, whose counts are in *slot*."""
    changes_source = leg.source != leg.new_source
    changes_destination = leg.destination != leg.new_destination
    key = match_key(*leg[:3])
    if changes_source and changes_destination:
        # A hairpin: a source of this router's own would not get past routing.
        half = leg._replace(new_source=leg.source)
        first = Row(key, _leg(half, mark, slot, Where.ARRIVING, again=True))
        rest = Leg(*half[3:], *leg[3:])
        second = Row(match_key(*rest[:3], 1), _leg(rest, mark, slot, Where.LEAVING))
        return Rows((first, second), _quoted(half, leg, Where.ARRIVING))
    where = Where.LEAVING if changes_source else Where.ARRIVING
    if not leg.translates:
        where = Where.UNCHANGED
    quoted = _quoted(leg, leg, where) if leg.translates else None
    return Rows((Row(key, _leg(leg, mark, slot, where)),), quoted)


def _quoted(sent: Leg, leg: Leg, where: Where) -> Row:
    """Return what tells, of an error about a packet as *sent*, how it arrived."""
    origin = _ORIGIN.pack(leg.source, leg.destination, leg.key.to_bytes(2, "big"), where)
    return Row(match_key(*sent[3:]), origin)


def _leg(leg: Leg, mark: int, slot: int, where: Where, *, again: bool = False) -> bytes:
    return _LEG.pack(
        leg.new_source, leg.new_destination, leg.new_key.to_bytes(2, "big"), where, again, mark,
        slot, _delta(leg.source + leg.destination, leg.new_source + leg.new_destination),
    )  # fmt: skip


def _delta(old: bytes, new: bytes) -> int:
    """Return the folded sum of ``~old + new`` in the machine's order (RFC 1071, 2 (B))."""
    total: int = sum(0xFFFF - word for word in struct.unpack("=4H", old))
    total += sum(struct.unpack("=4H", new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Counts:
    """The map `counts`, mapped into memory, and which of its slots are free.

    Raises:
        AdapterError: the kernel does not map it.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._memory = mapped(fd, slots * _COUNT.size)
        self._free: list[int] = []
        self._top = 0  # slots below this one have been in use
        self._unused = iter(range(slots))

    def take(self) -> int | None:
        """Return a slot that counts from 0; None: all are taken."""
        slot = self._free.pop() if self._free else next(self._unused, None)
        if slot is not None:
            self._top = max(self._top, slot + 1)
            self._memory[slot * _COUNT.size : (slot + 1) * _COUNT.size] = bytes(_COUNT.size)
        return slot

    def give_back(self, slot: int) -> None:
        """Take note that no leg has *slot* any more."""
        self._free.append(slot)

    def tally(self, slot: int) -> Tally:
        """Return what the leg of *slot* has carried."""
        return Tally(*_TALLY.unpack_from(self._memory, slot * _COUNT.size))

    def tallies(self, slots: Iterable[int]) -> Iterator[Tally]:
        """Yield what the legs of *slots* have carried; for many, a fifth of `tally`'s time."""
        with memoryview(self._memory) as whole, whole[: self._top * _COUNT.size] as used:
            counts = list(_TALLIES.iter_unpack(used))
        return map(Tally._make, map(counts.__getitem__, slots))

    def watched(self, slot: int) -> Watched:
        """Return all that is known of the leg of *slot*."""
        packets, octets, last, missing, late, _, _ = _COUNT.unpack_from(
            self._memory, slot * _COUNT.size
        )
        return Watched(Tally(packets, octets), last / 1e9 if last else None, missing, late)

    def close(self) -> None:
        """Unmap it."""
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
