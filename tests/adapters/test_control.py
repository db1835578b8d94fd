"""The socket API: whatever clients send or leave unread, the daemon serves the others."""

import contextlib
import dataclasses
import json
import os
import re
import selectors
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pptp_nat import api
from pptp_nat.api import LONGEST_REQUEST, Request
from pptp_nat.control.server import BACKLOG, CHUNK, PATIENCE, PLACES, ControlServer
from pptp_nat.control.sockets import Access
from pptp_nat.control.subscription import EVENT_TYPES, About
from pptp_nat.errors import AdapterError, ConfigError, UsageError
from pptp_nat.tables.table import ConnectionRow, End, Filter, QueueRow, StatusRow

PRIVATE = Access(0o600)


def fake_answer(request):
    """Stand in for the daemon."""
    match request.do:
        case "status":
            return {"version": "0", "uid": request.uid}
        case "echo":
            return {"arguments": dict(request.arguments)}
        case "list":
            return ({"number": n, "padding": "x" * 1000} for n in range(request.arguments["count"]))
        case "half":
            return half_a_list()
        case "bug":
            raise ZeroDivisionError
        case "buggy-list":
            return (1 // n for n in (1, 0))
        case _:
            raise UsageError(f"{request.do}: nothing of that name can be done")


def half_a_list():
    yield {"number": 0}
    raise UsageError("the rest is gone")


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


class Daemon:
    """The server and the daemon's loop, turned by hand."""

    def __init__(self, path, answer=fake_answer, **bounds):
        self.path = path
        self.clock = Clock()
        self.selector = selectors.DefaultSelector()
        self.server = ControlServer(
            path, PRIVATE, answer, self.selector, clock=self.clock, **bounds
        )
        self.turns = 0

    def turn(self):
        """Let the loop run until there is nothing to do; return its number of rounds."""
        rounds = 0
        while ready := self.selector.select(0):
            rounds += 1
            assert rounds < 10_000, "the loop spins"
            for key, mask in ready:
                key.data(mask)
        return rounds

    def connect(self):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(5)
        client.connect(str(self.path))
        return client

    def ask(self, octets, client=None):
        """Send *octets* and return the lines that come back."""
        client = client or self.connect()
        client.sendall(octets)
        self.turn()
        return read(client)

    def close(self):
        self.server.close()
        self.selector.close()


def read(client):
    """Return the lines that have come, None at the end if the connection was closed."""
    octets, closed = b"", False
    client.setblocking(False)
    while True:
        try:
            more = client.recv(1 << 20)
        except BlockingIOError:
            break
        except ConnectionResetError:  # closed with some of our octets unread
            more = b""
        if not more:
            closed = True
            break
        octets += more
    client.settimeout(5)
    lines = [json.loads(line) for line in octets.splitlines()]
    return [*lines, None] if closed else lines


def line(number, do, **arguments):
    return json.dumps({"v": 1, "id": number, "do": do, **arguments}).encode() + b"\n"


def about(kind):
    return About(kind, 7, 3, ("192.168.77.10", "198.18.7.2"))


def publish(server, event):
    server.publish(about(event["type"]), lambda: event)


def no(number, error):
    return {"v": 1, "id": number, "ok": False, "error": error}


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon that has served nobody yet."""
    daemon = Daemon(tmp_path / "s")
    yield daemon
    daemon.close()


def test_a_request_is_answered_under_its_id(daemon) -> None:
    """A client may have several requests under way."""
    expected = {"v": 1, "id": 7, "ok": True, "version": "0", "uid": os.getuid()}

    assert [expected] == daemon.ask(line(7, "status"))


def test_arguments_arrive_as_sent(daemon) -> None:
    """The server does not look into what is not its own."""
    [answer] = daemon.ask(line(1, "echo", client="192.168.1.2", odd=["\u20ac", {"a": None}]))

    assert answer["arguments"] == {"client": "192.168.1.2", "odd": ["\u20ac", {"a": None}]}


def test_several_requests_in_one_segment_are_answered_in_turn(daemon) -> None:
    """One per round of the loop, so that packets are not kept waiting."""
    client = daemon.connect()
    daemon.turn()
    client.sendall(b"".join(line(n, "status") for n in range(20)))
    rounds = daemon.turn()

    assert list(range(20)) == [answer["id"] for answer in read(client)]
    assert rounds >= 20


def test_a_request_may_come_octet_by_octet(daemon) -> None:
    """A stream has no message boundaries."""
    client = daemon.connect()
    for octet in line(3, "status"):
        assert read(client) == []
        client.sendall(bytes([octet]))
        daemon.turn()

    assert [answer["id"] for answer in read(client)] == [3]


def test_a_list_ends_with_its_number_of_items(daemon) -> None:
    """A client can tell a whole list from one that was cut."""
    *items, last = daemon.ask(line(1, "list", count=3))

    assert [answer["item"]["number"] for answer in items] == [0, 1, 2]
    assert last == {"v": 1, "id": 1, "ok": True, "items": 3}


def test_an_error_in_the_middle_of_a_list_is_its_end(daemon) -> None:
    """Items that were sent cannot be taken back."""
    item, last = daemon.ask(line(1, "half"))

    assert item["item"] == {"number": 0}
    assert no(1, "the rest is gone") == last


def test_what_cannot_be_done_is_refused_and_the_connection_stays(daemon) -> None:
    """A newer client may try and fall back."""
    client = daemon.connect()

    assert [no(1, "dance: nothing of that name can be done")] == daemon.ask(
        line(1, "dance"), client
    )
    assert [answer["id"] for answer in daemon.ask(line(2, "status"), client)] == [2]


def test_another_version_is_refused_and_the_connection_stays(daemon) -> None:
    """As above: the framing is certain."""
    client = daemon.connect()
    for version in (2, 0, "1", None, True, 1.0):
        request = json.dumps({"v": version, "id": 5, "do": "status"}).encode() + b"\n"

        assert [no(5, 'this daemon speaks version 1; write "v":1')] == daemon.ask(request, client)


def test_a_request_without_anything_to_do_is_refused(daemon) -> None:
    """As above."""
    [answer] = daemon.ask(b'{"v":1,"id":5}\n')

    assert no(5, 'a request says what to do, such as "do":"list"') == answer


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\n",
    b"\xff\xfe\n",
    b"[1]\n",
    b"null\n",
    b'"v"\n',
    b"{}\n",
    b'{"v":1,"do":"status"}\n',
    b'{"v":1,"id":-1,"do":"status"}\n',
    b'{"v":1,"id":true,"do":"status"}\n',
    b'{"v":1,"id":1.5,"do":"status"}\n',
    b'{"v":1,"id":"1","do":"status"}\n',
    b'{"v":1,"id":' + b"9" * 5000 + b',"do":"status"}\n',
    b'{"v":1,"id":NaN,"do":"status"}\n',
    b'{"v":1,"id":1,"do":"echo","x":Infinity}\n',
    b"[" * 60000 + b"\n",
    b'{"a":' * 10000 + b"\n",
    b"\0" * 100 + b"\n",
    b"x" * LONGEST_REQUEST,
    b"x" * (LONGEST_REQUEST * 4),
    b" " * LONGEST_REQUEST + line(1, "status"),
]


@pytest.mark.parametrize("octets", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_gets_one_error_and_the_connection_is_closed(daemon, octets) -> None:
    """What follows garbage cannot be told from it."""
    client = daemon.connect()
    client.setblocking(False)
    sent = client.send(octets + line(9, "status") if len(octets) < 200_000 else octets)
    assert sent
    daemon.turn()
    answer, end = read(client)

    assert (answer["id"], answer["ok"], end) == (None, False, None)
    assert daemon.server.garbled == 1
    assert set() == daemon.server.clients


def test_a_request_as_long_as_allowed_is_answered(daemon) -> None:
    """The bound is the one that is documented."""
    start = b'{"v":1,"id":4,"do":"status","x":"'
    request = start + b"x" * (LONGEST_REQUEST - len(start) - 3) + b'"}\n'
    assert len(request) == LONGEST_REQUEST

    assert [answer["id"] for answer in daemon.ask(request)] == [4]


def test_half_a_request_and_the_end_is_told(daemon) -> None:
    """A printf without a line feed, piped into nc, should not just hang."""
    client = daemon.connect()
    client.sendall(b'{"v":1,"id":1,')
    client.shutdown(socket.SHUT_WR)
    daemon.turn()

    assert [no(None, "a request ends with a line feed, this one did not"), None] == read(client)


def test_a_client_that_has_closed_its_side_still_gets_its_answers(daemon) -> None:
    """Echo '...' | nc -U -N closes its side before it reads."""
    client = daemon.connect()
    client.sendall(line(1, "status") + line(2, "list", count=2))
    client.shutdown(socket.SHUT_WR)
    daemon.turn()

    *answers, end = read(client)
    assert end is None
    assert [answer["id"] for answer in answers] == [1, 2, 2, 2]


def test_a_client_that_leaves_in_the_middle_is_forgotten(daemon) -> None:
    """The next one must find its place free."""
    client = daemon.connect()
    client.sendall(line(1, "list", count=5000))
    daemon.turn()
    client.close()
    daemon.turn()

    assert set() == daemon.server.clients
    assert len(daemon.selector.get_map()) == 1


def test_a_reader_that_never_reads_costs_a_bounded_buffer(daemon) -> None:
    """A hundred thousand calls must not be encoded into memory for somebody asleep."""
    client = daemon.connect()
    client.sendall(line(1, "list", count=10**9))
    daemon.turn()
    [held] = daemon.server.clients

    assert len(held._outbox) <= CHUNK + 2000
    assert [
        name for [answer] in [daemon.ask(line(1, "status"))] for name in answer if name == "version"
    ] == ["version"]


def test_a_list_goes_on_as_its_reader_reads(daemon) -> None:
    """Nothing is lost when the socket is full for a while."""
    client = daemon.connect()
    client.sendall(line(1, "list", count=5000))
    answers = []
    while not answers or "items" not in answers[-1]:
        daemon.turn()
        buffer = b""
        while not buffer.endswith(b"\n"):
            daemon.turn()
            buffer += client.recv(1 << 16)
        answers += [json.loads(text) for text in buffer.splitlines()]

    assert list(range(5000)) == [answer["item"]["number"] for answer in answers[:-1]]


def test_nothing_is_read_from_a_client_that_does_not_read_its_answers(daemon) -> None:
    """Requests without end would be memory without end."""
    client = daemon.connect()
    client.setblocking(False)
    requests = line(1, "list", count=10**6) * 100
    with contextlib.suppress(BlockingIOError):
        while client.send(requests):
            daemon.turn()
    [held] = daemon.server.clients

    assert len(held._inbox) <= 2 * LONGEST_REQUEST


def test_a_bug_in_answering_reaches_the_loop_and_frees_the_client(daemon) -> None:
    """The loop logs it; whoever asked must not wait for ever."""
    for do in ("bug", "buggy-list"):
        client = daemon.connect()
        daemon.turn()
        client.sendall(line(1, do))
        with pytest.raises(ZeroDivisionError):
            daemon.turn()

        assert read(client)[-1] is None
        assert set() == daemon.server.clients


def test_a_subscriber_hears_the_types_it_named(daemon) -> None:
    """Events of other types cost it nothing."""
    some, all_of_them = daemon.connect(), daemon.connect()

    assert daemon.ask(
        line(3, "subscribe", types=["new", "destroy"]), some
    ) == [{"v": 1, "id": 3, "ok": True, "types": ["destroy", "new"]}]
    daemon.ask(line(4, "subscribe"), all_of_them)
    for kind in ("new", "update", "destroy"):
        publish(daemon.server, {"type": kind})
    daemon.turn()

    assert [answer["event"]["type"] for answer in read(some)] == ["new", "destroy"]
    assert [each["event"]["type"] for each in read(all_of_them)] == ["new", "update", "destroy"]


@pytest.mark.parametrize("types", ["new", 1, [1], {"new": 1}])
def test_types_that_are_no_names_are_refused(daemon, types) -> None:
    """A subscription that can never hear anything is a mistake."""
    [answer] = daemon.ask(line(1, "subscribe", types=types))

    assert no(1, 'types: a list of names, such as ["new","destroy"]') == answer
    assert not daemon.server.subscribers


def test_what_was_left_out_is_told_before_what_comes_next(daemon) -> None:
    """Otherwise a gap would look like silence."""
    client = daemon.connect()
    daemon.ask(line(1, "subscribe", types=["message", "new"], rate=5), client)
    for _ in range(9):
        publish(daemon.server, {"type": "message"})
    publish(daemon.server, {"type": "new"})
    daemon.turn()

    assert [answer["event"] for answer in read(client)] == [
        *[{"type": "message"}] * 5, {"type": "suppressed", "count": 4}, {"type": "new"},
    ]  # fmt: skip


def test_an_event_that_nobody_wants_is_not_made(daemon) -> None:
    """It would cost a packet's time."""
    client = daemon.connect()
    daemon.ask(line(1, "subscribe", types=["destroy"], client="192.168.77.11"), client)

    def make():
        raise AssertionError("made for nobody")

    for kind in EVENT_TYPES:
        daemon.server.publish(about(kind), make)


def test_the_daemon_is_told_who_listens(daemon) -> None:
    """It looks at every message only while somebody wants that."""
    heard = []
    daemon.server.on_subscribers = lambda: heard.append(daemon.server.hears("message"))
    client = daemon.connect()
    daemon.ask(line(1, "subscribe"), client)
    daemon.ask(line(2, "subscribe", types=["message"]), client)
    daemon.ask(line(3, "subscribe", types=["new"]), client)
    daemon.ask(line(4, "subscribe", types=["message"]), client)
    client.close()
    daemon.turn()

    assert heard == [False, True, False, True, False]


def test_a_subscriber_may_ask_as_well(daemon) -> None:
    """Subscribing first and listing then, no call is missed in between."""
    client = daemon.connect()
    daemon.ask(line(1, "subscribe"), client)
    client.sendall(line(2, "list", count=1))
    publish(daemon.server, {"type": "new"})
    daemon.turn()

    assert {1, 2} == {answer["id"] for answer in read(client)}


def test_a_subscriber_that_does_not_read_is_disconnected_at_the_bound(tmp_path) -> None:
    """Others hear on, and the memory is bounded."""
    daemon = Daemon(tmp_path / "s", backlog=100_000)
    asleep, awake = daemon.connect(), daemon.connect()
    daemon.ask(line(1, "subscribe"), asleep)
    daemon.ask(line(1, "subscribe"), awake)
    heard = 0
    for number in range(1000):
        publish(daemon.server, {"type": "new", "number": number, "padding": "x" * 1000})
        daemon.turn()
        heard += len(read(awake))
        for client in daemon.server.clients:
            assert len(client._outbox) <= 101_000

    assert heard == 1000
    assert daemon.server.dropped == 1
    assert len(daemon.server.clients) == 1
    daemon.close()


def test_a_subscription_ends_when_the_client_closes_its_side(daemon) -> None:
    """A place would be taken for ever otherwise when there are no events."""
    client = daemon.connect()
    daemon.ask(line(1, "subscribe"), client)
    client.shutdown(socket.SHUT_WR)
    daemon.turn()

    assert read(client) == [None]
    assert not daemon.server.subscribers


def test_publishing_while_answering_may_disconnect_the_asker(tmp_path) -> None:
    """Clearing calls makes events, and who asks for it may be a subscriber far behind."""
    daemon = Daemon(tmp_path / "s", lambda request: clear(), backlog=1000)

    def clear():
        publish(daemon.server, {"type": "destroy", "padding": "x" * 2000})
        return {"cleared": 1}

    client = daemon.connect()
    daemon.ask(line(1, "subscribe"), client)

    assert daemon.ask(line(2, "clear"), client) == [None]
    daemon.close()


def test_a_thousand_connections_leave_the_daemon_well(tmp_path) -> None:
    """Those past the bound are told so; those within are served, also afterwards."""
    daemon = Daemon(tmp_path / "s", places=64)
    clients = []
    for _ in range(1000):
        clients.append(daemon.connect())
        daemon.turn()
    answers = [read(client) for client in clients]
    expected = no(None, "all 64 places are taken; close another client")

    assert answers[:64] == [[]] * 64
    assert [[expected, None]] * 936 == answers[64:]
    assert daemon.server.refused == 936
    assert [answer["id"] for answer in daemon.ask(line(7, "status"), clients[0])] == [7]
    clients.pop(0).close()
    daemon.turn()
    assert [answer["id"] for answer in daemon.ask(line(8, "status"))] == [8]
    for client in clients:
        client.close()
    daemon.close()


def test_a_client_that_stands_still_gives_way_when_all_places_are_taken(tmp_path) -> None:
    """Forgotten connections must not lock the administrator out."""
    daemon = Daemon(tmp_path / "s", places=3)
    subscriber, forgotten, busy = (daemon.connect() for _ in range(3))
    daemon.ask(line(1, "subscribe"), subscriber)
    daemon.turn()
    daemon.clock.now = PATIENCE
    daemon.ask(line(1, "status"), busy)

    assert [answer["id"] for answer in daemon.ask(line(5, "status"))] == [5]
    assert read(forgotten) == [None]
    assert read(subscriber) == []
    daemon.close()


def test_no_user_keeps_the_others_out(tmp_path, monkeypatch) -> None:
    """A group may ask; one of it who floods the socket must not lock the administrator out."""
    newcomer = [0]
    monkeypatch.setattr("pptp_nat.control.server._user_of", lambda _peer: newcomer[0])
    daemon = Daemon(tmp_path / "s", places=4)

    def held():
        return Counter(client.user for client in daemon.server.clients)

    def connect(user, count=1):
        newcomer[0] = user
        clients = []
        for _ in range(count):
            clients.append(daemon.connect())
            daemon.turn()
        return clients

    flood = connect(5, 8)
    assert held() == {5: 4}
    operator, subscriber = connect(6, 2)
    daemon.ask(line(1, "subscribe"), subscriber)
    assert held() == {5: 2, 6: 2}
    flood += connect(5, 8)
    assert held() == {5: 2, 6: 2}
    root = connect(7)
    assert held()[7] == 1
    assert [answer["id"] for answer in daemon.ask(line(7, "status"), root[0])] == [7]
    assert daemon.server.subscribers
    assert daemon.server.refused == 4 + 2 + 8 + 1
    del operator, flood
    daemon.close()


def test_running_out_of_descriptors_does_not_make_the_loop_spin(daemon, monkeypatch) -> None:
    """accept() fails for ever then, and the listener stays ready."""
    client = daemon.connect()
    daemon.turn()
    accept = daemon.server._listener.accept

    def exhausted():
        if daemon.server.clients:
            raise OSError(24, "Too many open files")
        return accept()

    class Listener:
        accept = staticmethod(exhausted)

    with monkeypatch.context() as patched:
        real = daemon.server._listener
        patched.setattr(daemon.server, "_listener", Listener)
        newcomer = daemon.connect()
        daemon.turn()
        patched.setattr(daemon.server, "_listener", real)

    assert read(client) == [None]
    assert [answer["id"] for answer in daemon.ask(line(6, "status"), newcomer)] == [6]


@given(st.lists(st.binary(max_size=80) | st.sampled_from([line(1, "status"), b"\n"]), max_size=8))
@settings(max_examples=60)
def test_no_octets_harm_the_server(tmp_path_factory, pieces) -> None:
    """Whatever one client sends, the next is served."""
    daemon = Daemon(tmp_path_factory.mktemp("s") / "s")
    client = daemon.connect()
    for piece in pieces:
        try:
            client.sendall(piece)
        except OSError:
            break
        daemon.turn()
    client.close()
    daemon.turn()

    assert [answer["id"] for answer in daemon.ask(line(1, "status"))] == [1]
    assert len(daemon.server.clients) <= 1
    daemon.close()


# --- the socket's file ----------------------------------------------------------------


def test_the_socket_is_for_those_it_is_meant_for(tmp_path) -> None:
    """Whoever may connect may end calls."""
    path = tmp_path / "run" / "pptp-nat" / "s"
    server = ControlServer(path, Access(0o660), fake_answer, selectors.DefaultSelector())

    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    server.close()
    assert not path.exists()
    server.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give files away")
def test_the_socket_and_its_new_directory_belong_to_whom_is_named(tmp_path) -> None:
    """A group of operators needs no root."""
    path = tmp_path / "run" / "s"
    server = ControlServer(
        path, Access(0o660, "nobody", "4242"), fake_answer, selectors.DefaultSelector()
    )

    for file in (path, path.parent):
        assert (file.stat().st_uid, file.stat().st_gid) == (65534, 4242)
    server.close()


def test_an_unknown_owner_is_told_before_anything_is_made(tmp_path) -> None:
    """The daemon may have been asked to run with an account that is gone."""
    with pytest.raises(ConfigError, match=r"api\.owner: no owner 'no-such-user' on this host"):
        ControlServer(tmp_path / "s", Access(0o600, "no-such-user"), fake_answer, None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_nobody_listens_on_is_replaced(tmp_path) -> None:
    """A daemon that was killed leaves one."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    daemon = Daemon(path)

    assert [answer["id"] for answer in daemon.ask(line(1, "status"))] == [1]
    daemon.close()


def test_a_socket_in_use_is_left_alone(daemon) -> None:
    """Two daemons on one socket would hide one from its administrator."""
    with pytest.raises(UsageError) as raised:
        Daemon(daemon.path)

    expected = (
        f"{daemon.path}: another daemon listens there; stop it, "
        "or choose another path with --socket"
    )
    assert expected == str(raised.value)
    assert [answer["id"] for answer in daemon.ask(line(1, "status"))] == [1]


def test_a_socket_whose_queue_is_full_is_in_use(tmp_path) -> None:
    """connect() says EAGAIN there, not that nobody listens."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(UsageError, match="another daemon listens there"):
            Daemon(path)


def test_a_file_that_is_no_socket_is_never_removed(tmp_path) -> None:
    """A typing error in api.socket must not cost anybody a file."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UsageError, match="not a socket; remove it, or choose another path"):
        Daemon(path)

    assert path.read_text() == "data"


def test_a_successors_socket_survives_its_predecessors_end(tmp_path) -> None:
    """A slow stop must not make the new daemon unreachable."""
    path = tmp_path / "s"
    old = Daemon(path)
    path.unlink()
    new = Daemon(path)
    old.close()

    assert [answer["id"] for answer in new.ask(line(1, "status"))] == [1]
    new.close()


def test_a_path_that_the_kernel_refuses_is_told(tmp_path) -> None:
    """Here: a file where a directory should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match=r"listening on .*; choose another path with --socket"):
        Daemon(tmp_path / "file" / "s")
    with pytest.raises(AdapterError, match="File name too long"):
        Daemon(tmp_path / ("x" * 110))


# --- the client's side ----------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """Give the path of a daemon whose loop runs in a thread."""
    daemon = Daemon(tmp_path / "s")
    stop, stopped = socket.socketpair()
    daemon.selector.register(stopped, selectors.EVENT_READ, None)

    def loop():
        while True:
            for key, mask in daemon.selector.select():
                if key.data is None:
                    return
                key.data(mask)

    thread = threading.Thread(target=loop)
    thread.start()
    yield daemon
    stop.send(b"x")
    thread.join()
    daemon.close()


def test_asking_returns_the_answer_without_its_frame(served) -> None:
    """Callers see what they asked for."""
    assert api.ask(served.path, {"do": "status"}) == {"version": "0", "uid": os.getuid()}


def test_asking_for_what_cannot_be_done_raises_the_reason(served) -> None:
    """The daemon's sentence is the user's error."""
    with pytest.raises(UsageError, match=r"^dance: nothing of that name can be done$"):
        api.ask(served.path, {"do": "dance"})


def test_streaming_returns_all_items(served) -> None:
    """More than fit into a socket's buffer."""
    numbers = [item["number"] for item in api.stream(served.path, {"do": "list", "count": 3000})]

    assert list(range(3000)) == numbers


def test_a_stream_that_is_cut_is_not_taken_for_a_whole_one(tmp_path) -> None:
    """Half a table would be a wrong table."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve():
            peer, _ = listener.accept()
            peer.recv(1000)
            peer.sendall(b'{"v":1,"id":1,"ok":true,"item":{"number":0}}\n{"v":1,')
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        items = api.stream(tmp_path / "s", {"do": "list"})

        assert next(items) == {"number": 0}
        with pytest.raises(UsageError, match="broke off in its answer; look at its log"):
            next(items)
        thread.join()


@pytest.mark.parametrize("octets", [b"220 mail ready\n", b"[]\n", b'{"v":2,"ok":true}\n'])
def test_somebody_else_at_the_socket_is_told(tmp_path, octets) -> None:
    """--socket may name anything."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve():
            peer, _ = listener.accept()
            peer.sendall(octets)
            peer.recv(1000)
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UsageError, match="does not speak version 1 of our language"):
            api.ask(tmp_path / "s", {"do": "status"})
        thread.join()


