"""When calls were last heard: seldom enough to be cheap, in pieces, and never made up."""

import pytest

from pptp_nat.core.tuples import Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import LegOrder
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router import listening
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.listening import SECONDS, SHARE, Listening
from tests.scenario.ladder import ALICE, BOB, PAC, Ladder


class Clock:
    """Time for the work, and time of the day, both set by hand."""

    def __init__(self):
        self.now = 1000.0
        self.spent = 0.0

    def monotonic(self):
        return self.now

    def perf_counter(self):
        return self.spent


class World:
    """Two calls on a data path, and who listens to them."""

    def __init__(self, clock):
        self.clock = clock
        self.nat = Ladder()
        for host, number in ((ALICE, 100), (BOB, 101)):
            self.nat.call(host, call_id=7).to(PAC, answers=number)
        self.calls = self.nat.calls
        self.path = QueuePath()
        for call in self.calls:
            self.path.install([LegOrder(call.leg(party), 0) for party in Party])
        self.carrier = Carrier(self.path)
        self.listening = Listening(self.nat.translator, self.carrier)

    def carry(self, call, party=Party.ORIGINATOR):
        leg = call.leg(party)
        name = leg.source + leg.destination + leg.key.to_bytes(2, "big")
        self.path._legs[name].packets += 1

    def look(self):
        """Tick until the look that is due is over; return how many turns it took."""
        turns = 0
        while self.listening.next_timer() <= self.clock.now:
            self.listening.tick(self.clock.now)
            turns += 1
            assert turns < 100
        return turns

    def heard(self):
        return [call.last_gre for call in self.calls]


@pytest.fixture
def world(monkeypatch):
    """Give two calls and a clock that stands."""
    clock = Clock()
    monkeypatch.setattr(listening, "time", clock)
    return World(clock)


def test_a_call_is_heard_when_its_counts_have_grown(world) -> None:
    """Either way; the other call is not."""
    first, second = world.calls
    world.look()
    assert world.heard() == [None, None]

    world.clock.now += SECONDS
    world.carry(first)
    world.look()
    assert world.heard() == [world.clock.now, None]

    world.clock.now += SECONDS
    world.carry(second, Party.RESPONDER)
    world.look()
    assert world.heard() == [world.clock.now - SECONDS, world.clock.now]


def test_a_look_is_work_of_several_turns(world) -> None:
    """Between two of them packets are served."""
    assert world.look() >= 3
    assert world.look() == 0
    assert world.listening.next_timer() == world.clock.now + SECONDS


def test_it_takes_a_hundredth_of_the_time_at_most(world, monkeypatch) -> None:
    """With a hundred thousand calls a look takes half a second, and comes every minute."""
    pieces = world.carrier.tally_pieces

    def slow(calls):
        for piece in pieces(calls):
            world.clock.spent += 0.5
            yield piece

    monkeypatch.setattr(world.carrier, "tally_pieces", slow)
    world.look()

    assert world.listening.next_timer() == world.clock.now + SHARE * 0.5


def test_a_leg_whose_count_is_missing_says_nothing(world, monkeypatch) -> None:
    """It was made anew while the table was read; a sum without it would look like traffic."""
    first, _ = world.calls
    world.carry(first)
    world.look()
    before = world.heard()
    pieces = world.carrier.tally_pieces
    leg = first.leg(Party.ORIGINATOR)
    monkeypatch.setattr(
        world.carrier, "tally_pieces",
        lambda calls: ({m: t for m, t in piece.items() if m != leg[:3]} for piece in pieces(calls)),
    )
    world.clock.now += SECONDS
    world.look()

    assert before == world.heard()


def test_calls_that_end_during_a_look_do_no_harm(world) -> None:
    """It takes several turns, and the world goes on between them."""
    world.listening.tick(world.clock.now)
    world.nat._take(world.nat.translator.clear(world.calls[:1], world.nat.now))
    world.carry(world.calls[1])
    world.look()
    world.clock.now += SECONDS
    world.look()

    assert world.calls[1].last_gre is not None


def test_a_data_path_that_refuses_is_asked_again(world, monkeypatch, caplog) -> None:
    """Later; it is in the log, and nothing else stops."""

    def refuse(_calls):
        raise AdapterError("counting", 105)

    with monkeypatch.context() as patched:
        patched.setattr(world.carrier, "tally_pieces", refuse)
        world.look()
    world.clock.now += SECONDS
    world.carry(world.calls[0])
    world.look()

    assert world.heard() == [world.clock.now, None]


def test_without_calls_there_is_nothing_to_look_at(monkeypatch) -> None:
    """An idle router sleeps."""
    carrier = Carrier(QueuePath())
    monkeypatch.setattr(carrier, "tally_pieces", None)
    idle = Listening(Ladder().translator, carrier)
    due = idle.next_timer()
    assert due is not None
    idle.tick(due)
