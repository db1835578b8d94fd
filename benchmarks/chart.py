"""Plots as SVG: medians with whiskers from quartile to quartile, lines or rows in panels.

Small, and without a library: a plot is text that a diff can show.  Colours are classes, so that
one file is readable on light and on dark ground.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from benchmarks.spread import Spread

WIDTH: Final = 760
_TITLE: Final = 44  #: units above the panels
_PANEL: Final = (380, 250)  #: of lines: width and height
_MARGIN: Final = (52, 14, 24, 40)  #: of a panel of lines: left, right, top, bottom
_NAMES: Final = 150  #: left of a row's axis
_ROW: Final = 20
_ROWS_HEAD, _ROWS_FOOT = 22, 34
_CHARACTER: Final = 5.6  #: width of one at the size of labels
_APART: Final = 12.0  #: between labels at the ends of lines
_NICE: Final = (1, 2, 2.5, 5, 10)

#: class -> colour on light ground, on dark ground
COLOURS: Final = {
    "grey": ("#6e7781", "#8b949e"),
    "brown": ("#9a6700", "#d29922"),
    "red": ("#cf222e", "#ff7b72"),
    "blue": ("#0969da", "#58a6ff"),
    "green": ("#1a7f37", "#3fb950"),
    "violet": ("#8250df", "#bc8cff"),
    "teal": ("#0a7d8c", "#39c5cf"),
    "pink": ("#bf3989", "#f778ba"),
    "orange": ("#bc4c00", "#f0883e"),
    "olive": ("#5c6b00", "#b5c94c"),
    "slate": ("#3d4f8a", "#93a4dd"),
    "rose": ("#a0454c", "#e5a3a8"),
    "black": ("#24292f", "#d0d7de"),
}
_GROUND: Final = {"paper": ("#ffffff", "#0d1117"), "ink": ("#1f2328", "#e6edf3"),
                  "faint": ("#656d76", "#9198a1"), "rule": ("#d8dee4", "#30363d")}  # fmt: skip
#: of a row's marks, the first one first
_MARKS: Final = ("circle", "diamond", "triangle")


class Point(NamedTuple):
    """What was measured at *x*."""

    x: float
    y: Spread


class Series(NamedTuple):
    """One line: its name, its colour's class, its points by x."""

    name: str
    colour: str
    points: Sequence[Point]


class LinePanel(NamedTuple):
    """Lines over one axis of heights, called *title*."""

    title: str
    series: Sequence[Series]
    log_y: bool = False


class Row(NamedTuple):
    """One thing that was measured: its name, its colour's class, one spread a mark."""

    name: str
    colour: str
    marks: Sequence[Spread]


class RowPanel(NamedTuple):
    """Rows over one axis."""

    title: str
    rows: Sequence[Row]


class _Axis:
    """Where a value is between two ends of the paper."""

    def __init__(
        self, values: Sequence[float], ends: tuple[float, float], *, logarithmic: bool
    ) -> None:
        self._ends = ends
        self._log = logarithmic
        if logarithmic:
            self.least = _floor_125(min(values))
            self.most = max(_ceil_125(max(values)), self.least * 2)
        else:
            self.least = 0.0
            self._step = _step(max(values, default=1.0) or 1.0)
            self.most = math.ceil(max(values) / self._step * 0.999) * self._step or self._step

    def at(self, value: float) -> float:
        """Return the place of *value*."""
        if self._log:
            value = max(value, self.least)
            part = math.log(value / self.least) / math.log(self.most / self.least)
        else:
            part = value / self.most
        return self._ends[0] + part * (self._ends[1] - self._ends[0])

    def ticks(self) -> Iterator[float]:
        """Yield the values that are written at the axis."""
        if not self._log:
            yield from (n * self._step for n in range(round(self.most / self._step) + 1))
            return
        many = self.most / self.least > 300
        power = 10.0 ** math.floor(math.log10(self.least) + 1e-9)
        while power <= self.most * 1.001:
            for digit in (1,) if many else (1, 2, 5):
                if self.least * 0.999 <= digit * power <= self.most * 1.001:
                    yield digit * power
            power *= 10


