"""The recipes for the firewall, run as they are printed, with clients that then call through."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from pptp_nat.lab.network import EXTERNAL, Lab, missing
from pptp_nat.lab.peers import Loop
from pptp_nat.lab.router import Daemon, daemon
from tests.deploy.clients import Clients

from .blocks import Block, of

pytestmark = pytest.mark.kernel
SECOND = "198.18.7.101"
#: the guide's names, and the laboratory's
NAMES = {
    "203.0.113.5": EXTERNAL,
    "203.0.113.6": SECOND,
    "192.0.2.9": "198.18.7.2",
    "192.168.1.": "192.168.77.",
    "br-lan": "lan",
    "eth0": "wan",
}


class Site(NamedTuple):
    """A laboratory whose router follows a recipe."""

    lab: Lab
    daemon: Daemon
    clients: Clients

    def calls_in(self) -> None:
        """Have the host outside call the external address, and somebody inside hear it."""
        caller = self.clients.stations[self.lab.outside[0].name]
        connection = caller.dial(EXTERNAL)
        assert self.clients.loop.run_until(lambda: connection.established)
        call = connection.call(7)
        assert self.clients.loop.run_until(lambda: call.up)
        other = self.clients.stations[self.lab.inside[0].name].named(call.label)
        assert self.clients.loop.run_until(lambda: other.up)
        self.clients.all_hear([call, other])


def masquerading(site: Site) -> None:
    site.clients.all_hear(site.clients.dial())


def server_inside(site: Site) -> None:
    site.clients.stations[site.lab.inside[0].name].listen()
    out = site.clients.dial()
    site.calls_in()
    site.clients.all_hear(out)


def several_addresses(site: Site) -> None:
    site.clients.all_hear(site.clients.dial())
    seen = {call["inside"]["address"]: call["external"]["address"] for call in site.daemon.calls()}
    first, second = (host.address for host in site.lab.inside)

    assert {first: EXTERNAL, second: SECOND} == seen


def shaping(site: Site) -> None:
    """Each client's five packets of GRE go through its own class, and nothing goes astray."""
    calls = site.clients.dial()
    before = sent_by_class(site)
    site.clients.all_hear(calls)
    after = sent_by_class(site)
    through = {each: after[each] - before[each] for each in after}

    # An acknowledgement of TCP may come late.
    assert all(5 <= through[each] <= 8 for each in ("1:10", "1:20")), through


def sent_by_class(site: Site) -> dict[str, int]:
    told = site.lab.run(site.lab.router, ["tc", "-s", "class", "show", "dev", "wan"]).stdout
    found = re.findall(r"class htb (1:\d+) .*?\n Sent \d+ bytes (\d+) pkt", told)
    return {name: int(packets) for name, packets in found}


#: by section: what must hold once its rules are in place
CHECKS: dict[str, Callable[[Site], None]] = {
    "Masquerading": masquerading,
    "A PPTP server inside": server_inside,
    "Several external addresses": several_addresses,
    "A DMZ host": server_inside,
    "Shaping by user": shaping,
}
RECIPES = of("recipes.md", "sh router")


def name(block: Block) -> str:
    return f"{block.section}-{'nftables' if 'nft -f' in block.text else 'iptables'}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    if why := missing(["iptables", "iptables-restore", "nft", "tc", "unshare"]):
        pytest.skip(why)
    with Lab(inside=2, nat=False) as lab:
        yield lab


def test_every_recipe_has_both_variants_and_a_check() -> None:
    assert sorted(f"{each}-{kind}" for each in CHECKS for kind in ("iptables", "nftables")) == (
        sorted(map(name, RECIPES))
    )


@pytest.mark.parametrize("block", RECIPES, ids=name)
def test_clients_with_one_call_id_call_through_the_recipe(block: Block, lab: Lab) -> None:
    script = block.text
    for theirs, ours in NAMES.items():
        script = script.replace(theirs, ours)
    done = lab.run(lab.router, ["bash", "-ec", script], check=False)
    if "Operation not supported" in done.stderr or "No such file" in done.stderr:
        pytest.skip(f"this kernel lacks what the recipe needs: {done.stderr.strip()}")
    assert (0, "") == (done.returncode, done.stderr)
    with daemon(lab) as running, contextlib.closing(Loop()) as loop:
        CHECKS[block.section](Site(lab, running, Clients(lab, loop)))
