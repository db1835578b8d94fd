"""Where records are kept: the interface, and a journal in memory with copies on flash.

Theory of operation
-------------------
A *journal* is a file in a memory file system (``state.journal``, by default
beside the socket, below /run).  Every change is one write() of some hundred
octets into it, a microsecond, which never waits for a disk.  What was written
is the kernel's: ``kill -9`` does not lose it.  A journal that has grown enough is
written anew as the next *generation*, and the one before it goes when that is
complete.

A *copy* of the journal (``state.directory``) outlives a boot.  A thread makes
it, ``state.sync`` seconds after calls have come or gone at the earliest, and once
more at a clean end: so a stalled disk delays nobody, and flash is written seldom
and little.  No verdict depends on it.

What is read at the start is *exact* if it is this boot's journal, or this boot's
last copy at a clean end: then the positions in it are those of the last verdict.
An older copy knows the calls and not the positions.

A file that cannot be read is moved aside (``*.damaged``, one of each), told in
one line, and the next source is tried.  A file that cannot be written is told
and tried again; calls go on meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pptp_nat.errors import UsageError
from pptp_nat.log import event
from pptp_nat.state import records
from pptp_nat.state.contents import Contents
from pptp_nat.state.statefile import (
    HEADER_SIZE,
    DamagedError,
    Generation,
    Header,
    boot_identity,
    check_end,
    create,
    joined,
    make_directory,
    make_header,
    read_header,
    size_of,
    write_whole,
)

_log: Final = logging.getLogger(__name__)
SMALLEST: Final = 1 << 18  #: octets after which a journal may be written anew
GROWTH: Final = 4  #: times what it was when it was complete
TELL_SECONDS: Final = 60.0  #: between two lines about one failure
LAST_COPY_SECONDS: Final = 5.0  #: that a stalled disk may delay the end
AGAIN_SECONDS: Final = 10.0  #: until a journal that failed is tried again
_NAME: Final = "journal."
COPY: Final = "calls"
LAST_COPY: Final = "calls.final"


class Found(NamedTuple):
    """What an earlier run has left."""

    contents: Contents
    exact: bool  #: whether its positions are those of the last verdict
    this_boot: bool  #: whether its monotonic times are of this boot
    wall: float  #: Unix seconds minus its monotonic ones
    source: str


class Store(Protocol):
    """Keeps records.  No method waits for a disk, and none raises for one."""

    @property
    def is_full(self) -> bool:
        """Whether it has grown enough to be written anew."""

    def read(self) -> Found | None:
        """Return what an earlier run has left; called once, before anything is written."""

    def resume(self, found: Found) -> bool:
        """Go on with what was *found*, so that nothing of it has to be appended again.

        Returns:
            False: it is not what `read` returned of this store, or cannot be gone on with.
        """

    def append(self, octets: bytes, *, lasting: bool = True) -> None:
        """Have *octets*, whole records, outlive this process by the time this returns.

        *lasting*: they are worth a copy that outlives this boot.
        """

    def renew(self) -> None:
        """Begin anew: all that is true will be appended again."""

    def renewed(self) -> None:
        """Let go of what was before `renew`: what was appended since then is complete."""

    def keep_copying(self) -> None:
        """Begin with what needs a thread of its own, whose privileges are then those of now."""

    def close(self, *, astray: bool, copy: bool = True) -> None:
        """Let go in good order.

        Args:
            astray: octets will go by unread from here on.
            copy: make the last copy; not if another process goes on at once.
        """


class Journal:
    """A `Store`: a journal in *directory*, copies of it in *copies*.

    Args:
        directory: in a memory file system; made if missing.
        copies: made if missing; None: no copies.
        sync: seconds between two copies at least.

    Raises:
        UsageError: another process has the journal.
    """

    def __init__(self, directory: Path, copies: Path | None, *, sync: float) -> None:
        self.failures = 0  #: of writing, journal and copies
        self.writes = 0  #: to the journal
        self.written = 0  #: octets, to the journal
        self.copied_at: float | None = None  #: when the last copy was made, Unix seconds
        self.copy_size = 0  #: octets of it
        self._directory = directory
        self._copies = copies
        self._told: dict[str, float] = {}
        self._lock = self._locked()
        self._descriptor: int | None = None
        self._size = 0
        self._limit = SMALLEST
        self._again = 0.0
        self._generation = max((number for number, _ in self._files()), default=0)
        self._boot = boot_identity()
        self._read_from: list[Generation] = []
        self._was_read: Found | None = None  # in these
        self._live = 0  # octets of it that still counted
        self._lasting = 0  # how many appends were worth a copy
        self._copied = 0
        self._ending = threading.Event()
        self._copier: threading.Thread | None = None
        self._sync = sync

    def _locked(self) -> int | None:
        """Have this journal for this process alone; None where it cannot be had at all."""
        try:
            make_directory(self._directory)
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._complain("making the journal", self._directory, error)
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"{self._directory}: another daemon keeps its journal there; "
                "stop it, or choose another directory with state.journal"
            ) from None
        return descriptor

    def _files(self) -> list[tuple[int, Path]]:
        """Return the generations that are there, oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._directory.glob(f"{_NAME}*"):
                suffix = path.name.removeprefix(_NAME)
                if suffix.isascii() and suffix.isdigit():
                    found.append((int(suffix), path))
        return sorted(found)

    # Reading.

    def read(self) -> Found | None:
        """Return what an earlier run has left: the best source that makes sense."""
        found = self._read_journal()
        if self._copies is not None:
            last, usual = self._copies / LAST_COPY, self._copies / COPY
            if found is None:
                found = self._read_copy(last, final=True) or self._read_copy(usual, final=False)
            with contextlib.suppress(OSError):  # from now on it is a copy like any other
                last.rename(usual)
        return found

    def _read_journal(self) -> Found | None:
        files = self._files()
        contents, header = Contents(), None
        read: list[Generation] = []
        try:
            for number, path in files:
                octets = path.read_bytes()
                if not octets:
                    continue  # made, and not a record written
                header = read_header(octets)
                end = records.read(octets, contents, HEADER_SIZE)
                check_end(octets, end)
                if header.boot == self._boot:
                    read.append(Generation(number, path, end))
        except (OSError, DamagedError) as error:
            for _, path in files:
                self._set_aside(path, self._directory / f"{_NAME}damaged", error)
            return None
        if header is None:
            return None
        here = header.boot == self._boot
        exact = here and not contents.astray
        found = Found(contents, exact, here, header.wall, str(self._directory))
        self._read_from, self._was_read = read if len(read) == len(files) else [], found
        self._live = size_of(contents)
        return found

    def _read_copy(self, path: Path, *, final: bool) -> Found | None:
        contents = Contents()
        try:
            octets = path.read_bytes()
            header = read_header(octets)
            body = zlib.decompress(octets[HEADER_SIZE:])
            check_end(body, records.read(body, contents))
        except FileNotFoundError:
            return None
        except (OSError, DamagedError, zlib.error, MemoryError) as error:
            self._set_aside(path, path.with_name(f"{COPY}.damaged"), error)
            return None
        here = header.boot == self._boot
        return Found(
            contents, here and final and not contents.astray, here, header.wall, str(path)
        )

    def _set_aside(self, path: Path, aside: Path, why: Exception) -> None:
        try:
            path.replace(aside)
            fate = f"moved to {aside}"
        except OSError as error:
            fate = f"not moved aside: {error.strerror}"
        event(_log, logging.ERROR, "state-damaged", file=str(path), reason=str(why), fate=fate)

    # Writing.

    @property
    def size(self) -> int:
        """Octets of the journal; 0 while there is none."""
        return 0 if self._descriptor is None else self._size

    @property
    def is_full(self) -> bool:
        """Whether the journal has grown enough, or has failed and is to be tried again."""
        if self._descriptor is None:
            return time.monotonic() >= self._again
        return self._size > self._limit

    def append(self, octets: bytes, *, lasting: bool = True) -> None:
        """Write to the journal; one that fails is removed, since it would be behind."""
        self._lasting += lasting
        if self._descriptor is None:
            return
        try:
            written = os.write(self._descriptor, octets)
        except OSError as error:
            self._fail(error)
            return
        self._size += written
        self.writes += 1
        self.written += written
        if written < len(octets):
            self._fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def resume(self, found: Found) -> bool:
        """Go on with the journal that was read, if all of it is of this boot and exact."""
        read, was_read = self._read_from, self._was_read
        self._read_from, self._was_read = [], None
        if found is not was_read or not found.exact or not read:
            return False
        try:
            self._descriptor, self._size = joined(read[0], read[1:])
        except OSError as error:
            self._complain("going on with the journal", self._directory, error)
            return False
        self._generation = read[0].number
        self._lasting += 1  # the former process may have died before its copy of that
        self._limit = max(SMALLEST, GROWTH * self._live)
        return True

    def _fail(self, error: OSError) -> None:
        self._complain("writing the journal", self._directory, error)
        self._again = time.monotonic() + AGAIN_SECONDS
        self._let_go()
        for _, path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def renew(self) -> None:
        """Begin the next generation; this one is still read until `renewed`."""
        self._let_go()
        self._read_from, self._was_read = [], None
        self._generation += 1
        header = make_header(Header(self._boot, time.time() - time.monotonic(), self._generation))
        path = self._directory / f"{_NAME}{self._generation}"
        try:
            if self._lock is None:
                self._lock = self._locked()
            self._descriptor = create(path, os.O_APPEND)
            self._size = os.write(self._descriptor, header)
        except OSError as error:
            self._fail(error)
        else:
            self._limit = max(self._limit, SMALLEST)

    def renewed(self) -> None:
        """Remove the generations before this one; it is complete."""
        if self._descriptor is None:
            return
        self._limit = max(SMALLEST, GROWTH * self._size)
        for number, path in self._files():
            if number != self._generation:
                with contextlib.suppress(OSError):
                    path.unlink()

    def keep_copying(self) -> None:
        """Begin with the copies that outlive this boot."""
        if self._copier is None and self._copies is not None:
            self._copier = threading.Thread(target=self._copy_on, name="copies", daemon=True)
            self._copier.start()

    def close(self, *, astray: bool, copy: bool = True) -> None:
        """Let go of the journal, which stays, and make the last copy."""
        if astray:
            self.append(records.astray())
        self._ending.set()
        if self._copier is not None:
            self._copier.join(LAST_COPY_SECONDS)
            self._copier = None
        if copy and self._copies is not None and self._descriptor is not None:
            last = threading.Thread(target=self._copy, args=(LAST_COPY,), daemon=True)
            last.start()
            last.join(LAST_COPY_SECONDS)
        self._let_go()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Forget what it holds: another process has written it down."""
        for _, path in self._files():
            path.unlink(missing_ok=True)
        if self._copies is not None:
            for name in (COPY, LAST_COPY):
                (self._copies / name).unlink(missing_ok=True)

    # Copies, in a thread of their own.

    def _copy_on(self) -> None:
        while not self._ending.wait(self._sync):
            if self._copied != self._lasting:
                self._copied = self._lasting
                self._copy(COPY)

    def _copy(self, name: str) -> None:
        """Write the journal as it is now to the directory of copies, all or nothing."""
        assert self._copies is not None
        try:
            make_directory(self._copies)
            image = self._image()
            write_whole(self._copies / name, image)
            self.copied_at, self.copy_size = time.time(), len(image)
            if name == LAST_COPY:
                (self._copies / COPY).unlink(missing_ok=True)
        except OSError as error:
            self._complain("copying the journal", self._copies, error)

    def _image(self) -> bytes:
        while True:
            files = self._files()
            try:
                read = [path.read_bytes() for _, path in files]
            except FileNotFoundError:  # written anew at this very moment
                continue
            packer = zlib.compressobj(1)  # like reading and writing it lets go of the GIL
            parts = [read[-1][:HEADER_SIZE]] if read else []
            parts += [packer.compress(octets[HEADER_SIZE:]) for octets in read]
            return b"".join([*parts, packer.flush()])

    def _complain(self, doing: str, where: Path, error: OSError) -> None:
        """Tell it once a minute; it may fail with every packet."""
        self.failures += 1
        now = time.monotonic()
        if now - self._told.get(doing, -TELL_SECONDS) >= TELL_SECONDS:
            self._told[doing] = now
            event(
                _log, logging.ERROR, "state-not-kept", doing=doing, where=str(where),
                reason=error.strerror or str(error),
                mend="calls go on, but would not outlive this process: make room there, or "
                "choose another directory with state.journal and state.directory",
            )  # fmt: skip
