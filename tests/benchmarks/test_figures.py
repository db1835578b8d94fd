"""What the bench makes of its samples: spreads, ratios, verdicts."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paths import OURS
from benchmarks.results import Samples
from benchmarks.spread import Spread, pairwise, rotated
from benchmarks.targets import DIRECTION_NAMES, Target, added, evaluate

FIGURES = st.lists(st.floats(0.001, 1e9), min_size=2, max_size=50)


@given(FIGURES)
def test_a_spread_is_the_median_between_its_quartiles(values: list[float]) -> None:
    found = Spread.of(values)

    assert statistics.median(values) == found.median
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


@given(st.dictionaries(st.integers(0, 20), st.floats(1, 1e6), min_size=1), st.floats(0.1, 100))
def test_what_weighs_on_a_whole_round_is_not_in_a_ratio(
    rounds: dict[int, float], slower: float
) -> None:
    """Another program may halve the speed of a round; both sides of its ratio suffer alike."""
    ratios = pairwise({r: v * slower for r, v in rounds.items()}, rounds)

    assert [round(slower, 9)] * len(rounds) == [round(ratio, 9) for ratio in ratios]


@given(st.lists(st.integers(), min_size=1, max_size=8))
def test_every_way_begins_a_round_once(ways: list[int]) -> None:
    assert ways == [rotated(ways, number)[0] for number in range(len(ways))]


def packets(way: str, calls: int, cost: float, **more: object) -> list[dict[str, Any]]:
    return [
        {
            "measure": "gre", "way": way, "calls": calls, "direction": direction, "size": 64,
            "round": number, "ns": cost, "daemon_ns": 0.0, **more,
        }
        for number in range(3)
        for direction in DIRECTION_NAMES
    ]  # fmt: skip


def judged(samples: list[dict[str, Any]], subject: str) -> Target:
    measures = {s["measure"] for s in samples}
    (found,) = [t for t in evaluate(Samples(samples), list(measures)) if subject in t.subject]
    return found


def test_generator_and_receiver_are_no_part_of_a_routers_cost() -> None:
    """At 1,000 ns for the tools, 1,500 beside 1,400 is a quarter more for the router."""
    samples = [
        *packets("wire", 1, 1000), *packets("tracked", 1, 1400), *packets("conntrack", 1, 1500),
    ]  # fmt: skip
    found = judged(samples, "cost to tracked routing's, 1 call, inbound")

    assert found.measured is not None
    assert (1.25, False) == (found.measured.median, found.met)
    assert "whole path 1.07" in found.note
    assert "first aim, at most 1.1: not met" in found.note


def test_the_slower_half_sets_the_pace_of_the_queue() -> None:
    samples = packets("queue", 1000, 2000.0, daemon_ns=4000.0, wall_pps=1.0)
    found = judged(samples, "queue: packets/s, 64 octets, 1,000 calls, outbound")

    assert found.measured is not None
    assert (250_000, True) == (found.measured.median, found.met)


def setups(way: str, calls: int, per_second: float) -> dict[str, Any]:
    return {
        "measure": "setup", "way": way, "calls": calls, "round": 0, "per_second": per_second,
        "peers_us": 100.0, "daemon_us": 100.0,
    }  # fmt: skip


def test_more_is_wanted_where_the_helper_slows_down() -> None:
    samples = [
        setups(way, calls, rate)
        for calls, helper in ((1, 1000.0), (100, 1000.0), (10000, 200.0))
        for way, rate in (("helper", helper), ("conntrack", 500.0))
    ]
    few, many = (judged(samples, f"conntrack: set-ups/s to helper's, {n}") for n in ("1 ", "10,"))

    assert (False, True) == (few.met, many.met)
    assert "first aim, at least 0.5: met" in few.note


def test_two_workers_are_compared_with_one() -> None:
    """Where the clients are light; what it is with heavier ones stands beside it."""
    light = {"light_peers_us": 50.0}
    samples = [
        setups("conntrack", 1, 2000.0) | light | {"light_per_second": 4000.0},
        setups("workers", 1, 2400.0) | light | {"light_per_second": 6600.0},
    ]
    found = judged(samples, "two workers: set-ups/s to one's, light clients, 1 call up")

    assert found.measured is not None
    assert (1.65, True) == (found.measured.median, found.met)
    assert "the peers take 50 us" in found.note
    assert "a connection for each call 1.20" in found.note


@pytest.mark.parametrize(("way", "where"), [("redirect", "past"), ("xdp", "before")])
def test_a_way_without_the_stack_is_compared_with_the_helpers_best_case(
    way: str, where: str
) -> None:
    samples = [*packets("wire", 1, 1000), *packets("helper", 1, 3000), *packets(way, 1, 1800)]
    found = judged(samples, f"bpf {where} the stack: packets/s to helper's, 1 call, outbound")

    assert found.measured is not None
    assert (2.5, True) == (found.measured.median, found.met)


def test_what_a_way_adds_to_an_echo_is_taken_round_by_round() -> None:
    samples = Samples([
        {"measure": "latency", "way": way, "load": load, "round": number, "p50_us": figure}
        for number in range(2)
        for way, load, figure in (
            ("tracked", "idle", 30.0 * (number + 1)), ("queue", "idle", 30.0 * (number + 1) + 7),
            ("queue", "paced", 900.0),
        )
    ])  # fmt: skip

    assert {0: 7.0, 1: 7.0} == added(samples, "p50_us", "queue", "idle")
    assert {} == added(samples, "p50_us", "queue", "paced")


def test_nothing_measured_is_nothing_met() -> None:
    measures = ["gre", "setup", "latency", "memory", "growth", "scrape", "reading"]
    found = evaluate(Samples([]), measures)

    assert {None} == {target.met for target in found}
    assert [] == [t for t in evaluate(Samples([]), measures, ["queue"]) if "conntrack" in t.subject]
    assert {way.name for way in OURS if way.is_default} <= {
        target.subject.split(":")[0] for target in found
    }
