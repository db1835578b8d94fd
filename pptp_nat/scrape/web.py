"""A small HTTP server on the daemon's selector: for scrapes and health checks.

Theory of operation
-------------------
Like `pptp_nat.control.server` it owns no loop.  The loop calls ``key.data(mask)`` when a
socket is ready, and `WebServer.tick` when `WebServer.next_timer` has come.  One call
accepts few connections, or reads one buffer and answers one request.  A TLS
handshake costs one or two milliseconds of arithmetic: its steps are taken one per tick.

Bounds: `PLACES` connections; `LONGEST_HEAD` octets of a request, which has no body;
`HEAD_SECONDS` for a request from its first octet on (a handshake included),
`IDLE_SECONDS` between two, `STILL_SECONDS` for a reader that takes nothing;
`ACCEPTS_PER_SECOND` connections on average.  A newcomer that finds all places taken
gets that of the connection that stood still longest, if that is idle for a second;
else it is closed.

What is no request gets one answer with a 4xx code, and the connection is closed,
since what follows cannot be told from garbage.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from pptp_nat.scrape.http1 import LINE, LONGEST_HEAD, BadRequest, Request, Response, parse

if TYPE_CHECKING:
    import ssl

PLACES: Final = 32  #: connections at a time
HEAD_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 180.0  #: Prometheus asks again on the same connection, mostly every minute
STILL_SECONDS: Final = 30.0
ACCEPTS_PER_SECOND: Final = 200.0
ACCEPTS_AT_ONCE: Final = 8  #: in one turn
LINGER_SECONDS: Final = 2.0  #: from our last word to the close, if the client does not close first
_TLS_COST: Final = 4  #: a handshake counts as so many plain connections
_SWEEP_SECONDS: Final = 1.0
_SEND: Final = 1 << 16  #: octets of an answer in one turn
_RECEIVE: Final = 1 << 14  #: octets; no TLS record holds more, so none are left inside
_END: Final = b"\r\n\r\n"
_BACKLOG: Final = 128

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE



#: Why a connection ends without a good request.
CLOSED: Final = ("no_place", "replaced", "handshake", "slow_request", "slow_reader")
#: Takes a response, at once or later.
Answer = Callable[[Response], None]


class WebServer:
    """Listens on TCP, driven by the owner of *selector*.

    Args:
        host, port: where; an address that this router does not have yet will do.
        handle: is given each request and a function that takes its answer.
        tls: a server's context, or None for plain HTTP.

    Raises:
        OSError: the port is taken, or we may not.
    """

    def __init__(
        self,
        host: str,
        port: int,
        handle: Callable[[Request, Answer], None],
        selector: selectors.BaseSelector,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handle = handle
        self.selector = selector
        self.tls = tls
        self.clock = clock
        self.codes: Counter[int] = Counter()  #: requests answered, by status
        self.closed: Counter[str] = Counter()  #: connections that ended otherwise, by why
        self.clients: set[Client] = set()
        self.shakes: deque[Client] = deque()  #: whose handshake has a step to take
        self._allowance = ACCEPTS_PER_SECOND
        self._filled = clock()
        self._sweep_at: float | None = None
        self._listener = _listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._listening = False
        self._listen(wanted=True)

    def close(self) -> None:
        """Disconnect everybody."""
        for client in list(self.clients):
            client.close()
        self._listen(wanted=False)
        self._listener.close()

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return 0.0 if self.shakes else self._sweep_at

    def tick(self, now: float) -> None:
        """Take one step of one handshake; look once a second for who stands still."""
        if self.shakes:
            self.shakes.popleft().shake()
        if self._sweep_at is not None and self._sweep_at <= now:
            self._listen(wanted=True)
            for client in [each for each in self.clients if each.due <= now]:
                client.give_up()
            self._sweep_at = now + _SWEEP_SECONDS if self.clients else None

    def _listen(self, *, wanted: bool) -> None:
        if wanted and not self._listening:
            self.selector.register(self._listener, _READ, self._accept)
        elif self._listening and not wanted:
            self.selector.unregister(self._listener)
        self._listening = wanted

    def _accept(self, _mask: int) -> None:
        now = self.clock()
        gained = (now - self._filled) * ACCEPTS_PER_SECOND
        self._allowance = min(ACCEPTS_PER_SECOND, self._allowance + gained)
        self._filled = now
        if self._sweep_at is None:
            self._sweep_at = now + _SWEEP_SECONDS
        for _ in range(ACCEPTS_AT_ONCE):
            if self._allowance < 1:
                self._listen(wanted=False)  # the others wait in the kernel until the next sweep
                return
            try:
                peer, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left: calls may need the next one more
                self._shed(0.0)
                self._listen(wanted=False)
                return
            self._allowance -= 1 if self.tls is None else _TLS_COST
            self._welcome(peer)

    def _welcome(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if len(self.clients) >= PLACES:
            self._shed(1.0)
        if len(self.clients) >= PLACES:
            self.closed["no_place"] += 1
            peer.close()
            return
        try:
            self.clients.add(Client(self, peer))
        except OSError:  # gone already
            peer.close()

    def _shed(self, patience: float) -> None:
        """Disconnect who stood still longest, if for *patience* seconds."""
        idle = [client for client in self.clients if not client.waits]
        stillest = min(idle, key=lambda client: client.moved, default=None)
        if stillest is not None and self.clock() - stillest.moved >= patience:
            self.closed["replaced"] += 1
            stillest.close()


class Client:
    """One connection.  Made, kept and forgotten by `WebServer` only."""

    __slots__ = (
        "_inbox", "_interest", "_is_head", "_is_open", "_is_over", "_outbox", "_server",
        "_shaking", "_socket", "_stays", "due", "moved", "waits",
    )  # fmt: skip

    def __init__(self, server: WebServer, peer: socket.socket) -> None:
        self._server = server
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._shaking: ssl.SSLSocket | None = None
        self._socket = peer
        if server.tls is not None:
            self._socket = self._shaking = server.tls.wrap_socket(
                peer, server_side=True, do_handshake_on_connect=False
            )
        self._inbox = bytearray()
        self._outbox = memoryview(b"")
        self._is_head = False  # a HEAD request's answer has no body
        self._stays = True
        self._is_open = True
        self._is_over = False  # all is said; what still comes is thrown away
        self.waits = False  #: for its answer
        self.moved = server.clock()  #: when an octet last came or went
        self.due = self.moved + HEAD_SECONDS  #: when to give up on it
        self._interest = _READ
        server.selector.register(self._socket, _READ, self.on_ready)

    def close(self) -> None:
        """Disconnect and forget."""
        if self._is_open:
            self._is_open = False
            self.waits = False
            self._server.clients.discard(self)
            self._interest_in(0)
            self._socket.close()

    def give_up(self) -> None:
        """Disconnect since it stood still, and count that unless it had nothing to say."""
        if self._outbox:
            self._server.closed["slow_reader"] += 1
        elif (self._inbox or self._shaking is not None) and not self._is_over:
            self._server.closed["slow_request"] += 1
        self.close()

    def on_ready(self, mask: int) -> None:
        """Do a bounded piece of work; called by the selector's loop."""
        if not self._is_open:  # closed by another client's turn in this round
            return
        if self._shaking is not None:
            self._interest_in(0)
            self._server.shakes.append(self)
            return
        try:
            if mask & self._interest & _READ:
                self._receive()
            if not self._outbox and not self.waits:
                self._next_request()
            self._send()
            self._watch()
        except BaseException:  # ours, not the client's; it must not wait for ever
            self.close()
            raise

    def shake(self) -> None:
        """Take a step of the TLS handshake."""
        if not self._is_open or self._shaking is None:
            return
        import ssl  # noqa: PLC0415  loaded already, and only with TLS

        try:
            self._shaking.do_handshake()
        except ssl.SSLWantReadError:
            self._interest_in(_READ)
        except ssl.SSLWantWriteError:
            self._interest_in(_WRITE)
        except OSError:  # SSLError is one
            self._server.closed["handshake"] += 1
            self.close()
        else:
            self._shaking = None
            self._interest_in(_READ)
            self.on_ready(_READ)  # octets may have come with the handshake's last

    def _receive(self) -> None:
        try:
            octets = self._socket.recv(_RECEIVE)
        except OSError as error:
            if not _is_patient(error):
                self.close()
            return
        if not octets:
            self.close()
        elif not self._is_over:
            self.moved = self._server.clock()
            if not self._inbox:
                self.due = self.moved + HEAD_SECONDS
            self._inbox += octets

    def _next_request(self) -> None:
        """Have the next request answered, if it is whole."""
        if not self._is_open or self._is_over:
            return
        try:
            head = self._next_head()
            if head is None:
                return
            request, self._stays = parse(head)
        except BadRequest as error:
            self._stays = False
            self._answer(error.response)
            return
        self._is_head = request.method == "HEAD"
        self.waits = True
        self.due = math.inf  # the answer is ours to give
        self._server.handle(request, self._take)

    def _next_head(self) -> bytes | None:
        """Take the next request out of the inbox, None if it is not whole yet."""
        end = self._inbox.find(_END)
        if 0 <= end <= LONGEST_HEAD:
            head = bytes(self._inbox[:end])
            del self._inbox[: end + len(_END)]
            return head
        if len(self._inbox) > LONGEST_HEAD:
            raise BadRequest(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"a request has {LONGEST_HEAD} octets at most",
            )
        line, found, _ = self._inbox.partition(b"\n")
        if found and not LINE.fullmatch(line.rstrip(b"\r")):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request")
        return None

    def _take(self, response: Response) -> None:
        """Take the answer to the request that is waited for."""
        if self._is_open and self.waits:
            self.waits = False
            self._answer(response)
            self._watch()

    def _answer(self, response: Response) -> None:
        self._server.codes[response.status] += 1
        lines = [
            f"HTTP/1.1 {response.status.value} {response.status.phrase}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "X-Content-Type-Options: nosniff",
            *response.fields,
            *(() if self._stays else ("Connection: close",)),
            "\r\n",
        ]
        head = "\r\n".join(lines).encode("latin-1")
        self._outbox = memoryview(head if self._is_head else head + response.body)
        self._is_head = False
        self.due = self._server.clock() + STILL_SECONDS

    def _send(self) -> None:
        if not self._outbox or not self._is_open:
            return
        try:
            sent = self._socket.send(self._outbox[:_SEND])
        except OSError as error:
            if not _is_patient(error):
                self.close()
            return
        self.moved = self._server.clock()
        self._outbox = self._outbox[sent:]
        self.due = self.moved + (STILL_SECONDS if self._outbox else IDLE_SECONDS)
        if not self._outbox and not self._stays:
            self._end()

    def _end(self) -> None:
        """Say that all is said; a close now would take the answer away from who still sends."""
        self._is_over = True
        self._inbox.clear()
        self.due = self.moved + LINGER_SECONDS
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Ask the selector for what this client waits for."""
        if self._is_open:
            more = _END in self._inbox  # work without further input: the next round's turn
            self._interest_in(0 if self.waits else _WRITE if self._outbox or more else _READ)

    def _interest_in(self, wanted: int) -> None:
        if wanted != self._interest:
            selector = self._server.selector
            if not wanted:
                selector.unregister(self._socket)
            elif not self._interest:
                selector.register(self._socket, wanted, self.on_ready)
            else:
                selector.modify(self._socket, wanted, self.on_ready)
            self._interest = wanted


def _is_patient(error: OSError) -> bool:
    """Whether *error* only says "not yet"."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in _NOT_YET


#: of the module ssl, which is loaded with TLS only
_NOT_YET: Final = {"SSLWantReadError", "SSLWantWriteError"}


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # an address may come later than the daemon
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


_IP_FREEBIND: Final = 15  # linux/in.h
