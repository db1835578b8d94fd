"""What two places of capture saw of one call, packet by packet.

A packet passes both places, a moment apart; clocks need not agree, so the call's own
request tells by how much they differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from pptp_nat.analysis.model import Call
    from pptp_nat.analysis.packets import Evidence

APART: Final = 0.5  #: seconds between both views of a packet, at most, by one clock


class Shown(Protocol):
    """Something that a packet shows."""

    @property
    def evidence(self) -> Evidence:
        """The packet."""


T = TypeVar("T", bound=Shown)


def offset(inner: Call, outer: Call) -> float:
    """Return the seconds by which the outer capture's clock is ahead, the way included."""
    if inner.requested is not None and outer.requested is not None:
        return outer.requested.time - inner.requested.time
    return outer.first.time - inner.first.time


def paired(
    inner: Iterable[T], outer: Iterable[T], ahead: float, name: Callable[[T], Hashable]
) -> list[tuple[T | None, T | None]]:
    """Return what each of two places saw, None where it saw nothing, by the inner clock.

    Args:
        inner: what was seen at one place.
        outer: at the other.
        ahead: seconds by which the clock there is ahead.
        name: what of a packet is the same at both.
    """
    waiting: dict[Hashable, list[T]] = {}
    for each in sorted(outer, key=moment):
        waiting.setdefault(name(each), []).append(each)
    pairs: list[tuple[T | None, T | None]] = []
    moments: list[float] = []
    for each in sorted(inner, key=moment):
        others = waiting.get(name(each), [])
        time = each.evidence.time
        near = next((o for o in others if abs(o.evidence.time - ahead - time) < APART), None)
        if near is not None:
            others.remove(near)
        pairs.append((each, near))
        moments.append(time)
    for others in waiting.values():
        pairs += [(None, other) for other in others]
        moments += [other.evidence.time - ahead for other in others]
    order = sorted(range(len(pairs)), key=moments.__getitem__)
    return [pairs[at] for at in order]


def moment(shown: Shown) -> tuple[float, int]:
    """Return what to sort by: time, then the packet's number."""
    return shown.evidence.time, shown.evidence.number
