"""Packets for the tests, built octet by octet and independently of `pptp_nat.core.packet`."""

from __future__ import annotations

import struct
from typing import NamedTuple

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10


def reference_checksum(octets: bytes) -> int:
    """RFC 1071, slow and plain: 16-bit words, carries folded in one by one."""
    total = 0
    for at in range(0, len(octets), 2):
        total += int.from_bytes(octets[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Tcp(NamedTuple):
    """What a test wants to know of a packet."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    payload: bytes


def ip_packet(
    source: bytes, destination: bytes, protocol: int, body: bytes, *, options: bytes = b"",
    fragment: int = 0,
) -> bytes:
    """Return an IPv4 packet; *options* fill up whole words, *fragment* is flags and offset."""
    assert len(options) % 4 == 0
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), 0, fragment,
        64, protocol, 0, source, destination,
    ) + options  # fmt: skip
    check = reference_checksum(header)
    return header[:10] + struct.pack("!H", check) + header[12:] + body


def tcp_packet(
    source: bytes, source_port: int, destination: bytes, destination_port: int, *,
    sequence: int, acknowledgement: int = 0, flags: int = ACK, payload: bytes = b"",
    ip_options: bytes = b"", tcp_options: bytes = b"", urgent: int = 0, reserved: int = 0,
) -> bytes:  # fmt: skip
    """Return a TCP segment in an IPv4 packet, both checksums right."""
    assert len(tcp_options) % 4 == 0
    segment = struct.pack(
        "!HHIIBBHHH", source_port, destination_port, sequence & 0xFFFFFFFF,
        acknowledgement & 0xFFFFFFFF, (5 + len(tcp_options) // 4) << 4 | reserved, flags, 8192, 0,
        urgent,
    ) + tcp_options + payload  # fmt: skip
    check = tcp_checksum(source, destination, segment)
    segment = segment[:16] + struct.pack("!H", check) + segment[18:]
    return ip_packet(source, destination, 6, segment, options=ip_options)


def tcp_checksum(source: bytes, destination: bytes, segment: bytes) -> int:
    """Return the checksum over pseudo header and *segment*: 0 if the one in it is right."""
    return reference_checksum(
        source + destination + struct.pack("!HH", 6, len(segment)) + segment
    )


def read(packet: bytes) -> Tcp:
    """Read a TCP packet and check both checksums, as the host that gets it does."""
    header = packet[: (packet[0] & 15) * 4]
    (total,) = struct.unpack_from("!H", packet, 2)
    segment = packet[len(header) : total]
    assert reference_checksum(header) == 0, "IP checksum"
    assert tcp_checksum(header[12:16], header[16:20], segment) == 0, "TCP checksum"
    sport, dport, sequence, acknowledgement, size, flags = struct.unpack_from("!HHIIBB", segment)
    return Tcp(
        header[12:16], header[16:20], sport, dport, sequence, acknowledgement, flags,
        segment[(size >> 4) * 4 :],
    )  # fmt: skip