def lines(
    title: str, note: str, panels: Sequence[LinePanel], x_name: str, *, log_x: bool = True
) -> str:
    """Draw panels of lines, two in a row, all over the same kind of x."""
    width, height = _PANEL
    body: list[str] = []
    for number, panel in enumerate(panels):
        x, y = number % 2 * width, _TITLE + number // 2 * height
        body += _lines_panel(panel, x, y, x_name, log_x=log_x)
    return _paper(title, note, body, _TITLE + (len(panels) + 1) // 2 * height)


def rows(
    title: str, note: str, panels: Sequence[RowPanel], unit: str, *,
    logarithmic: bool = False, mark_names: Sequence[str] = (), digits: int = 0,
) -> str:  # fmt: skip
    """Draw panels of rows, one below the other, all to the same scale.

    A linear scale begins at nothing and has bars; a logarithmic one has marks alone.
    """
    everything = [s for panel in panels for row in panel.rows for s in row.marks]
    values = [value for s in everything for value in (s.low, s.high) if value > 0] or [1.0]
    figures = max(len(_figures(row, digits)) for panel in panels for row in panel.rows)
    ends = (_NAMES, WIDTH - 24 - figures * _CHARACTER)
    axis = _Axis(values, ends, logarithmic=logarithmic)
    body: list[str] = []
    y: float = _TITLE
    for panel in panels:
        body += _rows_panel(panel, axis, y, unit, bars=not logarithmic, digits=digits)
        y += _ROWS_HEAD + len(panel.rows) * _ROW + _ROWS_FOOT
    if mark_names:
        body += _mark_legend(mark_names)
    return _paper(title, note, body, y)


def _lines_panel(
    panel: LinePanel, left: float, top: float, x_name: str, *, log_x: bool
) -> Iterator[str]:
    width, height = _PANEL
    names = max((len(s.name) for s in panel.series), default=0) * _CHARACTER
    labels = names + 8 if len(panel.series) > 1 else 0
    x0, x1 = left + _MARGIN[0], left + width - _MARGIN[1] - labels
    y0, y1 = top + height - _MARGIN[3], top + _MARGIN[2]
    points = [p for s in panel.series for p in s.points]
    x = _Axis([p.x for p in points], (x0, x1), logarithmic=log_x)
    y = _Axis([v for p in points for v in (p.y.low, p.y.high)], (y0, y1), logarithmic=panel.log_y)
    yield _text(left + 12, top + 14, panel.title, "strong")
    for tick in y.ticks():
        yield f'<path class="rule" d="M{x0:.1f} {y.at(tick):.1f}H{x1:.1f}"/>'
        yield _text(x0 - 5, y.at(tick) + 3.5, amount(tick), "faint end")
    written = x0 - 100
    for tick in sorted({p.x for p in points}):
        yield f'<path class="rule" d="M{x.at(tick):.1f} {y0:.1f}v4"/>'
        if x.at(tick) - written > len(amount(tick)) * _CHARACTER + 4:
            yield _text(x.at(tick), y0 + 15, amount(tick), "faint middle")
            written = x.at(tick)
    yield _text((x0 + x1) / 2, y0 + 30, x_name, "faint middle")
    for series in panel.series:
        way = " ".join(f"{x.at(p.x):.1f},{y.at(p.y.median):.1f}" for p in series.points)
        yield f'<polyline class="{series.colour}" points="{way}"/>'
        for p in series.points:
            yield from _whisker(
                (x.at(p.x), y.at(p.y.low)), (x.at(p.x), y.at(p.y.high)), series.colour
            )
            yield _mark("circle", x.at(p.x), y.at(p.y.median), series.colour)
    if len(panel.series) > 1:
        wanted = [y.at(s.points[-1].y.median) for s in panel.series]
        for series, at in zip(panel.series, apart(wanted, _APART, y0), strict=True):
            end = x.at(series.points[-1].x)
            yield _text(end + 8, at + 3.5, series.name, f"{series.colour} word")


def _rows_panel(
    panel: RowPanel, axis: _Axis, top: float, unit: str, *, bars: bool, digits: int
) -> Iterator[str]:
    first, last = top + _ROWS_HEAD, top + _ROWS_HEAD + len(panel.rows) * _ROW
    yield _text(12, top + 12, panel.title, "strong")
    for tick in axis.ticks():
        yield f'<path class="rule" d="M{axis.at(tick):.1f} {first:.1f}V{last:.1f}"/>'
        yield _text(axis.at(tick), last + 13, amount(tick), "faint middle")
    yield _text(WIDTH - 10, top + 12, unit, "faint end")
    for number, row in enumerate(panel.rows):
        y = first + (number + 0.5) * _ROW
        yield _text(_NAMES - 8, y + 3.5, row.name, "end")
        if bars:
            long = axis.at(row.marks[0].median) - axis.at(0)
            yield (
                f'<rect class="{row.colour} bar" x="{axis.at(0):.1f}" y="{y - 6:.1f}"'
                f' width="{long:.1f}" height="12"/>'
            )
        for kind, spread in zip(_MARKS, row.marks, strict=False):
            yield from _whisker((axis.at(spread.low), y), (axis.at(spread.high), y), row.colour)
            if not bars:
                yield _mark(kind, axis.at(spread.median), y, row.colour)
        yield _text(WIDTH - 10, y + 3.5, _figures(row, digits), "end")


def _figures(row: Row, digits: int) -> str:
    return " / ".join(f"{s.median:,.{digits}f}" for s in row.marks)


def _mark_legend(names: Sequence[str]) -> Iterator[str]:
    x: float = WIDTH - 12 - sum(len(name) * _CHARACTER + 26 for name in names)
    for kind, name in zip(_MARKS, names, strict=False):
        yield _mark(kind, x, 32, "grey")
        yield _text(x + 8, 35.5, name, "faint")
        x += len(name) * _CHARACTER + 26


def _whisker(low: tuple[float, float], high: tuple[float, float], colour: str) -> Iterator[str]:
    """Draw from quartile to quartile, unless a mark would hide it."""
    if math.dist(low, high) < 1.0:
        return
    across = "h" if low[0] == high[0] else "v"
    caps = "".join(
        f"M{x - 3 * (across == 'h'):.1f} {y - 3 * (across == 'v'):.1f}{across}6"
        for x, y in (low, high)
    )
    path = f"M{low[0]:.1f} {low[1]:.1f}L{high[0]:.1f} {high[1]:.1f}{caps}"
    yield f'<path class="{colour} whisker" d="{path}"/>'


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle class="{colour} mark" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    corners = {
        "diamond": ((0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0)),
        "triangle": ((0, -4.2), (4.2, 3.4), (-4.2, 3.4)),
    }[kind]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{colour} mark" points="{points}"/>'


def _text(x: float, y: float, words: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _paper(title: str, note: str, body: Sequence[str], height: float) -> str:
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}">',
        f"<title>{escape(title)}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>',
        _text(12, 20, title, "title"),
        _text(12, 35.5, note, "faint"),
        *body,
        "</svg>\n",
    ))  # fmt: skip


