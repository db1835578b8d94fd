"""Who is inside, read out of conntrack's answer in one piece: asked once for every connection.

The kernel writes both IPv4 tuples first and always alike, so one struct has all of
them; of the attributes behind them only mark and helper matter.  What is laid out
otherwise is left to `read_entry`, which takes three times as long.
"""

from __future__ import annotations

import struct
from typing import Final

from pptp_nat.core.tuples import Flow, Placement, Seat
from pptp_nat.linux.conntrack_wire import (
    CTA_HELP,
    CTA_MARK,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    FAMILY,
    IP_SOURCE,
    TCP,
    TUPLE_HEADER,
    headers_within,
    read_entry,
    read_helper,
)
from pptp_nat.linux.netlink import ATTRIBUTE, TYPE_MASK

#: nfgenmsg and both tuples
_TUPLES: Final = struct.Struct("!4s12s4s4s4s16sH2x4sH2x12s4s4s4s16sH2x4sH2x")
_SIZE: Final = _TUPLES.size
_AT_DESTINATION, _FROM_PORT, _TO_PORT = headers_within(TCP)
_HEADERS: Final = (
    FAMILY[:1],
    TUPLE_HEADER[CTA_TUPLE_ORIG] + IP_SOURCE, _AT_DESTINATION, _FROM_PORT, _TO_PORT,
    TUPLE_HEADER[CTA_TUPLE_REPLY] + IP_SOURCE, _AT_DESTINATION, _FROM_PORT, _TO_PORT,
)  # fmt: skip
_MARK: Final = struct.Struct("!4xI")


def read_placement(body: bytes) -> Placement | None:
    """Read the control connection of an answer; None where it is no TCP over IPv4.

    Raises:
        AdapterError: a length in it is impossible.
    """
    size = len(body)
    if size >= _SIZE:
        (
            family, first, opener, second, dialled, third, opener_port, fourth, _,
            fifth, answering, sixth, answered, seventh, answering_port, eighth, _,
        ) = _TUPLES.unpack_from(body)  # fmt: skip
        headers = (family[:1], first, second, third, fourth, fifth, sixth, seventh, eighth)
        if headers == _HEADERS:
            mark, at = 0, _SIZE
            helper: bytes | None = None
            while at + 4 <= size:
                length, kind = ATTRIBUTE.unpack_from(body, at)
                if length < 4 or at + length > size:
                    break
                kind &= TYPE_MASK
                if kind <= CTA_TUPLE_REPLY or (kind == CTA_MARK and length != _MARK.size):
                    break
                if kind == CTA_MARK:
                    (mark,) = _MARK.unpack_from(body, at)
                elif kind == CTA_HELP:
                    helper = body[at + 4 : at + length]
                at += length + 3 & ~3
            else:
                return tuple.__new__(Placement, (
                    tuple.__new__(Flow, (opener, opener_port, answering, answering_port)),
                    tuple.__new__(Seat, (opener, answered)),
                    tuple.__new__(Seat, (answering, dialled)),
                    mark, read_helper(helper),
                ))  # fmt: skip
    entry = read_entry(body)
    return None if entry is None or entry.original.protocol != TCP else entry.placement


def is_spoken(placement: Placement, flow: Flow) -> bool:
    """Whether *flow* is one of the connection's directions."""
    return flow == placement.flow or flow.reversed() == placement.flow
