"""Control connections: met in the middle, opened again, cut off, too many, or none of ours."""

from __future__ import annotations

import pytest

from pptp_nat.core.book import Settings
from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.messages import pack
from pptp_nat.core.states import CallState, End

from .conversation import Control
from .hosts import ALICE, BOB, OTHER_PAC, PAC, Host
from .ladder import Ladder, MakeLadder

REQUEST = pack(M.OUTGOING_CALL_REQUEST, call_id=1)
START = pack(M.START_CONTROL_CONNECTION_REQUEST)


def followed(nat: Ladder) -> int:
    """Return how many connections the translator has in its book."""
    return len(nat.translator.book.connections)


def asks_in_vain(control: Control) -> bool:
    """Whether the client's request is dropped; TCP would send it again."""
    verdict = control.say(control.hosts[0], REQUEST), control.nat.last.verdict
    return verdict == (b"", Verdict.DROP)


@pytest.mark.parametrize("before", [b"", START, START + REQUEST, START + REQUEST[:1],
                                    START + REQUEST[:13], START + REQUEST[:100]])  # fmt: skip
def test_a_connection_is_met_in_the_middle(nat: Ladder, before: bytes) -> None:
    """A daemon that has just started reads on from the next certain boundary (case 64)."""
    control = nat.connect(ALICE, PAC, is_watched=False)
    control.elsewhere(ALICE, before)
    rest = (START + REQUEST)[len(before) :]
    heard = control.say(ALICE, rest, pack(M.OUTGOING_CALL_REQUEST, call_id=2))

    number = int.from_bytes(heard[-168 + 12 : -168 + 14])
    assert nat.gre(PAC, key=number).reaches(ALICE, key=2)
    assert START[:12] == control.heard_by(PAC)[:12]


def test_the_call_of_a_connection_met_in_the_middle_is_left_alone(nat: Ladder) -> None:
    """Nobody knows its numbers here, so they pass as the ends have them (case 64)."""
    control = nat.connect(ALICE, PAC, is_watched=False)
    control.elsewhere(ALICE, START + REQUEST)
    control.elsewhere(PAC, pack(M.START_CONTROL_CONNECTION_REPLY, result=1))
    control.echo(ALICE)

    heard = control.tell(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100)
    assert 100 == heard["call_id"]
    assert 1 == nat.counted("unknown_call_id")
    assert control.ask(ALICE, 2).answer(101).carries


def test_the_servers_octets_are_the_first_that_are_met(nat: Ladder) -> None:
    """The opener is who conntrack says, not who speaks first (case 64)."""
    control = nat.connect(ALICE, PAC, is_watched=False)
    control.tell(PAC, M.ECHO_REQUEST, identifier=1)

    assert control.ask(ALICE, 1).answer(100).carries
    (connection,) = nat.translator.book.connections.values()
    assert control.flow == connection.flow


def test_octets_that_went_another_way_are_passed_over(nat: Ladder) -> None:
    """The receiver says that it has them, so nobody will send them again."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.control.elsewhere(ALICE, pack(M.ECHO_REQUEST, identifier=1))
    call.control.tell(PAC, M.ECHO_REPLY, identifier=1, result=1)  # and acknowledges them

    call.clear()
    assert CallState.CLEARING is call.state
    assert 0 == nat.counted("gap")


def test_the_end_of_a_message_went_another_way(nat: Ladder) -> None:
    """What was chosen for its beginning is kept back, and reading goes on behind it."""
    control = nat.connect(ALICE, PAC).start()
    first = control.say(ALICE, REQUEST[:100])
    control.elsewhere(ALICE, REQUEST[100:])
    control.tell(PAC, M.ECHO_REQUEST, identifier=1)  # and acknowledges it
    call = control.ask(ALICE, 2).answer(100)

    assert int.from_bytes(first[12:14]) != call.heard[PAC]
    assert call.carries
    assert 1 == nat.live
    assert 0 == nat.counted("gap")
    assert 1 == len(nat.translator.book.bindings.quarantined())


@pytest.mark.parametrize("first", [ALICE, PAC], ids=["opener", "responder"])
def test_who_opened_an_untracked_connection_is_known_by_its_syn(nat: Ladder, first: Host) -> None:
    """Conntrack cannot tell, and the responder's octets may be the first to come."""
    control = nat.connect(ALICE, PAC, is_tracked=False)
    control.tell(first, M.ECHO_REQUEST, identifier=1)

    (connection,) = nat.translator.book.connections.values()
    assert control.flow == connection.flow


