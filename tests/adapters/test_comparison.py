"""What others have deleted is put back in steps, between which calls come and go."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pptp_nat.core.calls import Call
from pptp_nat.core.states import CallState
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.leg_table import name_of
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router import upkeep as adapter
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.upkeep import Upkeep
from tests.adapters.test_carried import EXTERNALS, call, down, name, up

CALLS = 600


class Fragile(QueuePath):
    """Legs that others can delete, and a reading that may be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.is_refused = False
        self.asked: list[LegOrder] = []  #: to be put back

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        if self.is_refused:
            raise AdapterError("counting GRE", errno.ENOBUFS)
        yield from super().tally_pieces()

    def restore(self, orders):
        self.asked += orders
        return super().restore(orders)

    def delete(self, made: Call) -> None:
        for party in Party:
            leg = made.leg(party)
            assert leg is not None
            self._drop(name_of(leg))


class Scene:
    """Calls that are carried; of some both legs are deleted."""

    def __init__(self) -> None:
        self.path = Fragile()
        self.carrier = Carrier(self.path)
        self.calls: dict[int, Call] = {}
        for number in range(1, CALLS + 1):
            self.begins(number)

    def begins(self, number: int) -> None:
        made = self.calls[number] = call(number, EXTERNALS[0], number)
        self.carrier.before(up(made, *Party), 0.0)

    def ends(self, number: int) -> None:
        made = self.calls.pop(number)
        made.state = CallState.GONE
        self.carrier.after(down(made, *Party), 0.0)

    def wanted(self) -> set[Match]:
        return {name(each, party) for each in self.calls.values() for party in Party}


@pytest.fixture
def scene() -> Scene:
    return Scene()


def steps(work: Iterator[None]) -> int | None:
    """Take all steps of *work*; return what it did."""
    while True:
        try:
            next(work)
        except StopIteration as over:
            return over.value  # type: ignore[no-any-return]


def test_what_is_missing_is_put_back_and_nothing_else(scene: Scene) -> None:
    """A leg that is there must not be made anew: its counts would begin again."""
    gone = [scene.calls[number] for number in (1, 300, CALLS)]
    for made in gone:
        scene.path.delete(made)
    assert 6 == steps(scene.carrier.compare(scene.calls, lambda: 1.0))
    assert scene.wanted() == set(scene.path.matches())
    assert {name(made, party) for made in gone for party in Party} == {
        Match(*order.leg[:3]) for order in scene.path.asked
    }


@pytest.mark.parametrize("moment", range(7))
def test_calls_that_come_and_go_between_two_steps_stay_as_they_are(
    scene: Scene, moment: int
) -> None:
    """What is compared is what the calls are at that moment, not when it began."""
    for number in (1, 2, 300, 301, CALLS):
        scene.path.delete(scene.calls[number])
    work = scene.carrier.compare(scene.calls, lambda: 1.0)
    for _ in range(moment):
        next(work)
    for number in (2, 301, 400):
        scene.ends(number)
    for number in (CALLS + 1, CALLS + 2):
        scene.begins(number)
    scene.ends(3)
    scene.begins(3)
    steps(work)
    assert scene.wanted() == set(scene.path.matches())
    fresh = {name(scene.calls[number], party) for number in (3, CALLS + 1) for party in Party}
    assert not fresh & {Match(*order.leg[:3]) for order in scene.path.asked}


def test_a_step_is_short_however_many_calls_there_are(scene: Scene) -> None:
    """As many are compared in a step of six hundred calls as of a hundred thousand."""
    for made in scene.calls.values():
        scene.path.delete(made)
    most, before = 0, 0
    for _ in scene.carrier.compare(scene.calls, lambda: 1.0):
        most, before = max(most, len(scene.path.asked) - before), len(scene.path.asked)
    assert 2 * CALLS == len(scene.path.asked)
    assert most <= 256


def test_a_refused_reading_is_made_again_and_then_puts_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops answers when memory is short; the legs are still missing then."""
    monkeypatch.setattr(adapter, "_RECONCILE_SECONDS", 0.0)
    translator = Translator(lambda _: None, lambda: 7)
    translator.book.calls.update(scene.calls)
    nobody: Any = None
    upkeep = Upkeep(translator, scene.carrier, nobody, nobody, lambda: None)
    upkeep._due.clear()
    scene.path.delete(scene.calls[5])
    scene.path.is_refused = True
    upkeep._reconcile(0.0)
    upkeep._proceed()
    assert (0, 1) == (upkeep.restored, scene.carrier.failures)
    due = upkeep.next_timer()
    assert due is not None
    assert due <= time.monotonic()

    scene.path.is_refused = False
    while upkeep.restored == 0 or upkeep._work:
        upkeep.tick(time.monotonic())
    assert 2 == upkeep.restored
    assert upkeep.next_timer() is None
    assert scene.wanted() == set(scene.path.matches())
