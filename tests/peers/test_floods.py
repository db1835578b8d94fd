"""One client that floods: others' new calls still come up, and their data still arrive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pptp_nat.lab.network import EXTERNAL, Host
from tests.paths import PATHS, at_great_length, every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel

#: ``make faults`` tries every flood on either data path.
KINDS = [("conntrack", "sccrq"), ("conntrack", "gre"), ("queue", "gre")]
if os.environ.get("PPTP_NAT_FAULTS"):
    kinds = ("syn", "garbage", "sccrq", "gre")
    KINDS = [(by, kind) for by in ("conntrack", "queue") for kind in kinds]

#: Packets a second; more fill the link and the machine, and then its own pace decides.
PACE = 10_000
#: On the other data paths the kernel drops GRE of no call, and nothing waits in a queue.
GRE = PATHS if os.environ.get("PPTP_NAT_FAULTS") else ["queue"]
WHOLE_CORE = 10_000_000  # beside it only the router has one
UNPACED = """
[limits]
openers_per_client = 0
openers = 0
segments_per_client = 0
gre_per_host = 0
"""

#: A program that sends so many packets a second, or what its core lets it, until it is ended.
FLOOD = """
import socket, struct, sys, random, time
kind, me, to, pace = sys.argv[1:]
everywhere = kind == "syn from everywhere"
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
lots = random.Random(1)
def add(total):
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
def tcp(flags, payload):
    size = 20 + len(payload)
    head = struct.pack("!HHIIBBHHH", lots.randrange(1024, 65536), 1723, lots.getrandbits(32),
                       lots.getrandbits(32), 5 << 4, flags, 512, 0, 0)
    pseudo = socket.inet_aton(me) + socket.inet_aton(to) + struct.pack("!BBH", 0, 6, size)
    octets = pseudo + head + payload + bytes(len(payload) % 2)
    check = add(sum(struct.unpack(f"!{len(octets) // 2}H", octets)))
    return ip(6, head[:16] + struct.pack("!H", check) + head[18:] + payload)
def ip(protocol, rest):
    source = me.rsplit(".", 1)[0] + f".{lots.randrange(100, 250)}" if everywhere else me
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(rest), 0, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(to)) + rest
make = {
    "syn": lambda: tcp(2, b""),
    "syn from everywhere": lambda: tcp(2, b""),
    "garbage": lambda: tcp(24, lots.randbytes(64)),
    "sccrq": lambda: tcp(24, bytes.fromhex("009c00011a2b3c4d0001000001000000") + bytes(140)),
    "gre": lambda: ip(47, struct.pack("!HHHHI4s", 0x3001, 0x880B, 4, lots.getrandbits(16), 1,
                                      b"abcd")),
}[kind]
packets = [make() for _ in range(3000)]
due = time.monotonic()
while True:
    for at in range(0, len(packets), 50):
        for packet in packets[at : at + 50]:
            try:
                raw.sendto(packet, (to, 0))
            except OSError:
                pass
        due = max(due + 50 / int(pace), time.monotonic() - 0.1)  # what is late is not caught up
        time.sleep(max(0.0, due - time.monotonic()))
"""

#: Two programs: one asks for calls on eight connections, as fast as the other says no.
ASKING = """
import itertools, socket, sys, threading, time
from pptp_nat.lab import wire
role, server = sys.argv[1:]
def whole(sock, size):
    octets = sock.recv(size, socket.MSG_WAITALL)
    if len(octets) < size:
        sys.exit()
    return octets
def answer(sock):
    whole(sock, 156)
    sock.sendall(wire.encode("SCCRP", version=256, result=1, framing=3, bearer=3))
    while True:
        asked = whole(sock, 168)
        sock.sendall(wire.encode("OCRP", peer=int.from_bytes(asked[12:14], "big"), result=4))
def swallow(sock):
    while sock.recv(65536):
        pass
def ask(sock):
    sock.sendall(wire.encode("SCCRQ", version=256, framing=3, bearer=3))
    whole(sock, 156)
    threading.Thread(target=swallow, args=[sock]).start()
    for number in itertools.cycle(range(1, 1 << 16)):
        sock.sendall(wire.encode("OCRQ", call=number, bearer=3, framing=3, window=64))
