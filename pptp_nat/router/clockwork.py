"""What the daemon's loop turns: sources that wake it, and works that have their times."""

from __future__ import annotations

from typing import Protocol


class HasFileno(Protocol):
    """What a selector can wait for."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Clockwork(Protocol):
    """What has something to do from time to time."""

    def next_timer(self) -> float | None:
        """Return when, in monotonic seconds; None: no need."""

    def tick(self, now: float) -> None:
        """Do what is due by *now*."""
