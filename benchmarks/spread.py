"""Medians with their spread, and ratios taken pair by pair."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, the quartiles around it and how many rounds they come from."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize *values*, of which there is at least one."""
        ordered = sorted(values)
        assert ordered, "nothing was measured"
        if len(ordered) == 1:
            return cls(ordered[0], ordered[0], ordered[0], 1)
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(statistics.median(ordered), low, high, len(ordered))

    def as_dict(self) -> dict[str, float]:
        """Return what goes into the JSON."""
        return {
            "median": self.median,
            "quartile_low": self.low,
            "quartile_high": self.high,
            "rounds": self.rounds,
        }


def pairwise(above: Mapping[int, float], below: Mapping[int, float]) -> list[float]:
    """Divide figure by figure, by the round that both were taken in.

    A round lasts seconds, so what else the machine does then weighs on both.
    """
    return [above[r] / below[r] for r in sorted(above.keys() & below.keys()) if below[r]]


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Return *items* beginning elsewhere each round: nobody always follows the same one."""
    by %= max(len(items), 1)
    return [*items[by:], *items[:by]]
