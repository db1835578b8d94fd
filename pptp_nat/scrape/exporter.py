"""Metrics for whoever asks: over HTTP, and in a file for node_exporter's textfile collector.

One reading at a time, made in steps of the daemon's loop (`Exporter.tick`); whoever
asks meanwhile gets the same one, and so does whoever asks soon after: for ten times
as long as a reading took, so that scrapes cost a tenth of the processor at most,
however many come.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import html
import logging
import os
import time
import zlib
from collections.abc import Generator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pptp_nat import __version__, log
from pptp_nat.errors import ConfigError
from pptp_nat.scrape.http1 import Request, Response
from pptp_nat.scrape.metrics import TEXT, Form, Sample, form_for, written
from pptp_nat.scrape.visits import Visits
from pptp_nat.scrape.web import CLOSED, Answer, WebServer

if TYPE_CHECKING:
    import ssl

    from pptp_nat.config import Metrics
    from pptp_nat.daemon import Daemon
    from pptp_nat.scrape.meter import Meter
    from pptp_nat.scrape.readings import Found
    from pptp_nat.workers.supervisor import Supervisor

_log: Final = logging.getLogger(__name__)
_STEP_SECONDS: Final = 0.001  #: of steps in one turn of the loop; the last may end later
_REST: Final = 10  #: a reading is good for so many times as long as it took
_QUIET_ATTEMPTS: Final = 4  #: a second apart, before a port that is taken is told
_AGAIN_SECONDS: Final = 30.0  #: until a port that is taken is tried again
_LONGEST_TOKEN: Final = 4096  #: octets of a token file
_LOCAL: Final = ("127.", "::1")
_GZIP: Final = 31  #: zlib's window size that means gzip
_PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>pptp-nat</title></head><body>
<h1>pptp-nat {version}</h1>
<ul><li><a href="/metrics">/metrics</a>: for Prometheus, as text or OpenMetrics</li>
<li><a href="/healthz">/healthz</a>: the daemon's loop turns</li>
<li><a href="/readyz">/readyz</a>: its queues are bound, so calls can come up</li></ul>
</body></html>
"""


class Source(Protocol):
    """Where a scrape's samples come from."""

    def take(self) -> Generator[None, None, Found]:
        """Read everything, in steps."""

    def expect(self, when: float | None) -> None:
        """Know when the next scrape comes, monotonic seconds; None: nobody knows."""

    def longest(self, step: float) -> float:
        """Return how long a verdict may have waited for all this, processor seconds.

        Args:
            step: the longest of writing, and of `take`.
        """

    def unbound(self) -> int | None:
        """Return the number of a queue that should be bound and is not."""


class _Variant(NamedTuple):
    """A way in which a scrape can be written."""

    form: Form
    is_gzip: bool
    process: bool = True


#: node_exporter has process families of its own, and refuses a name that comes twice.
_FILE: Final = _Variant(TEXT, is_gzip=False, process=False)


