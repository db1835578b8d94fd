"""What people look at agrees: list, events, top and the kernel's own conntrack(8)."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pptp_nat.lab.real_peers import Client, absent, converse, start_server
from tests.adapters.schemas import departures
from tests.paths import at_length
from tests.terminal import Terminal

from .conftest import By, World

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.peers,
    pytest.mark.skipif(absent() is not None, reason=absent() or "all there"),
]
CLIENTS = 20

#: source, destination and key of what arrives, as conntrack(8) shows an entry's first direction
Arrives = tuple[str, str, int]
_ENTRY = re.compile(
    r"src=(\S+) dst=(\S+) srckey=0x0 dstkey=(0x[0-9a-f]+) packets=(\d+) bytes=(\d+)"
)


def entries(text: str) -> Counter[tuple[Arrives, str]]:
    """Return what conntrack(8) has counted by what arrives, packets and bytes."""
    counted: Counter[tuple[Arrives, str]] = Counter()
    for line in text.splitlines():
        found = _ENTRY.search(line)
        if found is not None:
            source, destination, key, packets, octets = found.groups()
            arrives = source, destination, int(key, 16)
            counted[arrives, "packets"] += int(packets)
            counted[arrives, "bytes"] += int(octets)
    return counted


def arriving(call: dict[str, Any]) -> dict[str, Arrives]:
    """Return what arrives of a call, by the direction that the table shows it in."""
    inside, external, remote = call["inside"], call["external"], call["remote"]
    return {
        "to_remote": (inside["address"], remote["address"], remote["call_id"]),
        "to_inside": (remote["address"], external["address"], external["call_id"]),
    }


class Events:
    """What ``pptp-nat events`` has told so far, and conntrack(8) beside it."""

    def __init__(self, here: World) -> None:
        assert here.daemon is not None
        self._path = here.lab.directory / "events"
        self._kernel = here.lab.directory / "conntrack"
        ours = [sys.executable, "-m", "pptp_nat", "events", "--socket", str(here.daemon.socket)]
        for path, command in (
            (self._path, [*ours, "-o", "json", "--types", "new,update,destroy,connection,message"]),
            (self._kernel, ["stdbuf", "-oL", "conntrack", "-E", "-e", "DESTROY", "-p", "gre"]),
        ):
            with path.open("wb") as out:
                here.lab.popen(here.lab.router, command, stdout=out.fileno())
        assert here.loop.run_until(lambda: self._listens(here), 30, every=0.2)

    @staticmethod
    def _listens(here: World) -> bool:
        assert here.daemon is not None
        status = json.loads(here.daemon.ask("status", "-o", "json").stdout)
        listeners = Path("/proc/net/netlink")
        with here.lab.entered(here.lab.router):
            groups = [line.split()[3] for line in listeners.read_text().splitlines()[1:]]
        return bool(status["api"]["subscribers"]) and groups.count("00000004") >= 2

    def told(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of these types."""
        lines = self._path.read_text().splitlines()
        return [each for each in map(json.loads, lines) if each["type"] in kinds]

    @property
    def kernels(self) -> Counter[tuple[Arrives, str]]:
        """What the kernel has counted in entries that are gone, by what arrived."""
        return entries(self._kernel.read_text())


@at_length
def test_with_twenty_real_clients_all_views_agree(world: Callable[..., World], by: By) -> None:
    """Who looks at one must not be told otherwise by another."""
    here = world(by, inside=CLIENTS)
    assert here.daemon is not None
    events = Events(here)
    start_server(here.lab, here.lab.outside[0])
    clients = [
        Client(here.lab, host, here.lab.outside[0].address, here.loop, call_id=0x1234)
        for host in here.lab.inside
    ]
    assert converse(here.loop, clients).good
    listed = here.listed(CLIENTS, "--state", "up")
    assert departures(listed, "calls") == []

    # events: what they have told is what the list shows
    told = {each["call"]["id"]: each["call"] for each in events.told("new", "update", "destroy")}
    for call in listed:
        for name in ("state", "inside", "external", "remote", "control", "role", "direction"):
            assert told[call["id"]][name] == call[name]

    # conntrack(8): the same calls, the same counts
    kernel = entries("\n".join(here.entries()))
    if by == "conntrack":
        for call in listed:
            for way, arrives in arriving(call).items():
                assert kernel[arrives, "packets"] >= call["counters"][way]["packets"] > 0
                assert kernel[arrives, "bytes"] >= call["counters"][way]["bytes"] > 0
        assert len(kernel) == 4 * CLIENTS
    else:
        assert not kernel

    # top: the same calls on a terminal
    terminal = Terminal("top", "--socket", str(here.daemon.socket), columns=140, lines=30)
    try:
        terminal.until(lambda lines: sum("192.168.77." in line for line in lines) == CLIENTS)
        shown = {
            (words[2], int(words[3]), int(words[4]), words[5], int(words[6]))
            for words in (line.split() for line in terminal.screen.display)
            if len(words) > 6 and words[2].startswith("192.168.77.")
        }
    finally:
        terminal.close()
    assert shown == {
        (
            call["inside"]["address"], call["inside"]["call_id"], call["external"]["call_id"],
            call["remote"]["address"], call["remote"]["call_id"],
        )
        for call in listed
    }  # fmt: skip

    # somebody flushes conntrack; calls go on, and so do counts
    if by == "conntrack":
        here.lab.run(here.lab.router, ["conntrack", "-F"])
        assert here.loop.run_until(lambda: len(here.entries()) == 2 * CLIENTS, 20, every=0.1)
        assert converse(here.loop, clients).good
        later = {call["id"]: call for call in here.listed(CLIENTS, "--state", "up")}
        for call in listed:
            for way, counts in call["counters"].items():
                assert later[call["id"]]["counters"][way]["packets"] > counts["packets"]

    # the end: every call is destroyed, says why, and has carried what the kernel has counted
    for client in clients:
        client.hang_up()
    assert here.loop.run_until(lambda: len(events.told("destroy")) == CLIENTS, 60, every=0.2)
    here.listed(0)
    gone = [each["call"] for each in events.told("destroy")]
    assert {call["id"] for call in listed} == {call["id"] for call in gone}
    assert all(call["cause"] for call in gone)
    for event in events.told("new", "update", "destroy", "connection", "message"):
        assert departures(event, "events") == []
    if by == "conntrack":
        here.until_no_entry_is_left()
        expected = {
            (arrives, unit): call["counters"][way][unit]
            for call in gone for way, arrives in arriving(call).items()
            for unit in ("packets", "bytes")
        }  # fmt: skip
        assert here.loop.run_until(lambda: events.kernels == expected, 20, every=0.2), (
            events.kernels, expected
        )  # fmt: skip


