"""The daemon's turns: packets first, all else served, no timer much later than it was set."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator

import pytest

from pptp_nat.router.turns import QUIET, Turns


class Loop:
    """Turns over two queues and one visitor, who are sockets here; says what happened in order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.asked = 0
        self.due: float | None = None
        self.faults: list[BaseException] = []
        self.selector = selectors.DefaultSelector()
        self._sockets: dict[str, tuple[socket.socket, socket.socket]] = {}
        for name in ("control", "gre", "visitor"):
            self._sockets[name] = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sockets[name][1].setblocking(False)
        ends = {name: pair[1] for name, pair in self._sockets.items()}
        self.selector.register(ends["visitor"], selectors.EVENT_READ, self._work("visitor"))
        self.turns = Turns(
            {ends[name].fileno(): self._work(name) for name in ("control", "gre")},
            self.selector, self._next_due, self._tick, self._guarded,
        )  # fmt: skip

    def _work(self, name: str):
        def work(_mask: int) -> None:
            said = self._sockets[name][1].recv(100).decode()
            self.happened.append(name)
            if said == "timer":
                self.due = time.monotonic()
            if said == "break":
                raise ValueError(name)

        return work

    def send(self, name: str, what: str = "a packet") -> None:
        self._sockets[name][0].send(what.encode())

    def _next_due(self) -> float | None:
        self.asked += 1
        return self.due

    def _tick(self, planned: float) -> None:
        assert planned <= time.monotonic()
        self.happened.append("tick")
        self.due = None

    def _guarded(self, work, argument) -> None:
        try:
            work(argument)
        except ValueError as error:
            self.faults.append(error)

    def close(self) -> None:
        self.turns.close()
        self.selector.close()
        for pair in self._sockets.values():
            for end in pair:
                end.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_control_comes_before_gre_and_both_before_visitors(loop: Loop) -> None:
    for name in ("visitor", "gre", "control"):
        loop.send(name)
    loop.turns.turn()

    assert ["control", "gre", "visitor"] == loop.happened


def test_a_flood_of_packets_keeps_neither_visitors_nor_timers_waiting(loop: Loop) -> None:
    loop.due = time.monotonic()
    loop.send("visitor")
    turns = 0
    while not {"visitor", "tick"} <= set(loop.happened):
        loop.send("control")
        loop.turns.turn()
        turns += 1

    assert turns <= 2, "a turn looks at everything"


def test_parts_are_not_asked_for_their_timers_after_each_packet(loop: Loop) -> None:
    packets, began = 1000, time.monotonic()
    for _ in range(packets):
        loop.send("control")
        loop.turns.turn()
    took = time.monotonic() - began

    assert packets == loop.happened.count("control")
    assert loop.asked <= 2 + took / QUIET


def test_a_timer_that_a_packet_has_set_is_kept_though_nothing_else_comes(loop: Loop) -> None:
    """Nor is there any other timer: without a look at it the loop would sleep for ever."""
    loop.send("control", "timer")
    while "tick" not in loop.happened:
        loop.turns.turn()

    assert ["control", "tick"] == loop.happened


def test_a_timer_that_a_packet_has_set_is_kept_while_packets_go_on_coming(loop: Loop) -> None:
    loop.send("control", "timer")
    loop.turns.turn()
    assert loop.due is not None
    while "tick" not in loop.happened:
        began = loop.due
        loop.send("gre")
        loop.turns.turn()
        assert "tick" in loop.happened or time.monotonic() - began < 60, "it is forgotten"

    assert "gre" in loop.happened


def test_what_a_visitor_sets_is_asked_for_at_once(loop: Loop) -> None:
    loop.send("visitor", "timer")
    loop.turns.turn()
    asked = loop.asked
    loop.turns.turn()

    assert ["visitor", "tick"] == loop.happened
    assert asked + 1 == loop.asked


def test_work_that_breaks_ends_alone(loop: Loop) -> None:
    for name in ("control", "gre", "visitor"):
        loop.send(name, "break")
    loop.turns.turn()

    assert ["control", "gre", "visitor"] == [str(fault) for fault in loop.faults]
    loop.send("gre")
    loop.turns.turn()
    assert "gre" == loop.happened[-1]
