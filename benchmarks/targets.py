"""The targets, as a table: what is wanted, what was measured, met or not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.paths import OURS
from benchmarks.results import Samples
from benchmarks.spread import Spread, pairwise


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the verdict."""

    subject: str
    relation: str  #: "at least" or "below", with the bound
    measured: Spread | None
    bound: float
    met: bool | None  #: None: not measured
    unit: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return what goes into the JSON."""
        return {
            "subject": self.subject,
            "wanted": self.relation,
            "bound": self.bound,
            "unit": self.unit,
            "measured": self.measured.as_dict() if self.measured else None,
            "met": self.met,
            "note": self.note,
        }


Test = tuple[str, Callable[[float, float], bool]]
AT_LEAST: Test = ("at least", operator.ge)
AT_MOST: Test = ("at most", operator.le)
BELOW: Test = ("below", operator.lt)


def _judge(
    subject: str,
    test: Test,
    bound: float,
    values: Sequence[float],
    unit: str = "",
    note: str = "",
    first: float | None = None,
) -> Target:
    """Judge by the median; *first* is the bound that was aimed at before this one."""
    word, holds = test
    measured = Spread.of(values) if values else None
    met = holds(measured.median, bound) if measured else None
    if measured and first is not None:
        verdict = "met" if holds(measured.median, first) else "not met"
        earlier = f"first aim, {word} {first:,g}{unit}: {verdict}"
        note = f"{note}; {earlier}" if note else earlier
    return Target(subject, f"{word} {bound:,g}{unit}", measured, bound, met, unit, note)


# Bounds.  Where there are two, the second one is that of the first design, which was raised.
#: One daemon a data path, as it is configured by default.
SINGLE = tuple(way.name for way in OURS if way.is_default)
#: As Debian's package is; not built where a run is to be quick.
COMPILED: Final = ("compiled", "compiled-2")
NAMED: Final = {"compiled-2": "compiled, two workers"}
# Calls, and how many times cheaper than the kernel helper the conntrack path must be.
AGAINST_HELPER = {1: (0.97, 0.95), 1000: (5.0, None), 20000: (50.0, None)}
AGAINST_TRACKED = (1.05, 1.10)
REDIRECT_AGAINST_HELPER = 2.0  #: at one call, its best case
TRACKED_CALLS = (1, 1000, 20000, 100000)
QUEUE_AGAINST_HELPER = 1.5
QUEUE_PACKETS = (200_000, 150_000)
#: Of the helper's, with at most and with at least so many calls up.
FEW_UP, MANY_UP = 1, 10_000
SETUPS_FEW_UP, SETUPS_MANY_UP = (0.8, 0.5), (2.0, 0.5)
TWO_WORKERS = 1.6
ADDED_IDLE_US = 40.0
ADDED_MEDIAN_US, ADDED_P99_US = 150.0, 1000.0
IDLE_MEGABYTES = 45.0
OCTETS_PER_CALL = 1000.0
FLUSH_S, FLUSH_CALLS = 1.0, 20_000
SCRAPE_MS, SCRAPE_CALLS = 200.0, 20_000
DELAY_MS = 5.0
MOST_CALLS = 100_000
#: With MOST_CALLS up: figure of a growth sample -> name, bound, unit, how many units it is.
GROWN = {
    "start_s": ("adoption after a crash", 3.0, " s", 1.0),
    "list_s": ("list", 1.0, " s", 1.0),
    "scrape_ms": ("scrape", 300.0, " ms", 1.0),
    "rss_kb": ("daemon's memory", 200.0, " MB", 1024 / 1e6),
}
READER = "pptp-nat analyze"
AGAINST_TSHARK = 5.0
LISTING_S = 2.0
LISTER = "conntrack -L, live"  #: who lists a table without judging it
MEMORY_GROWTH = 1.2


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


DIRECTION_NAMES = {"in": "inbound", "out": "outbound"}


def evaluate(
    samples: Samples, measures: Collection[str], ways: Collection[str] | None = None
) -> list[Target]:
    """Judge every target of the *measures* and *ways* that a run was to have; None: of all."""
    chosen = [way for way in SINGLE if ways is None or way in ways]
    parts = {
        "gre": _gre, "setup": _setup, "latency": _latency, "memory": _memory,
        "growth": _growth, "scrape": _scrape, "flush": _flush, "reading": _reading,
    }  # fmt: skip
    return [t for name, part in parts.items() if name in measures for t in part(samples, chosen)]


def _gre(samples: Samples, ways: Sequence[str]) -> Iterator[Target]:
    def figure(name: str, way: str, calls: int, direction: str) -> dict[int, float]:
        return samples.by_round(
            name, measure="gre", way=way, calls=calls, direction=direction, size=64
        )

    def cost(way: str, calls: int, direction: str) -> tuple[dict[int, float], dict[int, float]]:
        """Return the cost of the whole path, and without generator and receiver."""
        whole = figure("ns", way, calls, direction)
        wire = figure("ns", "wire", calls, direction)
        return whole, {r: ns - wire[r] for r, ns in whole.items() if r in wire}

    def helper_at_one_call(direction: str) -> str:
        """Say what translation costs whoever does it: the helper's ratio at its best."""
        alone = [cost(way, 1, direction)[1] for way in ("helper", "tracked")]
        ratios = pairwise(*alone)
        return f"; helper at 1 call {Spread.of(ratios).median:.2f}" if ratios else ""

    def compare(
        subject: str,
        test: Test,
        bounds: tuple[float, float | None],
        pair: tuple[str, str],
        calls: int,
    ) -> Iterator[Target]:
        bound, first = bounds
        for direction, name in DIRECTION_NAMES.items():
            whole, alone = zip(*(cost(way, calls, direction) for way in pair), strict=True)
            ratios = pairwise(*whole)
            note = f"whole path {Spread.of(ratios).median:.2f}" if ratios else ""
            if note and pair[1] == "tracked":
                note += helper_at_one_call(direction)
            line = f"{subject}, {_calls(calls)}, {name}"
            yield _judge(line, test, bound, pairwise(*alone), note=note, first=first)

    if "conntrack" in ways:
        subject, pair = "conntrack: packets/s to helper's", ("helper", "conntrack")
        for calls, bounds in AGAINST_HELPER.items():
            yield from compare(subject, AT_LEAST, bounds, pair, calls)
        subject, pair = "conntrack: cost to tracked routing's", ("conntrack", "tracked")
        for calls in TRACKED_CALLS:
            yield from compare(subject, AT_MOST, AGAINST_TRACKED, pair, calls)
    if samples.pick(measure="gre", way="redirect"):
        subject, pair = "bpf past the stack: packets/s to helper's", ("helper", "redirect")
        yield from compare(subject, AT_LEAST, (REDIRECT_AGAINST_HELPER, None), pair, 1)
    if samples.pick(measure="gre", way="xdp"):
        subject, pair = "bpf before the stack: packets/s to helper's", ("helper", "xdp")
        yield from compare(subject, AT_LEAST, (REDIRECT_AGAINST_HELPER, None), pair, 1)
    for way, title in (("queue", "queue"), ("queue-c", "queue in C")):
        if way in ways or samples.pick(measure="gre", way=way):
            yield from _queue(figure, way, title)


