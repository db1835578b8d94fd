"""From the first message of a call to its last, and what ends it besides messages."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from pptp_nat.core.book import Settings
from pptp_nat.core.events import CallChanged, ConnectionChanged, Verdict
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.errors import AdapterError
from tests.core.wire import ACK, PSH

from .ladder import ALICE, BOB, HOME_PAC, PAC, TRAVELLER, Dialled, Ladder

M = MessageType


def states_of(nat: Ladder, dialled: Dialled) -> list[CallState]:
    """Return the states that a call has left, in order."""
    return [e.was for e in nat.events if isinstance(e, CallChanged) and e.call is dialled.known]


def assert_nothing_left(nat: Ladder) -> None:
    """Nothing of any call is kept."""
    assert {} == nat.legs.carried
    assert {} == nat.translator.book.bindings.used()
    assert [] == list(nat.translator.book.retired)
    assert not any(nat.translator.book.deadlines.values())


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


@pytest.mark.parametrize("stops", [ALICE, PAC])
def test_stopping_the_connection_ends_all_its_calls(nat: Ladder, stops: object) -> None:
    """Case 43.  GRE that comes after that is nobody's."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2, over=first.tcp).to(PAC, answers=101)
    other = nat.call(BOB, call_id=1).to(PAC, answers=102)

    first.tcp.say(stops, M.STOP_CONTROL_CONNECTION_REQUEST, reason=1)

    assert [CallState.GONE] * 2 == [first.state, second.state]
    assert [End.STOPPED] * 2 == nat.ends
    assert ControlState.STOPPING is first.tcp.state
    assert nat.gre(PAC, key=first.heard).is_stray
    assert CallState.UP is other.state
    first.tcp.say(PAC, M.STOP_CONTROL_CONNECTION_REPLY, result=1)
    first.tcp.finish(ALICE)
    nat.wait(10)
    assert first.tcp.state is None


@pytest.mark.parametrize("closer", [ALICE, PAC])
@pytest.mark.parametrize("reset", [False, True])
def test_a_closed_connection_lives_on_for_a_grace_period(
    nat: Ladder, closer: object, *, reset: bool
) -> None:
    """Case 44.  The last messages and GRE may be on their way still."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    tcp = dialled.tcp
    tcp.reset(closer) if reset else tcp.finish(closer)

    assert ControlState.CLOSING is tcp.state
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)
    other = PAC if closer is ALICE else ALICE
    if other is PAC:
        assert tcp.say(PAC, M.SET_LINK_INFO, peer_call_id=dialled.heard)["peer_call_id"] == 1
    nat.wait(4.9)
    assert CallState.UP is dialled.state
    nat.wait(0.2)
    assert tcp.state is None
    assert [End.CLOSED] == nat.ends
    assert nat.gre(PAC, key=dialled.heard).is_stray
    nat.wait(60)
    assert_nothing_left(nat)


@pytest.mark.parametrize("offset", [-70_000, 70_000, 0x40000000])
@pytest.mark.parametrize("flags", [0x04, 0x01, 0x15])
def test_an_end_from_far_away_is_not_believed(nat: Ladder, offset: int, flags: int) -> None:
    """Anybody can send a FIN or RST with the right addresses (RFC 5961)."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.segment(PAC, 188 + offset, b"", flags=flags)
    nat.wait(10)

    assert CallState.UP is dialled.state
    assert {"end_out_of_window": 1} == nat.counts


def test_a_new_connection_of_the_same_name_ends_the_old_one(nat: Ladder) -> None:
    """Case 46.  A client that came up again uses its port and its number again."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    tcp = nat.open(ALICE, PAC, source_port=old.tcp.ports[0], starts=(500_000_000, 7))
    assert CallState.UP is old.state
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    new = nat.call(ALICE, call_id=1, over=tcp).to(PAC, answers=100)

    assert [End.REPLACED] == nat.ends
    assert old.heard != new.heard
    assert nat.gre(PAC, key=new.heard).reaches(ALICE, key=1)
    assert nat.gre(ALICE, key=100, to=PAC).reaches(PAC, key=100)
    assert {} == nat.counts


@pytest.mark.parametrize("sequence", [-1, 400_000_000])
@pytest.mark.parametrize("forger", [ALICE, PAC])
def test_a_lone_syn_ends_nothing(nat: Ladder, forger: object, sequence: int) -> None:
    """Case 46.  It may be late, or a forgery: one packet with the right addresses."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.segment(forger, sequence, b"", flags=0x02)

    assert dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)["call_id"] == dialled.heard
    assert dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    assert [End.DISCONNECTED] == nat.ends
    assert {} == nat.counts
    assert unpack(dialled.tcp.again(ALICE, 156, 324))[1]["call_id"] == dialled.heard


