"""Connections whose entries are gone: each of them ends, however many there are."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any

from pptp_nat.core.events import Outcome
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Leg, Placement, Seat
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_events import Change, CtEvent
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.upkeep import Upkeep
from pptp_nat.state.adoption import rebuilt

CLIENT = bytes((192, 168, 77, 9))
ROUTER, SERVER = bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2))


class Forgetful:
    """A conntrack without entries, that does not search its table twice in a row."""

    def __init__(self) -> None:
        self.asked = 0

    def locate(self, _flow: Flow, *, search: bool = True) -> Placement | None:
        """Say that there is none, every third time."""
        self.asked += 1
        if self.asked % 3 or search:
            raise AdapterError("searching conntrack", errno.EAGAIN)
        return None


def test_all_connections_that_are_lost_together_end() -> None:
    """A look-up that cannot be had now is made again, and keeps no other from being made."""
    translator = Translator(lambda _: None, lambda: 7)
    live, legs = [], []
    for number in range(1, 21):
        client = bytes((192, 168, 77, number))
        live.append(Placement(
            Flow(client, 4711, SERVER, 1723), Seat(client, ROUTER), Seat(SERVER, SERVER), 0
        ))  # fmt: skip
        legs += [
            Leg(SERVER, ROUTER, 1000 + number, SERVER, client, 7),
            Leg(client, SERVER, number, ROUTER, SERVER, number),
        ]
    translator.restore(rebuilt(legs, live, {}, translator.book.next_id, 1.0), 1.0)
    ended: list[Outcome] = []
    nobody: Any = None
    conntrack: Any = Forgetful()
    upkeep = Upkeep(
        translator, nobody, conntrack, lambda outcome, _now: ended.append(outcome), lambda: None
    )
    upkeep._due.clear()
    upkeep.unseen([each.flow for each in live], 1.0)
    for moment in range(200):
        upkeep.tick(91.0 + moment)
    assert 20 == len(ended)
    for due in (0.0, 400.0):
        translator.tick(300.0 + due)
    assert {} == dict(translator.book.calls)


def one_call() -> tuple[Placement, Translator]:
    """Return a control connection and a translator that knows it, and its one call."""
    live = Placement(
        Flow(CLIENT, 4711, SERVER, 1723), Seat(CLIENT, ROUTER), Seat(SERVER, SERVER), 0
    )
    translator = Translator(lambda _: None, lambda: 7)
    legs = [
        Leg(SERVER, ROUTER, 1000, SERVER, CLIENT, 7), Leg(CLIENT, SERVER, 9, ROUTER, SERVER, 9)
    ]  # fmt: skip
    translator.restore(rebuilt(legs, [live], {}, translator.book.next_id, 1.0), 1.0)
    return live, translator


class Moved:
    """A conntrack that knows one control connection, now by another address of the router."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def control_pieces(self, _ports: object) -> Iterator[list[Placement]]:
        yield [self.placement]

    def locate(self, _flow: Flow, *, search: bool = True) -> Placement | None:
        assert not search, "nobody is inside at both ends"
        return self.placement


def test_a_connection_that_is_seen_as_somebody_else_since_a_start_ends_with_its_calls() -> None:
    """Its server knows its calls by an address that is another call's now, or nobody's."""
    live, translator = one_call()
    here: Any = Moved(live._replace(originator=Seat(CLIENT, bytes((198, 18, 7, 3)))))
    ended: list[Outcome] = []
    upkeep = Upkeep(
        translator, Carrier(QueuePath()), here, lambda outcome, _now: ended.append(outcome),
        lambda: None,
    )  # fmt: skip
    upkeep.look_around([1723], time.monotonic() - 10.0)
    while not ended:
        upkeep.tick(time.monotonic())
    translator.tick(time.monotonic() + 10.0)
    assert {} == dict(translator.book.calls)


class Overrun:
    """A conntrack whose events found no room, and which knows no control connection."""

    def __init__(self) -> None:
        self.looks = 0

    def follow(self, _ports: object, _changes: object, *, but_ours: bool) -> None:
        assert but_ours

    def read_events(self) -> list[CtEvent]:
        return [CtEvent(Change.OVERRUN)]

    def control_pieces(self, ports: object) -> Iterator[list[Placement]]:
        assert [1799] == ports
        self.looks += 1
        if self.looks == 1:
            raise AdapterError("listing control connections", errno.ENOBUFS)
        yield []

    def locate(self, _flow: Flow, *, search: bool = True) -> Placement | None:
        assert not search, "nobody is inside at both ends"
        return None


def test_a_connection_whose_end_was_not_told_ends_all_the_same() -> None:
    """Somebody has emptied the table, and the socket had no room: one look, whatever it missed."""
    _, translator = one_call()
    overrun = Overrun()
    here: Any = overrun
    ended: list[Outcome] = []
    upkeep = Upkeep(
        translator, Carrier(QueuePath()), here, lambda outcome, _now: ended.append(outcome),
        lambda: None,
    )  # fmt: skip
    upkeep._due.clear()
    assert [] == upkeep.listen([1799], to_ends=False)
    for _ in range(5):
        upkeep.on_events(0)
    now = time.monotonic()
    upkeep.tick(now + 1.0)
    upkeep.tick(now + 10.0)
    assert 2 == overrun.looks, "one more after the refusal, not one for each overrun"
    assert [] == ended, "its entry may come back with its next echo"
    upkeep.tick(now + 200.0)
    assert 1 == len(ended)


def test_ends_of_connections_wait_until_entries_are_back() -> None:
    """A connection has a minute and more; for want of an entry packets are lost."""
    _, translator = one_call()
    here: Any = Overrun()
    carrier = Carrier(QueuePath())
    upkeep = Upkeep(translator, carrier, here, lambda _outcome, _now: None, lambda: None)
    upkeep._due.clear()
    upkeep._restoration._gone.append(Leg(SERVER, ROUTER, 1000, SERVER, CLIENT, 7))
    upkeep.on_events(0)
    assert {} == upkeep._due
    assert upkeep.next_timer() == 0.0

    upkeep.tick(time.monotonic())
    assert not upkeep._restoration
    upkeep.on_events(0)
    assert [upkeep._look_for_lost] == [each for each in upkeep._due if "look" in each.__name__]
