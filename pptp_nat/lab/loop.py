"""Waiting for many sockets in one thread."""

from __future__ import annotations

import contextlib
import selectors
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import HasFileno


PATIENCE: Final = 10.0  # seconds; how long to wait for what should take milliseconds
LOOK: Final = 0.1  # seconds between two looks at what no socket tells of


class Loop:
    """Waits for any of many sockets; single-threaded."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(
        self, sock: HasFileno, ready: Callable[[int], None], *, writing: bool = False
    ) -> None:
        """Call *ready* with the event mask when *sock* has something, or has room."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        if sock in self._selector.get_map():
            self._selector.modify(sock, events, ready)
        else:
            self._selector.register(sock, events, ready)

    def forget(self, sock: HasFileno) -> None:
        """Watch *sock* no longer."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def run_until(
        self, done: Callable[[], bool], seconds: float = PATIENCE, *, every: float = LOOK
    ) -> bool:
        """Serve the sockets until *done* says so; False if that took too long.

        Asks after each round, and at least *every* so many seconds where the
        answer may change without a socket having anything.
        """
        deadline = time.monotonic() + seconds
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._serve(min(left, every))
        return True

    def run_dry(self, quiet: float = 0.05) -> None:
        """Serve the sockets until none of them has had anything for *quiet* seconds."""
        while self._serve(quiet):
            pass

    def _serve(self, seconds: float) -> bool:
        ready = self._selector.select(seconds)
        for key, events in ready:
            key.data(events)
        return bool(ready)

    def close(self) -> None:
        """Let go of the selector; the sockets belong to others."""
        self._selector.close()
