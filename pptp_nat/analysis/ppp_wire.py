"""PPP frames and the control packets in them (RFC 1661), as GRE carries them.

RFC 2637 section 4 sends PPP without flags, checksum and transparency.  Some senders
keep them anyway, and address, control and protocol fields come compressed or whole
(ACFC, PFC: RFC 1661 sections 6.5 and 6.6); `frame` reads every form.  Nothing here raises:
octets that make no sense give None or less than there might be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

# Specification constants.
IPV4: Final = 0x0021
IPV6: Final = 0x0057
COMPRESSED: Final = 0x00FD  #: compressed or encrypted datagram (RFC 1962, RFC 3078)
IPCP: Final = 0x8021
IPV6CP: Final = 0x8057
CCP: Final = 0x80FD
ECP: Final = 0x8053
LCP: Final = 0xC021
PAP: Final = 0xC023
LQR: Final = 0xC025
CHAP: Final = 0xC223
EAP: Final = 0xC227

CONFIGURE_REQUEST: Final = 1
CONFIGURE_ACK: Final = 2
CONFIGURE_NAK: Final = 3
CONFIGURE_REJECT: Final = 4
TERMINATE_REQUEST: Final = 5
TERMINATE_ACK: Final = 6
CODE_REJECT: Final = 7
PROTOCOL_REJECT: Final = 8  #: this and those behind it: LCP only
ECHO_REQUEST: Final = 9
ECHO_REPLY: Final = 10
DISCARD_REQUEST: Final = 11
IDENTIFICATION: Final = 12  #: RFC 1570
TIME_REMAINING: Final = 13
RESET_REQUEST: Final = 14  #: CCP only, RFC 1962
RESET_ACK: Final = 15

_FLAG: Final = 0x7E
_ESCAPE: Final = 0x7D
_ADDRESS_CONTROL: Final = b"\xff\x03"
_HEADER: Final = 4  # code, identifier, length
_OPTIONS_AT_MOST: Final = 64  # of one packet; the longest real ones have ten


class PppFrame(NamedTuple):
    """One PPP frame, whatever form its header had."""

    protocol: int
    information: bytes  #: what follows the protocol field, checksum taken off
    is_escaped: bool = False  #: flags or escapes of RFC 1662, which GRE does not want
    has_address: bool = False  #: address and control field sent, so not compressed
    has_short_protocol: bool = False  #: protocol field compressed to one octet


class ControlPacket(NamedTuple):
    """A packet of LCP, of a network control protocol, or of authentication."""

    code: int
    identifier: int
    data: bytes
    is_cut: bool  #: fewer octets are there than Length says


class Option(NamedTuple):
    """A configuration option: type and value (RFC 1661 section 6)."""

    type: int
    value: bytes


def frame(octets: bytes) -> PppFrame | None:
    """Read the PPP frame in a GRE payload; None if it holds no whole protocol field.

    A frame counts as escaped if it starts with a flag or with an escaped control
    field: without escapes neither can be, because no protocol is assigned from
    0x7E00 on, and 0x7D behind 0xFF is no control field.
    """
    is_escaped = octets[:1] == b"\x7e" or octets[:2] == b"\xff\x7d"
    if is_escaped:
        octets = _unescaped(octets)
    at = 0
    has_address = octets[:2] == _ADDRESS_CONTROL
    if has_address:
        at = 2
    if len(octets) <= at:
        return None
    first = octets[at]
    if first & 1:
        return PppFrame(first, octets[at + 1 :], is_escaped, has_address, True)
    if len(octets) < at + 2 or not octets[at + 1] & 1:
        return None
    protocol = first << 8 | octets[at + 1]
    return PppFrame(protocol, octets[at + 2 :], is_escaped, has_address, False)


def _unescaped(octets: bytes) -> bytes:
    """Undo RFC 1662 section 4.2; the checksum goes where there is one and it is right."""
    plain = bytearray()
    pending = False
    for octet in octets.strip(b"\x7e"):
        if octet == _FLAG:
            break  # the next frame's; who bundles frames gets the first one read
        if octet == _ESCAPE:
            pending = True
            continue
        plain.append(octet ^ 0x20 if pending else octet)
        pending = False
    return bytes(plain[:-2] if _is_whole(plain) else plain)


def _is_whole(plain: bytearray) -> bool:
    """Whether the last two octets are the checksum of those before (RFC 1662 appendix C)."""
    value = 0xFFFF
    for octet in plain:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ 0x8408 if value & 1 else value >> 1
    return len(plain) > 2 and value == 0xF0B8


def control_packet(information: bytes) -> ControlPacket | None:
    """Read code, identifier and data; None if the header is not whole or Length below it.

    What follows Length is padding and left out.
    """
    if len(information) < _HEADER:
        return None
    code, identifier = information[0], information[1]
    length = information[2] << 8 | information[3]
    if length < _HEADER:
        return None
    return ControlPacket(code, identifier, information[_HEADER:length], length > len(information))


def options(data: bytes) -> Iterator[Option]:
    """Yield the options of a Configure packet; a damaged or cut one ends them."""
    at = 0
    for _ in range(_OPTIONS_AT_MOST):
        if len(data) < at + 2:
            return
        length = data[at + 1]
        if length < 2 or at + length > len(data):
            return
        yield Option(data[at], data[at + 2 : at + length])
        at += length
