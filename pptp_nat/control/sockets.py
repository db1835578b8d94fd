"""Unix sockets: make one that others can find, and find one that somebody made."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pptp_nat.errors import AdapterError, ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIRECTORY_MODE = 0o750
BACKLOG = 64  #: connections the kernel holds while the daemon is at its packets


class Access(NamedTuple):
    """Who may talk to a socket; an empty owner or group is that of the process."""

    mode: int
    owner: str = ""
    group: str = ""


def listen(path: Path, access: Access) -> socket.socket:
    """Return a non-blocking listening socket at *path*, connectable by *access* only.

    A missing directory is made (its group may enter it).  A file that nobody
    listens on any more is replaced; two starters at once are put in order by a
    lock on the directory.

    Raises:
        UsageError: somebody listens there, or something else than a socket is there.
        ConfigError: no such owner or group.
        AdapterError: the kernel refused.
    """
    owner = _number(access.owner, "owner", lambda name: pwd.getpwnam(name).pw_uid)
    group = _number(access.group, "group", lambda name: grp.getgrnam(name).gr_gid)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_directory(path.parent, owner, group)
        with _locked(path.parent):
            _clear(path)
            # The file has the mode of the socket: nobody can connect until chmod below.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
            if (owner, group) != (-1, -1):
                os.chown(path, owner, group)
            path.chmod(access.mode)
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.errno or errno.ENAMETOOLONG  # the one that Python finds by itself
        mend = "choose another path with --socket"
        raise AdapterError(f"listening on {path}", reason, mend=mend) from error
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def connect(path: Path, timeout: float | None) -> socket.socket:
    """Return a socket connected to whoever listens at *path*.

    Raises:
        UsageError: nobody does, or we may not connect; says which.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        client.connect(str(path))
    except OSError as error:
        client.close()
        raise UsageError(_unreachable(path, error)) from error
    return client


def _unreachable(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ECONNREFUSED | errno.ENOTDIR:
            mend = "is `pptp-nat run` up? Another socket is named with --socket"
        case errno.EACCES | errno.EPERM:
            mend = "its owner and group alone may ask: run this as root or as a member"
        case errno.EAGAIN:
            mend = "more ask than it can answer: try again"
        case None:
            mend = "it is busy: try again" if isinstance(error, TimeoutError) else str(error)
        case _:
            mend = error.strerror or "unknown error"
    return f"no daemon answers on {path}: {mend}"


def remove(path: Path, listener: socket.socket, inode: int) -> None:
    """Close *listener* and remove its file, if the file is still the one with *inode*."""
    listener.close()
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _clear(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise UsageError(
            f"{path}: not a socket; remove it, or choose another path with --socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # somebody listens, and is too busy to accept
            pass
    raise UsageError(
        f"{path}: another daemon listens there; stop it, or choose another path with --socket"
    )


def _make_directory(directory: Path, owner: int, group: int) -> None:
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:  # another starter was faster
        return
    directory.chmod(DIRECTORY_MODE)  # whatever the umask is
    if (owner, group) != (-1, -1):
        os.chown(directory, owner, group)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _number(name: str, kind: str, look_up: Callable[[str], int]) -> int:
    """Return the number of an account; -1 leaves it as it is (chown(2))."""
    if not name:
        return -1
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        raise ConfigError(f"api.{kind}: no {kind} {name!r} on this host; create it") from None
