"""Defects seen in published PPTP code, none of which is ours.

`tests/core/test_messages.py` has those about single messages.
"""

from __future__ import annotations

import pytest

from pptp_nat.core.messages import HEADER, MAGIC, MessageType, pack, unpack
from pptp_nat.core.states import CallState

from .ladder import ALICE, DRAWN, PAC, Ladder

M = MessageType


def test_two_calls_in_one_control_connection(nat: Ladder) -> None:
    """Case 20.  Linux: the number is the TCP source port, so there is one per connection."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2, over=first.tcp).to(PAC, answers=101)

    assert first.heard != second.heard
    assert nat.gre(PAC, key=first.heard).reaches(ALICE, key=1)
    assert nat.gre(PAC, key=second.heard).reaches(ALICE, key=2)
    assert nat.gre(ALICE, key=101, to=PAC).reaches(PAC, key=101)


def test_disconnect_notify_keeps_the_pacs_number(nat: Ladder) -> None:
    """Case 29.  Linux overwrites it with the PNS's number."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=4)["call_id"] == 100
    assert dialled.state is CallState.GONE
    assert {} == nat.counts


def test_clear_ends_only_the_named_call(nat: Ladder) -> None:
    """Case 33.  Linux means to iterate over all calls some day."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2, over=first.tcp).to(PAC, answers=101)

    assert first.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=2)["call_id"] == second.heard
    assert (CallState.UP, CallState.CLEARING) == (first.state, second.state)


@pytest.mark.parametrize("cut", range(1, 168))
def test_field_split_between_segments(nat: Ladder, cut: int) -> None:
    """Cases 1 and 3.  FreeBSD: "control messages must fit entirely into a single TCP packet"."""
    tcp = nat.connect(ALICE, PAC)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=0x1234, phone=b"123")

    arrived = tcp.send(ALICE, request, cut)

    seen = nat.calls[0].seen[0]
    assert request[:12] + seen.to_bytes(2, "big") + request[14:] == arrived


def test_two_messages_in_one_segment(nat: Ladder) -> None:
    """Case 5.  FreeBSD looks at one per segment; accel-ppp leaves the second for later."""
    dialled = nat.call(ALICE, call_id=1).to(PAC)
    both = (
        pack(M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=dialled.heard, result=1)
        + pack(M.SET_LINK_INFO, peer_call_id=dialled.heard)
    )  # fmt: skip

    arrived = dialled.tcp.send(PAC, both)

    assert unpack(arrived[:32])[1]["peer_call_id"] == 1
    assert unpack(arrived[32:])[1]["peer_call_id"] == 1
    assert dialled.state is CallState.UP


def test_retransmission_is_rewritten_identically(nat: Ladder) -> None:
    """Case 8.  NPF gives a retransmitted request a new number, and a reply none."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.drawn = [0x7777]

    request = dialled.tcp.again(ALICE, 156, 324)
    reply = dialled.tcp.again(PAC, 156, 188)

    assert dialled.heard == unpack(request)[1]["call_id"]
    assert unpack(reply)[1]["peer_call_id"] == 1
    assert [dialled.known] == nat.calls


@pytest.mark.parametrize("length", [0, 1, 11])
def test_length_below_header(nat: Ladder, length: int) -> None:
    """Case 57.  accel-ppp took such lengths; a reader that trusts 0 goes round in circles."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    bad = HEADER.pack(length, 1, MAGIC, 12, 0) + b"\0\1\0\0"

    assert bad == dialled.tcp.send(ALICE, bad)
    assert {"length_below_header": 1} == nat.counts
    assert dialled.state is CallState.UP
    heard = dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    assert heard["call_id"] == dialled.heard


def test_quirk_disconnect_notify_with_pns_number(nat: Ladder) -> None:
    """Case 30.  accel-ppp puts the PNS's number there; the PNS must find its own."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    heard = dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=dialled.heard, result=4)

    assert heard["call_id"] == 1
    assert dialled.state is CallState.GONE
    assert {"disconnect_notify_with_pns_number": 1} == nat.counts


def test_quirk_disconnect_notify_with_swapped_pns_number(nat: Ladder) -> None:
    """Case 30.  accel-ppp before d76b2f6 swaps its octets as well."""
    dialled = nat.call(ALICE, call_id=0x0102).to(PAC, answers=100)
    swapped = (dialled.heard & 0xFF) << 8 | dialled.heard >> 8

    heard = dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=swapped, result=4)

    assert heard["call_id"] == 0x0201
    assert dialled.state is CallState.GONE
    assert {"disconnect_notify_with_swapped_pns_number": 1} == nat.counts


def test_a_pacs_number_that_looks_like_a_quirk_is_the_pacs(nat: Ladder) -> None:
    """Cases 29 and 30.  Where the PAC has a call of that number itself, the RFC's reading wins."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2, over=first.tcp).to(PAC, answers=first.heard)

    heard = first.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=first.heard)

    assert heard["call_id"] == first.heard
    assert (CallState.UP, CallState.GONE) == (first.state, second.state)


def test_a_quirk_about_a_live_call_goes_before_a_call_that_is_gone(nat: Ladder) -> None:
    """Case 30.  What was the PAC's own number may be what a live call of the PNS is known by."""
    gone = nat.call(ALICE, call_id=1).to(PAC, answers=DRAWN + 1)
    gone.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=DRAWN + 1)
    live = nat.call(ALICE, call_id=2, over=gone.tcp).to(PAC, answers=100)
    assert live.heard == DRAWN + 1

    assert live.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=live.heard)["call_id"] == 2
    assert CallState.GONE is live.state
