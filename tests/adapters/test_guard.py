"""A guard keeps descriptors and starts its daemon again: with small programs in its place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from pptp_nat.guard import GUARDED

PATIENCE: Final = 30.0
#: How a daemon begins: what it was given, and the manager's protocol, by our own hand.
BEGIN: Final = """
import os, pathlib, signal, socket, sys, time
here = pathlib.Path(sys.argv[1])
names = [name for name in os.environ["LISTEN_FDNAMES"].split(":") if name]
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LISTEN_FDS"] == str(len(names))
given = dict(zip(names, range(3, 3 + len(names))))
life = len(list(here.glob("life-*")))
(here / f"life-{life}").write_text(str(os.getpid()))
def say(text, *descriptors):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guard:
        guard.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(guard, [text.encode()], descriptors)
def wait():
    while True:
        signal.pause()
"""
#: The guard, with what the test sets in it.
GUARD: Final = "import sys; from pptp_nat import guard; {}; sys.exit(guard.run_guard(sys.argv[1:]))"


class Guarded:
    """A guard at work on a program."""

    def __init__(self, here: Path, program: str, *, settings: str = "pass") -> None:
        self.here = here
        daemon = [sys.executable, "-c", BEGIN + program, str(here)]
        self.log = here / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", GUARD.format(settings), *daemon], stderr=log
            )

    def lives(self) -> int:
        """Return how many daemons have begun."""
        return len([each for each in self.here.glob("life-*") if each.read_text()])

    def pid(self, life: int) -> int:
        return int((self.here / f"life-{life}").read_text())

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def code(self) -> int:
        """Return the guard's exit code."""
        return self.process.wait(PATIENCE)


@pytest.fixture
def guarded(tmp_path: Path) -> Callable[..., Guarded]:
    def make(program: str, **how: str) -> Guarded:
        return Guarded(tmp_path, program, **how)

    return make


def test_what_one_daemon_gives_the_next_one_has(guarded: Callable[..., Guarded]) -> None:
    """As many as may be kept: none of them may lie in another's way."""
    made = guarded(
        """
if life == 0:
    for n in range(9):
        file = os.memfd_create("kept")
        os.write(file, str(n).encode())
        say(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=number-{n}", file)
        os.close(file)
    say("FDSTOREREMOVE=1\\nFDNAME=number-3")
    say("READY=1")
    os.kill(os.getpid(), signal.SIGKILL)
found = {name: os.pread(descriptor, 9, 0).decode() for name, descriptor in given.items()}
(here / "found").write_text(repr(found))
"""
    )
    assert made.code() == 0
    assert eval((made.here / "found").read_text()) == {
        f"number-{n}": str(n) for n in range(8) if n != 3
    }
    assert "event=daemon-ended" in made.log.read_text()
    assert "status=-9 again_in=0.1 kept=7" in made.log.read_text()


def test_what_is_given_again_takes_the_place_of_the_first(
    guarded: Callable[..., Guarded],
) -> None:
    made = guarded(
        """
if life == 0:
    for text in (b"first", b"second"):
        file = os.memfd_create("kept")
        os.write(file, text)
        say("FDSTORE=1\\nFDNAME=one", file)
    say("READY=1")
    sys.exit(1)
assert list(given) == ["one"] and os.pread(3, 9, 0) == b"second"
"""
    )
    assert made.code() == 0


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("sys.exit(1)", 1),  # at its first start: whoever starts us is to hear of it
        ("os.kill(os.getpid(), signal.SIGKILL)", 1),
        ('say("READY=1"); sys.exit(2)', 2),  # the configuration is wrong, and stays wrong
        ('say("READY=1"); sys.exit(0)', 0),
    ],
)
def test_who_ends_by_himself_has_ended(
    guarded: Callable[..., Guarded], program: str, code: int
) -> None:
    made = guarded(program)
    assert made.code() == code
    assert made.lives() == 1


def test_a_stop_is_passed_on_and_ends_both(guarded: Callable[..., Guarded]) -> None:
    made = guarded(
        """
def end(*_):
    (here / "ended").write_text("in good order")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, lambda *_: (here / "reloaded").touch())
say("READY=1")
(here / "ready").touch()
wait()
"""
    )
    made.until((made.here / "ready").exists)
    made.process.send_signal(signal.SIGHUP)
    made.until((made.here / "reloaded").exists)
    made.process.terminate()
    assert made.code() == 0
    assert not list(Path("/run").glob(f"pptp-nat-guard-{made.process.pid}"))
    assert (made.here / "ended").read_text() == "in good order"
    assert made.lives() == 1


