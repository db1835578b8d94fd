"""Reading capture files, a window at a time.

A file is read in stretches of `WINDOW` octets, each of which becomes one
`pptp_nat.analysis.sorting.Window`; nothing of a stretch is kept but what is sorted out of
it.  Within one the octets come in pieces (`pptp_nat.analysis.stored`).  Where a file stops
making sense the reading ends, and the last window says where.
"""

from __future__ import annotations

import contextlib
import copy
import os
import struct
from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis import formats
from pptp_nat.analysis.formats import LONGEST, SHORTEST_BLOCK, BadRecord
from pptp_nat.analysis.model import Damage
from pptp_nat.analysis.sorting import Sorter
from pptp_nat.analysis.stored import PIECE, opened
from pptp_nat.analysis.walk import SHAPES, Frames, Main, head_of, shape_of, walk
from pptp_nat.core.messages import PORT
from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pptp_nat.analysis.bulk import Bulk
    from pptp_nat.analysis.formats import Form, Record
    from pptp_nat.analysis.sorting import Window
    from pptp_nat.analysis.stored import Stored

WINDOW: Final = 16 << 20  #: octets
SMALL: Final = 1 << 20  #: octets of a file, below which columns are not worth their while
FIRST: Final = 1 << 20  #: octets of the first window, which shows what the file is
_START: Final = 4096  #: octets that say what a file is
_USUAL: Final = 2048  #: octets that most records are shorter than
_SAMPLE: Final = 2000  #: records that show what most have in common


class Stretch:
    """Sorts the records of a stretch of a file one by one and, where it can, by the column."""

    def __init__(
        self, stored: Stored, form: Form, ports: frozenset[int], main: Main | None = None,
        bulk: type[Bulk] | None = None,
    ) -> None:  # fmt: skip
        """By the column only with *bulk*."""
        self._bulk = bulk
        self.form = form
        self.main = main
        self.packets = 0  #: records read so far: packet numbers follow
        self.sorter = Sorter(ports)
        self.damage: str | None = None  #: what is wrong where reading stopped
        #: where a record is none, and why; what lies behind it may have been sorted already
        self.bad: tuple[int, str] | None = None
        self.ended = False  #: no octets are left
        self._stored = stored
        self._piece, self._base = b"", 0  # what was read last, and where that begins
        self._walked: list[_Piece] = []

    def read(self, at: int, stop: int) -> int:
        """Sort the records that begin from *at* to before *stop*; return where the next begins."""
        packets, form = self.packets, copy.deepcopy(self.form)
        sound = self._read(at, stop)
        while self.bad is not None:  # once more, only as far as all is well
            (sound, what), self.bad = self.bad, None
            self.packets, self.form = packets, copy.deepcopy(form)
            self.sorter, self.ended, self.damage = Sorter(self.sorter.ports), False, None
            self._read(at, sound)
            self.damage = what
        return sound

    def _read(self, at: int, stop: int) -> int:
        while self._goes_on(at, stop):
            if self.form.interfaces:
                at = self._walk(at, stop)
            if self._goes_on(at, stop):
                at = self._block(at)
        return at

    def _goes_on(self, at: int, stop: int) -> bool:
        return at < stop and not self.ended and self.damage is None and self.bad is None

    def _walk(self, at: int, stop: int) -> int:
        """Sort packets up to what is none."""
        if self.main is None:
            self.main = self._commonest(at)
        main, stuck, size = self.main, False, PIECE
        octets = head_of(self.form, main.frames.ip_at)
        bulk = self._bulk(self.form, main, self.sorter, self._frame) if self._bulk else None
        while not stuck and self._goes_on(at, stop):
            piece = self._load(at, size)
            end = len(piece)
            is_last = end < size
            if is_last:
                piece += bytes(octets)
            found = walk(piece, min(stop - at, len(piece) - octets), end, self.form)
            first = self.packets + 1
            self._walked.append(_Piece(first, at, found.starts))
            stuck, self.ended = found.stuck, is_last and found.stop == end
            size = 2 * LONGEST if found.short and not found.starts else PIECE
            if found.short and is_last:
                self.damage = "the file ends within its last packet"
            elif stuck and self.form.kind == "pcap":
                (length,) = struct.unpack_from(self.form.order + "I", piece, found.stop + 8)
                self.damage = f"a packet that claims {length} octets"
            count = len(found.starts)
            self._singly(
                range(first, first + count) if bulk is None
                else bulk.take(piece, found.starts, first)
            )  # fmt: skip
            self.packets += len(found.starts)
            at += found.stop
        if bulk is not None:
            self._singly(bulk.finish())
        self._walked.clear()
        return at

    def _singly(self, numbers: Iterable[int]) -> None:
        """Sort packets that were walked over, one at a time."""
        for number in numbers:
            record = self._walked_over(number)
            if record is None:
                break
            self.sorter.take(number, record, self.form.interfaces[record.interface])

    def _frame(self, number: int) -> bytes:
        record = self._walked_over(number)
        return b"" if record is None else record.frame

    def _walked_over(self, number: int) -> Record | None:
        """Return a packet by its number; None if its record turns out to be bad."""
        piece = self._walked[bisect_right(self._walked, number, key=_first) - 1]
        at = piece.base + piece.starts[number - piece.first]
        try:
            return self._record(at)
        except BadRecord as error:
            if self.bad is None or at < self.bad[0]:
                self.bad = at, str(error)
            return None

    def _record(self, at: int) -> Record:
        """Return the packet whose record begins at *at*.

        Raises:
            BadRecord: there is none.
        """
        octets = self._octets(at, _USUAL)
        if self.form.kind == "pcap":
            length = formats.pcap_length(self.form, octets)
            if length > len(octets):
                octets = self._octets(at, min(length, LONGEST))
            return formats.pcap_record(self.form, octets)
        kind, length = formats.block_length(self.form, octets[:SHORTEST_BLOCK])
        octets = octets[:length] if length <= len(octets) else self._octets(at, length)
        found = formats.read_block(self.form, kind, length, octets)
        assert found is not None, "walk() goes over packet blocks only"
        return found

    def _block(self, at: int) -> int:
        """Read a block that is no ordinary packet; return where the next begins."""
        if not self._holds(at, _USUAL):
            self._load(at)
        start = self._octets(at, SHORTEST_BLOCK)
        if not start:
            self.ended = True
            return at
        try:
            kind, length = formats.block_length(self.form, start)
            record = formats.read_block(self.form, kind, length, self._octets(at, length))
        except BadRecord as error:
            self.damage = str(error)
            return at
        if kind == formats.SECTION:
            self.main = None  # its interfaces are others
        if record is not None:
            self.packets += 1
            self.sorter.take(self.packets, record, self.form.interfaces[record.interface])
        return at + length

    def _load(self, at: int, size: int = PIECE) -> bytes:
        """Read a piece of the file; a short one is its last."""
        self._piece, self._base = self._stored.read(at, size), at
        return self._piece

    def _holds(self, at: int, octets: int) -> bool:
        """Whether the latest piece has these octets."""
        return self._base <= at and at + octets <= self._base + len(self._piece)

    def _octets(self, at: int, octets: int) -> bytes:
        """Return *octets* from *at* on, fewer where the file ends."""
        if self._holds(at, octets):
            begin = at - self._base
            return self._piece[begin : begin + octets]
        return self._stored.read(at, octets)

    def _commonest(self, at: int) -> Main:
        """Return what most GRE of the next packets has in common."""
        shapes = SHAPES.get(self.form.interfaces[0].link, (Frames(0, ()),))
        usual, votes = Main(0, shapes[0]), Counter[Main]()
        piece = self._stored.read(at, PIECE)
        stop = len(piece) - head_of(self.form, usual.frames.ip_at)
        found = walk(piece, stop, 2 * LONGEST, self.form)
        for start in found.starts[:_SAMPLE]:
            with contextlib.suppress(BadRecord):
                record = self._record(at + start)
                link = self.form.interfaces[record.interface].link
                frames = shape_of(link, record.frame)
                if frames is not None:
                    votes[Main(record.interface, frames)] += 1
        return votes.most_common(1)[0][0] if votes else usual


