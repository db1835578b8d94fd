"""Three network namespaces in a row: clients, router, servers.

    clients 10.0.1.2 ---- 10.0.1.1 router 10.2.0.254 ---- 10.2.0.1, .2 servers
    10.64.0.0/14 behind it                (external)

Every call has a client address of its own, out of 10.64.0.0/14, which the
router reaches through one next hop: no neighbour table grows with the calls.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.shell import BenchError, sh

PREFIX = "pnb"
BUILD_PREFIX = "pptp-nat-bench-"
CLIENTS = "10.64.0.0/14"
EXTERNAL = "10.2.0.254"
SERVERS = ("10.2.0.1", "10.2.0.2")  #: one a bank
FIRST_CLIENTS = ("10.64.0.0", "10.65.0.0")  #: one /16 a bank

# The TOS octet of the generator's packets.  Their last hop drops them after the
# tap has taken its copy: what a host's stack would do with stray GRE is not ours to time.
INGRESS_DROP = """
table netdev bench {{
    chain ingress {{
        type filter hook ingress device "{device}" priority 0;
        ip protocol 47 ip dscp cs1 drop
    }}
}}
"""

ROUTER_SETTINGS = {
    "net.ipv4.ip_forward": 1,
    "net.netfilter.nf_conntrack_gre_timeout": 36000,
    "net.netfilter.nf_conntrack_gre_timeout_stream": 36000,
    # Reset connections of calls that were cleared leave the table soon.
    "net.netfilter.nf_conntrack_tcp_timeout_close": 1,
}


class Side:
    """One end of the row: its namespace and device, and the device at the other end of the veth."""

    def __init__(self, end: tuple[str, str, str], neighbour: tuple[str, str, str]) -> None:
        self.namespace, self.device, self.hardware = end
        neighbour_namespace, self.peer_device, self.next_hop = neighbour
        self.path = f"/run/netns/{self.namespace}"
        self.peer_path = f"/run/netns/{neighbour_namespace}"


class Topology:
    """The namespaces of one path, made on construction; `close` removes them.

    Without a router the two ends are joined directly: what generator and
    receiver cost by themselves.
    """

    def __init__(self, name: str, *, with_router: bool) -> None:
        stem = f"{PREFIX}{os.getpid()}-{name}"
        self.router = f"{stem}-r" if with_router else None
        macs = [f"02:00:00:00:00:{n:02x}" for n in range(1, 5)]
        clients, servers = (f"{stem}-c", "lan", macs[0]), (f"{stem}-s", "wan", macs[3])
        lan = (f"{stem}-r", "lan", macs[1]) if with_router else servers
        wan = (f"{stem}-r", "wan", macs[2]) if with_router else clients
        self.clients, self.servers = Side(clients, lan), Side(servers, wan)
        self._made: list[str] = []
        try:
            self._build(macs)
        except BaseException:
            self.close()
            raise

    def _build(self, macs: list[str]) -> None:
        c, r, s = self.clients.namespace, self.router, self.servers.namespace
        for namespace in filter(None, (c, r, s)):
            sh("ip", "netns", "add", namespace)
            self._made.append(namespace)
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
            settings = {"net.ipv6.conf.all.disable_ipv6": 1}
            settings |= {"net.ipv6.conf.default.disable_ipv6": 1}
            settings |= ROUTER_SETTINGS if namespace == r else {"net.core.somaxconn": 4096}
            for key, value in settings.items():
                sh("sysctl", "-qw", f"{key}={value}", where=namespace)
        sh("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535", where=c)
        if r:
            _join(c, "lan", macs[0], r, "lan", macs[1])
            _join(r, "wan", macs[2], s, "wan", macs[3])
            sh("ip", "-n", r, "addr", "add", "10.0.1.1/24", "dev", "lan")
            sh("ip", "-n", r, "addr", "add", f"{EXTERNAL}/24", "dev", "wan")
            sh("ip", "-n", r, "route", "add", CLIENTS, "via", "10.0.1.2")
            _neighbour(r, "10.0.1.2", macs[0], "lan")
            for server in SERVERS:
                _neighbour(r, server, macs[3], "wan")
        else:
            _join(c, "lan", macs[0], s, "wan", macs[3])
        sh("ip", "-n", c, "addr", "add", "10.0.1.2/24", "dev", "lan")
        sh("ip", "-n", c, "route", "add", "default", "via", "10.0.1.1")
        sh("ip", "-n", c, "route", "add", "local", CLIENTS, "dev", "lo", "table", "local")
        _neighbour(c, "10.0.1.1", self.clients.next_hop, "lan")
        for server in SERVERS:
            sh("ip", "-n", s, "addr", "add", f"{server}/24", "dev", "wan")
        sh("ip", "-n", s, "route", "add", CLIENTS, "via", EXTERNAL)
        _neighbour(s, EXTERNAL, self.servers.next_hop, "wan")
        for side in (self.clients, self.servers):
            drop = INGRESS_DROP.format(device=side.device)
            sh("nft", "-f", "-", where=side.namespace, given=drop)

    def close(self) -> None:
        """Remove the namespaces and with them every device, rule and connection."""
        while self._made:
            with contextlib.suppress(BenchError):
                sh("ip", "netns", "del", self._made.pop())


def _join(a: str, device_a: str, mac_a: str, b: str, device_b: str, mac_b: str) -> None:
    peer = ["peer", "name", device_b, "address", mac_b, "netns", b]
    sh("ip", "-n", a, "link", "add", device_a, "address", mac_a, "type", "veth", *peer)
    sh("ip", "-n", a, "link", "set", device_a, "up")
    sh("ip", "-n", b, "link", "set", device_b, "up")


def _neighbour(namespace: str, address: str, mac: str, device: str) -> None:
    words = ["neigh", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent"]
    sh("ip", "-n", namespace, *words)


def remove_leftovers() -> None:
    """Remove namespaces and files of runs whose process is gone: they were killed outright."""
    for directory in Path(tempfile.gettempdir()).glob(f"{BUILD_PREFIX}*"):
        owner = directory.name.removeprefix(BUILD_PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(directory, ignore_errors=True)
    for entry in Path("/run/netns").glob(f"{PREFIX}[0-9]*-*"):
        owner = entry.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            sh("ip", "netns", "del", entry.name)
