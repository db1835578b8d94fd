"""The octets of PPTP, written down a second time.

The laboratory's peers must not use the table of `pptp_nat.core.messages`: a
wrong offset there would then be wrong at both ends, and everything would seem
to work.  Source: RFC 2637 section 2 (messages) and 4.1 (enhanced GRE).
"""

from __future__ import annotations

import struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC: Final = 0x1A2B3C4D
PORT: Final = 1723
LONGEST: Final = 220  # octets of the Incoming-Call-Request
_HEADER: Final = struct.Struct("!HHIHxx")
_GRE: Final = struct.Struct("!BBHHH")
_GRE_CALL: Final = 0x880B  # "PPP" in the protocol field of enhanced GRE


class Layout(NamedTuple):
    """One kind of message: its number and what follows the 12 octets of the header."""

    number: int
    body: struct.Struct
    names: tuple[str, ...]  #: of the fields; ``x`` octets are reserved and have none


def _layout(number: int, form: str, names: str) -> Layout:
    return Layout(number, struct.Struct("!" + form), tuple(names.split()))


# fmt: off
LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType({
    "SCCRQ": _layout(1, "HxxIIHH64s64s",
                     "version framing bearer channels firmware host vendor"),
    "SCCRP": _layout(2, "HBBIIHH64s64s",
                     "version result error framing bearer channels firmware host vendor"),
    "StopCCRQ": _layout(3, "Bxxx", "reason"),
    "StopCCRP": _layout(4, "BBxx", "result error"),
    "EchoRQ": _layout(5, "I", "identifier"),
    "EchoRP": _layout(6, "IBBxx", "identifier result error"),
    "OCRQ": _layout(7, "HHIIIIHHHxx64s64s",
                    "call serial slowest fastest bearer framing window delay length phone sub"),
    "OCRP": _layout(8, "HHBBHIHHI",
                    "call peer result error cause speed window delay channel"),
    "ICRQ": _layout(9, "HHIIHH64s64s64s",
                    "call serial bearer channel dialed_length dialing_length dialed dialing sub"),
    "ICRP": _layout(10, "HHBBHHxx", "call peer result error window delay"),
    "ICCN": _layout(11, "HxxIHHI", "peer speed window delay framing"),
    "CCRQ": _layout(12, "Hxx", "call"),
    "CDN": _layout(13, "HBBHxx128s", "call result error cause statistics"),
    "WEN": _layout(14, "HxxIIIIII", "peer crc framing hardware buffer timeout alignment"),
    "SLI": _layout(15, "HxxII", "peer send_accm receive_accm"),
})
# fmt: on
_BY_NUMBER: Final = MappingProxyType({each.number: name for name, each in LAYOUTS.items()})


class Message(NamedTuple):
    """A control message: its RFC abbreviation and its fields by name."""

    name: str
    fields: Mapping[str, int | bytes]

    def number(self, field: str) -> int:
        """Return the number in *field*."""
        value = self.fields[field]
        assert isinstance(value, int), field
        return value

    def text(self, field: str) -> str:
        """Return the text in *field* up to its first zero octet."""
        value = self.fields[field]
        assert isinstance(value, bytes), field
        return value.partition(b"\0")[0].decode("ascii", "replace")


class Gre(NamedTuple):
    """An enhanced GRE packet; *key* is the receiver's call ID."""

    key: int
    payload: bytes
    sequence: int | None = None
    acknowledges: int | None = None


def encode(name: str, **fields: int | bytes) -> bytes:
    """Return the octets of a message; fields that are not given are 0 or empty."""
    layout = LAYOUTS[name]
    unknown = set(fields) - set(layout.names)
    assert not unknown, f"{name} has no {unknown}"
    empty = layout.body.unpack(bytes(layout.body.size))  # 0 or the right number of zero octets
    body = layout.body.pack(
        *(fields.get(each, zero) for each, zero in zip(layout.names, empty, strict=True))
    )
    return _HEADER.pack(_HEADER.size + len(body), 1, MAGIC, layout.number) + body


def decode(octets: bytes) -> tuple[Message, bytes] | None:
    """Return the first message in *octets* and what follows, or None if it is not all there.

    Raises:
        ValueError: it is not what RFC 2637 says; the connection is to be closed.
    """
    if len(octets) < _HEADER.size:
        return None
    length, kind, magic, number = _HEADER.unpack_from(octets)
    if magic != MAGIC or kind != 1:
        raise ValueError(f"not a PPTP control message: {octets[:12].hex()}")
    if number not in _BY_NUMBER:
        raise ValueError(f"no such control message: {number}")
    name = _BY_NUMBER[number]
    layout = LAYOUTS[name]
    if length != _HEADER.size + layout.body.size:
        raise ValueError(f"{name} of {length} octets")
    if len(octets) < length:
        return None
    values = layout.body.unpack_from(octets, _HEADER.size)
    return Message(name, dict(zip(layout.names, values, strict=True))), octets[length:]


def encode_gre(packet: Gre) -> bytes:
    """Return the octets of *packet* as they follow the IP header."""
    first, second, tail = 0x20, 0x01, b""  # K; version 1
    if packet.sequence is not None:
        first |= 0x10
        tail += struct.pack("!I", packet.sequence)
    if packet.acknowledges is not None:
        second |= 0x80
        tail += struct.pack("!I", packet.acknowledges)
    header = _GRE.pack(first, second, _GRE_CALL, len(packet.payload), packet.key)
    return header + tail + packet.payload


def decode_gre(octets: bytes) -> Gre | None:
    """Return the enhanced GRE packet in *octets*, or None for another sort, or a part, of one."""
    if len(octets) < _GRE.size:
        return None
    first, second, protocol, length, key = _GRE.unpack_from(octets)
    if protocol != _GRE_CALL or second & 0x07 != 1 or not first & 0x20:
        return None
    at = _GRE.size
    numbers: list[int | None] = []
    for present in (first & 0x10, second & 0x80):
        if present:
            (number,) = struct.unpack_from("!I", octets, at)
            numbers.append(number)
            at += 4
        else:
            numbers.append(None)
    if len(octets) < at + length:
        return None  # cut short on its way
    return Gre(key, octets[at : at + length], *numbers)
