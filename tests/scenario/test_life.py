"""From the first message of a call to its last."""

from __future__ import annotations

import pytest

from pptp_nat.core.events import CallChanged
from pptp_nat.core.messages import LAYOUTS, MessageType
from pptp_nat.core.states import CallState, End

from .ladder import ALICE, BOB, PAC, TRAVELLER, Dialled, Ladder, assert_nothing_left

M = MessageType


def states_of(nat: Ladder, dialled: Dialled) -> list[CallState]:
    """Return the states that a call has left, in order."""
    return [e.was for e in nat.events if isinstance(e, CallChanged) and e.call is dialled.known]


def test_an_outgoing_call_from_dialling_to_the_end(nat: Ladder) -> None:
    """RFC 2637 section 3.2.4, and what is carried meanwhile."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    tcp = dialled.tcp
    assert nat.gre(ALICE, key=100, to=PAC).source == nat.external
    tcp.say(ALICE, M.SET_LINK_INFO, peer_call_id=100)
    tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)  # GRE may still straggle
    tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=4)

    at = CallState
    assert [at.IDLE, at.REQUESTED, at.UP, at.CLEARING] == states_of(nat, dialled)
    assert CallState.GONE is dialled.state
    assert [End.DISCONNECTED] == nat.ends
    assert nat.gre(PAC, key=dialled.heard).is_stray
    assert {} == nat.counts


@pytest.mark.parametrize("pns", [ALICE, TRAVELLER])
def test_an_incoming_call_from_ringing_to_the_end(nat: Ladder, pns: object) -> None:
    """Cases 39 and 40.  The PAC asks, whichever side of the router it is on."""
    pac, answers = (PAC, 100) if pns is ALICE else (BOB, 100)
    caller_tcp = nat.connect(pac, pns)
    dialled = nat.ring(pac, call_id=7, over=caller_tcp).to(pns, answers=answers)

    at = CallState
    assert [at.IDLE, at.REQUESTED, at.ANSWERED] == states_of(nat, dialled)
    assert CallState.UP is dialled.state
    router = {} if pac is PAC else {"to": pns}
    if pns is ALICE:
        assert nat.gre(pac, key=dialled.heard_back).reaches(ALICE, key=100)
        assert nat.gre(ALICE, key=7, to=pac).reaches(pac, key=7)
    else:
        assert nat.gre(pns, key=dialled.heard).reaches(BOB, key=7)
        assert nat.gre(BOB, key=100, **router).reaches(pns, key=100)
    heard = caller_tcp.say(pac, M.WAN_ERROR_NOTIFY, peer_call_id=dialled.heard_back)
    assert heard["peer_call_id"] == answers
    assert caller_tcp.say(pns, M.SET_LINK_INFO, peer_call_id=dialled.heard)["peer_call_id"] == 7
    caller_tcp.say(pac, M.CALL_DISCONNECT_NOTIFY, call_id=7)
    assert [End.DISCONNECTED] == nat.ends
    assert {} == nat.counts


def test_the_pac_opens_the_control_connection(nat: Ladder) -> None:
    """Case 41.  Who opened TCP says nothing about who dials."""
    tcp = nat.connect(PAC, ALICE)
    dialled = nat.call(ALICE, call_id=1, over=tcp).to(PAC, answers=100)

    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)
    assert CallState.UP is dialled.state


@pytest.mark.parametrize("result", range(2, 8))
def test_a_request_that_is_refused_leaves_no_call(nat: Ladder, result: int) -> None:
    """Case 26.  The reply is translated and its reason kept for the help desk."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=0, result=result)

    assert CallState.GONE is dialled.state
    assert [End.REFUSED] == nat.ends
    assert dialled.known.codes == (M.OUTGOING_CALL_REPLY, result, 0, 0)
    nat.wait(61)
    assert_nothing_left(nat)


def test_an_incoming_call_that_is_refused_leaves_no_number(nat: Ladder) -> None:
    """Case 26.  The inside PNS shows a number in a reply that says no."""
    tcp = nat.connect(PAC, ALICE)
    dialled = nat.ring(PAC, call_id=7, over=tcp).to(ALICE, answers=0x1234, result=3)

    assert dialled.heard_back != 0x1234
    assert [End.REFUSED] == nat.ends
    assert_number_is_free(nat)


def assert_number_is_free(nat: Ladder) -> None:
    assert {} == nat.translator.book.bindings.used()


def test_a_reply_said_twice_is_one_reply(nat: Ladder) -> None:
    """Case 27.  Not a retransmission: the PAC's program repeats it."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    reply = {"call_id": 100, "peer_call_id": dialled.heard, "result": 1}

    assert dialled.tcp.say(PAC, M.OUTGOING_CALL_REPLY, **reply)["peer_call_id"] == 1
    assert [dialled.known] == nat.calls
    assert len(nat.installed(dialled)) == 2
    assert {} == nat.counts


@pytest.mark.parametrize("clearing", [False, True])
def test_a_pac_at_home_says_its_reply_twice(nat: Ladder, *, clearing: bool) -> None:
    """Case 27.  Its number stays what it was translated to, while the call is being cleared too."""
    dialled = nat.call(TRAVELLER, call_id=1).to(ALICE, answers=100)
    if clearing:
        dialled.tcp.say(TRAVELLER, M.CALL_CLEAR_REQUEST, call_id=1)

    again = dialled.tcp.say(ALICE, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=1, result=1)

    assert again["call_id"] == dialled.heard_back
    assert nat.gre(TRAVELLER, key=dialled.heard_back).reaches(ALICE, key=100)


def test_a_request_said_twice_is_one_call(nat: Ladder) -> None:
    """Case 8.  Not a retransmission: the client's program repeats it, up or not."""
    dialled = nat.call(ALICE, call_id=1).to(PAC)
    request = {"call_id": 1}
    assert dialled.tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, **request)["call_id"] == dialled.heard
    reply = {"call_id": 100, "peer_call_id": dialled.heard, "result": 1}
    dialled.tcp.say(PAC, M.OUTGOING_CALL_REPLY, **reply)
    assert dialled.tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, **request)["call_id"] == dialled.heard

    assert [dialled.known] == nat.calls
    assert CallState.UP is dialled.state
    assert {} == nat.counts


