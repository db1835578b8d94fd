"""The octets of a capture as stored, plain or compressed, a piece at a time.

A piece is small enough for the processor's caches: copying it there costs a tenth of what
walking over a large buffer does.  Offsets are those of the capture, uncompressed.
"""

from __future__ import annotations

import os
import zlib
from typing import IO, TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

PIECE: Final = 1 << 18  #: octets that are read at once
GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 31  #: zlib's word for a gzip header and the largest window


class Stored(Protocol):
    """Where the octets of a capture come from."""

    trouble: str | None  #: why there are no more, if it is not the end

    @property
    def position(self) -> int:
        """Octets of the file that have been read, as stored."""

    def read(self, at: int, octets: int) -> bytes:
        """Return *octets* from *at* on; fewer only where the file ends, or `trouble` begins."""

    def forget(self, before: int) -> None:
        """Take note that nothing before this offset will be asked for again."""

    def close(self) -> None:
        """Close the file."""


def opened(path: Path) -> tuple[Stored, int, bool]:
    """Open a file; return its octets, how many are stored, and whether they are compressed.

    Raises:
        OSError: it cannot be read.
    """
    file = path.open("rb", buffering=0)
    size = os.fstat(file.fileno()).st_size
    compressed = os.pread(file.fileno(), 2, 0) == GZIP
    return (Inflated(file) if compressed else Plain(file)), size, compressed


class Plain:
    """A file that is what it says."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._number = file, file.fileno()
        self.position = 0
        self.trouble: str | None = None

    def read(self, at: int, octets: int) -> bytes:
        """See `Stored.read`."""
        found = self._read(at, octets)
        while 0 < len(found) < octets:
            more = self._read(at + len(found), octets - len(found))
            if not more:
                break
            found += more
        self.position = max(self.position, at + len(found))
        return found

    def _read(self, at: int, octets: int) -> bytes:
        try:
            return os.pread(self._number, octets, at)
        except OSError as error:
            self.trouble = f"cannot be read: {error.strerror}"
            return b""

    def forget(self, before: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Inflated:
    """What is in a gzip file (RFC 1952), as far as it can be had; all of it is kept.

    Until it is forgotten, that is.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._raw = b""
        self._kept, self._base = bytearray(), 0  # what stands from `_base` on
        self._ended = False
        self.position = 0
        self.trouble: str | None = None

    def read(self, at: int, octets: int) -> bytes:
        """See `Stored.read`; *at* is not before what was forgotten."""
        begin = at - self._base
        assert begin >= 0, "asked for what was forgotten"
        while len(self._kept) < begin + octets and not self._ended:
            self._ended = not self._more()
        return bytes(self._kept[begin : begin + octets])

    def forget(self, before: int) -> None:
        """See `Stored.forget`."""
        del self._kept[: before - self._base]
        self._base = before

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _more(self) -> bool:
        """Inflate a little; return False where there is no more."""
        if not self._raw:
            try:
                self._raw = self._file.read(PIECE)
            except OSError as error:
                self.trouble = f"cannot be read: {error.strerror}"
                return False
            self.position += len(self._raw)
        if not self._raw:
            if not self._member.eof:
                self.trouble = "the compressed file ends too early"
            return False
        if self._member.eof:  # several members may follow each other
            self._member = zlib.decompressobj(_GZIP_WINDOW)
        try:
            self._kept += self._member.decompress(self._raw, PIECE)
        except zlib.error as error:
            self.trouble = f"the compressed file is damaged ({error})"
            return False
        self._raw = (
            self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        )
        return True
