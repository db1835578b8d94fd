"""Totals of GRE: they never fall and never count a packet twice, whatever happens to the legs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import LegDown, LegUp
from pptp_nat.core.states import CallState
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Party, Placement, Seat
from pptp_nat.linux.conntrack_ends import Ended
from pptp_nat.linux.conntrack_insertion import Inserted, Met
from pptp_nat.linux.conntrack_legs import Standing
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router import carrier as carrier_module
from pptp_nat.router import listening as listening_module
from pptp_nat.router.carried import Counts
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.listening import Listening
from pptp_nat.router.restoration import Restoration
from pptp_nat.router.totals import Totals
from pptp_nat.state.adoption import Adoption

SERVER, EXTERNAL = bytes((198, 18, 7, 2)), bytes((198, 18, 7, 1))
SIZE = 100  #: octets of each packet


def client(number):
    return bytes((192, 168, 77, number))


def call(number, *, host=10, nat=True):
    """Return a call that is up, of the inside host *host*."""
    own = client(host)
    flow = Flow(own, 40000 + number, SERVER, 1723)
    seats = Seat(own, EXTERNAL if nat else own), Seat(SERVER, SERVER)
    connection = Connection.placed(number, Placement(flow, *seats, 0), 0.0, is_local=False)
    made = Call(number, connection, Party.ORIGINATOR, Party.ORIGINATOR, 0.0)
    made.give(Party.ORIGINATOR, 7, number if nat else 7)
    made.give(Party.RESPONDER, 100 + number, 100 + number)
    return made


def ups(of):
    return [LegUp(of, party, of.leg(party), 0) for party in Party]


def downs(of):
    return [LegDown(of, party, of.leg(party)) for party in Party]


class Kernel:
    """Conntrack's table as `ConntrackPath` uses it, with the kernel's way of writing ahead."""

    lifetime = 100
    entry_mark = 0

    def __init__(self):
        self.table = {}  # match -> [leg, packets]

    def insert(self, orders):
        done = Inserted({}, {}, [])
        for leg, mark in orders:
            there = self.table.get(Match(*leg[:3]))
            if there is None:
                self.table[Match(*leg[:3])] = [leg, 0]
            else:
                assert there[0] == leg
                done.met[leg] = Met(LegOrder(leg, mark), tally(there[1]), stays=True)
        return done

    def find(self, legs):
        found = [self.table.get(Match(*leg[:3])) for leg in legs]
        return [Entry(*each) for each in found if each is not None]

    def delete(self, legs):
        gone = {}
        for leg in legs:
            if (entry := self.table.pop(Match(*leg[:3]), None)) is not None:
                gone[Match(*leg[:3])] = tally(entry[1])
        return gone

    def remark(self, orders):
        pass

    def counts(self):
        return {match: tally(packets) for match, (_, packets) in self.table.items()}

    def leg_pieces(self):
        """Show every entry as old: to be renewed."""
        yield [Standing(leg, 0, 1) for leg, _ in self.table.values()]

    def renew(self, entries):
        counted = {}
        for entry in entries:
            there = self.table[Match(*entry.leg[:3])]
            counted[entry.leg] = tally(there[1])
            there[1] = 0
        return counted, None

    def count_pieces(self):
        """Write the next piece when its predecessor is read; some entries come twice."""
        names = iter(list(self.table))
        ahead = self._write(names)
        while ahead:
            piece, ahead = ahead, self._write(names)
            yield piece
        yield {}

    def _write(self, names: Iterator[Match]):
        taken = [name for name in itertools.islice(names, 2) if name in self.table]
        return {name: tally(self.table[name][1]) for name in taken}


class Entry:
    """As much of a conntrack entry as `ConntrackPath` looks at."""

    def __init__(self, leg, packets):
        self.leg = leg
        self.carried = tally(packets)


def tally(packets):
    return Tally(packets, packets * SIZE)


numbers = st.integers(1, 3)


class AnyOrder(RuleBasedStateMachine):
    """Packets, calls, readings, strangers and renewals in whatever order."""

    @initialize(by_client=st.booleans(), few=st.sampled_from([0, 512]))
    def build(self, by_client, few):
        carrier_module.FEW_CALLS = listening_module.FEW_CALLS = few
        listening_module.time = SimpleNamespace(
            monotonic=lambda: self.now, thread_time=lambda: 0.0
        )
        self.kernel = Kernel()
        self.path = ConntrackPath(self.kernel)
        self.carrier = Carrier(self.path)
        self.totals = self.carrier.totals
        self.totals.by_client = by_client
        self.live = {}
        self.now = 0.0
        translator = SimpleNamespace(book=SimpleNamespace(calls=self.live), heard=self.heard)
        self.listening = Listening(translator, self.carrier)
        self.restoration = Restoration(self.live, self.carrier)
        self.deleted = []  # by strangers, and not told yet: (leg, packets)
        self.sent = [0, 0]  # by "to the inside"
        self.path.catch_up = self.deletions_are_told
        self.sent_to = {}  # of calls that are up, by party
        self.told = [0, 0]

    @rule(number=numbers)
    def comes_up(self, number):
        if number not in self.live:
            self.live[number] = call(number)
            self.sent_to[number] = [0, 0]
            self.carrier.before(ups(self.live[number]), 0.0)

    @rule(number=numbers)
    def ends(self, number):
        if number in self.live:
            ended = self.live.pop(number)
            ended.state = CallState.GONE
            counts = self.carrier.after(downs(ended), 0.0)
            assert {ended.id: Counts(*map(tally, self.sent_to.pop(number)))} == counts

    @rule()
    def somebody_asks_for_the_table(self):
        """Show of each call what was sent to its parties, deletions or not."""
        tallies = self.path.tallies()
        for number, each in self.live.items():
            expected = Counts(*map(tally, self.sent_to[number]))
            assert expected == self.carrier.counts(each, tallies)

    @rule(number=numbers)
    def somebody_asks_for_one_call(self, number):
        if number in self.live:
            each = self.live[number]
            tallies = self.carrier.tallies_of([each])
            self.listening.note(tallies, self.now)
            counts = self.carrier.counts(each, tallies)
            assert Counts(*map(tally, self.sent_to[number])) == counts

    @rule(number=numbers, party=st.sampled_from(Party), count=st.integers(1, 3))
    def sends(self, number, party, count):
        if number in self.live:
            leg = self.live[number].leg(party)
            if (entry := self.kernel.table.get(Match(*leg[:3]))) is not None:
                entry[1] += count
                self.sent[party is Party.ORIGINATOR] += count
                self.sent_to[number][party] += count

    @rule(pieces=st.integers(1, 4))
    def a_look_goes_on(self, pieces):
        for _ in range(pieces):
            self.now = max(self.now, self.listening.next_timer())
            self.listening.tick(self.now)

    @rule()
    def a_look_is_waited_for(self):
        for _ in self.listening.freshen():
            pass

    def heard(self, call, packets, _now):
        """Check that who is heard has carried something since."""
        assert call.packets < packets <= sum(self.sent_to[call.id])
        call.packets = packets

    @rule(number=numbers, party=st.sampled_from(Party))
    def a_stranger_deletes(self, number, party):
        if number in self.live:
            leg = self.live[number].leg(party)
            if (entry := self.kernel.table.pop(Match(*leg[:3]), None)) is not None:
                self.deleted.append((leg, entry[1]))

    def deletions_are_told(self):
        self.restoration.hear([Ended(leg, tally(packets)) for leg, packets in self.deleted])
        self.deleted = []

    @rule()
    def deletions_are_told_and_not_mended_yet(self):
        self.deletions_are_told()

    @rule()
    def deletions_are_told_and_mended(self):
        self.deletions_are_told()
        while self.restoration:
            self.restoration.step(0.0)
        assert self.is_whole()

    def is_whole(self):
        matches = {
            Match(*each.leg(party)[:3]) for each in self.live.values() for party in Party
        }
        return not self.deleted and matches <= self.kernel.table.keys()

    @precondition(is_whole)  # at once deletions are told and mended
    @rule()
    def entries_are_renewed(self):
        self.path._due = 0.0
        for _ in self.carrier.renew(1.0):
            pass

    @invariant()
    def nothing_falls_and_nothing_is_invented(self):
        for way in (0, 1):
            assert self.told[way] <= self.totals.packets[way] <= self.sent[way]
            assert self.totals.octets[way] == self.totals.packets[way] * SIZE
        self.told = list(self.totals.packets)

    def teardown(self):
        if not hasattr(self, "kernel"):
            return
        carrier_module.FEW_CALLS = listening_module.FEW_CALLS = 512
        listening_module.time = time
        for number in list(self.live):
            self.ends(number)
        assert self.sent == self.totals.packets
        assert len(self.totals) == 0
        assert {} == self.totals.clients


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_the_kernel_wrote_before_somebody_looked_is_no_new_beginning(monkeypatch) -> None:
    """A look that is under way has the next piece in its socket already, with older counts."""
    for module in (carrier_module, listening_module):
        monkeypatch.setattr(module, "FEW_CALLS", 0)
    kernel = Kernel()
    carrier = Carrier(ConntrackPath(kernel))
    calls = {each.id: each for each in map(call, (1, 2))}
    heard = lambda call, packets, _now: setattr(call, "packets", packets)  # noqa: E731
    translator = SimpleNamespace(book=SimpleNamespace(calls=calls), heard=heard)
    listening = Listening(translator, carrier)
    for each in calls.values():
        carrier.before(ups(each), 0.0)
    entry = kernel.table[Match(*calls[2].leg(Party.RESPONDER)[:3])]
    entry[1] = 5
    listening.tick(0.0)  # the second piece is written
    entry[1] = 8
    listening.note(carrier.tallies_of([calls[2]]), 0.0)
    while listening.next_timer() <= 0.0:
        listening.tick(0.0)
    assert [5, 0] == carrier.totals.packets
    for _ in listening.freshen():
        pass

    assert ([8, 0], 8) == (carrier.totals.packets, calls[2].packets)


def test_both_directions_are_those_of_the_table() -> None:
    """What goes to the hidden party goes inside; in plain routing the PNS is shown as inside."""
    for nat in (True, False):
        totals = Totals({})
        up = call(9, nat=nat)
        for each in ups(up):
            totals.begin(each)
        inward, outward = (Match(*up.leg(party)[:3]) for party in Party)
        totals.read({inward: Tally(3, 300), outward: Tally(5, 700)})

        assert ([5, 3], [700, 300]) == (totals.packets, totals.octets)


def test_a_leg_that_two_calls_share_counts_until_the_second_is_over() -> None:
    """A client that dials again while its old connection is half open."""
    totals = Totals({})
    first = call(3)
    outward = LegUp(first, Party.RESPONDER, first.leg(Party.RESPONDER), 0)
    match = Match(*outward.leg[:3])
    totals.begin(outward)
    totals.begin(outward)
    totals.end(LegDown(*outward[:3]), Tally(4, 400))
    totals.read({match: Tally(6, 600)})
    totals.end(LegDown(*outward[:3]), Tally(7, 700))
    totals.read({match: Tally(9, 900)})

    assert [7, 0] == totals.packets
    assert 0 == len(totals)


def test_what_an_earlier_run_has_counted_is_not_counted_again() -> None:
    """A restart must not look like a burst of all that calls have ever carried."""
    up = call(3)
    inward, outward = (Match(*up.leg(party)[:3]) for party in Party)
    totals = Totals({})
    totals.adopt([up])
    assert [] == totals.read({inward: Tally(1000, 100_000), outward: Tally(0, 0)})
    totals.read({inward: Tally(1003, 100_300), outward: Tally(2, 200)})

    assert ([2, 3], [200, 300]) == (totals.packets, totals.octets)


def test_what_calls_without_records_had_carried_is_not_counted_again() -> None:
    """A journal that is lost must not look like a burst of all that calls have ever carried."""
    kernel = Kernel()
    up = call(3)
    inward, outward = (up.leg(party) for party in Party)
    for leg, packets in ((inward, 1000), (outward, 2000)):
        kernel.table[Match(*leg[:3])] = [leg, packets]
    translator, carrier = Translator(lambda _: None, lambda: 7), Carrier(ConntrackPath(kernel))
    placement = Placement(up.connection.flow, *map(up.connection.seat, Party), 0)
    Adoption(translator, carrier).begin(None, [placement], 0.0)
    assert 1 == len(translator.book.calls)
    listening = Listening(translator, carrier)
    for more in (0, 3):
        kernel.table[Match(*inward[:3])][1] += more
        for _ in listening.freshen():
            pass
        assert [0, more] == carrier.totals.packets


def test_a_client_is_known_as_long_as_it_has_legs() -> None:
    """What is kept per client is bounded by the calls that are up."""
    totals = Totals({})
    totals.by_client = True
    calls = [call(1, host=10), call(2, host=10), call(3, host=11)]
    for each in calls:
        for up in ups(each):
            totals.begin(up)
        totals.read({Match(*each.leg(party)[:3]): Tally(2, 50) for party in Party})
    assert [4, 4] == totals.clients[client(10)].packets
    assert [50, 50] == totals.clients[client(11)].octets

    for each in calls[:2]:
        for down in downs(each):
            totals.end(down, Tally(3, 75))
    assert {client(11)} == set(totals.clients)
    assert [8, 8] == totals.packets


def test_the_queue_path_yields_its_counts_in_pieces_of_the_same_truth() -> None:
    """Thousands of legs are read between packets, not instead of them."""
    path = QueuePath()
    calls = [call(number, host=number % 200 + 1) for number in range(1, 701)]
    orders = [LegOrder(each.leg(party), 0) for each in calls for party in Party]
    path.install(orders)
    for packets, order in enumerate(orders):
        path.credit(order.leg, Tally(packets, packets * SIZE))
    pieces = list(path.tally_pieces())

    assert 1400 == sum(map(len, pieces))
    assert len(pieces) > 1
    assert path.tallies() == {match: got for piece in pieces for match, got in piece.items()}


@pytest.mark.parametrize("reset", [0, 3])
def test_a_count_that_began_anew_counts_in_full(reset) -> None:
    """An entry that somebody has replaced starts at zero; the total goes on."""
    totals = Totals({})
    up = call(3)
    inward = ups(up)[0]
    totals.begin(inward)
    totals.read({Match(*inward.leg[:3]): Tally(10, 1000)})
    totals.read({Match(*inward.leg[:3]): Tally(reset, reset * 100)})

    assert [0, 10 + reset] == totals.packets