def test_a_hundred_reconnects_leave_nothing(nat: Ladder) -> None:
    """Case 47.  Rapid reconnects, no two of them ended the same way."""
    for number in range(100):
        dialled = nat.call(ALICE, call_id=number % 3).to(PAC, answers=number % 5)
        tcp = dialled.tcp
        ending = number % 4
        if ending == 0:
            tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=number % 3)
        elif ending == 1:
            tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=number % 5)
        elif ending == 2:
            tcp.say(ALICE, M.STOP_CONTROL_CONNECTION_REQUEST)
        tcp.finish(ALICE)
        tcp.finish(PAC)
        nat.wait(0.1)
    nat.wait(5 + 60)

    assert_nothing_left(nat)
    assert [] == nat.calls
    assert {} == nat.translator.book.connections
    assert sum(nat.translator.book.ends.values()) == 100


@pytest.mark.parametrize(("incoming", "answered"), [(False, False), (True, False), (True, True)])
def test_a_request_without_an_answer_is_forgotten(
    nat: Ladder, *, incoming: bool, answered: bool
) -> None:
    """Answered is not yet connected: the PAC may never say Incoming-Call-Connected."""
    tcp = nat.connect(PAC, ALICE)
    if incoming:
        dialled = nat.ring(PAC, call_id=7, over=tcp).to(ALICE)
        if answered:
            tcp.say(ALICE, M.INCOMING_CALL_REPLY, call_id=1, peer_call_id=dialled.heard, result=1)
            assert CallState.ANSWERED is dialled.state
    else:
        dialled = nat.call(ALICE, call_id=7, over=tcp).to(PAC)
    nat.wait(179)
    assert dialled.state in (CallState.REQUESTED, CallState.ANSWERED)
    nat.wait(2)

    assert [End.UNANSWERED] == nat.ends
    nat.wait(60)
    assert_nothing_left(nat)


def test_an_answer_starts_the_time_anew(nat: Ladder) -> None:
    """Each step of an incoming call has its own time."""
    tcp = nat.connect(PAC, ALICE)
    dialled = nat.ring(PAC, call_id=7, over=tcp).to(ALICE)
    nat.wait(100)
    tcp.say(ALICE, M.INCOMING_CALL_REPLY, call_id=1, peer_call_id=dialled.heard, result=1)
    nat.wait(100)
    assert CallState.ANSWERED is dialled.state
    nat.wait(81)
    assert [End.UNANSWERED] == nat.ends


def test_a_clear_request_is_believed_after_a_while(nat: Ladder) -> None:
    """A server like pptpd never sends Call-Disconnect-Notify for it."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    nat.wait(29)
    assert CallState.CLEARING is dialled.state
    nat.wait(2)

    assert [End.CLEARED] == nat.ends


def test_a_call_that_no_gre_goes_through_ends(nat: Ladder) -> None:
    """Case 56.  Idle means no GRE in both directions for six hours, not in one."""
    quiet = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    busy = nat.call(BOB, call_id=1).to(PAC, answers=101)
    for hour in range(6):
        nat.translator.heard(busy.known, hour + 1, nat.now)
        nat.wait(3600)
    nat.wait(61)

    assert CallState.GONE is quiet.state
    assert CallState.UP is busy.state
    assert [End.IDLE] == nat.ends
    nat.translator.heard(busy.known, 6, nat.now)  # no packet more than before
    nat.wait(6 * 3600)
    assert [End.IDLE] * 2 == nat.ends


def test_calls_may_be_idle_for_ever() -> None:
    """An operator may want that too."""
    nat = Ladder(Settings(gre_idle=0))
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.wait(7 * 24 * 3600)

    assert CallState.UP is dialled.state


def test_a_silent_connection_without_calls_is_forgotten(nat: Ladder) -> None:
    """Its peers may be gone without a word; one with a call lives as long as the call."""
    silent = nat.connect(ALICE, PAC)
    dialled = nat.call(BOB, call_id=1).to(PAC, answers=100)
    nat.wait(7200 + 130)

    assert silent.state is None
    assert ControlState.OPEN is dialled.tcp.state
    heard = silent.say(ALICE, M.ECHO_REQUEST, identifier=5)  # and found again when it speaks
    assert heard["identifier"] == 5
    assert ControlState.OPEN is silent.state


def test_the_octets_of_a_quiet_connection_are_let_go(nat: Ladder) -> None:
    """100,000 idle connections need not remember what nobody will send again."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    streams = dialled.tcp.followed.streams
    assert all(stream.history for stream in streams[1:])
    nat.wait(200)

    assert not any(stream.history for stream in streams)
    assert unpack(dialled.tcp.again(ALICE, 156))[1]["call_id"] == dialled.heard


def test_the_operator_ends_a_call(nat: Ladder) -> None:
    """Its control connection stays, and may dial again."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    other = nat.call(ALICE, call_id=2, over=dialled.tcp).to(PAC, answers=101)
    nat._take(nat.translator.clear([dialled.known], nat.now))

    assert [End.OPERATOR] == nat.ends
    assert nat.gre(PAC, key=dialled.heard).is_stray
    assert CallState.UP is other.state
    nat._take(nat.translator.clear([dialled.known], nat.now))  # twice does no harm
    again = nat.call(ALICE, call_id=1, over=dialled.tcp).to(PAC, answers=100)
    assert CallState.UP is again.state
    assert again.heard != dialled.heard


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
