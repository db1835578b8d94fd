"""Entries that the kernel writes all alike: of one length, with everything in one place.

Its GRE entries of ours are, so hundreds of them are read by one `struct`, and one
comparison of their headers says whether that was right.  What a reader wants of them,
and how it goes on where they are not alike, is its own affair.
"""

from __future__ import annotations

import struct
from typing import Final

_START: Final = struct.Struct("=IH")  # length and kind of a message
#: octets of it, which are the same in all of them
START: Final = _START.size
#: the beginning of an entry for `struct`: its length and kind, family, both tuples; in the
#: order of `ARRIVING_HEADERS` and `LEAVING_HEADERS`, with what they enclose
TUPLES: Final = "!6s10xs3x12s4s4s4s24sH2x12s4s4s4s16sH2x4s4x"
TUPLES_END: Final = struct.calcsize(TUPLES)


def size_alike(octets: bytes, kind: int, shortest: int) -> int:
    """Return the length of each message in *octets*, if they may be all of one.

    0: they are not, or of another *kind*, or shorter than *shortest* octets.
    """
    if len(octets) < shortest:
        return 0
    size, found = _START.unpack_from(octets)
    alike = found == kind and size >= shortest and not size % 4 and not len(octets) % size
    return size if alike else 0
