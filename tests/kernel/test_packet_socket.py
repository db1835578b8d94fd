"""What the monitor's sockets read, and what never gets as far as them."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pptp_nat.analysis.evidence_file import EvidenceFile, cooked
from pptp_nat.errors import UsageError
from pptp_nat.lab import namespaces
from pptp_nat.linux.packet_socket import PacketSocket, drop_privileges
from tests.core.wire import ip_packet, tcp_packet

pytestmark = pytest.mark.kernel
OUTGOING = 4
NAME = f"pptp-nat-socket-{os.getpid()}"
A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
MAC = bytes.fromhex("020000000001020000000002")
GRE = struct.pack("!HHHHI", 0x3001, 0x880B, 4, 7, 1) + b"\xff\x03\xc0\x21"


def tcp(source: int, destination: int) -> bytes:
    return tcp_packet(A, source, B, destination, sequence=1, payload=b"octets")


def icmp(kind: int, inner: bytes) -> bytes:
    return ip_packet(A, B, 1, struct.pack("!BBHI", kind, 1, 0, 0) + inner)


def ethernet(packet: bytes, kind: int = 0x0800) -> bytes:
    return MAC + struct.pack("!H", kind) + packet


READ = {
    "to the port": ethernet(tcp(40000, 1723)),
    "from the port": ethernet(tcp(1723, 40000)),
    "with IP options": ethernet(
        ip_packet(A, B, 6, tcp(40000, 1723)[20:], options=b"\x94\x04\0\0")
    ),
    "another port of ours": ethernet(tcp(40000, 4723)),
    "GRE": ethernet(ip_packet(A, B, 47, GRE)),
    "first fragment of GRE": ethernet(ip_packet(A, B, 47, GRE, fragment=0x2000)),
    "later fragment of GRE": ethernet(ip_packet(A, B, 47, bytes(64), fragment=0x2064)),
    "tagged GRE": ethernet(b"\x00\x07\x08\x00" + ip_packet(A, B, 47, GRE), 0x8100),
    "ICMP about GRE": ethernet(icmp(3, ip_packet(A, B, 47, GRE))),
    "ICMP about the port": ethernet(icmp(11, tcp(40000, 1723))),
}
NOT_READ = {
    "another port": ethernet(tcp(40000, 80)),
    "UDP on the port": ethernet(ip_packet(A, B, 17, struct.pack("!HHHH", 1, 1723, 8, 0))),
    "later fragment of TCP": ethernet(
        ip_packet(A, B, 6, struct.pack("!HH", 1723, 1723), fragment=99)
    ),
    "ping": ethernet(icmp(8, tcp(40000, 1723))),
    "ICMP about UDP": ethernet(icmp(3, ip_packet(A, B, 17, bytes(8)))),
    "IPv6": ethernet(b"\x60" + bytes(5) + b"\x2f" + bytes(40), 0x86DD),
    "ARP": ethernet(bytes(28), 0x0806),
    "cut short": ethernet(ip_packet(A, B, 6, b"\x06")),
}  # fmt: skip


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    """Make a namespace with one cable in it, both ends up."""
    namespaces.create(NAME)
    try:
        with namespaces.entered(NAME):
            for argv in (
                "ip link add one type veth peer name other",
                "ip link set one up", "ip link set other up",
            ):  # fmt: skip
                subprocess.run(argv.split(), check=True)
        yield
    finally:
        namespaces.remove(NAME)


def seen(interface: str | None, frames: list[bytes]) -> list[tuple[int, int, bytes]]:
    """Send *frames* into one end; return what a socket at the other reads: where from, and what."""
    with namespaces.entered(NAME):
        reader = PacketSocket(interface, (1723, 4723))
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.bind(("one", 0))
        for frame in [*frames, ethernet(tcp(9999, 1723))]:
            sender.send(frame)
    found: list[tuple[int, int, bytes]] = []
    until = time.monotonic() + 20
    with namespaces.entered(NAME):  # names of interfaces are the namespace's
        while time.monotonic() < until:
            found += [(each.direction, each.protocol, each.octets) for each in reader.read(100)]
            if any(octets[20:22] == b"\x27\x0f" and d != OUTGOING for d, _, octets in found):
                break
            time.sleep(0.01)
    reader.close()
    return found[:-1]


@pytest.mark.parametrize("name", READ)
def test_what_is_of_interest_is_read(cable: None, name: str) -> None:
    found = seen("other", [READ[name]])

    assert len(found) == 1
    assert found[0][2].endswith(READ[name][18 if name == "tagged GRE" else 14 :])


@pytest.mark.parametrize("name", NOT_READ)
def test_nothing_else_is_read(cable: None, name: str) -> None:
    assert seen("other", [NOT_READ[name]]) == []


def test_all_interfaces_at_once_are_read(cable: None) -> None:
    """At the one end it goes out, at the other it comes in."""
    found = seen(None, [READ["GRE"]])

    directions = [direction for direction, _, octets in found if octets[9] == 47]
    assert len(directions) == 2
    assert OUTGOING in directions


def test_an_interface_that_is_not_there_is_named(cable: None) -> None:
    with namespaces.entered(NAME), pytest.raises(UsageError, match="no interface nosuch"):
        PacketSocket("nosuch", (1723,))


def test_who_is_nobody_may_not_come_back() -> None:
    child = os.fork()
    if child == 0:
        drop_privileges("nobody")
        try:
            os.setuid(0)
        except PermissionError:
            os._exit(0 if os.getgroups() == [] and os.getgid() != 0 else 2)
        os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(UsageError, match="no user nosuchuser"):
        drop_privileges("nosuchuser")


def test_evidence_is_bounded_and_the_latest_is_kept(tmp_path: Path) -> None:
    kept = EvidenceFile(tmp_path / "kept.pcapng", 20_000)
    frame = cooked(ip_packet(A, B, 47, GRE), 2, 0x0800, 0, 1, MAC[:6])
    for number in range(1000):
        kept.write(1_700_000_000 + number / 1000, frame, len(frame))
        kept.flush()
    kept.close()
    read = [each.read_bytes() for each in kept.paths]

    assert sum(map(len, read)) <= 20_000
    assert [each.name for each in kept.paths] == ["kept.pcapng", "kept-2.pcapng"]
    newest = struct.pack("=I", round(1_700_000_000.999 * 1e9) & 0xFFFFFFFF)
    assert any(newest in octets for octets in read)
