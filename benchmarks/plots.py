"""Which plots a run has: a name, a title, and what of the samples is in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.chart import COLOURS, LinePanel, Point, Row, RowPanel, Series, lines, rows
from benchmarks.measures.setup import IN_FLIGHT, PACE
from benchmarks.paths import WAYS
from benchmarks.results import Samples
from benchmarks.spread import Spread
from benchmarks.targets import DIRECTION_NAMES, READER, added

#: way -> the name at its line
NAMES: Final = {way.name: way.short for way in WAYS}
_FIXED: Final = {
    "wire": "grey", "plain": "teal", "tracked": "brown", "helper": "red", "conntrack": "blue",
    "bpf": "violet", "queue": "green",
}  # fmt: skip
_QUARTILES: Final = "medians; whiskers from quartile to quartile"
_WITH: Final = {"idle": "nothing beside it", "paced": f"while {PACE:,} calls a second come up",
                "flat out": f"while calls come up, {IN_FLIGHT} at a time"}  # fmt: skip


def colour(way: str) -> str:
    """Return a way's colour; ways that joined later take what is left, in their order."""
    spare = [c for c in COLOURS if c not in _FIXED.values()]
    later = [w for w in NAMES if w not in _FIXED]
    return _FIXED.get(way) or spare[later.index(way) % len(spare)]


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def _present(samples: Samples, measure: str, **wanted: object) -> list[str]:
    there = {s["way"] for s in samples.pick(measure=measure, **wanted)}
    return [way for way in NAMES if way in there]


def _series(samples: Samples, figure: str, way: str, scale: float, **wanted: object) -> Series:
    points = []
    for calls in samples.distinct("calls", way=way, **wanted):
        spread = samples.spread(figure, way=way, calls=calls, **wanted)
        if spread:
            points.append(Point(calls, _scaled(spread, scale)))
    return Series(NAMES[way], colour(way), points)


def _scaled(spread: Spread, scale: float) -> Spread:
    median, low, high = (v * scale for v in (spread.median, spread.low, spread.high))
    return Spread(median, low, high, spread.rounds)


def _row(samples: Samples, way: str, figures: Sequence[str], scale: float, **wanted: object) -> Row:
    spreads = (samples.spread(name, way=way, **wanted) for name in figures)
    return Row(NAMES[way], colour(way), [_scaled(s, scale) for s in spreads if s])


def gre(samples: Samples, size: int) -> str:
    """Draw the cost of a packet over the calls that are up."""
    with_helper, without = [], []
    for direction, name in DIRECTION_NAMES.items():
        wanted = {"size": size, "direction": direction}
        found = {
            way: _series(samples, "ns", way, 1.0, measure="gre", **wanted)
            for way in _present(samples, "gre", **wanted)
        }
        drawn = {way: series for way, series in found.items() if series.points}
        with_helper.append(LinePanel(f"{name}, ns a packet", list(drawn.values()), log_y=True))
        drawn.pop("helper", None)
        without.append(LinePanel(f"{name}, without the helper", list(drawn.values())))
    title = f"GRE: CPU time of the whole path, packets of {size:,} octets"
    note = f"{_QUARTILES}; queue: up to the queue only; calls and upper heights logarithmic"
    return lines(title, note, [*with_helper, *without], "calls up")


def delay(samples: Samples) -> str:
    """Draw how long GRE takes through a path that is half busy."""
    panels = []
    calls = samples.distinct("calls", measure="delay")[0]
    for direction, name in DIRECTION_NAMES.items():
        wanted = {"direction": direction, "calls": calls}
        ways = _present(samples, "delay", **wanted)
        figures = ("p50_us", "p99_us", "p999_us")
        each = [_row(samples, w, figures, 1.0, measure="delay", **wanted) for w in ways]
        panels.append(RowPanel(name, each))
    title = f"GRE: delay at half of what each way can carry, {_calls(calls)}"
    marks = ("median", "99 %", "99.9 %")
    return rows(title, _QUARTILES, panels, "us", logarithmic=True, mark_names=marks)


def setups(samples: Samples) -> str:
    """Draw set-ups a second, a panel for each number of calls up beforehand."""
    panels = []
    for calls in samples.distinct("calls", measure="setup"):
        ways = _present(samples, "setup", calls=calls)
        figures, wanted = ("per_second",), {"measure": "setup", "calls": calls}
        each = [_row(samples, way, figures, 1.0, **wanted) for way in ways]
        panels.append(RowPanel(f"{_calls(calls)} up", each))
    return rows(f"Call set-ups, {IN_FLIGHT} in flight", _QUARTILES, panels, "a second")


