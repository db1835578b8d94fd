"""Whose number is whose: many callers, few addresses, and every number only once."""

from __future__ import annotations

import pytest

from pptp_nat.core.bindings import LIMIT, Pair
from pptp_nat.core.book import Settings
from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.messages import pack
from pptp_nat.core.states import CallState

from .hosts import ALICE, BOB, DAVE, EXTERNAL, OTHER_PAC, PAC, PUBLISHED, ROUTED, ROUTER, Host
from .ladder import Ladder, MakeLadder

PAIR = Pair(EXTERNAL, PAC.address)


def test_two_clients_pick_the_same_call_id(nat: Ladder) -> None:
    """Windows clients start at the same number; both must get their own packets (case 18)."""
    nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.call(BOB, call_id=1).to(PAC, answers=101)

    assert nat.external_id(ALICE) != nat.external_id(BOB)
    assert nat.gre(PAC, key=nat.external_id(ALICE)).reaches(ALICE, key=1)
    assert nat.gre(PAC, key=nat.external_id(BOB)).reaches(BOB, key=1)


def test_one_call_id_is_used_towards_different_servers(ladder: MakeLadder) -> None:
    """A number need only be unique per server, and two servers may know one alike (case 19)."""
    nat = ladder(draw=lambda: 0x4242)
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=1).to(OTHER_PAC, answers=100)

    assert 0x4242 == first.heard[PAC] == second.heard[OTHER_PAC]
    assert first.carries
    assert second.carries


def test_a_number_of_the_clients_own_is_kept_where_it_is_free(ladder: MakeLadder) -> None:
    """Some servers' logs are easier to read so; the second client of a number needs another."""
    nat = ladder(preserve=True)
    first = nat.call(ALICE, call_id=0x0107).to(PAC, answers=100)
    second = nat.call(BOB, call_id=0x0107).to(PAC, answers=101)

    assert 0x0107 == first.heard[PAC]
    assert 0x0107 != second.heard[PAC]
    assert first.carries
    assert second.carries


@pytest.mark.parametrize("client", [0, 1, 0xFFFF])
@pytest.mark.parametrize("server", [0, 1, 0xFFFF])
def test_numbers_at_the_edges_are_ordinary(nat: Ladder, client: int, server: int) -> None:
    """0 means "unknown" in some code and is what Windows and pptpd use (cases 21, 22)."""
    call = nat.call(ALICE, call_id=client).to(PAC, answers=server)
    other = nat.call(BOB, call_id=client).to(PAC, answers=server ^ 1)

    assert 0 not in (call.heard[PAC], other.heard[PAC])
    assert call.carries
    assert other.carries
    call.about(PAC, M.WAN_ERROR_NOTIFY)
    call.clear()
    assert server == call.disconnect()
    assert CallState.GONE is call.state
    assert other.carries


def test_all_numbers_of_a_pair_are_taken(nat: Ladder) -> None:
    """A new call is refused where people see it, and nothing that lives is touched (case 23)."""
    alice = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    bindings = nat.translator.book.bindings
    taken = [number for number in range(1, LIMIT + 1) if bindings.claim(PAIR, number)]
    assert LIMIT - 1 == len(taken)
    before = dict(nat.legs.carried)
    bob = nat.connect(BOB, PAC).start()

    assert pack(M.OUTGOING_CALL_REQUEST) == bob.say(BOB, pack(M.OUTGOING_CALL_REQUEST, call_id=1))
    assert ["call_ids_exhausted"] == nat.refusals
    assert before == nat.legs.carried
    assert alice.carries
    assert nat.call(BOB, call_id=1).to(OTHER_PAC, answers=1).carries

    for number in taken[:-1]:
        bindings.drop(PAIR, number)
    bindings.release(PAIR, taken[-1], nat.now)
    assert bob.ask(BOB, 2).answer(2).carries  # by now there is room
    assert 3 == nat.live


def test_the_last_free_number_is_found(nat: Ladder) -> None:
    """Chance must not refuse what there is room for (case 23)."""
    bindings = nat.translator.book.bindings
    for number in range(1, LIMIT + 1):
        if number != 0xA7B3:
            bindings.claim(PAIR, number)
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert 0xA7B3 == call.heard[PAC]
    assert call.carries
    for number in range(1, LIMIT + 1):
        if number != 0xA7B3:
            bindings.drop(PAIR, number)


