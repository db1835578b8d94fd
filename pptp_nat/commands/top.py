"""The command that fills a terminal: top."""

from __future__ import annotations

import contextlib
import curses
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from pptp_nat import api
from pptp_nat.errors import UsageError
from pptp_nat.tables import packed, table
from pptp_nat.tables.top import Seen, Style, Top

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

_TURN: Final = 100  #: milliseconds between two looks at what has come from the daemon
_REST: Final = 10  #: an answer may take one in so many seconds: a long list is asked for less often
_ESCAPE_MILLISECONDS: Final = "25"  #: after which Esc is the key and no sequence of one

_NAMES: Final = {
    curses.KEY_UP: "UP",
    curses.KEY_DOWN: "DOWN",
    curses.KEY_PPAGE: "PAGEUP",
    curses.KEY_NPAGE: "PAGEDOWN",
    curses.KEY_HOME: "HOME",
    curses.KEY_END: "END",
    curses.KEY_ENTER: "ENTER",
    curses.KEY_BACKSPACE: "BACKSPACE",
    curses.KEY_LEFT: "<",
    curses.KEY_RIGHT: ">",
    10: "ENTER",
    13: "ENTER",
    27: "ESCAPE",
    8: "BACKSPACE",
    127: "BACKSPACE",
}


def top(options: Namespace) -> int:
    """Show the calls and their rates until the reader has enough."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal; `pptp-nat list --watch` does not")
    state = Top(options.interval)
    state.look(look(options.socket))  # no daemon, no screen
    os.environ.setdefault("ESCDELAY", _ESCAPE_MILLISECONDS)
    try:
        with _ended_by_signals():
            curses.wrapper(_show, state, options.socket)
    except curses.error as error:
        kind = os.environ.get("TERM", "")
        raise UsageError(f"this terminal (TERM={kind!r}) cannot show top: {error}") from error
    return 0


def look(path: Path) -> Seen:
    """Ask the daemon for its state and its calls, also where a worker does not answer.

    Raises `UsageError`.
    """
    try:
        status = table.status_row(api.ask(path, {"do": "status"}))
        rows, (counted, missing) = packed.told(path, {"fresh": True})
        calls = [packed.unpack(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the daemon on {path} answers otherwise than expected ({error}); "
            "use the pptp-nat of the daemon's own version"
        ) from error
    wall = time.time()
    return Seen(time.monotonic() - (wall - counted), wall, status, calls, missing)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Give the terminal back before a signal ends us."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Asker:
    """Asks the daemon in a thread of its own, so that keys work while it answers."""

    def __init__(self, state: Top, path: Path) -> None:
        self._state = state
        self._path = path
        self._lock = threading.Lock()
        self._came: list[Seen | str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Callable[[], list[Seen | str]]:
        self._thread.start()
        return self._taken

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _taken(self) -> list[Seen | str]:
        """Return what has come since the last time."""
        with self._lock:
            came, self._came = self._came, []
        return came

    def _ask(self) -> None:
        took = 0.0
        while not self._ended.wait(max(self._state.interval, _REST * took)):
            began = time.monotonic()
            try:
                got: Seen | str = look(self._path)
            except UsageError as error:
                got = str(error)
            took = time.monotonic() - began
            if isinstance(got, Seen) and got.missing:
                took = 0.0  # nearly all of it was waiting for who does not answer
            with self._lock:
                self._came.append(got)


def _show(screen: curses.window, state: Top, path: Path) -> None:
    styles = _styles()
    screen.timeout(_TURN)
    with _Asker(state, path) as taken:
        while True:
            _paint(screen, state, styles)
            changed = False
            while not changed:
                key = screen.getch()
                if key == -1 and _is_hung_up():
                    return
                if key == curses.KEY_RESIZE:
                    curses.update_lines_cols()
                    screen.clearok(True)  # the terminal broke lines of the old size anywhere
                    changed = True
                elif key != -1:
                    changed = True
                    name = _NAMES.get(key) or (chr(key) if 32 <= key < 127 else "")
                    if name and not state.key(name):
                        return
                for got in taken():
                    changed = True
                    if isinstance(got, str):
                        state.trouble = got
                    else:
                        state.look(got)


def _is_hung_up() -> bool:
    """Whether the terminal is gone: reading it then returns at once, for ever."""
    terminal = select.poll()
    terminal.register(sys.stdin, 0)  # a hang-up is told whether asked for or not
    return bool(terminal.poll(0))


def _styles() -> dict[Style, int]:
    with contextlib.suppress(curses.error):
        curses.curs_set(0)  # not every terminal can hide its cursor
    return {
        Style.PLAIN: curses.A_NORMAL,
        Style.BOLD: curses.A_BOLD,
        Style.TITLES: curses.A_REVERSE,
        Style.ALERT: curses.A_STANDOUT,
    }


def _paint(screen: curses.window, state: Top, styles: dict[Style, int]) -> None:
    """Paint all lines; curses sends what has changed, and nothing flickers."""
    height, width = screen.getmaxyx()
    screen.erase()
    for at, line in enumerate(state.lines(width, height)):
        text = line.text.ljust(width) if line.style is Style.TITLES else line.text
        # The last place of the last line cannot be written without scrolling.
        room = width - 1 if at == height - 1 else width
        with contextlib.suppress(curses.error):  # the screen has become smaller meanwhile
            screen.addnstr(at, 0, text, room, styles[line.style])
    screen.refresh()
