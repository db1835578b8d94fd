"""Ordinary GRE by the thousand: what is alike is read by the column.

Theory of operation
-------------------
Most of a large capture is GRE in frames of one shape.  The head of each record of GRE, up
to the first octets of its payload, is kept while it is in the processor's cache.  The heads
of a stretch are one table with a fixed distance from packet to packet, so that a field is a
column, and numpy compares, sorts and counts columns.  Packets that are not ordinary in the
sense of `pptp_nat.analysis.packets.Columns` are sorted one at a time
(`pptp_nat.analysis.sorting`), which can do it all: without numpy it does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pptp_nat.analysis import links
from pptp_nat.analysis.arrays import ArrayColumns
from pptp_nat.analysis.packets import COLUMNS
from pptp_nat.analysis.sorting import PLAIN_KEPT, kind_of_payload
from pptp_nat.analysis.walk import head_of
from pptp_nat.core.packet import ENHANCED_GRE_PROTOCOL, GRE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pptp_nat.analysis.formats import Form
    from pptp_nat.analysis.sorting import FlowKey, Sorter
    from pptp_nat.analysis.walk import Main

_DO_NOT_FRAGMENT: Final = 0x4000
_NEITHER: Final = 0x2001  #: flags of GRE: K, version 1
_BOTH: Final = 0x1080  #: S and A, either of which or both may be set
_BATCH: Final = 4096  #: heads that fit the processor's cache together
_MIX: Final = 0x9E3779B97F4A7C15  #: odd, so that it spreads what it is multiplied with
_MASKS: Final = np.array((0, 0xFF000000, 0xFFFF0000, 0xFFFFFF00, 0xFFFFFFFF), np.uint32)


class Bulk:
    """The heads of a stretch, and what becomes of them."""

    def __init__(
        self, form: Form, main: Main, sorter: Sorter, frame_of: Callable[[int], bytes]
    ) -> None:
        """*frame_of* returns the whole frame of a packet by its number; none if it is bad."""
        self._form, self._main, self._sorter, self._frame_of = form, main, sorter, frame_of
        self._interface = form.interfaces[main.interface]
        self._before = main.frames.ip_at
        self._octets = head_of(form, self._before)
        self._layout = _layout(form, main, self._octets)
        self._spots = tuple(name for name in self._layout.names if name.startswith("spot"))
        self._heads: list[Any] = []
        self._numbers: list[Any] = []
        self._held = 0  # of both
        self._alone: list[int] = []
        self._sifted: list[tuple[Any, ...]] = []  # columns, flow

    def take(self, piece: bytes, starts: list[int], first: int) -> list[int]:
        """Keep the heads of GRE among the records that begin at *starts*.

        The first has the number *first*.  Return the numbers of the others.
        """
        octets = self._octets
        places = np.ndarray(len(piece) - octets + 1, f"V{octets}", piece, strides=(1,))
        # as octets: what has fields is copied field by field
        heads = places[np.fromiter(starts, np.intp, len(starts))]
        is_gre = heads.view(self._layout)["protocol"] == GRE
        at, others = np.flatnonzero(is_gre), []
        if len(at) != len(starts):
            heads, others = heads[at], (np.flatnonzero(~is_gre) + first).tolist()
        self._heads.append(heads)
        self._numbers.append((at + first).astype(np.uint32))
        self._held += len(heads)
        if self._held >= _BATCH:
            self._sift()
        return others

    def finish(self) -> list[int]:
        """Sort what was kept; return the numbers of the packets that are no ordinary ones."""
        self._sift()
        if self._sifted:
            self._sort()
        alone, self._alone, self._sifted = self._alone, [], []
        return alone

    def _sift(self) -> None:
        """Make columns of the heads of ordinary packets, while they are in the cache."""
        if not self._held:
            return
        octets, numbers = np.concatenate(self._heads), np.concatenate(self._numbers)
        self._heads, self._numbers, self._held = [], [], 0
        heads = octets.view(self._layout)
        total, length, flags = (
            heads[name].astype(np.int32) for name in ("total", "length", "flags")
        )
        sequenced, acknowledged = flags >> 12 & 1, flags >> 7 & 1
        size = 28 + 4 * (sequenced + acknowledged)
        captured = heads["captured"].astype(np.int64)
        good = (
            ((flags & ~_BOTH) == _NEITHER) & (size > 28)
            & (total == size + length)
            & (captured >= self._before + size + np.minimum(length, 4))
            & ((length == 0) | (sequenced != 0))
            & (heads["first"] == 0x45)
            & ((heads["fragment"] & ~np.uint16(_DO_NOT_FRAGMENT)) == 0)
            & (heads["carried"] == ENHANCED_GRE_PROTOCOL)
            & self._is_sound(heads, captured)
        )
        for at, octet in self._main.frames.same:
            good &= heads[f"octet {at}"] == octet
        if not good.all():
            self._alone += numbers[~good].tolist()
            chosen = np.flatnonzero(good)
            if not len(chosen):
                return
            octets, numbers, captured, length, sequenced, acknowledged = (
                each[chosen]
                for each in (octets, numbers, captured, length, sequenced, acknowledged)
            )
            heads = octets.view(self._layout)
        times = self._times(heads)
        self._count(heads["wire"], captured, times)
        one, two, three = (heads[name].astype(np.uint32) for name in ("one", "two", "three"))
        payload = np.where(sequenced, np.where(acknowledged, three, two), 0).astype(np.uint32)
        pairs = heads["source"].astype(np.uint64) << np.uint64(32) | heads["destination"]
        self._sifted.append((
            times, numbers, length.astype(np.uint32), sequenced.astype(np.uint8), one,
            acknowledged.astype(np.uint8), np.where(sequenced, two, one),
            payload & _MASKS[np.minimum(length, 4)],
            pairs, heads["key"].astype(np.uint16), *(heads[name].copy() for name in self._spots),
        ))  # fmt: skip

    def _is_sound(self, heads: Any, captured: Any) -> Any:  # noqa: ANN401  of numpy
        """Whether the header of a record contradicts nothing."""
        if self._form.kind == "pcap":
            if self._form.loose:
                return True
            return heads["lower"] < self._interface.rate
        return (heads["interface"] == self._main.interface) & (captured <= heads["block"] - 32)

    def _count(self, wire: Any, captured: Any, times: Any) -> None:  # noqa: ANN401  of numpy
        """Count ordinary packets."""
        window = self._sorter.window
        window.packets += len(wire)
        window.counts["gre"] += len(wire)
        window.octets += int(wire.sum(dtype=np.int64))
        window.cut += int(np.count_nonzero(wire > captured))
        window.links.add(self._interface.link)
        self._sorter.seen(times.min().item(), times.max().item())

    def _sort(self) -> None:
        """Put the packets of each flow together."""
        every = [np.concatenate(each) for each in zip(*self._sifted, strict=True)]
        self._sifted = []
        order, begins = _grouped(every[len(COLUMNS) :])
        columns = ArrayColumns(*(each[order] for each in every[: len(COLUMNS)]))
        flows = zip(*(each[order[begins]].tolist() for each in every[len(COLUMNS) :]), strict=True)
        data, control = _kinds(columns.heads)
        shown = data | control
        ends = [*begins[1:], len(columns)]
        for begin, end, names in zip(begins, ends, flows, strict=True):
            flow = self._flow(*names)
            self._sorter.window.flows[flow] = part = columns.part(begin, end)
            if shown[begin:end].any():
                chosen = control[begin:end]
                chosen[np.flatnonzero(data[begin:end])[:PLAIN_KEPT]] = True
                self._show(part, flow, np.flatnonzero(chosen).tolist())

    def _times(self, heads: Any) -> Any:  # noqa: ANN401  of numpy
        upper, lower, rate = heads["upper"], heads["lower"], self._interface.rate
        if self._form.kind == "pcap":
            return upper + lower / rate
        whole = upper.astype(np.uint64) << np.uint64(32) | lower
        return whole / rate + self._interface.offset

    def _flow(self, pair: int, key: int, *spots: int) -> FlowKey:
        spot = b"".join(
            each.to_bytes(self._layout[name].itemsize, sys.byteorder)
            for name, each in zip(self._spots, spots, strict=True)
        )
        if self._main.interface:
            spot += self._main.interface.to_bytes(4, "big")
        return spot, pair.to_bytes(8, "big"), key

    def _show(self, columns: ArrayColumns, flow: FlowKey, chosen: list[int]) -> None:
        """Keep what may be PPP control, and the first data in the clear, for a closer look."""
        for index in chosen:
            kind = kind_of_payload(columns.heads.item(index).to_bytes(4, "big"))
            if self._sorter.is_wanted(flow, kind):
                number, at = columns.numbers.item(index), self._before
                frame = self._frame_of(number)
                if not frame:
                    return  # its record is bad, and reading ends there
                packet = frame[at : at + int.from_bytes(frame[at + 2 : at + 4], "big")]
                self._sorter.show(flow, number, columns.times.item(index), packet)


def _layout(form: Form, main: Main, octets: int) -> Any:  # noqa: ANN401  a dtype
    """Return where the fields stand in the head of a record."""
    order, ip = form.order, form.header + main.frames.ip_at
    fields = {
        "first": ("u1", ip), "total": (">u2", ip + 2), "fragment": (">u2", ip + 6),
        "protocol": ("u1", ip + 9), "source": (">u4", ip + 12), "destination": (">u4", ip + 16),
        "flags": (">u2", ip + 20), "carried": (">u2", ip + 22), "length": (">u2", ip + 24),
        "key": (">u2", ip + 26),
        "one": (">u4", ip + 28), "two": (">u4", ip + 32), "three": (">u4", ip + 36),
    }  # fmt: skip
    names = ("upper", "lower", "captured", "wire")
    at = 0 if form.kind == "pcap" else 12
    fields |= {name: (order + "u4", at + 4 * index) for index, name in enumerate(names)}
    if form.kind == "pcapng":
        fields |= {"block": (order + "u4", 4), "interface": (order + "u4", 8)}
    fields |= {f"octet {at}": ("u1", form.header + at) for at, _ in main.frames.same}
    for each in links.SPOTS.get(form.interfaces[main.interface].link, ()):
        fields[f"spot {each.start}"] = f"u{each.stop - each.start}", form.header + each.start
    return np.dtype({
        "names": list(fields), "formats": [kind for kind, _ in fields.values()],
        "offsets": [at for _, at in fields.values()], "itemsize": octets,
    })  # fmt: skip


def _grouped(fields: list[Any]) -> tuple[Any, list[int]]:
    """Return an order in which what agrees in all *fields* stands together, and where it begins.

    Among what agrees the order stays.
    """
    mixed = np.zeros(len(fields[0]), np.uint64)
    for field in fields:
        mixed = (mixed ^ field) * np.uint64(_MIX)
        mixed ^= mixed >> np.uint64(29)
    print_ = (mixed >> np.uint64(32)).astype(np.uint32)
    # numpy sorts 16 bits by counting
    order = np.argsort(print_.astype(np.uint16), kind="stable")
    order = order[np.argsort((print_[order] >> 16).astype(np.uint16), kind="stable")]
    differs = _changes(fields, order)
    if (differs & ~_changes([print_], order)).any():  # two flows have the same print
        order = np.lexsort(fields)
        differs = _changes(fields, order)
    return order, [0, *(np.flatnonzero(differs) + 1).tolist()]


def _changes(fields: list[Any], order: Any) -> Any:  # noqa: ANN401  of numpy
    """Return where any field is not as it is one place before."""
    found = np.zeros(len(order) - 1, bool)
    for field in fields:
        column = field[order]
        found |= column[1:] != column[:-1]
    return found


def _kinds(heads: Any) -> tuple[Any, Any]:  # noqa: ANN401  of numpy
    """Tell which payloads are data in the clear and which may be PPP control.

    See `pptp_nat.analysis.sorting.kind_of_payload`.
    """
    bare = np.where(heads >> 16 == 0xFF03, heads << np.uint32(16), heads)
    first, second = bare >> 24, bare >> 16 & 0xFF
    escaped = (first == 0x7D) | (first == 0xFF)
    lead = np.where(first == 0, second, first)
    nothing = (lead == 0) | (lead == 0xFD)
    data = (lead & 1).astype(bool) & ~nothing & ~escaped
    return data, ~nothing & ~data
