"""Work that is shared out among processes, each a copy of this one.

A copy has all that this process has, so that nothing is sent but what it found.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_WELL: Final = 0  #: exit status


def shares() -> int:
    """Return into how many shares work is best divided."""
    # the copy of a process with several threads may wait for a lock that nobody gives back
    return len(os.sched_getaffinity(0)) if threading.active_count() == 1 else 1


def shared(work: Callable[[int], _T], count: int) -> list[_T]:
    """Return what *work* returns for each share, 0 to *count* - 1.

    Each but the first is done by a process of its own, and by this one if that fails.
    What such a process changes besides is lost.
    """
    others = [_begin(work, share) for share in range(1, count)]
    found = [work(0)]
    for share, other in enumerate(others, 1):
        sent = None if other is None else _received(*other)
        found.append(work(share) if sent is None else pickle.loads(sent))  # noqa: S301  our own
    return found


def _begin(work: Callable[[int], object], share: int) -> tuple[int, int] | None:
    """Return a process at work, and where to read what it sends; None if there is none."""
    reading, writing = os.pipe()
    try:
        process = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return None
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other one's to hear
        os.close(reading)
        with open(writing, "wb") as pipe:  # noqa: PTH123  a number
            pickle.dump(work(share), pipe, protocol=5)
        status = _WELL
    except Exception:  # noqa: BLE001  the work is done once more, where an error can be told
        status = 1
    finally:
        os._exit(status)


def _received(process: int, reading: int) -> bytes | None:
    """Return all that a process sends; None if it fails."""
    with open(reading, "rb") as pipe:
        sent = pipe.read()
    _, status = os.waitpid(process, 0)
    return sent if status == _WELL else None
