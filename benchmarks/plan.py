"""How much is measured, and what all measurements need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paths import WAYS, Lab, Way
from benchmarks.shell import BenchError, pid_of
from benchmarks.spread import rotated

Sample = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.  Sizes are octets of the IP packet; calls are those up beforehand."""

    rounds: int
    gre_calls: tuple[int, ...] = (1, 1000, 20000, 100000)
    gre_sizes: tuple[int, ...] = (64, 1400)
    gre_bursts: int = 6  #: of one way, direction and size in one round
    delay_calls: tuple[int, ...] = (1000,)
    delay_percent: int = 50  #: of a way's capacity
    setup_calls: tuple[int, ...] = (1, 100, 10000)
    setup_batch: int = 1000
    echo_crowd: int = 1000  #: calls that come up beside the echoes
    memory_calls: tuple[int, ...] = (1000, 10000)
    growth_calls: tuple[int, ...] = (1000, 10000, 100000)
    scrape_calls: tuple[int, ...] = (20000,)
    flush_calls: tuple[int, ...] = (10000, 20000, 100000)
    #: of generated captures; the first is read by tshark too, and memory is that of the last
    #: against the one before, which is long enough for all processes to have their hands full
    reading_packets: tuple[int, ...] = (1_000_000, 3_000_000, 6_000_000)
    listing_entries: int = 100_000  #: of a generated conntrack table
    slow_rounds: int = 3  #: of what takes tens of seconds a round, and of larger packets


FULL = Plan(rounds=5)
QUICK = Plan(
    rounds=2,
    gre_calls=(1, 1000),
    gre_sizes=(64,),
    gre_bursts=2,
    setup_calls=(1,),
    setup_batch=300,
    echo_crowd=200,
    memory_calls=(500, 2000),
    growth_calls=(1000,),
    flush_calls=(1000,),
    scrape_calls=(),  # growth has a scrape, though nothing beside it
    reading_packets=(200_000,),
    listing_entries=10_000,
    slow_rounds=1,
)


class Run:
    """What all measurements need: where the peers are, what is not here, whom to tell."""

    def __init__(
        self, plan: Plan, build: Path, tell: Tell, ways: tuple[Way, ...] = WAYS
    ) -> None:
        self.plan = plan
        self.build = build
        self.tell = tell
        self.ways = ways
        self.absent: dict[str, str] = {}  #: way -> why it was not measured
        self.cpu = max(os.sched_getaffinity(0))  #: where generators and pinned peers run
        self.ksoftirqd = pid_of(f"ksoftirqd/{self.cpu}")

    def ways_of(self, measure: str) -> list[Way]:
        """Return the ways that take part in *measure*."""
        return [way for way in self.ways if not way.measures or measure in way.measures]

    def prepare(self, measure: str, built: list[Lab], calls: int) -> None:
        """Have *calls* calls up in each lab; one that cannot is noted and left out from here."""
        for lab in list(built):
            self.tell(f"{measure}: {calls:,} up through {lab.way.title}")
            try:
                lab.grow(calls)
            except BenchError as error:
                built.remove(lab)
                self.absent[f"{lab.way.name} with {calls:,} calls ({measure})"] = str(error)

    def rounds(self, built: list[Lab], at_most: int | None = None) -> Iterator[tuple[int, Lab]]:
        """Go round the labs, beginning with another one each time."""
        for number in self.numbers(at_most):
            for lab in rotated(built, number):
                yield number, lab

    def numbers(self, at_most: int | None = None) -> range:
        """Return the rounds' numbers."""
        rounds = self.plan.rounds
        return range(rounds if at_most is None else min(rounds, at_most))
