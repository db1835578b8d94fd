"""Network namespaces by name: make, enter, look into, remove.

What ``ip netns`` does, in this very thread: a child that makes a namespace could
be about to do so when an interrupted parent has already looked for what there
is to remove.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMED: Final = Path("/run/netns")  # where ``ip netns`` keeps them, as mounts over empty files
_OURS: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000  # <linux/sched.h>
_MS_BIND: Final = 4096  # <linux/mount.h>, as are the next three
_MS_REC: Final = 16384
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """Make a namespace called *name*.

    Raises:
        OSError: the name is taken, or we may not.
    """
    _prepare()
    path = NAMED / name
    path.touch(exist_ok=False)
    with _coming_back():
        _libc("unshare", _CLONE_NEWNET)
        _mount(_OURS, path, _MS_BIND)


def remove(name: str) -> None:
    """Remove the name *name*, if there; the namespace goes with the last that lives in it."""
    with contextlib.suppress(OSError):  # interrupted in the making, it is a file and no mount
        _libc("umount2", str(NAMED / name).encode(), _MNT_DETACH)
    (NAMED / name).unlink(missing_ok=True)


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """Let this thread, and what it starts, live in the namespace *name* for a while.

    Raises:
        OSError: there is none of that name, or we may not.
    """
    with _coming_back():
        _set(NAMED / name)
        yield


def pids(names: Iterable[str]) -> list[int]:
    """Return the processes, other than this one, that live in the namespaces *names*."""
    wanted = set()
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            wanted.add((NAMED / name).stat().st_ino)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended while we looked
                if (entry / "ns/net").stat().st_ino in wanted:
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def _coming_back() -> Iterator[None]:
    with Path(_OURS).open("rb") as home:
        try:
            yield
        finally:
            _libc("setns", home.fileno(), _CLONE_NEWNET)


def _set(path: Path) -> None:
    with path.open("rb") as namespace:
        _libc("setns", namespace.fileno(), _CLONE_NEWNET)


def _prepare() -> None:
    """Make /run/netns a mount of its own whose changes every mount namespace sees."""
    NAMED.mkdir(exist_ok=True)
    try:
        _mount("none", NAMED, _MS_SHARED | _MS_REC)
    except OSError:
        _mount(NAMED, NAMED, _MS_BIND | _MS_REC)
        _mount("none", NAMED, _MS_SHARED | _MS_REC)


def _libc(function: str, *arguments: object) -> None:
    if getattr(_LIBC, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    _libc("mount", str(source).encode(), str(target).encode(), b"none", flags, None)
