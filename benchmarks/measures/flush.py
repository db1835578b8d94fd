"""How long calls are without their entries when somebody empties the router's table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from benchmarks.paths import CONNTRACK, Lab, labs
from benchmarks.plan import Run, Sample
from benchmarks.shell import sh

#: deletes every entry, and waits until there are as many as it is told
EMPTY_AND_WAIT: Final = (
    "conntrack -F && while"
    ' [ "$(cat /proc/sys/net/netfilter/nf_conntrack_count)" -lt "$1" ]; do sleep 0.01; done'
)


def flush(run: Run) -> Iterator[Sample]:
    """Empty the table several times in a row; each time all entries come back."""
    with labs([CONNTRACK], run.build, run.absent, suffix="f") as built:
        for calls in run.plan.flush_calls:
            run.prepare("flush", built, calls)
            for number, lab in run.rounds(built):
                run.tell(f"flush: {calls:,} up, round {number + 1}")
                yield _flushed(lab, 2 * calls) | {"calls": calls, "round": number}


def _flushed(lab: Lab, entries: int) -> Sample:
    assert lab.daemon
    before, began = lab.daemon.cpu(), time.monotonic()
    sh("timeout", "300", "sh", "-c", EMPTY_AND_WAIT, "sh", str(entries), where=lab.topology.router)
    seconds = time.monotonic() - began
    lab.settle()
    return {
        "measure": "flush",
        "way": lab.way.name,
        "seconds": seconds,
        "entry_us": (lab.daemon.cpu() - before) * 1e6 / entries,
    }
