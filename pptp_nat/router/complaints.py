"""What the kernel refuses, told once and then once a minute, and that nothing waits any more.

A full table refuses each leg five times a second; the first refusal says it all.
"""

from __future__ import annotations

import logging
from typing import Final

from pptp_nat.errors import AdapterError
from pptp_nat.log import event

_log: Final = logging.getLogger(__name__)
AGAIN_SECONDS: Final = 60.0


class Complaints:
    """Tells what a data path refuses; by errno, since the words name one leg of many."""

    def __init__(self) -> None:
        self._since: float | None = None  # monotonic seconds: something waits since
        self._again: dict[int, float] = {}  # by errno, when it may be told again
        self._untold: dict[int, int] = {}

    def tell(self, error: AdapterError, now: float, *, waits: bool = True) -> None:
        """Tell of *error*, unless one of its kind was told within a minute.

        *waits*: it is tried again until it comes true, which is then told too.
        """
        if waits and self._since is None:
            self._since = now
        code = error.errno
        if now < self._again.get(code, now):
            self._untold[code] = self._untold.get(code, 0) + 1
            return
        self._again[code] = now + AGAIN_SECONDS
        event(
            _log, logging.ERROR, "data-path-refused", reason=str(error),
            untold=self._untold.pop(code, None),
        )  # fmt: skip

    def over(self, now: float) -> None:
        """Tell that nothing is refused or still wanted any more, if anything was."""
        if self._since is None:
            return
        event(
            _log, logging.INFO, "data-path-caught-up", seconds=round(now - self._since, 1),
            untold=sum(self._untold.values()) or None,
        )  # fmt: skip
        self._since = None
        self._untold.clear()
