"""Reading capture files, a window at a time.

A file is read in stretches of `WINDOW` octets, each of which becomes one
`pptp_nat.analysis.sorting.Window`; nothing of a stretch is kept but what is sorted out of
it.  Where a file stops making sense the reading ends, and the last window says where.
"""

from __future__ import annotations

import contextlib
import copy
import os
import struct
import zlib
from bisect import bisect_left
from collections import Counter
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Final

from pptp_nat.analysis import formats
from pptp_nat.analysis.bulk import FEWEST, MARGIN, SHAPES, Bulk, Frames, Main, shape_of, walk
from pptp_nat.analysis.formats import BadRecord
from pptp_nat.analysis.model import Damage
from pptp_nat.analysis.sorting import Sorter
from pptp_nat.core.messages import PORT
from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pptp_nat.analysis.formats import Form, Record
    from pptp_nat.analysis.sorting import Window

WINDOW: Final = 16 << 20  #: octets
_GZIP_WINDOW: Final = 31  #: zlib's word for a gzip header and the largest window
_GZIP: Final = b"\x1f\x8b"
_START: Final = 4096  #: octets that say what a file is
_PIECE: Final = 1 << 20  #: octets of compressed data that are read at once
_SAMPLE: Final = 2000  #: records that show what most have in common


