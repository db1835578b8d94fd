"""Queued GRE outlives the daemon: a process that keeps its queues starts it again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pptp_nat import api
from pptp_nat.errors import UsageError
from pptp_nat.lab.router import Daemon
from tests.paths import queued_at_least

from .conftest import PATIENCE, By, World
from .test_restarts import KEPT, KILLS, Churn

pytestmark = pytest.mark.kernel
ENDS = 2 + KILLS // 4
GUARDED: dict[str, Any] = {**KEPT, "options": ("--rules", "leave", "--guard")}


def guarded(daemon: Daemon) -> int:
    """Return the process that the guard has started; 0: none, at the moment."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return int(children[-1]) if children else 0


def wait_for_another(daemon: Daemon, than: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (pid := guarded(daemon)) not in (0, than):
            with contextlib.suppress(UsageError):
                api.ask(daemon.socket, {"do": "status"})
                return pid
        time.sleep(0.02)
    raise AssertionError(f"no other daemon than {than} came: {daemon.log[-2000:]}")


@contextlib.contextmanager
def an_end(daemon: Daemon, number: signal.Signals, after: float) -> Iterator[None]:
    """Have the guarded daemon end *after* so many seconds of the block, and wait for the next.

    A crash is its own affair; a restart is asked of the guard.
    """
    pid = guarded(daemon)
    to = pid if number is signal.SIGKILL else daemon.pid
    ending = threading.Timer(after, os.kill, (to, number))
    ending.start()
    yield
    ending.join()
    wait_for_another(daemon, pid)


@queued_at_least
def test_no_packet_of_a_call_is_lost_while_no_daemon_runs(
    world: Callable[..., World], by: By
) -> None:
    """Nor comes behind a later one: those too that the dead one had read and not judged."""
    here = world(by, inside=6, **GUARDED)
    daemon = here.daemon
    assert daemon is not None
    churn = Churn(here, 6)
    for n in range(ENDS):
        how = signal.SIGUSR1 if n % 3 == 2 else signal.SIGKILL  # a restart in good order
        with an_end(daemon, how, churn.lots.random() * 0.06):
            for _ in range(4):
                for call in churn.lasting:
                    call.say(25, padding=churn.lots.choice((0, 1000)))
                churn.step()
        churn.all_arrives()
        here.loop.run_until(lambda: False, 1.0)  # who dies at once is started again later
    assert ENDS - ENDS // 3 == daemon.log.count("event=daemon-ended")
    assert all(call.right >= 100 * ENDS for call in churn.lasting)
    if by == "queue":
        assert [] == [call.label for call in churn.lasting if call.late]
        assert ENDS == daemon.log.count("event=queue-resumed queue=1724")
    churn.leave()
    here.listed(0)  # an RST too has waited for its reader
    here.until_no_entry_is_left()
    assert daemon.stop() == 0


def test_a_queue_that_nobody_wants_any_more_is_let_go_of(world: Callable[..., World]) -> None:
    """The configuration names another one, and the daemon is started again."""
    here = world("queue", inside=1, **GUARDED)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    calls = here.up([connection.call(7)])
    assert [1723, 1724] == _bound(here)

    file = here.lab.directory / "pptp-nat.toml"
    file.write_text(KEPT["config"] + "[control]\nqueue = 1800\n")
    assert daemon.pid is not None
    before = guarded(daemon)
    os.kill(daemon.pid, signal.SIGUSR1)
    wait_for_another(daemon, before)
    assert [1724, 1800] == _bound(here)
    here.all_hear(calls)
    calls += here.up([connection.call(8)])
    here.all_hear(calls)


def _bound(here: World) -> list[int]:
    words = ["cat", "/proc/net/netfilter/nfnetlink_queue"]
    lines = here.lab.run(here.lab.router, words).stdout.splitlines()
    return sorted(int(line.split()[0]) for line in lines)
