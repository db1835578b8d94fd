"""Puts the last full run into the documents, as a full run itself does at its end.

Judges and draws anew what benchmarks/results/latest.json holds, and fills what stands in
docs/performance.md and README.md between two comments that name a part::

    <!-- measured: targets -->
    <!-- end: targets -->
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import plots, results
from benchmarks.measures import MEASURES
from benchmarks.paths import OURS, QUEUED, WAYS
from benchmarks.report import VERDICTS, figure_of
from benchmarks.results import LATEST, Samples
from benchmarks.spread import Spread
from benchmarks.targets import DIRECTION_NAMES, MOST_CALLS, evaluate

ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = (ROOT / "docs" / "performance.md", ROOT / "README.md")
_PART: Final = re.compile(r"(<!-- measured: ([\w-]+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)
_NO_FIGURE: Final = "-"


class Report:
    """One run, to be written into a document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.samples = Samples(document["samples"])
        self.targets = evaluate(self.samples, MEASURES, document["ways"])

    def median(self, figure: str, **wanted: object) -> float | None:
        """Return the median of one figure, or None if it was not measured."""
        spread = self.samples.spread(figure, **wanted)
        return spread.median if spread else None


def run(report: Report, _: Path) -> str:
    """Say what was measured, where and when."""
    machine = report.document["machine"]
    kernel = ".".join(machine["kernel"].split(".")[:2])
    kind = "a virtual machine" if machine["virtual"] else "a machine"
    packets = [s for m in ("gre", "delay") for s in report.samples.pick(measure=m)]
    sent, wrong, lost = (sum(s[k] for s in packets) for k in ("sent", "wrong", "lost"))
    dialed = report.samples.pick(measure="setup")
    done, failed = (sum(s[k] for s in dialed) for k in ("done", "failed"))
    others = [s["others_cpus"] for s in report.samples.all if "others_cpus" in s]
    beside = f"; work beside it took {Spread.of(others).median:.1f} CPUs (median)" if others else ""
    return (
        f"One run of {machine['time'][:10]}: Linux {kernel}, {kind} with {machine['cpus']} cores"
        f" ({machine['cpu']}), {machine['system']}, Python {machine['python']};"
        f" revision `{machine['revision'][:9]}`,"
        f" {report.document['plan']['rounds']} rounds,"
        f" {report.document['seconds'] / 60:.0f} minutes{beside}.\n"
        f"{sent:,} GRE packets were sent and checked, {wrong:,} were wrong and {lost:,} were lost;"
        f" {done:,} calls were set up for time, {failed:,} failed.{_limits(report)}"
    )


def _limits(report: Report) -> str:
    """Say what generator and receiver can do without a router between them."""
    wanted = {"measure": "gre", "way": "wire", "size": 64}
    rates = [
        report.median("wall_pps", calls=calls, direction=direction, **wanted)
        for calls in report.samples.distinct("calls", **wanted)
        for direction in DIRECTION_NAMES
    ]
    known = [rate for rate in rates if rate]
    if not known:
        return ""
    return (
        "\nGenerator and receiver by themselves carried at least"
        f" {min(known):,.0f} packets of 64 octets a second."
    )


def targets(report: Report, _: Path) -> str:
    """Set out what was aimed at and what was reached."""
    rows = []
    for t in report.targets:
        verdict = VERDICTS[t.met]
        verdict = f"**{verdict.lower()}**" if t.met is False else verdict
        reached = f"{figure_of(t)}{t.unit if t.measured else ''}"
        rows.append((t.subject, t.relation, reached, verdict, t.note))
    return _table(("Aim", "Wanted", "Reached (quartiles)", "", ""), rows)


def headline(report: Report, _: Path) -> str:
    """Set the ways side by side, in the figures that people ask for."""
    ways = ["tracked", "helper", *(way.name for way in OURS if way.is_default), "compiled"]
    ways = [w for w in ways if report.samples.pick(way=w)]
    titles = {way.name: way.short for way in WAYS} | {"tracked": "plain routing with conntrack"}
    rows = [(name, *(cell(way) for way in ways)) for name, cell in _headline_rows(report)]
    measured = [row for row in rows if set(row[1:]) != {_NO_FIGURE}]
    return _table(("", *(titles[way] for way in ways)), measured)


