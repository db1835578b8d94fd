r"""Two inside hosts, a router with MASQUERADE and FORWARD DROP, and a server; a listener to queues.

    alice 10.71.1.2 ---- 10.71.1.1 \
                                    router  198.51.100.1 ---- 198.51.100.2 server
    bob   10.71.2.2 ---- 10.71.2.1 /

The router's firewall is what the rules of this project have to live with: it
forwards only what conntrack calls ESTABLISHED, and control connections.
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
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import netfilterqueue
import pytest

from pptp_nat.linux import ruleset, ruleset_nftables

VARIANTS = ("iptables-nft", "iptables-legacy")
ALICE, BOB = "10.71.1.2", "10.71.2.2"
EXTERNAL, SERVER = "198.51.100.1", "198.51.100.2"
ELSEWHERE = "203.0.113.9"  # routed to the router, but not an address of its own
MARK = 0x40000000
PRE_ROUTING, POST_ROUTING = 0, 4
PATIENCE = 10.0  # seconds until something that must come is given up
CLONE_NEWNET = 0x40000000

FIREWALL = """
*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp --dport 1723 -j ACCEPT
-A FORWARD -p tcp --dport 1799 -j ACCEPT
-A FORWARD -p udp -j ACCEPT
-A FORWARD -p gre -j ACCEPT
COMMIT
"""

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Say what this machine lacks for these tests; "" when nothing."""
    if os.geteuid():
        return "needs root"
    absent = [c for c in ("ip", "iptables", "nft", "conntrack") if shutil.which(c) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


def command(*words: str, text: str | None = None, check: bool = True) -> str:
    ran = subprocess.run(
        words, input=text, capture_output=True, text=True, check=False, timeout=60,
        stdin=None if text is not None else subprocess.DEVNULL,
    )  # fmt: skip
    assert not (check and ran.returncode), f"{words}: {ran.stderr}"
    return ran.stdout


def iptables(words: str) -> None:
    """Change the rules of the namespace that this thread is in."""
    command("iptables", "-w", *words.split())


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in *namespace* with this thread, and with the commands and sockets that it makes."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        assert _libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)
        os.close(there)


def octets(address: str) -> bytes:
    return socket.inet_aton(address)


def checksum(header: bytes) -> int:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def rewritten(packet: bytes, *, source: str = "", destination: str = "", key: int = -1) -> bytes:
    """Return the IPv4 packet with what is given changed and the header's checksum made right."""
    changed = bytearray(packet)
    if source:
        changed[12:16] = octets(source)
    if destination:
        changed[16:20] = octets(destination)
    header = 4 * (changed[0] & 15)
    if key >= 0:
        changed[header + 6 : header + 8] = key.to_bytes(2, "big")
    changed[10:12] = b"\0\0"
    changed[10:12] = checksum(bytes(changed[:header])).to_bytes(2, "big")
    return bytes(changed)


def enhanced(key: int, payload: bytes = b"ppp!") -> bytes:
    """Return a GRE packet of a call: K and S, version 1, protocol 0x880B."""
    return struct.pack("!HHHHI", 0x3001, 0x880B, len(payload), key, 7) + payload


PLAIN = struct.pack("!HH", 0, 0x0800) + b"not ppp"


class RulesLab:
    """The namespaces.  ``router`` and the others are their names."""

    def __init__(self) -> None:
        prefix = f"rules{os.getpid()}"
        self.alice, self.bob = f"{prefix}-alice", f"{prefix}-bob"
        self.router, self.server = f"{prefix}-router", f"{prefix}-server"
        self._names = (self.alice, self.bob, self.router, self.server)
        try:
            for name in self._names:
                command("ip", "netns", "add", name)
                command("ip", "-n", name, "link", "set", "lo", "up")
            self._wire(self.alice, ALICE, "lan1", "10.71.1.1")
            self._wire(self.bob, BOB, "lan2", "10.71.2.1")
            self._wire(self.server, SERVER, "wan", EXTERNAL)
            with inside(self.router):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            self.firewall("iptables")
        except BaseException:
            self.close()
            raise

    def _wire(self, host: str, address: str, port: str, gateway: str) -> None:
        command("ip", "-n", host, "link", "add", "eth0", "type", "veth",
                "peer", "name", port, "netns", self.router)  # fmt: skip
        command("ip", "-n", host, "address", "add", f"{address}/24", "dev", "eth0")
        command("ip", "-n", self.router, "address", "add", f"{gateway}/24", "dev", port)
        command("ip", "-n", self.router, "link", "set", port, "up")
        command("ip", "-n", host, "link", "set", "eth0", "up")
        command("ip", "-n", host, "route", "add", "default", "via", gateway)

    def firewall(self, iptables: str) -> None:
        """Give the router its firewall, and nothing else."""
        with inside(self.router):
            command("nft", "flush", "ruleset")
            legacy = Path("/proc/self/net/ip_tables_names").read_text().split()
            for table in legacy:
                command("iptables-legacy", "-t", table, "-F")
                command("iptables-legacy", "-t", table, "-X")
            if "filter" in legacy:
                command("iptables-legacy", "-P", "FORWARD", "ACCEPT")
            command(f"{iptables}-restore", "-w", text=FIREWALL)

    def forget_flows(self) -> None:
        with inside(self.router):
            command("conntrack", "-F")

    def socket(self, host: str, *kind: int) -> socket.socket:
        with inside(host):
            made = socket.socket(socket.AF_INET, *kind)
        made.settimeout(PATIENCE)
        return made

    def gre(self, host: str) -> Gre:
        return Gre(self.socket(host, socket.SOCK_RAW, socket.IPPROTO_GRE))

    def close(self) -> None:
        for name in self._names:
            command("ip", "netns", "delete", name, check=False)


class Gre:
    """A host's raw socket for protocol 47."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    def send(self, destination: str, packet: bytes) -> None:
        self._raw.sendto(packet, (destination, 0))

    def receive(self) -> tuple[str, bytes]:
        """Return the next packet's source and what follows its IP header."""
        packet = self._raw.recv(65535)
        return socket.inet_ntoa(packet[12:16]), packet[4 * (packet[0] & 15) :]

    def close(self) -> None:
        self._raw.close()


class Listener:
    """Hands the packets of a queue to a judge, in a thread of its own, and remembers them."""

    def __init__(
        self, lab: RulesLab, queue: int, judge: Callable[[netfilterqueue.Packet], None]
    ) -> None:
        self.seen: list[bytes] = []
        self._judged = threading.Condition()
        self._count = 0
        self._judge = judge
        with inside(lab.router):
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(queue, self._one)
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _one(self, packet: netfilterqueue.Packet) -> None:
        self.seen.append(packet.get_payload())  # first: who gets the packet may look here
        self._judge(packet)
        with self._judged:
            self._count += 1
            self._judged.notify_all()

    def wait(self, count: int) -> None:
        """Return once *count* packets are judged."""
        self.wait_for(lambda: self._count >= count)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return once *condition* holds after a packet."""
        with self._judged:
            assert self._judged.wait_for(condition, PATIENCE)

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._queue.get_fd(), self._stop_reader], [], [])
            if self._stop_reader in ready:
                return
            self._queue.run(block=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.write(self._stop_writer, b"!")
        self._thread.join()
        self._queue.unbind()
        os.close(self._stop_reader)
        os.close(self._stop_writer)


def again(packet: netfilterqueue.Packet, changed: bytes | None = None) -> None:
    """Give the verdict that the daemon gives: the repeat mark, and through the chain again."""
    if changed is not None:
        packet.set_payload(changed)
    packet.set_mark(packet.get_mark() | MARK)
    packet.repeat()


def marker(lab: RulesLab, sender: str = "", address: str = SERVER) -> None:
    """Send a datagram to the server and wait for it: what went before it has arrived or never."""
    with lab.socket(lab.server, socket.SOCK_DGRAM) as there:
        there.bind(("0.0.0.0", 0))
        with lab.socket(sender or lab.alice, socket.SOCK_DGRAM) as here:
            here.sendto(b"marker", (address, there.getsockname()[1]))
        arrived = there.recv(100)
        assert arrived == b"marker"


def install_call(key: int, client_key: int) -> None:
    """Give conntrack the inbound half of a call of alice's, as the daemon does."""
    command(
        "conntrack", "-I", "-p", "gre", "-s", SERVER, "-d", EXTERNAL,
        "--srckey", "0", "--dstkey", str(key), "-r", EXTERNAL, "-q", SERVER,
        "--reply-key-src", str(client_key), "--reply-key-dst", str(key), "-g", ALICE,
        "-t", "1000", "-u", "ASSURED,SEEN_REPLY,FIXED_TIMEOUT",
    )  # fmt: skip


def flows() -> list[str]:
    return command("conntrack", "-L").splitlines()


# --- fixtures, to be wrapped where they are used -----------------------------------------------


def network() -> Iterator[RulesLab]:
    """Yield the namespaces; a fixture for a module."""
    if absent := missing():
        pytest.skip(absent)
    made = RulesLab()
    yield made
    made.close()


def router(
    network: RulesLab, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[RulesLab]:  # fmt: skip
    """Yield the router with its own firewall only, and this thread in it."""
    variant = getattr(request, "param", VARIANTS[0])
    binary = shutil.which(variant)
    if binary is None:
        pytest.skip(f"{variant} not installed")
    for name in ("iptables", "iptables-save", "iptables-restore"):
        (tmp_path / name).symlink_to(Path(binary).resolve())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with inside(network.router):
        ruleset.remove()
    network.firewall("iptables")
    network.forget_flows()
    with inside(network.router):
        yield network


def ends(lab: RulesLab) -> Iterator[tuple[Gre, Gre, Gre]]:
    """Yield the GRE sockets of alice, bob and the server."""
    made = lab.gre(lab.alice), lab.gre(lab.bob), lab.gre(lab.server)
    yield made
    for one in made:
        one.close()


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop and count where a packet would be queued: not every kernel has nft's queue."""
    monkeypatch.setattr(ruleset_nftables, "queue_verdict", lambda _: ("counter drop", "drop"))
