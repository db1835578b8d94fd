"""External addresses that change, and interfaces that vanish and come back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.paths import every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel


def _ip(here: World, *words: str) -> None:
    here.lab.run(here.lab.router, ["ip", *words])


@every_path
def test_an_address_that_is_replaced_ends_what_depended_on_it_at_once(
    world: Callable[..., World], by: By
) -> None:
    """A new lease, a redial: the server will never reach the old one again."""
    here = world(by, inside=2)
    here.station(here.lab.outside[0]).listen()
    clients = [here.station(host) for host in here.lab.inside]
    here.up(here.dial(each, here.lab.outside[0].address).call(7) for each in clients)
    _ip(here, "address", "del", f"{here.lab.router.address}/24", "dev", "wan")
    _ip(here, "address", "add", "198.18.7.100/24", "dev", "wan")
    here.listed(0)
    here.until_no_entry_is_left()
    assert here.daemon is not None
    assert 2 == here.daemon.log.count('cause="external address is gone"')

    calls = here.up([here.dial(clients[0], here.lab.outside[0].address).call(8)])
    here.all_hear_their_own(calls)
    assert "198.18.7.100" == here.listed(1)[0]["external"]["address"]


@every_path
def test_an_interface_that_comes_back_as_it_was_costs_no_call(
    world: Callable[..., World], by: By
) -> None:
    here = world(by, inside=2)
    here.station(here.lab.outside[0]).listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    calls = here.up(each.call(7) for each in connections)
    _ip(here, "address", "del", f"{here.lab.router.address}/24", "dev", "wan")
    time.sleep(0.3)
    _ip(here, "address", "add", f"{here.lab.router.address}/24", "dev", "wan")
    here.all_hear(calls)
    calls += here.up([connections[0].call(8)])
    here.all_hear(calls)
    here.listed(3, "--state", "up")
