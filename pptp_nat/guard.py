"""A small process that starts the daemon, keeps its queues, and starts it again if it dies.

Where no service manager keeps descriptors (procd, runit, a terminal), this one does, by the
same protocol (`pptp_nat.service`, sd_notify(3)): the daemon gives it the sockets of its queues,
packets wait in them while no daemon runs, and the next one reads on.  It starts that a tenth
of a second after the death of the one before.

SIGHUP is passed on.  SIGUSR1 ends the daemon in good order and starts it again, from what is
installed by then: an upgrade in which nothing of a call is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pptp_nat import log
from pptp_nat.errors import UsageError
from pptp_nat.router.signals import Signals

GUARDED: Final = "PPTP_NAT_GUARDED"  #: in the environment: the process that guards us
KEPT_AT_MOST: Final = 8  #: descriptors; a daemon has two queues
FIRST_DELAY: Final = 0.1  #: seconds from a death to the next start; doubled ...
LONGEST_DELAY: Final = 10.0  #: ... up to this, while each run serves for less ...
WORTH: Final = 10  #: ... than so many times the delay before it
WATCHDOG: Final = 60.0  #: seconds without a sign of life; then a daemon hangs
STOP_SECONDS: Final = 20.0  #: for it to end
_MISUSED: Final = 2  #: exit status of wrong flags or a wrong configuration: it stays wrong
_FIRST_GIVEN: Final = 3  # SD_LISTEN_FDS_START, sd-daemon.h
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG, linux/prctl.h
_LONGEST: Final = 4096  #: octets of a message
_CREDENTIALS: Final = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid

_log: Final = logging.getLogger(__name__)


def is_guarded() -> bool:
    """Whether this process was started by a guard; its word is taken out of the environment."""
    return os.environ.pop(GUARDED, "") == str(os.getppid())


def run_guard(command: Sequence[str]) -> int:
    """Keep *command* running until a signal, or until it ends by itself; return its exit code.

    Raises:
        UsageError: a service manager listens, which keeps descriptors itself.
    """
    if os.environ.get("NOTIFY_SOCKET"):
        raise UsageError(
            "--guard: a service manager listens at NOTIFY_SOCKET, and starts the daemon again "
            "itself; leave --guard out, and have it keep the queues (FileDescriptorStoreMax=2)"
        )
    log.configure("info", 100)
    with contextlib.closing(Guard(command)) as guard:
        return guard.run()


class _Said(NamedTuple):
    pid: int  #: whose message it is
    words: Mapping[str, str]
    descriptors: Sequence[int]


class Guard:
    """What keeps one daemon running.

    Args:
        command: of the daemon, the program first.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self.kept: dict[str, int] = {}  #: descriptors by name
        self._selector = selectors.DefaultSelector()
        self._ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ears.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._place = _own_folder()
        self._ears.bind(str(self._place / "notify"))
        self._ears.setblocking(False)
        self._selector.register(self._ears, selectors.EVENT_READ, self._hear)
        stop = (signal.SIGTERM, signal.SIGINT)
        effects: dict[signal.Signals, Callable[[], None]] = dict.fromkeys(stop, self._stop)
        effects |= {
            signal.SIGHUP: self._reload, signal.SIGUSR1: self._restart, signal.SIGCHLD: self._bury,
        }  # fmt: skip
        self._heeded = tuple(effects)
        self._signals = Signals(self._selector, effects)
        self._main = 0  #: the daemon's process; 0: none runs
        self._handle = -1  #: its pidfd, readable once it has ended
        self._started = 0.0  #: monotonic seconds
        self._is_ready = self._was_ready = False
        self._heard: float | None = None  #: when there was a sign of life; None: none is expected
        self._delay = FIRST_DELAY
        self._due: float | None = 0.0  #: when it is to be started; None: it runs, or never
        self._is_stopping = self._is_restarting = False
        self._deadline: float | None = None  #: for one that is to end
        self._code: int | None = None

    def run(self) -> int:
        """Serve until there is nothing left to guard; return the exit code."""
        while self._code is None:
            now = time.monotonic()
            if self._due is not None and self._due <= now:
                self._start(now)
            if self._is_overdue(now):
                log.event(_log, logging.ERROR, "daemon-hangs", pid=self._main)
                self._signal(signal.SIGKILL)
                self._heard = self._deadline = None
            dues = (self._due, self._deadline, self._heard and self._heard + WATCHDOG)
            due = min((each for each in dues if each is not None), default=None)
            for key, mask in self._selector.select(due and max(0.0, due - now)):
                key.data(mask)
        return self._code

    def close(self) -> None:
        """Let go of what is kept."""
        self._signals.close()
        self._forget_main()
        for descriptor in self.kept.values():
            os.close(descriptor)
        self.kept.clear()
        self._ears.close()
        with contextlib.suppress(OSError):
            _remove(self._place)
        self._selector.close()

    def _is_overdue(self, now: float) -> bool:
        if self._deadline is not None and self._deadline <= now:
            return True
        return self._heard is not None and self._heard + WATCHDOG <= now

    # The daemon's life.

    def _start(self, now: float) -> None:
        self._due, self._started, self._is_ready = None, now, False
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            try:
                self._become()
            except OSError as error:  # the program is being replaced, say
                log.event(_log, logging.ERROR, "daemon-not-started", problem=str(error))
            finally:
                os._exit(127)
        self._watch(pid)

    def _become(self) -> None:
        """Be the daemon."""
        guard = os.getppid()
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)  # when the guard is gone, so are we
        if os.getppid() != guard:
            return
        for number in self._heeded:
            signal.signal(number, signal.SIG_DFL)
        environment = {
            **os.environ,
            GUARDED: str(guard),
            "NOTIFY_SOCKET": self._ears.getsockname(),
            "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(self.kept)),
            "LISTEN_FDNAMES": ":".join(self.kept),
        }
        above = _FIRST_GIVEN + len(self.kept)
        # None of them may lie where another is to go; what of ours lay there is gone.
        high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in self.kept.values()]
        for place, descriptor in enumerate(high, _FIRST_GIVEN):
            os.dup2(descriptor, place, inheritable=True)
        os.execvpe(self._command[0], self._command, environment)  # noqa: S606 our own command line

    def _watch(self, pid: int) -> None:
        self._forget_main()
        self._main, self._handle = pid, os.pidfd_open(pid)
        self._heard = None
        self._selector.register(self._handle, selectors.EVENT_READ, self._on_death)

    def _forget_main(self) -> None:
        if self._handle >= 0:
            self._selector.unregister(self._handle)
            os.close(self._handle)
        self._main, self._handle, self._heard = 0, -1, None

    def _on_death(self, _mask: int) -> None:
        self._hear(0)  # its last words, an heir's name among them
        if not self._main or not select.select([self._handle], [], [], 0)[0]:
            return  # the heir lives
        pid = self._main
        status: int | None = None
        with contextlib.suppress(ChildProcessError):  # of an heir we are no parent
            _, wait_status = os.waitpid(pid, 0)
            status = os.waitstatus_to_exitcode(wait_status)
        self._forget_main()
        now = time.monotonic()
        if self._is_restarting:
            self._is_stopping = self._is_restarting = False
            self._due, self._deadline = now, None
            return
        if self._is_stopping or status in (0, _MISUSED) or not self._was_ready:
            self._code = status if status is not None and status >= 0 else int(bool(status))
            return
        if self._is_ready and now - self._started >= WORTH * self._delay:
            self._delay = FIRST_DELAY
        self._due = now + self._delay
        log.event(
            _log, logging.ERROR, "daemon-ended", pid=pid, status=status, again_in=self._delay,
            kept=len(self.kept),
        )  # fmt: skip
        self._delay = min(2 * self._delay, LONGEST_DELAY)

    def _bury(self) -> None:
        """Take note of the end of daemons that have handed over to an heir."""
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid == self._main:
                    return  # `_on_death` asks how
                os.waitpid(dead.si_pid, 0)

    # Signals.

    def _restart(self) -> None:
        if self._main and not self._is_stopping:
            self._stop()
            self._is_restarting = True

    def _stop(self) -> None:
        self._is_stopping, self._is_restarting = True, False
        if not self._main:
            self._code = 0
            return
        self._deadline = time.monotonic() + STOP_SECONDS
        self._signal(signal.SIGTERM)

    def _reload(self) -> None:
        self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):  # it has ended this moment
            signal.pidfd_send_signal(self._handle, number)

    # What the daemon says.

    def _hear(self, _mask: int) -> None:
        while (said := _receive(self._ears)) is not None:
            if said.pid == self._main:
                self._heed(said.words, said.descriptors)
            for descriptor in said.descriptors:
                os.close(descriptor)

    def _heed(self, words: Mapping[str, str], descriptors: Sequence[int]) -> None:
        name = words.get("FDNAME", "")
        if "READY" in words:
            self._is_ready = self._was_ready = True
            self._heard = time.monotonic()
        elif "WATCHDOG" in words:
            self._heard = time.monotonic()
        elif "FDSTOREREMOVE" in words:
            if name in self.kept:
                os.close(self.kept.pop(name))
        elif "FDSTORE" in words and len(descriptors) == 1:
            if name in self.kept:
                os.close(self.kept.pop(name))
            if len(self.kept) < KEPT_AT_MOST:
                self.kept[name] = os.dup(descriptors[0])
        elif words.get("MAINPID", "").isdecimal():
            # Its heir was started by somebody else, and tells us nothing but its end.
            with contextlib.suppress(ProcessLookupError):
                self._watch(int(words["MAINPID"]))