def _style() -> str:
    def colours(which: int) -> str:
        ground = {name: pair[which] for name, pair in _GROUND.items()}
        found = [
            f".paper{{fill:{ground['paper']}}}", f"text{{fill:{ground['ink']}}}",
            f".faint{{fill:{ground['faint']}}}", f".rule{{stroke:{ground['rule']}}}",
        ]  # fmt: skip
        for name, pair in COLOURS.items():
            found.append(f".{name}{{stroke:{pair[which]}}}")
            found.append(f".{name}.mark,.{name}.bar,.{name}.word{{fill:{pair[which]}}}")
        return "".join(found)

    return (
        "text{font:11px system-ui,sans-serif;stroke:none}.title{font-size:15px;font-weight:600}"
        ".strong{font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}"
        "polyline,path{fill:none}polyline{stroke-width:1.8}.whisker{stroke-width:1.2}"
        "text.word{stroke:none}.bar{stroke:none;fill-opacity:.55}"
        f"{colours(0)}@media(prefers-color-scheme:dark){{{colours(1)}}}"
    )


def apart(wanted: Sequence[float], least: float, bottom: float) -> list[float]:
    """Return places near the *wanted* ones, *least* apart, none below (beyond) *bottom*."""
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    places = [wanted[n] for n in order]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + least)
    if places and places[-1] > bottom:
        places[-1] = bottom
        for above, below in reversed(list(pairwise(range(len(places))))):
            places[above] = min(places[above], places[below] - least)
    return [place for _, place in sorted(zip(order, places, strict=True))]


def amount(value: float) -> str:
    """Write a number at an axis: ``0.5``, ``1,500``, ``20 k``, ``3 M``."""
    for letter, size in (("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):g} {letter}"
    return f"{value:,.6g}"


def _step(most: float) -> float:
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(nice * power for nice in _NICE if nice * power >= rough * 0.999))


def _floor_125(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return float(max(digit for digit in (1, 2, 5) if digit * power <= value * 1.000001) * power)


def _ceil_125(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return float(min(digit for digit in (1, 2, 5, 10) if digit * power >= value * 0.999999) * power)
