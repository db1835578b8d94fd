"""The metrics port: whatever comes is answered or closed, bounded and counted."""

from __future__ import annotations

import contextlib
import http.client
import selectors
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pptp_nat.config import Metrics
from pptp_nat.errors import ConfigError
from pptp_nat.scrape.exporter import credentials
from pptp_nat.scrape.http1 import LONGEST_HEAD, BadRequest, Response, parse
from pptp_nat.scrape.web import (
    ACCEPTS_PER_SECOND,
    HEAD_SECONDS,
    IDLE_SECONDS,
    LINGER_SECONDS,
    PLACES,
    STILL_SECONDS,
    WebServer,
)

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
BIG = 4 << 20  #: octets, more than the kernel takes off our hands


class Loop:
    """The server and the daemon's loop, turned by hand; the clock stands until it is set."""

    def __init__(self, tls=None):
        self.now = 0.0
        self.later = []  # answers that are still owed
        self.selector = selectors.DefaultSelector()
        self.server = WebServer(
            "127.0.0.1", 0, self.handle, self.selector, tls=tls, clock=lambda: self.now
        )

    def handle(self, request, answer):
        if request.path == "/later":
            self.later.append(answer)
        elif request.path == "/big":
            answer(Response(HTTPStatus.OK, bytes(BIG)))
        else:
            answer(Response(HTTPStatus.OK, f"{request.method} {request.path}\n".encode()))

    def turn(self):
        """Let the loop run until there is nothing to do; return its number of rounds."""
        rounds = 0
        while True:
            ready = self.selector.select(0.005)
            due = self.server.next_timer()
            if not ready and (due is None or due > self.now):
                return rounds
            rounds += 1
            assert rounds < 10_000, "the loop spins"
            for key, mask in ready:
                key.data(mask)
            self.server.tick(self.now)

    def connect(self, octets=b""):
        client = socket.create_connection(("127.0.0.1", self.server.port), timeout=5)
        if octets:
            client.sendall(octets)
        return client

    def ask(self, octets):
        """Send *octets* on a connection of their own; return what comes until it is quiet."""
        with self.connect(octets) as client:
            self.turn()
            return read(client)

    def pass_by(self, seconds):
        self.now += seconds
        self.turn()

    def close(self):
        self.server.close()
        self.selector.close()


def read(client):
    """Return what has come by now; a line ``closed`` at the end says that it is all."""
    client.setblocking(False)
    octets = b""
    while True:
        try:
            more = client.recv(1 << 20)
        except BlockingIOError:
            return octets
        except ConnectionResetError:
            return octets + b"reset"
        if not more:
            return octets + b"closed"
        octets += more


@pytest.fixture
def loop():
    with contextlib.closing(Loop()) as built:
        yield built


def status(octets):
    return int(octets.split()[1]) if octets.startswith(b"HTTP/1.1 ") else None


def test_a_connection_carries_one_request_after_another(loop) -> None:
    """Prometheus keeps its connection between scrapes."""
    client = loop.connect(GET)
    loop.turn()
    first = read(client)
    client.sendall(GET * 3)
    loop.turn()
    others = read(client)

    assert first.endswith(b"\r\n\r\nGET /metrics\n")
    assert b"Connection: close" not in first
    assert first * 3 == others
    assert {200: 4} == loop.server.codes


def test_an_old_client_gets_its_answer_and_the_end(loop) -> None:
    """HTTP/1.0 and whoever says so close after one answer."""
    old = loop.ask(b"GET / HTTP/1.0\r\n\r\n")
    polite = loop.ask(b"GET / HTTP/1.1\r\nhost: x\r\nConnection: close\r\n\r\n")

    assert old.endswith(b"GET /\nclosed")
    assert polite.endswith(b"GET /\nclosed")
    assert b"Connection: close" in old


def test_it_listens_on_ipv6_alone_where_told_so() -> None:
    """An address in brackets is one address, not both families."""
    with selectors.DefaultSelector() as selector:
        try:
            server = WebServer("::1", 0, lambda *_: None, selector)
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        with contextlib.closing(server):
            socket.create_connection(("::1", server.port), timeout=5).close()
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_a_head_request_gets_the_length_and_no_body(loop) -> None:
    """Monitoring of the cheap sort asks with HEAD."""
    got = loop.ask(b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n")

    assert got.endswith(b"\r\n\r\n")
    assert b"Content-Length: 8\r\n" in got


def test_a_request_may_come_octet_by_octet(loop) -> None:
    """TCP cuts where it likes."""
    client = loop.connect()
    for octet in GET:
        client.sendall(bytes((octet,)))
        loop.turn()

    assert 200 == status(read(client))


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\n", 400),  # TLS where there is none
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * LONGEST_HEAD, 431),
        (b"A" * (LONGEST_HEAD + 1), 431),
    ],
)
def test_garbage_is_answered_once_and_closed(loop, octets, code) -> None:
    """What follows garbage cannot be told from garbage."""
    got = loop.ask(octets + GET)

    assert code == status(got)
    assert got.endswith(b"closed")
    assert {code: 1} == loop.server.codes


