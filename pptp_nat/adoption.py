"""What an earlier run has left in the kernel: kept while its calls may live, then removed.

Legs in conntrack outlive the daemon, and so do the calls that they carry.  This
run does not know those calls; it leaves their legs alone as long as some control
connection joins the same two hosts, and never gives their numbers to others.
"""

from __future__ import annotations

import logging
from typing import Final

from pptp_nat import log
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_path import ConntrackPath

_log: Final = logging.getLogger(__name__)
_AGAIN_SECONDS: Final = 60.0


class Adoption:
    """Legs of an earlier run, until the last is gone."""

    def __init__(
        self,
        path: ConntrackPath,
        conntrack: Conntrack,
        translator: Translator,
        ports: tuple[int, ...],
    ) -> None:
        self._path = path
        self._conntrack = conntrack
        self._translator = translator
        self._ports = ports
        self._due: float | None = None

    def begin(self, now: float) -> None:
        """Find what is there and keep its numbers back.  Raises `AdapterError`."""
        self._path.adopt()
        self._sort_out(now)
        for leg in self._path.adopted:
            if leg.destination != leg.new_destination:
                self._translator.claim(leg.destination, leg.source, leg.key)

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._due

    def tick(self, now: float) -> None:
        """Remove legs whose hosts no control connection joins any more."""
        if self._due is not None and self._due <= now:
            self._due = now + _AGAIN_SECONDS
            self._sort_out(now)

    def _sort_out(self, now: float) -> None:
        legs = self._path.adopted
        self._due = now + _AGAIN_SECONDS if legs else None
        if not legs:
            return
        joined = {
            frozenset((placement.flow.source, placement.flow.destination))
            for placement in self._conntrack.control_connections(self._ports)
        }
        orphans = [leg for leg in legs if joined.isdisjoint(_hosts(leg))]
        try:
            self._path.remove(orphans)
        except AdapterError as error:
            log.event(_log, logging.ERROR, "data-path-refused", reason=str(error))
            return
        for leg in orphans:
            if leg.destination != leg.new_destination:
                self._translator.unclaim(leg.destination, leg.source, leg.key, now)
        log.event(
            _log, logging.INFO, "earlier-entries",
            kept=len(legs) - len(orphans), removed=len(orphans),
        )  # fmt: skip


def _hosts(leg: Leg) -> set[frozenset[bytes]]:
    """Return the two hosts of a leg, towards the inside and towards the outside."""
    return {
        frozenset((leg.source, leg.new_destination)),
        frozenset((leg.new_source, leg.destination)),
    }