def test_a_syn_alone_ends_nothing(nat: Ladder) -> None:
    """Anybody can forge one; the server answers it with a challenge (case 46)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.connect(ALICE, PAC, port=call.control.flow.source_port, starts=(7_000_001, 8_000_001))
    nat.wait(100)

    assert CallState.UP is call.state
    assert call.carries
    call.clear()
    assert 100 == call.disconnect()


def test_a_late_syn_of_the_connection_itself_ends_nothing(nat: Ladder) -> None:
    """The network may deliver it twice (case 46)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    call.control.segment(ALICE, -1, flags=0x02)
    call.control.repeat(ALICE, last=call.control.written_by(ALICE))

    assert call.carries
    assert CallState.UP is call.state


def test_the_same_addresses_and_ports_again(nat: Ladder) -> None:
    """Octets after the new SYN belong to a new connection, whatever the old one was (case 46)."""
    old = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    port = old.control.flow.source_port
    control = nat.connect(ALICE, PAC, port=port, starts=(7_000_001, 8_000_001)).start()
    new = control.ask(ALICE, 1).answer(100)

    assert End.REPLACED is old.end
    assert nat.gre(PAC, key=old.heard[PAC]).is_lost
    assert old.heard[PAC] != new.heard[PAC]
    assert new.carries
    assert 1 == followed(nat)


def test_many_half_open_connections(ladder: MakeLadder) -> None:
    """A flood of SYNs is remembered as far as there is room; a real client comes through (69)."""
    nat = ladder(Settings(half_open=10))
    alive = nat.call(BOB, call_id=1).to(PAC, answers=99)
    control = nat.connect(ALICE, PAC)
    for port in range(2000, 4000):
        Control(nat, BOB, PAC, port, (port, port)).segment(BOB, -1, flags=0x02)

    assert 10 == len(nat.translator._half_open)
    assert 1 == followed(nat)
    assert control.start().ask(ALICE, 1).answer(100).carries
    assert alive.carries


def test_connections_are_limited_and_live_ones_stay(ladder: MakeLadder) -> None:
    """The newest is refused, since all the others carry calls (case 69)."""
    nat = ladder(Settings(connections=2))
    calls = [nat.call(host, call_id=1).to(PAC, answers=n) for n, host in ((1, ALICE), (2, BOB))]
    third = nat.connect(ALICE, OTHER_PAC)

    assert asks_in_vain(third)
    assert 1 == nat.counted("connections_limit")
    assert all(call.carries for call in calls)

    calls[0].control.rst(PAC)
    nat.wait(6)
    assert 168 == len(third.repeat(ALICE))  # TCP sends it again, and there is room


def test_an_idle_connection_makes_room(ladder: MakeLadder) -> None:
    """One that carries no call can be picked up again, so it goes first (case 69)."""
    nat = ladder(Settings(connections=2))
    idle = nat.connect(ALICE, PAC).start()
    call = nat.call(BOB, call_id=1).to(PAC, answers=1)
    another = nat.call(ALICE, call_id=1).to(OTHER_PAC, answers=2)

    assert 1 == nat.counted("connections_evicted")
    assert call.carries
    assert another.carries
    another.control.rst(ALICE)
    nat.wait(6)
    assert idle.ask(ALICE, 5).answer(6).carries


def test_calls_are_limited(ladder: MakeLadder) -> None:
    """The number of a refused call is not kept, and the call that ends makes room."""
    nat = ladder(Settings(calls=2))
    calls = [nat.call(ALICE, call_id=n).to(PAC, answers=n) for n in (1, 2)]
    used = nat.translator.book.bindings.used()
    bob = nat.connect(BOB, PAC).start()

    assert pack(M.OUTGOING_CALL_REQUEST) == bob.say(BOB, REQUEST)
    assert ["calls_limit"] == nat.refusals
    assert used == nat.translator.book.bindings.used()
    assert all(call.carries for call in calls)
    calls[0].disconnect()
    assert bob.ask(BOB, 3).answer(3).carries


