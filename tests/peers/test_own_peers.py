"""What real peers seldom do, done by peers of our own through the whole router."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pptp_nat.lab.peers import Quirk
from pptp_nat.lab.wire import Gre, encode_gre
from tests.paths import every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel

CUTS = [
    {"cut": 1},
    {"cut": 1, "nodelay": False},
    {"cut": 13},  # the first octet of a call ID, and the rest of the message
    {"cut": 100},
]


@every_path
@pytest.mark.parametrize("how", CUTS, ids=str)
def test_calls_come_up_however_tcp_cuts_the_messages(
    world: Callable[..., World], by: By, how: dict[str, Any]
) -> None:
    """With Nagle's algorithm a sender waits for an acknowledgement in the middle of a call ID."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0])
    server.listen()
    calls = [
        here.dial(here.station(host), here.lab.outside[0].address, **how).call(0xAB01)
        for host in here.lab.inside
    ]
    here.all_hear(here.up(calls))


@every_path
def test_answers_cut_into_single_octets_are_restored(world: Callable[..., World], by: By) -> None:
    """The peer's call ID in an answer is ours to restore, wherever the server cuts it."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0], cut=1)
    server.listen()
    calls = [
        here.dial(here.station(host), here.lab.outside[0].address).call(0xAB01)
        for host in here.lab.inside
    ]
    here.all_hear(here.up(calls))


def test_what_waits_while_the_daemon_stands_still_is_heard_at_once(
    world: Callable[..., World],
) -> None:
    """A burst of all that has waited comes to one socket: none of it may be lost here."""
    here = world("queue", inside=1)
    assert here.daemon is not None
    assert here.daemon.pid is not None
    here.station(here.lab.outside[0]).listen()
    calls = here.up([here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
                     .call(7)])  # fmt: skip
    os.kill(here.daemon.pid, signal.SIGSTOP)
    try:
        for call in calls:
            call.say(1500)
    finally:
        os.kill(here.daemon.pid, signal.SIGCONT)
    here.until(lambda: all(call.right == 1500 for call in calls), "all that waited is heard")


@every_path
def test_fragments_reach_whom_the_whole_is_for(world: Callable[..., World], by: By) -> None:
    """PPP over a tunnel makes packets that are too long; only the first piece has the call ID."""
    here = world(by, inside=2)
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.all_hear(calls, padding=2500)
    here.all_hear(calls, count=1, padding=60000)


@every_path
def test_a_control_connection_carries_several_calls(world: Callable[..., World], by: By) -> None:
    """The kernel's helper knows one; ISPs' concentrators place hundreds."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0])
    server.listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    calls = here.up(each.call(number) for each in connections for number in (1, 2, 0xFFFF, 0))
    here.all_hear(calls)

    connections[0].clear(calls[0])
    here.until(lambda: not calls[0].up and not calls[1].up, "one call is over at both ends")
    here.all_hear(calls[2:])
    here.listed(7, "--state", "up")


@every_path
def test_calls_offered_from_outside_reach_the_client_they_are_for(
    world: Callable[..., World], by: By
) -> None:
    """Incoming calls: the PAC is outside and gives its number first."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0])
    server.listen()
    clients = [here.station(host, call_ids=itertools.repeat(7)) for host in here.lab.inside]
    for client in clients:
        here.dial(client, here.lab.outside[0].address)
    calls = here.up(connection.offer() for connection in server.connections)

    assert {7} == {each.own_id for client in clients for each in client.calls()}
    here.all_hear(calls)


@every_path
def test_an_access_concentrator_inside_offers_calls(world: Callable[..., World], by: By) -> None:
    """The roles are the other way round, and the PAC's number is the one to translate."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0])
    server.listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).offer(7)
        for host in here.lab.inside
    )
    assert {"PAC"} == {each.role for each in calls[::2]}
    here.all_hear(calls)


@every_path
def test_a_published_server_answers_clients_outside(world: Callable[..., World], by: By) -> None:
    """The PAC is inside and was dialled; its number is the one to translate."""
    here = world(by, inside=1, outside=2, publish=0, firewall="established")
    here.station(here.lab.inside[0], call_ids=itertools.count(500)).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.router.address).call(7) for host in here.lab.outside
    )
    here.all_hear(calls)
    assert {here.lab.inside[0].address} == {each["inside"]["address"] for each in here.listed(2)}


@every_path
@pytest.mark.parametrize("hairpin", ["internal", "external"])
def test_a_client_inside_uses_the_published_server_too(
    world: Callable[..., World], by: By, hairpin: str
) -> None:
    """Both ends are inside, hidden from each other, and both numbers are translated."""
    here = world(by, inside=3, publish=0, hairpin=hairpin)
    here.station(here.lab.inside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.router.address).call(7)
        for host in here.lab.inside[1:]
    )
    here.all_hear(calls)


