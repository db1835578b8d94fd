"""What a service manager hears: ready, reloading, alive, stopping; and that silence is no harm."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pptp_nat.service import STATUS_SECONDS, Service


class Manager:
    """The manager's end of the socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                text = self.socket.recv(4096).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in text.splitlines()))


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@pptp-nat-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_a_manager_hears_the_whole_life(manager: Manager, address: str) -> None:
    said = ["0 calls up"]
    service = Service({"NOTIFY_SOCKET": address}, lambda: said[-1])
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.ready()
    service.reloading()
    said.append("1 calls up")
    service.ready()
    service.stopping()
    service.close()

    ready, reloading, again, stopping = manager.heard()
    assert {"READY": "1", "STATUS": "0 calls up"} == ready
    assert "1" == reloading["RELOADING"]
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert {"READY": "1", "STATUS": "1 calls up"} == again
    assert {"STOPPING": "1", "STATUS": ""} == stopping


def test_a_sign_of_life_comes_twice_in_the_time_that_the_manager_grants(
    manager: Manager, address: str
) -> None:
    service = Service({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000"})
    service.ready()
    manager.heard()
    now = time.monotonic()
    for _ in range(3):
        service.tick(now)
        due = service.next_timer()
        assert due == pytest.approx(now + 2.0)
        service.tick(due - 0.01)  # too early: nothing
        now = due

    assert [{"WATCHDOG": "1"}] * 3 == manager.heard()


@pytest.mark.parametrize(
    ("pid", "is_ours"),
    [("", True), pytest.param(str(os.getpid()), True, id="this"), ("1", False)],
)
def test_a_watchdog_meant_for_another_process_is_not_ours(
    manager: Manager, address: str, pid: str, *, is_ours: bool
) -> None:
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": pid}
    service = Service(environ)
    service.ready()
    service.tick(time.monotonic() + 1)

    assert is_ours == ({"WATCHDOG": "1"} in manager.heard())


def test_what_we_start_does_not_speak_in_our_name(address: str) -> None:
    """Nft and iptables inherit our environment: they must not be able to declare us ready."""
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/"}
    Service(environ)

    assert {"PATH": "/"} == environ


def test_the_status_is_told_when_it_changes_and_not_otherwise(
    manager: Manager, address: str
) -> None:
    said = ["as before"]
    service = Service({"NOTIFY_SOCKET": address}, lambda: said[-1])
    service.ready()
    manager.heard()
    now = time.monotonic() + STATUS_SECONDS + 1
    service.tick(now)
    said.append("different")
    service.tick(now + STATUS_SECONDS)

    assert [{"STATUS": "different"}] == manager.heard()


@pytest.mark.parametrize("address", ["", "/nowhere/there", "relative", "@nobody\0", "@nobody"])
def test_without_a_manager_there_is_nothing_to_do(address: str) -> None:
    service = Service({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    service.ready()
    service.reloading()
    service.tick(time.monotonic() + 1000)
    service.stopping()

    assert service.next_timer() is None


def test_a_manager_that_does_not_read_stops_nobody(manager: Manager, address: str) -> None:
    """Its socket is full: a packet's verdict must not wait for that."""
    service = Service({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2"})
    service.ready()
    begun = time.monotonic()
    for turn in range(20_000):  # far more than a datagram socket queues
        service.tick(begun + turn)
    manager.socket.close()
    service.tick(begun + 30_000)

    assert service.next_timer() is not None


def test_a_manager_keeps_what_it_is_given_and_gives_it_back(tmp_path: Path) -> None:
    """As sd_pid_notify_with_fds(3) and sd_listen_fds_with_names(3) say."""
    manager = Manager(f"@pptp-nat-keeping-{os.getpid()}")
    service = Service({"NOTIFY_SOCKET": f"@pptp-nat-keeping-{os.getpid()}"})
    file = tmp_path / "kept"
    file.write_text("what it was")
    with file.open() as opened:
        assert service.keep("pptp-nat-gre-1724", opened.fileno())
    words, (descriptor,), _, _ = socket.recv_fds(manager.socket, 4096, 4)
    assert words == b"FDSTORE=1\nFDPOLL=0\nFDNAME=pptp-nat-gre-1724"
    assert os.read(descriptor, 99) == b"what it was"
    service.let_go("pptp-nat-gre-1724")
    assert [{"FDSTOREREMOVE": "1", "FDNAME": "pptp-nat-gre-1724"}] == manager.heard()
    os.close(descriptor)
    service.close()
    manager.socket.close()


@pytest.mark.parametrize(
    ("pid", "count", "names", "given"),
    [
        ("ours", "2", "one:two", {"one": 3, "two": 4}),
        ("ours", "1", "one", {"one": 3}),
        ("ours", "0", "", {}),
        ("ours", "many", "one", {}),
        ("1", "1", "one", {}),  # they are our parent's
        ("", "", "", {}),
    ],
)
def test_what_the_manager_gives_has_names(
    monkeypatch: pytest.MonkeyPatch, pid: str, count: str, names: str, given: dict[str, int]
) -> None:
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)
    pid = str(os.getpid()) if pid == "ours" else pid
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    assert given == Service(environ).given
    assert {} == environ, "the programs that we start are given nothing"


def test_nobody_is_told_to_keep_anything_where_there_is_no_manager() -> None:
    assert not Service({}).keep("one", 0)
