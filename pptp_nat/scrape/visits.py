"""When the next scrape will come, learned from those that came.

Prometheus asks at an interval that it keeps to the millisecond, two of a kind at
the same interval and different moments.  So what happened between visits happens
again: with m scrapers each visit follows the m-th before it by the interval.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MOST_SCRAPERS: Final = 3  #: told apart
SHORTEST: Final = 0.5  #: seconds between two visits that are not one
_PRECISION: Final = 0.1  #: of an interval, by which it may differ from the one before it


class Visits:
    """Remembers a few visits, and what they foretell."""

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=2 * MOST_SCRAPERS + 1)

    def next_after(self, now: float) -> float | None:
        """Take note of a visit at *now*; return when the next one comes, None if nobody knows.

        Monotonic seconds.
        """
        if not self._at or now - self._at[-1] >= SHORTEST:
            self._at.append(now)
        at = self._at
        for scrapers in range(min(MOST_SCRAPERS, (len(at) - 1) // 2), 0, -1):
            interval = at[-1] - at[-1 - scrapers]
            before = at[-1 - scrapers] - at[-1 - 2 * scrapers]
            if abs(interval - before) <= _PRECISION * interval:
                return at[-scrapers] + interval
        # Two are no pattern, but what there is.
        return 2 * at[1] - at[0] if len(at) == 2 else None
