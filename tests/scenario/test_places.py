"""Who is inside, as conntrack says, and what else the router may be or do."""

from __future__ import annotations

import pytest

from pptp_nat.core.book import Settings
from pptp_nat.core.events import LegMarked, Verdict
from pptp_nat.core.messages import MessageType, pack
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.core.tuples import Flow, Party, Placement, Seat
from pptp_nat.errors import AdapterError

from .ladder import (
    ALICE,
    BOB,
    HOME_PAC,
    HOME_PAC_TOO,
    PAC,
    ROUTER,
    TRAVELLER,
    Ladder,
)  # fmt: skip

M = MessageType


def test_a_pac_at_home(nat: Ladder) -> None:
    """Case 42.  A port forward: the PAC's number is translated, the traveller's is not."""
    dialled = nat.call(TRAVELLER, call_id=1).to(HOME_PAC, answers=100)

    assert dialled.heard == 1
    assert dialled.heard_back != 100
    assert nat.gre(TRAVELLER, key=dialled.heard_back).reaches(HOME_PAC, key=100)
    back = nat.gre(HOME_PAC, key=1, to=TRAVELLER)
    assert back.reaches(TRAVELLER, key=1)
    assert back.source == nat.external
    heard = dialled.tcp.say(TRAVELLER, M.SET_LINK_INFO, peer_call_id=dialled.heard_back)
    assert heard["peer_call_id"] == 100
    heard = dialled.tcp.say(HOME_PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    assert heard["call_id"] == dialled.heard_back


def test_two_pacs_at_home(nat: Ladder) -> None:
    """Case 42.  One traveller dials both, and both answer with the same number."""
    first = nat.call(TRAVELLER, call_id=1).to(HOME_PAC, answers=100)
    second = nat.call(TRAVELLER, call_id=2).to(HOME_PAC_TOO, answers=100)

    assert first.heard_back != second.heard_back
    assert nat.gre(TRAVELLER, key=first.heard_back).reaches(HOME_PAC, key=100)
    assert nat.gre(TRAVELLER, key=second.heard_back).reaches(HOME_PAC_TOO, key=100)


@pytest.mark.parametrize("caller", [ALICE, BOB])
def test_a_hairpin(nat: Ladder, caller: object) -> None:
    """Both hosts are inside and know each other by the external address only."""
    dialled = nat.call(caller, call_id=1).to(HOME_PAC, answers=100)

    assert dialled.heard != 1
    assert dialled.heard_back != 100
    there = nat.gre(caller, key=dialled.heard_back)
    assert there.reaches(HOME_PAC, key=100)
    assert there.source == nat.external
    back = nat.gre(HOME_PAC, key=dialled.heard)
    assert back.reaches(caller, key=1)
    assert back.source == nat.external
    assert {(nat.external, caller.address): 1, (nat.external, HOME_PAC.address): 1} == (
        nat.translator.book.bindings.used()
    )


def test_plain_routing(nat: Ladder) -> None:
    """Nobody is inside: followed for the table and the analysis, and not one octet changes."""
    dialled = nat.call(TRAVELLER, call_id=1).to(PAC, answers=100)

    assert (1, 100) == (dialled.heard, dialled.heard_back)
    assert "rewritten" not in nat.translator.book.counts
    assert {} == nat.translator.book.bindings.used()
    assert not any(leg.translates for leg in nat.legs.carried.values())


def test_a_connection_that_conntrack_does_not_know(nat: Ladder) -> None:
    """Untracked: then nobody translates its addresses either."""
    nat.translator._locate = lambda _: None
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert dialled.heard == 1
    assert dialled.tcp.followed.flow == dialled.tcp.flow


@pytest.mark.parametrize("syn", [False, True])
def test_an_untracked_connection_whose_responder_is_heard_first(
    nat: Ladder, *, syn: bool
) -> None:
    """The SYN says who the opener is; without it, the first to be heard is taken for it."""
    nat.translator._locate = lambda _: None
    tcp = nat.open(ALICE, PAC, syn=syn)

    assert tcp.say(PAC, M.ECHO_REQUEST, identifier=3)["identifier"] == 3
    assert nat.messages() == [(Party(syn), M.ECHO_REQUEST)]
    assert tcp.followed.flow == (tcp.flow if syn else tcp.flow.reversed())


@pytest.mark.parametrize("closer", [ALICE, PAC])
def test_a_kernel_helper_on_the_connection(nat: Ladder, closer: object) -> None:
    """Case 70.  It translates already, and twice would be wrong: nothing is touched."""
    nat.helper = "pptp"
    tcp = nat.connect(ALICE, PAC)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=1)

    assert request == tcp.send(ALICE, request)
    assert {"kernel_helper": 3} == nat.counts
    assert [] == nat.calls
    tcp.finish(closer)
    nat.wait(6)
    assert tcp.state is None