class _Piece(NamedTuple):
    """A piece that was walked over."""

    first: int  #: number of its first packet
    base: int  #: where it begins in the file
    starts: list[int]  #: where its records begin in it


def _first(piece: _Piece) -> int:
    return piece.first


def columns_for(size: int) -> type[Bulk] | None:
    """Return what reads a file of so many octets by the column.

    None for a small one, and where numpy is missing: then it is read packet by packet.
    """
    if size < SMALL:
        return None
    # threads for algebra would only be in the way of the processes that read
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from pptp_nat.analysis.bulk import Bulk  # noqa: PLC0415  numpy takes a tenth of a second
    except ImportError:
        return None
    return Bulk


class CaptureReader:
    """One file: its windows, in order.

    Raises:
        UsageError: it cannot be read, or is no capture.
    """

    def __init__(self, path: Path, ports: frozenset[int] = frozenset((PORT,))) -> None:
        self.name = str(path)
        self.ports = ports
        self.position = 0  #: octets that have been read, as stored
        try:
            self._stored, self.size, compressed = opened(path)  # octets, as stored
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        form = formats.recognise(self._stored.read(0, _START), self.name)
        self.bulk = columns_for(self.size)
        self._stretch = Stretch(self._stored, form, ports, bulk=self.bulk)
        self._at = formats.PCAP_HEADER if form.kind == "pcap" else 0
        #: how the file is written: ``pcap``, ``pcapng``, with ``.gz`` if compressed
        self.kind = form.kind + (".gz" if compressed else "")

    @property
    def state(self) -> tuple[int, int, Form, Main | None]:
        """Offset of the next record, packets before it, and how it is to be read."""
        return self._at, self._stretch.packets, self._stretch.form, self._stretch.main

    def windows(self) -> Iterator[Window]:
        """Yield what is in the file, sorted, a stretch at a time."""
        stretch, final, octets = self._stretch, False, min(FIRST, WINDOW)
        while not final:
            before = stretch.packets
            self._at = stretch.read(self._at, self._at + octets)
            self._stored.forget(self._at)
            window, octets = stretch.sorter.finish(), WINDOW
            final = stretch.ended or stretch.damage is not None
            what = stretch.damage or self._stored.trouble
            if what is not None:
                window.damage = Damage(self._at, stretch.packets, what)
                final = True
            assert window.packets == stretch.packets - before
            self.position = self._stored.position
            yield window
        self._stored.close()
