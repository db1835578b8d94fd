"""One direction of a call over time, in a bounded number of bins."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import Final

_FINEST: Final = 0.25  #: seconds
_BINS: Final = 128


class Bin:
    """What happened between two moments."""

    __slots__ = ("delay", "delayed", "longest", "lost", "octets", "outstanding", "packets")

    def __init__(self) -> None:
        self.packets = 0
        self.octets = 0  #: of GRE payload
        self.lost = 0  #: numbers passed over, less those that came late
        self.outstanding = 0  #: most packets without acknowledgement
        self.delay = 0.0  #: seconds, sum of all
        self.delayed = 0  #: how many they are
        self.longest = 0.0  #: of them

    def take(self, other: Bin) -> None:
        """Add *other* to this one."""
        self.packets += other.packets
        self.octets += other.octets
        self.lost += other.lost
        self.outstanding = max(self.outstanding, other.outstanding)
        self.delay += other.delay
        self.delayed += other.delayed
        self.longest = max(self.longest, other.longest)

    @property
    def mean_delay(self) -> float | None:
        """Seconds, None without any."""
        return self.delay / self.delayed if self.delayed else None


class Timeline:
    """Bins of equal width that stand at multiples of it, so that two timelines match.

    The width doubles whenever more than 128 would be needed.  Times before the first
    bin count as in it.
    """

    def __init__(self) -> None:
        self.width = _FINEST  #: seconds
        self.base = 0  #: the first bin begins at base * width
        self.bins: list[Bin] = []

    def at(self, time: float) -> Bin:
        """Return the bin that holds *time*."""
        return self.bins[self._index(time)]

    def shares(self, times: Sequence[float]) -> tuple[list[Bin], list[int]]:
        """Return the bins that hold *times*, and the index of the first of each; the last's end.

        Where *times* do not rise, every one of them is in some bin, if not in its own.
        """
        bins, edges = self.between(times[0], times[-1])
        cuts = accumulate(map(bisect_left, repeat(times), edges), max)
        return bins, [0, *cuts, len(times)]

    def between(self, first: float, last: float) -> tuple[list[Bin], list[float]]:
        """Return the bins from one time to another, and the times at which one ends."""
        for time in (first, last):
            self._index(time)  # the latest may make all bins wider
        begin, end = sorted((self._index(first), self._index(last)))
        edges = [(self.base + at) * self.width for at in range(begin + 1, end + 1)]
        return self.bins[begin : end + 1], edges

    def _index(self, time: float) -> int:
        """Return which bin holds *time*; make it, and all of them wider if there are too many."""
        if not self.bins:
            self.base = math.floor(time / self.width)
        while (at := math.floor(time / self.width) - self.base) >= _BINS:
            self._coarsen()
        at = max(at, 0)
        while len(self.bins) <= at:
            self.bins.append(Bin())
        return at

    def _coarsen(self) -> None:
        """Make the bins twice as wide."""
        old, first = self.bins, self.base
        self.width *= 2
        self.base = first // 2
        self.bins = []
        for index, each in enumerate(old):
            at = (first + index) // 2 - self.base
            if at < len(self.bins):
                self.bins[at].take(each)
            else:
                self.bins.append(each)

    def items(self) -> list[tuple[float, Bin]]:
        """Return each bin with the time at which it begins, in seconds."""
        return [((self.base + at) * self.width, each) for at, each in enumerate(self.bins)]
