"""A daemon that is its socket and its loop, in a thread; what it answers is the test's."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pptp_nat.api import Request
from pptp_nat.control.server import ControlServer
from pptp_nat.control.sockets import Access
from pptp_nat.control.subscription import About


class ThreadedDaemon:
    """Serves ``answer(request)`` on *path* and tells subscribers what it is given to `tell`."""

    def __init__(self, path: Path, answer: Callable[[Request], Any]) -> None:
        self.path = path
        self.answer = answer
        self.subscribed = threading.Event()
        self.start()

    def start(self) -> None:
        """Listen on the socket; again, after `close`."""
        self._selector = selectors.DefaultSelector()
        self.server = ControlServer(self.path, Access(0o600), self._ask, self._selector)
        self.server.on_subscribers = self._note
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, None)
        self._due: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _ask(self, request: Request) -> Any:
        return self.answer(request)  # looked up now: a test may exchange it meanwhile

    def _note(self) -> None:
        (self.subscribed.set if self.server.subscribers else self.subscribed.clear)()

    def _loop(self) -> None:
        while True:
            due = self.server.next_timer()
            patience = None if due is None else max(0.0, due - time.monotonic())
            for key, mask in self._selector.select(patience):
                if key.data is not None:
                    key.data(mask)
                elif key.fileobj.recv(1) == b"q":  # type: ignore[union-attr]
                    return
                else:
                    self._due.pop(0)()
            self.server.tick(time.monotonic())

    def tell(self, *events: dict[str, Any]) -> None:
        """Publish *events*, all of one call, once somebody has subscribed."""
        assert self.subscribed.wait(20)
        for event in events:
            about = About(event["type"], 7, 3, ("192.168.77.10", "198.18.7.2"))
            self._due.append(
                lambda event=event, about=about: self.server.publish(about, lambda: event)  # type: ignore[misc]
            )
            self._wake.send(b"t")

    def close(self) -> None:
        """Go away, the socket too."""
        self._wake.send(b"q")
        self._thread.join()
        self.server.close()
        self._selector.close()


@contextlib.contextmanager
def threaded_daemon(
    path: Path, answer: Callable[[Request], Any]
) -> Iterator[ThreadedDaemon]:
    """Have one while the ``with`` block lasts."""
    daemon = ThreadedDaemon(path, answer)
    try:
        yield daemon
    finally:
        daemon.close()