def test_a_silent_daemon_is_told(tmp_path) -> None:
    """A health check must end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(UsageError, match="is silent; look at its log"):
            api.ask(tmp_path / "s", {"do": "status"}, timeout=0.01)


def test_no_daemon_is_told_with_the_way_to_start_one(tmp_path) -> None:
    """The commonest error of all."""
    for path in (tmp_path / "none", tmp_path / "none" / "s"):
        with pytest.raises(UsageError) as raised:
            api.ask(path, {"do": "status"})

        assert str(raised.value) == (
            f"no daemon answers on {path}: is `pptp-nat run` up? "
            "Another socket is named with --socket"
        )


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be somebody else")
def test_who_may_not_ask_is_told_who_may(daemon) -> None:
    """Operators try it as themselves first."""
    daemon.path.parent.chmod(0o755)
    for parent in daemon.path.parent.parents:
        if parent.stat().st_uid == 0 and parent != Path("/") and "pytest" in parent.name:
            parent.chmod(0o755)
    code = (
        "import os, pathlib, sys\n"
        "from pptp_nat import api; from pptp_nat.errors import UsageError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: api.ask(pathlib.Path(sys.argv[1]), {'do': 'status'})\n"
        "except UsageError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(daemon.path)], capture_output=True, text=True, check=True
    ).stdout

    assert said == (
        f"no daemon answers on {daemon.path}: its owner and group alone may ask: "
        "run this as root or as a member\n"
    )


def test_an_impossible_path_is_told(tmp_path) -> None:
    """Longer than a socket's address."""
    with pytest.raises(UsageError, match=r"no daemon answers on .*: AF_UNIX path too long"):
        api.ask(tmp_path / ("x" * 110), {"do": "status"})