def test_a_connection_on_another_port(nat: Ladder) -> None:
    """Case 65.  The rules say what is queued; the core looks at no port."""
    tcp = nat.connect(ALICE, PAC, port=1724)
    dialled = nat.call(ALICE, call_id=1, over=tcp).to(PAC, answers=100)

    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)


@pytest.mark.parametrize("first", [ALICE, PAC])
def test_a_connection_met_in_the_middle(nat: Ladder, first: object) -> None:
    """Case 64.  The daemon has started late: new calls are translated, old ones are not known."""
    tcp = nat.open(ALICE, PAC, syn=False, starts=(123, 456))
    tcp.sent[0].extend(bytes(1000))
    tcp.sent[1].extend(bytes(500))

    tcp.say(first, M.ECHO_REQUEST)

    assert ControlState.OPEN is tcp.state
    assert tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=77)["peer_call_id"] == 77
    dialled = nat.call(ALICE, call_id=1, over=tcp).to(PAC, answers=100)
    assert CallState.UP is dialled.state
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)


def test_the_second_half_of_a_message_met_in_the_middle(nat: Ladder) -> None:
    """Case 64.  Its number cannot be known; the next message is whole."""
    tcp = nat.open(ALICE, PAC, syn=False)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=1)
    tcp.sent[0].extend(request[:13])

    assert b"" == tcp.send(ALICE, request[13:]), "what comes before it may still be under way"
    assert request[13:] == tcp.again(ALICE, 13)
    assert {"beginning_unknown": 1} == nat.counts
    assert nat.call(ALICE, call_id=2, over=tcp).to(PAC, answers=100).heard != 2


