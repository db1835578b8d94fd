"""Calls beside each other: whose number is whose."""

from __future__ import annotations

import pytest

from pptp_nat.core.bindings import LIMIT, Pair
from pptp_nat.core.book import Settings
from pptp_nat.core.messages import MessageType
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Party

from .ladder import ALICE, BOB, DRAWN, OTHER_PAC, PAC, ROUTER, TRAVELLER, Ladder

M = MessageType


def test_two_clients_pick_the_same_call_id(nat: Ladder) -> None:
    """Case 18.  Windows clients start at the same number; both must get their own packets."""
    nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.call(BOB, call_id=1).to(PAC, answers=101)

    assert nat.external_id(ALICE) != nat.external_id(BOB)
    assert nat.gre(PAC, key=nat.external_id(ALICE)).reaches(ALICE, key=1)
    assert nat.gre(PAC, key=nat.external_id(BOB)).reaches(BOB, key=1)


def test_two_servers_may_hear_the_same_number(nat: Ladder) -> None:
    """Case 19.  A number is unique towards one remote address, not among all."""
    nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.call(BOB, call_id=1).to(OTHER_PAC, answers=100)

    assert DRAWN == nat.external_id(ALICE) == nat.external_id(BOB)
    assert nat.gre(PAC, key=DRAWN).reaches(ALICE, key=1)
    assert nat.gre(OTHER_PAC, key=DRAWN).reaches(BOB, key=1)


@pytest.mark.parametrize(("own", "answers"), [(0, 100), (7, 0), (0, 0), (0xFFFF, 0xFFFF)])
def test_the_lowest_and_the_highest_number_are_ordinary(
    nat: Ladder, own: int, answers: int
) -> None:
    """Cases 21 and 22.  Windows and pptpd say 0; 0 is taken from anyone and given to nobody."""
    nat.drawn = [0]
    dialled = nat.call(ALICE, call_id=own).to(PAC, answers=answers)

    assert dialled.heard != 0
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=own)
    assert nat.gre(ALICE, key=answers, to=PAC).reaches(PAC, key=answers)
    heard = dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=answers)
    assert heard["call_id"] == answers
    assert {} == nat.counts


def test_the_own_number_is_kept_where_it_is_free() -> None:
    """With ``preserve`` a capture shows one number on both sides, but never two clients' one."""
    nat = Ladder(preserve=True)
    nat.call(ALICE, call_id=0x1234).to(PAC, answers=100)
    nat.call(BOB, call_id=0x1234).to(PAC, answers=101)
    nat.call(BOB, call_id=0x4321).to(PAC, answers=102)

    assert [0x1234, 0x4321] == [call.seen[0] for call in nat.calls[::2]]
    assert nat.calls[1].seen[0] != 0x1234
    assert nat.translator.book.counts["collision_avoided"] == 1


@pytest.mark.parametrize("caller", [ROUTER, PAC])
def test_numbers_of_the_router_itself_are_avoided(nat: Ladder, caller: object) -> None:
    """Case 24.  A client, or a server, on the router shares its address with the inside."""
    nat.drawn = [0x0707]
    if caller is ROUTER:
        own = nat.call(ROUTER, call_id=0x0707).to(PAC, answers=100)
    else:
        own = nat.call(PAC, call_id=55).to(ROUTER, answers=0x0707)
    alices = nat.call(ALICE, call_id=1).to(PAC, answers=101)

    assert own.heard in (0x0707, 55)  # nobody translates the router's own
    assert alices.heard != 0x0707
    assert [] == nat.installed(own)  # and its GRE does not travel through
    assert nat.gre(PAC, key=0x0707).is_stray
    own.tcp.finish(own.caller)
    nat.wait(5 + 60)
    assert nat.call(BOB, call_id=2).to(PAC, answers=102).heard == 0x0707


def test_a_number_that_an_inside_host_has_is_refused_to_the_router(nat: Ladder) -> None:
    """Case 24.  The router's client came second; it will draw another one when it dials again."""
    alices = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    refused = nat.call(ROUTER, call_id=alices.heard).to(PAC)

    assert refused.heard == 0  # the GRE of its server must not reach Alice
    assert ["router_number_taken"] == nat.refusals
    assert nat.gre(PAC, key=alices.heard).reaches(ALICE, key=1)