def _queue(
    figure: Callable[[str, str, int, str], dict[int, float]], way: str, title: str
) -> Iterator[Target]:
    for direction, name in DIRECTION_NAMES.items():
        rates = {r: 1e9 / ns for r, ns in _slowest_stage(figure, way, direction).items()}
        helpers = {r: 1e9 / ns for r, ns in figure("ns", "helper", 1000, direction).items()}
        seen = figure("wall_pps", way, 1000, direction)
        note = f"by time stamps {Spread.of(seen.values()).median:,.0f}/s" if seen else ""
        subject = f"{title}: packets/s to helper's, 1,000 calls, {name}"
        yield _judge(subject, AT_LEAST, QUEUE_AGAINST_HELPER, pairwise(rates, helpers))
        subject = f"{title}: packets/s, 64 octets, 1,000 calls, {name}"
        bound, first = QUEUE_PACKETS
        yield _judge(subject, AT_LEAST, bound, list(rates.values()), note=note, first=first)


def _slowest_stage(
    figure: Callable[[str, str, int, str], dict[int, float]], way: str, direction: str
) -> dict[int, float]:
    """Return ns a packet of the queue's slower half: up to the queue, or the daemon.

    Either has a core of its own on a machine with nothing else to do, so this
    is what the rate of arrival is there; elsewhere the rate says what else ran.
    """
    before = figure("ns", way, 1000, direction)
    after = figure("daemon_ns", way, 1000, direction)
    return {r: max(before[r], after[r]) for r in before.keys() & after.keys()}


