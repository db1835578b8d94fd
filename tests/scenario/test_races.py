"""What ends, or comes twice, while something else is on its way."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from pptp_nat.core.events import ConnectionChanged, Verdict
from pptp_nat.core.messages import MessageType, pack
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.errors import AdapterError
from tests.core.wire import ACK, PSH

from .ladder import ALICE, HOME_PAC, PAC, TRAVELLER, Ladder, assert_nothing_left

M = MessageType


def test_a_repeated_request_whose_call_ends_while_it_is_on_its_way(nat: Ladder) -> None:
    """The field went on as the old call's number: the new call has it, out of quarantine."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=1)
    tcp = dialled.tcp

    first = tcp.segment(ALICE, 324, request[:100])
    nat._take(nat.translator.clear([dialled.known], nat.now))
    tcp.segment(ALICE, 424, request[100:])

    assert int.from_bytes(first.payload[12:14], "big") == dialled.heard
    assert [dialled.heard] == [call.seen[0] for call in nat.calls]
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)
    tcp.finish(ALICE)
    nat.wait(100)
    assert_nothing_left(nat)


def test_a_repeated_request_that_takes_longer_than_the_quarantine(nat: Ladder) -> None:
    """Then its number may be another's: no call, no leg, nothing kept."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=1)
    dialled.tcp.segment(ALICE, 324, request[:100])
    nat._take(nat.translator.clear([dialled.known], nat.now))
    nat.wait(61)
    dialled.tcp.segment(ALICE, 424, request[100:])

    assert [] == nat.calls
    assert {"unexpected_message": 1} == nat.counts
    assert_nothing_left(nat)


def test_a_repeated_reply_whose_call_ends_while_it_is_on_its_way(nat: Ladder) -> None:
    """The PAC at home answers a second call with the number of its first, which ends meanwhile."""
    first = nat.call(TRAVELLER, call_id=1).to(ALICE, answers=100)
    second = nat.call(TRAVELLER, call_id=2, over=first.tcp).to(ALICE)
    reply = pack(M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=2, result=1)
    begun = first.tcp.segment(ALICE, 188, reply[:20])
    nat._take(nat.translator.clear([first.known], nat.now))
    first.tcp.segment(ALICE, 208, reply[20:])

    assert int.from_bytes(begun.payload[12:14], "big") == first.heard_back
    assert CallState.UP is second.state
    assert nat.gre(TRAVELLER, key=first.heard_back).reaches(ALICE, key=100)
    first.tcp.finish(ALICE)
    nat.wait(100)
    assert_nothing_left(nat)


def test_a_reply_that_takes_longer_than_the_quarantine(nat: Ladder) -> None:
    """The number it shows is nobody's any more: the call comes up without it."""
    first = nat.call(TRAVELLER, call_id=1).to(ALICE, answers=100)
    second = nat.call(TRAVELLER, call_id=2, over=first.tcp).to(ALICE)
    reply = pack(M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=2, result=1)
    first.tcp.segment(ALICE, 188, reply[:20])
    nat._take(nat.translator.clear([first.known], nat.now))
    nat.wait(61)
    first.tcp.segment(ALICE, 208, reply[20:])

    assert CallState.UP is second.state
    assert second.known.own[1] == -1
    first.tcp.finish(ALICE)
    nat.wait(100)
    assert_nothing_left(nat)


def test_a_connection_that_ends_in_the_middle_of_a_request(nat: Ladder) -> None:
    """The number chosen for it was never used."""
    tcp = nat.connect(ALICE, PAC)
    tcp.segment(ALICE, 156, pack(M.OUTGOING_CALL_REQUEST, call_id=1)[:20], flags=PSH | ACK | 1)
    assert nat.translator.book.bindings.used()
    nat.wait(6)

    assert_nothing_left(nat)


@pytest.mark.parametrize("quirk", ["", "pns", "swapped"])
def test_a_notification_said_twice(nat: Ladder, quirk: str) -> None:
    """The second one finds a call that is gone; its number is translated all the same."""
    dialled = nat.call(ALICE, call_id=0x0102).to(PAC, answers=100)
    swapped = int.from_bytes(dialled.heard.to_bytes(2, "little"), "big")
    said = {"": 100, "pns": dialled.heard, "swapped": swapped}[quirk]
    meant = {"": 100, "pns": 0x0102, "swapped": 0x0201}[quirk]

    for _ in range(2):
        heard = dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=said)
        assert heard["call_id"] == meant
    assert [End.DISCONNECTED] == nat.ends
    assert nat.counts["unexpected_message"] == 1


def test_a_late_notification_with_a_number_that_both_sides_had(nat: Ladder) -> None:
    """The PAC's own comes first, among calls that are gone as among those that are not."""
    nat.drawn = [0x0005]
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=5)
    assert dialled.heard == 5

    for _ in range(2):
        assert dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=5)["call_id"] == 5
    assert [End.DISCONNECTED] == nat.ends
    assert {"unexpected_message": 1} == nat.counts