def setup_time(samples: Samples) -> str:
    """Draw how long one set-up takes by itself."""
    panels = []
    for calls in samples.distinct("calls", measure="setup"):
        ways = _present(samples, "setup", calls=calls)
        figures, wanted = ("alone_p50_us", "alone_p99_us"), {"measure": "setup", "calls": calls}
        each = [row for w in ways if (row := _row(samples, w, figures, 1e-3, **wanted)).marks]
        if each:
            panels.append(RowPanel(f"{_calls(calls)} up", each))
    return rows(
        "Time of a call set-up, one after another", _QUARTILES, panels, "ms", logarithmic=True,
        mark_names=("median", "99 %"), digits=2,
    )  # fmt: skip


def echo(samples: Samples) -> str:
    """Draw what an Echo-Request's round trip takes longer than through tracked routing."""
    panels = []
    for load, name in _WITH.items():
        each = []
        for way in _present(samples, "latency", load=load):
            found = (added(samples, figure, way, load) for figure in ("p50_us", "p99_us"))
            spreads = [Spread.of(values.values()) for values in found if values]
            if way in {"wire", "plain", "tracked"} or len(spreads) < 2:
                continue
            each.append(Row(NAMES[way], colour(way), [_from_one(s) for s in spreads]))
        if each:
            panels.append(RowPanel(name, each))
    title = "Echo-Request: round trip beyond that of plain routing with conntrack"
    return rows(
        title, f"{_QUARTILES}; what is below 1 us is drawn at 1", panels, "us", logarithmic=True,
        mark_names=("median", "99 %"),
    )  # fmt: skip


def _from_one(spread: Spread) -> Spread:
    median, low, high = (max(v, 1.0) for v in (spread.median, spread.low, spread.high))
    return Spread(median, low, high, spread.rounds)


#: figure of a growth sample -> panel's title, how many of its units the figure is
_GROWING: Final = {
    "per_second": ("set-ups a second", 1.0), "ns_in": ("ns a packet of GRE, inbound", 1.0),
    "scrape_ms": ("a scrape, ms", 1.0), "list_s": ("pptp-nat list, s", 1.0),
    "rss_kb": ("the daemon's memory, MB", 1024 / 1e6), "start_s": ("start with adoption, s", 1.0),
}  # fmt: skip


def growth(samples: Samples) -> str:
    """Draw what more calls cost one daemon."""
    panels = [
        LinePanel(title, [_series(samples, figure, "conntrack", scale, measure="growth")])
        for figure, (title, scale) in _GROWING.items()
    ]
    title = "One daemon with more and more calls, data path conntrack"
    return lines(title, f"{_QUARTILES}; calls logarithmic", panels, "calls up")


def memory(samples: Samples) -> str:
    """Draw the daemon's memory over calls that have a control connection each."""
    ways = _present(samples, "memory")
    panel = LinePanel(
        "MB resident", [_series(samples, "rss_kb", w, 1024 / 1e6, measure="memory") for w in ways]
    )
    return lines(
        "Memory of the daemon, each call on a connection of its own", "one run", [panel],
        "calls up", log_x=False,
    )  # fmt: skip


def reading(samples: Samples) -> str:
    """Draw who reads a capture how fast."""
    packets = samples.distinct("packets", measure="reading")[0]
    wanted = {"measure": "reading", "packets": packets}
    each = []
    for reader in samples.distinct("way", **wanted):
        spread = samples.spread("seconds", way=reader, **wanted)
        if spread:
            each.append(Row(reader, "blue" if reader == READER else "brown", [spread]))
    panel = RowPanel("seconds from start to end", each)
    title = f"Reading a capture of {packets:,} packets"
    return rows(title, _QUARTILES, [panel], "s", digits=2)


#: name -> the measure, a figure that its samples must have, and who draws
_PLOTS: Final[dict[str, tuple[str, str, Callable[[Samples], str]]]] = {
    "delay": ("delay", "p999_us", delay),
    "setups": ("setup", "per_second", setups),
    "setup-time": ("setup", "alone_p50_us", setup_time),
    "echo": ("latency", "load", echo),
    "growth": ("growth", "per_second", growth),
    "memory": ("memory", "rss_kb", memory),
    "reading": ("reading", "seconds", reading),
}


def draw(samples: Samples) -> dict[str, str]:
    """Return the plots of what was measured, by their names."""
    drawn = {f"gre-{size}": gre(samples, size) for size in samples.distinct("size", measure="gre")}
    for name, (measure, figure, plot) in _PLOTS.items():
        if any(figure in s for s in samples.pick(measure=measure)):
            drawn[name] = plot(samples)
    return drawn


def place(run: Path, name: str) -> Path:
    """Return where the plot *name* of the *run* (its JSON) lies."""
    return run.with_name(f"{run.stem}-{name}.svg")


def write(run: Path, samples: Samples) -> list[Path]:
    """Write the plots beside the JSON; those of an earlier run of that name go."""
    drawn = {place(run, name): text for name, text in draw(samples).items()}
    for old in run.parent.glob(f"{run.stem}-*.svg"):
        if old not in drawn:
            old.unlink()
    for path, text in drawn.items():
        path.write_text(text)
    return list(drawn)