def test_the_routers_own_client_uses_a_number(ladder: MakeLadder) -> None:
    """Its GRE has the same address, so no client behind it may be given its number (case 24)."""
    nat = ladder(draw=lambda: 0x4242)
    own = nat.call(ROUTER, call_id=0x4242).to(PAC, answers=100)
    alice = nat.call(ALICE, call_id=0x4242).to(PAC, answers=101)

    assert 0x4242 == own.heard[PAC]
    assert 0x4242 != alice.heard[PAC]
    assert nat.gre(PAC, key=0x4242).is_lost  # nobody carries it on: it has arrived
    assert alice.carries


def test_the_routers_own_client_asks_for_a_number_that_is_given(ladder: MakeLadder) -> None:
    """Its GRE is not rewritten for it, so the call is refused and told (case 24)."""
    nat = ladder(draw=lambda: 0x4242)
    alice = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    own = nat.connect(ROUTER, PAC).start()

    asked = pack(M.OUTGOING_CALL_REQUEST, call_id=0x4242)
    assert pack(M.OUTGOING_CALL_REQUEST) == own.say(ROUTER, asked)
    assert ["router_number_taken"] == nat.refusals
    assert alice.carries


def test_gre_that_nobody_asked_for_keeps_its_number(ladder: MakeLadder) -> None:
    """A number claimed for GRE that is there already is given to nobody, then given (case 24)."""
    nat = ladder(Settings(quarantine=60.0), draw=lambda: 0x4242)
    assert nat.translator.claim(EXTERNAL, PAC.address, 0x4242)

    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.translator.unclaim(EXTERNAL, PAC.address, 0x4242, nat.now)
    second = nat.call(BOB, call_id=1).to(PAC, answers=101)
    nat.wait(61)
    third = nat.call(BOB, call_id=2).to(PAC, answers=102)

    assert 0x4242 not in (first.heard[PAC], second.heard[PAC])
    assert 0x4242 == third.heard[PAC]


def test_two_calls_in_one_control_connection(nat: Ladder) -> None:
    """The kernel's helper can do one; the standard allows as many as there are IDs (case 20)."""
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(ALICE, call_id=2).to(PAC, answers=101)

    assert first.control is second.control
    assert first.carries
    assert second.carries


def test_many_calls_share_a_control_connection(nat: Ladder) -> None:
    """More than a few are found by an index; each keeps its number and its end (case 20)."""
    calls = [nat.call(ALICE, call_id=n).to(PAC, answers=1000 + n) for n in range(40)]
    assert 1 == len(nat.controls)
    assert 40 == len({call.heard[PAC] for call in calls})
    assert all(call.carries for call in calls)

    for call in calls[::2]:
        call.disconnect()
    assert all(call.is_silent for call in calls[::2])
    assert all(call.carries for call in calls[1::2])


@pytest.mark.parametrize("opener", [ALICE, PAC], ids=["PNS opens", "PAC opens"])
def test_a_pac_outside_offers_a_call(nat: Ladder, opener: Host) -> None:
    """Who opened the TCP connection says nothing of who is PNS (cases 39, 41)."""
    control = nat.connect(opener, PAC if opener is ALICE else ALICE).start()
    call = control.ask(PAC, 7, incoming=True)
    assert 7 == call.heard[ALICE]
    call.answer(1)
    assert CallState.ANSWERED is call.state
    call.connect()

    assert CallState.UP is call.state
    assert call.carries
    call.about(ALICE, M.SET_LINK_INFO, send_accm=1)
    call.clear()
    assert 7 == call.disconnect()
    assert call.is_silent


@pytest.mark.parametrize("opener", [PUBLISHED, DAVE], ids=["PAC opens", "PNS opens"])
def test_a_pac_inside_offers_a_call(nat: Ladder, opener: Host) -> None:
    """The PAC's number is the hidden one now; the PNS hears another (cases 40, 41)."""
    control = nat.connect(opener, DAVE if opener is PUBLISHED else PUBLISHED).start()
    call = control.ask(PUBLISHED, 7, incoming=True).answer(1).connect()

    assert 7 != call.heard[DAVE]
    assert 1 == call.heard[PUBLISHED]
    assert call.carries
    assert call.heard[DAVE] == call.disconnect()
    assert call.is_silent


def test_a_server_inside_is_dialled_through_a_port_forward(nat: Ladder) -> None:
    """Here it is the answering party whose number is hidden (design, section 3)."""
    call = nat.call(DAVE, call_id=1).to(PUBLISHED, answers=7)
    other = nat.call(PAC, call_id=1).to(PUBLISHED, answers=8)

    assert 1 == call.heard[PUBLISHED]
    assert call.carries
    assert other.carries
    call.about(PUBLISHED, M.WAN_ERROR_NOTIFY)
    assert call.heard[DAVE] == call.disconnect()
    assert call.is_silent
    assert other.carries


