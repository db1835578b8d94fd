"""All workers asked side by side: one that hangs holds nobody up but who asks, and him once."""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from pptp_nat import api
from pptp_nat.control import sockets
from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    import socket
    from pathlib import Path

#: Seconds of waiting for a worker's next octet; no time counts in which nobody waits, since
#: who reads our answer is slow.
PATIENCE: Final = 5.0
#: Seconds of waiting at a time, shared by all who wait; the supervisor's loop turns in between.
_STEP: Final = 0.02
_STOOD_STILL: Final = 1.0  #: seconds; more between two looks is not the worker's fault
_OCTETS: Final = 1 << 18
_ITEM: Final = b'{"v":%d,"id":%d,"ok":true,"item":' % (api.VERSION, api.OWN_ID)


class Said(NamedTuple):
    """An item of a long answer."""

    worker: int
    item: bytes  #: encoded, as the worker has it


class Round:
    """One request to several workers, and what they say, as it comes.

    Iterating yields the items of long answers, and None where nobody has said anything
    for a moment; what is said in one line is in `answered` at the end.
    All requests are sent before the first answer is waited for.

    Args:
        places: where they listen, by worker.
        request: ``do`` and arguments.
    """

    waiting: ClassVar = 0  #: rounds that are not at their end

    def __init__(self, places: Mapping[int, Path], request: Mapping[str, object]) -> None:
        self.refused: dict[int, str] = {}  #: who says no, and why
        self.silent: dict[int, str] = {}  #: who has not answered to the end, and why
        self.answered: dict[int, Mapping[str, Any]] = {}  #: what the others' last lines say
        self._places = places
        self._request = request

    def __iter__(self) -> Iterator[Said | None]:
        with selectors.DefaultSelector() as selector:
            Round.waiting += 1
            try:
                yield from self._talk(selector)
            finally:
                Round.waiting -= 1
                for key in list(selector.get_map().values()):
                    key.fileobj.close()  # type: ignore[union-attr]

    def finish(self) -> None:
        """Hear all that is said, and note who says nothing."""
        for _ in self:
            pass

    def _talk(self, selector: selectors.BaseSelector) -> Iterator[Said | None]:
        for index, path in self._places.items():
            try:
                peer = sockets.connect(path, 0.0)
            except UsageError as error:
                self.silent[index] = str(error)
                continue
            selector.register(peer, selectors.EVENT_READ, _Talk(index, peer))
            try:
                api.send(peer, self._request)
            except OSError as error:
                self._leave(selector, peer, index, str(error))
        began = time.monotonic()
        while selector.get_map():
            if ready := [key.data for key, _ in selector.select(_STEP / Round.waiting)]:
                for talk in ready:
                    talk.waited = 0.0
                    yield from self._hear(selector, talk)
                began = time.monotonic()  # who reads our answer may be slow: that does not count
                continue
            yield None
            now = time.monotonic()
            waited, began = min(_STOOD_STILL, now - began), now
            for talk in [key.data for key in selector.get_map().values()]:
                talk.waited += waited
                if talk.waited >= PATIENCE:
                    self._leave(selector, talk.peer, talk.index, "it says nothing")

    def _hear(self, selector: selectors.BaseSelector, talk: _Talk) -> Iterator[Said]:
        try:
            octets = talk.peer.recv(_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._leave(selector, talk.peer, talk.index, "it broke off")
            return
        *lines, talk.rest = (talk.rest + octets).split(b"\n")
        for line in lines:
            if line.startswith(_ITEM):
                yield Said(talk.index, line[len(_ITEM) : -1])
                continue
            selector.unregister(talk.peer)
            talk.peer.close()
            try:
                self.answered[talk.index] = api.understood(self._places[talk.index], line)
            except UsageError as error:
                self.refused[talk.index] = str(error)
            return

    def _leave(
        self, selector: selectors.BaseSelector, peer: socket.socket, index: int, why: str
    ) -> None:
        selector.unregister(peer)
        peer.close()
        self.silent[index] = why


class _Talk:
    """What one worker has said so far."""

    __slots__ = ("index", "peer", "rest", "waited")

    def __init__(self, index: int, peer: socket.socket) -> None:
        self.index = index
        self.peer = peer
        self.rest = b""  # of a line that has not ended
        self.waited = 0.0  # seconds since it said anything
