"""When what was carried is written down: soon where it is little, seldom where it is much."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.state import recorder as module
from pptp_nat.state.contents import Contents, LegCount
from pptp_nat.state.on_record import OnRecord
from pptp_nat.state.recorder import Recorder
from pptp_nat.state.records import read
from tests.core.effort import effort
from tests.scenario.ladder import Ladder


class Store:
    """Keeps what it is given."""

    is_full = False

    def __init__(self):
        self.octets = b""

    def append(self, octets, *, lasting=True):
        self.octets += octets

    def renew(self):
        self.octets = b""

    def renewed(self):
        pass


class World:
    """A leg whose packets nobody else counts, and a clock for the work of looking."""

    def __init__(self, monkeypatch):
        self.packets, self.looks, self.took, self.spent = 0, 0, 0.0, 0.0
        self.store = Store()
        self.recorder = Recorder(Ladder().translator, self.store, self.carried)
        monkeypatch.setattr(module, "time", self)
        self.recorder.begin(0.0)

    def thread_time(self):
        return self.spent

    def carried(self):
        self.looks += 1
        self.spent += self.took
        return [LegCount(bytes(4), bytes(4), 7, self.packets, 0)] if self.packets else []

    def run(self, since, until):
        """Turn the loop; return the number of looks."""
        before, now = self.looks, since
        while (now := max(now, self.recorder.next_timer())) < until:
            self.recorder.tick(now)
        return self.looks - before

    def on_record(self):
        contents = Contents()
        read(self.store.octets, contents)
        return [each.packets for each in contents.carried.values()]


@pytest.mark.parametrize(
    ("packets", "took", "looks"), [(5, 0.0, 60), (5, 0.05, 12), (5, 10.0, 2), (0, 0.0, 2)]
)
def test_counts_are_written_as_often_as_that_is_cheap(monkeypatch, packets, took, looks) -> None:
    """After a crash they go back by a second, with very many calls by half a minute."""
    world = World(monkeypatch)
    world.packets, world.took = packets, took

    assert looks == world.run(0.0, 60.0)
    assert world.on_record() == ([packets] if packets else [])


def test_what_has_not_changed_is_not_written_again(monkeypatch) -> None:
    """An idle call costs no octet."""
    world = World(monkeypatch)
    world.packets = 5
    world.run(0.0, 10.0)
    before = len(world.store.octets)
    world.run(10.0, 20.0)
    assert before == len(world.store.octets)
    world.packets = 6
    world.run(20.0, 21.5)

    assert world.on_record() == [6]


def _counts(packets):
    return [
        LegCount(bytes(4), at.to_bytes(4, "big"), 7, number, number << 6)
        for at, number in enumerate(packets)
    ]


@given(st.lists(st.lists(st.integers(0, 3), max_size=200), max_size=6))
@effort(60)
def test_only_what_has_changed_is_news(looks) -> None:
    """Legs that begin and end between two looks, and counts that begin anew, among them."""
    known, before = OnRecord(), {}
    for packets in looks:
        counts = _counts(packets)

        assert [each for each in counts if before.get(each[:3]) != each] == [
            each for each in known.news(counts) if each is not None
        ]
        before = {each[:3]: each for each in counts}
        assert len(before) == len(known)


def test_very_many_counts_are_written_whole_and_not_kept(monkeypatch) -> None:
    """The counts of 200,000 legs as objects would take more than the calls themselves."""
    world = World(monkeypatch)
    monkeypatch.setattr(world.recorder, "_carried", lambda: _counts(range(3 * 1024)))
    tracemalloc.start()
    world.recorder.note_carried()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [*range(3 * 1024)] == world.on_record()
    assert held - len(world.store.octets) < 3 * 1024 * 20


def test_very_many_counts_are_written_a_few_at_a_time(monkeypatch) -> None:
    """A packet that comes meanwhile has its verdict after a piece, not after all of them."""
    world = World(monkeypatch)
    monkeypatch.setattr(world.recorder, "_carried", lambda: _counts(range(8 * 1024)))
    before, pieces, now = 0, [], 1.0
    world.recorder.tick(now)
    while world.recorder.next_timer() <= now:
        pieces.append(len(world.store.octets) - before)
        before = len(world.store.octets)
        world.recorder.tick(now)

    assert [*range(8 * 1024)] == world.on_record()
    assert len(pieces) > 30
    assert max(pieces) < len(world.store.octets) / 20
    assert now + 1.0 <= world.recorder.next_timer()


def test_an_end_in_the_middle_of_a_look_writes_the_rest(monkeypatch) -> None:
    """The daemon ends in good order while a look is under way."""
    world = World(monkeypatch)
    monkeypatch.setattr(world.recorder, "_carried", lambda: _counts(range(8 * 1024)))
    world.recorder.tick(1.0)
    world.recorder.note_carried()

    assert [*range(8 * 1024)] == world.on_record()