def test_a_reply_to_nobodys_request_passes(nat: Ladder) -> None:
    """Case 28.  Counted, untouched, and no number is kept for it."""
    tcp = nat.connect(ALICE, PAC)

    heard = tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=55, result=1)
    back = tcp.say(ALICE, M.INCOMING_CALL_REPLY, call_id=1, peer_call_id=66, result=1)

    assert (100, 55) == (heard["call_id"], heard["peer_call_id"])
    assert back["peer_call_id"] == 66
    assert [] == nat.calls
    assert {"unknown_peer_call_id": 2} == nat.counts
    assert_number_is_free(nat)


def test_a_host_that_answers_its_own_request_is_not_believed(nat: Ladder) -> None:
    """Case 28.  A reply comes from the other side."""
    dialled = nat.call(ALICE, call_id=1).to(PAC)
    dialled.tcp.say(ALICE, M.OUTGOING_CALL_REPLY, call_id=2, peer_call_id=1, result=1)

    assert CallState.REQUESTED is dialled.state
    assert {"unknown_peer_call_id": 1} == nat.counts


@pytest.mark.parametrize("kind", [
    M.OUTGOING_CALL_REPLY, M.INCOMING_CALL_REPLY, M.INCOMING_CALL_CONNECTED, M.WAN_ERROR_NOTIFY,
    M.SET_LINK_INFO,
])  # fmt: skip
@pytest.mark.parametrize("sender", [ALICE, PAC])
def test_a_message_about_a_call_that_nobody_has_passes(
    nat: Ladder, kind: MessageType, sender: object
) -> None:
    """Cases 28 and 34.  An unknown number is somebody's mistake, and no call's."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    more = {"call_id": 0x7777, "result": 1}
    fields = {name: more[name] for name in more if name in LAYOUTS[kind].names}

    heard = dialled.tcp.say(sender, kind, peer_call_id=0x7777, **fields)

    assert heard["peer_call_id"] == 0x7777
    assert [dialled.known] == nat.calls
    assert CallState.UP is dialled.state
    assert 1 == nat.counts["unknown_peer_call_id"]


def test_a_pac_at_home_that_answers_nobodys_request_takes_no_number(nat: Ladder) -> None:
    """Case 28.  A number was chosen for the reply before it was known to answer nothing."""
    dialled = nat.call(TRAVELLER, call_id=1).to(ALICE, answers=7)
    used = nat.translator.book.bindings.used()
    dialled.tcp.say(ALICE, M.OUTGOING_CALL_REPLY, call_id=9, peer_call_id=77, result=1)

    assert used == nat.translator.book.bindings.used()
    assert nat.gre(TRAVELLER, key=dialled.heard_back).reaches(ALICE, key=7)


@pytest.mark.parametrize("kind", [M.CALL_CLEAR_REQUEST, M.CALL_DISCONNECT_NOTIFY])
@pytest.mark.parametrize("sender", [ALICE, PAC])
def test_the_end_of_a_call_that_nobody_knows_ends_none(
    nat: Ladder, kind: MessageType, sender: object
) -> None:
    """Case 34.  Linux clears whatever call it has; here the number must be one of a call."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert dialled.tcp.say(sender, kind, call_id=0x4444)["call_id"] == 0x4444
    assert CallState.UP is dialled.state
    assert {"unknown_call_id": 1} == nat.counts


def test_a_request_is_cleared_before_it_is_answered(nat: Ladder) -> None:
    """Case 35.  The number is translated, and the late answer as well."""
    dialled = nat.call(ALICE, call_id=1).to(PAC)
    assert dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)["call_id"] == dialled.heard
    reply = {"call_id": 100, "peer_call_id": dialled.heard, "result": 1}

    assert dialled.tcp.say(PAC, M.OUTGOING_CALL_REPLY, **reply)["peer_call_id"] == 1
    assert CallState.CLEARING is dialled.state
    dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    assert [End.DISCONNECTED] == nat.ends
    assert {} == nat.counts


def test_line_errors_are_told_to_the_right_call(nat: Ladder) -> None:
    """Case 38.  And the counters stay what they were."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    counters = {"crc_errors": 1, "framing_errors": 2, "alignment_errors": 0xFFFFFFFF}

    heard = dialled.tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=dialled.heard, **counters)

    assert heard["peer_call_id"] == 1
    assert counters == {name: heard[name] for name in counters}


def test_set_link_info_from_a_pac(nat: Ladder) -> None:
    """Table 1, row 15.  Only a PNS should send it; PACs do, and the rule holds for them."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert dialled.tcp.say(PAC, M.SET_LINK_INFO, peer_call_id=dialled.heard)["peer_call_id"] == 1
    assert {"set_link_info_from_pac": 1} == nat.counts
