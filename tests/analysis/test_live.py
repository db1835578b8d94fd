"""A live session tells what changes, once, and forgets what is long over."""

from __future__ import annotations

import json

import pytest

from pptp_nat.analysis import live
from pptp_nat.analysis.live import FORGOTTEN_AFTER, LiveSession, News
from pptp_nat.analysis.model import Analysis, Diagnosis

from .story import ALICE, ROUTER, SERVER, Story, still


def play(session: LiveSession, story: Story, begin: int = 0) -> list[News]:
    for time, packet in story.packets[begin:]:
        session.take(time, 0, packet, len(packet))
    return session.turn(story.now)


def kinds(news: list[News]) -> list[str]:
    return [each.kind for each in news if each.kind != "diagnosis"]


def test_each_step_of_a_call_is_told_once() -> None:
    story, session = Story(), LiveSession(frozenset((1723,)), clock=still)
    call = story.dial(ALICE, SERVER, call_id=7, answers=100)
    assert kinds(play(session, story)) == ["connection", "call"]
    assert kinds(session.turn(story.now)) == []

    begin = len(story.packets)
    call.link().prove().network()
    phases = [each.text for each in play(session, story, begin) if each.kind == "ppp"]
    assert [text.split()[-1] for text in phases] == [
        "establish", "authenticate", "network", "opened"
    ]  # fmt: skip

    begin = len(story.packets)
    call.hang_up()
    news = play(session, story, begin)
    assert any("gone" in each.text for each in news if each.kind == "call")


def test_a_diagnosis_is_told_when_it_appears_and_not_again() -> None:
    story, session = Story(), LiveSession(frozenset((1723,)), clock=still)
    story.dial(ALICE, SERVER).link().prove(failure="E=691 R=0 M=no")
    found = [each.text for each in play(session, story) if each.kind == "diagnosis"]

    assert any("authentication_failed" in text for text in found)
    assert [each for each in session.turn(story.now) if each.kind == "diagnosis"] == []


def test_both_sides_of_a_nat_are_told_as_one_call() -> None:
    """On the router each packet passes twice, before and after translation."""
    story, session = Story(), LiveSession(frozenset((1723,)), clock=still)
    story.dial(ALICE, SERVER, call_id=7, answers=100, serial=9)
    outside = Story(story.now)
    outside.dial(ROUTER, SERVER, call_id=700, answers=100, serial=9)
    play(session, story)
    news = play(session, outside)

    assert [each.text for each in news if each.kind == "translation"] == [
        "call 2 is call 1 outside the NAT: PNS 198.18.7.1/700, PAC 198.18.7.2/100 there"
    ]


def test_news_are_plain_objects_too() -> None:
    story, session = Story(), LiveSession(frozenset((1723,)), clock=still)
    story.dial(ALICE, SERVER).link().prove(failure="E=691 R=0 M=no")
    for each in play(session, story):
        item = json.loads(json.dumps(each.item(session.analysis)))
        assert {"time", "event", "text"} < set(item)


def test_what_is_long_over_is_forgotten_and_what_lives_is_not() -> None:
    story, session = Story(), LiveSession(frozenset((1723,)), clock=still)
    for number in range(20):
        story.dial(ALICE, SERVER, call_id=number, answers=number).link().chat(2).hang_up()
    alive = story.dial(ALICE, SERVER, call_id=99, answers=99).link()
    play(session, story)
    assert len(session.analysis.calls) == 21

    begin = len(story.packets)
    story.wait(FORGOTTEN_AFTER + 10)
    alive.chat(3)
    play(session, story, begin)

    assert [call.pns.call_id for call in session.analysis.calls] == [99]
    assert len(session.analysis.control_connections) == 1


@pytest.mark.parametrize(("cost", "conclusions"), [(0.001, 400), (0.05, 200), (1.0, 10)])
def test_conclusions_take_a_tenth_of_the_time_however_many_calls_there_are(
    cost: float, conclusions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred seconds of four turns each; what calls do is told at each of them."""
    clock, drawn = [0.0], []

    def conclude(analysis: Analysis) -> None:
        clock[0] += cost
        drawn.append(cost)
        whole(analysis)

    whole = live.conclude
    monkeypatch.setattr(live, "conclude", conclude)
    story, session = Story(), LiveSession(frozenset((1723,)), clock=lambda: clock[0])
    late = []
    for turn in range(400):
        clock[0] = max(clock[0], turn * 0.25)
        if turn % 40 == 1:
            begin = len(story.packets)
            story.dial(ALICE, SERVER, call_id=turn)
            late += [turn] * (kinds(play(session, story, begin)) != ["connection", "call"])
        else:
            session.turn(story.now)

    assert late == []
    assert sum(drawn) <= 10 + cost
    assert conclusions * 0.9 <= len(drawn) <= conclusions


def test_the_last_turn_draws_conclusions_in_any_case() -> None:
    clock = iter(range(0, 10_000, 100))  # each look at it costs a hundred seconds
    story, session = Story(), LiveSession(frozenset((1723,)), clock=lambda: next(clock))
    session.turn(story.now)
    story.dial(ALICE, SERVER).link().prove(failure="E=691 R=0 M=no")

    assert [each for each in play(session, story) if each.kind == "diagnosis"] == []
    rules = [
        each.subject.rule
        for each in session.turn(story.now, last=True)
        if isinstance(each.subject, Diagnosis)
    ]
    assert rules == ["authentication_failed"]
