"""Nobody where they do not belong: packets that somebody else sends, or makes up."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
from collections.abc import Callable

import pytest

from pptp_nat.lab.control import Call
from pptp_nat.lab.network import Host
from pptp_nat.lab.wire import Gre, encode_gre
from tests.paths import every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel
FORGED = b"made up by somebody else"


def _two_calls(here: World) -> list[Call]:
    """Return two calls of two clients to one server, each followed by its other end."""
    here.station(here.lab.outside[0]).listen()
    return here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside[:2]
    )


def _sent(here: World, host: Host, to: str, key: int, *, source: str | None = None) -> None:
    """Send enhanced GRE from *host*, as from *source* if given."""
    gre = encode_gre(Gre(key, FORGED, 0))
    packet = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(gre), 1, 0, 64, socket.IPPROTO_GRE, 0,
        socket.inet_aton(source or host.address), socket.inet_aton(to),
    ) + gre  # fmt: skip
    with contextlib.closing(
        here.lab.open_socket(host, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ) as raw, contextlib.suppress(OSError):  # a kernel that refuses to send it is as good
        raw.sendto(packet, (to, 0))


def _nobody_has_heard_it(here: World) -> None:
    calls = [call for each in here.stations.values() for call in each.calls()]
    assert [] == [payload for call in calls for payload in call.wrong]
    assert [] == [stray for each in here.stations.values() for stray in each.strays]


@every_path
def test_no_neighbour_can_speak_into_a_tunnel(world: Callable[..., World], by: By) -> None:
    """A host on the LAN, with a call of its own or without, that knows the server's number."""
    here = world(by, inside=3)
    calls = _two_calls(here)
    server = here.lab.outside[0]
    bystander = here.lab.inside[2]
    for call in calls[::2]:
        assert call.peer_id is not None
        for host in (*here.lab.inside[:2], bystander):
            if host.name != call.connection.station.name:
                _sent(here, host, server.address, call.peer_id)
                # Nor as if it came from outside, by the router's other side.
                _sent(here, host, here.lab.router.address, call.own_id, source=server.address)
    here.all_hear(calls)
    _nobody_has_heard_it(here)


@every_path
def test_nobody_outside_but_the_server_is_heard(world: Callable[..., World], by: By) -> None:
    here = world(by, inside=2, outside=2)
    calls = _two_calls(here)
    for call in calls[1::2]:
        assert call.peer_id is not None
        _sent(here, here.lab.outside[1], here.lab.router.address, call.peer_id)
    here.all_hear(calls)
    _nobody_has_heard_it(here)


@every_path
def test_guessing_a_number_hits_nobody(world: Callable[..., World], by: By) -> None:
    """The very server, with any number but those that it was told."""
    here = world(by, inside=2)
    calls = _two_calls(here)
    told = {call.peer_id for call in calls[1::2]}
    lots = random.Random(5)
    for number in (0, 7, 0xFFFF, *(lots.randrange(1 << 16) for _ in range(500))):
        if number not in told:
            _sent(here, here.lab.outside[0], here.lab.router.address, number)
    here.all_hear(calls)
    _nobody_has_heard_it(here)


@every_path
def test_the_number_of_a_call_that_is_over_leads_nowhere(
    world: Callable[..., World], by: By
) -> None:
    """Nor to the client that had it, nor to the one that called next."""
    here = world(by, inside=3)
    calls = _two_calls(here)
    number = calls[1].peer_id
    assert number is not None
    calls[0].connection.clear(calls[0])
    here.until(lambda: not calls[1].up, "the call is over")
    here.listed(1, "--state", "up")
    late = here.up(
        [here.dial(here.station(here.lab.inside[2]), here.lab.outside[0].address).call(7)]
    )
    assert number != late[1].peer_id
    _sent(here, here.lab.outside[0], here.lab.router.address, number)
    here.all_hear(calls[2:] + late)
    _nobody_has_heard_it(here)


@every_path
def test_a_page_that_speaks_pptp_opens_no_port(world: Callable[..., World], by: By) -> None:
    """NAT slipstreaming: octets that a browser sends to port 1723 in somebody's name.

    Whoever wrote the page chooses all octets of the client's half, server included.
    What he gets is what any PPTP server gets: GRE version 1, from his address, with
    one key, to the host whose browser it was, which drops it.
    """
    here = world(by, inside=2, outside=2)
    attacker, other = here.lab.outside
    server = here.station(attacker)
    server.listen()
    here.station(other)
    victim = here.station(here.lab.inside[0])
    connection = here.dial(victim, attacker.address)
    # Any port, as any number: 445, 22, 80, and a header of HTTP before all that.
    connection.send_raw(b"POST / HTTP/1.1\r\nHost: x:1723\r\nContent-Length: 9999\r\n\r\n")
    page = here.station(here.lab.inside[1]).dial(attacker.address)
    here.until(lambda: page.established, "the second connection is established")
    for number in (445, 22, 80, 1723):
        page.call(number)
    here.up(page.calls.values())

    listing = here.lab.run(here.lab.router, ["conntrack", "-L"], check=False).stdout
    flows = [line for line in listing.splitlines() if "dst=224." not in line]  # the kernel's IGMP
    kinds = {line.split()[0] for line in flows}
    assert kinds <= {"tcp", "gre"}, flows
    between = {here.lab.inside[0].address, here.lab.inside[1].address, attacker.address}
    between.add(here.lab.router.address)
    for line in flows:
        words = [word.partition("=") for word in line.split()]
        addresses = {value for name, _, value in words if name in ("src", "dst")}
        assert addresses <= between, line
        if line.startswith("tcp"):
            assert {"1723"} <= {value for name, _, value in words if name in ("sport", "dport")}
    expected = here.lab.run(here.lab.router, ["conntrack", "-L", "expect"], check=False)
    assert "" == expected.stdout.strip(), "nothing is expected that would open a way in"

    for number in (445, 22, 80, 1723):
        for host in (attacker, other):
            assert not _reaches(here, host, number), f"{host.name} reaches port {number}"
    # Other GRE than a call's does not get in either, whatever its key.
    for call in page.calls.values():
        key = call.own_id
        plain = struct.pack("!HHHH", 0x2000, 0x0800, len(FORGED), key) + FORGED
        server.send_gre(here.lab.router.address, plain)
        _sent(here, other, here.lab.router.address, key)
    calls = [end for call in page.calls.values() for end in (call, here.other_end(call))]
    here.all_hear(calls)
    _nobody_has_heard_it(here)


def _reaches(here: World, host: Host, port: int) -> bool:
    """Whether *host* can open a TCP connection to *port* of the external address."""
    with contextlib.closing(here.lab.open_socket(host, socket.SOCK_STREAM)) as sock:
        sock.settimeout(1)
        code = sock.connect_ex((here.lab.router.address, port))
    assert code in {0, errno.ECONNREFUSED, errno.EAGAIN, errno.EHOSTUNREACH, errno.ETIMEDOUT}
    return code == 0


