"""PPP frames in octet-stuffed HDLC, as pppd and the PPTP programs exchange them (RFC 1662)."""

from __future__ import annotations

from typing import Final

FLAG: Final = 0x7E
ESCAPE: Final = 0x7D
_HEADER: Final = b"\xff\x03\x00\x21"  # address, control, protocol: IPv4, as good as any
_GOOD: Final = 0xF0B8  # the checksum over a frame and its own checksum
_ESCAPED: Final = frozenset([*range(0x20), FLAG, ESCAPE])


def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        value = row
        for _ in range(8):
            value = value >> 1 ^ 0x8408 if value & 1 else value >> 1
        rows.append(value)
    return tuple(rows)


_FCS: Final = _table()


def checksum(octets: bytes | bytearray) -> int:
    """Return the 16-bit FCS, not yet inverted (RFC 1662 appendix C.2)."""
    value = 0xFFFF
    for octet in octets:
        value = value >> 8 ^ _FCS[(value ^ octet) & 0xFF]
    return value


def frame(body: bytes) -> bytes:
    """Return *body* as a PPP frame between two flags."""
    octets = _HEADER + body
    octets += (checksum(octets) ^ 0xFFFF).to_bytes(2, "little")
    stuffed = bytearray([FLAG])
    for octet in octets:
        stuffed += bytes([ESCAPE, octet ^ 0x20]) if octet in _ESCAPED else bytes([octet])
    stuffed.append(FLAG)
    return bytes(stuffed)


class Deframer:
    """Finds frames in octets that come in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, octets: bytes) -> list[bytes]:
        """Return the bodies of the frames that are now complete; damaged ones are left out."""
        *parts, self._rest = (self._rest + octets).split(bytes([FLAG]))
        return [body for part in parts if (body := _body(part)) is not None]


def _body(stuffed: bytes) -> bytes | None:
    plain = bytearray()
    octets = iter(stuffed)
    for octet in octets:
        plain.append(next(octets, 0) ^ 0x20 if octet == ESCAPE else octet)
    if len(plain) < len(_HEADER) + 2 or checksum(plain) != _GOOD:
        return None
    if not plain.startswith(_HEADER):
        return None
    return bytes(plain[len(_HEADER) : -2])
