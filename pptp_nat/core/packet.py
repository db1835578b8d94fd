"""Views of IPv4 packets: TCP segments and enhanced GRE (RFC 2637 section 4.1).

A view holds offsets and host-order ints; the packet's octets stay as they are.
Changing a packet means a list of `Edit` values and one call of `edited`.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pptp_nat.core.checksum import patch
from pptp_nat.core.tuples import Address
from pptp_nat.errors import WireError

# Specification constants.
TCP: Final = 6
GRE: Final = 47
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10
ENHANCED_GRE_PROTOCOL: Final = 0x880B
IP_HEADER_SIZE: Final = 20
TCP_HEADER_SIZE: Final = 20
GRE_HEADER_SIZE: Final = 8
MORE_FRAGMENTS_OR_OFFSET: Final = 0x3FFF
SEQUENCE_MASK: Final = 0xFFFFFFFF

_IP: Final = struct.Struct("!BxHxxHxBxx4s4s")
_IP_AND_TCP: Final = struct.Struct("!xxHxxHxBxx4s4sHHIIBB")
_PLAIN_IP: Final = 0x45  # version 4, no options
_TCP: Final = struct.Struct("!HHIIBBxxHxx")
_GRE: Final = struct.Struct("!BBHHH")
_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")


class Segment(NamedTuple):
    """A TCP segment inside an IPv4 packet."""

    source: Address
    destination: Address
    source_port: int
    destination_port: int
    sequence: int  #: of the first payload octet, or of SYN
    acknowledgement: int
    flags: int
    tcp_at: int  #: offset of the TCP header in the packet, in octets
    payload_at: int  #: offset of the payload in the packet, in octets
    end: int  #: offset behind the payload; link padding may follow


def segment(packet: bytes) -> Segment | None:
    """Return the TCP segment that *packet* holds, or None if it is not a whole one.

    None means: not IPv4, not TCP, a fragment, or lengths that contradict each
    other.  Such a packet is none of our business and travels on untouched.
    """
    size = len(packet)
    if size < IP_HEADER_SIZE + TCP_HEADER_SIZE:
        return None
    if packet[0] == _PLAIN_IP:  # nearly every packet: one look at both headers
        (
            total, fragment, protocol, source, destination,
            sport, dport, sequence, acknowledgement, offset, flags,
        ) = _IP_AND_TCP.unpack_from(packet)  # fmt: skip
        payload_at = IP_HEADER_SIZE + (offset >> 2 & 0x3C)
        if (
            protocol != TCP
            or fragment & MORE_FRAGMENTS_OR_OFFSET
            or not IP_HEADER_SIZE + TCP_HEADER_SIZE <= payload_at <= total <= size
        ):
            return None
        return tuple.__new__(Segment, (
            source, destination, sport, dport, sequence, acknowledgement, flags,
            IP_HEADER_SIZE, payload_at, total,
        ))  # fmt: skip
    first, total, fragment, protocol, source, destination = _IP.unpack_from(packet)
    tcp_at = (first & 0x0F) * 4
    if (
        first >> 4 != 4
        or protocol != TCP
        or fragment & MORE_FRAGMENTS_OR_OFFSET
        or tcp_at < IP_HEADER_SIZE
        or total > size
        or total < tcp_at + TCP_HEADER_SIZE
    ):
        return None
    sport, dport, sequence, acknowledgement, offset, flags, _ = _TCP.unpack_from(packet, tcp_at)
    payload_at = tcp_at + (offset >> 4) * 4
    if payload_at < tcp_at + TCP_HEADER_SIZE or payload_at > total:
        return None
    return Segment(
        source, destination, sport, dport,
        sequence, acknowledgement, flags,
        tcp_at, payload_at, total,
    )  # fmt: skip


class Edit(NamedTuple):
    """Octets to be put into a TCP payload at *at*, an offset from its start."""

    at: int
    octets: bytes


def edited(packet: bytes, view: Segment, edits: list[Edit]) -> bytes:
    """Return *packet* with *edits* in its TCP payload and the TCP checksum patched.

    Every other octet stays, link padding included.
    """
    tcp_at, payload_at = view.tcp_at, view.payload_at
    (check,) = _U16.unpack_from(packet, tcp_at + 16)
    if len(edits) == 1:  # nearly always
        at, octets = edits[0]
        start = payload_at + at
        end = start + len(octets)
        check = patch(check, packet[start:end], octets, at=start - tcp_at)
        return b"".join((
            packet[: tcp_at + 16], check.to_bytes(2, "big"), packet[tcp_at + 18 : start],
            octets, packet[end:],
        ))  # fmt: skip
    out = bytearray(packet)
    for at, octets in edits:
        start = payload_at + at
        end = start + len(octets)
        check = patch(check, bytes(out[start:end]), octets, at=start - tcp_at)
        out[start:end] = octets
    _U16.pack_into(out, tcp_at + 16, check)
    return bytes(out)


class EnhancedGre(NamedTuple):
    """An enhanced GRE header (RFC 2637 section 4.1)."""

    key: int  #: the receiver's call ID
    payload_length: int  #: octets, as the header claims
    sequence: int | None
    acknowledgement: int | None
    size: int  #: of the header, in octets


def is_enhanced_gre(octets: bytes, at: int = 0) -> bool:
    """Tell enhanced GRE (version 1, protocol 0x880B) from every other kind."""
    return (
        len(octets) >= at + 4
        and octets[at + 1] & 0x07 == 1
        and octets[at + 2] == ENHANCED_GRE_PROTOCOL >> 8
        and octets[at + 3] == ENHANCED_GRE_PROTOCOL & 0xFF
    )


def enhanced_gre(octets: bytes, at: int = 0) -> EnhancedGre | None:
    """Read the enhanced GRE header at *at*; None for any other kind of GRE.

    Raises:
        WireError: ``gre_short`` (cut off), ``gre_flags`` (C, R, s or Recur set, K
            not set, or reserved flags set), ``gre_payload_length`` (claims more
            octets than are there).
    """
    if not is_enhanced_gre(octets, at):
        return None
    if len(octets) < at + GRE_HEADER_SIZE:
        raise WireError("gre_short", offset=len(octets) - at)
    high, low, _, payload_length, key = _GRE.unpack_from(octets, at)
    if high & ~0x10 != 0x20 or low & 0x78:
        raise WireError("gre_flags", offset=0)
    size = GRE_HEADER_SIZE
    sequence = acknowledgement = None
    has_sequence, has_acknowledgement = high & 0x10, low & 0x80
    if len(octets) < at + size + 4 * bool(has_sequence) + 4 * bool(has_acknowledgement):
        raise WireError("gre_short", offset=len(octets) - at)
    if has_sequence:
        (sequence,) = _U32.unpack_from(octets, at + size)
        size += 4
    if has_acknowledgement:
        (acknowledgement,) = _U32.unpack_from(octets, at + size)
        size += 4
    if payload_length > len(octets) - at - size:
        raise WireError("gre_payload_length", offset=4)
    return EnhancedGre(key, payload_length, sequence, acknowledgement, size)


def pack_enhanced_gre(
    key: int, payload: bytes, *, sequence: int | None = None, acknowledgement: int | None = None
) -> bytes:
    """Return an enhanced GRE packet without IP header; S and A are set as given."""
    header = _GRE.pack(
        0x20 | (0x10 if sequence is not None else 0),
        0x01 | (0x80 if acknowledgement is not None else 0),
        ENHANCED_GRE_PROTOCOL,
        len(payload),
        key,
    )
    numbers = b"".join(_U32.pack(n) for n in (sequence, acknowledgement) if n is not None)
    return header + numbers + payload
