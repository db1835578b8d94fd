"""What a service manager hears of us: the protocol of sd_notify(3), without its library.

A service manager that wants to hear names a datagram socket in NOTIFY_SOCKET; where there is
none, everything here does nothing.  Nothing that is sent here may stop the daemon, so a manager
that does not read loses what it did not read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

STATUS_SECONDS: Final = 10.0  #: between two looks at whether the status line has changed
PATIENCE: Final = 2.0  #: seconds to wait for a manager with a full socket, at start and end only
_ADDRESS: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = ("WATCHDOG_USEC", "WATCHDOG_PID")
_GIVEN: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST_GIVEN: Final = 3  # SD_LISTEN_FDS_START, sd-daemon.h


class Service:
    """One daemon as its service manager sees it.

    Args:
        environ: where the manager has left its address; what is for us alone is taken out,
            so that the programs which we start do not speak in our name.
        status: says how the daemon does, in one line for people.
    """

    def __init__(
        self, environ: MutableMapping[str, str], status: Callable[[], str] = lambda: ""
    ) -> None:
        address = environ.pop(_ADDRESS, "")
        usec, pid = (environ.pop(name, "") for name in _WATCHDOG)
        #: descriptors that an earlier run had the manager keep (`keep`), by their names
        self.given = _given(*(environ.pop(name, "") for name in _GIVEN))
        self._socket = _connected(address)
        self._status = status
        self._told = ""
        self._due: dict[Callable[[], None], float] = {}
        self._period = 0.0  #: seconds between two signs of life; 0: nobody waits for them
        if self._socket is not None and usec.isdecimal() and pid in ("", str(os.getpid())):
            self._period = int(usec) / 1e6 / 2  # sd_watchdog_enabled(3) asks for half of it

    def ready(self) -> None:
        """Tell that the daemon serves, and begin with the signs of life."""
        if self._socket is None:
            return
        self._told = self._status()
        self._tell(f"READY=1\nSTATUS={self._told}", patience=PATIENCE)
        now = time.monotonic()
        self._due = {self._look: now + STATUS_SECONDS}
        if self._period:
            self._due[self._live] = now

    def reloading(self) -> None:
        """Tell that the configuration is read again; `ready` says when that is done."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}", patience=PATIENCE)

    def hand_over(self, pid: int) -> None:
        """Tell that *pid*, of the same service, is the daemon from now on."""
        self._tell(f"MAINPID={pid}", patience=PATIENCE)

    def stopping(self) -> None:
        """Tell that the daemon is about to end."""
        self._tell("STOPPING=1\nSTATUS=", patience=PATIENCE)
        self._due = {}

    def keep(self, name: str, descriptor: int) -> bool:
        """Have the manager keep *descriptor* for the next run (sd_pid_notify_with_fds(3)).

        Then it is in `given` as *name*.  The manager is not to watch it, or an overrun of a
        netlink socket would end its keeping.
        Return whether there is a manager; whether he keeps anything is his affair.
        """
        self._tell(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", (descriptor,), patience=PATIENCE)
        return self._socket is not None

    def let_go(self, name: str) -> None:
        """Have the manager let go of what he keeps as *name*."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}", patience=PATIENCE)

    def next_timer(self) -> float | None:
        """Return when `tick` has something to tell, in monotonic seconds."""
        return min(self._due.values(), default=None)

    def tick(self, now: float) -> None:
        """Give a sign of life, and the status where it has changed, if they are due."""
        for work in [work for work, due in self._due.items() if due <= now]:
            self._due[work] = now + (self._period if work == self._live else STATUS_SECONDS)
            work()

    def close(self) -> None:
        """Let go of the manager's socket."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._due = None, {}

    def _live(self) -> None:
        self._tell("WATCHDOG=1")

    def _look(self) -> None:
        status = self._status()
        if status != self._told:
            self._told = status
            self._tell(f"STATUS={status}")

    def _tell(
        self, text: str, descriptors: tuple[int, ...] = (), *, patience: float = 0.0
    ) -> None:
        if self._socket is not None:
            self._socket.settimeout(patience)
            with contextlib.suppress(OSError):  # it is the manager who misses something
                socket.send_fds(self._socket, [text.encode()], descriptors)


def _given(pid: str, count: str, names: str) -> dict[str, int]:
    """Return the descriptors that the manager gave us, by name (sd_listen_fds_with_names(3))."""
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    last = _FIRST_GIVEN + int(count)
    given = dict(zip(names.split(":"), range(_FIRST_GIVEN, last), strict=False))
    for descriptor in given.values():
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)
    return given


def _connected(address: str) -> socket.socket | None:
    """Return a socket to the manager; None where there is none, or nobody behind it.

    A path, or ``@`` and the name of an abstract socket (unix(7)).
    """
    if not address.startswith(("/", "@")):
        return None
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        manager.connect("\0" + address[1:] if address.startswith("@") else address)
    except (OSError, ValueError):  # ValueError: an embedded NUL
        manager.close()
        return None
    return manager
