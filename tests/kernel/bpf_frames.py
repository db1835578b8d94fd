"""The BPF programs with maps that are filled by hand, and packets to run them on."""

from __future__ import annotations

import socket
import struct
from typing import Any

from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import GRE_PPTP
from scapy.packet import Raw

from pptp_nat.core.tuples import Leg
from pptp_nat.linux import bpf_maps
from pptp_nat.linux.bpf_object import Ran
from pptp_nat.linux.bpf_path import Forwarding, opened

BIT = 0x40000000
SLOTS = 256
CLIENT, ROUTER, SERVER, ON_THE_WAY = "10.0.0.2", "198.51.100.1", "192.0.2.1", "203.0.113.9"


def octets(address: str) -> bytes:
    return socket.inet_aton(address)


INWARD = Leg(octets(SERVER), octets(ROUTER), 4711, octets(SERVER), octets(CLIENT), 7)
OUTWARD = Leg(octets(CLIENT), octets(SERVER), 100, octets(ROUTER), octets(SERVER), 100)


class Programs:
    """The programs and maps, filled by hand."""

    def __init__(self, forwarding: Forwarding = "stack") -> None:
        self.object = opened(SLOTS, BIT, forwarding)
        self.counts = bpf_maps.Counts(self.object.map_fd("counts"), SLOTS)
        self.told = bpf_maps.mapped(self.object.map_fd("tellings"), 64)

    def put(self, leg: Leg, mark: int = 0) -> int:
        slot = self.counts.take()
        assert slot is not None
        made = bpf_maps.rows(leg, mark, slot)
        for row in made.legs:
            assert 0 == self.object.update(self.object.map_fd("legs"), *row)
        if made.origin is not None:
            assert 0 == self.object.update(self.object.map_fd("origins"), *made.origin)
        return slot

    def take_out(self, leg: Leg, slot: int) -> None:
        made = bpf_maps.rows(leg, 0, slot)
        for row in made.legs:
            self.object.delete(self.object.map_fd("legs"), row.key)
        if made.origin is not None:
            self.object.delete(self.object.map_fd("origins"), made.origin.key)
        self.counts.give_back(slot)

    def run(self, name: str, packet: bytes, **how: Any) -> Ran:
        """Run a program on an IP packet; the frame that is returned has no Ethernet header."""
        ran = self.object.test_run(f"ether_{name}", bytes(12) + b"\x08\x00" + packet, **how)
        assert -1 == ran.verdict, "whatever it is, the next program and the stack see it"
        return ran._replace(frame=ran.frame[14:])

    def close(self) -> None:
        self.counts.close()
        self.told.close()
        self.object.close()


class Queue:
    """Stands in for a queue; keeps what the judge of the data path `queue` makes of a packet."""

    def __init__(self) -> None:
        self.made: bytes | None = None

    def let_pass(self, packet: Any, changed: bytes | None = None) -> None:
        self.made = packet.octets if changed is None else changed

    def repeat(self, _packet: Any, changed: bytes) -> None:
        self.made = changed

    def accept(self, packet: Any) -> None:
        self.made = packet.octets

    def drop(self, packet: Any) -> None:
        self.made = packet.octets


addresses = st.binary(min_size=4, max_size=4)
numbers = st.integers(0, 0xFFFF)


@st.composite
def legs(draw: st.DrawFn) -> Leg:
    """One direction of a call: to an inside host, to an outside one, hairpin or plain routing."""
    source, destination, key = draw(addresses), draw(addresses), draw(numbers)
    new_source, new_destination = draw(st.sampled_from([
        (source, destination), (source, draw(addresses)), (draw(addresses), destination),
        (draw(addresses), draw(addresses)),
    ]))  # fmt: skip
    is_same = (new_source, new_destination) == (source, destination)
    return Leg(
        source, destination, key, new_source, new_destination, key if is_same else draw(numbers)
    )


@st.composite
def packets(draw: st.DrawFn, leg: Leg) -> bytes:
    """GRE that is the leg's, or nearly, with any IP header and any flags."""
    ip = IP(
        src=socket.inet_ntoa(leg.source), dst=socket.inet_ntoa(leg.destination), proto=47,
        tos=draw(st.integers(0, 255)), id=draw(numbers), ttl=draw(st.integers(1, 255)),
        flags=draw(st.sampled_from(["", "DF"])),
        options=[b"", b"\x01" * 4, b"\x44\x0c\x05" + bytes(9)][draw(st.sampled_from([0, 0, 1, 2]))],
    )  # fmt: skip
    flags, version = draw(st.sampled_from([
        (0x20, 0x01), (0x30, 0x01), (0x20, 0x81), (0x30, 0x81), (0x30, 0x81), (0x20, 0x01),
        (0x30, 0x00), (0xA0, 0x01), (0x20, 0x02), (0x10, 0x01), (0x21, 0x01), (0x20, 0x41),
    ]))  # fmt: skip
    key = draw(st.sampled_from([leg.key, leg.key, leg.key, leg.key ^ 1]))
    protocol = draw(st.sampled_from([0x880B, 0x880B, 0x880B, 0x0800]))
    rest = draw(st.binary(max_size=60))
    gre = struct.pack("!BBHHH", flags, version, protocol, draw(numbers), key) + rest
    return bytes(ip / Raw(gre))


def with_fresh_sum(packet: bytes) -> bytes:
    """Return *packet* with the IP checksum that scapy computes."""
    ip = IP(packet)
    del ip.chksum
    return bytes(ip)[: ip.ihl * 4] + packet[ip.ihl * 4 :]


def gre(source: str, destination: str, key: int, *, seq: int | None = None, **ip: Any) -> bytes:
    layer = GRE_PPTP(call_id=key, payload_len=40)
    if seq is not None:
        layer = GRE_PPTP(call_id=key, payload_len=40, seqnum_present=1, sequence_number=seq)
    return bytes(IP(src=source, dst=destination, proto=47, **ip) / layer / Raw(bytes(40)))
