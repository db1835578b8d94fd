"""Log lines: logfmt on the standard library's logging, one line per event.

A line names the call first, so that ``grep call=7`` tells its story::

    time=2026-03-01T12:00:00.250Z level=info call=7 client=192.168.1.20 event=call-up ...

Peers choose some of the text (host names, vendor strings), so a value never
holds anything but printable ASCII and can never end its line or its quotes.
Under systemd the journal keeps time and level; lines then begin with the
level as ``<N>`` (sd-daemon(3)) instead.

The number of lines per second is limited by a token bucket that holds one
second's worth; a ``suppressed=N`` line tells how many are missing.  Errors are
our own trouble, never a peer's doing, and are not limited.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import re
import sys
import time
from socket import inet_ntoa
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT: Final = "pptp_nat"  #: every logger of the package is below this one
FIELDS: Final = "fields"  #: attribute of a log record that `event` fills
ALWAYS: Final[dict[str, object]] = {}  #: fields that each line of this process ends with
LONGEST_VALUE: Final = 512  #: characters; a PPTP host name has at most 64 octets
LONGEST_TRACE: Final = 8192  #: characters of a traceback
_SHORT: Final = 64  #: characters of a value whose quoted form is worth keeping, ...
_KEPT: Final = 512  #: ... and how many of those are: addresses and texts come again and again

#: what says whose line it is, in the order of the line
IDENTITY: Final = ("call", "connection", "client", "server")

#: sd-daemon(3): SD_ERR, SD_WARNING, SD_INFO, SD_DEBUG
PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
DEBUG_PRIORITY: Final = 7

_PACKAGE: Final = logging.getLogger(ROOT)
_BARE: Final = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII but space, ", = and backslash
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def event(logger: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    """Log the event *name* with *fields*; those that are None are left out.

    Where nobody but our handler sees what the package logs, no record is made for it: that
    is more than half of what a line costs, and a call has two.
    """
    if not logger.isEnabledFor(level):
        return
    fields = {"event": name, **fields}
    handlers = _PACKAGE.handlers
    if (
        len(handlers) == 1 and type(handlers[0]) is LineHandler and not _PACKAGE.propagate
        and logger.parent is _PACKAGE and not logger.handlers
    ):  # fmt: skip
        handlers[0].tell(level, fields)
    else:
        logger.log(level, name, extra={FIELDS: fields})


def quoted(value: object, longest: int = LONGEST_VALUE) -> str:
    """Return *value* as a logfmt value: bare where that is safe, else in quotes.

    Floats show microseconds at most; 4 octets are an IPv4 address, other octets
    are hex; an enum is its name.
    """
    if type(value) is int:  # most values are; nothing in it wants quotes
        return str(value)
    if type(value) is str and len(value) <= _SHORT <= longest:
        return _quoted_short(value)
    text = _text(value)
    if len(text) > longest:
        text = text[:longest] + "..."
    return _quoted(text)


def _quoted(text: str) -> str:
    return text if _BARE.fullmatch(text) else f'"{"".join(map(_escape, text))}"'


_quoted_short: Final = functools.lru_cache(_KEPT)(_quoted)


def configure(level: str, rate: int, stream: TextIO | None = None) -> LineHandler:
    """Send the package's log to *stream* (standard error) and return the handler.

    Called again it replaces the handler; a reload changes the level with
    `set_level` and the rate through `LineHandler.rate`.
    """
    _spare_what_no_line_shows()
    target = sys.stderr if stream is None else stream
    handler = LineHandler(target, rate, journal=is_journal(target, os.environ))
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.propagate = False
    set_level(level)
    return handler


def _spare_what_no_line_shows() -> None:
    """Have logging not look up caller, thread and process: a quarter of what a line costs.

    In the words of Python's logging HOWTO, section "Optimization".
    """
    logging._srcfile = None  # noqa: SLF001  its documented switch
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def set_level(level: str) -> None:
    """Log from *level* ("error", "warning", "info", "debug") upwards."""
    logging.getLogger(ROOT).setLevel(level.upper())


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether *stream* leads to the journal (systemd.exec(5), JOURNAL_STREAM).

    A program started from a service's terminal inherits the variable but not the
    stream, so the device and the inode are compared.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LineFormatter(logging.Formatter):
    """Makes one logfmt line of a record."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal
        self._second = -1  # Unix seconds, and what they are written as
        self._written = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields: Mapping[str, object] | None = getattr(record, FIELDS, None)
        words = words_of(fields or {"msg": record.getMessage()})
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            words += f" traceback={quoted(trace[-LONGEST_TRACE:], LONGEST_TRACE)}"
        return self.head(record.levelno, record.created) + words

    def head(self, level: int, created: float) -> str:
        """Return what a line of *level* begins with that was made at *created*, Unix seconds."""
        if self._journal:
            return f"<{priority(level)}>"
        second = int(created)
        if second != self._second:
            self._second = second
            self._written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        milliseconds = int(created % 1 * 1000)
        return f"time={self._written}.{milliseconds:03d}Z level={_level_name(level)} "


