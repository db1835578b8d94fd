"""What is kept of control streams: bounded in all, whoever comes, goes and speaks when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.bindings import Bindings
from pptp_nat.core.book import Book, Settings, shared_out


def book(**changes):
    """Return an empty book."""
    settings = Settings(**changes)
    return Book(Bindings(lambda _limit: 0, quarantine=settings.quarantine), settings)


class Kept:
    """Connections that keep as much as they may whenever they speak."""

    def __init__(self, of):
        self.book = of
        self.octets = {}

    def opens(self):
        if len(self.octets) < self.book.settings.connections:
            name = len(self.octets), object()
            self.book.connections[name] = None
            self.octets[name] = 0
            self.speaks(name)

    def speaks(self, name):
        self.octets[name] = 2 * self.book.history

    def closes(self, name):
        del self.octets[name], self.book.connections[name]

    def total(self):
        return sum(self.octets.values())


@pytest.mark.parametrize(
    ("buffered", "history", "connections"),
    [(1 << 16, 4096, 2000), (64 << 20, 4096, 65_536), (1 << 16, 65_536, 3), (1 << 30, 0, 10),
     (1 << 16, 4096, 1)],
)  # fmt: skip
def test_however_many_come_all_keep_no_more_than_the_bound(buffered, history, connections) -> None:
    """Each speaks when it comes, and those that were there first keep more."""
    kept = Kept(book(buffered=buffered, history=history, connections=connections))
    for _ in range(connections):
        kept.opens()
    total = kept.total()

    assert total <= buffered
    assert total >= min(buffered, 2 * history * connections) / 8  # and the bound is used
    assert kept.book.history * 2 * connections <= shared_out(kept.book.settings)


@given(
    st.lists(st.tuples(st.sampled_from("oooscc"), st.integers(0, 400)), max_size=300),
    st.integers(1, 300), st.sampled_from([500, 4096]),
)  # fmt: skip
def test_in_whatever_order_they_come_speak_and_go(steps, connections, history) -> None:
    """A share that was right when there were few is kept while there are many."""
    kept = Kept(book(buffered=1 << 16, history=history, connections=connections))
    for step, which in steps:
        names = list(kept.octets)
        if step == "o":
            kept.opens()
        elif names:
            name = names[which % len(names)]
            (kept.speaks if step == "s" else kept.closes)(name)
        assert kept.total() <= 1 << 16


def test_another_bound_holds_from_then_on() -> None:
    """It is taken over while the daemon runs."""
    of = book(buffered=1 << 30, history=4096, connections=1000)
    assert of.history == 4096
    of.settings = Settings(buffered=1 << 16, history=4096, connections=1000)
    of.connections.update(dict.fromkeys(range(1000)))
    assert of.history < (1 << 16) / 2000
