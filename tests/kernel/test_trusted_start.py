"""A start that believes its records: what is otherwise in the kernel is found while it serves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from pptp_nat.core.bindings import Pair
from pptp_nat.core.events import Outcome, legs_up
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Leg, Placement, Seat
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.datapath import LegOrder
from pptp_nat.router import upkeep as upkeep_module
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.upkeep import Upkeep
from pptp_nat.state import records
from pptp_nat.state.adoption import Adoption, rebuilt
from pptp_nat.state.contents import Contents
from pptp_nat.state.store import Found

from .conntrack_lab import (
    CLIENT,
    EXTERNAL,
    OTHER,
    SERVER,
    ConntrackLab,
    inbound,
    octets,
    outbound,
)  # fmt: skip

pytestmark = pytest.mark.kernel
PAIR = Pair(octets(EXTERNAL), octets(SERVER))
MINE = [inbound(2000, 7), outbound(300)]
CONNECTION = Placement(
    Flow(octets(CLIENT), 4711, octets(SERVER), 1723),
    Seat(octets(CLIENT), octets(EXTERNAL)), Seat(octets(SERVER), octets(SERVER)), 0,
)  # fmt: skip


def found(*, exact: bool = True) -> Found:
    """Return records of one call, whose legs are `MINE`."""
    before = Translator(lambda _: None, lambda: 7)
    before.restore(rebuilt(MINE, [CONNECTION], {}, before.book.next_id, 1.0), 1.0)
    contents = Contents()
    records.read(b"".join(records.whole(before.snapshot())), contents)
    return Found(contents, exact=exact, this_boot=True, wall=0.0, source="here")


class Start:
    """A daemon's parts that begin after a crash."""

    def __init__(self, lab: ConntrackLab, conntrack: Conntrack) -> None:
        self.lab = lab
        self.conntrack = conntrack
        draws = itertools.chain((2000, 2000), itertools.count(3000))
        self.translator = Translator(lambda _: None, lambda: next(draws))
        self.carrier = Carrier(ConntrackPath(conntrack))
        self.upkeep = Upkeep(
            self.translator, self.carrier, conntrack, self.carry_out, lambda: None
        )
        self.is_believed = False

    def carry_out(self, outcome: Outcome, now: float) -> None:
        self.carrier.before(outcome.events, now)
        self.carrier.after(outcome.events, now)

    def begin(self, known: Found, live: list[Placement] | None = None) -> None:
        with self.lab.router.entered():
            adopted = Adoption(self.translator, self.carrier).begin(known, live or [], 10.0)
        self.is_believed = adopted.trusted is not None
        if self.is_believed:
            self.upkeep.look_around([1723], 10.0)

    def look(self) -> None:
        """Take all steps of the look that is due."""
        with self.lab.router.entered():
            self.upkeep.tick(12.0)
            while self.upkeep._work:
                self.upkeep._proceed()

    def carried(self) -> set[Leg]:
        return {entry.leg for entry in self.conntrack.entries()}


@pytest.fixture
def start(
    lab: ConntrackLab, conntrack: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Start]:
    monkeypatch.setattr(upkeep_module, "_LOOK_SECONDS", 1.0)

    def begun(*legs: Leg, mark: int = 0) -> Start:
        conntrack.insert([LegOrder(leg, mark) for leg in legs])
        return Start(lab, conntrack)

    return begun


