from collections.abc import Callable
from mmap import mmap

from pptp_nat.linux.leg_table import Row

def rewrite(
    octets: mmap,
    room: int,
    pieces: bytearray,
    first: int,
    count: int,
    notes: dict[bytes, int],
    rows: mmap,
    seconds: dict[bytes, Row],
    must_drop: Callable[[int], bool],
    between: bytes,
    repeat_mark: int,
    most: int,
    /,
) -> tuple[int, list[int]]: ...
