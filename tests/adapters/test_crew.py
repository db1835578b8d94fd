"""Workers that hang: found out, ended and started again, and nobody else with them."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pptp_nat.workers import crew as crews
from pptp_nat.workers import worker
from pptp_nat.workers.crew import ASKING_SECONDS, QUESTIONS, START_SECONDS, Crew, Member

PATIENCE = 30.0


class Crewed:
    """A crew of two whose workers do nothing but heed their lifelines, on a clock of the test's."""

    def __init__(self) -> None:
        self.back: list[Member] = []
        self.selector = selectors.DefaultSelector()
        self.crew = Crew(2, self.selector, _post, self.back.append)
        self.crew.begin()
        self.now = time.monotonic()

    def turn(self, seconds: float) -> None:
        """Let so many seconds pass, as the supervisor's loop does."""
        self.now += seconds
        self.crew.tick(self.now)
        self.listen(0)

    def listen(self, patience: float) -> None:
        for key, mask in self.selector.select(patience):
            key.data(mask)

    def until(self, done: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline
            self.listen(0.1)


def _post(index: int, lifeline: socket.socket, is_first: bool) -> Any:  # noqa: FBT001
    return SimpleNamespace(part=SimpleNamespace(index=index), lifeline=lifeline, first=is_first)


def _work(post: Any) -> int:
    post.lifeline.sendall(worker.READY)
    assert post.lifeline.recv(1) == worker.GO
    ended: list[bool] = []
    while not ended:
        worker._heed(post.lifeline, lambda: ended.append(True))
    return 0


@pytest.fixture
def crewed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crewed]:
    monkeypatch.setattr(crews, "work", _work)
    made = Crewed()
    yield made
    made.crew.close()
    made.selector.close()


def test_a_worker_that_hangs_is_ended_and_started_again(
    crewed: Crewed, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, well = crewed.crew.members
    pids = hanging.pid, well.pid
    os.kill(hanging.pid, signal.SIGSTOP)
    for _ in range(QUESTIONS):
        assert hanging.restarts == 0
        crewed.turn(ASKING_SECONDS)
        crewed.until(lambda: well.asked is None)
    crewed.turn(ASKING_SECONDS)
    crewed.until(lambda: hanging.restarts == 1)
    crewed.turn(60)
    crewed.until(lambda: crewed.back == [hanging])

    assert hanging.pid != pids[0]
    assert (well.pid, well.restarts) == (pids[1], 0)
    told = [each.msg for each in caplog.records]
    assert told[:2] == ["worker-hangs", "worker-died"]


def test_who_stood_still_himself_does_not_blame_the_workers(crewed: Crewed) -> None:
    """A machine that was suspended, a supervisor that was stopped: all begin anew."""
    first, _ = crewed.crew.members
    os.kill(first.pid, signal.SIGSTOP)
    for seconds in (ASKING_SECONDS, 60, 600, 6000):
        crewed.turn(seconds)
    os.kill(first.pid, signal.SIGCONT)
    crewed.until(lambda: first.asked is None)

    assert first.restarts == 0


def test_a_worker_that_answers_is_left_alone(crewed: Crewed) -> None:
    for _ in range(20):
        crewed.turn(ASKING_SECONDS)
        crewed.until(lambda: all(each.asked is None for each in crewed.crew.members))
    assert [0, 0] == [each.restarts for each in crewed.crew.members]


def test_whoever_asks_for_what_a_hanging_worker_knows_does_not_save_it(crewed: Crewed) -> None:
    """Each time the supervisor waits for the worker itself, longer than between two questions."""
    hanging, _ = crewed.crew.members
    os.kill(hanging.pid, signal.SIGSTOP)
    for _ in range(QUESTIONS + 1):
        crewed.turn(4 * ASKING_SECONDS)
    crewed.until(lambda: hanging.restarts == 1)


def test_one_that_hangs_while_it_starts_again_is_started_once_more(
    crewed: Crewed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has said nothing yet that it could fall silent after."""
    first, _ = crewed.crew.members
    monkeypatch.setattr(crews, "work", lambda _post: signal.pause())
    os.kill(first.pid, signal.SIGKILL)
    crewed.until(lambda: first.restarts == 1)
    crewed.turn(60)
    starting = first.pid
    assert starting
    monkeypatch.setattr(crews, "work", _work)
    crewed.turn(START_SECONDS - 60)
    assert first.restarts == 1
    crewed.turn(60)
    crewed.until(lambda: first.restarts == 2)
    crewed.turn(60)
    crewed.until(lambda: crewed.back == [first])

    assert ["worker-died", "worker-hangs", "worker-died", "worker-back"] == [
        each.msg for each in caplog.records
    ]
