"""Whose turn it is: tests run beside each other, a process per core, and a few must be alone.

Whoever floods a core, or measures what a part of the machine costs, has the mark
``alone``: nobody else's test runs meanwhile.  Two locks (flock(2)) see to that, which
every test takes in this order and no test file needs to know of:

- the door, held for a moment, or by one that wants to be alone until all others have ended;
- the room, shared by all, or one's own.

Without the door those who share the room would keep out for ever whoever wants it alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DOOR = Path(__file__)
_ROOM = Path(__file__).parent


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Have a turn while the ``with`` block lasts."""
    with (
        _locked(_DOOR) as door,
        _locked(_ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH),
    ):
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a fork may still have it open
        os.close(descriptor)
