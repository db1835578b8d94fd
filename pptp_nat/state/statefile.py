"""Files of state: how they begin, and how they are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from pptp_nat.state import record_format, records
from pptp_nat.state.contents import Contents

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

#: magic, version, identity of the boot, Unix seconds minus monotonic ones, generation
_HEADER: Final = struct.Struct("!8sH16sdQ")
_CRC: Final = struct.Struct("!I")
_MAGIC: Final = b"pptp-nat"
HEADER_SIZE: Final = _HEADER.size + _CRC.size


class Header(NamedTuple):
    """How a file begins."""

    boot: bytes
    wall: float
    generation: int


class DamagedError(Exception):
    """A file that makes no sense; says why."""


def make_header(header: Header) -> bytes:
    """Return the octets that a journal and its copy begin with."""
    octets = _HEADER.pack(_MAGIC, record_format.VERSION, *header)
    return octets + _CRC.pack(zlib.crc32(octets))


def read_header(octets: bytes) -> Header:
    """Read what a file begins with.

    Raises:
        DamagedError: that makes no sense, or another version wrote it.
    """
    if len(octets) < HEADER_SIZE:
        raise DamagedError("it is shorter than its header")
    magic, version, *rest = _HEADER.unpack_from(octets)
    if magic != _MAGIC:
        raise DamagedError("it does not begin as a file of pptp-nat does")
    if zlib.crc32(octets[: _HEADER.size]) != _CRC.unpack_from(octets, _HEADER.size)[0]:
        raise DamagedError("its header is damaged")
    if version != record_format.VERSION:
        raise DamagedError(f"it is in format {version}, this version reads {record_format.VERSION}")
    return Header(*rest)


def check_end(octets: bytes, end: int) -> None:
    """Accept octets that were read up to *end*: all, or all but one that was cut off.

    Raises:
        DamagedError: more than that is wrong.
    """
    if not records.is_torn(octets, end):
        raise DamagedError(f"octet {end} begins no record")


class Generation(NamedTuple):
    """A file of a journal that was read."""

    number: int
    path: Path
    end: int  #: of its last whole record, octets


def size_of(known: Contents) -> int:
    """Return about how many octets all records of what is *known* take."""
    form = record_format
    connection = form.CONNECTION_BODY.size + form.POSITIONS_BODY.size + 2 * form.HEADER.size
    call = form.CALL_BODY.size + form.HEADER.size
    return connection * len(known.connections) + call * len(known.calls)


def joined(first: Generation, later: Iterable[Generation]) -> tuple[int, int]:
    """Append *later* generations to the *first*; return its descriptor and its size.

    Until the file of a later one is gone its records stand there twice.

    Raises:
        OSError: that cannot be done; what is there still says the same.
    """
    descriptor, size = os.open(first.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), first.end
    try:
        os.ftruncate(descriptor, size)  # behind it is a record that was cut off
        for each in later:
            octets = each.path.read_bytes()[HEADER_SIZE : each.end]
            append_whole(descriptor, octets)
            each.path.unlink()
            size += len(octets)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, size


def append_whole(descriptor: int, octets: bytes) -> None:
    """Write *octets*.  Raises `OSError`, also where only some of them could be written."""
    if os.write(descriptor, octets) < len(octets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def boot_identity() -> bytes:
    """Return the identity of this boot; where there is none, one that no other has."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)


def create(path: Path, flags: int) -> int:
    """Open *path* for writing, made if missing; its group may read it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)  # whatever the umask is
    return descriptor


def make_directory(directory: Path) -> None:
    """Make *directory* if it is missing; its group may enter it."""
    if not directory.is_dir():
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        directory.chmod(DIRECTORY_MODE)


def sync_directory(directory: Path) -> None:
    """Wait until the names in *directory* are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, octets: bytes) -> None:
    """Write *octets* to *path*, all or nothing, and wait until they are on the disk.

    Raises:
        OSError: they are not; what was there before is still there.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = create(new, os.O_TRUNC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(octets)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
