"""What the parties of a control connection say of themselves when they begin to talk."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pptp_nat.core.messages import text

_BETWEEN: Final = bytes(2)
#: Both Start-Control-Connection messages from their version on, without what differs.
_INTRODUCTION: Final = struct.Struct("!H2xIIHH64s64s")


class Introduction(NamedTuple):
    """What one party has said of itself (RFC 2637 sections 2.1 and 2.2)."""

    host: str
    vendor: str
    version: int  #: 0x0100 is 1.0
    framing: int  #: bits: 1 asynchronous, 2 synchronous
    bearer: int  #: bits: 1 analogue, 2 digital
    channels: int  #: calls that it supports, 0 where it is a PNS
    firmware: int


def said_in(octets: bytes) -> bytes:
    """Return what a whole Start-Control-Connection message says, to be read by `introduction`."""
    return octets[12:14] + _BETWEEN + octets[16:156]


def introduction(said: bytes | None) -> Introduction | None:
    """Read one of `pptp_nat.core.calls.Connection.said`."""
    if said is None:
        return None
    version, framing, bearer, channels, firmware, host, vendor = _INTRODUCTION.unpack(said)
    return Introduction(text(host), text(vendor), version, framing, bearer, channels, firmware)