class Exporter:
    """Serves *daemon*'s metrics.

    Raises:
        ConfigError: a certificate, key or token cannot be used.
    """

    def __init__(
        self, daemon: Daemon | Supervisor, config: Metrics, readings: Source, meter: Meter
    ) -> None:
        self.meter = meter
        self.readings = readings
        self.failures = 0  #: of writing the textfile
        self._daemon = daemon
        self._config = config
        self._visits = Visits()
        self._server: WebServer | None = None
        self._token, self._tls = credentials(config)
        self._waiting: list[tuple[_Variant, Answer]] = []
        self._job: Generator[None] | None = None
        self._found: Found = {}
        self._good_until = 0.0  # monotonic seconds
        self._reload = (True, 0.0)  # that the reading knows of
        self._spent = 0.0  # CPU seconds of the reading under way
        self._longest = 0.0  # of its steps, CPU seconds
        self._bodies: dict[_Variant, bytes] = {}
        self._write_at: float | None = None  # the textfile, monotonic seconds
        self._listen_at: float | None = None
        self._attempts = 0  # to listen
        self._inode = 0  # of the textfile
        self._told: set[str] = set()  # troubles that are in the log already

    # Its place in the loop.

    def begin(self) -> None:
        """Listen, and write the file for the first time."""
        now = time.monotonic()
        if self._config.listen is not None:
            self._listen(now)
            self._warn()
        if self._config.textfile is not None:
            self._write_at = now

    def close(self) -> None:
        """Disconnect everybody.  The textfile goes: it says what is, and nothing is any more."""
        if self._server is not None:
            self._server.close()
        path = self._config.textfile
        if path is not None:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == self._inode:  # else it is a successor's
                    path.unlink()

    def reload(self) -> None:
        """Read certificates and tokens again.

        Raises:
            ConfigError: they cannot be used; what was there stays.
        """
        self._token, self._tls = credentials(self._config)
        if self._server is not None:
            self._server.tls = self._tls

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        if self._job is not None:
            return 0.0
        server = None if self._server is None else self._server.next_timer()
        dues = (server, self._write_at, self._listen_at)
        return min((due for due in dues if due is not None), default=None)

    def tick(self, now: float) -> None:
        """Do a bounded piece of what is due."""
        if self._server is not None:
            due = self._server.next_timer()
            if due is not None and due <= now:
                self._server.tick(now)
        if self._listen_at is not None and self._listen_at <= now:
            self._listen(now)
        if self._write_at is not None and self._write_at <= now:
            self._write_at = now + self._config.textfile_interval
            self._ask(_FILE, self._write)
        self._proceed()

    def _listen(self, now: float) -> None:
        place = self._config.listen
        assert place is not None
        try:
            self._server = WebServer(
                place.host, place.port, self.handle, self._daemon.selector, tls=self._tls
            )
        except OSError as error:
            self._attempts += 1
            if error.errno == errno.EADDRINUSE and self._attempts < _QUIET_ATTEMPTS:
                self._listen_at = now + 1.0  # a predecessor hands over, and ends in a moment
                return
            self._listen_at = now + _AGAIN_SECONDS
            self._trouble(
                f"metrics.listen: {place}: {error.strerror}; calls are carried all the same; "
                "it is tried again"
            )
        else:
            self._listen_at = None
            log.event(_log, logging.INFO, "metrics", address=str(place), tls=self._tls is not None)

    def _warn(self) -> None:
        place = self._config.listen
        assert place is not None
        is_closed = self._token is not None or self._config.tls_client_ca is not None
        if not place.host.startswith(_LOCAL) and not is_closed:
            log.event(
                _log, logging.WARNING, "check",
                finding=f"metrics.listen: {place} is open to whoever can reach it; "
                "set metrics.tls_client_ca or metrics.token_file, or listen on 127.0.0.1",
            )  # fmt: skip

    def _trouble(self, text: str) -> None:
        """Log *text*, once as long as it stays the same."""
        if text not in self._told:
            self._told.add(text)
            log.event(_log, logging.ERROR, "metrics-trouble", problem=text)

    # Requests.

    def handle(self, request: Request, answer: Answer) -> None:
        """Answer *request*, at once or when a reading is done."""
        if request.method not in {"GET", "HEAD"}:
            answer(_plain(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", "Allow: GET, HEAD"))
        elif request.path == "/healthz":
            answer(_plain(HTTPStatus.OK, "ok"))
        elif request.path == "/readyz":
            answer(self._readiness())
        elif not self._admits(request):
            answer(_plain(HTTPStatus.UNAUTHORIZED, "a token is needed", "WWW-Authenticate: Bearer"))
        elif request.path == "/metrics":
            form = form_for(request.fields.get("accept", ""))
            is_gzip = _takes_gzip(request.fields.get("accept-encoding", ""))
            self._ask(_Variant(form, is_gzip), answer)
        elif request.path == "/":
            page = _PAGE.format(version=html.escape(__version__))
            answer(Response(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8"))
        else:
            answer(_plain(HTTPStatus.NOT_FOUND, "there are /, /metrics, /healthz and /readyz"))

    def _admits(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, token = request.fields.get("authorization", "").partition(" ")
        given = token.strip().encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._token)

    def _readiness(self) -> Response:
        number = self.readings.unbound()
        if number is not None:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, f"queue {number} is not bound")
        return _plain(HTTPStatus.OK, "ready")

    # Readings.

    def _ask(self, variant: _Variant, answer: Answer) -> None:
        """Have *answer* take a reading written as *variant*."""
        now = time.monotonic()
        self.readings.expect(self._visits.next_after(now))
        if variant in self._bodies and self._is_good(now):
            answer(_scrape(variant, self._bodies[variant]))
            return
        self._waiting.append((variant, answer))
        if self._job is None:
            self._job = self._work()

    def _proceed(self) -> None:
        """Take steps of the job for about a millisecond."""
        until = time.monotonic() + _STEP_SECONDS
        while self._job is not None:
            began = time.thread_time()  # the machine's other work is not the step's
            try:
                next(self._job)
            except StopIteration:
                self._job = self._work() if self._waiting else None
            except BaseException:
                self._job = None
                self._refuse()
                raise
            took = time.thread_time() - began
            self._spent += took
            self._longest = max(self._longest, took)
            if time.monotonic() >= until:
                break

    def _work(self) -> Generator[None]:
        """Take a reading unless the last is good still, write it, and give it to all who wait."""
        if not self._is_good(time.monotonic()):
            self._spent = 0.0
            self._reload = self._last_reload()
            self._found, self._bodies = (yield from self.readings.take()), {}
            self._own()
            self._good_until = time.monotonic() + _REST * self._spent
            self._longest = 0.0
        for variant in dict.fromkeys(variant for variant, _ in self._waiting):
            if variant not in self._bodies:
                self._bodies[variant] = yield from _body(self._found, variant)
        answered = [each for each in self._waiting if each[0] in self._bodies]
        self._waiting = [each for each in self._waiting if each[0] not in self._bodies]
        for variant, answer in answered:
            answer(_scrape(variant, self._bodies[variant]))

    def _is_good(self, now: float) -> bool:
        return now < self._good_until and self._reload == self._last_reload()

    def _last_reload(self) -> tuple[bool, float]:
        return self.meter.reloads_good, self.meter.reloaded

    def _own(self) -> None:
        """Add what this side has to tell of itself."""
        longest = self.readings.longest(self._longest)
        self._found["scrape_longest_step_seconds"] = [Sample((), longest)]
        if self._server is not None:
            codes, closed = self._server.codes, self._server.closed
            self._found["http_requests_total"] = [
                Sample((str(int(code)),), codes[code]) for code in sorted(codes)
            ]
            self._found["http_connections_closed_total"] = [
                Sample((reason,), closed[reason]) for reason in CLOSED
            ]
        if self._config.textfile is not None:
            self._found["textfile_failures_total"] = [Sample((), self.failures)]

    def _refuse(self) -> None:
        """Tell those who wait that the reading failed."""
        waiting, self._waiting = self._waiting, []
        for _, answer in waiting:
            answer(_plain(HTTPStatus.INTERNAL_SERVER_ERROR, "the reading failed; see the log"))

    def _write(self, response: Response) -> None:
        """Put a scrape where the textfile collector looks, whole or not at all."""
        path = self._config.textfile
        assert path is not None
        if response.status is not HTTPStatus.OK:
            return
        # The collector takes *.prom; what is being written must not look like it.
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(response.body)
            fresh.chmod(0o644)
            self._inode = fresh.stat().st_ino
            fresh.replace(path)
        except OSError as error:
            self.failures += 1
            self._trouble(f"metrics.textfile: {path}: {error.strerror}; is its directory there?")
            fresh.unlink(missing_ok=True)


def credentials(config: Metrics) -> tuple[bytes | None, ssl.SSLContext | None]:
    """Return the token that is asked for and the context for TLS, None for none.

    Raises:
        ConfigError: a file cannot be read or holds nothing of the kind.
    """
    return (
        None if config.token_file is None else _read_token(config.token_file),
        None if config.tls_certificate is None else _context(config),
    )


def _read_token(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            token = file.read(_LONGEST_TOKEN).strip()
    except OSError as error:
        raise ConfigError(
            f"metrics.token_file: {path}: {error.strerror}; name a readable file"
        ) from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(
            f"metrics.token_file: {path}: no token in it; write one word of ASCII there"
        )
    return token


def _context(config: Metrics) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415  a daemon without TLS does not load it for this

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert config.tls_certificate is not None
    key, path = "tls_certificate", config.tls_certificate
    try:
        # A password would be asked for at a terminal that is not there.
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=lambda: b"")
        if config.tls_client_ca is not None:
            key, path = "tls_client_ca", config.tls_client_ca
            context.load_verify_locations(path)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"metrics.{key}: {path}: {reason}; name readable PEM files that belong together"
        ) from error
    return context


def _takes_gzip(accept: str) -> bool:
    for each in accept.lower().split(","):
        coding, _, quality = each.partition(";")
        if coding.strip() == "gzip":
            return quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _body(found: Found, variant: _Variant) -> Generator[None, None, bytes]:
    """Write *found* a family at a time."""
    pieces = []
    gzip = zlib.compressobj(6, zlib.DEFLATED, _GZIP) if variant.is_gzip else None
    for piece in written(found, variant.form, process=variant.process):
        pieces.append(piece if gzip is None else gzip.compress(piece))
        yield
    if gzip is not None:
        pieces.append(gzip.flush())
    return b"".join(pieces)


def _scrape(variant: _Variant, body: bytes) -> Response:
    fields = ["Vary: Accept, Accept-Encoding", "Cache-Control: no-store"]
    if variant.is_gzip:
        fields.append("Content-Encoding: gzip")
    return Response(HTTPStatus.OK, body, variant.form.content_type, tuple(fields))


def _plain(status: HTTPStatus, text: str, *fields: str) -> Response:
    return Response(status, f"{text}\n".encode(), fields=fields)

