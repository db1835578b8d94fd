"""What a data path and the totals note of a leg lies in one number: neither sees the other's."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pptp_nat.core.tuples import Party
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.leg_table import name_of
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.totals import Totals
from tests.adapters.test_totals import call, downs, ups

numbers = st.integers(1, 4)
parties = st.sampled_from(Party)
#: as much as no leg will ever carry, and what most do
packets = st.one_of(st.integers(0, 3), st.integers(1 << 53, 1 << 54))
octets = st.one_of(st.integers(0, 300), st.integers(1 << 61, 1 << 62))


class Notes(RuleBasedStateMachine):
    """Each part is told of each leg when it likes, and is held against a table of its own."""

    @initialize(begun=st.lists(st.tuples(numbers, parties), max_size=6))
    def build(self, begun):
        self.path = QueuePath()
        self.totals = Totals(self.path.notes)
        # Identities as workers give them, and legs of the same name that two calls have.
        self.calls = {number: call(number % 3 + 1) for number in range(1, 5)}
        for number, each in self.calls.items():
            each.id = number << 40 | 1
        self.owners = {}  # name -> identities
        self.carried = {}  # match -> [order, its installations, packets, octets]
        self.read = {}  # name -> what was last read
        for number, party in begun:
            self.a_call_begins(number, party)
            self.a_leg_is_installed(number, party)

    @rule(number=numbers, party=parties)
    def a_call_begins(self, number, party):
        up = ups(self.calls[number])[party]
        self.totals.begin(up)
        self.owners.setdefault(name_of(up.leg), []).append(up.call.id)

    @rule(number=numbers, party=parties)
    def a_call_ends(self, number, party):
        down = downs(self.calls[number])[party]
        owners = self.owners.get(name_of(down.leg), [])
        if down.call.id in owners:
            owners.reverse()
            owners.remove(down.call.id)
            owners.reverse()
            self.totals.end(down, None)
            if not owners:
                del self.owners[name_of(down.leg)]
                self.read.pop(name_of(down.leg), None)

    @rule(number=numbers, party=parties)
    def a_leg_is_installed(self, number, party):
        leg = self.calls[number].leg(party)
        shared = self.path.install([LegOrder(leg, number)]).shared
        there = self.carried.setdefault(Match(*leg[:3]), [leg, 0, 0, 0])
        assert bool(shared) == (there[1] > 0)
        there[1] += 1

    @rule(number=numbers, party=parties)
    def a_leg_is_removed(self, number, party):
        leg = self.calls[number].leg(party)
        there = self.carried.get(Match(*leg[:3]))
        gone = self.path.remove([leg])
        assert gone == ({} if there is None else {Match(*leg[:3]): Tally(*there[2:])})
        if there is not None:
            there[1] -= 1
            if not there[1]:
                del self.carried[Match(*leg[:3])]

    @rule(number=numbers, party=parties, mark=st.integers(0, 0xFFFFFFFF))
    def a_leg_gets_another_mark(self, number, party, mark):
        self.path.remark([LegOrder(self.calls[number].leg(party), mark)])

    @rule(number=numbers, party=parties, packets=packets, octets=octets)
    def a_leg_carries(self, number, party, packets, octets):
        leg = self.calls[number].leg(party)
        there = self.carried.get(Match(*leg[:3]))
        if there and there[2] + packets < 1 << 55 and there[3] + octets < 1 << 63:
            self.path.credit(leg, Tally(packets, octets))
            there[2:] = there[2] + packets, there[3] + octets

    @rule()
    def counts_are_read(self):
        before = list(self.totals.packets), list(self.totals.octets)
        came = [0, 0]
        for piece in self.path.tally_pieces():
            self.totals.read(piece)
        for match, (_, _, *now) in self.carried.items():
            name = name_of(match)
            if name in self.owners:
                was = self.read.get(name, [0, 0])
                fell = any(new < old for new, old in zip(now, was, strict=True))
                for at in (0, 1):
                    came[at] += now[at] if fell else now[at] - was[at]
                self.read[name] = now
        assert sum(self.totals.packets) - sum(before[0]) == came[0]
        assert sum(self.totals.octets) - sum(before[1]) == came[1]

    @invariant()
    def each_knows_its_own(self):
        if not hasattr(self, "path"):
            return
        assert self.path.tallies() == {m: Tally(*each[2:]) for m, each in self.carried.items()}
        assert set(self.path.matches()) == self.carried.keys()
        assert len(self.totals) == len(self.owners)
        for each in self.calls.values():
            last = self.totals.last(each)
            for party in Party:
                name = name_of(each.leg(party))
                assert (self.totals.owner(name) is None) == (name not in self.owners)
                assert self.totals.owner(name) in [None, *self.owners.get(name, ())]
                assert last[party] == tuple(self.read.get(name, (0, 0)))

    def teardown(self):
        if not hasattr(self, "path"):
            return
        for number, party in ((n, p) for n in self.calls for p in Party for _ in range(50)):
            self.a_leg_is_removed(number, party)
            self.a_call_ends(number, party)
        assert {} == self.path.notes


TestNotes = Notes.TestCase
TestNotes.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
