"""The targets, as a table: what is wanted, what was measured, met or not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.spread import Spread, pairwise

Sample = Mapping[str, Any]


class Samples:
    """All samples of a run, to be picked by what they say of themselves."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.all = samples

    def pick(self, **wanted: object) -> list[Sample]:
        """Return the samples that have all the *wanted* values."""
        return [s for s in self.all if all(s.get(k) == v for k, v in wanted.items())]

    def by_round(self, figure: str, **wanted: object) -> dict[int, float]:
        """Return one figure of the samples that fit, by round."""
        return {s["round"]: float(s[figure]) for s in self.pick(**wanted) if s.get(figure)}

    def spread(self, figure: str, **wanted: object) -> Spread | None:
        """Summarize one figure over the rounds, or return None if there are none."""
        values = self.by_round(figure, **wanted)
        return Spread.of(values.values()) if values else None

    def distinct(self, key: str, **wanted: object) -> list[Any]:
        """Return the values that *key* takes, in order."""
        return sorted({s[key] for s in self.pick(**wanted)})


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
    subject: str, test: Test, bound: float, values: Sequence[float], unit: str = "", note: str = ""
) -> Target:
    word, holds = test
    measured = Spread.of(values) if values else None
    met = holds(measured.median, bound) if measured else None
    return Target(subject, f"{word} {bound:,g}{unit}", measured, bound, met, unit, note)


# Calls, and how many times cheaper than the kernel helper the conntrack path must be.
AGAINST_HELPER = {1: 0.95, 1000: 5.0, 20000: 50.0}
AGAINST_TRACKED = 1.10
QUEUE_AGAINST_HELPER = 1.5
QUEUE_PACKETS = 150_000
SETUPS_AGAINST_HELPER = 0.5
IDLE_MEGABYTES = 45.0
OCTETS_PER_CALL = 1000.0
SCRAPE_MS = 200.0
DELAY_MS = 5.0
OURS = "pptp-nat analyze"
AGAINST_TSHARK = 5.0
MEMORY_GROWTH = 1.2


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"


DIRECTION_NAMES = {"in": "inbound", "out": "outbound"}


def evaluate(samples: Samples, measures: Sequence[str]) -> list[Target]:
    """Judge every target of the chosen *measures*."""
    parts = {
        "gre": _gre, "setup": _setup, "memory": _memory, "scrape": _scrape, "reading": _reading,
    }  # fmt: skip
    return [t for name, part in parts.items() if name in measures for t in part(samples)]


def _gre(samples: Samples) -> Iterator[Target]:
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
        subject: str, test: Test, bound: float, ways: tuple[str, str], calls: int
    ) -> Iterator[Target]:
        for direction, name in DIRECTION_NAMES.items():
            whole, alone = zip(*(cost(way, calls, direction) for way in ways), strict=True)
            ratios = pairwise(*whole)
            note = f"whole path {Spread.of(ratios).median:.2f}" if ratios else ""
            if note and ways[1] == "tracked":
                note += helper_at_one_call(direction)
            line = f"{subject}, {_calls(calls)}, {name}"
            yield _judge(line, test, bound, pairwise(*alone), note=note)

    for calls, bound in AGAINST_HELPER.items():
        ways = ("helper", "conntrack")
        yield from compare("conntrack: packets/s to helper's", AT_LEAST, bound, ways, calls)
    for calls in AGAINST_HELPER:
        ways = ("conntrack", "tracked")
        subject = "conntrack: cost to tracked routing's"
        yield from compare(subject, AT_MOST, AGAINST_TRACKED, ways, calls)
    for direction, name in DIRECTION_NAMES.items():
        rates = {r: 1e9 / ns for r, ns in _slowest_stage(figure, 1000, direction).items()}
        helpers = {r: 1e9 / ns for r, ns in figure("ns", "helper", 1000, direction).items()}
        seen = figure("wall_pps", "queue", 1000, direction)
        note = f"by time stamps {Spread.of(seen.values()).median:,.0f}/s" if seen else ""
        subject = f"queue: packets/s to helper's, 1,000 calls, {name}"
        yield _judge(subject, AT_LEAST, QUEUE_AGAINST_HELPER, pairwise(rates, helpers))
        subject = f"queue: packets/s, 64 octets, 1,000 calls, {name}"
        yield _judge(subject, AT_LEAST, QUEUE_PACKETS, list(rates.values()), note=note)