def test_an_answer_reaches_who_has_not_finished_speaking(loop) -> None:
    """Closing at once would reset the connection and take the answer away."""
    client = loop.connect(b"\0\r\n" * 3000)
    loop.turn()
    for _ in range(20):
        client.sendall(b"more " * 1000)
        loop.turn()
    got = read(client)
    loop.pass_by(LINGER_SECONDS + 1.1)

    assert 431 == status(got)
    assert set() == loop.server.clients


def test_who_is_silent_or_slow_is_disconnected(loop) -> None:
    """Connections that bring nothing must not take the places of those that do."""
    silent, slow = loop.connect(), loop.connect(b"GET / HT")
    loop.turn()
    for _ in range(9):
        slow.sendall(b"x")
        loop.pass_by(HEAD_SECONDS / 10)
    assert 2 == len(loop.server.clients)
    loop.pass_by(HEAD_SECONDS / 5)
    assert (b"closed", 1) == (read(silent)[-6:], loop.server.closed["slow_request"])
    assert read(slow).endswith(b"closed") or read(slow).endswith(b"reset")

    kept = loop.connect(GET)
    loop.turn()
    loop.pass_by(IDLE_SECONDS - 2)
    assert {False} == {read(kept).endswith(b"closed")}
    loop.pass_by(4)
    assert read(kept).endswith(b"closed")
    assert 1 == loop.server.closed["slow_request"]


