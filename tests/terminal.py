"""A real terminal for programs that fill one: a pseudo-terminal, and pyte as its screen."""

import contextlib
import fcntl
import os
import pty
import selectors
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte

#: What curses believes before it asks the terminal; a worker of pytest-xdist has both.
SIZE = ("LINES", "COLUMNS")


class Terminal:
    """A terminal, emulated by pyte, and ``pptp-nat`` with *argv* on it."""

    def __init__(self, *argv, term="xterm", columns=100, lines=24):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.octets = b""
        self.ours, theirs = pty.openpty()
        self.resize(columns, lines, tell=False)
        ours = {name: os.environ[name] for name in os.environ if name not in SIZE}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pptp_nat", *argv], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**ours, "TERM": term}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def resize(self, columns, lines, *, tell=True):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.screen.resize(lines, columns)
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def press(self, text):
        os.write(self.ours, text.encode())

    def until(self, shown, seconds=30, meanwhile=lambda: None):
        """Read on until *shown*, a text or a test of the lines, is on the screen."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.ours, selectors.EVENT_READ)
            while not self.shows(shown):
                assert time.monotonic() < deadline, "\n".join(self.screen.display)
                meanwhile()
                if selector.select(0.1):
                    self.read()

    def read(self):
        with contextlib.suppress(OSError):  # EIO: the program has ended
            octets = os.read(self.ours, 65536)
            self.octets += octets
            self.stream.feed(octets)

    def shows(self, shown):
        lines = self.screen.display
        return shown(lines) if callable(shown) else any(shown in line for line in lines)

    def hang_up(self):
        """Take the terminal away, as a dead ssh connection does."""
        os.close(self.ours)
        self.ours = -1

    def close(self):
        self.process.kill()
        self.process.wait()
        if self.ours != -1:
            os.close(self.ours)
