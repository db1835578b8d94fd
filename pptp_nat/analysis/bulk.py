"""Ordinary GRE by the thousand: what is alike is read by the column.

Theory of operation
-------------------
Most of a large capture is GRE of a few flows in frames of one shape.  A walk over the
records costs one `struct` call each: it takes the record's length and the octets by which
a flow is known, and keeps the record's head with its flow, while it is in the processor's
cache.  Then, flow by flow, the heads are joined to one string with a fixed distance from
packet to packet, so that a slice with that step is a column, and a column is compared,
counted or turned into integers by the interpreter's own loops.  A flow of which any packet
is not as expected is sorted one packet at a time (`pptp_nat.analysis.sorting`), so nothing
rests on luck.
"""

from __future__ import annotations

import struct
import sys
from array import array
from itertools import compress, islice, repeat
from operator import add, lt, rshift, truediv
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pptp_nat.analysis import links
from pptp_nat.analysis.formats import ENHANCED, LONGEST, Form
from pptp_nat.analysis.packets import OCTETS_OF_U32, U32, Columns, column, concatenated
from pptp_nat.analysis.sorting import (
    CONTROL,
    DATA,
    ENCRYPTED,
    PLAIN_KEPT,
    FlowKey,
    Sorter,
    kind_of_payload,
)  # fmt: skip
from pptp_nat.core.packet import GRE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FEWEST: Final = 16  #: packets of a flow that make columns worth their while

_IP_AND_GRE: Final = 40  #: octets: IP, GRE with both numbers, 4 of payload
#: Octets of IP and GRE header by how many of S and A are set; none is not ordinary.
_SIZES: Final = bytes((0, 32, 36)) + bytes(253)
_BIT_4: Final = bytes(octet >> 4 & 1 for octet in range(256))
_BIT_7: Final = bytes(octet >> 7 for octet in range(256))
_NOT_ZERO: Final = b"\0" + b"\1" * 255
_BELOW_4: Final = b"\0\1\1\1" + bytes(252)  #: zero is no payload at all
_FULL: Final = b"\0\xff" + bytes(254)
_IS_ZERO: Final = b"\1" + bytes(255)
_IS_PROTOCOL: Final = bytes(octet not in (0x00, 0xFD) for octet in range(256))
_MASKS: Final = (0, 0xFF000000, 0xFFFF0000, 0xFFFFFF00)  #: of a head, by octets of payload
_ADDRESS_CONTROL: Final = 0xFF03
_LITTLE: Final = sys.byteorder == "little"


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


#: Addresses: key: number and head of each packet in turn.
Groups = dict[bytes, dict[bytes, list[Any]]]


class Walk(NamedTuple):
    """Records of a piece."""

    starts: list[int]  #: where each begins in the piece, in order
    rest: list[int]  #: numbers of the packets that are no GRE in frames of the shape
    stop: int  #: offset of the first octet that was not walked over
    stuck: bool  #: what stands at `stop` is no record that can be walked over
    short: bool  #: what stands at `stop` is a record that the piece does not have all of


def head_of(form: Form, ip_at: int) -> int:
    """Return how many octets of each record are read by the column."""
    return form.header + ip_at + _IP_AND_GRE


def walk(
    piece: bytes, stop: int, end: int, form: Form, ip_at: int, number: int, groups: Groups
) -> Walk:
    """Go from record to record, to the first that begins at or behind *stop*.

    The first has this *number*.  Behind *stop* lie at least `head_of` octets; a record that
    ends behind *end* is short.  Of GRE the numbers and heads go into *groups*.
    """
    octets, order, inner = head_of(form, ip_at), form.order, form.header + ip_at + 9
    if form.kind == "pcap":  # a record has no kind, and any length
        layout, wanted, header = f"{order}0s8xI{inner - 12}xB2x8s6x2s", b"", form.header
        least = odd = 0
    else:
        layout, wanted = f"{order}4sI{inner - 8}xB2x8s6x2s", struct.pack(order + "I", ENHANCED)
        header, least, odd = 0, 32, 3
    read, at, length, protocol = struct.Struct(layout).unpack_from, 0, 0, 0
    stuck = short = False
    starts: list[int] = []
    rest: list[int] = []
    while at < stop:
        kind, length, protocol, pair, key = read(piece, at)
        if kind != wanted or length & odd or length < least:
            stuck = True
            break
        starts.append(at)
        if protocol == GRE:
            try:
                flow = groups[pair][key]
            except KeyError:
                flow = groups.setdefault(pair, {}).setdefault(key, [])
            flow.append(number)
            flow.append(piece[at : at + octets])
        else:
            rest.append(number)
        number += 1
        at += header + length
    # A record of such a length leads out of the piece, so it is the last.
    if starts and not stuck:
        stuck = length > LONGEST
        short = not stuck and at > end
        if stuck or short:
            at = starts.pop()
            if protocol == GRE:
                del groups[pair][key][-2:]
            else:
                rest.pop()
    return Walk(starts, rest, at, stuck, short)


