"""A supervisor whose workers go away in the worst moment, and how a process ends; none is made."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pptp_nat.api import Request
from pptp_nat.config import Config
from pptp_nat.daemon import Daemon
from pptp_nat.errors import PptpNatError
from pptp_nat.router.process import Process
from pptp_nat.workers.crew import Crew, Member
from pptp_nat.workers.merged import Ears
from pptp_nat.workers.supervisor import Supervisor
from pptp_nat.workers.worker import READY

from .threaded_daemon import threaded_daemon

EVENT = {
    "type": "new", "call": {
        "id": 7, "connection": 3, "control": {"src": "192.168.77.10", "dst": "198.18.7.2"},
    },
}  # fmt: skip


@pytest.fixture
def selector() -> Iterator[selectors.DefaultSelector]:
    with selectors.DefaultSelector() as made:
        yield made


def ready_and_dead(member: Member) -> None:
    """Have *member* be a worker that has said that it is ready, and died."""
    member.lifeline, theirs = socket.socketpair()
    theirs.send(READY)
    theirs.close()


def test_a_worker_that_dies_when_it_has_just_become_ready_is_started_again(
    selector: selectors.DefaultSelector
) -> None:
    """Nobody would notice its end otherwise: its control messages would wait for ever."""
    back: list[Member] = []
    crew = Crew(1, selector, lambda *_: pytest.fail("not yet"), back.append)
    (member,) = crew.members
    ready_and_dead(member)
    selector.register(member.lifeline, selectors.EVENT_READ)  # type: ignore[arg-type]
    crew._spoke(member)

    assert (False, 1) == (member.is_ready, member.restarts)
    assert member.due is not None
    assert member.due == crew.next_timer()
    assert [] == back
    assert {} == dict(selector.get_map())


def test_one_that_dies_so_at_the_start_is_told_in_one_line(
    selector: selectors.DefaultSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Crew(1, selector, lambda *_: pytest.fail("it is there"), lambda _: None)
    monkeypatch.setattr(crew, "_start", lambda member, is_first: ready_and_dead(member))
    with pytest.raises(PptpNatError, match="worker 0 has not started; see the log"):
        crew.begin()


def test_a_reload_that_one_worker_does_not_hear_reaches_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    supervisor = Supervisor.__new__(Supervisor)
    supervisor.config = Config()
    supervisor.crew = SimpleNamespace(  # type: ignore[assignment]
        members=[SimpleNamespace(index=index, is_ready=index != 3) for index in range(4)]
    )
    places = [tmp_path / str(index) for index in range(4)]
    monkeypatch.setattr(Supervisor, "sockets", lambda _: places)

    def heard(index: int) -> Callable[[Request], dict[str, object]]:
        return lambda request: asked.append((index, request.do)) or {}  # type: ignore[func-returns-value]

    with (
        threaded_daemon(places[0], heard(0)), threaded_daemon(places[2], heard(2)),
        threaded_daemon(places[3], heard(3)),
    ):  # fmt: skip
        supervisor._applied()

    assert [(0, "configure"), (2, "configure")] == sorted(asked)
    (line,) = caplog.records
    assert ("worker-not-reloaded", 1) == (line.msg, line.fields["worker"])  # type: ignore[attr-defined]


def test_the_service_manager_hears_the_end_of_a_reload_however_it_ends() -> None:
    said = []
    process: Any = SimpleNamespace(
        service=SimpleNamespace(
            reloading=lambda: said.append("reloading"), ready=lambda: said.append("ready")
        ),
        _read_again=lambda: 1 // 0,
    )
    with pytest.raises(ZeroDivisionError):
        Process.reload(process)
    assert ["reloading", "ready"] == said


def test_whatever_fails_at_the_end_the_rest_is_let_go_of_all_the_same() -> None:
    """The rules, the records and the socket, though the kernel takes no verdict any more."""
    done, faults = [], []

    def fail() -> None:
        raise OSError(errno.ENOBUFS, "no memory for it")

    process: Any = SimpleNamespace(
        _closers=[lambda: done.append("rules"), fail, lambda: done.append("socket")],
        _on_fault=faults.append, selector=SimpleNamespace(close=lambda: done.append("selector")),
    )
    Process.close(process)

    assert ["socket", "rules", "selector"] == done
    assert [errno.ENOBUFS] == [fault.errno for fault in faults]


def test_a_worker_that_hangs_up_on_a_slow_supervisor_is_heard_again(
    selector: selectors.DefaultSelector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It disconnects whoever does not read; who subscribed to the supervisor must not go deaf."""
    heard: list[object] = []

    def turn(*, until: int) -> None:
        deadline = time.monotonic() + 60
        while len(heard) < until and time.monotonic() < deadline:
            for key, _ in selector.select(0.05):
                key.data(0)
            ears.tick(time.monotonic())
        assert until == len(heard)

    with threaded_daemon(tmp_path / "s", lambda _: {}) as worker:
        ears = Ears(
            selector, lambda about, make: heard.append((about.call, make())),
            lambda: ears.want(frozenset({"new"}), [worker.path]),
        )  # fmt: skip
        ears.want(frozenset({"new"}), [worker.path])
        worker.tell(EVENT)
        turn(until=1)
        worker.close()
        worker.start()
        worker.subscribed.clear()
        caplog.set_level(logging.WARNING)
        while ears.next_timer() is None:
            for key, _ in selector.select(5):
                key.data(0)
        ears.tick(time.monotonic())
        assert ears.next_timer() is not None, "not at once: it may be dying"
        ears.tick(ears.next_timer() or 0.0)
        worker.tell(EVENT)
        turn(until=2)
        ears.close()

    assert [(7, EVENT)] * 2 == heard
    assert ["worker-hung-up"] == [each.msg for each in caplog.records]


def test_a_part_that_fails_at_its_time_keeps_no_other_from_its_work() -> None:
    """One that is never done would be tried first in each turn, and all behind it never."""
    done: list[str] = []
    faults: list[BaseException] = []

    def fails(_now: float) -> None:
        raise ValueError("it is a bug")

    daemon: Any = SimpleNamespace(
        pauses=SimpleNamespace(look=lambda planned, now: done.append("pauses")),
        translator=SimpleNamespace(next_timer=lambda: 0.0, tick=fails),
        carry_out=lambda outcome, now: done.append("outcome"),
        _clockwork=[
            SimpleNamespace(tick=fails), SimpleNamespace(tick=lambda now: done.append("upkeep")),
        ],
        _on_fault=faults.append,
        _translators_tick=lambda now: Daemon._translators_tick(daemon, now),
        _guarded=lambda work, argument: Process._guarded(daemon, work, argument),
    )  # fmt: skip
    Daemon._tick(daemon, 0.0)

    assert ["pauses", "upkeep"] == done
    assert 2 == len(faults)
