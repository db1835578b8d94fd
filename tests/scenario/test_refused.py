"""Calls for which there is no room: both ends hear it in words, and nothing else waits for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.book import Settings
from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.refused import MOST
from pptp_nat.core.states import CallState, End

from .ladder import ALICE, BOB, HOME_PAC, PAC, ROUTER, TRAVELLER, Ladder, Tcp, assert_nothing_left

M = MessageType
NO = {"result": 2, "error": 4}  # General Error, No-Resource


def full(**settings: int) -> tuple[Ladder, Tcp]:
    """Return a router that has no room for another call, and a connection that asks for one."""
    nat = Ladder(Settings(calls=1, **settings))
    nat.call(ALICE, call_id=1).to(PAC, answers=100)
    return nat, nat.connect(BOB, PAC)


def codes(fields: dict[str, int | bytes]) -> dict[str, int | bytes]:
    return {name: fields[name] for name in ("result", "error")}


def test_the_caller_hears_that_there_is_no_resource() -> None:
    nat, tcp = full()
    asked = tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=7, serial=3)
    told = tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=101, peer_call_id=0, result=1, speed=64)

    assert (asked["call_id"], asked["serial"]) == (0, 3)
    assert (told["peer_call_id"], told["call_id"], told["speed"]) == (7, 101, 64)
    assert codes(told) == NO
    assert 1 == len(nat.calls)
    assert ["calls_limit"] == nat.refusals
    assert nat.gre(PAC, key=0).is_stray
    assert nat.gre(BOB, key=101, to=PAC).is_stray


def test_echoes_behind_a_refused_request_are_answered() -> None:
    """What lives on the same connection must not notice."""
    nat = Ladder(Settings(calls_per_connection=1))
    living = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.call(ALICE, call_id=2, over=living.tcp).to(PAC)

    assert living.tcp.say(ALICE, M.ECHO_REQUEST, identifier=9)["identifier"] == 9
    assert living.tcp.say(PAC, M.ECHO_REPLY, identifier=9)["identifier"] == 9
    assert CallState.UP is living.state
    assert nat.gre(PAC, key=living.heard).reaches(ALICE, key=1)


def test_a_server_that_refuses_is_believed() -> None:
    """Its own words are better than ours."""
    _, tcp = full()
    tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=7)
    told = tcp.say(PAC, M.OUTGOING_CALL_REPLY, peer_call_id=0, result=4, error=0)

    assert told["peer_call_id"] == 7
    assert codes(told) == {"result": 4, "error": 0}


def test_replies_to_several_refused_requests_come_in_their_order() -> None:
    nat, tcp = full()
    for number in (7, 8, 9):
        tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=number)

    told = [
        tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=200 + n, peer_call_id=0, result=1)
        for n in range(3)
    ]
    assert [7, 8, 9] == [fields["peer_call_id"] for fields in told]
    assert [NO] * 3 == [codes(fields) for fields in told]
    late = tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=204, peer_call_id=0, result=1)
    assert codes(late) == {"result": 1, "error": 0}  # nobody has asked for that one
    assert {"refused_calls_limit": 3, "unknown_peer_call_id": 1} == nat.counts


def test_what_the_server_says_of_a_refused_call_reaches_nobodys_call() -> None:
    """It believes in the call until it has tried in vain."""
    nat, tcp = full()
    tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=1)
    tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=101, peer_call_id=0, result=1)
    tcp.say(PAC, M.SET_LINK_INFO, peer_call_id=0)
    over = tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=101, result=1)

    assert over["call_id"] == 101
    assert [CallState.UP] == [call.state for call in nat.calls]


def test_a_caller_that_will_not_wait_clears_what_the_server_knows() -> None:
    """Its number would mean nothing there, or another call."""
    _, tcp = full()
    tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=7)

    assert tcp.say(BOB, M.CALL_CLEAR_REQUEST, call_id=7)["call_id"] == 0


def test_a_caller_that_asks_again_is_served_when_there_is_room() -> None:
    nat, tcp = full()
    tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=7)
    tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=101, peer_call_id=0, result=1)
    nat._take(nat.translator.clear(nat.calls, nat.now))

    again = nat.call(BOB, call_id=7, over=tcp).to(PAC, answers=102)
    assert CallState.UP is again.state
    assert nat.gre(PAC, key=again.heard).reaches(BOB, key=7)
    tcp.reset(BOB)
    nat.wait(90)
    assert {} != nat.translator.book.connections


@pytest.mark.parametrize("agrees", [False, True])
def test_an_incoming_call_for_which_there_is_no_room(*, agrees: bool) -> None:
    """The PAC that rings is told; the PNS that agreed waits in vain."""
    nat, tcp = full()
    asked = tcp.say(PAC, M.INCOMING_CALL_REQUEST, call_id=33)
    told = tcp.say(
        BOB, M.INCOMING_CALL_REPLY, call_id=7, peer_call_id=33, result=1 if agrees else 3
    )

    assert asked["call_id"] == 33  # an outside number is nobody's to change
    assert (told["peer_call_id"], codes(told)["result"]) == (33, 2 if agrees else 3)
    assert 1 == len(nat.calls)


def test_a_reply_that_finds_no_number_refuses() -> None:
    """A PAC at home, and every number towards the traveller is taken."""
    nat = Ladder()
    for number in range(1, 0x10000):
        nat.translator.claim(nat.external, TRAVELLER.address, number)
    dialled = nat.call(TRAVELLER, call_id=5).to(HOME_PAC)
    told = dialled.tcp.say(
        HOME_PAC, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=5, result=1, cause=9
    )

    assert told["call_id"] == 0
    assert codes(told) == NO
    assert CallState.GONE is dialled.state
    assert [End.REFUSED] == nat.ends
    assert (M.OUTGOING_CALL_REPLY, 2, 4, 9) == dialled.known.codes
    assert ["call_ids_exhausted"] == nat.refusals


def test_plain_routing_is_never_refused() -> None:
    """Nothing of it is ours; beyond the limit it is not followed, that is all."""
    nat, _ = full()
    tcp = nat.connect(TRAVELLER, PAC)

    assert tcp.say(TRAVELLER, M.OUTGOING_CALL_REQUEST, call_id=7)["call_id"] == 7
    told = tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=9, peer_call_id=7, result=1)
    assert codes(told) == {"result": 1, "error": 0}
    assert [] == nat.refusals
    assert {"unfollowed_call": 1, "unknown_peer_call_id": 1} == nat.counts


def test_where_the_router_itself_uses_zero_the_request_is_dropped() -> None:
    """Its own call would hear the server's GRE of the refused one."""
    nat = Ladder(Settings(calls=1))
    own = nat.call(ROUTER, call_id=0).to(PAC, answers=100)
    tcp = nat.connect(BOB, PAC)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=7)
    nat.external = ROUTER.address

    assert Verdict.DROP is tcp.segment(BOB, 156, request).verdict
    own.tcp.reset(ROUTER)
    nat.wait(6)
    assert Verdict.ACCEPT is tcp.segment(BOB, 156, request).verdict


