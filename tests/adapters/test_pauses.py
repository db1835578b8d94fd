"""After a pause: first what was said in it, then the timers that ran out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pptp_nat.core.states import CallState, End
from pptp_nat.errors import AdapterError
from pptp_nat.router import carrier, listening
from pptp_nat.router.pauses import SECONDS, Pauses

from .test_listening import Clock, World

HOURS = 3600.0


class Sleeper:
    """A daemon's clocks and its calls; packets that wait are heard when the queue is served."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.suspended = 0.0
        self.world = World(clock)
        self.served: list[int] = []
        queue: Any = SimpleNamespace(serve=self.served.append)
        self.pauses = Pauses(
            (queue, None), self.world.listening,
            boot_time=lambda: clock.now + self.suspended, clock=clock.monotonic,
        )  # fmt: skip

    def turn(self, due: float) -> None:
        """Begin work that was due then."""
        self.pauses.look(due, self.clock.now)
        self.world.nat.translator.tick(self.clock.now)


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    clock = Clock()
    monkeypatch.setattr(listening, "time", clock)
    made = Sleeper(clock)
    for call in made.world.calls:
        made.world.carry(call)
    made.world.look()
    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[object, object]]:
    return [(each.fields["stopped"], each.fields["suspended"]) for each in caplog.records]


def test_a_call_that_was_carried_while_nobody_looked_is_not_idle(
    sleeper: Sleeper, caplog: pytest.LogCaptureFixture
) -> None:
    """Seven hours in a debugger; the kernel has gone on.  Nobody used the second call."""
    used, unused = sleeper.world.calls
    due = sleeper.clock.now + 10
    sleeper.clock.now += 7 * HOURS
    sleeper.world.carry(used)
    sleeper.turn(due)

    assert (CallState.UP, CallState.GONE) == (used.state, unused.state)
    assert 1 == sleeper.world.nat.translator.book.ends[End.IDLE]
    assert 1 == len(sleeper.served)
    assert [(round(7 * HOURS - 10, 1), None)] == lines(caplog)


def test_a_machine_that_was_suspended_costs_no_call(
    sleeper: Sleeper, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither this process nor the kernel's timers have lived through the night."""
    for night in range(1, 4):
        sleeper.suspended = night * 8 * HOURS
        sleeper.clock.now += 1
        sleeper.turn(sleeper.clock.now)

    assert [CallState.UP] * 2 == [call.state for call in sleeper.world.calls]
    assert [(None, 8 * HOURS)] * 3 == lines(caplog)


def test_a_busy_turn_is_no_pause(sleeper: Sleeper, caplog: pytest.LogCaptureFixture) -> None:
    """Work under way is due at once, and a turn may be late; neither is worth a line."""
    for late in (0.0, SECONDS / 2, SECONDS - 0.1):
        sleeper.clock.now += late
        sleeper.turn(0.0)
    sleeper.clock.now += 60
    sleeper.turn(sleeper.clock.now - 1)

    assert [] == lines(caplog)
    assert [] == sleeper.served


@pytest.mark.parametrize("refuses", [False, True])
def test_a_look_that_began_before_the_pause_does_not_speak_for_it(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch, *, refuses: bool
) -> None:
    """What was read before it says nothing of the hours since; what is left may not come."""
    used, unused = sleeper.world.calls
    monkeypatch.setattr(carrier, "_AT_ONCE", 1)
    sleeper.clock.now = due = sleeper.world.listening.next_timer()
    sleeper.world.listening.tick(due)
    assert 0.0 == sleeper.world.listening.next_timer(), "it is under way"
    sleeper.clock.now += 7 * HOURS
    sleeper.world.carry(used)
    if refuses:
        path, tallies_of = sleeper.world.path, sleeper.world.path.tallies_of
        answers = iter([AdapterError("counting", 105)])

        def once(legs: Any) -> Any:
            for error in answers:
                raise error
            return tallies_of(legs)

        monkeypatch.setattr(path, "tallies_of", once)
    sleeper.turn(due)

    assert (CallState.UP, CallState.GONE) == (used.state, unused.state)
