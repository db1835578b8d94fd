"""When calls were last heard: seldom enough to be cheap, in pieces, and never made up."""

import pytest

from pptp_nat.core.events import LegUp
from pptp_nat.core.tuples import Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router import listening
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.listening import (
    EXPECTED_SHARE,
    FRESH_SECONDS,
    SECONDS,
    SHARE,
    Listening,
)
from tests.scenario.ladder import ALICE, BOB, PAC, Ladder


class Clock:
    """Time for the work, and time of the day, both set by hand."""

    def __init__(self):
        self.now = 1000.0
        self.spent = 0.0

    def monotonic(self):
        return self.now

    def thread_time(self):
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
        self.carrier = Carrier(self.path)
        for call in self.calls:
            self.carrier.before([LegUp(call, party, call.leg(party), 0) for party in Party], 0.0)
        self.listening = Listening(self.nat.translator, self.carrier)

    def carry(self, call, party=Party.ORIGINATOR):
        leg = call.leg(party)
        self.path.credit(leg, Tally(1, 0))

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
    assert world.look() >= 2
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
    with monkeypatch.context() as patched:
        patched.setattr(world.carrier, "tally_pieces", refuse)
        world.look()
    world.clock.now += SECONDS
    world.carry(world.calls[0])
    world.look()

    assert world.heard() == [world.clock.now, None]


def test_a_mistake_in_a_look_ends_it_and_the_next_one_is_whole(world, monkeypatch) -> None:
    """What is left of it would say that all was read, and in the same turn again."""

    def mistaken(_calls):
        raise ValueError("a mistake of ours")
        yield

    read_at = world.listening.read_at
    with monkeypatch.context() as patched:
        patched.setattr(world.carrier, "tally_pieces", mistaken)
        with pytest.raises(ValueError, match="of ours"):
            world.look()
    assert world.listening.next_timer() == world.clock.now + SECONDS
    assert read_at == world.listening.read_at

    world.carry(world.calls[0])
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


# Who shows totals.


class Many(World):
    """The same with counts that the kernel writes in pieces, each a tenth of a second of work."""

    def __init__(self, clock, monkeypatch):
        super().__init__(clock)
        self.dumps = 0
        monkeypatch.setattr(listening, "FEW_CALLS", 1)
        pieces = self.path.tally_pieces

        def dump(_calls):
            self.dumps += 1
            for match, tally in (item for piece in pieces() for item in piece.items()):
                clock.spent += 0.1
                clock.now += 0.1
                yield {match: tally}

        monkeypatch.setattr(self.carrier, "tally_pieces", dump)

    def until(self, moment):
        """Turn the loop until *moment*."""
        while (due := self.listening.next_timer()) < moment:
            self.clock.now = max(self.clock.now, due)
            self.listening.tick(self.clock.now)
        self.clock.now = max(self.clock.now, moment)

    def scrape(self, every):
        """Ask for totals as a scraper does that comes *every* so many seconds; return their age."""
        at = self.clock.now
        for _ in self.listening.freshen(FRESH_SECONDS):
            pass
        self.listening.expect(at + every)
        return self.clock.now - self.listening.read_at


@pytest.fixture
def many(monkeypatch):
    """Give two calls that count as many."""
    clock = Clock()
    monkeypatch.setattr(listening, "time", clock)
    return Many(clock, monkeypatch)


def test_the_first_who_asks_sees_what_is(many) -> None:
    """Nobody knew that he would come; he waits for a look of his own."""
    many.carry(many.calls[0])
    many.carry(many.calls[1], Party.RESPONDER)
    age = many.scrape(every=60.0)

    assert ([1, 1], 1) == (many.carrier.totals.packets, many.dumps)
    assert age == pytest.approx(0.4)  # as long as reading took


@pytest.mark.parametrize("every", [15.0, 30.0, 60.0])
def test_who_comes_regularly_finds_the_counts_read_a_moment_ago(many, every) -> None:
    """He does not wait, one look serves him and the idle timers, and they are hardly older."""
    start = many.clock.now
    many.scrape(every)
    before = many.dumps
    for visit in range(1, 11):
        many.until(start + visit * every)
        sent = list(many.carrier.totals.packets)
        looks = many.dumps
        age = many.scrape(every)
        assert looks == many.dumps  # none within the scrape
        assert 0.4 <= age <= 1.0
        assert many.carrier.totals.packets >= sent
        many.carry(many.calls[0])
    ordinary = 10 * every / (SHARE * 0.4)
    assert many.dumps - before <= 10 + ordinary


def test_totals_never_fall_and_are_never_newer_than_they_say(many) -> None:
    """A packet that was sent before the moment that is told is in them."""
    start, sent, told = many.clock.now, [], [0, 0]
    for visit in range(30):
        many.until(start + 7.0 * visit)
        many.carry(many.calls[visit % 2])
        sent.append(many.clock.now)
        many.scrape(every=7.0)
        totals = list(many.carrier.totals.packets)
        assert totals >= told
        assert sum(each < many.listening.read_at for each in sent) <= sum(totals) <= len(sent)
        told = totals


def test_when_nobody_asks_any_more_the_looks_are_for_idle_timers_alone(many) -> None:
    """One that was expected and did not come is not expected again."""
    many.scrape(every=15.0)
    many.until(many.clock.now + 1000.0)
    before, since = many.dumps, many.clock.now
    many.until(since + 4000.0)

    assert 4000.0 / (SHARE * 0.4) - 1 <= many.dumps - before <= 4000.0 / (SHARE * 0.4) + 1


def test_who_asks_without_pause_takes_a_tenth_of_the_time(many) -> None:
    """And sees the same until counts are worth another look."""
    start = many.clock.now
    while many.clock.now < start + 100.0:
        many.scrape(every=1.0)
        many.until(many.clock.now + 1.0)

    assert many.dumps <= 100.0 / (EXPECTED_SHARE * 0.4)


def test_who_asks_during_a_look_waits_for_its_rest_alone(many) -> None:
    """There are never two readings of the kernel's table at a time."""
    many.listening.tick(many.clock.now)
    many.listening.tick(many.clock.now)
    many.scrape(every=15.0)

    assert many.dumps == 1
    assert many.listening.looks == 1


def test_who_asks_hears_that_the_kernel_does_not_say(many, monkeypatch) -> None:
    """The totals are as old as they say; the next one who asks has them read again."""
    many.scrape(every=15.0)
    read_at = many.listening.read_at
    many.clock.now += 100.0
    with monkeypatch.context() as patched:
        patched.setattr(many.carrier, "tally_pieces", refuse)
        with pytest.raises(AdapterError):
            many.scrape(every=15.0)
    assert read_at == many.listening.read_at

    many.scrape(every=15.0)
    assert many.listening.read_at > read_at


def refuse(_calls):
    """Answer as a kernel without memory."""
    raise AdapterError("counting", 105)
