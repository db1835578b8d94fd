"""What hosts say about calls: answers, refusals and notices, and which call they mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.states import CallState, End

from .hosts import ALICE, BOB, PAC, PUBLISHED
from .ladder import Ladder, MakeLadder

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
    call.answer(100)
    control.tell(ALICE, M.OUTGOING_CALL_REPLY, call_id=9, peer_call_id=100, result=1)
    assert 2 == nat.counted("unknown_peer_call_id")
    assert call.carries


def test_a_request_comes_twice(nat: Ladder) -> None:
    """As a message of its own, not as TCP's retransmission: one call all the same (case 8)."""
    control = nat.connect(ALICE, PAC).start()
    call = control.ask(ALICE, 1)
    again = control.tell(ALICE, M.OUTGOING_CALL_REQUEST, call_id=1)
    assert call.heard[PAC] == again["call_id"]

    call.answer(100)
    assert 1 == nat.live
    assert call.heard[PAC] == control.tell(ALICE, M.OUTGOING_CALL_REQUEST, call_id=1)["call_id"]
    assert call.carries
    assert 0 == nat.counted("unexpected_message")


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


def test_a_quirk_about_a_live_call_goes_before_a_call_that_is_gone(ladder: MakeLadder) -> None:
    """A number that was the PAC's own may be what a live call of the PNS's is known by (30)."""
    nat = ladder(draw=lambda: 0x4242)
    gone = nat.call(ALICE, call_id=1).to(PAC, answers=0x4243)
    gone.disconnect()
    live = nat.call(ALICE, call_id=2).to(PAC, answers=100)
    assert 0x4243 == live.heard[PAC]

    assert 2 == live.disconnect(number=0x4243)
    assert End.DISCONNECTED is live.end


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
