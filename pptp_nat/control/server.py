"""The daemon's ear for people and tools: JSON lines over a unix socket.

Theory of operation
-------------------
The server owns no loop: it registers its sockets on the daemon's selector, and
the loop calls ``key.data(mask)``.  So that packets never wait for people, one
call does a bounded piece of work: it reads one buffer at most, answers one
request at most and encodes `CHUNK` octets of a long answer at most; the rest
follows as the reader drains.

Bounds: one request at a time and `LONGEST_REQUEST` octets of input per client,
`CHUNK` and one item of a long answer, `backlog` octets of events (a subscriber
that falls further behind is disconnected), `places` clients.  When all places
are taken, a client that made no progress for `PATIENCE` seconds and is no
subscriber gives way to the newcomer, or one of the user with the most places if
the newcomer's has fewer; else the newcomer is refused.

What is not a request (no JSON object, no ``id``, a line without an end) is
answered with one error, and the connection is closed: what follows cannot be
told from garbage.  A subscription lasts until the client closes its side, or as
long as the client said.  An event is made once, and only if somebody wants it.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.api import (
    LONGEST_REQUEST,
    SUBSCRIBE,
    GarbageError,
    RefusedRequest,
    Request,
    accepted,
    encode,
    event_line,
    item_lines,
    parse,
    refused,
    single_line,
)
from pptp_nat.control import sockets
from pptp_nat.control.subscription import Subscription
from pptp_nat.errors import PptpNatError

if TYPE_CHECKING:
    from pathlib import Path

    from pptp_nat.control.sockets import Access
    from pptp_nat.control.subscription import About

CHUNK: Final = 16 << 10  #: octets of a long answer that are encoded at a time: about 1 ms
BACKLOG: Final = 1 << 20  #: octets of events that wait for one subscriber
PLACES: Final = 64  #: clients at a time
PATIENCE: Final = 30.0  #: seconds without progress after which a client may be replaced

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
_CREDENTIALS: Final = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid

class Steps(NamedTuple):
    """An answer in one line that is made in steps: None for each, and then the answer."""

    steps: Iterable[Mapping[str, object] | None]


Items = Iterable[Mapping[str, object] | bytes | None]
#: A mapping is answered in one line, an iterable in one line per item, be it encoded or not;
#: None among them says that the rest can wait for the loop's next turn.
#: A `PptpNatError` that it raises, also while it is iterated, is told to the client.
Answer = Callable[[Request], Mapping[str, object] | Steps | Items]


class ControlServer:
    """Listens at a path and answers there, driven by the owner of *selector*."""

    def __init__(
        self,
        path: Path,
        access: Access,
        answer: Answer,
        selector: selectors.BaseSelector,
        *,
        listener: socket.socket | None = None,
        places: int = PLACES,
        backlog: int = BACKLOG,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen, or go on with *listener*.  Raises what `sockets.listen` raises."""
        self.answer = answer
        self.selector = selector
        self.backlog = backlog
        self.clock = clock
        self.refused = 0  #: connections turned away since all places were taken
        self.dropped = 0  #: subscribers disconnected since they fell behind
        self.garbled = 0  #: connections closed since what they sent was no request
        self.clients: set[Client] = set()
        self.subscribers: set[Client] = set()
        #: called when others subscribe than before
        self.on_subscribers: Callable[[], None] = _nothing
        self._places = places
        self._path = path
        self._listener = listener or sockets.listen(path, access)
        self._inode = path.lstat().st_ino
        selector.register(self._listener, _READ, self._accept)

    @property
    def descriptor(self) -> int:
        """The descriptor of the socket that listens."""
        return self._listener.fileno()

    def hears(self, kind: str) -> bool:
        """Whether anybody would hear events of type *kind*."""
        return any(each.subscription.hears(kind) for each in self.subscribers if each.subscription)

    def publish(self, about: About, make: Callable[[], Mapping[str, object]]) -> None:
        """Send the event that *make* returns to those who want it; nobody: it is not made."""
        body = None
        for client in list(self.subscribers):
            if client.wants(about, self.clock()):
                body = body or encode(make())
                client.tell(body)

    def next_timer(self) -> float | None:
        """Return when a subscription ends by itself, in monotonic seconds."""
        ends = (each.subscription.until for each in self.subscribers if each.subscription)
        return min((end for end in ends if end is not None), default=None)

    def tick(self, now: float) -> None:
        """End subscriptions whose time is over."""
        for client in list(self.subscribers):
            client.end_subscription(now)

    def close(self) -> None:
        """Disconnect everybody and remove the socket's file."""
        for client in list(self.clients):
            client.close()
        if self._listener.fileno() != -1:
            self.selector.unregister(self._listener)
            sockets.remove(self._path, self._listener, self._inode)

    def _accept(self, _mask: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No descriptor is left, and the newcomer stays in the kernel's queue:
            # without one given up here this would be called again for ever.
            self._shed(0)
            return
        peer.setblocking(False)
        if len(self.clients) >= self._places:
            self._shed(PATIENCE)
        if len(self.clients) >= self._places:
            self._share(_user_of(peer))
        if len(self.clients) < self._places:
            self.clients.add(Client(self, peer))
            return
        self.refused += 1
        line = refused(None, f"all {self._places} places are taken; close another client")
        try:
            peer.send(line)
        except OSError:
            pass  # gone already
        finally:
            peer.close()

    def _shed(self, patience: float) -> None:
        """Disconnect the client that stood still longest, if for *patience* seconds."""
        idle = [client for client in self.clients if client.subscription is None]
        stillest = min(idle, key=lambda client: client.moved, default=None)
        if stillest is not None and self.clock() - stillest.moved >= patience:
            stillest.close()

    def _share(self, user: int) -> None:
        """Have the user with the most places give one to *user*, if that evens it out."""
        held = Counter(client.user for client in self.clients)
        heaviest, most = held.most_common(1)[0]
        if most > held[user] + 1:
            theirs = (client for client in self.clients if client.user == heaviest)
            min(theirs, key=lambda each: (each.subscription is not None, each.moved)).close()
            self.refused += 1


class Client:
    """One connection to the server.  Made, kept and forgotten by `ControlServer` only."""

    __slots__ = (
        "_ending", "_inbox", "_interest", "_is_open", "_items", "_outbox", "_sent_all",
        "_server", "_socket", "moved", "subscription", "user",
    )  # fmt: skip

    def __init__(self, server: ControlServer, peer: socket.socket) -> None:
        self._server = server
        self._socket = peer
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._items: Iterator[bytes] | None = None  # the rest of a long answer
        self._sent_all = False  # the peer will send no more
        self._ending = False  # nothing more is answered
        self._is_open = True
        self.subscription: Subscription | None = None
        self.moved = server.clock()  #: when an octet last came or went
        self.user = _user_of(peer)  #: who asks, by the kernel's word
        self._interest = _READ
        server.selector.register(peer, _READ, self.on_ready)

    def wants(self, about: About, now: float) -> bool:
        """Whether an event about this is for this client; one too many is counted instead."""
        subscription = self.subscription
        return (
            subscription is not None
            and subscription.wants(about)
            and subscription.admits(about.type, now)
        )

    def tell(self, body: bytes) -> None:
        """Queue an encoded event; disconnect a client that leaves too many unread."""
        subscription = self.subscription
        if subscription is None or not self._is_open:
            return
        if len(self._outbox) + len(body) > self._server.backlog:
            self._server.dropped += 1
            self.close()
            return
        if subscription.suppressed:
            missing = {"type": "suppressed", "count": subscription.suppressed}
            self._outbox += event_line(subscription.number, encode(missing))
            subscription.suppressed = 0
        self._outbox += event_line(subscription.number, body)
        self._watch()

    def end_subscription(self, now: float) -> None:
        """Say that the subscription is over, if its time is."""
        subscription = self.subscription
        if subscription is None or subscription.until is None or subscription.until > now:
            return
        self._subscribe(None)
        last = {"ended": "its time is over", "suppressed": subscription.suppressed}
        self._outbox += accepted(subscription.number, last)
        self._watch()

    def _subscribe(self, subscription: Subscription | None) -> None:
        self.subscription = subscription
        change = self._server.subscribers.discard if subscription is None else (
            self._server.subscribers.add
        )
        change(self)
        self._server.on_subscribers()

    def on_ready(self, mask: int) -> None:
        """Do a bounded piece of work; called by the selector's loop."""
        try:
            if mask & self._interest & _READ:
                self._receive()
            if not self._ending:
                self._work()
            self._send()
            self._watch()
        except BaseException:  # ours, not the client's; it must not wait for ever
            self.close()
            raise

    def close(self) -> None:
        """Disconnect and forget."""
        if self._is_open:
            self._is_open = False
            self._ending = True
            self._items = None
            self._server.clients.discard(self)
            self._server.selector.unregister(self._socket)
            self._socket.close()
            if self.subscription is not None:
                self._subscribe(None)

    def _receive(self) -> None:
        if not self._is_open:  # closed by another client's turn in this round
            return
        try:
            octets = self._socket.recv(LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:  # the peer is gone
            self.close()
            return
        self.moved = self._server.clock()
        self._inbox += octets
        self._sent_all = not octets

    def _work(self) -> None:
        """Answer the next request, or carry on with a long answer."""
        try:
            if self._items is None and not self._outbox:
                line = self._next_line()
                if line is not None:
                    self._answer(line)
        except GarbageError as error:
            self._server.garbled += 1
            self._inbox.clear()
            self._outbox += refused(None, str(error))
            self._ending = True
        while self._items is not None and len(self._outbox) < CHUNK:
            line = next(self._items, None)
            if line is None:
                self._items = None
            elif not line:
                break
            else:
                self._outbox += line

    def _next_line(self) -> bytes | None:
        end = self._inbox.find(b"\n") + 1
        if (end or len(self._inbox) + 1) > LONGEST_REQUEST:
            raise GarbageError(f"a request of more than {LONGEST_REQUEST} octets")
        if end:
            line = bytes(self._inbox[:end])
            del self._inbox[:end]
            return line
        if self._sent_all:
            if self._inbox:
                raise GarbageError("a request ends with a line feed, this one did not")
            self._ending = True
        return None

    def _answer(self, line: bytes) -> None:
        number = None
        try:
            request = parse(line, self.user)
            number = request.id
            if request.do == SUBSCRIBE:
                wanted = Subscription.of(number, request.arguments, self._server.clock())
                self._outbox += accepted(number, {"types": sorted(wanted.types)})
                self._subscribe(wanted)
                return
            answer = self._server.answer(request)
        except RefusedRequest as error:
            self._outbox += refused(error.number, str(error))
        except PptpNatError as error:
            self._outbox += refused(number, str(error))
        else:
            if isinstance(answer, Mapping):
                self._outbox += accepted(number, answer)
            elif isinstance(answer, Steps):
                self._items = single_line(number, answer.steps)
            elif self._is_open:  # answering may have published, and that have dropped us
                self._items = item_lines(number, answer)

    def _send(self) -> None:
        if not self._outbox or not self._is_open:
            return
        try:
            sent = self._socket.send(self._outbox)
        except BlockingIOError:
            return
        except OSError:  # the peer is gone
            self.close()
            return
        self.moved = self._server.clock()
        del self._outbox[:sent]

    def _watch(self) -> None:
        """Ask the selector for what this client waits for; close one that is done."""
        if not self._is_open:
            return
        busy = bool(self._outbox) or self._items is not None
        if not busy and self._ending:
            self.close()
            return
        wanted = _WRITE if busy else 0
        if b"\n" in self._inbox or self._sent_all:
            wanted |= _WRITE  # work without further input: the next round's turn
        if not wanted:
            wanted = _READ
        if wanted != self._interest:
            self._interest = wanted
            self._server.selector.modify(self._socket, wanted, self.on_ready)


def _user_of(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(credentials)[1]
    return user


def _nothing() -> None:
    """Do nothing."""
