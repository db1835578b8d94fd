"""Programs that people use, through the router: pptp-linux against Debian's pptpd.

Their authors had no part in ours, and they are strict about what they receive.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pptp_nat.errors import UsageError
from pptp_nat.lab.real_peers import Client, absent, converse, start_server
from tests.paths import at_length, every_path

from .conftest import By, World

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.peers,
    pytest.mark.skipif(absent() is not None, reason=absent() or "all there"),
]


def _clients(world: World, server: str, *, call_id: int | None) -> list[Client]:
    return [
        Client(world.lab, host, server, world.loop, call_id=call_id) for host in world.lab.inside
    ]


@every_path
@pytest.mark.parametrize("call_id", [None, 0x1234], ids=["own call IDs", "one call ID"])
@pytest.mark.parametrize("clients", [2, 20])
def test_each_client_receives_only_its_own_data(
    world: Callable[..., World], by: By, clients: int, call_id: int | None
) -> None:
    """The promise of the project, with peers that know nothing of it."""
    here = world(by, inside=clients)
    start_server(here.lab, here.lab.outside[0])
    dialled = _clients(here, here.lab.outside[0].address, call_id=call_id)
    report = converse(here.loop, dialled)
    listed = here.listed(clients, "--state", "up")

    assert report.good, report
    assert clients == len({call["external"]["call_id"] for call in listed})
    assert call_id is None or {call["inside"]["call_id"] for call in listed} == {call_id}


@at_length
def test_clients_may_come_and_go_quickly_beside_one_that_stays(
    world: Callable[..., World], by: By
) -> None:
    """Routers are known to fail at "consecutive connections in rapid succession"."""
    here = world(by, inside=4)
    start_server(here.lab, here.lab.outside[0])
    stays, *others = _clients(here, here.lab.outside[0].address, call_id=7)
    reports = [converse(here.loop, [stays])]
    for client in others * 2:
        reports.append(converse(here.loop, [client], frames=2))
        client.hang_up()
    reports.append(converse(here.loop, [stays]))

    assert [] == [str(each) for each in reports if not each.good]
    assert [here.lab.inside[0].address] == [
        call["inside"]["address"] for call in here.listed(1, "--state", "up")
    ]


@every_path
@pytest.mark.parametrize("firewall", [None, "established"])
def test_a_firewall_that_accepts_what_is_established_needs_no_change(
    world: Callable[..., World], by: By, firewall: str | None
) -> None:
    """So are routers set up; GRE must count as part of what the LAN began."""
    here = world(by, inside=3, firewall=firewall)
    start_server(here.lab, here.lab.outside[0])
    report = converse(here.loop, _clients(here, here.lab.outside[0].address, call_id=1))

    assert report.good, report


@every_path
@pytest.mark.parametrize("firewall", [None, "established"])
def test_a_published_server_serves_clients_outside(
    world: Callable[..., World], by: By, firewall: str | None
) -> None:
    """With a port forward it is the server that is inside; nothing says so but conntrack."""
    here = world(by, inside=2, outside=4, publish=0, firewall=firewall)
    start_server(here.lab, here.lab.inside[0])
    dialled = [
        Client(here.lab, host, here.lab.router.address, here.loop, call_id=9)
        for host in here.lab.outside
    ]
    report = converse(here.loop, dialled)

    assert report.good, report
    assert {here.lab.inside[0].address} == {call["inside"]["address"] for call in here.listed(4)}


def test_the_kernels_own_helper_satisfies_this_harness(world: Callable[..., World]) -> None:
    """Two clients with one number each way are what it can do: the harness is not ours alone."""
    try:
        here = world("kernel helper", inside=2)
    except UsageError as error:
        pytest.skip(f"this kernel has no helper to compare with: {error}")
    start_server(here.lab, here.lab.outside[0])
    report = converse(here.loop, _clients(here, here.lab.outside[0].address, call_id=5))

    assert report.good, report


@pytest.mark.parametrize("call_id", [None, 5], ids=["own call IDs", "one call ID"])
def test_with_nothing_in_the_router_this_harness_sees_that_it_fails(
    world: Callable[..., World], call_id: int | None
) -> None:
    """A harness that cannot fail would prove nothing."""
    here = world("nothing", inside=2)
    start_server(here.lab, here.lab.outside[0])
    report = converse(
        here.loop,
        _clients(here, here.lab.outside[0].address, call_id=call_id),
        seconds=3,
    )

    assert not report.good, report
