"""What a run prints: tables of medians with quartiles, then the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from benchmarks.measures import SETUPS_IN_FLIGHT
from benchmarks.paths import WAYS
from benchmarks.spread import Spread
from benchmarks.targets import DIRECTION_NAMES, Samples, Target

TITLES = {way.name: way.title for way in WAYS}
VERDICTS = {True: "met", False: "NOT MET", None: "not measured"}


def _cell(spread: Spread | None, scale: float = 1.0, digits: int = 0) -> str:
    if not spread:
        return "-"
    m, low, high = (f"{v * scale:,.{digits}f}" for v in (spread.median, spread.low, spread.high))
    return f"{m} ({low}..{high})" if spread.rounds > 1 else m


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out *rows* under *heads*: the first column to the left, the others to the right."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (heads, ["-" * w for w in widths], *rows):
        first, *others = (
            text.ljust(w) if n == 0 else text.rjust(w)
            for n, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def _ways(samples: Samples, measure: str) -> list[str]:
    present = {s["way"] for s in samples.pick(measure=measure)}
    return [name for name in TITLES if name in present]


def gre(samples: Samples) -> Iterator[str]:
    """Lay out cost and rate of GRE, one table a packet size."""
    figures = (
        ("ns", "ns of CPU a packet, generator to receiver (or to the queue)", 1.0),
        ("wall_pps", "thousand packets/s, by the receiver's time stamps", 1e-3),
    )
    counts = samples.distinct("calls", measure="gre")
    for size in samples.distinct("size", measure="gre"):
        for figure, title, scale in figures:
            heads = ["calls, direction"]
            heads += [f"{n:,} {d}" for n in counts for d in DIRECTION_NAMES]
            rows = []
            for way in _ways(samples, "gre"):
                picks = [
                    {"measure": "gre", "way": way, "size": size, "calls": n, "direction": d}
                    for n in counts
                    for d in DIRECTION_NAMES
                ]
                cells = [_cell(samples.spread(figure, **p), scale) for p in picks]
                rows.append([TITLES[way], *cells])
                if way == "queue" and figure == "ns":
                    cells = [_cell(samples.spread("daemon_ns", **p)) for p in picks]
                    rows.append(["  and the daemon", *cells])
            yield f"GRE, {size} octets: {title}\n{table(heads, rows)}"
    faults = [s for s in samples.pick(measure="gre") if s["wrong"] or s["lost"]]
    sent = sum(s["sent"] for s in samples.pick(measure="gre"))
    wrong, lost = (sum(s[k] for s in faults) for k in ("wrong", "lost"))
    yield f"GRE: {sent:,} packets sent and checked; {wrong:,} wrong, {lost:,} lost" + "".join(
        f"\n  {TITLES[s['way']]}, {s['calls']:,} calls, {s['direction']}, round {s['round']}:"
        f" {s['wrong']:,} wrong, {s['lost']:,} lost of {s['sent']:,}"
        for s in faults
    )


def setup(samples: Samples) -> Iterator[str]:
    """Lay out the set-ups, one table for each number of calls up beforehand."""
    for calls in samples.distinct("calls", measure="setup"):
        title = "Call set-ups: TCP, start and call messages, one GRE packet each way;"
        heads = [f"{calls:,} calls up", "a second", "median ms", "99 % ms"]
        heads += ["peers' CPU us", "daemon's", "daemon's, clear"]
        rows = []
        for way in _ways(samples, "setup"):
            pick = {"measure": "setup", "way": way, "calls": calls}
            row = [TITLES[way]]
            row += [_cell(samples.spread("per_second", **pick))]
            row += [_cell(samples.spread(f, **pick), 1e-3, 1) for f in ("p50_us", "p99_us")]
            names = ("peers_us", "daemon_us", "daemon_clear_us")
            row += [_cell(samples.spread(name, **pick)) for name in names]
            rows.append(row)
        yield f"{title} {SETUPS_IN_FLIGHT} in flight\n{table(heads, rows)}"
    chosen = samples.pick(measure="setup")
    failed, wrong = (sum(s[k] for s in chosen) for k in ("failed", "wrong"))
    done = sum(s["done"] for s in chosen)
    yield f"Set-ups: {done:,} done; {failed:,} failed, {wrong:,} with wrong numbers" + "".join(
        f"\n  {TITLES[s['way']]}, {s['calls']:,} calls up, round {s['round']}: stuck {s['stuck']}"
        for s in chosen
        if s["failed"]
    )


def latency(samples: Samples) -> Iterator[str]:
    """Lay out the round trips of an Echo-Request."""
    heads = ["Echo round trip", "median us", "99 % us", "median over tracked", "daemon's CPU us"]
    base = samples.by_round("p50_us", measure="latency", way="tracked")
    rows = []
    for way in _ways(samples, "latency"):
        pick = {"measure": "latency", "way": way}
        medians = samples.by_round("p50_us", **pick)
        added = [medians[r] - base[r] for r in medians.keys() & base.keys()]
        row = [TITLES[way]]
        row += [_cell(samples.spread(f, **pick), digits=1) for f in ("p50_us", "p99_us")]
        row += [_cell(Spread.of(added) if added else None, digits=1)]
        row += [_cell(samples.spread("daemon_us", **pick), digits=1)]
        rows.append(row)
    yield table(heads, rows)


def memory(samples: Samples) -> Iterator[str]:
    """Lay out the daemon's memory."""
    heads = ["Daemon", "calls up", "RSS MB", "octets a further call", "CPU us a set-up"]
    rows = []
    for way in _ways(samples, "memory"):
        before: Mapping[str, int] | None = None
        for s in samples.pick(measure="memory", way=way):
            more = "-"
            if before:
                grown = (s["rss_kb"] - before["rss_kb"]) * 1024
                more = f"{grown / (s['calls'] - before['calls']):,.0f}"
            spent = f"{s['daemon_us']:,.0f}" if s["daemon_us"] else "-"
            megabytes = f"{s['rss_kb'] * 1024 / 1e6:.1f}"
            rows.append([TITLES[way], f"{s['calls']:,}", megabytes, more, spent])
            before = s
    yield table(heads, rows)


