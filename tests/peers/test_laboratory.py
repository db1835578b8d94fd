"""The laboratory cleans up after itself, whatever happens in it; and so does the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pptp_nat.errors import UsageError
from pptp_nat.lab.namespaces import NAMED
from pptp_nat.lab.network import Lab, missing
from tests.paths import PATHS

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        missing(["iptables", "iptables-restore", "unshare"]) is not None,
        reason=missing(["iptables", "iptables-restore", "unshare"]) or "all there",
    ),
]

DEMO = [sys.executable, "-c", "import sys; from pptp_nat.lab.demo import run_demo as run; "]


def _namespaces(prefix: str) -> list[str]:
    return [each.name for each in NAMED.iterdir() if each.name.startswith(prefix)]


def _demo(call: str) -> subprocess.Popen[str]:
    command = [*DEMO[:2], f"{DEMO[2]}sys.exit({call})"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _left_by(pid: int) -> list[str]:
    """Return the namespaces, directories and processes that a demo left behind."""
    prefix = f"pptpnat-{pid}-"
    directories = [str(each) for each in Path(tempfile.gettempdir()).glob(f"{prefix}*")]
    return _group(pid) + _namespaces(prefix) + directories


def _group(leader: int) -> list[str]:
    """Return the command lines of what runs in the process group of *leader*."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, _, group, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(group) == leader and state != "Z":
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def test_laboratories_stand_side_by_side_and_leave_nothing() -> None:
    with Lab(inside=2) as one, Lab(inside=20, outside=2) as other:
        assert one.prefix != other.prefix
        assert (4, 23) == tuple(len(_namespaces(f"{each.prefix}-")) for each in (one, other))
        process = one.popen(one.inside[0], ["sh", "-c", "sleep 1000 & exec sleep 1000"])
        one.open_socket(one.inside[1], socket.SOCK_DGRAM)
        directories = [one.directory, other.directory]
    assert [] == _namespaces(one.prefix) + _namespaces(other.prefix)
    assert [] == [each for each in directories if each.exists()]
    assert process.returncode is not None
    assert [] == one.pids()


def test_a_laboratory_goes_away_with_the_exception_in_it() -> None:
    with pytest.raises(KeyboardInterrupt), Lab() as lab:
        raise KeyboardInterrupt
    assert [] == _namespaces(lab.prefix)


def test_an_interruption_as_soon_as_there_is_a_directory_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C may come between any two steps, also before anybody has noted what was made."""
    made = []
    make = Path.mkdir

    def make_and_be_interrupted(path: Path, mode: int) -> None:
        make(path, mode)
        made.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", make_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), Lab():
        pass
    assert [False] == [each.exists() for each in made]


def test_a_laboratory_that_cannot_be_finished_goes_away() -> None:
    """The second one cannot have names that exist; the first one keeps its own."""
    with Lab(inside=1) as lab:
        twin = Lab(inside=1)
        twin.inside = lab.inside
        with pytest.raises(Exception, match=r"exists|File"):
            twin.__enter__()
        assert [] == _namespaces(f"{twin.prefix}-")


def test_a_process_may_have_files_of_its_own(tmp_path: Path) -> None:
    """So that twenty clients do not share one /run, and can be told what to draw by lot."""
    (tmp_path / "random").write_bytes(b"\x12\x34")
    with Lab(inside=1) as lab:
        process = lab.popen(
            lab.inside[0],
            ["cat", "/dev/random"],
            mounts={"/dev/random": tmp_path / "random"},
            stdout=subprocess.PIPE,
        )
        assert b"\x12\x34" == process.communicate()[0]


def test_what_goes_wrong_in_a_namespace_is_told_in_one_line() -> None:
    with (
        Lab(inside=1) as lab,
        pytest.raises(UsageError, match=r"^iptables -X nonesuch in router: "),
    ):
        lab.run(lab.router, ["iptables", "-X", "nonesuch"])


@pytest.mark.parametrize("datapath", ["auto", *PATHS])
def test_the_demo_shows_that_each_client_receives_its_own(datapath: str) -> None:
    """The first thing that people run."""
    demo = _demo(f"run(3, {datapath!r})")
    shown, _ = demo.communicate(timeout=60)

    assert 0 == demo.returncode, shown
    assert "Every client received exactly its own data: 600 of 600" in shown
    assert all(f"192.168.77.1{n}" in shown for n in range(3))
    assert [] == _left_by(demo.pid)


@pytest.mark.parametrize("word", ["building", "starting", "dial", "GRE packets", "Ctrl-C"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_demo_leaves_nothing(word: str, number: signal.Signals) -> None:
    """At whichever step; "Ctrl-C" is in what it says when it keeps everything running."""
    demo = _demo("run(3, keep=True)")
    assert demo.stdout is not None
    shown = ""
    while word not in shown:
        line = demo.stdout.readline()
        assert line, shown
        shown += line
    os.kill(demo.pid, number)
    shown += demo.communicate(timeout=60)[0]

    assert (0 if word == "Ctrl-C" else 130) == demo.returncode, shown
    assert [] == _left_by(demo.pid)


def test_a_demo_that_cannot_be_given_says_why_in_one_line() -> None:
    demo = _demo("run(0)")
    shown, _ = demo.communicate(timeout=60)

    assert (1, "pptp-nat demo: --clients is 1 to 50, not 0\n") == (demo.returncode, shown)