Cell = Callable[[str], str]


def _headline_rows(report: Report) -> Iterator[tuple[str, Cell]]:
    def of(
        wanted: Mapping[str, object], figure: str, unit: str, scale: float = 1.0, digits: int = 0
    ) -> Cell:
        def cell(way: str) -> str:
            value = report.median(figure, way=way, **wanted)
            return _NO_FIGURE if value is None else f"{value * scale:,.{digits}f}{unit}"

        return cell

    def packet(**wanted: object) -> Cell:
        def cell(way: str) -> str:
            value = report.median("ns", way=way, **wanted)
            if value is None:
                return _NO_FIGURE
            if way not in QUEUED:
                return f"{value:,.0f} ns"
            return f"{value + (report.median('daemon_ns', way=way, **wanted) or 0):,.0f} ns"

        return cell

    for calls in report.samples.distinct("calls", measure="gre"):
        for direction, name in DIRECTION_NAMES.items():
            words = f"a GRE packet {name}, {_calls(calls)} up"
            yield words, packet(measure="gre", size=64, calls=calls, direction=direction)
    for calls in report.samples.distinct("calls", measure="delay"):
        for figure, name in (("p50_us", "median"), ("p99_us", "99 %")):
            words = f"its delay inbound at half load, {_calls(calls)} up, {name}"
            wanted = {"measure": "delay", "calls": calls, "direction": "in"}
            yield words, of(wanted, figure, " us")
    for calls in report.samples.distinct("calls", measure="setup"):
        words = f"call set-ups a second, {_calls(calls)} up"
        yield words, of({"measure": "setup", "calls": calls}, "per_second", "")
    fewest = min(report.samples.distinct("calls", measure="setup"), default=0)
    alone = {"measure": "setup", "calls": fewest}
    yield "one set-up by itself", of(alone, "alone_p50_us", " ms", 1e-3, 2)
    echo = {"measure": "latency", "load": "idle"}
    yield "an echo over the control connection and back", of(echo, "p50_us", " us")
    idle = {"measure": "memory", "calls": 0}
    yield "memory of the daemon, idle", of(idle, "rss_kb", " MB", 1024 / 1e6)
    grown = {"measure": "growth", "calls": MOST_CALLS}
    for name, figure, unit, scale, digits in (
        ("its memory", "rss_kb", " MB", 1024 / 1e6, 0),
        ("a start with adoption", "start_s", " s", 1.0, 1),
        ("`pptp-nat list`", "list_s", " s", 1.0, 1),
        ("a scrape", "scrape_ms", " ms", 1.0, 0),
    ):
        yield f"{name} with {MOST_CALLS:,} calls", of(grown, figure, unit, scale, digits)


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


def _figures(report: Report, at: Path) -> str:
    shown = []
    for name, text in plots.draw(report.samples).items():
        place = plots.place(LATEST, name)
        found = re.search("<title>(.*?)</title>", text)
        assert found
        up = "../" * (len(at.relative_to(ROOT).parts) - 1)
        shown.append(f"![{found[1]}]({up}{place.relative_to(ROOT)})")
    return "\n\n".join(shown)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


PARTS: Final[dict[str, Callable[[Report, Path], str]]] = {
    "run": run, "targets": targets, "headline": headline, "plots": _figures,
}  # fmt: skip


def put(text: str, report: Report, at: Path) -> str:
    """Return *text*, the document *at*, with each of its parts as the run has it."""

    def part(found: re.Match[str]) -> str:
        if found[2] not in PARTS:
            raise SystemExit(f"{at}: no part is called {found[2]}; there are {', '.join(PARTS)}")
        return f"{found[1]}{PARTS[found[2]](report, at)}\n{found[4]}"

    return _PART.sub(part, text)


def fill() -> None:
    """Write the targets, the plots and the documents of the last full run."""
    document = results.read(LATEST)
    report = Report(document)
    results.write(LATEST, document | {"targets": [t.as_dict() for t in report.targets]})
    plots.write(LATEST, report.samples)
    for path in DOCUMENTS:
        path.write_text(put(path.read_text(), report, path))


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m benchmarks.publish", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()  # fmt: skip
    fill()