def test_a_client_of_the_router_dials_again_after_a_crash(nat: Ladder) -> None:
    """Its old connection is half open, its number is the same, and nobody is in the way."""
    old = nat.call(TRAVELLER, call_id=7).to(ROUTER, answers=100)
    new = nat.call(TRAVELLER, call_id=7).to(ROUTER, answers=101)

    assert CallState.UP is new.state
    assert [] == nat.refusals
    old.tcp.reset(ROUTER)
    nat.wait(70)
    pairs = nat.translator.book.bindings.used()
    assert sum(pairs.values()) == 2  # both numbers of the new call
    new.tcp.reset(ROUTER)
    nat.wait(70)
    assert {} == nat.translator.book.bindings.used()


def test_zero_of_the_router_itself_needs_no_claim(nat: Ladder) -> None:
    """0 is never given to anyone, so nobody can have it."""
    own = nat.call(ROUTER, call_id=0).to(PAC, answers=0)
    own.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=0)
    nat.wait(70)

    assert {} == nat.translator.book.bindings.used()


def test_a_refused_reply_to_the_router_leaves_no_claim(nat: Ladder) -> None:
    """The number in a reply that says no was never used."""
    nat.call(TRAVELLER, call_id=7).to(ROUTER, answers=100, result=2)
    nat.wait(70)

    assert {} == nat.translator.book.bindings.used()


def test_a_released_number_rests(nat: Ladder) -> None:
    """Case 25.  Late GRE must not reach the next owner of its number."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    old.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)

    assert nat.gre(PAC, key=old.heard).is_stray
    nat.wait(59)
    assert nat.call(BOB, call_id=1).to(PAC, answers=101).heard != old.heard
    nat.wait(2)
    assert nat.call(BOB, call_id=2).to(PAC, answers=102).heard == old.heard


def test_a_late_message_about_a_call_that_is_gone_is_still_translated(nat: Ladder) -> None:
    """Case 25.  What was on its way when the call ended."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)

    late = dialled.tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=dialled.heard)
    assert late["peer_call_id"] == 1
    assert {"unexpected_message": 1} == nat.counts
    nat.wait(61)
    later = dialled.tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=dialled.heard)
    assert later["peer_call_id"] == dialled.heard


def test_numbers_without_quarantine() -> None:
    """An operator may want that; the number is free with the next tick."""
    nat = Ladder(Settings(quarantine=0))
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    nat.wait(0)

    assert nat.call(BOB, call_id=1).to(PAC, answers=101).heard == dialled.heard


def test_a_server_uses_its_number_again_at_once(nat: Ladder) -> None:
    """Case 48.  The PAC's numbers are its own business, in one connection or in two."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    first.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    second = nat.call(ALICE, call_id=2, over=first.tcp).to(PAC, answers=100)
    second.tcp.finish(PAC)
    third = nat.call(ALICE, call_id=3).to(PAC, answers=100)  # within the grace period

    nat.wait(10)
    assert CallState.GONE is second.state
    assert CallState.UP is third.state
    assert nat.gre(ALICE, key=100, to=PAC).reaches(PAC, key=100)
    assert third.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)["call_id"] == 100
    assert CallState.GONE is third.state
    assert nat.gre(ALICE, key=100, to=PAC).is_stray


def test_a_number_is_found_by_the_call_that_has_it_and_not_by_the_latest(nat: Ladder) -> None:
    """Case 48.  The PAC answers the older call with the number of a younger one that is over."""
    older = nat.call(ALICE, call_id=1).to(PAC)
    younger = nat.call(ALICE, call_id=2, over=older.tcp).to(PAC, answers=100)
    tcp = older.tcp
    tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    tcp.say(PAC, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=older.heard, result=1)

    tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)

    assert [CallState.GONE] * 2 == [older.state, younger.state]
    assert {} == nat.counts


@pytest.mark.parametrize("state", [CallState.UP, CallState.CLEARING])
def test_a_pac_that_gives_one_number_to_two_calls_means_the_second(
    nat: Ladder, state: CallState
) -> None:
    """It tells its calls apart by that number, so the first one is over."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    if state is CallState.CLEARING:
        first.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    second = nat.call(ALICE, call_id=2, over=first.tcp).to(PAC, answers=100)

    assert (CallState.GONE, CallState.UP) == (first.state, second.state)
    assert ["REPLACED"] == [end.name for end in nat.ends]
    assert nat.gre(ALICE, key=100, to=PAC).reaches(PAC, key=100)
    assert nat.gre(PAC, key=first.heard).is_stray
    assert first.tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=first.heard)["peer_call_id"] == 1
    first.tcp.finish(ALICE)
    nat.wait(100)
    assert {} == nat.legs.carried
    assert {} == nat.translator.book.bindings.used()


