"""What ends calls and connections besides the messages of a call: TCP, time, the operator."""

from __future__ import annotations

import pytest

from pptp_nat.core.book import Settings
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.states import CallState, ControlState, End

from .ladder import ALICE, BOB, PAC, Ladder, assert_nothing_left

M = MessageType


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


def test_a_late_syn_of_the_connection_itself_ends_nothing(nat: Ladder) -> None:
    """Case 46.  The network may deliver it twice; what was sent is sent again as it was."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.segment(ALICE, -1, b"", flags=0x02)
    dialled.tcp.again(ALICE, 0)

    assert CallState.UP is dialled.state
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)


def test_a_hundred_calls_on_one_connection_leave_nothing(nat: Ladder) -> None:
    """Case 47.  A client that cannot log in tries for ever, and may keep its connection."""
    tcp = nat.connect(ALICE, PAC)
    for _ in range(100):
        nat.call(ALICE, call_id=1, over=tcp).to(PAC, answers=100)
        tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
        tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    nat.wait(61)

    assert ControlState.OPEN is tcp.state
    assert [] == list(tcp.followed.calls)
    assert_nothing_left(nat)


def test_an_unfinished_request_leaves_nothing(nat: Ladder) -> None:
    """Case 44.  A number was chosen for it, and the connection ends before its last octet."""
    other = nat.call(BOB, call_id=1).to(PAC, answers=100)
    tcp = nat.connect(ALICE, PAC)
    tcp.send(ALICE, pack(M.OUTGOING_CALL_REQUEST, call_id=1)[:100])
    tcp.reset(ALICE)
    nat.wait(70)

    assert [other.known] == nat.calls
    assert [1] == list(nat.translator.book.bindings.used().values())


@pytest.mark.parametrize("result", [2, 3, 4, 5])
def test_a_control_connection_is_refused(nat: Ladder, result: int) -> None:
    """No call can follow; the connection is forgotten when it closes."""
    tcp = nat.open(ALICE, PAC)
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=result)
    assert ControlState.OPENING is tcp.state

    tcp.finish(PAC)
    nat.wait(6)
    assert tcp.state is None


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
    assert dialled.tcp.followed.streams[1].history
    nat.wait(200)

    assert not any(stream.history for stream in dialled.tcp.followed.streams)
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
