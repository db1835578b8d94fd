"""A connection whose parties rest is a row of octets, and nobody can tell by what it says."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from pptp_nat.core import translator
from pptp_nat.core.book import REST
from pptp_nat.core.events import OddityMet
from pptp_nat.core.messages import MessageType
from pptp_nat.core.stream import Stream
from pptp_nat.core.talk import Talk, identity, is_opaque, resting, settled, spoke, woken
from pptp_nat.core.tuples import Party
from tests.scenario.ladder import ALICE, PAC, Host, Ladder

from .effort import effort
from .hosts import Round, conversations
from .legs import Legs
from .network import Weather, Wire
from .test_commutes import FLOWS, SETTINGS, STARTS, WEATHER, Setting, wire_of

M = MessageType
_TIMES = st.floats(0, 1e9, allow_nan=False)
_SEQUENCE = st.none() | st.integers(0, 0xFFFFFFFF)
_OVERLAYS = st.integers(0, 300).map(lambda count: bytes(range(6)) * count)
_ECHOES = st.none() | st.tuples(st.sampled_from(Party), _TIMES, st.floats(0, 100, width=32))


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """Draw a connection in the middle of nothing; some have more to keep than fits."""
    talk = Talk(draw(st.integers(1, (1 << 49) - 1)), draw(_TIMES), draw(_TIMES))
    for stream in (talk.originators, talk.responders):
        history = bytes(draw(st.sampled_from((0, 1, 16, 168, 255, 256, 4096))))
        stream.rest_at(draw(_SEQUENCE), draw(st.booleans()), draw(_OVERLAYS), history)
    if (echo := draw(_ECHOES)) is not None:
        by, asked, seconds = echo
        talk.echo_asked(by.other, b"once", asked)
        talk.echo_answered(by, b"once", asked + seconds)
    return talk


def of_stream(stream: Stream) -> list[object]:
    return [
        stream.next, stream.synced, stream.head, stream.history, stream.overlays, stream.floor,
        stream.beyond, stream.cut, stream.held,
    ]  # fmt: skip


def known(talk: Talk) -> list[object]:
    told = talk.id, talk.created, talk.last_message, talk.last_echo, talk.fresh, talk.refused
    return [*told, of_stream(talk.originators), of_stream(talk.responders)]


@given(talks())
@effort(200)
def test_a_row_tells_all_that_was_known(talk: Talk) -> None:
    row = talk.row()
    streams = talk.originators, talk.responders
    fits = talk.id < 1 << 48 and all(
        len(each.overlays) <= 255 * 6 and len(each.history) <= 255 for each in streams
    )

    assert fits == (row is not None)
    if row is None:
        return
    assert known(talk) == known(woken(row))
    told = talk.id, talk.last_message, talk.is_opaque
    assert told == (identity(row), spoke(row), is_opaque(row))
    talk.settle()
    assert known(talk) == known(woken(settled(row)))


@given(_TIMES, _TIMES, st.lists(st.tuples(_SEQUENCE, st.integers(0, 255)), min_size=2, max_size=2))
@effort(100)
def test_a_row_of_what_is_on_record_is_that_of_who_had_rested(created, spoke_at, streams) -> None:
    """A start makes rows of records, without a `Talk` in between."""
    talk = Talk(1 << 47, created, spoke_at)
    pairs = [(following or 0, bytes(range(6)) * count) for following, count in streams]
    for stream, (following, overlays) in zip(
        (talk.originators, talk.responders), pairs, strict=True
    ):
        stream.rest_at(following, True, overlays, b"")

    assert talk.row() == resting(1 << 47, created, spoke_at, *pairs)


@pytest.mark.parametrize(
    ("name", "value"),
    [("head", b"\0"), ("cut", 3), ("held", object()), ("floor", 7), ("beyond", 7)],
)
def test_who_is_in_the_middle_of_something_stays_awake(name: str, value: object) -> None:
    for which in ("originators", "responders"):
        talk = Talk(1, 2.0, 3.0)
        setattr(getattr(talk, which), name, value)

        assert talk.row() is None


class Drowsy(Wire):
    """A network whose connections fall asleep after each packet, if they can at all."""

    naps = 0

    def _arrive(self, at: int) -> None:
        super()._arrive(at)
        for connection in self.translator.book.connections.values():
            self.naps += connection.rest()


@given(SETTINGS, conversations(), st.tuples(STARTS, STARTS), WEATHER)
@effort(60)
def test_sleep_changes_no_octet_whatever_tcp_does(
    setting: Setting, rounds: list[Round], starts: tuple[int, int], weather: Weather
) -> None:
    """The same packets in the same order, with and without naps between any two of them."""
    awake = wire_of(setting, starts, weather)
    drowsy = Drowsy(
        wire_of(setting, starts, weather).translator, FLOWS[setting.place].flow, starts, weather
    )
    for wire in (awake, drowsy):
        for spoken in rounds:
            wire.speak(spoken)
        wire.finish([Party.ORIGINATOR])
    event(f"naps: {min(drowsy.naps, 10)}")

    assert awake.outputs == drowsy.outputs
    assert awake.translator.snapshot() == drowsy.translator.snapshot()


def test_the_parties_rest_and_are_understood_when_they_speak_again() -> None:
    nat = Ladder()
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    connection = dialled.tcp.followed
    before = connection.id, connection.created, connection.last_message
    assert not connection.is_asleep
    nat.wait(REST + 1)

    assert connection.is_asleep
    assert before == (connection.id, connection.created, connection.last_message)
    assert dialled.tcp.say(ALICE, M.ECHO_REQUEST, identifier=5)["identifier"] == 5
    assert not connection.is_asleep
    nat.wait(2 * REST)
    assert not connection.is_asleep, "an answer is to come"
    dialled.tcp.say(PAC, M.ECHO_REPLY, identifier=5, result=1)
    nat.wait(REST + 1)

    assert connection.is_asleep
    assert connection.last_echo.seconds == pytest.approx(2 * REST)
    got = dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    assert got["call_id"] == dialled.heard
    assert nat.translator.book.counts.total() == nat.translator.book.counts["rewritten"]


def test_octets_that_come_again_to_one_that_slept_are_what_they_were() -> None:
    nat = Ladder()
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    request = dialled.tcp.sent[0][156:]
    for _ in range(3):
        nat.wait(REST + 1)
        assert dialled.tcp.followed.is_asleep
        nat.events.clear()
        assert dialled.tcp.again(ALICE, 156) != request, "its number is the router's"
        assert not any(isinstance(each, OddityMet) for each in nat.events)


def test_a_call_whose_parties_rest_takes_few_octets() -> None:
    """Those of the core alone; docs/performance.md has what a daemon takes in all."""
    nat = Ladder()
    hosts = [Host("", bytes((192, 168, 77, at))) for at in range(1, 151)]

    def dial(some: list[Host]) -> None:
        for at, host in enumerate(some):
            tcp = nat.connect(host, PAC)
            for kind, sender, numbers in (
                (M.OUTGOING_CALL_REQUEST, host, {"call_id": 7}),
                (M.OUTGOING_CALL_REPLY, PAC, {"call_id": at + 1, "result": 1}),
            ):
                if sender is PAC:
                    (call,) = tcp.followed.calls
                    numbers["peer_call_id"] = call.seen_of(Party.ORIGINATOR)
                tcp.say(sender, kind, **numbers)
            nat.events.clear()
        nat.wait(REST + 1)
        nat.legs = Legs()  # the ladder's own

    nat.drawn = [number * 257 & 0xFFFF for number in range(1, 1000)]
    dial(hosts[:50])
    tracemalloc.start()
    dial(hosts[50:])
    taken = tracemalloc.take_snapshot()
    tracemalloc.stop()
    kept = taken.filter_traces([tracemalloc.Filter(True, "*/pptp_nat/core/*")])
    held = sum(trace.size for trace in kept.traces)

    assert len(nat.translator.book.calls) == len(hosts)
    assert held / 100 < 650


def test_however_many_there_are_all_that_are_quiet_are_looked_at(monkeypatch) -> None:
    """In several turns, between which packets come; each minute again."""
    monkeypatch.setattr(translator, "_SWEPT", 2)
    nat = Ladder()
    hosts = [Host("", bytes((192, 168, 77, at))) for at in range(1, 8)]
    followed = [nat.call(host, call_id=1).to(PAC).tcp.followed for host in hosts]
    assert all(any(stream.history for stream in each.streams) for each in followed)
    nat.wait(180)

    assert not any(stream.history for each in followed for stream in each.streams)
    nat.wait(7200 + 130)
    assert not nat.translator.book.connections