def targets(judged: Sequence[Target]) -> str:
    """Lay out the verdicts."""
    rows = []
    for t in judged:
        digits = 0 if t.bound > 100 else 1 if t.bound > 10 else 2
        rows.append([t.subject, t.relation, _cell(t.measured, 1, digits), VERDICTS[t.met], t.note])
    return (
        'Ratios of cost are without generator and receiver: the same round\'s "no router" is'
        " subtracted.\n" + table(["Target", "wanted", "measured (quartiles)", "", ""], rows)
    )


_SCRAPE_MS: Final = ("alone_ms", "daemon_ms", "beside_ms")


def scrape(samples: Samples) -> Iterator[str]:
    """Lay out scrapes and the echoes beside them."""
    heads = ["Scrape, calls up", "alone, ms", "daemon's CPU ms", "beside echoes, ms"]
    heads += ["longest step us", "echo 99 % us"]
    heads += ["worst", "99 % without", "worst without", "turns past 5 ms"]
    names = ("echo_p99_us", "echo_max_us", "quiet_p99_us", "quiet_max_us")
    rows = []
    for calls in samples.distinct("calls", measure="scrape"):
        pick = {"measure": "scrape", "calls": calls}
        row = [f"{calls:,}"]
        row += [_cell(samples.spread(n, **pick), digits=1) for n in _SCRAPE_MS]
        row += [_cell(samples.spread("step_us", **pick))]
        row += [_cell(samples.spread(name, **pick)) for name in names]
        chosen = samples.pick(**pick)
        long, turns = (sum(s[k] for s in chosen) for k in ("long_turns", "turns"))
        rows.append([*row, f"{long:,} of {turns:,}"])
    yield table(heads, rows)


def reading(samples: Samples) -> Iterator[str]:
    """Lay out who reads a capture how fast."""
    heads = ["Reading a capture", "packets", "s", "CPU s", "MB"]
    rows = []
    for packets in samples.distinct("packets", measure="reading"):
        for way in samples.distinct("way", measure="reading", packets=packets):
            pick = {"measure": "reading", "way": way, "packets": packets}
            figures = ("seconds", "cpu_seconds", "megabytes")
            cells = [_cell(samples.spread(name, **pick), digits=1) for name in figures]
            rows.append([way, f"{packets:,}", *cells])
    yield table(heads, rows)


PARTS = {
    "gre": gre, "setup": setup, "latency": latency, "memory": memory, "scrape": scrape,
    "reading": reading,
}  # fmt: skip
