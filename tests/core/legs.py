"""A data path on paper: what is carried, for whom, and that nobody is in anybody's way."""

from __future__ import annotations

from collections import defaultdict

from pptp_nat.core.events import LegDown, LegUp, Outcome
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Address, Leg

Match = tuple[Address, Address, int]


class Legs:
    """Carries out leg orders as `pptp_nat.linux.datapath.DataPath` describes."""

    def __init__(self) -> None:
        self.owners: dict[Match, dict[tuple[int, int], Leg]] = defaultdict(dict)

    def carry_out(self, outcome: Outcome) -> None:
        """Take the orders of *outcome*; complain where legs conflict or do not match up."""
        towards_inside = set()
        for event in outcome.events:
            if isinstance(event, LegUp):
                owners = self.owners[event.leg[:3]]
                owner = event.call.id, event.party
                assert owner not in owners, f"{event.leg} is up already"
                owners.pop(owner, None)
                owners[owner] = event.leg
                if event.call.connection.seat(event.party).inside:
                    towards_inside.add(event.leg[:3])
        for event in outcome.events:
            if isinstance(event, LegDown):
                owners = self.owners[event.leg[:3]]
                leg = owners.pop((event.call.id, event.party), None)
                assert event.leg == leg, "a leg goes down as it went up"
                if not owners:
                    del self.owners[event.leg[:3]]
        for match in towards_inside:
            assert len(self.owners.get(match, ())) <= 1, "two inside hosts, one GRE key"

    @property
    def carried(self) -> dict[Match, Leg]:
        """What is carried now: the latest installation of each match."""
        return {match: list(owners.values())[-1] for match, owners in self.owners.items()}


def run_out(translator: Translator, legs: Legs, now: float, *, hours: float = 12) -> float:
    """Let every time run out; return when that was."""
    end = now + hours * 3600
    while (due := translator.next_timer()) is not None and due < end and _busy(translator):
        now = max(now, due)
        legs.carry_out(translator.tick(now))
    return now


def _busy(translator: Translator) -> bool:
    book = translator.book
    return bool(book.connections or book.retired or book.bindings.used() or translator._holds)


def assert_empty(translator: Translator, legs: Legs) -> None:
    """Nothing of the past is kept anywhere."""
    book = translator.book
    assert {} == dict(book.connections)
    assert {} == dict(book.calls)
    assert [] == list(book.retired)
    assert {} == book.bindings.used()
    assert [] == book.bindings.quarantined()
    assert {} == dict(book.bindings._shares)
    assert {} == dict(book.bindings._zeros)
    assert {} == {kind: queue for kind, queue in book.deadlines.items() if queue}
    assert {} == translator._holds
    assert {} == dict(legs.owners)
