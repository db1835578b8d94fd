"""The process stood still, or the whole machine did: first hear what was said meanwhile.

A process that was stopped (SIGSTOP, a debugger, a virtual machine that was frozen) finds
packets in its queues, counts in the kernel that have grown, and timers that ran out long
ago.  If the timers came first, calls that have carried data all the while would end as
idle, and requests whose answers wait in the queue as unanswered.

A machine that is suspended stops CLOCK_MONOTONIC and the kernel's timers with it, so no
time has passed for anybody here; only CLOCK_BOOTTIME tells (clock_gettime(2)).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from pptp_nat import log
from pptp_nat.linux.nfqueue import Queue
from pptp_nat.router.listening import Listening

_log: Final = logging.getLogger(__name__)
SECONDS: Final = 5.0  #: that work may be late before it is told; a busy machine has two or three
ALL: Final = 16_384  #: packets that a queue may have waiting; it is filled again meanwhile
_MEND: Final = "nothing, if it was meant; else look for what stopped it: memory, the hypervisor"


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Pauses:
    """Notices pauses, and has heard first what waited in them: packets, then counts.

    Args:
        queues: those that packets wait in; None where there is none.
        listening: whose calls are idle by the counts.
        boot_time: seconds since the boot, suspended ones too.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        queues: Collection[Queue | None],
        listening: Listening,
        *,
        boot_time: Callable[[], float] = _boot_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queues = queues
        self._listening = listening
        self._boot_time = boot_time
        self._seen = clock()
        self._asleep = boot_time() - self._seen  # seconds that this boot was suspended

    def look(self, due: float, now: float) -> None:
        """Take note that work for *due* begins *now*; hear what comes first if that is late."""
        asleep = self._boot_time() - now
        slept, self._asleep = asleep - self._asleep, asleep
        late, self._seen = now - max(due, self._seen), now
        if max(slept, late) < SECONDS:
            return
        log.event(
            _log, logging.WARNING, "stood-still",
            stopped=round(late, 1) if late >= SECONDS else None,
            suspended=round(slept, 1) if slept >= SECONDS else None, mend=_MEND,
        )  # fmt: skip
        for queue in self._queues:
            if queue is not None:
                queue.serve(ALL)
        self._listening.hear_all()
