"""One direction of a call over time, in a bounded number of bins."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import Final, NamedTuple

_FINEST: Final = 0.25  #: seconds
_BINS: Final = 128


class Bin(NamedTuple):
    """What happened between two moments."""

    packets: int
    octets: int  #: of GRE payload
    lost: int  #: numbers passed over, less those that came late
    outstanding: int  #: most packets without acknowledgement
    delay: float  #: seconds, sum of all
    delayed: int  #: how many they are
    longest: float  #: of them

    @property
    def mean_delay(self) -> float | None:
        """Seconds, None without any."""
        return self.delay / self.delayed if self.delayed else None


class Timeline:
    """Bins of equal width that stand at multiples of it, so that two timelines match.

    The width doubles whenever more than 128 would be needed.  Times before the first
    bin count as in it.  Each field of `Bin` is a column here, which has room for more
    bins than are in use; whoever looks at one as memory lets go of it before the next
    time is looked for.
    """

    def __init__(self) -> None:
        self.width = _FINEST  #: seconds
        self.base = 0  #: the first bin begins at base * width
        self.used = 0  #: bins
        self.packets, self.octets, self.lost = array("q"), array("q"), array("q")
        self.outstanding, self.delayed = array("q"), array("q")
        self.delay, self.longest = array("d"), array("d")

    def shares(self, times: Sequence[float]) -> tuple[int, list[int]]:
        """Return the first bin that holds *times*; where in them each bin begins, the last ends.

        Where *times* do not rise, every one of them is in some bin, if not in its own.
        """
        begin, edges = self.between(times[0], times[-1])
        cuts = accumulate(map(bisect_left, repeat(times), edges), max)
        return begin, [0, *cuts, len(times)]

    def between(self, first: float, last: float) -> tuple[int, list[float]]:
        """Return the bin of one of two times, and the times at which it and others end.

        These are all bins up to the one of the other time, whose end is not among them.
        """
        for time in (first, last):
            self.at(time)  # the latest may make all bins wider
        begin, end = sorted((self.at(first), self.at(last)))
        return begin, [(self.base + at) * self.width for at in range(begin + 1, end + 1)]

    def at(self, time: float) -> int:
        """Return which bin holds *time*; make it, and all of them wider if there are too many."""
        if not self.used:
            self.base = math.floor(time / self.width)
        while (at := math.floor(time / self.width) - self.base) >= _BINS:
            self._coarsen()
        at = max(at, 0)
        if at >= self.used:
            self.used = at + 1
            missing = self.used - len(self.packets)
            if missing > 0:
                for column in self._columns():
                    column.frombytes(bytes(column.itemsize * max(missing, len(column))))
        return at

    def _columns(self) -> tuple[array[int] | array[float], ...]:
        """Return all columns, in the order of `Bin`."""
        return (
            self.packets, self.octets, self.lost, self.outstanding,
            self.delay, self.delayed, self.longest,
        )  # fmt: skip

    def _coarsen(self) -> None:
        """Make the bins twice as wide."""
        lone = self.base % 2  # the first is the second half of its new bin
        self.used = (self.used + lone + 1) // 2
        self.width *= 2
        self.base //= 2
        for each in self._columns():
            join = max if each is self.outstanding or each is self.longest else _sum
            room = len(each)
            if lone:
                each.insert(0, 0)
            if len(each) % 2:
                each.append(0)
            joined = array(each.typecode, map(join, each[::2], each[1::2]))
            joined.frombytes(bytes(each.itemsize * (room - len(joined))))
            each[:] = joined

    @property
    def bins(self) -> list[Bin]:
        """All that are in use."""
        return list(map(Bin, *(each[: self.used] for each in self._columns())))

    def items(self) -> list[tuple[float, Bin]]:
        """Return each bin with the time at which it begins, in seconds."""
        return [((self.base + at) * self.width, each) for at, each in enumerate(self.bins)]


def _sum(one: float, other: float) -> float:
    return one + other
