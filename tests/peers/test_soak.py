"""Churn for a while, with everything that could leak counted: ``make soak`` for an hour.

Memory, descriptors, entries in the kernel, numbers and calls; and the misdelivery
oracle of the lab's peers: each GRE packet says who sends it to whom.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.paths import at_length

from .conftest import By, World
from .test_restarts import KEPT, Churn

pytestmark = pytest.mark.kernel
#: How long; ``make soak`` sets it.
SECONDS = float(os.environ.get("PPTP_NAT_SOAK_SECONDS", "8"))
#: Octets that a daemon may have grown between its warm-up and its end.
GROWTH = 4 << 20


class Weight(NamedTuple):
    """What a process has."""

    resident: int  #: octets
    descriptors: int
    journal: int  #: octets


def _weight(here: World) -> Weight:
    daemon = here.daemon
    assert daemon is not None
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    journal = daemon.socket.with_suffix(".journal").glob("journal.*")
    return Weight(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())),
        sum(path.stat().st_size for path in journal),
    )


@at_length
def test_nothing_leaks_however_long_calls_come_and_go(
    world: Callable[..., World], by: By
) -> None:
    here = world(by, inside=8, **KEPT)
    churn = Churn(here, 4)
    end = time.monotonic() + SECONDS / 2  # for either data path
    warm, steps = None, 0
    while time.monotonic() < end:
        churn.step()
        steps += 1
        if steps % 200 == 0:
            churn.judge()
            churn.forget()
        if warm is None and time.monotonic() > end - SECONDS / 2 * 0.7:
            warm = _weight(here)
    assert warm is not None
    churn.all_arrives()
    churn.leave()
    here.listed(0)
    here.until_no_entry_is_left()
    # Numbers rest for the quarantine, a second here; then there is none.
    assert here.loop.run_until(lambda: _taken(here) == 0, 30, every=0.2), _taken(here)
    left = _weight(here)
    assert left.descriptors <= warm.descriptors
    assert left.resident - warm.resident < GROWTH, (warm, left, steps)
    assert left.journal < 2 << 20, left
    print(f"{by}: {steps} steps, {warm} warm, {left} at the end")  # noqa: T201  make soak shows it


def _taken(here: World) -> int:
    """Return how many calls and connections the daemon still knows."""
    assert here.daemon is not None
    status = here.daemon.status()
    return sum(status["calls"].values()) + sum(status["connections"].values())