def _setup(samples: Samples, ways: Sequence[str]) -> Iterator[Target]:
    for way in (*ways, *_compiled(samples, "setup")):
        for calls in samples.distinct("calls", measure="setup"):
            if FEW_UP < calls < MANY_UP:
                continue
            bound, first = SETUPS_FEW_UP if calls <= FEW_UP else SETUPS_MANY_UP
            wanted = {"measure": "setup", "calls": calls}
            ratios = pairwise(
                samples.by_round("per_second", way=way, **wanted),
                samples.by_round("per_second", way="helper", **wanted),
            )
            spent = {
                w: {
                    s["round"]: s["peers_us"] + s["daemon_us"]
                    for s in samples.pick(way=w, **wanted)
                }
                for w in (way, "helper")
            }
            cpu = pairwise(spent["helper"], spent[way])
            note = f"by CPU time {Spread.of(cpu).median:.2f}" if cpu else ""
            subject = f"{NAMED.get(way, way)}: set-ups/s to helper's, {_calls(calls)} up"
            yield _judge(subject, AT_LEAST, bound, ratios, note=note, first=first)
    for calls in samples.distinct("calls", measure="setup", way="workers"):
        wanted = {"measure": "setup", "calls": calls}
        ratios = pairwise(
            samples.by_round("light_per_second", way="workers", **wanted),
            samples.by_round("light_per_second", way="conntrack", **wanted),
        )
        note = _beside_workers(samples, calls)
        subject = f"two workers: set-ups/s to one's, light clients, {_calls(calls)} up"
        yield _judge(subject, AT_LEAST, TWO_WORKERS, ratios, note=note)


def _compiled(samples: Samples, measure: str) -> tuple[str, ...]:
    return tuple(way for way in COMPILED if samples.pick(measure=measure, way=way))


def _beside_workers(samples: Samples, calls: int) -> str:
    """Say what peers take of the cores that two workers have, and how it is with heavier ones."""
    peers = samples.spread("light_peers_us", measure="setup", way="workers", calls=calls)
    heavy = pairwise(*(
        samples.by_round("per_second", measure="setup", way=way, calls=calls)
        for way in ("workers", "conntrack")
    ))  # fmt: skip
    if peers is None or not heavy:
        return ""
    return (
        f"the peers take {peers.median:.0f} us a set-up of the same cores; "
        f"a connection for each call {Spread.of(heavy).median:.2f}"
    )


def added(samples: Samples, figure: str, way: str, load: str) -> dict[int, float]:
    """Return what *way* adds to an Echo-Request's round trip, by round, in microseconds."""
    wanted = {"measure": "latency", "load": load}
    with_it = samples.by_round(figure, way=way, **wanted)
    without = samples.by_round(figure, way="tracked", **wanted)
    return {r: with_it[r] - without[r] for r in sorted(with_it.keys() & without.keys())}


def _latency(samples: Samples, ways: Sequence[str]) -> Iterator[Target]:
    aims = (
        ("idle", "p50_us", "median", ADDED_IDLE_US),
        ("paced", "p50_us", "median", ADDED_MEDIAN_US),
        ("paced", "p99_us", "99 %", ADDED_P99_US),
    )
    for way in (*ways, *_compiled(samples, "latency")):
        for load, figure, name, bound in aims:
            values = added(samples, figure, way, load)
            flat_out = added(samples, figure, way, "flat out") if load == "paced" else {}
            note = f"flat out {Spread.of(flat_out.values()).median:,.0f} us" if flat_out else ""
            beside = "idle" if load == "idle" else "while calls come up"
            subject = f"{way}: echo over tracked routing's, {beside}, {name}"
            yield _judge(subject, BELOW, bound, list(values.values()), " us", note=note)


def _memory(samples: Samples, ways: Sequence[str]) -> Iterator[Target]:
    for way in ways:
        octets = {s["calls"]: s["rss_kb"] * 1024 for s in samples.pick(measure="memory", way=way)}
        idle = [octets[0] / 1e6] if octets else []
        yield _judge(f"{way}: memory idle", BELOW, IDLE_MEGABYTES, idle, " MB")
        most = max(octets, default=0)
        per_call = [(octets[most] - octets[0]) / most] if most else []
        subject = f"{way}: memory per further call, up to {most:,}"
        yield _judge(subject, BELOW, OCTETS_PER_CALL, per_call, " octets")


