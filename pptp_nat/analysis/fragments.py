"""IPv4 fragments put together again (RFC 791 section 3.2), within bounds."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

# Implementation constants.
_MOST: Final = 256  #: packets under way
_SECONDS: Final = 30.0  #: a packet under way for longer is given up
_LARGEST: Final = 65535

_IP: Final = struct.Struct("!BxHHH").unpack_from


class Whole(NamedTuple):
    """A packet put together."""

    packet: bytes  #: with the first fragment's header, its length corrected
    fragments: int
    length: int  #: octets of the IP packet; more than `packet` has where fragments were cut


class _Parts:
    """What is there of one packet."""

    __slots__ = ("begun", "cut", "end", "header", "pieces")

    def __init__(self, time: float) -> None:
        self.begun = time
        self.header = b""
        self.pieces: dict[int, bytes] = {}  # by offset in octets
        self.end: int | None = None  # octets of payload in all
        self.cut = False

    def payload(self) -> bytes | None:
        """Return the payload once all of it is there; the first octets count where they overlap."""
        if self.end is None or not self.header:
            return None
        octets = bytearray()
        for at in sorted(self.pieces):
            if at > len(octets):
                return None
            octets += self.pieces[at][len(octets) - at :]
        return bytes(octets[: self.end]) if len(octets) >= self.end else None


class Reassembler:
    """Takes fragments, returns packets."""

    def __init__(self) -> None:
        self._under_way: dict[bytes, _Parts] = {}
        self.lost = 0  #: packets of which not all fragments were captured

    def take(self, packet: bytes, time: float) -> Whole | None:
        """Take a fragment, from its IP header on; return the packet that it completes."""
        first, total, _, fragment = _IP(packet)
        size, at = (first & 0x0F) * 4, (fragment & 0x1FFF) * 8
        name = packet[12:20] + packet[4:6] + packet[9:10]
        parts = self._under_way.get(name)
        if parts is None or time - parts.begun > _SECONDS:
            self.lost += parts is not None
            self._under_way.pop(name, None)
            if len(self._under_way) >= _MOST:
                del self._under_way[next(iter(self._under_way))]
                self.lost += 1
            parts = self._under_way[name] = _Parts(time)
        octets = packet[size:total]
        missing = total - size - len(octets)
        if missing > 0:
            octets += bytes(missing)
            parts.cut = True
        if at + len(octets) > _LARGEST:
            return None
        if at == 0:
            parts.header = packet[:size]
        if not fragment & 0x2000:
            parts.end = at + len(octets)
        parts.pieces.setdefault(at, octets)
        payload = parts.payload()
        if payload is None:
            return None
        del self._under_way[name]
        length = len(parts.header) + len(payload)
        header = parts.header[:2] + min(length, _LARGEST).to_bytes(2, "big") + parts.header[4:6]
        header += bytes(2) + parts.header[8:]
        return Whole(header + payload, len(parts.pieces), length)

    def finish(self) -> None:
        """Count what never became whole."""
        self.lost += len(self._under_way)
        self._under_way.clear()
