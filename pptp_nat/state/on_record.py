"""Which counts of legs are on record, in eight octets each: enough to tell which have changed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from pptp_nat.state.contents import LegCount

_PARTS: Final = 64  #: that are sorted one by one: a list of Python's numbers is five times as large
_PIECE: Final = 256  #: counts that are looked at in one piece


class OnRecord:
    """Counts as they were written last, by their hashes.

    A count whose hash is that of another one is taken for written, until it grows: of
    200,000 that all change one, in some 460 million looks.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts = _parts()

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def news(self, counts: Iterable[LegCount]) -> Iterator[LegCount | None]:
        """Yield those of *counts* that are not on record as they are; then all of them are.

        None comes between two pieces of work, each of less than a millisecond.
        """
        known, parts = self._parts, _parts()
        for place, each in enumerate(counts, 1):
            if not place % _PIECE:
                yield None
            value = hash(each)
            parts[value % _PARTS].append(value)
            part = known[value % _PARTS]
            at = bisect_left(part, value)
            if at == len(part) or part[at] != value:
                yield each
        for at, part in enumerate(parts):
            parts[at] = array("q", sorted(part))
            if len(part) >= _PIECE:
                yield None
        self._parts = parts


def _parts() -> list[array[int]]:
    return [array("q") for _ in range(_PARTS)]
