"""Packets kept as evidence: pcapng files of bounded size.

Two files take turns: when one is full the other begins anew, so the latest packets are
always there, at least half of what is allowed.  Both are opened at the start, since later
there may be no right to.  Frames are in the form of Linux cooked v2 (LINKTYPE 276), as
`tcpdump -i any` writes them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from pptp_nat.analysis.formats import ENHANCED, INTERFACE, SECTION
from pptp_nat.analysis.links import LINUX_SLL2
from pptp_nat.errors import UsageError

_NANOSECONDS: Final = 9
_TIME_RESOLUTION: Final = 9
_COOKED: Final = struct.Struct("!HHIHBB8s")


def cooked(
    octets: bytes, interface: int, protocol: int, direction: int, hardware: int, address: bytes
) -> bytes:
    """Return a frame as Linux cooked v2 has it: from the network header on, behind 20 octets."""
    header = _COOKED.pack(
        protocol, 0, interface, hardware, direction, min(len(address), 8), address[:8]
    )
    return header + octets


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + length + body + length


_START: Final = _block(SECTION, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1)) + _block(
    INTERFACE,
    struct.pack("=HHI", LINUX_SLL2, 0, 0)
    + struct.pack("=HHBxxx", _TIME_RESOLUTION, 1, _NANOSECONDS)
    + struct.pack("=HH", 0, 0),
)


class EvidenceFile:
    """A pair of files that take turns.

    Raises:
        UsageError: one of them cannot be opened.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.paths = (path, path.with_stem(f"{path.stem}-2"))
        self._half = limit // 2  #: octets of each
        try:
            self._files = [each.open("wb") for each in self.paths]
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from None
        self._turn = 0
        self._written = 0
        for index in (1, 0):
            self._turn = index
            self._begin()

    def _begin(self) -> None:
        file = self._files[self._turn]
        file.seek(0)
        file.truncate()
        file.write(_START)
        file.flush()
        self._written = len(_START)

    def write(self, time: float, frame: bytes, wire: int) -> None:
        """Keep a packet.

        Raises:
            OSError: the disk is full.
        """
        nanoseconds = round(time * 1e9)
        head = struct.pack(
            "=IIIII", 0, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF, len(frame), wire
        )
        block = _block(ENHANCED, head + frame)
        if self._written + len(block) > self._half:
            self._files[self._turn].flush()
            self._turn = 1 - self._turn
            self._begin()
        self._files[self._turn].write(block)
        self._written += len(block)

    def flush(self) -> None:
        """Have what was written reach the files."""
        self._files[self._turn].flush()

    def close(self) -> None:
        """Write no more."""
        for file in self._files:
            file.close()