def test_nothing_is_read_before_packets_are_served(
    start: Callable[..., Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 100,000 calls each look at the table takes seconds."""
    here = start(*MINE)
    for name in ("_dump", "_bodies", "leg_pieces", "count_pieces", "control_pieces"):
        monkeypatch.setattr(here.conntrack, name, None)
    here.begin(found())
    assert here.is_believed
    assert 1 == len(here.translator.book.calls)


def test_what_is_as_it_was_stays_as_it_is(start: Callable[..., Start]) -> None:
    here = start(*MINE)
    before = sorted(entry.identity for entry in here.conntrack.entries())
    here.begin(found())
    here.look()
    assert before == sorted(entry.identity for entry in here.conntrack.entries())
    assert here.translator.book.bindings.doubt is None
    assert 0 == here.upkeep.restored


def test_an_orphan_that_is_found_late_goes_and_its_number_is_kept_back(
    start: Callable[..., Start],
) -> None:
    """Its call ended on record, and the process died before its entries went."""
    here = start(*MINE, inbound(2001, 8, OTHER), outbound(301, OTHER))
    here.begin(found())
    assert 4 == len(here.carried()), "nobody has looked yet"
    here.look()
    assert set(MINE) == here.carried()
    assert here.translator.book.bindings.has(PAIR, 2001)
    assert [(PAIR, 2001)] == [
        (pair, number) for _, pair, number in here.translator.book.bindings.quarantined()
    ]


def test_no_call_gets_a_number_that_an_orphan_holds_still(start: Callable[..., Start]) -> None:
    """Calls come up from the first moment, and what is carried is not known yet."""
    here = start(*MINE, inbound(2001, 8, OTHER))
    here.begin(found())
    bindings = here.translator.book.bindings
    given = {bindings.reserve(PAIR, number, 2000 >> 8) for number in range(1, 250)}
    assert not given & {2000, 2001}
    here.look()
    assert bindings.has(PAIR, 2001)
    assert set(MINE) == here.carried()


def test_a_call_that_takes_an_orphan_s_match_is_its_only_owner(
    start: Callable[..., Start],
) -> None:
    """A server may give the number again, at once: what comes for it is the new call's."""
    here = start(inbound(2001, 8), outbound(300), *MINE[:1])
    here.begin(Found(Contents(), exact=True, this_boot=True, wall=0.0, source="here"))
    taken = rebuilt([outbound(300)], [CONNECTION], {}, here.translator.book.next_id, 1.0)
    here.translator.restore(taken, 10.0)
    (call,) = here.translator.book.calls.values()
    here.carrier.before(list(legs_up([call])), 10.0)
    here.look()
    assert {outbound(300)} == here.carried()
    here.carry_out(here.translator.clear([call], 11.0), 11.0)
    assert set() == here.carried(), "nobody else has it"


def test_records_are_not_believed_where_nothing_is_carried(start: Callable[..., Start]) -> None:
    """The table was flushed meanwhile, or another data path carried until now."""
    here = start()
    here.begin(found(), [CONNECTION])
    assert set(MINE) == here.carried(), "at once"
    assert not here.is_believed


@pytest.fixture
def _unsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the one call not be among those that are looked at."""
    monkeypatch.setattr(Adoption, "_is_carried", lambda _: True)


@pytest.mark.usefixtures("_unsampled")
def test_an_entry_that_is_missing_is_put_back(start: Callable[..., Start]) -> None:
    """Somebody deleted it while nobody listened."""
    here = start(MINE[0])
    here.begin(found())
    here.look()
    assert set(MINE) == here.carried()
    assert 1 == here.upkeep.restored


@pytest.mark.usefixtures("_unsampled")
def test_an_entry_that_leads_elsewhere_is_made_anew(start: Callable[..., Start]) -> None:
    """A call got another number on record, and the process died before the kernel knew."""
    here = start(inbound(2000, 6), MINE[1], mark=0)
    here.begin(found())
    here.look()
    assert set(MINE) == here.carried()
    (call,) = here.translator.book.calls.values()
    here.carry_out(here.translator.clear([call], 11.0), 11.0)
    assert set() == here.carried()


def test_a_connection_that_ended_meanwhile_ends_its_calls(start: Callable[..., Start]) -> None:
    """Conntrack does not know it; its hosts are given the time to show that it lives."""
    here = start(*MINE)
    here.begin(found())
    here.look()
    assert 1 == len(here.translator.book.calls)
    due = max(due for _, due in here.upkeep._lost.values())
    here.upkeep.tick(due + 1)
    for moment in (20.0, 200.0):
        here.carry_out(here.translator.tick(due + moment), due + moment)
    assert {} == dict(here.translator.book.calls)
    assert set() == here.carried()


def test_records_that_are_not_exact_are_compared_first(start: Callable[..., Start]) -> None:
    here = start(*MINE, inbound(2001, 8, OTHER))
    here.begin(found(exact=False), [CONNECTION])
    assert set(MINE) == here.carried()
    assert here.translator.book.bindings.has(PAIR, 2001)
    assert here.translator.book.bindings.doubt is None
