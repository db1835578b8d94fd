"""What a run prints: tables of medians with quartiles, then the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from benchmarks.measures.setup import IN_FLIGHT, LIGHT_EACH, PACE
from benchmarks.paths import QUEUED, WAYS
from benchmarks.results import Samples
from benchmarks.spread import Spread
from benchmarks.targets import DIRECTION_NAMES, LISTER, Target, added

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
                if way in QUEUED and figure == "ns":
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


def delay(samples: Samples) -> Iterator[str]:
    """Lay out how long GRE takes through a path that is half busy."""
    for calls in samples.distinct("calls", measure="delay"):
        for direction, name in DIRECTION_NAMES.items():
            heads = [f"GRE's delay, {calls:,} calls, {name}", "thousand/s", "median us", "99 % us"]
            heads += ["99.9 % us", "can take, thousand/s"]
            rows = []
            for way in _ways(samples, "delay"):
                pick = {"measure": "delay", "way": way, "calls": calls, "direction": direction}
                row = [TITLES[way], _cell(samples.spread("per_second", **pick), 1e-3)]
                names = ("p50_us", "p99_us", "p999_us")
                row += [_cell(samples.spread(n, **pick), digits=1) for n in names]
                rows.append([*row, _cell(samples.spread("capacity", **pick), 1e-3)])
            yield table(heads, rows)
    chosen = samples.pick(measure="delay")
    counts = ((sum(s[k] for s in chosen), k) for k in ("sent", "wrong", "lost", "unsent"))
    yield "Delays: packets " + ", ".join(f"{count:,} {name}" for count, name in counts)


def setup(samples: Samples) -> Iterator[str]:
    """Lay out the set-ups, one table for each number of calls up beforehand."""
    for calls in samples.distinct("calls", measure="setup"):
        title = "Call set-ups: TCP, start and call messages, one GRE packet each way;"
        heads = [f"{calls:,} calls up", "a second", "median ms", "99 % ms", "alone, median ms"]
        heads += ["alone, 99 % ms", "peers' CPU us", "daemon's", "daemon's, clear"]
        rows = []
        for way in _ways(samples, "setup"):
            pick = {"measure": "setup", "way": way, "calls": calls}
            row = [TITLES[way]]
            row += [_cell(samples.spread("per_second", **pick))]
            times = ("p50_us", "p99_us", "alone_p50_us", "alone_p99_us")
            row += [_cell(samples.spread(f, **pick), 1e-3, 2) for f in times]
            names = ("peers_us", "daemon_us", "daemon_clear_us")
            row += [_cell(samples.spread(name, **pick)) for name in names]
            rows.append(row)
        yield f"{title} {IN_FLIGHT} in flight, or alone\n{table(heads, rows)}"
    yield from _light(samples)
    chosen = samples.pick(measure="setup")
    failed, wrong = (sum(s[k] for s in chosen) for k in ("failed", "wrong"))
    done = sum(s["done"] for s in chosen)
    yield f"Set-ups: {done:,} done; {failed:,} failed, {wrong:,} with wrong numbers" + "".join(
        f"\n  {TITLES[s['way']]}, {s['calls']:,} calls up, round {s['round']}: stuck {s['stuck']}"
        for s in chosen
        if s["failed"]
    )


def _light(samples: Samples) -> Iterator[str]:
    """Lay out set-ups over connections that stand, one worker beside two."""
    rows = [
        [TITLES[way], f"{calls:,}", *(
            _cell(samples.spread(f"light_{name}", measure="setup", way=way, calls=calls))
            for name in ("per_second", "peers_us", "daemon_us", "failed")
        )]
        for calls in samples.distinct("calls", measure="setup")
        for way in _ways(samples, "setup")
        if samples.spread("light_per_second", measure="setup", way=way, calls=calls)
    ]  # fmt: skip
    if rows:
        heads = [f"Light clients: {LIGHT_EACH} calls of a connection", "calls up", "a second"]
        yield table([*heads, "peers' CPU us", "daemon's", "failed"], rows)


LOADS: Final = {
    "idle": "Echo round trip, nothing beside it",
    "paced": f"beside {PACE:,} calls a second that come up",
    "flat out": f"beside calls that come up, {IN_FLIGHT} at a time",
}


def latency(samples: Samples) -> Iterator[str]:
    """Lay out the round trips of an Echo-Request, one table for each load beside it."""
    for load, title in LOADS.items():
        heads = [title, "median us", "99 % us", "median over tracked", "99 % over tracked"]
        heads += ["daemon's CPU us"] if load == "idle" else ["calls a second"]
        rows = []
        for way in _ways(samples, "latency"):
            pick = {"measure": "latency", "way": way, "load": load}
            if not samples.pick(**pick):
                continue
            row = [TITLES[way]]
            row += [_cell(samples.spread(f, **pick), digits=1) for f in ("p50_us", "p99_us")]
            for figure in ("p50_us", "p99_us"):
                more = added(samples, figure, way, load).values()
                row.append(_cell(Spread.of(more) if more else None, digits=1))
            figure = "daemon_us" if load == "idle" else "crowd_per_second"
            rows.append([*row, _cell(samples.spread(figure, **pick), digits=1)])
        if rows:
            yield table(heads, rows)


GROWN: Final = (
    ("set-ups/s", "per_second", 1.0, 0), ("daemon's CPU us", "daemon_us", 1.0, 0),
    ("ns in", "ns_in", 1.0, 0), ("ns out", "ns_out", 1.0, 0),
    ("scrape ms", "scrape_ms", 1.0, 0), ("unexpected", "scrape_unexpected_ms", 1.0, 0),
    ("its CPU ms", "scrape_cpu_ms", 1.0, 0), ("its age s", "scrape_age_s", 1.0, 1),
    ("list s", "list_s", 1.0, 2), ("its CPU s", "list_cpu_s", 1.0, 2),
    ("memory MB", "rss_kb", 1024 / 1e6, 1),
    ("start s", "start_s", 1.0, 2), ("its CPU s", "start_cpu_s", 1.0, 2),
)  # fmt: skip


def growth(samples: Samples) -> Iterator[str]:
    """Lay out what more calls cost one daemon."""
    heads = ["Calls up", *(head for head, *_ in GROWN)]
    rows = []
    for calls in samples.distinct("calls", measure="growth"):
        pick = {"measure": "growth", "calls": calls}
        cells = [_cell(samples.spread(f, **pick), scale, n) for _, f, scale, n in GROWN]
        rows.append([f"{calls:,}", *cells])
    chosen = samples.pick(measure="growth")
    wrong, lost = (sum(s[f"{k}_{d}"] for s in chosen for d in DIRECTION_NAMES)
                   for k in ("wrong", "lost"))  # fmt: skip
    yield f"{table(heads, rows)}\nits packets: {wrong:,} wrong, {lost:,} lost"


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


def flush(samples: Samples) -> Iterator[str]:
    """Lay out what it takes until all entries are back."""
    heads = ["Calls up", "seconds", "first", "last", "CPU us an entry"]
    rows = []
    for calls in samples.distinct("calls", measure="flush"):
        pick = {"measure": "flush", "calls": calls}
        rounds = samples.by_round("seconds", **pick)
        ends = (Spread.of([rounds[which(rounds)]]) for which in (min, max))
        whole, cpu = samples.spread("seconds", **pick), samples.spread("entry_us", **pick)
        cells = [_cell(s, digits=2) for s in (whole, *ends)]
        rows.append([f"{calls:,}", *cells, _cell(cpu, digits=1)])
    yield table(heads, rows)


def figure_of(target: Target) -> str:
    """Write what was measured, with digits that fit its bound."""
    digits = 0 if target.bound > 100 else 1 if target.bound > 10 else 2
    return _cell(target.measured, 1, digits)


def targets(judged: Sequence[Target]) -> str:
    """Lay out the verdicts."""
    rows = [[t.subject, t.relation, figure_of(t), VERDICTS[t.met], t.note] for t in judged]
    return (
        'Ratios of cost are without generator and receiver: the same round\'s "no router" is'
        " subtracted.\n" + table(["Target", "wanted", "measured (quartiles)", "", ""], rows)
    )


_SCRAPE_MS: Final = ("alone_ms", "unexpected_ms", "daemon_ms", "beside_ms")


def scrape(samples: Samples) -> Iterator[str]:
    """Lay out scrapes and the echoes beside them."""
    heads = ["Scrape, calls up", "alone, ms", "unexpected", "daemon's CPU ms"]
    heads += ["beside echoes, ms", "age, s", "longest step us", "echo 99 % us"]
    heads += ["worst", "99 % without", "worst without", "turns past 5 ms"]
    names = ("echo_p99_us", "echo_max_us", "quiet_p99_us", "quiet_max_us")
    rows = []
    for calls in samples.distinct("calls", measure="scrape"):
        pick = {"measure": "scrape", "calls": calls}
        row = [f"{calls:,}"]
        row += [_cell(samples.spread(n, **pick), digits=1) for n in (*_SCRAPE_MS, "age_s")]
        row += [_cell(samples.spread("step_us", **pick))]
        row += [_cell(samples.spread(name, **pick)) for name in names]
        chosen = samples.pick(**pick)
        long, turns = (sum(s[k] for s in chosen) for k in ("long_turns", "turns"))
        rows.append([*row, f"{long:,} of {turns:,}"])
    yield table(heads, rows)


def reading(samples: Samples) -> Iterator[str]:
    """Lay out who reads a capture how fast."""
    heads = ["Reading a capture", "packets", "s", "CPU s", "MB"]
    figures = ("seconds", "cpu_seconds", "megabytes")
    rows = []
    for packets in samples.distinct("packets", measure="reading"):
        for way in samples.distinct("way", measure="reading", packets=packets):
            pick = {"measure": "reading", "way": way, "packets": packets}
            cells = [_cell(samples.spread(name, **pick), digits=1) for name in figures]
            rows.append([way, f"{packets:,}", *cells])
    yield table(heads, rows)
    heads[:2] = ["Telling of a conntrack table", "entries"]
    rows = []
    for entries in samples.distinct("entries", measure="listing"):
        for way in samples.distinct("way", measure="listing", entries=entries):
            spreads = (
                samples.spread(name, measure="listing", entries=entries, way=way)
                for name in figures
            )
            title = way if way == LISTER else f"pptp-nat conntrack -o {way}"
            rows.append([title, f"{entries:,}", *(_cell(e, digits=2) for e in spreads)])
    if rows:
        yield table(heads, rows)


PARTS = {
    "gre": gre, "delay": delay, "setup": setup, "latency": latency, "memory": memory,
    "growth": growth, "scrape": scrape, "flush": flush, "reading": reading,
}  # fmt: skip
