"""Captures written in every form that we claim to read; small and apart from the reader."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

Packets = Iterable[tuple[float, bytes]]  #: seconds, IPv4 packet
ETHERNET = bytes(range(12))


def ethernet(packet: bytes) -> bytes:
    return ETHERNET + b"\x08\x00" + packet


def padded(packet: bytes) -> bytes:
    """Ethernet's shortest frame has 60 octets without its check sequence."""
    return ethernet(packet).ljust(60, b"\xaa")


def vlan(packet: bytes) -> bytes:
    return ETHERNET + b"\x81\x00\x20\x07\x08\x00" + packet


def qinq(packet: bytes) -> bytes:
    return ETHERNET + b"\x88\xa8\x00\x64\x81\x00\x00\x07\x08\x00" + packet


def pppoe(packet: bytes) -> bytes:
    head = struct.pack("!BBHH", 0x11, 0, 1, len(packet) + 2)
    return ETHERNET + b"\x88\x64" + head + b"\x00\x21" + packet


def sll(packet: bytes) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, 6, bytes(8), 0x0800) + packet


def sll2(packet: bytes) -> bytes:
    return struct.pack("!HHIHBB8s", 0x0800, 0, 2, 1, 0, 6, bytes(8)) + packet


def raw(packet: bytes) -> bytes:
    return packet


#: What a packet looks like on each link: name: (link type, frame).
LINKS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "ethernet": (1, ethernet),
    "padded": (1, padded),
    "vlan": (1, vlan),
    "qinq": (1, qinq),
    "pppoe over ethernet": (1, pppoe),
    "null, little": (0, lambda packet: b"\2\0\0\0" + packet),
    "null, big": (0, lambda packet: b"\0\0\0\2" + packet),
    "loop": (108, lambda packet: b"\0\0\0\2" + packet),
    "ppp": (9, lambda packet: b"\xff\x03\x00\x21" + packet),
    "ppp, compressed": (9, lambda packet: b"\x21" + packet),
    "raw 12": (12, raw),
    "raw 101": (101, raw),
    "raw 228": (228, raw),
    "cooked 1": (113, sll),
    "cooked 2": (276, sll2),
}


def pcap(
    packets: Packets, *, order: str = "<", nano: bool = False, link: int = 101,
    frame: Callable[[bytes], bytes] = raw, snap: int = 65535,
) -> bytes:  # fmt: skip
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    out = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap, link)]
    for time, packet in packets:
        octets = frame(packet)
        part = round(time * 1e6) % 10**6 * (1000 if nano else 1)
        seconds = round(time * 1e6) // 10**6
        out.append(struct.pack(
            order + "IIII", seconds, part, min(len(octets), snap), len(octets)
        ) + octets[:snap])  # fmt: skip
    return b"".join(out)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int, *, resolution: int | None = None, snap: int = 0) -> bytes:
    options = option(order, 2, b"eth0") + option(order, 3, "köln".encode())
    if resolution is not None:
        options += option(order, 9, bytes((resolution,)))
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options + bytes(4))


def enhanced(
    order: str, number: int, ticks: int, octets: bytes, *, options: bytes = b"", wire: int = 0
) -> bytes:
    head = struct.pack(
        order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(octets), wire or len(octets)
    )
    return block(order, 6, head + octets + bytes(-len(octets) % 4) + options)


def old(order: str, number: int, ticks: int, octets: bytes) -> bytes:
    head = struct.pack(
        order + "HHIIII", number, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(octets), len(octets)
    )
    return block(order, 2, head + octets)


def simple(order: str, octets: bytes) -> bytes:
    return block(order, 3, struct.pack(order + "I", len(octets)) + octets)


def pcapng(
    packets: Packets, *, order: str = "<", link: int = 101, resolution: int | None = None,
    frame: Callable[[bytes], bytes] = raw, comments: bool = False, interfaces: int = 1,
) -> bytes:  # fmt: skip
    out = [section(order)]
    out += [interface(order, link, resolution=resolution) for _ in range(interfaces)]
    per_second = 10**6
    if resolution is not None:
        per_second = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    extra = option(order, 1, b"a comment") + bytes(4) if comments else b""
    for time, packet in packets:
        ticks = round(time * 1e6) * per_second // 10**6
        out.append(enhanced(order, interfaces - 1, ticks, frame(packet), options=extra))
    return b"".join(out)
