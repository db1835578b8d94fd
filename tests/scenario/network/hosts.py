"""The hosts on both sides of the router."""

from __future__ import annotations

from typing import NamedTuple

from pptp_nat.core.tuples import Address


class Host(NamedTuple):
    """A host, and the address that the world sees it as."""

    name: str
    address: Address
    seen_as: Address


def _host(name: str, address: str, seen_as: str = "") -> Host:
    own, seen = (bytes(map(int, text.split("."))) for text in (address, seen_as or address))
    return Host(name, own, seen)


EXTERNAL = bytes((203, 0, 113, 1))
ALICE = _host("Alice", "192.168.77.10", "203.0.113.1")
BOB = _host("Bob", "192.168.77.11", "203.0.113.1")
PAC = _host("PAC", "198.51.100.2")
OTHER_PAC = _host("the other PAC", "198.51.100.3")
DAVE = _host("Dave, a client outside", "198.51.100.44")
PUBLISHED = _host("the published PAC inside", "192.168.77.80", "203.0.113.1")
ROUTED = _host("a host that nobody hides", "192.0.2.33")
ROUTER = _host("the router itself", "203.0.113.1")
