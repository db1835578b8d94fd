"""How calls and connections end, and what is left of them: nothing, in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pptp_nat.core.book import Settings
from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.messages import pack
from pptp_nat.core.states import CallState, End

from .conversation import Control, Dialled
from .hosts import ALICE, BOB, EXTERNAL, PAC
from .ladder import Ladder, MakeLadder


@pytest.mark.parametrize("who", [ALICE, PAC], ids=["PNS", "PAC"])
def test_gre_after_stop_control_connection_reaches_nobody(nat: Ladder, who: object) -> None:
    """Stopping clears every call of the connection and of no other (case 43)."""
    calls = [nat.call(ALICE, call_id=n).to(PAC, answers=100 + n) for n in (1, 2)]
    bob = nat.call(BOB, call_id=1).to(PAC, answers=200)
    control = calls[0].control
    control.tell(ALICE if who is ALICE else PAC, M.STOP_CONTROL_CONNECTION_REQUEST, reason=1)

    assert [End.STOPPED] * 2 == [call.end for call in calls]
    assert all(call.is_silent for call in calls)
    assert bob.carries
    control.tell(PAC if who is ALICE else ALICE, M.STOP_CONTROL_CONNECTION_REPLY, result=1)
    assert 100 + 1 == calls[0].disconnect()  # late, and still translated
    assert 0 == nat.counted("unknown_call_id")


@pytest.mark.parametrize("how", [Control.fin, Control.rst], ids=["FIN", "RST"])
@pytest.mark.parametrize("who", [ALICE, PAC], ids=["PNS", "PAC"])
def test_gre_after_the_end_of_the_control_connection(
    nat: Ladder, how: Callable[[Control, object], None], who: object
) -> None:
    """Late packets have a few seconds, then nothing is carried any more (case 44)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    how(call.control, who)
    nat.wait(4.9)
    assert call.carries

    nat.wait(0.2)
    assert End.CLOSED is call.end
    assert call.is_silent
    assert {} == nat.translator.book.connections


def test_messages_after_fin_are_translated(nat: Ladder) -> None:
    """pptp-linux: Call-Clear-Request, FIN, and the request once more with FIN (case 9)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.clear()
    call.control.fin(ALICE)
    call.control.repeat(ALICE, flags=0x11)

    assert 100 == call.disconnect()
    assert End.DISCONNECTED is call.end


@pytest.mark.parametrize("flags", [0x11, 0x04, 0x14], ids=["FIN", "RST", "RST ACK"])
@pytest.mark.parametrize("off", [-200_000, 200_000, 1 << 31])
def test_a_forged_end_far_from_the_expected_octet_ends_nothing(
    nat: Ladder, flags: int, off: int
) -> None:
    """Anybody can send a FIN or RST; only who sees the traffic knows the number."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.control.segment(ALICE, call.control.written_by(ALICE) + off, flags=flags, arrives=False)
    assert 1 == nat.counted("end_out_of_window")

    nat.wait(60)
    assert CallState.UP is call.state
    assert call.carries


def test_a_late_gre_packet_does_not_reach_the_next_owner(ladder: MakeLadder) -> None:
    """While late packets are to be expected, a number is nobody's (case 25)."""
    nat = ladder(draw=lambda: 0x4242)
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    assert 0x4242 == first.heard[PAC]
    first.disconnect()
    second = nat.call(BOB, call_id=1).to(PAC, answers=101)

    assert nat.gre(PAC, key=0x4242).is_lost
    assert 0x4242 != second.heard[PAC]
    nat.wait(59)
    assert 0x4242 != nat.call(BOB, call_id=2).to(PAC, answers=102).heard[PAC]
    nat.wait(2)
    third = nat.call(BOB, call_id=3).to(PAC, answers=103)
    assert 0x4242 == third.heard[PAC]
    assert third.carries


def test_the_server_gives_its_number_again_at_once(nat: Ladder) -> None:
    """It is free to: its quarantine is not ours (case 48)."""
    nat.call(ALICE, call_id=1).to(PAC, answers=100).disconnect()
    bob = nat.call(BOB, call_id=1).to(PAC, answers=100)
    again = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert bob.carries
    assert again.carries


def test_a_rebooted_client_dials_while_its_old_call_is_up(nat: Ladder) -> None:
    """The server may give the new call the number of the old one (case 48)."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    control = nat.connect(ALICE, PAC).start()
    new = control.ask(ALICE, 1).answer(100)
    assert new.carries

    old.control.rst(PAC)
    nat.wait(10)
    assert End.CLOSED is old.end
    assert new.carries


def test_the_server_gives_a_number_again_on_the_same_connection(nat: Ladder) -> None:
    """Then it has forgotten the call that had it, and so do we (case 48)."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2).to(PAC, answers=100)

    assert End.REPLACED is first.end
    assert second.carries
    assert 100 == second.disconnect()