class Bulk:
    """Turns the groups of a `Walk` into columns."""

    def __init__(
        self, form: Form, main: Main, sorter: Sorter, frame_of: Callable[[int], bytes]
    ) -> None:
        """*frame_of* returns the whole frame of a packet by its number; none if it is bad."""
        frames = main.frames
        self._form, self._sorter, self._frame_of = form, sorter, frame_of
        self._interface = form.interfaces[main.interface]
        self._prefix = main.interface.to_bytes(4, "big") if main.interface else b""
        self._ip = form.header + frames.ip_at  # offset of IP in a record
        self._step = head_of(form, frames.ip_at)
        self._before = frames.ip_at
        self._spots = [
            slice(form.header + each.start, form.header + each.stop)
            for each in links.SPOTS.get(self._interface.link, ())
        ]
        self._same = [
            *((form.header + at, octet) for at, octet in frames.same),
            (self._ip, 0x45), (self._ip + 7, 0), (self._ip + 22, 0x88), (self._ip + 23, 0x0B),
        ]  # fmt: skip
        if form.kind == "pcapng":
            number = struct.pack(form.order + "I", main.interface)
            self._same += [(8 + at, octet) for at, octet in enumerate(number)]
        self._lengths_at = (8, 12) if form.kind == "pcap" else (20, 24)  # captured, on the wire

    def take(
        self, numbers: Sequence[int], records: Sequence[bytes], pair: bytes, key: bytes
    ) -> bool:
        """Sort the packets of one flow by the column.

        Return False, with nothing done, if they are not alike.
        """
        step, ip = self._step, self._ip
        joined = b"".join(records)
        if not self._alike(joined):
            return False
        sequenced = joined[ip + 20 :: step].translate(_BIT_4)
        acknowledged = joined[ip + 21 :: step].translate(_BIT_7)
        sizes = _sum(sequenced, acknowledged).translate(_SIZES)
        lengths = self._packed(joined, ip + 24, 2)
        captured = self._packed(joined, self._lengths_at[0], 4, self._form.order)
        times = self._times(joined)
        if times is None or b"\0" in sizes or not self._are_whole(joined, sizes, lengths, captured):
            return False
        upper, lower = joined[ip + 24 :: step], joined[ip + 25 :: step]
        has_payload = column(upper, _NOT_ZERO) | column(lower, _NOT_ZERO)
        if has_payload & ~column(sequenced):
            return False  # payload without a sequence number
        third, fourth = self._packed(joined, ip + 28, 4), self._packed(joined, ip + 32, 4)
        heads: Sequence[int] = array(U32, _chosen(
            sequenced, _chosen(acknowledged, self._packed(joined, ip + 36, 4), fourth),
            bytes(len(third)),
        ))  # fmt: skip
        if ~column(upper, _NOT_ZERO) & column(lower, _BELOW_4) & column(sequenced):
            heads = [
                head if length > 3 else head & _MASKS[length]
                for head, length in zip(heads, array("H", lengths), strict=True)
            ]
        columns = Columns(
            times, numbers, array("H", lengths),
            sequenced, array(U32, third),
            acknowledged, array(U32, _chosen(sequenced, fourth, third)), heads,
        )  # fmt: skip
        flow: FlowKey = (self._spot(joined), pair, int.from_bytes(key, "big"))
        window = self._sorter.window
        known = window.flows.get(flow)
        window.flows[flow] = columns if known is None else concatenated(known, columns)
        self._count(joined, captured, columns)
        self._show(columns, flow)
        return True

    def _are_whole(self, joined: bytes, sizes: bytes, lengths: bytes, captured: bytes) -> bool:
        """Whether IP's length is headers and payload, and enough of both was captured."""
        step, ip, before = self._step, self._ip, self._before
        totals = self._packed(joined, ip + 2, 2)
        if b"\xff" in joined[ip + 2 :: step] or b"\xff" in joined[ip + 24 :: step]:
            return False  # sums below would run over; packets of 64 KiB are looked at singly
        length = int.from_bytes(totals, sys.byteorder)
        if length != int.from_bytes(lengths, sys.byteorder) + _wide(sizes):
            return False
        # As a rule a frame is what stands before IP, and IP.
        frames = (length + _wide(bytes((before,)) * len(sizes))).to_bytes(
            len(totals), sys.byteorder
        )
        whole = bytearray(len(captured))
        at = 0 if _LITTLE else 2
        whole[at::4], whole[at + 1 :: 4] = frames[::2], frames[1::2]
        if whole == captured:
            return True
        return all(
            there >= before + size + min(length, 4)
            for there, size, length in zip(
                array(U32, captured), sizes, array("H", lengths), strict=True
            )
        )

    def _count(self, joined: bytes, captured: bytes, columns: Columns) -> None:
        window = self._sorter.window
        wire = self._packed(joined, self._lengths_at[1], 4, self._form.order)
        window.counts["gre"] += len(columns)
        window.packets += len(columns)
        window.octets += sum(array(U32, wire))
        if captured != wire:
            window.cut += sum(map(lt, array(U32, captured), array(U32, wire)))
        self._sorter.seen(columns.times[0], columns.times[-1])

    def _spot(self, joined: bytes) -> bytes:
        return b"".join([joined[each] for each in self._spots]) + self._prefix

    def _alike(self, joined: bytes) -> bool:
        """Whether all that must be the same in ordinary packets of one flow is so."""
        step, ip = self._step, self._ip
        # strip() leaves nothing where every octet is one of its argument's
        for at, octet in self._same:
            if joined[at::step].strip(bytes((octet,))):
                return False
        for each in self._spots:
            for at in range(each.start, each.stop):
                if joined[at::step].strip(joined[at : at + 1]):
                    return False
        return not (
            joined[ip + 6 :: step].strip(b"\0\x40")
            or joined[ip + 20 :: step].strip(b"\x20\x30")
            or joined[ip + 21 :: step].strip(b"\x01\x81")
        )

    def _packed(self, joined: bytes, at: int, size: int, order: str = ">") -> bytes:
        """Return the column at *at* of integers of *size* octets, in this machine's order."""
        step = self._step
        octets = bytearray(len(joined) // step * size)
        flip = size - 1 if (order == ">") is _LITTLE else 0
        for octet in range(size):
            octets[octet ^ flip :: size] = joined[at + octet :: step]
        return bytes(octets)

    def _times(self, joined: bytes) -> Sequence[float] | None:
        """Return the column of times; None if there are some that cannot be."""
        rate, offset, order = self._interface.rate, self._interface.offset, self._form.order
        first, second = (0, 4) if self._form.kind == "pcap" else (12, 16)
        upper = array(U32, self._packed(joined, first, 4, order))
        lower = array(U32, self._packed(joined, second, 4, order))
        if self._form.kind == "pcap":
            if max(lower) >= rate and not self._form.loose:
                return None
            return list(map(add, upper, map(truediv, lower, repeat(rate))))
        return [(high << 32 | low) / rate + offset for high, low in zip(upper, lower, strict=True)]

    def _show(self, columns: Columns, flow: FlowKey) -> None:
        """Keep what may be PPP control, and the first data in the clear, for a closer look."""
        heads, sorter = columns.heads, self._sorter
        if isinstance(heads, array):
            octets = heads.tobytes()
            first, second = (octets[at::4] for at in OCTETS_OF_U32[:2])
            if not first.strip(b"\0\xfd") and not (
                column(first, _IS_ZERO) & column(second, _IS_PROTOCOL)
            ):
                return  # as a rule there is no payload, or it is encrypted
        tops = list(map(rshift, heads, repeat(16)))
        kinds = {top: _kind(top) for top in set(tops)}
        shown = {top for top, kind in kinds.items() if kind != ENCRYPTED}
        if not shown:
            return
        chosen: Iterator[int] = compress(range(len(tops)), map(shown.__contains__, tops))
        if all(kinds[top] == DATA for top in shown):
            chosen = islice(chosen, PLAIN_KEPT)
        for index in chosen:
            kind = kind_of_payload(heads[index].to_bytes(4, "big"))
            if kind != ENCRYPTED and sorter.is_wanted(flow, kind):
                number, at = columns.numbers[index], self._before
                frame = self._frame_of(number)
                if not frame:
                    return  # its record is bad, and reading ends there
                packet = frame[at : at + int.from_bytes(frame[at + 2 : at + 4], "big")]
                sorter.show(flow, number, columns.times[index], packet)


def _kind(top: int) -> int:
    """Tell what a payload is by its first two octets; address and control alone say nothing."""
    return CONTROL if top == _ADDRESS_CONTROL else kind_of_payload(top.to_bytes(2, "big"))


def _sum(one: bytes, other: bytes) -> bytes:
    """Add two columns of octets, whose sums are octets too."""
    return (column(one) + column(other)).to_bytes(len(one), sys.byteorder)


def _wide(octets: bytes) -> int:
    """Return a column of octets as one number, 16 bits each."""
    wide = bytearray(2 * len(octets))
    wide[0 if _LITTLE else 1 :: 2] = octets
    return int.from_bytes(wide, sys.byteorder)


def _chosen(which: bytes, one: bytes, other: bytes) -> bytes:
    """Return of each pair the 32 bits from *one* where *which* is 1, else those from *other*."""
    if 0 not in which:
        return one
    if 1 not in which:
        return other
    lanes = bytearray(len(one))
    whole = which.translate(_FULL)
    for octet in range(4):
        lanes[octet::4] = whole
    mask = int.from_bytes(lanes, sys.byteorder)
    first, second = column(one), column(other)
    return (second ^ ((first ^ second) & mask)).to_bytes(len(one), sys.byteorder)
