"""An upgrade without a gap: one daemon hands over to another while people talk."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pptp_nat.errors import UsageError
from tests.paths import NO_BPF, at_length, every_path

from .conftest import By, World
from .test_restarts import KEPT, Churn

pytestmark = pytest.mark.kernel
CLOCKS = ("created", "up_since", "last_seen")


@every_path
def test_a_successor_goes_on_where_the_other_was(world: Callable[..., World], by: By) -> None:
    here = world(by, inside=3)  # with rules that a clean stop removes: this is none
    daemon = here.daemon
    assert daemon is not None
    server = here.station(here.lab.outside[0])
    server.listen()
    clients = [here.station(host) for host in here.lab.inside]
    connections = [here.dial(client, here.lab.outside[0].address) for client in clients]
    calls = here.up(each.call(7) for each in connections[:2])
    here.all_hear(calls, count=5)
    before = here.listed(2)

    first = daemon.pid
    daemon.take_over()
    assert first != daemon.pid
    after = here.listed(2)
    for was, now in zip(before, after, strict=True):
        assert _lasting(was) == _lasting(now)
    here.all_hear(calls, count=5)
    assert {10} == {
        each["packets"] for call in here.listed(2) for each in call["counters"].values()
    }
    calls += here.up([connections[2].call(7)])
    here.all_hear(calls)
    connections[0].clear(calls[0])
    here.until(lambda: not calls[1].up, "a call from before is cleared")
    assert [] == [m for each in (*connections, *server.connections) for m in each.unknown]
    assert "event=handed-over" in daemon.log


def _lasting(call: dict[str, Any]) -> dict[str, Any]:
    """Return what must not change, not even with a clock that is adjusted meanwhile."""
    lasting = {name: value for name, value in call.items() if name not in CLOCKS}
    # A difference of two times, each of them on record in whole microseconds.
    return {**lasting, "setup_seconds": pytest.approx(call["setup_seconds"], abs=2e-6)}


@at_length
def test_nothing_that_is_said_meanwhile_is_lost(world: Callable[..., World], by: By) -> None:
    """No packet of a call, and no message: what waits in a queue waits for the successor."""
    here = world(by, inside=6, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    churn = Churn(here, 6)
    for _ in range(3):
        thread = threading.Thread(target=daemon.take_over)
        thread.start()
        while thread.is_alive():
            for call in churn.lasting:
                call.say()
            churn.step()
        thread.join()
        churn.all_arrives()
    assert 3 == daemon.log.count("event=handed-over")
    churn.judge()
    churn.leave()
    here.listed(0)
    here.until_no_entry_is_left()


def test_a_successor_that_cannot_do_the_same_is_refused(world: Callable[..., World]) -> None:
    """And the old one goes on as if nobody had asked."""
    here = world("conntrack", inside=1, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    calls = here.up([connection.call(7)])
    command = list(daemon._command)
    daemon._command += ["--datapath", "queue"]
    with pytest.raises(UsageError, match="datapath must be the same; restart it instead"):
        daemon.take_over(seconds=5)
    daemon._command = command
    here.all_hear(calls)
    calls += here.up([connection.call(8)])
    here.all_hear(calls)
    daemon.take_over()
    here.all_hear(calls)


@pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}")
@pytest.mark.parametrize("end", ["raise UsageError('it fails')", "os._exit(9)"])
def test_a_successor_that_fails_at_last_leaves_the_programs_to_whom_they_were(
    world: Callable[..., World], end: str
) -> None:
    """In good order or not: calls go on, and the next one is carried at once."""
    here = world("bpf", inside=1)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    calls = here.up([connection.call(7)])

    failing = f"""
import os, sys
from pptp_nat.cli import main
from pptp_nat.errors import UsageError
from pptp_nat.state.takeover import Heritage
def confirm(self):
    {end}
Heritage.confirm = confirm
sys.exit(main())
"""
    at = daemon._command.index("run")
    words = [sys.executable, "-c", failing, *daemon._command[at:], "--takeover"]
    assert here.lab.run(here.lab.router, words, check=False).returncode != 0

    calls += here.up([connection.call(8)])
    here.all_hear(calls)
    daemon.take_over()
    here.all_hear(calls)


def test_taking_over_from_nobody_is_an_error_in_one_line(world: Callable[..., World]) -> None:
    here = world("conntrack", inside=1, **KEPT)
    assert here.daemon is not None
    here.daemon.stop()
    done = here.lab.run(
        here.lab.router, [*here.daemon._command, "--takeover"], check=False
    )
    assert 1 == done.returncode
    assert done.stderr.strip().splitlines()[-1].startswith("pptp-nat: no daemon answers on ")