def test_so_many_refused_requests_wait_for_replies_and_no_more() -> None:
    """A flood of requests meets TCP's own patience."""
    nat, tcp = full()
    for number in range(MOST):
        assert tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=100 + number)
    assert {} == tcp.say(BOB, M.OUTGOING_CALL_REQUEST, call_id=99)
    assert tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=1, peer_call_id=0, result=1)
    assert tcp.again(BOB, 156 + MOST * 168)
    nat._take(nat.translator.clear(nat.calls, nat.now))
    tcp.reset(BOB)
    nat.wait(90)
    nat.dialled[ALICE].tcp.reset(ALICE)
    nat.wait(90)
    assert_nothing_left(nat)


TALK = [
    (BOB, pack(M.OUTGOING_CALL_REQUEST, call_id=0x0102)),
    (PAC, pack(M.OUTGOING_CALL_REPLY, call_id=0x0304, peer_call_id=0, result=1)),
    (BOB, pack(M.ECHO_REQUEST, identifier=1)),
]
HEARD = [
    pack(M.OUTGOING_CALL_REQUEST),
    pack(M.OUTGOING_CALL_REPLY, call_id=0x0304, peer_call_id=0x0102, **NO),
    pack(M.ECHO_REQUEST, identifier=1),
]


@pytest.mark.parametrize("cut", range(1, 32))
def test_a_refusal_is_the_same_wherever_a_message_is_cut(cut: int) -> None:
    """Octets 12 to 17 are what changes; a second copy with other cuts is no different."""
    nat, tcp = full()
    for (host, octets), heard in zip(TALK, HEARD, strict=True):
        offset = len(tcp.sent[tcp.party(host)])
        arrived = tcp.send(host, octets, min(cut, len(octets) - 1))
        held = b"".join(nat.held.values())  # until the second octet of a known number has come
        nat.held.clear()
        assert held + arrived == heard
        assert tcp.again(host, offset) == heard
        assert tcp.again(host, offset + 13) == heard[13:]
        assert tcp.again(host, offset, offset + 15) == heard[:15]


@given(st.lists(st.integers(1, 167), max_size=6, unique=True).map(sorted))
def test_a_refused_request_between_others_in_any_pieces(cuts: list[int]) -> None:
    _, tcp = full()
    octets = pack(M.ECHO_REQUEST, identifier=5) + TALK[0][1] + pack(M.ECHO_REQUEST, identifier=6)
    heard = tcp.send(BOB, octets, *cuts)

    assert heard == octets[:28] + bytes(2) + octets[30:]
    told = tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=1, peer_call_id=0, result=1)
    assert unpack(pack(M.OUTGOING_CALL_REPLY, **told)) == (M.OUTGOING_CALL_REPLY, told)
    assert (told["peer_call_id"], codes(told)) == (0x0102, NO)


def test_a_refusal_whose_first_octet_went_as_that_of_a_number() -> None:
    """There was room when the field began, and none when it ended."""
    nat = Ladder(Settings(calls=1))
    tcp = nat.connect(BOB, PAC)
    request = TALK[0][1]
    first = tcp.send(BOB, request[:13])
    nat.call(ALICE, call_id=1).to(PAC, answers=100)
    number = int.from_bytes((first + tcp.send(BOB, request[13:]))[12:14])

    assert ["calls_limit"] == nat.refusals
    assert nat.gre(PAC, key=number).is_stray
    told = tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=1, peer_call_id=number, result=1)
    assert (told["peer_call_id"], codes(told)) == (0x0102, NO)
    assert number in [kept for _, _, kept in nat.translator.book.bindings.quarantined()]
