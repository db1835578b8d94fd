"""A router that is none: our packages in a scratch root, busybox, and stubs of OpenWrt's own parts.

The stubs say what the init script asks of OpenWrt (``rc.common``, UCI's shell functions, procd)
and record it; nothing of OpenWrt is copied.  A UCI file is sourced, which its grammar allows.
The scratch root lies over this machine's root in a mount namespace, so that paths are those of a
router, and Python, nft and iptables are those of this machine.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deploy.packages import openwrt
from deploy.packages.tree import distribution, lay
from pptp_nat.lab import namespaces

STUBS = Path(__file__).with_name("router_stub")
BUSYBOX = shutil.which("busybox")
#: what makes the scratch root the whole system, for one command
ENTER = """
set -e
mount -t tmpfs tmpfs "$1/rw"
mkdir "$1/rw/upper" "$1/rw/work"
cp -a "$1/root" "$1/rw/lower"  # a layer may not lie within another one
layers="lowerdir=$1/rw/lower:/,upperdir=$1/rw/upper,workdir=$1/rw/work"
mount -t overlay overlay -o "$layers" "$1/merged"
for each in proc sys dev; do mount --rbind "/$each" "$1/merged/$each"; done
mkdir -p "$1/merged/run" "$1/merged/tmp" "$1/merged/var"
rm -rf "$1/merged/var/run"
for each in tmp run var; do mount --bind "$1/kept/$each" "$1/merged/$each"; done
cd /
path=/applets:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$1/merged" /usr/bin/env -i PATH=$path HOME=/root "${@:2}"
"""


def missing() -> str | None:
    """Return why there can be no such router here, or None."""
    if os.geteuid() != 0:
        return "a root of its own needs root: run it with sudo"
    absent = [tool for tool in ("busybox", "unshare", "mount", "chroot") if not shutil.which(tool)]
    if absent:
        return f"not found: {', '.join(absent)}: apt install busybox"
    if not _same_python():
        return "/usr/bin/python3 is another Python than the one that runs the tests"
    return None


def _same_python() -> bool:
    script = "import sys; print(sys.version_info[:2])"
    told = subprocess.run(
        ["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() == str(sys.version_info[:2])


def unpack(package: Path, root: Path) -> dict[str, str]:
    """Put what a package installs below *root*; return its control files."""
    parts = _members(package.read_bytes())
    assert ["control.tar.gz", "data.tar.gz", "debian-binary"] == sorted(parts)
    assert b"2.0\n" == parts["debian-binary"]
    with tarfile.open(fileobj=io.BytesIO(parts["data.tar.gz"])) as data:
        data.extractall(root)
    return {name: text.decode() for name, text in _members(parts["control.tar.gz"]).items()}


def _members(octets: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(octets)) as archive:
        found = {}
        for each in archive.getmembers():
            if each.isfile():
                file = archive.extractfile(each)
                assert file is not None
                found[each.name.removeprefix("./")] = file.read()
        return found


class Router:
    """The scratch root, and what runs in it.

    Args:
        place: an empty folder.
        packages: those to unpack.
        firewall: which of OpenWrt's is there, ``fw3`` or ``fw4``.
        namespace: the network that its commands share; "": each has a new one.
    """

    def __init__(
        self, place: Path, packages: Sequence[Path], *, firewall: str = "fw3", namespace: str = ""
    ) -> None:
        self.place = place
        self.namespace = namespace
        self.root = place / "root"
        self.kept = place / "kept"
        for name in ("root", "merged", "rw", "kept/tmp", "kept/run", "kept/var/run"):
            (place / name).mkdir(parents=True)
        for package in packages:
            unpack(package, self.root)
        # python3-netfilterqueue is compiled: it comes from this machine.
        lay(distribution("NetfilterQueue", openwrt.HOME), self.root)
        shutil.copytree(STUBS, self.root, dirs_exist_ok=True)
        applets = self.root / "applets"
        applets.mkdir()
        assert BUSYBOX is not None
        subprocess.run([BUSYBOX, "--install", "-s", str(applets)], check=True)
        # stubs, or programs of this machine
        for name in ("logger", "logread", "uci", "python3", "ip", "modprobe"):
            (applets / name).unlink(missing_ok=True)
        (self.root / "sbin" / {"fw3": "fw4", "fw4": "fw3"}[firewall]).unlink()
        for name in ("bin", "sbin", "lib"):  # links into /usr where this machine has them so
            if Path("/", name).is_symlink() and (self.root / name).exists():
                shutil.copytree(self.root / name, self.root / "usr" / name, dirs_exist_ok=True)
                shutil.rmtree(self.root / name)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread live in the router's network namespace, if it has one that lasts."""
        with contextlib.ExitStack() as stack:
            if self.namespace:
                stack.enter_context(namespaces.entered(self.namespace))
            yield

    @property
    def uci(self) -> Path:
        """The configuration."""
        return self.root / "etc/config/pptp-nat"

    @property
    def toml(self) -> Path:
        """What the init script makes of it."""
        return self.kept / "var/etc/pptp-nat.toml"

    def command(self, *argv: str) -> list[str]:
        """Return what runs *argv* in the router's root."""
        net = [] if self.namespace else ["--net"]  # never the network of this machine
        return ["unshare", "--mount", *net, "bash", "-c", ENTER, "bash", str(self.place), *argv]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run *argv* in the router's root and network."""
        with self.entered():
            done = subprocess.run(
                self.command(*argv), capture_output=True, text=True, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        assert not check or done.returncode == 0, (argv, done.returncode, done.stdout, done.stderr)
        return done

    def service(self, *argv: str, check: bool = True) -> list[list[str]]:
        """Have the init script do *argv*; return what it told procd, a list per call."""
        record = self.kept / "tmp/procd"
        record.unlink(missing_ok=True)
        self.run("/etc/rc.common", "/etc/init.d/pptp-nat", *argv, check=check)
        lines = record.read_text().splitlines() if record.exists() else []
        return [line.split("\x1f")[:-1] for line in lines]

    def logged(self) -> list[str]:
        """Return what went to the log since the last call."""
        log = self.kept / "tmp/log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


def skip_unless_possible() -> None:
    """Skip with the reason where there can be no router."""
    if why := missing():
        pytest.skip(why)
