"""Connections whose SYN nobody saw: where they begin, and what must not pass before that."""

from __future__ import annotations

import pytest

from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import MessageType, pack
from pptp_nat.core.states import CallState, ControlState, End

from .ladder import ALICE, PAC, Ladder

M = MessageType
HELLO = pack(M.START_CONTROL_CONNECTION_REQUEST, version=0x0100, host=b"client")
REQUEST = pack(M.OUTGOING_CALL_REQUEST, call_id=7)


def test_a_connection_begins_with_its_first_message(nat: Ladder) -> None:
    """What most connections look like: the rules let their SYNs pass."""
    tcp = nat.open(ALICE, PAC, syn=False)
    assert HELLO == tcp.send(ALICE, HELLO)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    dialled = nat.call(ALICE, call_id=7, over=tcp).to(PAC, answers=100)

    assert CallState.UP is dialled.state
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=7)
    assert {} == nat.counts


@pytest.mark.parametrize("cut", [1, 9, 10, 155])
def test_a_message_that_overtakes_the_first_one_waits(nat: Ladder, cut: int) -> None:
    """The end of the hello comes first: TCP sends it again, behind what it has overtaken."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.sent[0].extend(HELLO + REQUEST)

    assert b"" == tcp.again(ALICE, cut), "its numbers were not read"
    for _ in range(2):  # fewer than ten octets may be anything: they wait, too
        tcp.again(ALICE, 0, cut)
    heard = tcp.again(ALICE, cut)

    assert HELLO[cut:] == heard[: len(HELLO) - cut]
    [call] = nat.calls
    assert call.seen[0].to_bytes(2, "big") == heard[-156:-154]
    assert 7 == call.own[0] != call.seen[0]


@pytest.mark.parametrize("cut", [10, 70, 155])
@pytest.mark.parametrize("first", [10, 40, 70, 156])
def test_the_end_of_the_first_message_may_come_twice_before_its_beginning(
    nat: Ladder, cut: int, first: int
) -> None:
    """The beginning is lost two times, and its end is not."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.sent[0].extend(HELLO)
    tcp.again(ALICE, cut)
    assert HELLO[cut:] == tcp.again(ALICE, cut)

    assert HELLO[:first] == tcp.again(ALICE, 0, first)
    if first < cut:
        assert HELLO[first:cut] == tcp.again(ALICE, first, cut)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)  # and acknowledges all of it
    assert ControlState.OPEN is tcp.state
    dialled = nat.call(ALICE, call_id=7, over=tcp).to(PAC, answers=100)
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=7)


def test_a_first_message_that_comes_again_is_what_it_was(nat: Ladder) -> None:
    """First seen wins, whether all of it was seen or a part."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.sent[0].extend(HELLO)
    other = HELLO[:60] + bytes(octet ^ 0xFF for octet in HELLO[60:80]) + HELLO[80:]

    assert HELLO[:70] == tcp.again(ALICE, 0, 70)
    assert HELLO[:70] + other[70:] == tcp.segment(ALICE, 0, other).payload
    assert {"conflicting_overlap": 1} == nat.counts


def test_what_has_passed_unread_behind_the_first_message_is_never_read(nat: Ladder) -> None:
    """Or a client's request would be at the server with a number that is another's."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.sent[0].extend(HELLO + REQUEST)
    behind = len(HELLO) + 11
    tcp.again(ALICE, behind)
    assert REQUEST[11:] == tcp.again(ALICE, behind)

    for end in (156, behind, behind + 20):
        assert b"" == tcp.again(ALICE, 0, end)


def test_nothing_from_before_a_beginning_passes(nat: Ladder) -> None:
    """A client that begins behind a request, and sends that when nobody seems to look."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.sent[0].extend(HELLO + REQUEST + HELLO)
    behind = len(HELLO + REQUEST)

    assert HELLO == tcp.again(ALICE, behind)
    for _ in range(3):
        assert b"" == tcp.again(ALICE, 0, behind)
    assert 3 == nat.counts["retransmission_too_old"]

    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)  # and acknowledges all of it
    assert HELLO + REQUEST == tcp.again(ALICE, 0, behind), "the PAC has it, and wants it no more"


def test_what_is_doubtful_passes_the_second_time_and_nothing_before_it(nat: Ladder) -> None:
    """No PPTP, or the middle of a message: followed from there, not from before."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.sent[0].extend(HELLO + REQUEST)

    assert b"" == tcp.again(ALICE, 170)
    assert b"" == tcp.again(ALICE, 171), "another one"
    assert b"" == tcp.again(ALICE, 170)
    assert (HELLO + REQUEST)[170:] == tcp.again(ALICE, 170)
    assert b"" == tcp.again(ALICE, 0, 170)
    assert {"beginning_unknown": 3, "retransmission_too_old": 1} == nat.counts


@pytest.mark.parametrize("is_closing", [False, True])
def test_the_same_ports_again_without_a_syn(nat: Ladder, *, is_closing: bool) -> None:
    """The old connection is over: its FIN was seen, or the client lost its power."""
    first = nat.call(ALICE, call_id=7).to(PAC, answers=100)
    if is_closing:
        first.tcp.finish(ALICE)
    tcp = nat.open(
        ALICE, PAC, source_port=first.tcp.ports[0], starts=(500_000_000, 700_000_000), syn=False
    )

    passed = [tcp.segment(ALICE, 0, HELLO).verdict for _ in range(2)]

    assert ([Verdict.ACCEPT] if is_closing else [Verdict.DROP]) == passed[:1]
    assert Verdict.ACCEPT is passed[1]
    assert [End.REPLACED] == nat.ends
    tcp.sent[0].extend(HELLO)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    assert ControlState.OPEN is tcp.state
    again = nat.call(ALICE, call_id=7, over=tcp).to(PAC, answers=101)
    assert nat.gre(PAC, key=again.heard).reaches(ALICE, key=7)


def test_a_second_hello_of_the_same_connection_replaces_nothing(nat: Ladder) -> None:
    """It comes where the next octet is expected, or comes again."""
    dialled = nat.call(ALICE, call_id=7).to(PAC, answers=100)

    assert HELLO == dialled.tcp.send(ALICE, HELLO)
    assert HELLO == dialled.tcp.again(ALICE, len(HELLO + REQUEST))
    assert CallState.UP is dialled.state
    assert [] == nat.ends


def test_what_is_dropped_once_is_remembered_within_bounds(nat: Ladder) -> None:
    """A flood of made-up octets from everywhere."""
    for port in range(20_000, 30_000):
        tcp = nat.open(ALICE, PAC, source_port=port, syn=False)
        assert b"" == tcp.send(ALICE, b"made up")

    assert len(nat.translator._beginnings._doubted) == nat.translator.settings.half_open
    assert {} == nat.translator.book.connections