def test_calls_of_one_connection_are_limited(ladder: MakeLadder) -> None:
    """One host cannot have all the room; others are not concerned."""
    nat = ladder(Settings(calls_per_connection=2))
    control = nat.connect(ALICE, PAC).start()
    calls = [control.ask(ALICE, n).answer(n) for n in (1, 2)]

    assert REQUEST != control.say(ALICE, REQUEST)  # the same number is the same call
    assert [] == nat.refusals
    refused = control.say(ALICE, pack(M.OUTGOING_CALL_REQUEST, call_id=3))
    assert pack(M.OUTGOING_CALL_REQUEST) == refused
    assert ["calls_per_connection_limit"] == nat.refusals
    assert all(call.carries for call in calls)
    assert nat.call(BOB, call_id=1).to(PAC, answers=9).carries
    calls[0].disconnect()
    assert control.ask(ALICE, 4).answer(4).carries


def test_what_comes_before_a_refused_request_is_not_done_twice(ladder: MakeLadder) -> None:
    """One segment: a request for which there is room, and one for which there is none (7, 23)."""
    nat = ladder(Settings(calls=1))
    control = nat.connect(ALICE, PAC).start()
    both = REQUEST, pack(M.OUTGOING_CALL_REQUEST, call_id=2)
    heard = control.say(ALICE, *both)
    assert pack(M.OUTGOING_CALL_REQUEST) == heard[168:]
    control.repeat(ALICE)  # the conversation looks at every octet that comes twice
    control.repeat(ALICE, cuts=[13, 168, 181])
    assert 1 == nat.live
    assert 2 == nat.translator.book.messages[M.OUTGOING_CALL_REQUEST, True]
    assert ["calls_limit"] == nat.refusals
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=1)


def test_a_connection_with_the_kernels_helper_passes_untouched(nat: Ladder) -> None:
    """Two translators would undo each other, so this one only counts (case 70)."""
    control = nat.connect(ALICE, PAC, helper="pptp").start()
    call = control.ask(ALICE, 1).answer(100)

    assert {PAC: 1, ALICE: 100} == call.heard
    assert call.record is None
    assert {} == nat.legs.carried
    assert 4 == nat.counted("kernel_helper")
    assert nat.call(BOB, call_id=1).to(PAC, answers=101).carries
    control.rst(ALICE)
    nat.wait(6)
    assert 1 == followed(nat)


def test_another_mark_is_seen_at_an_echo(nat: Ladder) -> None:
    """Policy routing changes a connection's mark; the GRE of its calls has to follow."""
    control = nat.connect(ALICE, PAC, mark=3).start()
    calls = [control.ask(ALICE, n).answer(100 + n) for n in (1, 2)]
    bob = nat.call(BOB, call_id=1).to(PAC, answers=200)
    assert [0, 0, 3, 3, 3, 3] == sorted(nat.marks.values())

    control.mark = 5
    before = len(nat.events)
    control.echo(ALICE)
    assert [0, 0, 5, 5, 5, 5] == sorted(nat.marks.values())
    assert 4 == len(nat.events[before:])
    control.echo(PAC)
    assert 4 == len(nat.events[before:])  # nothing is new
    assert all(call.carries for call in (*calls, bob))
    control.ask(ALICE, 3).answer(103)
    assert [0, 0] + [5] * 6 == sorted(nat.marks.values())


def test_a_silent_connection_without_calls_is_forgotten(nat: Ladder) -> None:
    """Its ends may have vanished; should it speak again it is picked up."""
    control = nat.connect(ALICE, PAC).start()
    nat.wait(7_100)
    assert 1 == followed(nat)
    nat.wait(200)
    assert 0 == followed(nat)

    assert control.ask(ALICE, 1).answer(100).carries


@pytest.mark.parametrize("octets", [
    b"", b"\x45", bytes(40), b"\x60" + bytes(59), b"\x45\0\0\x28" + bytes(36),
    b"\x45\0\xff\xff\0\0\0\0\x40\x06" + bytes(50), b"\x4f" + bytes(39),
])  # fmt: skip
def test_what_is_no_tcp_segment_passes(nat: Ladder, octets: bytes) -> None:
    """IPv6 and packets that contradict themselves are none of our business (case 67)."""
    outcome = nat.translator.handle(octets, nat.now, packet_id=1)

    assert (Verdict.ACCEPT, None) == (outcome.verdict, outcome.packet)
    assert 1 == nat.counted("not_a_segment")