def test_a_pac_at_home_that_gives_one_number_to_two_calls(nat: Ladder) -> None:
    """The same with a number that is translated: it stays what it was."""
    first = nat.call(TRAVELLER, call_id=1).to(ALICE, answers=100)
    second = nat.call(TRAVELLER, call_id=2, over=first.tcp).to(ALICE, answers=100)

    assert first.heard_back == second.heard_back
    assert nat.gre(TRAVELLER, key=second.heard_back).reaches(ALICE, key=100)
    second.tcp.say(ALICE, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    nat.wait(61)
    assert {} == nat.translator.book.bindings.used()


def test_a_second_reply_with_another_number_moves_the_call(nat: Ladder) -> None:
    """The PAC's last word counts, and nothing of the first one is left behind."""
    dialled = nat.call(TRAVELLER, call_id=1).to(ALICE, answers=100)
    back = dialled.tcp.say(
        ALICE, M.OUTGOING_CALL_REPLY, call_id=101, peer_call_id=1, result=1
    )["call_id"]

    assert back != dialled.heard_back
    assert nat.gre(TRAVELLER, key=int(back)).reaches(ALICE, key=101)
    assert nat.gre(TRAVELLER, key=dialled.heard_back).is_stray
    dialled.tcp.say(ALICE, M.CALL_DISCONNECT_NOTIFY, call_id=101)
    nat.wait(61)
    assert {} == nat.legs.carried
    assert {} == nat.translator.book.bindings.used()


def test_more_calls_in_one_connection_than_are_looked_at_one_by_one(nat: Ladder) -> None:
    """Case 20.  Every call of many is found, also by messages about it."""
    tcp = nat.connect(ALICE, PAC)
    dialled = [nat.call(ALICE, call_id=n, over=tcp).to(PAC, answers=900 + n) for n in range(40)]

    for number, each in enumerate(dialled):
        assert nat.gre(PAC, key=each.heard).reaches(ALICE, key=number)
        heard = tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=each.heard)
        assert heard["peer_call_id"] == number
    for number, each in enumerate(dialled):
        assert tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=number)["call_id"] == each.heard
        tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=900 + number)
        assert CallState.GONE is each.state
    again = nat.call(ALICE, call_id=0, over=tcp).to(PAC, answers=900)
    assert CallState.UP is again.state
    assert again.heard != dialled[0].heard
    nat.wait(61)
    assert [again.known] == list(tcp.followed.calls)
    assert {} == nat.counts


def test_every_leg_is_made_before_the_message_that_needs_it_goes_on(nat: Ladder) -> None:
    """Case 49.  The PAC may send GRE as soon as it has heard the request."""
    dialled = nat.call(ALICE, call_id=1).to(PAC)

    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)
    assert [Party.ORIGINATOR] == nat.installed(dialled)
    reply = {"call_id": 100, "peer_call_id": dialled.heard, "result": 1}
    dialled.tcp.say(PAC, M.OUTGOING_CALL_REPLY, **reply)
    assert [Party.ORIGINATOR, Party.RESPONDER] == nat.installed(dialled)


def test_several_clients_of_one_server_at_the_same_time(nat: Ladder) -> None:
    """Case 72.  One control connection per pair of addresses, says section 3.1.3; NAT says no."""
    nat.drawn = [0x0101, 0x0101, 0x0101]
    alice, bob = nat.open(ALICE, PAC), nat.open(BOB, PAC)
    for tcp, host in ((alice, ALICE), (bob, BOB)):
        tcp.say(host, M.START_CONTROL_CONNECTION_REQUEST)
    for tcp in (bob, alice):
        tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    calls = [nat.call(ALICE, call_id=0, over=alice), nat.call(BOB, call_id=0, over=bob)]
    for number, dialled in enumerate(calls):
        dialled.to(PAC, answers=number)

    assert len({dialled.heard for dialled in calls}) == 2
    assert [CallState.UP] * 2 == [dialled.state for dialled in calls]


