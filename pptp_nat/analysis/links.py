"""Where the IPv4 packet begins in a frame, for each link type that captures have.

Numbers are those of the LINKTYPE registry of tcpdump.org.  A *spot* tells apart the
interfaces, or directions, at which one file has captured the same packet more than once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ETHERNET: Final = 1
RAW: Final = 101
LINUX_SLL2: Final = 276

NAMES: Final = {
    0: "loopback (NULL)", ETHERNET: "Ethernet", 9: "PPP", 12: "raw IP", 14: "raw IP",
    50: "PPP in HDLC framing", 51: "PPPoE", RAW: "raw IP", 108: "loopback (LOOP)",
    113: "Linux cooked v1", 204: "PPP with direction", 228: "raw IPv4", 229: "raw IPv6",
    LINUX_SLL2: "Linux cooked v2",
}  # fmt: skip

_IPV4: Final = 0x0800
_PPPOE_SESSION: Final = 0x8864
_VLAN: Final = frozenset((0x8100, 0x88A8, 0x9100))
_PPP_IPV4: Final = 0x0021
_MOST_TAGS: Final = 4
_FAMILIES: Final = frozenset((b"\2\0\0\0", b"\0\0\0\2"))  #: AF_INET, written in either order
_U16: Final = struct.Struct("!H").unpack_from


def _ethertype(frame: bytes, at: int) -> int | None:
    """Return where IPv4 begins, of a frame whose EtherType stands at *at*."""
    for _ in range(_MOST_TAGS):
        if len(frame) < at + 2:
            return None
        (kind,) = _U16(frame, at)
        if kind == _IPV4:
            return at + 2
        if kind == _PPPOE_SESSION:
            return _pppoe(frame, at + 2)
        if kind not in _VLAN:
            return None
        at += 4
    return None


def _ethernet(frame: bytes) -> int | None:
    return _ethertype(frame, 12)


def _pppoe(frame: bytes, at: int = 0) -> int | None:
    return _ppp_protocol(frame, at + 6) if frame[at : at + 2] == b"\x11\0" else None


def _ppp(frame: bytes) -> int | None:
    """Read PPP with or without address and control field (RFC 1661 section 2, RFC 1662)."""
    return _ppp_protocol(frame, 2 if frame[:2] == b"\xff\x03" else 0)


def _ppp_direction(frame: bytes) -> int | None:
    return _ppp_protocol(frame, 3 if frame[1:3] == b"\xff\x03" else 1)


def _ppp_protocol(frame: bytes, at: int) -> int | None:
    if frame[at : at + 1] == b"\x21":  # the protocol field may be one octet
        return at + 1
    return at + 2 if frame[at : at + 2] == b"\0\x21" else None


def _loopback(frame: bytes) -> int | None:
    return 4 if frame[:4] in _FAMILIES else None


def _raw(_frame: bytes) -> int:
    return 0


def _cooked(frame: bytes) -> int | None:
    return _ethertype(frame, 14)


def _cooked_2(frame: bytes) -> int | None:
    if len(frame) < 20:
        return None
    (kind,) = _U16(frame, 0)
    if kind == _IPV4:
        return 20
    return _ethertype(frame, 22) if kind in _VLAN else None


_READERS: Final[dict[int, Callable[[bytes], int | None]]] = {
    0: _loopback, ETHERNET: _ethernet, 9: _ppp, 12: _raw, 14: _raw, 50: _ppp, 51: _pppoe,
    RAW: _raw, 108: _loopback, 113: _cooked, 204: _ppp_direction, 228: _raw,
    LINUX_SLL2: _cooked_2,
}  # fmt: skip

#: Octets of a frame that tell its spot, by link type: packet type, or interface and that.
SPOTS: Final[dict[int, tuple[slice, ...]]] = {
    113: (slice(0, 2),),
    LINUX_SLL2: (slice(4, 8), slice(10, 11)),
    204: (slice(0, 1),),
}


def ipv4_at(link: int, frame: bytes) -> int | None:
    """Return where in *frame* an IPv4 header begins; None for anything else."""
    reader = _READERS.get(link)
    at = None if reader is None else reader(frame)
    if at is None or len(frame) <= at or frame[at] >> 4 != 4:
        return None
    return at


def spot_of(link: int, frame: bytes) -> bytes:
    """Return what tells apart where *frame* was captured, beside the file and interface."""
    slices = SPOTS.get(link)
    return b"" if slices is None else b"".join([frame[each] for each in slices])


def name_of(link: int) -> str:
    """Return a link type in words."""
    return NAMES.get(link, f"link type {link}")


def is_known(link: int) -> bool:
    """Whether packets of this link type can be read."""
    return link in _READERS