def test_octets_that_went_another_way_are_passed_over(nat: Ladder) -> None:
    """The receiver says that it has them, so nobody will send them again."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    dialled.tcp.sent[0].extend(pack(M.ECHO_REQUEST, identifier=1))
    dialled.tcp.say(PAC, M.ECHO_REPLY, identifier=1, result=1)  # and acknowledges them

    assert dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)["call_id"] == dialled.heard
    assert CallState.CLEARING is dialled.state
    assert {} == nat.counts


def test_the_end_of_a_message_went_another_way(nat: Ladder) -> None:
    """What was chosen for its beginning is kept back, and reading goes on behind it."""
    tcp = nat.connect(ALICE, PAC)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=1)
    first = tcp.send(ALICE, request[:100])
    tcp.sent[0].extend(request[100:])
    tcp.say(PAC, M.ECHO_REQUEST, identifier=1)  # and acknowledges it
    dialled = nat.call(ALICE, call_id=2, over=tcp).to(PAC, answers=100)

    assert int.from_bytes(first[12:14]) != dialled.heard
    assert [dialled.known] == nat.calls
    assert {} == nat.counts
    assert 1 == len(nat.translator.book.bindings.quarantined())


def test_numbers_of_an_earlier_run_are_not_given_again(nat: Ladder) -> None:
    """Case 64.  The kernel still carries the GRE of calls that the daemon has forgotten."""
    nat.drawn = [0x0707]
    assert nat.translator.claim(nat.external, PAC.address, 0x0707)

    assert nat.call(ALICE, call_id=1).to(PAC, answers=100).heard != 0x0707
    nat.translator.unclaim(nat.external, PAC.address, 0x0707, nat.now)
    nat.wait(61)
    assert nat.call(ALICE, call_id=2).to(PAC, answers=101).heard == 0x0707


def test_a_number_rests_also_where_nothing_else_has_a_time(nat: Ladder) -> None:
    """The router is asked to look when its rest is over, and at nothing before."""
    nat.drawn = [0x0707]
    assert nat.translator.claim(nat.external, PAC.address, 0x0707)
    assert nat.translator.next_timer() is None
    nat.translator.unclaim(nat.external, PAC.address, 0x0707, nat.now)
    assert nat.translator.next_timer() == nat.now + nat.translator.settings.quarantine
    nat.wait(61)

    assert {} == nat.translator.book.bindings.used()
    assert nat.call(ALICE, call_id=1).to(PAC, answers=100).heard == 0x0707


def test_gre_follows_the_connmark(nat: Ladder) -> None:
    """Policy routing marks the control connection; its GRE must take the same way."""
    nat.mark = 5
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    gone = nat.call(ALICE, call_id=2, over=dialled.tcp).to(PAC, answers=101)
    dialled.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=101)
    assert dialled.tcp.followed.mark == 5
    dialled.tcp.say(ALICE, M.ECHO_REQUEST)
    nat.mark = 9
    dialled.tcp.say(PAC, M.ECHO_REQUEST)
    dialled.tcp.say(ALICE, M.ECHO_REPLY)

    marked = [event for event in nat.events if isinstance(event, LegMarked)]
    assert [(dialled.known, 9)] * 2 == [(event.call, event.mark) for event in marked]
    assert {dialled.known.leg(party) for party in Party} == {event.leg for event in marked}
    assert CallState.GONE is gone.state


@pytest.mark.parametrize("failure", [None, AdapterError("asking conntrack", 11)])
def test_a_connmark_that_cannot_be_read_stays_what_it_was(
    nat: Ladder, failure: AdapterError | None
) -> None:
    """The echo passes all the same."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    def locate(_: Flow) -> Placement | None:
        if failure is not None:
            raise failure
        return None

    nat.translator._locate = locate
    assert dialled.tcp.say(ALICE, M.ECHO_REQUEST, identifier=3)["identifier"] == 3
    assert ({"mark_unknown": 1} if failure else {}) == nat.counts