def test_what_the_control_connections_say_of_themselves_is_shown(
    world: Callable[..., World],
) -> None:
    """Names, vendors, versions, from programs that people use."""
    here = world("conntrack", inside=1)
    assert here.daemon is not None
    start_server(here.lab, here.lab.outside[0])
    client = Client(here.lab, here.lab.inside[0], here.lab.outside[0].address, here.loop)
    assert converse(here.loop, [client]).good
    (connection,) = json.loads(here.daemon.ask("connections", "-o", "json").stdout)
    status = json.loads(here.daemon.ask("status", "-o", "json").stdout)

    assert departures([connection], "connections") == []
    assert departures(status, "status") == []
    assert (connection["inside"], connection["opaque"]) == ("originator", False)
    assert (connection["originator"]["vendor"], connection["originator"]["version"]) == (
        "cananian", "1.0"
    )  # fmt: skip
    assert (connection["responder"]["host"], connection["responder"]["vendor"]) == (
        "local", "linux"
    )  # fmt: skip
    assert connection["calls"] == 1


def test_a_subscriber_that_never_reads_holds_nobody_up(world: Callable[..., World]) -> None:
    """While a thousand calls come and go: it is disconnected at its bound, and that is all."""
    here = world("conntrack", inside=1, config="limits.setups_per_client = 0")
    assert here.daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    before = resident(here.daemon.pid)
    with socket.socket(socket.AF_UNIX) as asleep:
        asleep.connect(str(here.daemon.socket))
        asleep.sendall(
            b'{"v":1,"id":1,"do":"subscribe","rate":100000,'
            b'"types":["new","update","destroy","message","connection","oddity"]}\n'
        )
        for _ in range(20):
            calls = [connection.call() for _ in range(50)]
            here.until(lambda calls=calls: all(each.up for each in calls), "the calls are up")
            for call in calls:
                connection.clear(call)
            here.until(
                lambda calls=calls: all(each.state == "gone" for each in calls), "they are gone"
            )
        status = json.loads(here.daemon.ask("status", "-o", "json").stdout)

    assert status["api"]["dropped"] == 1
    assert status["api"]["subscribers"] == 0
    assert resident(here.daemon.pid) - before < 16 << 20


FLOODED = """
limits.setups_per_client = 0
api.group = "65534"
"""
FLOOD = """
import itertools, json, socket, sys, time
ends = time.monotonic() + 200
kept = []
for number in itertools.count():
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(1)
    try:
        client.connect(sys.argv[1])
        client.send([b"garbage\\n", b"{", json.dumps({"v": 9, "id": 1}).encode() + b"\\n",
                     b"x" * 70000, b""][number % 5])
    except OSError:
        pass
    kept.append(client)
    if number % 200 == 199:
        for each in kept: each.close()
        kept.clear()
    if time.monotonic() > ends: break
"""


def test_a_flood_on_the_socket_holds_no_call_up(world: Callable[..., World]) -> None:
    """Garbage, halves of requests, other versions, and thousands who just connect."""
    here = world("conntrack", inside=1, config=FLOODED)
    assert here.daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    before = resident(here.daemon.pid)
    here.lab.directory.chmod(0o711)
    flood = here.lab.popen(here.lab.router, [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
        sys.executable, "-c", FLOOD, str(here.daemon.socket),
    ])  # fmt: skip
    def socket_says() -> dict[str, int]:
        assert here.daemon is not None
        answer = here.daemon.ask("status", "-o", "json", check=False)
        said: dict[str, int] = json.loads(answer.stdout)["api"] if answer.stdout else {}
        return said

    def calls_come_and_go() -> bool:
        calls = here.up(connection.call() for _ in range(20))
        here.all_hear(calls, count=1)
        for call in calls[::2]:
            connection.clear(call)
        here.until(lambda: not any(each.up for each in calls), "they are gone")
        said = socket_says()
        return said.get("garbled", 0) > 50 and said.get("refused", 0) > 0

    assert here.loop.run_until(calls_come_and_go, 150, every=0.1), socket_says()
    here.lab.end(flood)
    assert here.loop.run_until(lambda: socket_says().get("clients") == 1, 30, every=0.2)
    assert resident(here.daemon.pid) - before < 16 << 20


def resident(pid: int | None) -> int:
    """Return the octets of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * int(subprocess.run(
        ["getconf", "PAGESIZE"], capture_output=True, text=True, check=True
    ).stdout)  # fmt: skip
