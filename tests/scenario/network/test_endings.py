"""How calls and connections end, and what is left of them: nothing, in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pptp_nat.core.book import Settings
from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.messages import pack
from pptp_nat.core.states import CallState, End

from .ladder import ALICE, BOB, EXTERNAL, PAC, PUBLISHED, Control, Dialled, Ladder, MakeLadder

REFUSALS = range(2, 8)


def swapped(number: int) -> int:
    return int.from_bytes(number.to_bytes(2, "big"), "little")


@pytest.mark.parametrize("result", REFUSALS)
def test_a_refusing_reply_leaves_no_call(nat: Ladder, result: int) -> None:
    """The client recognises its call in the refusal, and nothing is kept of it (case 26)."""
    control = nat.connect(ALICE, PAC).start()
    call = control.ask(ALICE, 1)
    assert call.carries_to(ALICE)

    call.answer(0, result=result)
    assert CallState.GONE is call.state
    assert End.REFUSED is call.end
    assert call.record is not None
    assert (int(M.OUTGOING_CALL_REPLY), result, 0, 0) == call.record.codes
    assert call.is_silent
    assert 0 == nat.live


@pytest.mark.parametrize("result", [2, 3])
def test_a_refused_incoming_call_leaves_none(nat: Ladder, result: int) -> None:
    """The number that the refusing client gave is not carried either (cases 26, 39)."""
    control = nat.connect(ALICE, PAC).start()
    call = control.ask(PAC, 7, incoming=True).answer(1, result=result)

    assert End.REFUSED is call.end
    assert call.is_silent


def test_a_reply_comes_twice(nat: Ladder) -> None:
    """Twice the same translation, and nothing else happens (case 27)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    before, carried = len(nat.events), dict(nat.legs.carried)
    call.answer(100)

    assert before == len(nat.events)
    assert carried == nat.legs.carried
    assert call.carries


def test_a_reply_for_a_number_that_no_call_has(nat: Ladder) -> None:
    """It passes as it is, and its sender's number is no call's (case 28)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    unknown = call.heard[PAC] ^ 0x0101
    heard = call.control.tell(
        PAC, M.OUTGOING_CALL_REPLY, call_id=101, peer_call_id=unknown, result=1
    )

    assert (101, unknown) == (heard["call_id"], heard["peer_call_id"])
    assert 1 == nat.counted("unknown_peer_call_id")
    assert nat.gre(ALICE, to=PAC, key=101).is_lost
    assert call.carries


def test_a_published_pacs_reply_for_no_call_takes_no_number(nat: Ladder) -> None:
    """A number was chosen for the reply before it was known to answer nothing (case 28)."""
    call = nat.call(PAC, call_id=1).to(PUBLISHED, answers=7)
    used = nat.translator.book.bindings.used()
    call.control.tell(PUBLISHED, M.OUTGOING_CALL_REPLY, call_id=9, peer_call_id=77, result=1)

    assert used == nat.translator.book.bindings.used()
    assert call.carries


def test_a_reply_to_the_wrong_party_answers_nothing(nat: Ladder) -> None:
    """A call's own asker cannot answer it (case 28)."""
    control = nat.connect(ALICE, PAC).start()
    call = control.ask(ALICE, 1)
    control.tell(ALICE, M.OUTGOING_CALL_REPLY, call_id=1, peer_call_id=1, result=1)

    assert CallState.REQUESTED is call.state
    assert 1 == nat.counted("unknown_peer_call_id")


