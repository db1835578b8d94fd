"""The worker processes: started, watched, started again, ended.

A worker is a fork of the supervisor, joined to it by a pair of sockets, the
lifeline: each end of it notices the other's end, and over it a worker says that its
loop turns.  What else the supervisor has open is closed in the child.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pptp_nat import log
from pptp_nat.errors import PptpNatError
from pptp_nat.workers.worker import GO, QUESTION, READY, Post, work

_log: Final = logging.getLogger(__name__)
START_SECONDS: Final = 120.0  #: for a worker to take over what there is
STOP_SECONDS: Final = 15.0  #: for a worker to end
ASKING_SECONDS: Final = 5.0  #: between two questions whether a worker's loop turns
QUESTIONS: Final = 6  #: without an answer; then a worker hangs
_SOON: Final = 10.0  #: seconds; who dies sooner is started again later than at once
_LONGEST_DELAY: Final = 30.0


class Member:
    """One worker as the supervisor knows it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 0  #: 0: it does not run
        self.is_ready = False
        self.restarts = 0
        self.lifeline: socket.socket | None = None
        self.started = 0.0  # monotonic seconds
        self.asked: float | None = None  #: since when it owes an answer
        self.unanswered = 0  #: questions since then
        self.delay = 0.0
        self.due: float | None = None  #: when it is started again

    def owes(self, now: float, seconds: float) -> bool:
        """Whether it has owed an answer for *seconds*; *now* is monotonic."""
        return self.asked is not None and now - self.asked >= seconds


