"""Diagnoses of a session that goes on: they come in time, and no call that is well is accused."""

from __future__ import annotations

import math

import pytest

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.live import LiveSession
from pptp_nat.analysis.model import Diagnosis
from pptp_nat.analysis.severity import Severity
from tests.analysis import troubles
from tests.analysis.story import START, Story, still
from tests.analysis.troubles import TROUBLES, Tell

#: Said of a file as a whole, or of what only two files show.
NOT_LIVE = {"no_pptp", "captured_twice", "gre_lost_in_nat", "no_control_connection"}
CASES = [
    (slug, tell)
    for slug, tells in TROUBLES.items()
    for tell in tells
    if slug not in NOT_LIVE and tell is not troubles.large_packets_go_in_and_do_not_come_out
]
BAD = (Severity.ERROR, Severity.WARNING)


def told_live(
    story: Story, every: float = 1.0, longer: float = 0.0
) -> list[tuple[float, Diagnosis]]:
    """Let a story pass by and return what was told, and when, in seconds from its beginning."""
    session = LiveSession(frozenset({1723}), clock=still)
    told = []
    packets = list(story.packets)
    for turn in range(1, math.ceil((story.now - START + longer) / every) + 2):
        now = START + turn * every
        while packets and packets[0][0] <= now:
            time, packet = packets.pop(0)
            session.take(time, 1, packet, len(packet))
        told += [
            (now - START, news.subject)
            for news in session.turn(now)
            if isinstance(news.subject, Diagnosis)
        ]
    return told


def story_of(tell: Tell) -> Story:
    told = tell()
    assert isinstance(told, Story)
    return told


@pytest.mark.parametrize(
    ("slug", "tell"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_trouble_is_told_while_it_passes(slug: str, tell: Tell) -> None:
    told = told_live(story_of(tell), longer=5)

    assert slug in {diagnosis.rule for _, diagnosis in told}


@pytest.mark.parametrize("every", [0.05, 1.0, 7.0])
@pytest.mark.parametrize(
    "tell",
    [
        troubles.all_is_well, troubles.a_reply_after_three_seconds, troubles.an_echo_is_answered,
        troubles.alive_after_two_minutes_of_rest, troubles.right_at_the_second_try,
        troubles.two_clients_with_one_number_behind_a_good_nat, troubles.a_nak_that_is_heeded,
    ],
    ids=lambda tell: tell.__name__,
)  # fmt: skip
def test_a_call_that_is_well_is_not_accused_at_any_moment(tell: Tell, every: float) -> None:
    """What has not come yet may still come: each turn sees a part of the story."""
    story = story_of(tell)
    if every < 1 and story.now - START > 30:
        pytest.skip("a story too long for such short turns")

    told = told_live(story, every)

    assert [each for each in told if each[1].severity in BAD] == []


def test_missing_gre_is_told_within_seconds() -> None:
    told = told_live(troubles.only_the_server_s_gre())

    (when,) = [at for at, diagnosis in told if diagnosis.rule == "no_gre_from_client"]
    assert when <= 10


def test_a_live_session_says_in_the_end_what_the_file_says(tmp_path) -> None:
    for tell in (troubles.one_of_twenty_is_lost, troubles.wrong_password, troubles.all_is_well):
        story = story_of(tell)

        live = {diagnosis.rule for _, diagnosis in told_live(story)}
        file = {each.rule for each in analyze([story.pcap(tmp_path / "x.pcap")]).diagnoses}

        assert file <= live
        assert {"healthy_call"} >= live - file  # well until the trouble came
