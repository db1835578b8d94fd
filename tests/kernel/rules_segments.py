"""TCP segments to be queued, or not: the same for both backends."""

from __future__ import annotations

import struct

from .rules_lab import ALICE, SERVER, checksum, octets, rewritten

SYN, ACK, PSH, FIN, RST = 0x02, 0x10, 0x08, 0x01, 0x04
OPENER = b"fast open"  #: what makes a SYN one that is queued


def segment(
    flags: int, *, words: int = 5, payload: bytes = b"", ip_words: int = 5,
    source_port: int = 4000, fragment: int = 0,
) -> bytes:  # fmt: skip
    """Return a TCP segment from alice to the server."""
    tcp = struct.pack("!HHIIBBHHH", source_port, 1723, 1, 1, words << 4, flags, 1000, 0, 0)
    tcp += b"\x01" * (4 * words - 20) + payload
    pseudo = struct.pack("!4s4sHH", octets(ALICE), octets(SERVER), 6, len(tcp))
    right = checksum(pseudo + tcp + bytes(len(tcp) % 2))
    tcp = tcp[:16] + right.to_bytes(2, "big") + tcp[18:]
    total = 4 * ip_words + len(tcp)
    ip = struct.pack("!BBHHHBBH4s4s", 0x40 | ip_words, 0, total, source_port, fragment, 64, 6, 0,
                     octets(ALICE), octets(SERVER))  # fmt: skip
    return ip + b"\x01" * (4 * ip_words - 20) + tcp


def sent_to(packet: bytes, destination: str) -> bytes:
    """Return the TCP segment to another address, both of its checksums made right.

    With a wrong one conntrack knows of no connection that it belongs to.
    """
    packet = rewritten(packet, destination=destination)
    header = 4 * (packet[0] & 15)
    tcp = packet[header : header + 16] + b"\0\0" + packet[header + 18 :]
    pseudo = packet[12:20] + struct.pack("!HH", 6, len(tcp))
    right = checksum(pseudo + tcp + bytes(len(tcp) % 2))
    return packet[:header] + tcp[:16] + right.to_bytes(2, "big") + tcp[18:]


# What is sent, and whether the daemon must see it.
SEGMENTS = [
    (segment(SYN, source_port=4001), False),
    (segment(SYN, words=10, source_port=4016), False),
    (segment(SYN, payload=OPENER, source_port=4017), True),
    (segment(SYN | FIN, source_port=4018), True),
    (segment(SYN | ACK, words=10, source_port=4002), False),
    (segment(ACK, source_port=4003), False),
    (segment(ACK | PSH, source_port=4004), False),
    (segment(ACK, payload=b"x", source_port=4005), True),
    (segment(FIN | ACK, source_port=4006), True),
    (segment(RST, source_port=4007), True),
    (segment(RST | ACK, source_port=4008), True),
    (segment(ACK, words=8, source_port=4009), False),
    (segment(ACK, words=15, source_port=4010), False),
    (segment(ACK, words=15, payload=b"abcd", source_port=4011), True),
    (segment(SYN | ACK, payload=OPENER, source_port=4012), True),
    (segment(0, source_port=4013), True),
    (segment(ACK, words=6, payload=b"abcd", source_port=4015), True),
]
OPTIONS_IN_IP = segment(ACK, ip_words=8, source_port=4014)


def source_ports(packets: list[bytes]) -> set[int]:
    return {int.from_bytes(p[4 * (p[0] & 15) :][:2], "big") for p in packets}
