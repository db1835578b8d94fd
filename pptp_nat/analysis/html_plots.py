"""Plots over the time of a call: rate, loss, acknowledgement delay, outstanding packets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.html_elements import Markup, label, line, picture, tag
from pptp_nat.analysis.timeline import Bin
from pptp_nat.core.messages import Role

_WIDTH: Final = 360
_HEIGHT: Final = 158
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 30, 24
_UNITS: Final = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_NICE: Final = (1, 2, 2.5, 5, 10)

Points = Sequence[tuple[float, float]]  #: seconds since the beginning, value


class Series(NamedTuple):
    """One line of a plot."""

    name: str
    class_: str
    points: Points
    width: float  #: seconds that each point holds for; 0: points are joined as they are


class Scale(NamedTuple):
    """What an axis shows."""

    most: float
    step: float

    def ticks(self) -> Iterator[float]:
        """Yield the values that get a line."""
        for at in range(round(self.most / self.step) + 1):
            yield at * self.step


def scale(most: float, lines: int = 3) -> Scale:
    """Return a scale from 0 to *most* or a little more, with about *lines* lines."""
    most = most if most > 0 else 1.0
    rough = most / lines
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in _NICE if nice * power >= rough * 0.999)
    return Scale(math.ceil(most / step * 0.999) * step, step)


def amount(value: float) -> str:
    """Write a number with its thousands as letters: ``2.5 M``."""
    for letter, size in _UNITS:
        if abs(value) >= size and letter:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def plot(
    title: str, unit: str, series: Sequence[Series], *, limit: tuple[str, float] | None = None
) -> Markup:
    """Return a plot of *series* over time; *limit* is a line across with its name."""
    most = max((value for each in series for _, value in each.points), default=0.0)
    if limit is not None:
        most = max(most, limit[1])
    end = max((at + each.width for each in series for at, _ in each.points), default=1.0)
    down, along = scale(most), scale(end, 4)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    reach = max(end, 1e-9)

    def x(at: float) -> float:
        return _LEFT + wide * at / reach

    def y(value: float) -> float:
        return _TOP + high * (1 - value / down.most)

    parts = [label(_LEFT - 38, 14, title, "plot-title")]
    parts.append(label(_WIDTH - _RIGHT, 14, unit, "tick", text_anchor="end"))
    for value in down.ticks():
        parts.append(line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "grid"))
        parts.append(label(_LEFT - 5, y(value) + 3, amount(value), "tick", text_anchor="end"))
    for at in along.ticks():
        if at <= reach * 1.001:
            anchor = "end" if x(at) > _WIDTH - _RIGHT - 12 else "middle"
            words = f"{amount(at)} s" if at else "0"
            parts.append(label(x(at), _HEIGHT - 8, words, "tick", text_anchor=anchor))
    if limit is not None:
        parts.append(line(_LEFT, y(limit[1]), _WIDTH - _RIGHT, y(limit[1]), "limit"))
        parts.append(label(_WIDTH - _RIGHT, y(limit[1]) - 4, limit[0], "tick limit-name",
                           text_anchor="end"))  # fmt: skip
    for each in series:
        path = _path(each, x, y)
        if path:
            parts.append(tag("path", d=path, class_=f"curve {each.class_}"))
    return picture(_WIDTH, _HEIGHT, f"{title}, {unit}", *parts, class_="plot")


def _path(series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Return the way along the points, in steps where each holds for a while."""
    words: list[str] = []
    until = -1.0
    for at, value in series.points:
        joins = words and at <= until * (1 + 1e-9) + 1e-9
        words.append(f"{'L' if joins else 'M'}{x(at):.1f} {y(value):.1f}")
        if series.width:
            words.append(f"H{x(at + series.width):.1f}")
        until = at + series.width if series.width else math.inf
    return "".join(words)


_NAMES: Final = {Role.PNS: ("from the client", "pns"), Role.PAC: ("from the server", "pac")}


def plots(measures: dict[Role, GreQuality], windows: dict[Role, int | None]) -> list[Markup]:
    """Return the plots of a call; time counts from the first bin that holds a packet.

    *windows* are the packets that the receiver of each role's GRE takes at once.
    """
    begins = [each.timeline.items()[0][0] for each in measures.values() if each.timeline.used]
    start = min(begins, default=0.0)

    def lines(value: Callable[[Bin, float], float | None]) -> list[Series]:
        found = []
        for role, quality in measures.items():
            name, class_ = _NAMES[role]
            width = quality.timeline.width
            points = [
                (at - start, got)
                for at, each in quality.timeline.items()
                if (got := value(each, width)) is not None
            ]
            found.append(Series(name, class_, points, width))
        return found

    drawn = [
        plot("Throughput", "bit/s", lines(lambda each, width: each.octets * 8 / width)),
        plot("Lost", "packets", lines(lambda each, _: max(each.lost, 0))),
    ]
    delays = lines(lambda each, _: _milliseconds(each.mean_delay))
    if any(each.points for each in delays):
        drawn.append(plot("Acknowledgement delay", "ms", delays))
        known = [window for window in windows.values() if window]
        limit = (f"window {min(known)}", float(min(known))) if known else None
        outstanding = lines(lambda each, _: each.outstanding if each.packets else None)
        peak = max((value for each in outstanding for _, value in each.points), default=0.0)
        if limit is not None and limit[1] > 8 * max(peak, 1.0):
            limit = None  # a window so far away would flatten all there is to see
        drawn.append(plot("Not yet acknowledged", "packets", outstanding, limit=limit))
    return drawn


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