class Crew:
    """All workers.

    Args:
        selector: the supervisor's.
        post: makes what a worker is given, of its index, its end of the lifeline and
            whether it is the first in this place.
        on_ready: called when a worker that was started again is ready.
    """

    def __init__(
        self,
        count: int,
        selector: selectors.BaseSelector,
        post: Callable[[int, socket.socket, bool], Post],
        on_ready: Callable[[Member], None],
    ) -> None:
        self.members = [Member(index) for index in range(count)]
        self._selector = selector
        self._post = post
        self._on_ready = on_ready
        self._next_question = math.inf

    def begin(self) -> None:
        """Start all, and wait until all serve.

        Raises:
            PptpNatError: one of them does not; it has said why.
        """
        for member in self.members:
            self._start(member, is_first=True)
        waiting = {each.lifeline: each for each in self.members if each.lifeline is not None}
        deadline = time.monotonic() + START_SECONDS
        while waiting:
            patience = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(waiting), [], [], patience)
            for lifeline in ready:
                member = waiting.pop(lifeline)
                if lifeline.recv(1) != READY:
                    raise PptpNatError(f"worker {member.index} has not started; see the log")
            if not ready:
                raise PptpNatError(f"{len(waiting)} workers have not started in time")
        for member in self.members:
            try:
                self._release(member)
            except OSError as error:
                raise PptpNatError(f"worker {member.index} has not started; see the log") from error

    def _start(self, member: Member, *, is_first: bool = False) -> None:
        ours, theirs = socket.socketpair()
        post = self._post(member.index, theirs, is_first)
        pid = os.fork()
        if not pid:
            _be(post)
        theirs.close()
        member.pid, member.lifeline, member.started = pid, ours, time.monotonic()
        member.due = None

    def _release(self, member: Member) -> None:
        """Let a worker that is ready begin, and watch it.  Raises `OSError`: it has just died."""
        assert member.lifeline is not None
        member.lifeline.sendall(GO)
        member.is_ready, member.asked, member.unanswered = True, None, 0
        self._next_question = min(self._next_question, time.monotonic() + ASKING_SECONDS)
        self._selector.register(
            member.lifeline, selectors.EVENT_READ, lambda _mask: self._heard(member)
        )

    def _heard(self, member: Member) -> None:
        """Take note of an answer, or of the end."""
        assert member.lifeline is not None
        try:
            said = member.lifeline.recv(64)
        except OSError:  # it was killed with a question unread
            said = b""
        if said:
            member.asked, member.unanswered = None, 0
        else:
            self._lost(member)

    def _lost(self, member: Member) -> None:
        """Bury a worker whose lifeline has ended, and say when there is another."""
        code = self._bury(member)
        soon = time.monotonic() - member.started < _SOON
        member.delay = min(_LONGEST_DELAY, 2 * member.delay or 1.0) if soon else 0.0
        member.due = time.monotonic() + member.delay
        member.restarts += 1
        log.event(
            _log, logging.ERROR, "worker-died", worker=member.index, status=code,
            again_in=member.delay, calls="go on in the kernel",
        )  # fmt: skip

    def _bury(self, member: Member) -> int:
        """Let go of a worker that ends; return its exit status, -N for signal N."""
        if member.lifeline is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(member.lifeline)
            member.lifeline.close()
        member.lifeline, member.is_ready = None, False
        pid, member.pid = member.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0

    def next_timer(self) -> float:
        """Return when a worker is to be started again or asked, in monotonic seconds."""
        dues = (each.due for each in self.members if each.due is not None)
        return min([self._next_question, *dues])

    def _ask(self, now: float) -> None:
        """Ask workers whether they are there; end one that has long not said so.

        Questions count, not seconds: where this process stood still, or the machine, nobody
        has had his time to answer.  And where this one waits for a worker that hangs, since
        people ask for what it knows, the next question is late and counts all the same.
        """
        if now < self._next_question:
            return
        self._next_question = now + ASKING_SECONDS
        for member in self.members:
            if member.lifeline is None:
                continue
            if member.unanswered >= QUESTIONS:
                self._end(member, now - (member.asked or now))
            elif member.is_ready:
                member.asked = now if member.asked is None else member.asked
                member.unanswered += 1
                with contextlib.suppress(OSError):  # it has just died, and its end is heard next
                    member.lifeline.send(QUESTION, socket.MSG_DONTWAIT)
            elif now - member.started >= START_SECONDS:
                self._end(member, now - member.started)

    def _end(self, member: Member, silent: float) -> None:
        """Kill a worker that hangs; its end is heard of, and it is started again."""
        log.event(
            _log, logging.ERROR, "worker-hangs", worker=member.index, silent=round(silent),
            mend="it is killed and started again",
        )  # fmt: skip
        os.kill(member.pid, signal.SIGKILL)

    def tick(self, now: float) -> None:
        """Start those again whose time it is, and ask the others whether they are there."""
        self._ask(now)
        for member in self.members:
            if member.due is not None and member.due <= now:
                self._start(member)
                assert member.lifeline is not None
                self._selector.register(
                    member.lifeline, selectors.EVENT_READ,
                    lambda _mask, member=member: self._spoke(member),
                )  # fmt: skip

    def _spoke(self, member: Member) -> None:
        """Let a worker that was started again begin, or take note that it is dead."""
        assert member.lifeline is not None
        if member.lifeline.recv(1) != READY:
            self._lost(member)
            return
        self._selector.unregister(member.lifeline)
        try:
            self._release(member)
        except OSError:
            self._lost(member)
            return
        log.event(_log, logging.WARNING, "worker-back", worker=member.index)
        self._on_ready(member)

    def close(self) -> None:
        """End all workers in good order; who takes too long is killed."""
        for member in self.members:
            if member.lifeline is not None:
                member.lifeline.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + STOP_SECONDS
        for member in self.members:
            if member.pid and not _ends(member.pid, deadline):
                log.event(_log, logging.ERROR, "worker-killed", worker=member.index)
                os.kill(member.pid, signal.SIGKILL)
            self._bury(member)


def _ends(pid: int, deadline: float) -> bool:
    """Wait until process *pid* has ended; whether it did by *deadline*."""
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select(
            [descriptor], [], [], max(0.0, deadline - time.monotonic())
        )
        return bool(ready)
    finally:
        os.close(descriptor)


def _be(post: Post) -> None:
    """Be a worker, in the child; never returns."""
    code = 1
    try:
        _close_all_but(post.lifeline.fileno())
        code = work(post)
    except PptpNatError as error:
        log.event(_log, logging.ERROR, "worker-failed", worker=post.part.index, reason=str(error))
    except BaseException:  # noqa: BLE001  it must not fall into the supervisor's code
        _log.exception("worker-failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _close_all_but(kept: int) -> None:
    """Close what the supervisor has open.

    Its Python objects are still here and may close their descriptors at any time: so each
    number is filled with nothing, rather than left to be given to somebody else.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for path in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(path.name)
        if descriptor > 2 and descriptor not in (kept, nothing):
            with contextlib.suppress(OSError):  # that of the listing is closed by now
                os.fstat(descriptor)
                os.dup2(nothing, descriptor, inheritable=False)
