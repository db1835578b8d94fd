"""A capture of many calls under load, for measuring how fast one is read.

Each call is whole: TCP, Start-Control-Connection, Outgoing-Call, LCP, then encrypted data
both ways with sequence and acknowledgement numbers, then the clearing.  Every client is at
an address of its own behind a router without NAT; the server's call IDs count up.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from pptp_nat.core.messages import MessageType, pack
from pptp_nat.core.packet import ACK, FIN, SYN, pack_enhanced_gre

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_M = MessageType
_FILE: Final = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
_RECORD: Final = struct.Struct("<IIII")
_ETHERNET: Final = bytes.fromhex("0242c0a8010102420a0000010800")
_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_START: Final = 1_700_000_000
_SERVER: Final = bytes((198, 51, 100, 1))
#: LCP Configure-Request, but for the magic number at its end.
_CONFIGURE_REQUEST: Final = bytes.fromhex("ff03c02101010014020600000000070208020506")
_SIZES: Final = (62, 62, 90, 140, 230, 420, 800, 1402)  #: octets of data, the small ones mostly


class _End:
    """One end of a call: where it stands in TCP and GRE."""

    def __init__(self, address: bytes, port: int, call_id: int) -> None:
        self.address, self.port, self.call_id = address, port, call_id
        self.tcp = 1000
        self.sequence = 0
        self.identification = 0


def _ip(sender: _End, receiver: _End, protocol: int, payload: bytes) -> bytes:
    sender.identification = (sender.identification + 1) & 0xFFFF
    return _ETHERNET + _IP.pack(
        0x45, 0, 20 + len(payload), sender.identification, 0x4000, 63, protocol, 0,
        sender.address, receiver.address,
    ) + payload  # fmt: skip


def _segment(sender: _End, receiver: _End, payload: bytes = b"", flags: int = ACK) -> bytes:
    header = _TCP.pack(
        sender.port, receiver.port, sender.tcp, receiver.tcp if flags & ACK else 0,
        0x50, flags, 64000, 0, 0,
    )  # fmt: skip
    sender.tcp += len(payload) + bool(flags & (SYN | FIN))
    return _ip(sender, receiver, 6, header + payload)


def _gre(sender: _End, receiver: _End, payload: bytes, *, acknowledge: bool) -> bytes:
    sequence = None
    if payload:
        sequence = sender.sequence
        sender.sequence += 1
    return _ip(sender, receiver, 47, pack_enhanced_gre(
        receiver.call_id, payload, sequence=sequence,
        acknowledgement=max(receiver.sequence - 1, 0) if acknowledge or not payload else None,
    ))  # fmt: skip


def _beginning(client: _End, server: _End) -> Iterator[bytes]:
    yield _segment(client, server, flags=SYN)
    yield _segment(server, client, flags=SYN | ACK)
    yield _segment(client, server)
    yield _segment(client, server, pack(
        _M.START_CONTROL_CONNECTION_REQUEST, version=0x0100, framing=3, bearer=3, vendor=b"bench"
    ))  # fmt: skip
    yield _segment(server, client, pack(
        _M.START_CONTROL_CONNECTION_REPLY, version=0x0100, result=1, vendor=b"bench"
    ))  # fmt: skip
    yield _segment(client, server, pack(
        _M.OUTGOING_CALL_REQUEST, call_id=client.call_id, serial=client.call_id, window=64
    ))  # fmt: skip
    yield _segment(server, client, pack(
        _M.OUTGOING_CALL_REPLY,
        call_id=server.call_id, peer_call_id=client.call_id, result=1, window=64, speed=10_000_000,
    ))  # fmt: skip
    yield _gre(client, server, _CONFIGURE_REQUEST + client.address, acknowledge=False)
    yield _gre(server, client, _CONFIGURE_REQUEST + server.address, acknowledge=True)


def _end(client: _End, server: _End) -> Iterator[bytes]:
    yield _segment(client, server, pack(_M.CALL_CLEAR_REQUEST, call_id=client.call_id))
    yield _segment(server, client, pack(
        _M.CALL_DISCONNECT_NOTIFY, call_id=server.call_id, result=4
    ))  # fmt: skip
    yield _segment(client, server, flags=FIN | ACK)
    yield _segment(server, client, flags=FIN | ACK)


def _frames(packets: int, calls: int) -> Iterator[bytes]:
    chance = random.Random(1723)
    ends = [
        (_End(bytes((10, 0, n >> 8, n & 0xFF)), 40_000 + n, n), _End(_SERVER, 1723, n * 2))
        for n in range(1, calls + 1)
    ]
    for client, server in ends:
        yield from _beginning(client, server)
    data = chance.randbytes(2048)
    for n in range(packets - calls * 13):
        client, server = ends[chance.randrange(calls)]
        sender, receiver = (client, server) if n % 3 == 0 else (server, client)
        kind = chance.random()
        size = 0 if kind < 0.15 else _SIZES[chance.randrange(len(_SIZES))]
        payload = b"\xfd" + (0x9000 | sender.sequence & 0xFFF).to_bytes(2, "big") + data[:size]
        yield _gre(sender, receiver, payload if size else b"", acknowledge=kind > 0.4)
    for client, server in ends:
        yield from _end(client, server)


def write_capture(path: Path, packets: int, calls: int) -> None:
    """Write a capture (pcap, Ethernet, microseconds) of exactly *packets* packets."""
    with path.open("wb", buffering=1 << 20) as file:
        file.write(_FILE)
        for n, frame in enumerate(_frames(packets, calls)):
            seconds, micros = divmod(n * 50, 1_000_000)  # 20,000 packets per second
            file.write(_RECORD.pack(_START + seconds, micros, len(frame), len(frame)) + frame)
