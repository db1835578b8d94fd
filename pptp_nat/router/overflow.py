"""Packets that were lost before anybody could judge them, told once a minute.

The kernel drops what finds a queue full, or the socket's buffer.  TCP sends a
message again; data are lost.  Either way the administrator should know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final

from pptp_nat import log
from pptp_nat.linux.nfqueue import Queue, QueueCounters, queue_counters

_log: Final = logging.getLogger(__name__)
LOOK_SECONDS: Final = 60.0
_MENDS: Final = {
    "dropped": "raise queue_length of this queue, or look who floods it",
    "user_dropped": "raise socket_buffer of this queue, and net.core.rmem_max",
    "overruns": "raise socket_buffer of this queue, and net.core.rmem_max",
    "too_long": "packets of more than 65,531 octets cannot be queued whole",
    "refusals": "the kernel has refused verdicts: is another program bound to this queue?",
}


class Overflow:
    """Looks after *queues*.

    Args:
        counters: returns what the kernel counts of a queue.
    """

    def __init__(
        self,
        queues: Collection[Queue],
        counters: Callable[[int], QueueCounters | None] = queue_counters,
    ) -> None:
        self._queues = queues
        self._counters = counters
        self._due = 0.0
        self._told: dict[tuple[int, str], int] = {}

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._due

    def tick(self, now: float) -> None:
        """Tell what has been lost since the last time, a line for each queue and cause."""
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        for queue in self._queues:
            for cause, count in self._losses(queue).items():
                before = self._told.get((queue.number, cause), 0)
                self._told[queue.number, cause] = count
                if count > before:
                    log.event(
                        _log, logging.WARNING, "packets-lost", queue=queue.number, cause=cause,
                        count=count - before, in_all=count, mend=_MENDS[cause],
                    )  # fmt: skip

    def _losses(self, queue: Queue) -> dict[str, int]:
        seen = self._counters(queue.number)
        losses = {
            "overruns": queue.overruns, "too_long": queue.too_long, "refusals": queue.refusals,
        }  # fmt: skip
        if seen is not None:
            losses |= {"dropped": seen.dropped, "user_dropped": seen.user_dropped}
        return losses
