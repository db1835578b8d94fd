"""Packets that nobody could judge, and those that were nobody's, told once a minute.

The kernel drops what finds a queue full, or the socket's buffer, and our rules drop what
is above the pace.  TCP sends a message again; data are lost.  GRE of no call is what is left
of one that is over, or somebody guesses at numbers.  Either way the administrator should know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Final

from pptp_nat import log
from pptp_nat.linux.nfqueue import Queue, QueueCounters, queue_counters
from pptp_nat.linux.ruleset import RuleSettings, paced_drops
from pptp_nat.linux.ruleset_settings import UNPACED

_log: Final = logging.getLogger(__name__)
LOOK_SECONDS: Final = 60.0
_WHO: Final = "who: conntrack -L -p tcp --dport 1723 --state SYN_SENT"
_MENDS: Final = {
    "openers_per_client": f"a flood, or a NAT with many clients behind it; {_WHO}",
    "openers": f"a flood from many addresses, or too low for so many clients; {_WHO}",
    "segments_per_client": "a flood in a control connection, or a host with very many calls",
    "gre_per_host": "a flood, or a server that really sends so much; who: tcpdump -n proto gre",
    "dropped": "raise queue_length of this queue; of a flood of GRE, lower limits.gre_per_host",
    "user_dropped": "raise socket_buffer of this queue, and net.core.rmem_max",
    "overruns": "raise socket_buffer of this queue, and net.core.rmem_max",
    "too_long": "packets of more than 65,531 octets cannot be queued whole",
    "refusals": "the kernel has refused verdicts: is another program bound to this queue?",
}
_STRAYS: Final = "one end has not noticed the end of its call, or guesses: tcpdump -n proto gre"


class Overflow:
    """Looks after *queues*.

    Args:
        rules: what our rules depend on, their pace for one.
        counters: returns what the kernel counts of a queue.
        paced: returns what such rules have dropped, by the key in [limits]; None where they
            do not tell.
        strays: returns how many GRE packets of no call there were, by where they went.
    """

    def __init__(
        self,
        queues: Collection[Queue],
        rules: RuleSettings = RuleSettings(pace=UNPACED),  # noqa: B008  it is frozen
        counters: Callable[[int], QueueCounters | None] = queue_counters,
        paced: Callable[[RuleSettings], Mapping[str, int] | None] = paced_drops,
        strays: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._queues = queues
        self._counters = counters
        self._rules = rules
        self._paced = paced
        self._strays = strays
        self._due = 0.0
        self._told: dict[Hashable, int] = {}

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._due

    def tick(self, now: float) -> None:
        """Tell what has been lost since the last time, a line for each queue and cause."""
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        self._tell(None, self._paced(self._rules) or {})
        for queue in self._queues:
            self._tell(queue.number, self._losses(queue))
        for way, count in self._strays().items():
            if new := self._grown(way, count, 0):
                log.event(
                    _log, logging.INFO, "gre-of-no-call", direction=way, count=new, in_all=count,
                    mend=_STRAYS,
                )  # fmt: skip

    def _tell(self, queue: int | None, losses: Mapping[str, int]) -> None:
        for cause, count in losses.items():
            # Rules may be older than this run; what they have counted by then is no news.
            if new := self._grown((queue, cause), count, 0 if queue is not None else count):
                log.event(
                    _log, logging.WARNING, "packets-lost", queue=queue, cause=cause,
                    count=new, in_all=count, mend=_MENDS[cause],
                )  # fmt: skip

    def _grown(self, what: Hashable, count: int, at_first: int) -> int:
        """Return how much *count* has grown since the last time."""
        before = self._told.get(what, at_first)
        self._told[what] = count
        return count - before if count >= before else count  # fresh rules count from 0

    def _losses(self, queue: Queue) -> dict[str, int]:
        seen = self._counters(queue.number)
        losses = {
            "overruns": queue.overruns, "too_long": queue.too_long, "refusals": queue.refusals,
        }  # fmt: skip
        if seen is not None:
            losses |= {"dropped": seen.dropped, "user_dropped": seen.user_dropped}
        return losses