if role == "server":
    listener = socket.create_server((server, wire.PORT))
    while True:
        threading.Thread(target=answer, args=[listener.accept()[0]]).start()
def dialled():
    while True:
        try:
            return socket.create_connection((server, wire.PORT))
        except ConnectionRefusedError:  # the server is not there yet
            time.sleep(0.1)
for _ in range(8):
    threading.Thread(target=ask, args=[dialled()]).start()
"""


@contextmanager
def _flooded(
    here: World, host: Host, kind: str, pace: int = PACE, *, to: str = ""
) -> Iterator[None]:
    to = to or here.lab.outside[0].address
    command = [sys.executable, "-c", FLOOD, kind, host.address, to, str(pace)]
    process: subprocess.Popen[bytes] = here.lab.popen(host, command)
    try:
        time.sleep(1)  # it is to be well under way; nothing depends on how far
        assert process.poll() is None, "the flood has ended by itself"
        yield
    finally:
        here.lab.end(process)


@pytest.mark.parametrize(("by", "kind"), KINDS)
def test_under_a_flood_others_still_call_and_are_heard(
    world: Callable[..., World], by: By, kind: str
) -> None:
    """Ten thousand packets a second, of which none is meant, and no rule holds them back."""
    here = world(by, inside=4, config=UNPACED)
    here.station(here.lab.outside[0]).listen()
    clients = [here.station(host) for host in here.lab.inside[:3]]
    lasting = here.up([here.dial(clients[0], here.lab.outside[0].address).call(7)])
    with _flooded(here, here.lab.inside[3], kind):
        connections = [each.dial(here.lab.outside[0].address) for each in clients[1:]]
        assert here.loop.run_until(lambda: all(each.established for each in connections), 60)
        calls = [each.call(7) for each in connections]
        assert here.loop.run_until(lambda: all(each.up for each in calls), 60)
        both = [end for call in calls for end in (call, here.other_end(call))] + lasting
        before = [call.right for call in both]
        for _ in range(20):
            for call in both:
                call.say()
            here.loop.run_dry(0.01)
        assert here.loop.run_until(
            lambda: all(c.right >= b + 20 for c, b in zip(both, before, strict=True)), 30
        ), [c.right - b for c, b in zip(both, before, strict=True)]
    assert [] == [payload for call in both for payload in call.wrong]
    here.listed(3, "--state", "up")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("by", "kind"),
    [("conntrack", "syn"), ("queue", "syn"), ("conntrack", "garbage"), ("queue", "sccrq")],
)
def test_all_that_a_core_can_send_keeps_nobody_out(
    world: Callable[..., World], by: By, kind: str
) -> None:
    """What is above one host's pace is dropped by a rule: the queue has room, for others' calls."""
    here = world(by, inside=4)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    clients = [here.station(host) for host in here.lab.inside[:3]]
    lasting = here.up([here.dial(clients[0], here.lab.outside[0].address).call(7)])
    with _flooded(here, here.lab.inside[3], kind, WHOLE_CORE):
        for _ in range(10):
            connections = [each.dial(here.lab.outside[0].address) for each in clients[1:]]
            here.until(lambda c=connections: all(e.established for e in c), "others are let in")
            calls = here.up([each.call(7) for each in connections])
            here.all_hear_their_own([*calls, *lasting])
            for each in connections:
                each.close()
        status = daemon.status()
    assert [0, 0] == [status["queues"][0][name] for name in ("dropped", "user_dropped")]
    assert status["paced"]["openers_per_client"] > 1000
    assert (0, 0) == (status["paced"]["openers"], status["paced"]["segments_per_client"])


@at_great_length
def test_all_the_calls_that_a_client_can_ask_for_keep_nobody_out(
    world: Callable[..., World], by: By
) -> None:
    """They come on connections that are in good order, and no rule holds them back either."""
    here = world(by, inside=4, outside=2, config=UNPACED)
    daemon = here.daemon
    assert daemon is not None
    server, busy = here.lab.outside
    here.station(server).listen()
    clients = [here.station(host) for host in here.lab.inside[:3]]
    lasting = here.up([here.dial(clients[0], server.address).call(7)])
    flood = [
        here.lab.popen(host, [sys.executable, "-c", ASKING, role, busy.address])
        for role, host in (("server", busy), ("client", here.lab.inside[3]))
    ]
    here.until(lambda: "setups_per_client_limit" in daemon.log, "it asks for too much")
    for _ in range(10):
        connections = [each.dial(server.address) for each in clients[1:]]
        here.until(lambda c=connections: all(e.established for e in c), "others are let in")
        calls = here.up([each.call(7) for each in connections])
        here.all_hear_their_own([*calls, *lasting], count=20)
        for each in connections:
            each.close()
    assert [None, None] == [each.poll() for each in flood], "the flood has ended by itself"
    queues = daemon.status()["queues"]
    assert [0, 0] * len(queues) == [
        each[name] for each in queues for name in ("dropped", "user_dropped")
    ]


@pytest.mark.alone
@pytest.mark.parametrize("who", ["a stranger", "a server", "a client"])
@pytest.mark.parametrize("by", GRE)
def test_all_the_gre_that_a_core_can_send_costs_others_nothing(
    world: Callable[..., World], by: By, who: str
) -> None:
    """Of no call, from somebody unknown or from one who has a call; others' keep their rate.

    The bound is one that any core exceeds.
    """
    here = world(by, inside=3, outside=3, config="[limits]\ngre_per_host = 5000\n")
    daemon = here.daemon
    assert daemon is not None
    server, other, stranger = here.lab.outside
    for host in (server, other):
        here.station(host).listen()
    first, second, flooding = (here.station(host) for host in here.lab.inside)
    lasting = here.up([here.dial(first, server.address).call(7)])
    here.up([here.dial(flooding, other.address).call(7)])
    host, to = {
        "a stranger": (stranger, EXTERNAL),
        "a server": (other, EXTERNAL),
        "a client": (here.lab.inside[2], server.address),
    }[who]
    with _flooded(here, host, "gre", WHOLE_CORE, to=to):
        for _ in range(10):
            connection = here.dial(second, server.address)
            calls = here.up([connection.call(7)])
            here.all_hear_their_own([*calls, *lasting], count=20)
            connection.close()
        status = daemon.status()
    assert [0, 0] * len(status["queues"]) == [
        each[name] for each in status["queues"] for name in ("dropped", "user_dropped")
    ]
    if by == "queue":
        assert status["paced"]["gre_per_host"] > 1000


@pytest.mark.alone
@every_path
def test_a_flood_from_many_addresses_leaves_connections_that_are_up_their_share(
    world: Callable[..., World], by: By
) -> None:
    """Each of its senders may open connections; all of them together have a bound as well."""
    here = world(by, inside=2)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    with _flooded(here, here.lab.inside[1], "syn from everywhere", WHOLE_CORE):
        for _ in range(10):
            calls = here.up([connection.call()])
            here.all_hear_their_own(calls)
        status = daemon.status()
    assert status["paced"]["openers"] > 1000


@every_path
def test_one_client_cannot_take_all_numbers_at_once(
    world: Callable[..., World], by: By
) -> None:
    """It asks for more than its share, and hears no; another one is served meanwhile."""
    here = world(by, inside=2, config="[limits]\nsetups_per_client = 10\ncalls_per_client = 30\n")
    here.station(here.lab.outside[0]).listen()
    greedy, modest = (here.station(host) for host in here.lab.inside)
    connection = here.dial(greedy, here.lab.outside[0].address)
    calls = [connection.call() for _ in range(60)]
    here.until(lambda: all(each.state != "requested" for each in calls), "all are answered")
    assert 20 <= sum(each.up for each in calls) <= 30
    served = here.up([here.dial(modest, here.lab.outside[0].address).call(7)])
    here.all_hear(served)
    assert here.daemon is not None
    assert "reason=" in here.daemon.log


def test_memory_stays_within_bounds_under_a_flood(world: Callable[..., World]) -> None:
    """Tens of thousands of connections that nobody means, and then it is as it was."""
    here = world("conntrack", inside=2, config=UNPACED + "connections = 2000\nbuffered = 65536\n")
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    lasting = here.up(
        [here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address).call(7)]
    )
    before = _resident(daemon.pid)
    with _flooded(here, here.lab.inside[1], "sccrq"):
        time.sleep(3)
    grown = _resident(daemon.pid) - before
    assert grown < 16 << 20, f"{grown} octets more"
    here.all_hear(lasting)


def _resident(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
