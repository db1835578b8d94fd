"""What a call has carried is its own: shared legs, other numbers, ends in any order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import LegDown, LegUp
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Flow, Party, Placement, Seat
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Installed, LegOrder, Match, Tally
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.carried import Counts
from pptp_nat.router.carrier import Carrier

CLIENT, SERVER = bytes((192, 168, 77, 10)), bytes((198, 18, 7, 2))
EXTERNALS = bytes((198, 18, 7, 1)), bytes((198, 18, 7, 9))
SIZE = 100  #: octets of each packet


def call(number: int, external: bytes, servers: int) -> Call:
    """Return a call of the one client; *servers* is the number that the server gave it."""
    seats = Seat(CLIENT, external), Seat(SERVER, SERVER)
    placement = Placement(Flow(CLIENT, 40000 + number, SERVER, 1723), *seats, 0)
    made = Call(
        number, Connection.placed(number, placement, 0.0, is_local=False),
        Party.ORIGINATOR, Party.ORIGINATOR, 0.0,
    )  # fmt: skip
    made.give(Party.ORIGINATOR, 7, number)
    made.give(Party.RESPONDER, servers, servers)
    return made


def name(made: Call, party: Party) -> Match:
    leg = made.leg(party)
    assert leg is not None
    return Match(*leg[:3])


def up(made: Call, *parties: Party) -> list[LegUp]:
    return [LegUp(made, party, leg, 0) for party in parties if (leg := made.leg(party))]


def down(made: Call, *parties: Party) -> list[LegDown]:
    return [LegDown(made, party, leg) for party in parties if (leg := made.leg(party))]


class Owners(RuleBasedStateMachine):
    """Calls that have the outward leg in common; each packet is the latest owner's."""

    @initialize()
    def build(self) -> None:
        self.path = QueuePath()
        self.carrier = Carrier(self.path)
        self.live: dict[int, Call] = {}
        self.owners: dict[Match, list[int]] = {}  # by installation
        self.sent: Counter[tuple[int, Party]] = Counter()
        self.last = 0

    def expected(self, number: int) -> Counts:
        return Counts(*(
            Tally(self.sent[number, party], self.sent[number, party] * SIZE) for party in Party
        ))  # fmt: skip

    @rule(external=st.sampled_from(EXTERNALS), servers=st.integers(100, 101))
    def comes_up(self, external: bytes, servers: int) -> None:
        self.last += 1
        made = self.live[self.last] = call(self.last, external, servers)
        for party in Party:
            self.owners.setdefault(name(made, party), []).append(self.last)
        self.carrier.before(up(made, *Party), 0.0)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 9), servers=st.integers(100, 101))
    def gets_another_number(self, which: int, servers: int) -> None:
        """Have the server answer once more, with another number."""
        number = sorted(self.live)[which % len(self.live)]
        made = self.live[number]
        if made.own[Party.RESPONDER] == servers:
            return
        before = down(made, Party.RESPONDER)
        self.owners[name(made, Party.RESPONDER)].remove(number)
        made.give(Party.RESPONDER, servers, servers)
        self.owners.setdefault(name(made, Party.RESPONDER), []).append(number)
        self.carrier.before(up(made, Party.RESPONDER), 0.0)
        assert {} == self.carrier.after(before, 0.0)

    @precondition(lambda self: self.live)
    @rule(which=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    def end(self, which: list[int]) -> None:
        """One call ends, or several with their control connection."""
        numbers = sorted({sorted(self.live)[each % len(self.live)] for each in which})
        downs = []
        for number in numbers:
            made = self.live.pop(number)
            made.state = CallState.GONE
            downs += down(made, *Party)
            for party in Party:
                self.owners[name(made, party)].remove(number)
        counts = self.carrier.after(downs, 0.0)
        assert {number: self.expected(number) for number in numbers} == counts

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 9), servers=st.integers(100, 101))
    def gets_another_number_and_ends(self, which: int, servers: int) -> None:
        """Two packets whose verdicts travel in one send: what they take down goes together."""
        number = sorted(self.live)[which % len(self.live)]
        made = self.live.pop(number)
        downs = down(made, Party.RESPONDER)
        self.owners[name(made, Party.RESPONDER)].remove(number)
        made.give(Party.RESPONDER, servers, servers)
        self.carrier.before(up(made, Party.RESPONDER), 0.0)
        self.owners[name(made, Party.ORIGINATOR)].remove(number)
        made.state = CallState.GONE
        counts = self.carrier.after([*downs, *down(made, *Party)], 0.0)
        assert {number: self.expected(number)} == counts

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 9), party=st.sampled_from(Party), count=st.integers(1, 3))
    def sends(self, which: int, party: Party, count: int) -> None:
        made = self.live[sorted(self.live)[which % len(self.live)]]
        match = name(made, party)
        self.path.credit(made.leg(party), Tally(count, count * SIZE))
        self.sent[self.owners[match][-1], party] += count

    @rule()
    def somebody_looks(self) -> None:
        tallies = self.path.tallies()
        for number, made in self.live.items():
            assert self.expected(number) == self.carrier.counts(made, tallies)

    def teardown(self) -> None:
        if self.live:
            self.end(list(range(len(self.live))))
        assert {} == self.carrier._carried._shares
        assert {} == self.carrier._carried._former
        assert [] == list(self.path.matches())