def test_the_end_of_a_side_that_has_not_spoken(nat: Ladder) -> None:
    """A connection met in the middle: no octet of the PAC's says where its FIN should be."""
    tcp = nat.open(ALICE, PAC, syn=False)
    tcp.say(ALICE, M.ECHO_REQUEST)
    tcp.finish(PAC)

    assert ControlState.CLOSING is tcp.state


def test_octets_that_went_another_way_keep_the_number_back(nat: Ladder) -> None:
    """Half of a request was seen: the other half went by while the rules were away."""
    tcp = nat.connect(ALICE, HOME_PAC)
    ringing = pack(M.INCOMING_CALL_REQUEST, call_id=1)
    tcp.segment(ALICE, 156, pack(M.OUTGOING_CALL_REQUEST, call_id=1)[:20])
    tcp.segment(HOME_PAC, 156, ringing[:100], acknowledged=324)
    echo = tcp.segment(ALICE, 324, pack(M.ECHO_REPLY))
    tcp.segment(HOME_PAC, 256, ringing[100:])

    assert Verdict.ACCEPT is echo.verdict
    assert [1, 1] == list(nat.translator.book.bindings.used().values())
    assert [HOME_PAC.address] == [call.connection.seat(call.pns.other).own for call in nat.calls]
    nat.wait(61)
    assert [1] == list(nat.translator.book.bindings.used().values())
    nat._take(nat.translator.clear(nat.calls, nat.now))
    nat.wait(61)
    assert_nothing_left(nat)


def test_octets_that_went_another_way_from_one_side_only(nat: Ladder) -> None:
    """The same with nothing under way on the other side."""
    tcp = nat.connect(ALICE, PAC)
    tcp.segment(ALICE, 156, pack(M.OUTGOING_CALL_REQUEST, call_id=1)[:20])
    tcp.segment(PAC, 156, pack(M.ECHO_REQUEST), acknowledged=324)
    echo = tcp.segment(ALICE, 324, pack(M.ECHO_REPLY))

    assert Verdict.ACCEPT is echo.verdict
    assert [1] == list(nat.translator.book.bindings.used().values())
    nat.wait(61)
    assert_nothing_left(nat)


def test_a_client_dials_again_within_the_grace_period(nat: Ladder) -> None:
    """From the port that it has just closed: the old connection is over at once."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    old.tcp.finish(ALICE)
    tcp = nat.open(ALICE, PAC, source_port=old.tcp.ports[0], starts=(500_000_000, 7))
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST)

    assert [End.REPLACED] == nat.ends
    assert not any(nat.translator.book.deadlines.values())
    nat.wait(61)
    assert_nothing_left(nat)


@pytest.mark.parametrize("flags", [ACK, ACK | 1, ACK | 4])
def test_a_packet_without_octets_begins_nothing(nat: Ladder, flags: int) -> None:
    """Conntrack is not asked for it, and no connection is replaced by it."""
    asked = []
    nat.translator._locate = asked.append
    nat.open(ALICE, PAC).segment(ALICE, 0, b"", flags=flags)
    assert [] == asked
    assert {} == nat.translator.book.connections

    nat.translator._locate = nat.locate
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    tcp = nat.open(ALICE, PAC, source_port=old.tcp.ports[0], starts=(500_000_000, 7))
    tcp.segment(ALICE, 0, b"", flags=flags)
    nat.wait(10)
    assert CallState.UP is old.state


def test_nobody_answers_while_a_connection_is_replaced(nat: Ladder) -> None:
    """Conntrack fails at that moment: the packet is dropped, and the old calls are not lost."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    tcp = nat.open(ALICE, PAC, source_port=old.tcp.ports[0], starts=(500_000_000, 7))
    failure = AdapterError("asking conntrack", 11)
    nat.translator._locate = Mock(side_effect=failure)
    with pytest.raises(AdapterError):
        tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST)
    assert CallState.UP is old.state
    nat.translator._locate = nat.locate

    tcp.again(ALICE, 0)
    assert [End.REPLACED] == nat.ends
    assert nat.gre(PAC, key=old.heard).is_stray


def test_every_step_of_a_connection_is_told(nat: Ladder) -> None:
    """The log and the table's readers learn it from these events alone."""
    tcp = nat.connect(ALICE, PAC)
    tcp.say(ALICE, M.STOP_CONTROL_CONNECTION_REQUEST)
    tcp.finish(PAC)
    nat.wait(6)

    told = [event.was for event in nat.events if isinstance(event, ConnectionChanged)]
    at = ControlState
    assert [None, at.OPENING, at.OPEN, at.STOPPING, at.CLOSING] == told