@pytest.mark.parametrize("towards_opener", [False, True])
def test_the_conntrack_entry_of_a_connection_is_gone(
    nat: Ladder, *, towards_opener: bool
) -> None:
    """Flushed or timed out: grace, then the end."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    flow = dialled.tcp.flow
    nat._take(nat.translator.connection_lost(
        flow.reversed() if towards_opener else flow, nat.now
    ))  # fmt: skip

    assert ControlState.CLOSING is dialled.tcp.state
    nat.wait(6)
    assert [End.CLOSED] == nat.ends
    nat._take(nat.translator.connection_lost(flow, nat.now))  # nobody's entry
    assert [End.CLOSED] == nat.ends


def test_the_external_address_is_gone(nat: Ladder) -> None:
    """The provider has given another one: calls behind the old one cannot go on."""
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.external = bytes((198, 18, 7, 9))
    other = nat.call(BOB, call_id=1).to(PAC, answers=101)
    routed = nat.call(TRAVELLER, call_id=1).to(PAC, answers=102)
    nat._take(nat.translator.address_gone(ROUTER.address, nat.now))

    assert [End.ADDRESS] == nat.ends
    assert CallState.GONE is dialled.state
    assert [CallState.UP] * 2 == [other.state, routed.state]
    assert dialled.tcp.state is None


# Limits.


def test_a_full_table_of_calls_refuses_new_ones() -> None:
    """Case 23.  Calls that are up stay up, and when one ends there is room again."""
    nat = Ladder(Settings(calls=2))
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    second = nat.call(BOB, call_id=1).to(PAC, answers=101)
    refused = nat.call(BOB, call_id=2, over=second.tcp).to(PAC)

    assert refused.known is None
    assert ["calls_limit"] == nat.refusals
    assert nat.translator.book.counts["refused_calls_limit"] == 1
    assert [CallState.UP] * 2 == [first.state, second.state]
    first.tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    again = nat.call(BOB, call_id=3, over=second.tcp).to(PAC, answers=102)
    assert CallState.UP is again.state


def test_a_connection_may_be_allowed_only_so_many_calls() -> None:
    """One client cannot take all numbers of a server."""
    nat = Ladder(Settings(calls_per_connection=1))
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.call(ALICE, call_id=2, over=first.tcp).to(PAC)
    other = nat.call(BOB, call_id=1).to(PAC, answers=101)

    assert ["calls_per_connection_limit"] == nat.refusals
    assert CallState.UP is other.state
    assert first.tcp.again(ALICE, 156, 324)  # a repeat is no new call


def test_a_full_table_of_connections_forgets_one_without_calls() -> None:
    """Case 69.  Half-open and idle ones make room; ones with calls never do."""
    nat = Ladder(Settings(connections=2))
    idle = nat.connect(BOB, PAC)
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    third = nat.connect(BOB, PAC)

    assert idle.state is None
    assert ControlState.OPEN is third.state
    assert {"connections_evicted": 1} == nat.counts
    nat.call(BOB, call_id=1, over=third).to(PAC, answers=101)
    fourth = nat.open(BOB, PAC)
    heard = fourth.segment(BOB, 0, pack(M.START_CONTROL_CONNECTION_REQUEST))
    assert Verdict.DROP is heard.verdict  # TCP will try again
    assert {"connections_evicted": 1, "connections_limit": 1} == nat.counts
    assert CallState.UP is dialled.state


def test_a_flood_of_syns_is_bounded(nat: Ladder) -> None:
    """Case 69.  100,000 half-open connections: the latest are remembered, and that is all."""
    for port in range(20_000, 30_000):
        nat.open(BOB, PAC, source_port=port)
    dialled = nat.call(ALICE, call_id=1).to(PAC, answers=100)

    assert len(nat.translator._beginnings.half_open) == nat.translator.settings.half_open - 1
    assert len(nat.translator.book.connections) == 1
    assert CallState.UP is dialled.state


def test_other_limits_apply_from_now_on(nat: Ladder) -> None:
    """SIGHUP: times under way keep their end, new ones have the new length."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    old.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    nat.translator.configure(
        Settings(clearing=1, quarantine=1, calls_per_connection=9), preserve=True
    )
    new = nat.call(BOB, call_id=0x0102).to(PAC, answers=101)
    assert new.heard == 0x0102
    nat.wait(28)
    assert CallState.CLEARING is old.state
    nat.wait(3)
    assert CallState.GONE is old.state
    nat.wait(1)
    assert [new.heard] == [call.seen[0] for call in nat.calls]
    assert [1] == list(nat.translator.book.bindings.used().values())


def test_a_placement_that_names_other_seats_is_read_as_it_is(nat: Ladder) -> None:
    """Source and destination translation at once, as some routers do for their own servers."""
    flow = Flow(TRAVELLER.address, 50_000, HOME_PAC.address, 1723)
    inside = bytes((192, 168, 77, 1))
    nat.translator._locate = lambda _: Placement(
        flow, Seat(TRAVELLER.address, inside), Seat(HOME_PAC.address, ROUTER.address), 0
    )
    tcp = nat.open(TRAVELLER, HOME_PAC, source_port=50_000)
    dialled = nat.call(TRAVELLER, call_id=1, over=tcp).to(HOME_PAC, answers=100)

    leg = dialled.known.leg(Party.RESPONDER)
    assert leg is not None
    assert (TRAVELLER.address, ROUTER.address) == (leg.source, leg.destination)
    assert (inside, HOME_PAC.address, 100) == (leg.new_source, leg.new_destination, leg.new_key)