@every_path
def test_plain_routing_changes_nothing(world: Callable[..., World], by: By) -> None:
    """Without NAT nobody is inside; the calls are seen, and the numbers are as they were."""
    here = world(by, inside=2, nat=False)
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.all_hear(calls)
    assert [7, 7] == [each.peer_id for each in calls[1::2]]


@every_path
@pytest.mark.parametrize("quirk", ["own", "peers", "peers-swapped"])
def test_a_disconnect_notify_is_understood_whichever_number_it_carries(
    world: Callable[..., World], by: By, quirk: Quirk
) -> None:
    """accel-ppp says the PNS's number, and used to say it with its octets swapped."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0], quirk=quirk, call_ids=itertools.count(0x7F00))
    server.listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    calls = here.up(each.call(0x1234) for each in connections)
    connections[0].clear(calls[0])
    here.until(lambda: calls[0].state == "gone", "the client understands that its call is over")

    assert [] == connections[0].unknown
    here.all_hear(calls[2:])
    (left,) = here.listed(1, "--state", "up")
    assert here.lab.inside[1].address == left["inside"]["address"]


@every_path
def test_plain_gre_passes_beside_calls(world: Callable[..., World], by: By) -> None:
    """Tunnels without call IDs are none of our business, before, during and after calls."""
    here = world(by, inside=2)
    server = here.station(here.lab.outside[0])
    server.listen()
    client, tunnel = (here.station(host) for host in here.lab.inside)
    there, back = PLAIN + b"there", PLAIN + b"back"

    def plain() -> None:
        tunnel.send_gre(here.lab.outside[0].address, there)
        here.until(lambda: server.strays != [], "plain GRE is there")
        server.send_gre(here.lab.router.address, back)
        here.until(lambda: tunnel.strays != [], "plain GRE is back")
        assert (server.strays.pop(), tunnel.strays.pop()) == (
            (here.lab.router.address, there),
            (here.lab.outside[0].address, back),
        )

    plain()
    connection = here.dial(client, here.lab.outside[0].address)
    calls = here.up([connection.call(7)])
    here.all_hear(calls)
    plain()
    here.all_hear(calls)
    connection.clear(calls[0])
    here.until(lambda: not calls[1].up, "the call is over")
    plain()


PLAIN = bytes.fromhex("00000800")  # version 0, no key; what follows is as good as an IP packet


@every_path
@pytest.mark.parametrize("firewall", [None, "established"])
def test_gre_for_no_call_reaches_nobody(
    world: Callable[..., World], by: By, firewall: str | None
) -> None:
    """Neither a number that was never given, nor one whose call has just ended."""
    here = world(by, inside=2, firewall=firewall)
    server = here.station(here.lab.outside[0])
    server.listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    calls = here.up(each.call(7) for each in connections)
    given = {each.peer_id for each in calls[1::2]}
    ended = calls[1].peer_id
    assert ended is not None
    connections[0].clear(calls[0])
    here.until(lambda: not calls[1].up, "the call is over")
    here.listed(1, "--state", "up")

    unused = next(number for number in range(1, 9) if number not in given)
    for number in (ended, unused, 7):
        server.send_gre(here.lab.router.address, encode_gre(Gre(number, b"for nobody", 0)))
    here.all_hear(calls[2:])  # also: by now the others have been dealt with
    assert [[], [], []] == [each.strays for each in here.stations.values()]


@every_path
def test_gre_carries_the_mark_of_its_control_connection(
    world: Callable[..., World], by: By
) -> None:
    """Policy routing and shaping by mark must hold for the data as for the control connection."""
    here = world(by, inside=2)
    marks = {here.lab.inside[0].address: 0x5, here.lab.inside[1].address: 0x6}
    for address, mark in marks.items():
        _rule(here, f"PREROUTING -s {address} -p tcp --dport 1723 -j CONNMARK --set-mark {mark}")
    for mark in marks.values():
        for chain in ("PREROUTING", "POSTROUTING"):
            _rule(here, f"{chain} -p gre -m {MARKED[by]} --mark {mark}/0xff")
    here.station(here.lab.outside[0]).listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    calls = here.up(each.call(7) for each in connections)
    here.all_hear(calls[:2], count=3)
    here.all_hear(calls[2:], count=4)

    assert [0x5, 0x6] == [each["mark"] & 0xFF for each in here.listed(2)]
    assert {0x5: 6, 0x6: 8} == _counts(here, "POSTROUTING")


#: Where the mark is found: of the kernel's connection, or of each packet.
MARKED: dict[By, str] = {"conntrack": "connmark", "bpf": "mark", "queue": "mark"}


def _rule(here: World, rule: str) -> None:
    here.lab.run(here.lab.router, ["iptables", "-t", "mangle", "-A", *rule.split()])


def _counts(here: World, chain: str) -> dict[int, int]:
    listing = here.lab.run(
        here.lab.router, ["iptables", "-t", "mangle", "-L", chain, "-v", "-x", "-n"]
    )
    rows = [line.split() for line in listing.stdout.splitlines() if "mark match" in line]
    return {int(row[-1].partition("/")[0], 16): int(row[0]) for row in rows}
