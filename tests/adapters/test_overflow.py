"""What is lost before anybody judges it is told, and not for every packet."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from pptp_nat.linux.nfqueue import QueueCounters
from pptp_nat.router.overflow import LOOK_SECONDS, Overflow


def test_lost_packets_are_told_once_a_minute_with_what_to_do(
    caplog: pytest.LogCaptureFixture
) -> None:
    queue: Any = SimpleNamespace(number=1723, overruns=0, too_long=0, refusals=0)
    seen = QueueCounters(1, 0, 0, 0, 0)
    watch = Overflow([queue], counters=lambda _number: seen)
    watch.tick(100.0)
    assert [] == caplog.records
    for moment in range(50):
        queue.overruns += 3
        seen = seen._replace(dropped=seen.dropped + 7)
        watch.tick(100.0 + moment)
    assert [] == caplog.records
    watch.tick(100.0 + LOOK_SECONDS)
    told = {each.fields["cause"]: each.fields["count"] for each in caplog.records}
    assert {"overruns": 150, "dropped": 350} == told
    assert all("raise" in each.fields["mend"] for each in caplog.records)

    caplog.clear()
    watch.tick(100.0 + 2 * LOOK_SECONDS)
    assert [] == caplog.records, "nothing new"
    queue.overruns += 1
    watch.tick(100.0 + 3 * LOOK_SECONDS)
    (line,) = caplog.records
    assert (1, 151) == (line.fields["count"], line.fields["in_all"])


def test_a_table_that_cannot_be_read_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    queue: Any = SimpleNamespace(number=1723, overruns=0, too_long=0, refusals=0)
    Overflow([queue], counters=lambda _number: None).tick(1.0)
    assert [] == caplog.records


def test_what_the_rules_drop_ahead_of_the_queues_is_told_as_well(
    caplog: pytest.LogCaptureFixture
) -> None:
    """Rules that were there before this run have counted before; new ones begin at nothing."""
    drops: dict[str, int] | None = None
    watch = Overflow([], paced=lambda _rules: drops)
    told = []
    for moment, drops in enumerate(  # noqa: B007 - the lambda has it
        [None, {"openers_per_client": 70, "openers": 0}, {"openers_per_client": 90, "openers": 2},
         {"openers_per_client": 3, "openers": 0}, None, {"openers_per_client": 3, "openers": 0}]
    ):  # fmt: skip
        caplog.clear()
        watch.tick(moment * LOOK_SECONDS)
        told.append([(each.fields["cause"], each.fields["count"]) for each in caplog.records])
    assert [
        [], [], [("openers_per_client", 20), ("openers", 2)], [("openers_per_client", 3)], [], [],
    ] == told  # fmt: skip


def test_gre_of_no_call_is_told_once_a_minute_however_much_it_is(
    caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever guesses at numbers is seen in the log, and cannot fill it."""
    caplog.set_level("INFO")

    def lines() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.name == "pptp_nat.router.overflow"]

    strays = {"to_remote": 0, "to_inside": 0}
    watch = Overflow([], paced=lambda _rules: None, strays=lambda: strays)
    watch.tick(0.0)
    assert [] == lines()
    for moment in range(59):
        strays["to_inside"] += 1000
        watch.tick(float(moment))
    watch.tick(LOOK_SECONDS)
    strays["to_remote"] += 1
    watch.tick(2 * LOOK_SECONDS)

    assert [("to_inside", 59_000, 59_000), ("to_remote", 1, 1)] == [
        (each.fields["direction"], each.fields["count"], each.fields["in_all"])
        for each in lines()
    ]
    assert {"gre-of-no-call"} == {each.msg for each in lines()}