def test_who_never_reads_is_disconnected_and_others_are_served_meanwhile(loop) -> None:
    """One answer is all that is ever kept for a reader."""
    deaf = loop.connect(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    loop.turn()
    assert 200 == status(loop.ask(GET))
    loop.pass_by(STILL_SECONDS + 1.1)

    assert 1 == loop.server.closed["slow_reader"]
    assert set() == loop.server.clients
    deaf.close()


def test_an_answer_may_come_later_and_to_nobody(loop) -> None:
    """A reading takes some turns; whoever asked may be gone by then."""
    waiting, gone = (loop.connect(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2))
    loop.turn()
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gone.close()
    loop.pass_by(1000)  # a wait of ours is not the client's fault
    for answer in loop.later:
        answer(Response(HTTPStatus.OK, b"at last"))
        answer(Response(HTTPStatus.OK, b"again"))
    loop.turn()

    assert read(waiting).endswith(b"at last")
    assert {200: 2} == loop.server.codes


def test_thousands_of_connections_are_bounded_and_the_port_stays_usable(loop) -> None:
    """Descriptors and memory are for calls."""
    clients = []
    for _ in range(20):
        loop.now += 1.0
        clients += [loop.connect() for _ in range(100)]
        loop.turn()
        assert len(loop.server.clients) <= PLACES
    loop.pass_by(1.5)
    assert 200 == status(loop.ask(GET))
    refused = sum(loop.server.closed.values())
    for client in clients:
        client.close()
    loop.turn()

    assert 2000 - PLACES <= refused <= 2001
    assert loop.server.closed["no_place"] > 1000


def test_a_flood_of_connections_waits_in_the_kernel(loop) -> None:
    """Accepting costs time that verdicts need: so many a second, and no more."""
    clients = []
    for _ in range(3):
        clients += [loop.connect() for _ in range(90)]
        loop.turn()
    taken = len(loop.server.clients) + sum(loop.server.closed.values())
    assert ACCEPTS_PER_SECOND - 1 <= taken <= ACCEPTS_PER_SECOND + 1

    loop.pass_by(1.5)
    assert taken < len(loop.server.clients) + sum(loop.server.closed.values())
    for client in clients:
        client.close()


pieces = st.binary(max_size=60) | st.sampled_from([GET, b"\r\n\r\n", b"GET / "])


def test_without_descriptors_the_loop_does_not_spin(loop, monkeypatch) -> None:
    """The newcomer stays in the kernel's queue, where it would wake us for ever."""
    real = loop.server._listener

    class Exhausted:
        def accept(self):
            raise OSError(24, "Too many open files")

        def __getattr__(self, name):
            return getattr(real, name)

    kept = loop.connect(GET)
    loop.turn()
    monkeypatch.setattr(loop.server, "_listener", Exhausted())
    waiting = loop.connect(GET)
    assert loop.turn() < 5
    assert 1 == loop.server.closed["replaced"]  # one descriptor is given up for whoever needs it
    monkeypatch.setattr(loop.server, "_listener", real)
    loop.pass_by(1.5)
    assert 200 == status(read(waiting))
    kept.close()


@given(st.lists(pieces, max_size=6))
@settings(deadline=None, max_examples=40)
def test_whatever_octets_come_somebody_else_is_served(octets) -> None:
    """The server survives, and forgets who leaves."""
    with contextlib.closing(Loop()) as loop:
        client = loop.connect()
        for some in octets:
            with contextlib.suppress(OSError):
                client.sendall(some)
            loop.turn()
        client.close()
        assert 200 == status(loop.ask(GET))
        loop.pass_by(HEAD_SECONDS + 1.1)
        assert set() == loop.server.clients


@given(st.binary(max_size=300))
def test_octets_are_a_request_or_refused(octets) -> None:
    """Parsing raises one exception, or returns what a handler can use."""
    try:
        request, _ = parse(octets)
    except BadRequest as error:
        assert 400 <= error.response.status < 500  # noqa: PT017  most octets are refused
    else:
        assert request.path.startswith("/")
        assert request.method.isupper()


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Make an authority, a server's certificate and a client's, and a stranger's."""
    where = tmp_path_factory.mktemp("tls")

    def openssl(*argv):
        done = subprocess.run(["openssl", *argv], cwd=where, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-subj", f"/CN={name}", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-copy_extensions", "copy")
    return where


@pytest.fixture
def tls_loop(certificates):
    """Serve with TLS and client certificates."""
    _, context = credentials(Metrics(
        tls_certificate=certificates / "server.pem",
        tls_key=certificates / "server.key",
        tls_client_ca=certificates / "ca.pem",
    ))  # fmt: skip
    with contextlib.closing(Loop(context)) as built:
        yield built


def secure(loop, certificates, name=None) -> Callable[[], object]:
    """Return a function that scrapes over TLS, with the certificate of *name* if given."""
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")

    def scrape():
        client = http.client.HTTPSConnection(
            "127.0.0.1", loop.server.port, context=context, timeout=20
        )
        with contextlib.closing(client):
            bodies = []
            for path in ("/one", "/big", "/two"):
                client.request("GET", path)
                bodies.append(client.getresponse().read())
            return bodies

    return scrape


def in_thread(loop, work):
    """Run *work* in a thread while the loop turns; return its result or its exception."""
    results = []

    def attempt():
        try:
            results.append(work())
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    while thread.is_alive():
        loop.turn()
    thread.join()
    return results[0]


def test_a_client_with_a_certificate_is_served_over_tls(tls_loop, certificates) -> None:
    """Several requests, and an answer of many records, on one connection."""
    one, big, two = in_thread(tls_loop, secure(tls_loop, certificates, "client"))

    assert (b"GET /one\n", BIG, b"GET /two\n") == (one, len(big), two)


@pytest.mark.parametrize(
    ("key", "authorities", "complaint"),
    [
        ("client.key", "ca.pem", "metrics.tls_certificate: "),
        ("nothing.key", "ca.pem", "No such file or directory"),
        ("server.key", "server.key", "metrics.tls_client_ca: "),
        ("server.key", "nothing.pem", "No such file or directory"),
    ],
)
def test_files_that_do_not_fit_are_told_in_one_line(
    certificates, key, authorities, complaint
) -> None:
    """Before anything is served: a port that refuses everybody helps nobody."""
    config = Metrics(
        tls_certificate=certificates / "server.pem",
        tls_key=certificates / key,
        tls_client_ca=certificates / authorities,
    )
    with pytest.raises(ConfigError) as raised:
        credentials(config)

    assert complaint in str(raised.value)
    assert 1 == len(str(raised.value).splitlines())


@pytest.mark.parametrize("name", [None, "stranger"])
def test_others_are_not_and_are_counted(tls_loop, certificates, name) -> None:
    """No certificate, or one of an authority that we do not know."""
    result = in_thread(tls_loop, secure(tls_loop, certificates, name))
    tls_loop.turn()

    assert isinstance(result, OSError)
    assert {} == tls_loop.server.codes
    assert 1 == tls_loop.server.closed["handshake"]
    assert set() == tls_loop.server.clients


def test_plain_octets_on_a_tls_port_end_that_connection_alone(tls_loop, certificates) -> None:
    """Somebody forgot the s of https; somebody else says nothing at all."""
    silent = tls_loop.connect()
    plain = tls_loop.connect(GET)
    tls_loop.turn()
    assert 1 == tls_loop.server.closed["handshake"]
    assert b"GET /one\n" == in_thread(tls_loop, secure(tls_loop, certificates, "client"))[0]
    tls_loop.pass_by(HEAD_SECONDS + 1.1)
    assert 1 == tls_loop.server.closed["slow_request"]
    for client in (silent, plain):
        client.close()
