"""What a call costs the daemon in memory, on each data path."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.paths import FIRST_FREE_SLOT, labs
from benchmarks.plan import Run, Sample

FIRST = 20  #: calls that come and go beforehand


def memory(run: Run) -> Iterator[Sample]:
    """Measure the daemon's memory in a process of its own, before and after calls come up."""
    for way in (way for way in run.ways_of("memory") if way.datapath):
        with labs([way], run.build, run.absent, suffix="m") as built:
            for lab in built:
                assert lab.daemon
                time.sleep(1)
                lab.settle()
                run.tell(f"memory: {way.title}")
                # What the first calls of all have it load and reserve is no further call's.
                client = lab.banks[0].client
                for word in ("dial", "clear"):
                    client.ask(f"{word} {FIRST_FREE_SLOT} {FIRST} {FIRST}")
                lab.settle()
                up, spent = 0, lab.daemon.cpu()
                for calls in (0, *run.plan.memory_calls):
                    lab.grow(calls)
                    now = lab.daemon.cpu()
                    yield {
                        "measure": "memory",
                        "way": way.name,
                        "round": 0,
                        "calls": calls,
                        "rss_kb": lab.daemon.memory_kb(),
                        "daemon_us": (now - spent) * 1e6 / (calls - up) if calls > up else 0.0,
                    }
                    up, spent = calls, now
