"""An inside with two addresses, a router that masquerades, and a server; GRE by hand.

    CLIENT 10.9.0.2 --+-- lan  ROUTER  wan -- SERVER 203.0.113.9
    OTHER  10.9.0.3 --+   10.9.0.1  EXTERNAL 203.0.113.1

The router forwards what conntrack calls ESTABLISHED or RELATED, TCP and UDP: GRE
has no rule of its own.  The server has a route back to the inside, so a packet
that was not translated arrives too, and shows its address.

What has arrived is asked for with a sentinel: a UDP datagram sent after the
packets in question on the same way.  Once it is there, so are they, or never.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pptp_nat.core.tuples import Leg

PATIENCE = 10.0  # seconds until something that must come is given up
CLONE_NEWNET = 0x40000000
SENTINEL_PORT = 7777

CLIENT, OTHER, LAN = "10.9.0.2", "10.9.0.3", "10.9.0.1"
EXTERNAL, SECOND_EXTERNAL, SERVER = "203.0.113.1", "203.0.113.2", "203.0.113.9"

FIREWALL = f"""
*mangle
COMMIT
*raw
COMMIT
*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -p tcp -j ACCEPT
-A FORWARD -p udp --dport {SENTINEL_PORT} -j ACCEPT
COMMIT
"""

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Say what this machine lacks for these tests; "" when nothing."""
    if os.geteuid():
        return "needs root, to make network namespaces"
    absent = [c for c in ("ip", "iptables-restore", "conntrack") if shutil.which(c) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


def octets(address: str) -> bytes:
    return socket.inet_aton(address)


def run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=60, check=False,
        stdin=None if text is not None else subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


def leg(source: str, destination: str, key: int, *to: str | int) -> Leg:
    """Return the leg that turns the first three into *to*: source, destination and key."""
    new_source, new_destination, new_key = to
    return Leg(
        octets(source), octets(destination), key,
        octets(str(new_source)), octets(str(new_destination)), int(new_key),
    )  # fmt: skip


def inbound(mapped: int, real: int, client: str = CLIENT) -> Leg:
    """Return the leg from the server to an inside client."""
    return leg(SERVER, EXTERNAL, mapped, SERVER, client, real)


def outbound(number: int, client: str = CLIENT) -> Leg:
    """Return the leg from an inside client to the server; *number* is the server's."""
    return leg(client, SERVER, number, EXTERNAL, SERVER, number)


class Gre(NamedTuple):
    """One enhanced GRE packet; keys are call IDs."""

    source: str
    destination: str
    key: int
    payload: bytes = b"ppp"

    @property
    def header(self) -> bytes:
        """K and S, version 1 (RFC 2637 section 4.1)."""
        return struct.pack("!HHHHI", 0x3001, 0x880B, len(self.payload), self.key, 7)


def checksum(data: bytes) -> int:
    """RFC 1071, over any data; 0 for data that includes a right checksum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_header(
    source: str, destination: str, protocol: int, length: int, *, dont_fragment: bool = False
) -> bytes:
    """Return an IPv4 header with its checksum; *length* octets follow it."""
    start = struct.pack(
        "!BBHHHBB", 0x45, 0, 20 + length, 1, 0x4000 * dont_fragment, 64, protocol
    )
    addresses = octets(source) + octets(destination)
    return start + struct.pack("!H", checksum(start + addresses)) + addresses


class Host:
    """A network namespace, and sockets in it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._gre: socket.socket | None = None
        self._icmp: socket.socket | None = None
        self._sentinels: dict[str, socket.socket] = {}
        self._opened: list[socket.socket] = []

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the namespace with this thread, and with what it opens and starts."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            assert _libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert _libc.setns(home, CLONE_NEWNET) == 0
        finally:
            os.close(home)
            os.close(there)

    def run(self, *words: str, text: str | None = None) -> str:
        with self.entered():
            return run(*words, text=text)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket that is closed with the host at the latest."""
        with self.entered():
            opened = socket.socket(family, kind, protocol)
        opened.settimeout(PATIENCE)
        self._opened.append(opened)
        return opened

    def sysctl(self, name: str, value: str) -> None:
        with self.entered():
            Path("/proc/sys", *name.split(".")).write_text(value)

    def listen(self) -> None:
        """Receive GRE and ICMP from now on."""
        self._gre = self.socket(socket.AF_INET, socket.SOCK_RAW, 47)
        self._icmp = self.socket(socket.AF_INET, socket.SOCK_RAW, 1)

    def send(self, packet: Gre) -> None:
        """Send from one of the host's own addresses; too long a packet is fragmented."""
        sender = self.socket(socket.AF_INET, socket.SOCK_RAW, 47)
        sender.bind((packet.source, 0))
        # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)
        sender.sendto(packet.header + packet.payload, (packet.destination, 0))
        sender.close()

    def send_ip(self, packet: bytes) -> None:
        """Send a whole IPv4 packet as it is."""
        sender = self.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        sender.close()

    def _sentinel(self, address: str) -> socket.socket:
        if address not in self._sentinels:
            opened = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.bind((address, SENTINEL_PORT))
            self._sentinels[address] = opened
        return self._sentinels[address]

    def settle(self, address: str, sender: Host, sender_address: str) -> None:
        """Return when all that *sender* sent to *address* so far has come or never will."""
        receiving = self._sentinel(address)
        sending = sender._sentinel(sender_address)
        sending.sendto(b"sentinel", (address, SENTINEL_PORT))
        receiving.recv(64)

    def gre(self) -> list[Gre]:
        """Return the GRE packets that have arrived."""
        assert self._gre is not None
        arrived = []
        for packet in _drained(self._gre):
            header = (packet[0] & 15) * 4
            source, destination = map(socket.inet_ntoa, (packet[12:16], packet[16:20]))
            (key,) = struct.unpack_from("!H", packet, header + 6)
            arrived.append(Gre(source, destination, key, packet[header + 12 :]))
        return arrived

    def icmp(self) -> list[bytes]:
        """Return the ICMP messages that have arrived, whole packets."""
        assert self._icmp is not None
        return _drained(self._icmp)

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


def _drained(opened: socket.socket) -> list[bytes]:
    packets = []
    opened.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            packets.append(opened.recv(65535))
    return packets


class ConntrackLab:
    """The three namespaces while they last."""

    def __init__(self) -> None:
        prefix = f"ctlab{os.getpid()}"
        self.inside = Host(f"{prefix}-inside")
        self.router = Host(f"{prefix}-router")
        self.server = Host(f"{prefix}-server")
        self._hosts = (self.inside, self.router, self.server)
        try:
            for host in self._hosts:
                run("ip", "netns", "add", host.namespace)
                run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            self._cable(self.inside, "lan", LAN, CLIENT, OTHER)
            self._cable(self.server, "wan", EXTERNAL, SERVER)
            self.router.sysctl("net.ipv4.ip_forward", "1")
            self.router.sysctl("net.ipv4.conf.all.send_redirects", "0")
            self.router.sysctl("net.ipv4.conf.lan.send_redirects", "0")
            self.router.sysctl("net.netfilter.nf_conntrack_acct", "1")
            self.inside.listen()
            self.server.listen()
            self.reset()
        except BaseException:
            self.close()
            raise

    def _cable(self, host: Host, name: str, gateway: str, *addresses: str) -> None:
        router = self.router.namespace
        run("ip", "-n", router, "link", "add", name, "type", "veth",
            "peer", "name", "eth0", "netns", host.namespace)  # fmt: skip
        run("ip", "-n", router, "address", "add", f"{gateway}/24", "dev", name)
        run("ip", "-n", router, "link", "set", name, "up")
        for address in addresses:
            run("ip", "-n", host.namespace, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        run("ip", "-n", host.namespace, "route", "add", "default", "via", gateway)

    def reset(self) -> None:
        """Put rules and table back to what every test starts with."""
        self.router.run("iptables-restore", text=FIREWALL)
        self.router.run("conntrack", "-F")
        for host in (self.inside, self.server):  # what ICMP errors have taught them
            run("ip", "-n", host.namespace, "route", "flush", "cache")
        self.inside.gre(), self.inside.icmp(), self.server.gre(), self.server.icmp()

    def rule(self, *words: str) -> None:
        """Add a rule to the router."""
        self.router.run("iptables", *words)

    def matched(self, table: str, comment: str) -> int:
        """Return how many packets the rule with *comment* has matched."""
        for line in self.router.run("iptables-save", "-c", "-t", table).splitlines():
            if f"--comment {comment} " in f"{line} ":
                return int(line[1:].split(":")[0])
        raise AssertionError(f"no rule {comment}")

    def out(self, *packets: Gre) -> list[Gre]:
        """Send from the inside; return what the server gets."""
        for packet in packets:
            self.inside.send(packet)
        self.server.settle(SERVER, self.inside, CLIENT)
        return self.server.gre()

    def back(self, *packets: Gre) -> list[Gre]:
        """Send from the server; return what the inside gets."""
        for packet in packets:
            self.server.send(packet)
        self.inside.settle(CLIENT, self.server, SERVER)
        return self.inside.gre()

    def around(self, *packets: Gre) -> list[Gre]:
        """Send from the inside; return what comes back to the inside."""
        for packet in packets:
            self.inside.send(packet)
        self.server.settle(SERVER, self.inside, CLIENT)
        return self.inside.gre()

    def close(self) -> None:
        for host in self._hosts:
            host.close()
            subprocess.run(
                ("ip", "netns", "delete", host.namespace),
                stdin=subprocess.DEVNULL, capture_output=True, check=False,
            )  # fmt: skip


def ready(descriptor: int) -> bool:
    """Wait until *descriptor* can be read; False once patience is over."""
    return bool(select.select([descriptor], [], [], PATIENCE)[0])