def test_two_pacs_inside_offer_calls_with_one_number(nat: Ladder) -> None:
    """To the PNS outside they are one address, so it must hear two numbers (case 42)."""
    first = nat.offer(PUBLISHED, call_id=7).to(DAVE, answers=1)
    second = nat.offer(ALICE, call_id=7).to(DAVE, answers=2)

    assert first.heard[DAVE] != second.heard[DAVE]
    assert first.carries
    assert second.carries


def test_a_pac_inside_answers_two_clients_with_one_number(nat: Ladder) -> None:
    """A PAC that tells its calls apart by the client's address may do that (case 42)."""
    first = nat.call(DAVE, call_id=1).to(PUBLISHED, answers=7)
    second = nat.call(PAC, call_id=1).to(PUBLISHED, answers=7)

    assert first.carries
    assert second.carries


def test_a_client_inside_dials_the_published_server(nat: Ladder) -> None:
    """A hairpin: this router hides both parties, and both numbers change."""
    call = nat.call(ALICE, call_id=1).to(PUBLISHED, answers=7)
    other = nat.call(BOB, call_id=1).to(PUBLISHED, answers=8)

    assert 1 != call.heard[PUBLISHED]
    assert 7 != call.heard[ALICE]
    assert call.carries
    assert other.carries
    call.about(PUBLISHED, M.WAN_ERROR_NOTIFY)
    call.clear()
    call.disconnect()
    assert call.is_silent
    assert other.carries


def test_a_routed_host_keeps_its_numbers(nat: Ladder) -> None:
    """Where nobody is hidden nothing is changed, but calls are seen."""
    call = nat.call(ROUTED, call_id=1).to(PAC, answers=100)

    assert {PAC: 1, ROUTED: 100} == call.heard
    assert 0 == nat.counted("rewritten")
    assert CallState.UP is call.state
    assert call.carries


def test_a_connection_that_conntrack_does_not_know_keeps_its_numbers(nat: Ladder) -> None:
    """Untracked packets are translated by nobody, so their numbers must not be either."""
    control = nat.connect(ALICE, PAC, is_tracked=False).start()
    call = control.ask(ALICE, 1).answer(100)

    assert {PAC: 1, ALICE: 100} == call.heard
    assert 0 == nat.counted("rewritten")


def test_three_calls_are_asked_for_in_one_segment(nat: Ladder) -> None:
    """Each request in the segment has a number of its own (case 7)."""
    control = nat.connect(ALICE, PAC).start()
    heard = control.say(ALICE, *(pack(M.OUTGOING_CALL_REQUEST, call_id=n) for n in (1, 2, 3)))

    numbers = [int.from_bytes(heard[at : at + 2]) for at in (12, 180, 348)]
    assert 3 == len(set(numbers)) == nat.live
    for own, number in enumerate(numbers, 1):
        assert nat.gre(PAC, key=number).reaches(ALICE, key=own)


def test_both_parties_open_a_control_connection_at_once(nat: Ladder) -> None:
    """Until one gives way (section 3.1.3), both are followed and no number is twice (case 72)."""
    mine, yours = nat.connect(ALICE, PAC), nat.connect(PAC, ALICE)
    mine.start()
    yours.start()
    first = mine.ask(ALICE, 1).answer(100)
    second = yours.ask(ALICE, 2).answer(101)
    third = nat.call(BOB, call_id=1).to(PAC, answers=102)
    assert 3 == len({first.heard[PAC], second.heard[PAC], third.heard[PAC]})
    assert all(call.carries for call in (first, second, third))

    yours.fin(PAC)
    nat.wait(10)
    assert second.is_silent
    assert first.carries
    assert third.carries


def test_two_clients_connect_at_once(nat: Ladder) -> None:
    """To the server they are one PNS with two connections; both live (case 72)."""
    one, two = nat.connect(ALICE, PAC), nat.connect(BOB, PAC)
    for control, client in ((one, ALICE), (two, BOB)):
        control.tell(client, M.START_CONTROL_CONNECTION_REQUEST)
    for control in (one, two):
        control.tell(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    first, second = one.ask(ALICE, 1), two.ask(BOB, 1)
    second.answer(100)
    first.answer(101)

    assert first.heard[PAC] != second.heard[PAC]
    assert first.carries
    assert second.carries