TestOwners = Owners.TestCase
TestOwners.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


class Full(QueuePath):
    """A data path that has no room as long as it is told so."""

    is_full = True

    def install(self, orders):
        if self.is_full:
            return Installed({}, list(orders), AdapterError("installing", 7))
        return super().install(orders)


def two_of_one_match() -> tuple[Call, Call]:
    """Return two calls of one client to one server, who gave both the same number."""
    first, second = call(1, EXTERNALS[0], 100), call(2, EXTERNALS[1], 100)
    assert name(first, Party.RESPONDER) == name(second, Party.RESPONDER)
    return first, second


@pytest.mark.parametrize("ends", [1, 2])
def test_of_two_calls_that_wait_for_room_the_one_that_lives_is_carried(ends: int) -> None:
    """Their outward legs match the same packets; the end of one is no word about the other."""
    path = Full()
    carrier = Carrier(path)
    calls = two_of_one_match()
    for made in calls:
        carrier.before(up(made, *Party), 0.0)
    gone = calls[ends - 1]
    gone.state = CallState.GONE
    carrier.after(down(gone, *Party), 0.1)
    path.is_full = False
    carrier.tick(1.0)
    (lives,) = (made for made in calls if made is not gone)

    assert {name(lives, party) for party in Party} == set(path.matches())
    lives.state = CallState.GONE
    carrier.after(down(lives, *Party), 2.0)
    assert [] == list(path.matches())


@pytest.mark.parametrize("ends", [1, 2])
@pytest.mark.parametrize("is_there", [False, True])
def test_of_two_calls_whose_legs_may_be_there_both_are_owners(ends: int, *, is_there: bool) -> None:
    """The kernel's answers were lost; whichever ends, the other's legs stay."""
    path = Refusing()
    carrier = Carrier(path)
    calls = two_of_one_match()
    for made in calls:
        carrier.before(up(made, *Party), 0.0)
    if is_there:
        QueuePath.install(path, [LegOrder(leg, 0) for p in Party if (leg := calls[0].leg(p))])
    path.refuses = False
    carrier.tick(1.0)
    gone = calls[ends - 1]
    gone.state = CallState.GONE
    carrier.after(down(gone, *Party), 1.1)
    (lives,) = (made for made in calls if made is not gone)

    assert {name(lives, party) for party in Party} == set(path.matches())
    lives.state = CallState.GONE
    carrier.after(down(lives, *Party), 2.0)
    assert [] == list(path.matches())


def test_what_waits_for_room_gets_no_second_owner_by_a_look_around() -> None:
    """Entries of others were deleted meanwhile, so all that is missing is put back."""
    path = Full()
    carrier = Carrier(path)
    made = call(1, EXTERNALS[0], 100)
    carrier.before(up(made, *Party), 0.0)
    carrier.restore(up(made, *Party), 0.1)
    path.is_full = False
    carrier.tick(1.0)
    assert {name(made, party) for party in Party} == set(path.matches())
    made.state = CallState.GONE
    carrier.after(down(made, *Party), 1.0)

    assert [] == list(path.matches())


class Refusing(QueuePath):
    """A data path that refuses as long as it is told to."""

    refuses = True

    def remove(self, legs):
        if self.refuses:
            raise AdapterError("removing", 12)
        return super().remove(legs or [LEG])

    def install(self, orders):
        if self.refuses:
            raise AdapterError("installing", 12)
        return super().install(orders)


LEG = call(1, EXTERNALS[0], 100).leg(Party.RESPONDER)


def test_what_a_data_path_would_not_say_is_not_taken_for_zero() -> None:
    """The end of a call is told all the same, and removing is tried again."""
    path = Refusing()
    carrier = Carrier(path)
    made = call(1, EXTERNALS[0], 100)
    path.refuses = False
    carrier.before(up(made, Party.RESPONDER), 0.0)
    path.refuses = True
    made.state = CallState.GONE

    assert {1: None} == carrier.after(down(made, Party.RESPONDER), 0.0)
    assert carrier.failures == 1
    path.refuses = False
    due = carrier.next_timer()
    assert due is not None
    carrier.tick(due)
    assert [] == list(path.matches())
    assert carrier.next_timer() is None


def test_what_may_have_been_installed_has_no_second_owner_when_it_is_tried_again() -> None:
    """Otherwise its end would leave it there."""
    path = Refusing()
    carrier = Carrier(path)
    made = call(1, EXTERNALS[0], 100)
    leg = made.leg(Party.RESPONDER)
    carrier.before(up(made, Party.RESPONDER), 0.0)
    QueuePath.install(path, [LegOrder(leg, 0)])  # the kernel did it, and its answer was lost
    path.refuses = False
    carrier.tick(1.0)
    carrier.after(down(made, Party.RESPONDER), 1.0)

    assert [] == list(path.matches())