def test_disconnect_notify_with_the_pacs_number(nat: Ladder) -> None:
    """As the RFC has it: the number is the PAC's own and stays (case 29)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    other = nat.call(BOB, call_id=1).to(PAC, answers=101)

    assert 100 == call.disconnect()
    assert End.DISCONNECTED is call.end
    assert call.is_silent
    assert other.carries


@pytest.mark.parametrize(
    ("written", "slug"),
    [(lambda n: n, "disconnect_notify_with_pns_number"),
     (swapped, "disconnect_notify_with_swapped_pns_number")],
    ids=["in order", "swapped"],
)  # fmt: skip
def test_disconnect_notify_with_the_pns_number(
    nat: Ladder, written: Callable[[int], int], slug: str
) -> None:
    """accel-ppp: the client must read its own number, written the same way (case 30)."""
    call = nat.call(ALICE, call_id=0x0201).to(PAC, answers=100)
    assert swapped(call.heard[PAC]) != call.heard[PAC]

    assert written(0x0201) == call.disconnect(number=written(call.heard[PAC]))
    assert 1 == nat.counted(slug)
    assert End.DISCONNECTED is call.end
    assert call.is_silent


def test_a_pacs_number_that_looks_like_a_quirk_is_the_pacs(ladder: MakeLadder) -> None:
    """Where the PAC has a call of that number itself, the RFC's reading wins (cases 29, 30)."""
    nat = ladder(draw=lambda: 0x4242)
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2).to(PAC, answers=first.heard[PAC])

    assert 0x4242 == second.disconnect()
    assert second.is_silent
    assert first.carries


def test_clear_request_for_one_of_two_calls(nat: Ladder) -> None:
    """The other call goes on (case 33)."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2).to(PAC, answers=101)

    first.clear()
    assert CallState.CLEARING is first.state
    assert CallState.UP is second.state
    assert first.carries  # GRE may straggle until the PAC says that it is over
    first.disconnect()
    assert first.is_silent
    assert second.carries


def test_clear_request_with_a_number_that_no_call_has(nat: Ladder) -> None:
    """It passes, and the one call there is does not end for it (case 34)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert 77 == call.control.tell(ALICE, M.CALL_CLEAR_REQUEST, call_id=77)["call_id"]
    assert 1 == nat.counted("unknown_call_id")
    assert CallState.UP is call.state
    assert call.carries


def test_disconnect_notify_with_a_number_that_no_call_has(nat: Ladder) -> None:
    """The same the other way (case 34)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert 7777 == call.disconnect(number=7777)
    assert 1 == nat.counted("unknown_call_id")
    assert call.carries


@pytest.mark.parametrize("result", [1, 2])
def test_clear_request_before_the_reply(nat: Ladder, result: int) -> None:
    """A user changes his mind; the reply that crosses it is still understood (case 35)."""
    control = nat.connect(ALICE, PAC).start()
    call = control.ask(ALICE, 1).clear()
    assert CallState.CLEARING is call.state

    call.answer(100, result=result)
    assert (CallState.CLEARING if result == 1 else CallState.GONE) is call.state
    call.disconnect()
    assert call.is_silent
    assert 0 == nat.live


def test_a_request_with_the_number_of_a_call_that_is_being_cleared(nat: Ladder) -> None:
    """A client that does not wait for the notification begins a new call (case 35)."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    first.clear()
    second = first.control.ask(ALICE, 1).answer(101)

    assert End.CLEARED is first.end
    assert first.record is not second.record
    assert first.heard[PAC] != second.heard[PAC]
    assert second.carries
    assert nat.gre(PAC, key=first.heard[PAC]).is_lost


def test_wan_error_notify_reaches_its_call(nat: Ladder) -> None:
    """The number is the client's again, and the counters are as they came (case 38)."""
    calls = [nat.call(host, call_id=1).to(PAC, answers=n) for n, host in ((1, ALICE), (2, BOB))]
    for call in calls:
        call.about(PAC, M.WAN_ERROR_NOTIFY, crc_errors=3, time_outs=0x01020304)

    assert all(CallState.UP is call.state for call in calls)
    assert 0 == nat.counted("unknown_peer_call_id")


def test_set_link_info_from_either_party(nat: Ladder) -> None:
    """A PAC should not send it; the number is the receiver's all the same."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.about(ALICE, M.SET_LINK_INFO, send_accm=0xFFFFFFFF)
    assert 0 == nat.counted("set_link_info_from_pac")

    call.about(PAC, M.SET_LINK_INFO, send_accm=0xFFFFFFFF)
    assert 1 == nat.counted("set_link_info_from_pac")
    assert call.carries


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
