"""A daemon that starts, in this process and a namespace of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pptp_nat import config, log
from pptp_nat import daemon as module
from pptp_nat.daemon import Daemon
from pptp_nat.lab import namespaces
from pptp_nat.router.pauses import Pauses
from pptp_nat.standing import Alone

pytestmark = pytest.mark.kernel
LONG = 60.0  #: seconds


class Slow(Alone):
    """A router on which everything takes its time, and that is not looked at otherwise."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self.wait = wait

    def check(self, daemon: Daemon) -> None:
        """Wait: the checks call the firewall's tools, one after the other."""
        self.wait()

    def settled(self, daemon: Daemon) -> None:
        """Wait: what an earlier run has left was much."""
        self.wait()

    def arrange(self, daemon: Daemon, problems: list[str] | None) -> None:
        """Wait: somebody else has the firewall's lock."""
        self.wait()

    def let_go(self, daemon: Daemon) -> None:
        """Keep all privileges: this process is pytest's."""


def test_a_long_start_is_not_told_as_a_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Nobody stopped it; a line that tells to look for what did leads astray."""
    if os.geteuid():
        pytest.skip("needs root: it makes a network namespace")
    waited = 0.0

    def wait() -> None:
        nonlocal waited
        waited += LONG

    def clock() -> float:
        return time.monotonic() + waited

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock, time=time.time))
    monkeypatch.setattr(module, "Pauses", functools.partial(Pauses, boot_time=clock, clock=clock))
    # What a process does to itself when it starts is not for this one.
    monkeypatch.setattr(module, "gc", SimpleNamespace(
        freeze=lambda: None, set_threshold=lambda *_: None,
    ))  # fmt: skip
    monkeypatch.setattr(
        log, "configure", lambda _level, rate: log.LineHandler(sys.stderr, rate, journal=False)
    )
    settings = config.load(None, {
        "gre.datapath": "queue", "api.socket": str(tmp_path / "socket"), "state.sync": 0,
        "metrics.listen": "off",
    })  # fmt: skip
    name = f"start-{os.getpid()}"
    namespaces.create(name)
    with contextlib.ExitStack() as stack:
        stack.callback(namespaces.remove, name)
        stack.enter_context(namespaces.entered(name))
        daemon = Daemon(settings, standing=Slow(wait))
        stack.callback(daemon.close)
        daemon.build()
        assert 3 * LONG == waited
        daemon._tick(0.0)
        assert [] == [each.msg for each in caplog.records if each.msg == "stood-still"]
        wait()
        daemon._tick(0.0)

    assert 1 == len([each for each in caplog.records if each.msg == "stood-still"])