def words_of(fields: Mapping[str, object]) -> str:
    """Return *fields* as words of a line, those first that say whose it is."""
    if ALWAYS:
        fields = {**fields, **ALWAYS}
    words = [
        f"{name}={quoted(value)}" for name in IDENTITY if (value := fields.get(name)) is not None
    ]
    words += [
        f"{name}={quoted(value)}"
        for name, value in fields.items() if value is not None and name not in IDENTITY
    ]  # fmt: skip
    return " ".join(words)


class LineHandler(logging.Handler):
    """Writes at most ``rate`` lines per second, 0 for no limit, and counts the rest."""

    def __init__(
        self,
        stream: TextIO,
        rate: int,
        *,
        journal: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._lines = LineFormatter(journal=journal)
        self.setFormatter(self._lines)
        self.rate = rate
        self.suppressed = 0  #: lines left out since the last one that tells of them
        self._stream = stream
        self._clock = clock
        self._tokens = float(rate)
        self._filled = clock()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or count it as suppressed."""
        if self._wants(record.levelno) and not self._write(self.format(record)):
            self.suppressed += 1

    def tell(self, level: int, fields: Mapping[str, object]) -> None:
        """Do what `handle` does for a record of *fields*, which nobody else sees."""
        self.acquire()
        try:
            if self._wants(level) and not self._write(self._line(level, fields)):
                self.suppressed += 1
        finally:
            self.release()

    def _line(self, level: int, fields: Mapping[str, object]) -> str:
        return self._lines.head(level, time.time()) + words_of(fields)

    def _wants(self, level: int) -> bool:
        """Whether a line is written now; that others were not comes first."""
        if self.rate and level < logging.ERROR and not self._take():
            self.suppressed += 1
            return False
        self.tell_suppressed()
        return True

    def tell_suppressed(self) -> None:
        """Write how many lines are missing, if any are.  Called after a storm by a timer."""
        if self.suppressed:
            count, self.suppressed = self.suppressed, 0
            fields = {"event": "log-suppressed", "suppressed": count}
            if not self._write(self._line(logging.WARNING, fields)):
                self.suppressed = count

    def _write(self, line: str) -> bool:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            return False  # nobody reads the log any more: that must not end anybody's call
        return True

    def admits(self) -> bool:
        """Whether a line would be written now; one that would not is counted as suppressed.

        In a storm this saves making a record only to throw it away.
        """
        if not self.rate or self._level() >= 1:
            return True
        self.suppressed += 1
        return False

    def _level(self) -> float:
        """Return what the bucket holds now."""
        now = self._clock()
        self._tokens = min(self.rate, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
        return self._tokens

    def _take(self) -> bool:
        if self._level() < 1:
            return False
        self._tokens -= 1
        return True


@functools.lru_cache
def priority(level: int) -> int:
    """Return the sd-daemon(3) priority of a level of logging."""
    return next((number for least, number in PRIORITIES if level >= least), DEBUG_PRIORITY)


@functools.lru_cache
def _level_name(level: int) -> str:
    return logging.getLevelName(level).lower()


def _text(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case enum.Enum():
            return value.name.lower()
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".")
        case bytes():
            return inet_ntoa(value) if len(value) == 4 else value.hex()
        case _:
            return str(value)


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if " " <= character <= "~" else ascii(character)[1:-1]