def _slowest_stage(
    figure: Callable[[str, str, int, str], dict[int, float]], calls: int, direction: str
) -> dict[int, float]:
    """Return ns a packet of the queue's slower half: up to the queue, or the daemon.

    Either has a core of its own on a machine with nothing else to do, so this
    is what the rate of arrival is there; elsewhere the rate says what else ran.
    """
    before = figure("ns", "queue", calls, direction)
    after = figure("daemon_ns", "queue", calls, direction)
    return {r: max(before[r], after[r]) for r in before.keys() & after.keys()}


def _setup(samples: Samples) -> Iterator[Target]:
    for way in ("conntrack", "queue"):
        for calls in samples.distinct("calls", measure="setup") or [0]:
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
            subject = f"{way}: set-ups/s to helper's, {calls:,} calls up"
            yield _judge(subject, AT_LEAST, SETUPS_AGAINST_HELPER, ratios, note=note)


def _memory(samples: Samples) -> Iterator[Target]:
    for way in ("conntrack", "queue"):
        octets = {s["calls"]: s["rss_kb"] * 1024 for s in samples.pick(measure="memory", way=way)}
        idle = [octets[0] / 1e6] if octets else []
        yield _judge(f"{way}: memory idle", BELOW, IDLE_MEGABYTES, idle, " MB")
        most = max(octets, default=0)
        per_call = [(octets[most] - octets[0]) / most] if most else []
        subject = f"{way}: memory per further call, up to {most:,}"
        yield _judge(subject, BELOW, OCTETS_PER_CALL, per_call, " octets")


def _scrape(samples: Samples) -> Iterator[Target]:
    calls = max(samples.distinct("calls", measure="scrape"), default=0)
    chosen = samples.pick(measure="scrape", calls=calls)
    subject = f"scrape with {calls:,} calls up"
    took = [s["alone_ms"] for s in chosen]
    beside = [s["beside_ms"] for s in chosen]
    note = f"beside echoes {Spread.of(beside).median:.0f} ms" if beside else ""
    yield _judge(subject, BELOW, SCRAPE_MS, took, " ms", note=note)
    steps = [s["step_us"] / 1e3 for s in chosen]
    lost = [max(0.0, s["echo_max_us"] - s["quiet_max_us"]) / 1e3 for s in chosen]
    note = f"slowest echo lost {Spread.of(lost).median:.1f} ms" if lost else ""
    yield _judge(f"{subject}: longest step", BELOW, DELAY_MS, steps, " ms", note=note)


def _reading(samples: Samples) -> Iterator[Target]:
    counts = samples.distinct("packets", measure="reading")
    if not counts:
        return
    few, many = counts[0], counts[-1]

    def figure(name: str, way: str, packets: int = few) -> dict[int, float]:
        return samples.by_round(name, measure="reading", way=way, packets=packets)

    ours = figure("seconds", OURS)
    for way in ("tshark io,stat of GRE", "tshark fields of PPTP"):
        ratios = pairwise(figure("seconds", way), ours)
        subject = f"{few:,} packets, {way} / {OURS}"
        yield _judge(subject, AT_LEAST, AGAINST_TSHARK, list(ratios), "x")
    growth = pairwise(figure("megabytes", OURS, many), figure("megabytes", OURS))
    if many != few:
        subject = f"memory for {many:,} packets / {few:,}"
        yield _judge(subject, AT_MOST, MEMORY_GROWTH, list(growth), "x")
