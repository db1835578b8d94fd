"""Signals, inside the loop: a signal becomes an octet on a socket that the loop reads."""

from __future__ import annotations

import selectors
import signal
import socket
from collections.abc import Callable, Mapping


class Signals:
    """Has *effects* happen in the turn of *selector* after their signal came.

    Until `close` the process's handlers of those signals do nothing else.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        effects: Mapping[signal.Signals, Callable[[], None]],
    ) -> None:
        self._effects = effects
        self._inbox, self._outbox = socket.socketpair()
        self._inbox.setblocking(False)
        self._outbox.setblocking(False)
        signal.set_wakeup_fd(self._outbox.fileno())
        for number in effects:
            signal.signal(number, lambda *_: None)
        selector.register(self._inbox, selectors.EVENT_READ, self._heed)

    def _heed(self, _mask: int) -> None:
        for number in self._inbox.recv(64):
            self._effects[signal.Signals(number)]()

    def close(self) -> None:
        """Stop listening."""
        signal.set_wakeup_fd(-1)
        self._inbox.close()
        self._outbox.close()