def test_a_hundred_rapid_reconnects_leave_nothing(nat: Ladder) -> None:
    """A client that cannot log in tries for ever (case 47)."""
    for attempt in range(100):
        call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
        assert call.carries
        if attempt % 3:
            call.disconnect()
        if attempt % 2:
            call.control.fin(ALICE)
        call.control.rst(PAC)
        nat.wait(0.1)
    nat.wait(200)

    assert 0 == nat.live
    assert {} == nat.translator.book.connections
    assert {} == nat.translator.book.bindings.used()
    assert {} == nat.legs.carried


def test_a_hundred_calls_on_one_connection_leave_nothing(nat: Ladder) -> None:
    """The same by a client that keeps its control connection (case 47)."""
    control = nat.connect(ALICE, PAC).start()
    for _ in range(100):
        control.ask(ALICE, 1).answer(100).clear().disconnect()
    assert 1 == len(nat.translator.book.connections)
    nat.wait(61)

    assert {} == nat.translator.book.bindings.used()
    assert [] == list(nat.translator.book.connections[control_key(nat)].calls)


def control_key(nat: Ladder) -> bytes:
    (key,) = nat.translator.book.connections
    return key


@pytest.mark.parametrize("half", [0, 1], ids=["towards the client", "towards the server"])
def test_a_call_with_gre_one_way_only_lives(ladder: MakeLadder, half: int) -> None:
    """The data path counts both ways together, however long one is silent (case 56)."""
    nat = ladder(Settings(gre_idle=100.0))
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    assert call.record is not None
    for minute in range(1, 10):
        nat.wait(61)
        nat.translator.heard(call.record, minute, nat.now)
        assert call.carries_to((ALICE, PAC)[half])
        assert CallState.UP is call.state

    nat.wait(161)
    assert End.IDLE is call.end


def _refuse(nat: Ladder) -> Dialled:
    return nat.connect(ALICE, PAC).start().ask(ALICE, 1).answer(0, result=4)


def _leave_unanswered(nat: Ladder) -> Dialled:
    call = nat.connect(ALICE, PAC).start().ask(ALICE, 1)
    nat.wait(179)
    assert CallState.REQUESTED is call.state
    nat.wait(2)
    return call


def _disconnect(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.disconnect()
    return call


def _clear(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100).clear()
    nat.wait(29)
    assert CallState.CLEARING is call.state
    nat.wait(2)
    return call


def _stop(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.control.tell(PAC, M.STOP_CONTROL_CONNECTION_REQUEST, reason=3)
    return call


def _lose_the_entry(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.carry_out(nat.translator.connection_lost(call.control.flow.reversed(), nat.now))
    assert CallState.UP is call.state
    nat.wait(6)
    return call


def _dial_from_the_same_port(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    port = call.control.flow.source_port
    nat.connect(ALICE, PAC, port=port, starts=(77_000_001, 88_000_001)).start()
    return call


def _say_nothing_for_hours(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.wait(6 * 3600 + 61)
    return call


def _have_the_operator_clear_it(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    assert call.record is not None
    nat.carry_out(nat.translator.clear([call.record], nat.now))
    again = call.control.ask(ALICE, 2).answer(101)  # the control connection is there yet
    assert again.carries
    return call


def _lose_the_address(nat: Ladder) -> Dialled:
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.carry_out(nat.translator.address_gone(PAC.address, nat.now))
    assert CallState.UP is call.state  # that is nobody's external address
    nat.carry_out(nat.translator.address_gone(EXTERNAL, nat.now))
    return call


ENDINGS: dict[End, Callable[[Ladder], Dialled]] = {
    End.REFUSED: _refuse,
    End.DISCONNECTED: _disconnect,
    End.CLEARED: _clear,
    End.STOPPED: _stop,
    End.CLOSED: _lose_the_entry,
    End.REPLACED: _dial_from_the_same_port,
    End.UNANSWERED: _leave_unanswered,
    End.IDLE: _say_nothing_for_hours,
    End.OPERATOR: _have_the_operator_clear_it,
    End.ADDRESS: _lose_the_address,
}


@pytest.mark.parametrize("end", End, ids=lambda end: end.name)
def test_a_call_that_ends_is_carried_no_longer(nat: Ladder, end: End) -> None:
    """Whatever ended it: its GRE is not carried, its reason is known, its number is kept back."""
    call = ENDINGS[end](nat)

    assert end is call.end
    assert CallState.GONE is call.state
    assert call.is_silent
    assert 1 == nat.translator.book.ends[end]
    numbers = [number for _, _, number in nat.translator.book.bindings.quarantined()]
    assert call.heard[PAC] in numbers


def test_an_unfinished_request_leaves_nothing(nat: Ladder) -> None:
    """A number was chosen for it, and the connection ends before its last octet (case 44)."""
    control = nat.connect(ALICE, PAC).start()
    control.say(ALICE, pack(M.OUTGOING_CALL_REQUEST, call_id=1)[:100])
    assert 0 == nat.live
    control.rst(ALICE)
    nat.wait(70)

    assert {} == nat.translator.book.bindings.used()
