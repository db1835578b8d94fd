"""Calls that no record tells of: what the kernel's entries alone say."""

from __future__ import annotations

import itertools
import time

from pptp_nat.core.calls import NOBODY
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Leg, Party, Placement, Seat
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.carrier import Carrier
from pptp_nat.state import records
from pptp_nat.state.adoption import Adoption, rebuilt
from pptp_nat.state.contents import Contents
from pptp_nat.state.store import Found

CLIENT, OTHER = bytes((192, 168, 77, 10)), bytes((192, 168, 77, 11))
ROUTER, SERVER = bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2))


def placement(client: bytes = CLIENT, port: int = 4711) -> Placement:
    return Placement(
        Flow(client, port, SERVER, 1723), Seat(client, ROUTER), Seat(SERVER, SERVER), 5
    )


def legs(client: bytes, own: int, seen: int, peers: int) -> list[Leg]:
    return [
        Leg(SERVER, ROUTER, seen, SERVER, client, own),
        Leg(client, SERVER, peers, ROUTER, SERVER, peers),
    ]


def restored(found: list[Leg], *live: Placement) -> Translator:
    translator = Translator(lambda _: None, lambda: 7)
    taken = rebuilt(found, live, {}, itertools.count(41).__next__, 1000.0)
    assert [] == translator.restore(taken, 1000.0)
    return translator


def carried(translator: Translator) -> set[Leg]:
    calls = translator.book.calls.values()
    return {leg for call in calls for party in Party if (leg := call.leg(party)) is not None}


def test_one_leg_each_way_between_two_hosts_is_a_call() -> None:
    found = legs(CLIENT, 7, 1000, 33) + legs(OTHER, 7, 1001, 34)
    translator = restored(found, placement(), placement(OTHER))

    assert set(found) == carried(translator)
    assert {(7, 33): (1000, 33), (7, 34): (1001, 34)} == {
        call.own: call.seen for call in translator.book.calls.values()
    }
    assert {5} == {each.mark for each in translator.book.connections.values()}
    assert min(translator.book.calls) > 40


def test_of_several_calls_of_two_hosts_each_number_is_known_and_none_is_paired() -> None:
    """It is enough to translate every message, and it ends no call in place of another."""
    found = legs(CLIENT, 7, 1000, 33) + legs(CLIENT, 8, 1001, 34)
    translator = restored(found, placement())

    assert set(found) == carried(translator)
    assert 4 == len(translator.book.calls)
    assert all(NOBODY in call.own for call in translator.book.calls.values())
    (connection,) = translator.book.connections.values()
    for own, seen in ((7, 1000), (8, 1001)):
        call = connection.find(Party.ORIGINATOR, seen, seen=True)
        assert call is not None
        assert own == call.own[Party.ORIGINATOR]


def test_legs_that_no_control_connection_joins_are_no_calls() -> None:
    assert set() == carried(restored(legs(CLIENT, 7, 1000, 33), placement(OTHER)))


def test_a_number_that_is_carried_is_given_to_nobody_else() -> None:
    translator = restored(legs(CLIENT, 7, 1000, 33), placement())
    (pair,) = translator.book.bindings.used()
    assert translator.book.bindings.has(pair, 1000)
    assert not translator.claim(*pair, 1000)


def test_a_clock_that_was_wrong_before_or_is_now_costs_no_call_its_times() -> None:
    """A router without a clock of its own begins at 1970, or at its last shutdown."""
    before = restored(legs(CLIENT, 7, 1000, 33), placement())
    for jump in (-1e9, -3600.0, 0.0, 3600.0, 1e9):
        contents = Contents()
        records.read(b"".join(records.whole(before.snapshot())), contents)
        contents.whole = False
        wall = time.time() - time.monotonic() + jump
        found = Found(contents, exact=False, this_boot=False, wall=wall, source="a copy")
        heir = Translator(lambda _: None, lambda: 7)
        carrier = Carrier(QueuePath())
        adopted = Adoption(heir, carrier).begin(found, [placement()], 50.0)
        (call,) = heir.book.calls.values()
        assert call.created <= 50.0
        assert 50.0 == call.last_gre
        assert [] == adopted.unseen
        assert 2 == len(set(carrier.path.matches()))
        heir.tick(50.0 + 3600)
        assert call.id in heir.book.calls, "it has its whole time again"