def test_a_request_that_is_too_long_still_gets_its_reason(served) -> None:
    """The daemon hangs up in the middle of it; its answer is there to be read."""
    with pytest.raises(UsageError, match="a request of more than 65536 octets"):
        api.ask(served.path, {"do": "echo", "x": "x" * 1_000_000})


def test_events_stream_until_the_client_has_enough(served) -> None:
    """Closing the iterator closes the connection."""

    def answer(_request):
        publish(served.server, {"type": "new"})
        return {}

    served.server.answer = answer
    heard = threading.Event()

    def poke():
        while not heard.is_set():
            api.ask(served.path, {"do": "poke"})

    thread = threading.Thread(target=poke)
    thread.start()
    events = api.stream(served.path, {"do": "subscribe"}, timeout=None)
    event = next(events)
    heard.set()
    thread.join()
    events.close()

    assert event == {"type": "new"}


def test_requests_are_values() -> None:
    """The daemon may keep them."""
    assert Request(1, "x", {}, 0) == Request(1, "x", {}, 0)


# --- what is promised -----------------------------------------------------------------


def test_the_manual_states_the_bounds_that_hold() -> None:
    """docs/api.md is what other programs are written from."""
    text = (Path(__file__).parents[2] / "docs/api.md").read_text()

    assert f"`v` | {api.VERSION}," in text
    assert f"from 0 to {api.LARGEST_ID}," in text
    assert f"more than {LONGEST_REQUEST} octets" in text
    assert f"when {PLACES} clients are connected" in text
    assert f"for {PATIENCE:.0f} seconds" in text
    assert BACKLOG == 1 << 20
    assert "more than 1 MiB of events" in text


def test_the_manual_describes_every_key() -> None:
    """As above, for the answers that are made of rows."""
    text = (Path(__file__).parents[2] / "docs/api.md").read_text()
    named = set(re.findall(r"`(\w+)`", text)) | {
        name for names in re.findall(r"`\{([\w, ]+)\}", text) for name in names.split(", ")
    }

    for row in (StatusRow, ConnectionRow, Filter):
        assert set() == {each.name for each in dataclasses.fields(row)} - named
    assert set() == set(QueueRow._fields + End._fields) - named
    assert {"connection", "cause"} <= named
