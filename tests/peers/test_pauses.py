"""A daemon that stands still for a while: what waited is heard, and nothing is lost for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pptp_nat.router.pauses import SECONDS

from .conftest import By, World

pytestmark = pytest.mark.kernel
#: ``make faults``: longer than timers.gre_idle, and than the minute between two looks for silence.
LONG = bool(os.environ.get("PPTP_NAT_FAULTS"))
STOPPED = 70.0 if LONG else SECONDS + 2
#: A textfile gives the daemon something to do every second, so it can be late with it.
CONFIG = """
[timers]
gre_idle = 40
[metrics]
textfile = "{}"
textfile_interval = 1
"""


@pytest.mark.parametrize("by", ["conntrack", "queue"])
def test_a_daemon_that_stands_still_loses_no_call_and_hears_what_was_said(
    world: Callable[..., World], by: By, tmp_path: Path
) -> None:
    """Stopped by a signal; the kernel carries on, or keeps the data for it."""
    here = world(by, inside=2, config=CONFIG.format(tmp_path / "pptp-nat.prom"))
    daemon = here.daemon
    assert daemon is not None
    assert daemon.pid is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    lasting = here.up([connection.call(7)])
    here.all_hear(lasting)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        asked = connection.call(8)
        for _ in range(10):
            for call in lasting:
                call.say()
            here.loop.run_until(lambda: False, STOPPED / 10)
        assert not asked.up
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    late = here.up([asked])
    first, second = lasting
    here.until(lambda: first.right == second.sent, "all that was said has arrived")
    here.until(lambda: second.right == first.sent, "all that was said has arrived")
    here.all_hear(lasting + late)
    here.listed(2, "--state", "up")
    assert 1 == daemon.log.count("event=stood-still")
