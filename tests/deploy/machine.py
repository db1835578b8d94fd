"""A Debian machine of its own: systemd as its first process, in a container that is thrown away.

The file system is an overlay over a root that debootstrap made once; the network is a namespace
that somebody else has built.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("PPTP_NAT_DEBIAN_ROOT", "/var/cache/pptp-nat/debian-12"))
TOOLS = ("systemd-nspawn", "nsenter", "mount", "dpkg-deb")
WITH = (
    "systemd,systemd-sysv,dbus,python3,nftables,iptables,iproute2,conntrack,"
    "libnetfilter-queue1,procps"
)
PATIENCE = 90.0  # seconds for a machine to boot, or a service to get somewhere


def debian_root() -> Path:
    """Return a root of Debian 12 with systemd; one is made where the environment asks for it."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"not found: {', '.join(absent)}: apt install systemd-container")
    if os.geteuid() != 0:
        pytest.skip("a container needs root: run it with sudo")
    if (ROOT / "usr/bin/python3").exists() and not (ROOT / "debootstrap").exists():
        return ROOT
    if "PPTP_NAT_DEBIAN_ROOT" not in os.environ:
        pytest.skip(
            f"there is no root of Debian at {ROOT}: set PPTP_NAT_DEBIAN_ROOT={ROOT} to have "
            "debootstrap make it, which takes a minute and the network"
        )
    if shutil.which("debootstrap") is None:
        pytest.skip("not found: debootstrap: apt install debootstrap")
    ROOT.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={WITH}", "bookworm", str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    return ROOT


class Machine:
    """A machine that has booted."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run *command* inside."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "-r", "-w", *command],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive",
                 "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}"
        )
        return done

    def said(self, *command: str) -> str:
        """Return what *command* prints, whatever its exit code."""
        return self.run(*command, check=False).stdout.strip()

    def log(self) -> str:
        """Return the journal of our units."""
        units = ("-u", "pptp-nat", "-u", "pptp-nat-rules")
        return self.said("journalctl", *units, "--no-pager", "-o", "cat")

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until *done*, which must come."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"waited in vain until {what}\n{self.log()}"
            time.sleep(0.1)


@contextlib.contextmanager
def booted(scratch: Path, namespace: str) -> Iterator[Machine]:
    """Boot a machine whose network is the namespace called *namespace*."""
    base = debian_root()
    root, upper, work = (scratch / name for name in ("root", "upper", "work"))
    for folder in (root, upper, work):
        folder.mkdir()
    options = f"lowerdir={base},upperdir={upper},workdir={work}"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"no overlay can be mounted here: {mounted.stderr.strip()}")
    log = scratch / "console"
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", str(root)], check=False)
        console = stack.enter_context(log.open("wb"))
        container = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "-D", str(root), "--boot", "--register=no",
             "--keep-unit", "--console=pipe", "--link-journal=no",
             f"--network-namespace-path=/run/netns/{namespace}",
             "--capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF", "--system-call-filter=bpf"],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
        stack.callback(_ended, container)
        yield _awaited(container, root, log)


def _awaited(container: subprocess.Popen[bytes], root: Path, log: Path) -> Machine:
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if container.poll() is not None:
            break
        leaders = children.read_text().split()
        if leaders:
            machine = Machine(root, int(leaders[0]))
            if machine.said("systemctl", "is-system-running") in ("running", "degraded"):
                return machine
        time.sleep(0.2)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
    pytest.skip(f"systemd does not boot in a container here: {last[0]}")


def _ended(container: subprocess.Popen[bytes]) -> None:
    container.terminate()
    try:
        container.wait(20)
    except subprocess.TimeoutExpired:
        container.kill()
        container.wait()
