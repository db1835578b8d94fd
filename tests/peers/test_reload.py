"""A daemon that reads its configuration again while people speak."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.paths import at_length

from .conftest import By, World
from .test_restarts import KEPT, Churn

pytestmark = pytest.mark.kernel


@at_length
def test_nothing_that_is_said_is_lost_over_a_reload(world: Callable[..., World], by: By) -> None:
    """No packet of a call that is up, and others come and go meanwhile."""
    here = world(by, inside=4, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    assert daemon.pid is not None
    churn = Churn(here, 4)
    for done in range(1, 6):
        os.kill(daemon.pid, signal.SIGHUP)
        for _ in range(20):
            for call in churn.lasting:
                call.say()
            churn.step()
        here.until(
            lambda done=done: daemon.log.count("event=reloaded") == done, "it has read it again"
        )
        churn.all_arrives()
    churn.judge()
    churn.leave()
    here.listed(0)
    here.until_no_entry_is_left()