def _growth(samples: Samples, _: Sequence[str]) -> Iterator[Target]:
    for figure, (name, bound, unit, scale) in GROWN.items():
        values = samples.by_round(figure, measure="growth", calls=MOST_CALLS).values()
        cpu = samples.spread(figure.replace("_s", "_cpu_s"), measure="growth", calls=MOST_CALLS)
        note = f"CPU {cpu.median:.2f} s" if cpu and unit == " s" else ""
        unexpected = samples.spread("scrape_unexpected_ms", measure="growth", calls=MOST_CALLS)
        if unexpected and figure == "scrape_ms":
            note = f"that nobody expected {unexpected.median:.0f} ms"
        subject = f"{name} with {MOST_CALLS:,} calls"
        yield _judge(subject, BELOW, bound, [v * scale for v in values], unit, note=note)


def _flush(samples: Samples, _: Sequence[str]) -> Iterator[Target]:
    if not samples.pick(measure="flush"):
        return  # a run from before this was measured
    pick = {"measure": "flush", "calls": FLUSH_CALLS}
    rounds, cpu = samples.by_round("seconds", **pick), samples.spread("entry_us", **pick)
    note = f"CPU {cpu.median:.1f} us an entry" if cpu else ""
    subject = f"all entries back after a flush, {FLUSH_CALLS:,} calls up"
    yield _judge(subject, BELOW, FLUSH_S, list(rounds.values()), " s", note=note)


def _scrape(samples: Samples, _: Sequence[str]) -> Iterator[Target]:
    calls = max(samples.distinct("calls", measure="scrape"), default=SCRAPE_CALLS)
    chosen = samples.pick(measure="scrape", calls=calls)
    subject = f"scrape with {calls:,} calls up"
    took = [s["alone_ms"] for s in chosen if "alone_ms" in s]
    beside = [s["beside_ms"] for s in chosen if "beside_ms" in s]
    note = f"beside echoes {Spread.of(beside).median:.0f} ms" if beside else ""
    unexpected = [s["unexpected_ms"] for s in chosen if "unexpected_ms" in s]
    if unexpected:
        note += f"; that nobody expected {Spread.of(unexpected).median:.0f} ms"
    yield _judge(subject, BELOW, SCRAPE_MS, took, " ms", note=note)
    steps = [s["step_us"] / 1e3 for s in chosen]
    lost = [max(0.0, s["echo_max_us"] - s["quiet_max_us"]) / 1e3 for s in chosen]
    note = f"slowest echo lost {Spread.of(lost).median:.1f} ms" if lost else ""
    yield _judge(f"{subject}: longest step", BELOW, DELAY_MS, steps, " ms", note=note)


def _reading(samples: Samples, _: Sequence[str]) -> Iterator[Target]:
    counts = samples.distinct("packets", measure="reading")
    if not counts:
        return
    few, many = counts[0], counts[-1]

    def figure(name: str, way: str, packets: int = few) -> dict[int, float]:
        return samples.by_round(name, measure="reading", way=way, packets=packets)

    ours = figure("seconds", READER)
    for way in ("tshark io,stat of GRE", "tshark fields of PPTP"):
        ratios = pairwise(figure("seconds", way), ours)
        subject = f"{few:,} packets, {way} / {READER}"
        yield _judge(subject, AT_LEAST, AGAINST_TSHARK, list(ratios), "x")
    if many != few:
        before, last = counts[-2], figure("megabytes", READER, many)
        growth = pairwise(last, figure("megabytes", READER, before))
        whole = pairwise(last, figure("megabytes", READER))
        note = f"/ {few:,}: {Spread.of(whole).median:.2f}x" if whole and before != few else ""
        subject = f"memory for {many:,} packets / {before:,}"
        yield _judge(subject, AT_MOST, MEMORY_GROWTH, list(growth), "x", note=note)
    for entries in samples.distinct("entries", measure="listing"):
        listed = samples.by_round("cpu_seconds", measure="listing", entries=entries, way=LISTER)
        for way in samples.distinct("way", measure="listing", entries=entries):
            if way == LISTER:
                continue
            chosen = samples.pick(measure="listing", entries=entries, way=way)
            output, _, live = way.partition(", ")
            what = "live conntrack entries" if live else "entries of conntrack -L"
            subject = f"{entries:,} {what}, pptp-nat conntrack -o {output}"
            note = f"CPU {Spread.of([s['cpu_seconds'] for s in chosen]).median:.2f} s"
            if listed and live:
                note += f", conntrack -L {Spread.of(list(listed.values())).median:.2f} s"
            seconds = [s["seconds"] for s in chosen]
            yield _judge(subject, BELOW, LISTING_S, seconds, " s", note=note)