def test_a_restart_ends_the_daemon_in_good_order_and_starts_another(
    guarded: Callable[..., Guarded],
) -> None:
    made = guarded(
        """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
say("FDSTORE=1\\nFDNAME=one", 0)
say("READY=1")
(here / f"ready-{life}").write_text(repr(list(given)))
wait()
"""
    )
    for life in range(3):
        made.until((made.here / f"ready-{life}").exists)
        made.until(lambda: bool((made.here / f"ready-{life}").read_text()))  # noqa: B023
        made.process.send_signal(signal.SIGUSR1)
    made.until((made.here / "ready-3").exists)
    made.process.terminate()
    assert made.code() == 0
    assert (made.here / "ready-2").read_text() == "['one']"
    assert "daemon-ended" not in made.log.read_text()


def test_one_that_hangs_is_ended_and_started_again(guarded: Callable[..., Guarded]) -> None:
    made = guarded(
        'say("READY=1"); (wait() if life == 0 else sys.exit(0))', settings="guard.WATCHDOG = 0.3"
    )
    assert made.code() == 0
    assert made.lives() == 2
    assert "event=daemon-hangs" in made.log.read_text()


def test_one_that_gives_signs_of_life_is_left_alone(guarded: Callable[..., Guarded]) -> None:
    made = guarded(
        """
assert os.environ["WATCHDOG_USEC"] == "2000000"
say("READY=1")
for _ in range(30):
    time.sleep(0.1)
    say("WATCHDOG=1")
""",
        settings="guard.WATCHDOG = 2.0",
    )
    assert made.code() == 0
    assert made.lives() == 1


def test_one_that_does_not_end_is_ended(guarded: Callable[..., Guarded]) -> None:
    made = guarded(
        'signal.signal(signal.SIGTERM, signal.SIG_IGN); say("READY=1"); '
        '(here / "ready").touch(); wait()',
        settings="guard.STOP_SECONDS = 0.3",
    )
    made.until((made.here / "ready").exists)
    made.process.terminate()
    assert made.code() == 1


def test_an_heir_is_guarded_like_the_one_before(guarded: Callable[..., Guarded]) -> None:
    """Who takes over was started by somebody else; its death is seen all the same."""
    made = guarded(
        """
if life == 0:
    heir = os.fork()
    if heir:
        say("READY=1")
        say(f"MAINPID={heir}")
        os._exit(0)
    os.setsid()
    (here / "life-1").write_text(str(os.getpid()))
    wait()
"""
    )
    made.until(lambda: made.lives() == 2)
    time.sleep(0.2)  # the guard is content
    assert made.process.poll() is None
    os.kill(made.pid(1), signal.SIGKILL)
    assert made.code() == 0
    assert made.lives() == 3


def test_a_stranger_s_words_are_nothing(guarded: Callable[..., Guarded]) -> None:
    made = guarded(
        """
if life == 0:
    say("READY=1")
    if not os.fork():
        file = os.memfd_create("strange")
        say("FDSTORE=1\\nFDNAME=strange", file)
        say("MAINPID=1")
        os._exit(0)
    os.wait()
    sys.exit(1)
assert given == {}
"""
    )
    assert made.code() == 0
    assert made.lives() == 2


def test_the_daemon_ends_with_its_guard(guarded: Callable[..., Guarded]) -> None:
    """Or the next guard's daemon would find the queues taken."""
    made = guarded(
        """
def end(*_):
    (here / "ended").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
say("READY=1")
(here / "ready").touch()
wait()
"""
    )
    made.until((made.here / "ready").exists)
    made.process.kill()
    made.process.wait()
    shutil.rmtree(f"/run/pptp-nat-guard-{made.process.pid}", ignore_errors=True)
    deadline = time.monotonic() + PATIENCE
    while not (made.here / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pptp_nat", "run", *options],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        timeout=PATIENCE,
    )  # fmt: skip


def test_two_who_would_keep_the_same_are_told_apart() -> None:
    managed = _run("--guard", NOTIFY_SOCKET="@somebody")
    assert managed.returncode == 1
    assert "leave --guard out, and have it keep the queues" in managed.stderr
    taking_over = _run("--guard", "--takeover")
    assert taking_over.returncode == 1
    assert "leave --guard out" in taking_over.stderr
    assert 1 == len(taking_over.stderr.splitlines()) == len(managed.stderr.splitlines())


def test_a_look_at_the_configuration_is_not_guarded() -> None:
    looked = _run("--guard", "--check-config")
    assert (looked.returncode, looked.stderr) == (0, "")


def test_a_wrong_configuration_is_said_once(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[gre]\ndatapath = 7\n")
    done = _run("--guard", "--config", str(wrong))
    assert done.returncode == 2
    assert 1 == len(done.stderr.splitlines())


def test_who_was_not_started_by_a_guard_is_not_taken_in_by_the_word() -> None:
    managed = _run("--guard", NOTIFY_SOCKET="@somebody", **{GUARDED: "1"})
    assert "leave --guard out" in managed.stderr
