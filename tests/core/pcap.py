"""Captures as (seconds, IPv4 packet) pairs: classic pcap of Ethernet frames, nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "captures"
_ETHERNET = 14  # octets before the IP header


def packets(name: str) -> Iterator[tuple[float, bytes]]:
    """Yield the IPv4 packets of a capture in `FOLDER`."""
    octets = (FOLDER / f"{name}.pcap").read_bytes()
    order = "<" if octets[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    at = 24
    while at < len(octets):
        seconds, micros, captured, _ = struct.unpack_from(order + "IIII", octets, at)
        frame = octets[at + 16 : at + 16 + captured]
        at += 16 + captured
        if frame[12:14] == b"\x08\x00":
            yield seconds + micros / 1e6, frame[_ETHERNET:]