def _own_folder() -> Path:
    """Return a new folder where nobody else can speak to us: a flood hides signs of life.

    Raises:
        UsageError: there can be none.
    """
    reasons = []
    for base in ("/run", os.environ.get("TMPDIR", "/tmp")):  # noqa: S108 what is made there is ours
        place = Path(base, f"pptp-nat-guard-{os.getpid()}")
        try:
            with contextlib.suppress(FileNotFoundError):
                _remove(place)  # of a guard that was killed, and had our number
            place.mkdir(mode=0o700)
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
        else:
            return place
    raise UsageError(f"--guard: no place for its socket: {'; '.join(reasons)}")


def _remove(place: Path) -> None:
    (place / "notify").unlink(missing_ok=True)
    place.rmdir()


def _receive(ears: socket.socket) -> _Said | None:
    """Return the next message that is there; None: there is none."""
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * KEPT_AT_MOST)
    try:
        octets, beside, _, _ = ears.recvmsg(_LONGEST, room)
    except BlockingIOError:
        return None
    pid, descriptors = 0, []
    for level, kind, data in beside:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
        elif kind == socket.SCM_RIGHTS:
            descriptors = [each for (each,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])]
    lines = octets.decode(errors="replace").splitlines()
    return _Said(pid, dict(line.split("=", 1) for line in lines if "=" in line), descriptors)
