"""The laboratory router's addresses and what its own firewall says, before ours."""

from __future__ import annotations

from typing import Final

EXTERNAL: Final = "198.18.7.1"  # the router on the WAN; also how the world sees the LAN
LAN_ROUTER: Final = "192.168.77.1"
LAN: Final = "192.168.77.0/24"


def router_rules(
    *, nat: bool, firewall: str | None, published: str | None, hairpin: str | None
) -> str:
    """Return what `iptables-restore` is to load into the router."""
    table = ["*nat"]
    if published is not None:
        table += [
            f"-A PREROUTING -d {EXTERNAL} -p tcp --dport 1723 -j DNAT --to-destination {published}"
        ]
    if hairpin is not None:
        address = {"internal": LAN_ROUTER, "external": EXTERNAL}[hairpin]
        table += [f"-A POSTROUTING -s {LAN} -d {LAN} -o lan -j SNAT --to-source {address}"]
    if nat:
        table += ["-A POSTROUTING -o wan -j MASQUERADE"]
    table += ["COMMIT", "*filter"]
    if firewall is not None:
        table += [
            ":FORWARD DROP [0:0]",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -i lan -o wan -p tcp -m conntrack --ctstate NEW -j ACCEPT",
            "-A FORWARD -i lan -o wan -p udp -m conntrack --ctstate NEW -j ACCEPT",
            "-A FORWARD -p tcp -m conntrack --ctstate DNAT -j ACCEPT",
        ]
    return "\n".join([*table, "COMMIT", ""])