def test_a_block_of_numbers_that_is_full_leads_to_another(nat: Ladder) -> None:
    """The first octet no longer decides then; a cut field waits a moment instead."""
    first = nat.call(ALICE, call_id=0x1234).to(PAC, answers=100)
    block = range(first.heard & 0xFF00, (first.heard & 0xFF00) + 256)
    taken = [n for n in block if nat.translator.claim(nat.external, PAC.address, n)]
    second = nat.call(ALICE, call_id=0x1235, over=first.tcp).to(PAC, answers=101)

    assert first.heard >> 8 != second.heard >> 8
    assert nat.gre(PAC, key=second.heard).reaches(ALICE, key=0x1235)
    assert first.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=0x1234)["call_id"] == first.heard
    assert 255 == len(taken)
    for number in taken:
        nat.translator.unclaim(nat.external, PAC.address, number, nat.now)


def test_all_numbers_of_a_pair_are_taken(nat: Ladder) -> None:
    """Case 23.  A new call is refused where people see it, and nothing that lives is touched."""
    alices = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    pair, bindings = Pair(nat.external, PAC.address), nat.translator.book.bindings
    taken = [number for number in range(1, LIMIT + 1) if bindings.claim(pair, number)]
    assert LIMIT - 1 == len(taken)
    before = dict(nat.legs.carried)
    bob = nat.connect(BOB, PAC)

    assert nat.call(BOB, call_id=1, over=bob).to(PAC).heard == 0  # which no call is ever given
    assert ["call_ids_exhausted"] == nat.refusals
    assert before == nat.legs.carried
    assert CallState.UP is alices.state
    assert CallState.UP is nat.call(BOB, call_id=1).to(OTHER_PAC, answers=1).state
    for number in taken:
        bindings.drop(pair, number)
    again = nat.call(BOB, call_id=2, over=bob).to(PAC, answers=2)  # by now there is room
    assert nat.gre(PAC, key=again.heard).reaches(BOB, key=2)


def test_the_last_free_number_is_found(nat: Ladder) -> None:
    """Case 23.  Chance must not refuse what there is room for."""
    pair, bindings = Pair(nat.external, PAC.address), nat.translator.book.bindings
    others = [number for number in range(1, LIMIT + 1) if number != 0xA7B3]
    for number in others:
        bindings.claim(pair, number)
    assert nat.call(ALICE, call_id=1).to(PAC, answers=100).heard == 0xA7B3
    for number in others:
        bindings.drop(pair, number)


def test_both_parties_open_a_control_connection_at_once(nat: Ladder) -> None:
    """Case 72.  Until one gives way (section 3.1.3), both are followed and no number is twice."""
    mine, yours = nat.connect(ALICE, PAC), nat.connect(PAC, ALICE)
    first = nat.call(ALICE, call_id=1, over=mine).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2, over=yours).to(PAC, answers=101)
    third = nat.call(BOB, call_id=1).to(PAC, answers=102)
    numbers = [dialled.heard for dialled in (first, second, third)]
    assert 3 == len(set(numbers))

    yours.finish(PAC)
    nat.wait(10)
    carried = [(ALICE, 1), (ALICE, 2), (BOB, 1)]
    assert [True, False, True] == [
        nat.gre(PAC, key=number).reaches(host, key=own)
        for number, (host, own) in zip(numbers, carried, strict=True)
    ]


def test_a_rebooted_client_dials_while_its_old_call_is_up(nat: Ladder) -> None:
    """Case 48.  The server may give the new call the number of the old one."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    new = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    assert nat.gre(PAC, key=new.heard).reaches(ALICE, key=1)

    old.tcp.reset(PAC)
    nat.wait(10)
    assert CallState.GONE is old.state
    assert nat.gre(PAC, key=new.heard).reaches(ALICE, key=1)
    assert nat.gre(ALICE, key=100, to=PAC).reaches(PAC, key=100)