class Stretch:
    """Sorts what lies in a buffer, record by record and, where it can, by the column."""

    def __init__(self, form: Form, ports: frozenset[int], main: Main | None = None) -> None:
        self.form = form
        self.main = main
        self.packets = 0  #: records read so far: packet numbers follow
        self.sorter = Sorter(ports)
        self.damage: str | None = None  #: what is wrong where reading stopped
        #: where a record is none, and why; what lies behind it may have been sorted already
        self.bad: tuple[int, str] | None = None

    def read(self, buffer: bytes, at: int, stop: int, end: int) -> int:
        """Sort the records that begin from *at* to before *stop*; return where the next begins.

        The file has no octets from *end* on, the buffer has `MARGIN` from *stop* on.
        """
        packets, form = self.packets, copy.deepcopy(self.form)
        sound = self._read(buffer, at, stop, end)
        while self.bad is not None:  # once more, only as far as all is well
            (sound, what), self.bad = self.bad, None
            self.packets, self.form = packets, copy.deepcopy(form)
            self.sorter = Sorter(self.sorter.ports)
            self._read(buffer, at, sound, sound)
            self.damage = what
        return sound

    def _read(self, buffer: bytes, at: int, stop: int, end: int) -> int:
        while at < stop and self.damage is None and self.bad is None:
            if self.form.interfaces:
                at = self._walk(buffer, at, stop, end)
            if at < stop and self.damage is None and self.bad is None:
                at = self._block(buffer, at, end)
        return at

    def _walk(self, buffer: bytes, at: int, stop: int, end: int) -> int:
        """Sort packets up to what is none."""
        main = self.main or self._usual()
        found = walk(buffer, at, stop, self.form, main.frames.ip_at)
        if self.main is None and found.starts:
            self.main = self._commonest(buffer, found.starts[:_SAMPLE]) or main
            if self.main.frames.ip_at != main.frames.ip_at:
                found = walk(buffer, at, stop, self.form, self.main.frames.ip_at)
            main = self.main
        starts, count, after = found.starts, len(found.starts), found.stop
        if after > end:
            count -= 1
            after, self.damage = starts[count], "the file ends within its last packet"
        elif found.stuck and self.form.kind == "pcap":
            (length,) = struct.unpack_from(self.form.order + "I", buffer, after + 8)
            self.damage = f"a packet that claims {length} octets"
        alone = found.rest[: bisect_left(found.rest, count)]
        bulk, first = Bulk(self.form, main, self.sorter), self.packets + 1
        for pair, keys in found.groups.items():
            for key, indices in keys.items():
                known = indices[: bisect_left(indices, count)]
                if len(known) < FEWEST or not bulk.take(
                    buffer, itemgetter(*known)(starts), list(map(first.__add__, known)), pair, key
                ):  # fmt: skip
                    alone += known
        for index in sorted(alone):
            try:
                self._one(buffer, starts[index], index)
            except BadRecord as error:
                self.bad = starts[index], str(error)
                return end
        self.packets += count
        return after

    def _one(self, buffer: bytes, at: int, index: int) -> None:
        """Sort the packet whose record begins at *at*.

        Raises:
            BadRecord: there is none.
        """
        record = self._record(buffer, at)
        interface = self.form.interfaces[record.interface]
        self.sorter.take(self.packets + 1 + index, record, interface)

    def _record(self, buffer: bytes, at: int) -> Record:
        form = self.form
        if form.kind == "pcap":
            return formats.pcap_record(form, buffer, at)
        kind, length = formats.block_length(form, buffer, at, len(buffer))
        found = formats.read_block(form, kind, buffer[at : at + length])
        assert found is not None, "walk() goes over packet blocks only"
        return found

    def _block(self, buffer: bytes, at: int, end: int) -> int:
        """Read a block that is no ordinary packet; return where the next begins."""
        try:
            kind, length = formats.block_length(self.form, buffer, at, end)
            record = formats.read_block(self.form, kind, buffer[at : at + length])
        except BadRecord as error:
            self.damage = str(error)
            return at
        if kind == formats.SECTION:
            self.main = None  # its interfaces are others
        if record is not None:
            self.packets += 1
            self.sorter.take(self.packets, record, self.form.interfaces[record.interface])
        return at + length

    def _usual(self) -> Main:
        shapes = SHAPES.get(self.form.interfaces[0].link, (Frames(0, ()),))
        return Main(0, shapes[0])

    def _commonest(self, buffer: bytes, starts: list[int]) -> Main | None:
        """Return what most GRE of the first packets has in common; None if there is none."""
        votes: Counter[Main] = Counter()
        for at in starts:
            with contextlib.suppress(BadRecord):
                record = self._record(buffer, at)
                link = self.form.interfaces[record.interface].link
                frames = shape_of(link, record.frame)
                if frames is not None:
                    votes[Main(record.interface, frames)] += 1
        return votes.most_common(1)[0][0] if votes else None


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
            self._stored = path.open("rb")
            self.size = os.fstat(self._stored.fileno()).st_size  #: octets, as stored
            compressed = self._stored.read(2) == _GZIP
            self._stored.seek(0)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        self._inflater = _Inflater(self._stored) if compressed else None
        self._trouble: str | None = None
        self._rest = self._more(_START)
        form = formats.recognise(self._rest, self.name)
        self._stretch = Stretch(form, ports)
        self._at = formats.PCAP_HEADER if form.kind == "pcap" else 0
        self._base = 0  # offset in the file of the first octet of `_rest`
        #: how the file is written: ``pcap``, ``pcapng``, with ``.gz`` if compressed
        self.kind = form.kind + (".gz" if compressed else "")

    @property
    def state(self) -> tuple[int, int, Form, Main | None]:
        """Offset of the next record, packets before it, and how it is to be read."""
        return self._base + self._at, self._stretch.packets, self._stretch.form, self._stretch.main

    def windows(self) -> Iterator[Window]:
        """Yield what is in the file, sorted, a stretch at a time."""
        final = False
        while not final:
            wanted = max(WINDOW + MARGIN - len(self._rest), 0)
            more = self._more(wanted)
            buffer = self._rest + more
            end = len(buffer)
            final = len(more) < wanted
            stop = end if final else end - MARGIN
            if final:
                buffer += bytes(MARGIN)
            stretch, before = self._stretch, self._stretch.packets
            at = stretch.read(buffer, self._at, stop, end)
            window = stretch.sorter.finish()
            what = stretch.damage or (self._trouble if final else None)
            if what is not None:
                window.damage = Damage(self._base + at, stretch.packets, what)
                final = True
            assert window.packets == stretch.packets - before
            self._rest, self._at = buffer[at:end], 0
            self._base += at
            self.position = self._stored.tell()
            yield window
        self._stored.close()

    def _more(self, octets: int) -> bytes:
        """Read up to *octets*; fewer are there only at the end, or where `_trouble` begins."""
        parts: list[bytes] = []
        while octets > 0 and self._trouble is None:
            try:
                if self._inflater is None:
                    return self._stored.read(octets)
                part = self._inflater.read(min(octets, _PIECE))
            except OSError as error:
                self._trouble = f"cannot be read: {error.strerror}"
                break
            if not part:
                self._trouble = self._inflater.trouble
                break
            parts.append(part)
            octets -= len(part)
        return b"".join(parts)


class _Inflater:
    """The octets in a gzip file, as far as they can be had (RFC 1952)."""

    def __init__(self, stored: IO[bytes]) -> None:
        self._stored = stored
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._raw = b""
        self.trouble: str | None = None  #: why there are no more, if it is not the end

    def read(self, octets: int) -> bytes:
        """Return up to *octets*; none at the end, and where the file is damaged."""
        while self.trouble is None:
            if not self._raw:
                self._raw = self._stored.read(_PIECE)
            if not self._raw:
                if not self._member.eof:
                    self.trouble = "the compressed file ends too early"
                break
            if self._member.eof:  # several members may follow each other
                self._member = zlib.decompressobj(_GZIP_WINDOW)
            try:
                part = self._member.decompress(self._raw, octets)
            except zlib.error as error:
                self.trouble = f"the compressed file is damaged ({error})"
                break
            self._raw = self._member.unused_data if self._member.eof else (
                self._member.unconsumed_tail
            )  # fmt: skip
            if part:
                return part
        return b""
