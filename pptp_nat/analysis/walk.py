"""From record to record: where each begins, and what most frames of GRE look like."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pptp_nat.analysis import links
from pptp_nat.analysis.formats import ENHANCED, LONGEST, Form
from pptp_nat.core.packet import GRE

_IP_AND_GRE: Final = 40  #: octets: IP, GRE with both numbers, 4 of payload


class Frames(NamedTuple):
    """The shape of the frames that are read by the column."""

    ip_at: int  #: octets of the frame before IP
    same: tuple[tuple[int, int], ...]  #: octets before it: where they stand, what they are


_BARE: Final = (Frames(0, ()),)
#: By link type; where there are several, a capture's first packets show which is meant.
SHAPES: Final = {
    links.ETHERNET: (
        Frames(14, ((12, 0x08), (13, 0x00))),
        Frames(18, ((12, 0x81), (13, 0x00), (16, 0x08), (17, 0x00))),
        Frames(22, ((12, 0x88), (13, 0xA8), (16, 0x81), (17, 0x00), (20, 0x08), (21, 0x00))),
        Frames(22, ((12, 0x88), (13, 0x64), (14, 0x11), (15, 0x00), (20, 0x00), (21, 0x21))),
    ),
    0: (Frames(4, ()),), 108: (Frames(4, ()),),
    9: (Frames(4, ((0, 0xFF), (1, 0x03), (2, 0x00), (3, 0x21))), Frames(2, ((0, 0), (1, 0x21)))),
    12: _BARE, 14: _BARE, links.RAW: _BARE, 228: _BARE,
    113: (Frames(16, ((14, 0x08), (15, 0x00))),),
    links.LINUX_SLL2: (Frames(20, ((0, 0x08), (1, 0x00))),),
}  # fmt: skip


class Main(NamedTuple):
    """What most packets of interest in a capture have in common."""

    interface: int
    frames: Frames


def shape_of(link: int, frame: bytes) -> Frames | None:
    """Return the shape of a frame that holds GRE; None if it has none of `SHAPES`."""
    for each in SHAPES.get(link, ()):
        if (
            len(frame) > each.ip_at + 20
            and frame[each.ip_at] == 0x45
            and frame[each.ip_at + 9] == GRE
            and all(frame[at] == octet for at, octet in each.same)
        ):
            return each
    return None


class Walk(NamedTuple):
    """Records of a piece."""

    starts: list[int]  #: where each begins in the piece, in order
    stop: int  #: offset of the first octet that was not walked over
    stuck: bool  #: what stands at `stop` is no record that can be walked over
    short: bool  #: what stands at `stop` is a record that the piece does not have all of


def head_of(form: Form, ip_at: int) -> int:
    """Return how many octets of each record are read by the column."""
    return form.header + ip_at + _IP_AND_GRE


def walk(piece: bytes, stop: int, end: int, form: Form) -> Walk:
    """Go from record to record, to the first that begins at or behind *stop*.

    Behind *stop* lie at least 12 octets; a record that ends behind *end* is short.
    """
    at, length, stuck, short = 0, 0, False, False
    starts: list[int] = []
    if form.kind == "pcap":  # a record has no kind, and any length
        read, header = struct.Struct(form.order + "8xI").unpack_from, form.header
        while at < stop:
            starts.append(at)
            (length,) = read(piece, at)
            at += header + length
    else:
        read = struct.Struct(form.order + "II").unpack_from
        while at < stop:
            kind, length = read(piece, at)
            if kind != ENHANCED or length & 3 or length < 32:
                stuck = True
                break
            starts.append(at)
            at += length
    # A record of such a length leads out of the piece, so it is the last.
    if starts and not stuck:
        stuck = length > LONGEST
        short = not stuck and at > end
        if stuck or short:
            at = starts.pop()
    return Walk(starts, at, stuck, short)
