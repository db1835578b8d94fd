"""The guides: each block says where it is run, and is run there; what they name is there."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.packages import debian, openwrt
from deploy.packages.tree import ROOT
from pptp_nat.analysis.diagnosis import ALL_RULES
from pptp_nat.config import SECTIONS
from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.peers import Loop
from pptp_nat.lab.router import daemon
from tests.deploy.clients import Clients
from tests.deploy.machine import booted
from tests.deploy.router import Router, skip_unless_possible

from .blocks import CHECKED, GUIDES, INERT, PAGES, PLACES, blocks, of

KINDS = {*(f"sh {place}" for place in PLACES), *CHECKED, *INERT}
TOLERATED = 0.25  #: of a size that is told: the guide is read by people


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert [] == [block for block in blocks(page) if block.kind not in KINDS]


def test_the_index_names_every_guide() -> None:
    index = (GUIDES / "README.md").read_text()

    assert {page.name for page in PAGES} - {"README.md"} == set(
        re.findall(r"^\| \[([\w.-]+)\]", index, re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_are_of_sections_and_keys_that_are_there(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "toml":
            for section, table in tomllib.loads(block.text).items():
                assert set(table) <= set(SECTIONS[section])
        elif block.kind == "uci":
            section = re.search(r"^config (\w+)", block.text, re.MULTILINE)
            assert section
            options = re.findall(r"^\t(?:option|list) (\w+) ", block.text, re.MULTILINE)
            assert set(options) <= set(SECTIONS[section[1]])


def test_the_findings_that_errors_are_put_down_to_are_ours() -> None:
    table = (GUIDES / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \|.*\| (`.*`) \|$", table, re.MULTILINE)
    named = {slug for _, slugs in rows for slug in re.findall(r"`(\w+)`", slugs)}

    assert {"619", "691", "734", "800", "806", "807", "868"} == {error for error, _ in rows}
    assert named <= {rule.slug for rule in ALL_RULES}


def test_targets_of_make_are_there() -> None:
    for page in PAGES:
        for block in of(page.name, "sh clone"):
            for line in block.text.splitlines():
                planned = subprocess.run(
                    [*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=False
                )
                assert 0 == planned.returncode, planned.stderr


def test_the_sizes_of_packages_are_about_what_is_told() -> None:
    page = (GUIDES / "openwrt.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| \d+ kB \| (\d+) kB \|", page, re.MULTILINE)
    told = {name: int(size) for name, size in rows}
    measured = {
        package.name: openwrt.installed_size(package.files) / 1000 for package in openwrt.packages()
    }

    assert set(measured) == set(told)
    for name, size in measured.items():
        assert size == pytest.approx(told[name], rel=TOLERATED), name


# -- Run -------------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Lab]:
    if why := missing(["iptables", "iptables-restore", "conntrack", "unshare"]):
        pytest.skip(why)
    with Lab(inside=2) as lab:
        yield lab


def run_in(lab: Lab, script: str) -> str:
    done = lab.run(lab.router, ["bash", "-ec", script], check=False)
    assert 0 == done.returncode, (script, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.kernel
def test_the_troubleshooters_commands_answer(lab: Lab) -> None:
    (block,) = of("troubleshooting.md", "sh router")
    with daemon(lab) as running, contextlib.closing(Loop()) as loop:
        clients = Clients(lab, loop)
        clients.all_hear(clients.dial())
        program = f'"$PYTHON" -m pptp_nat "$1" --socket {running.socket} "${{@:2}}"'
        told = run_in(lab, f"pptp-nat() {{ {program}; }}\n{block.text}")

    assert "data path" in told
    assert all(told.count(host.address) >= 2 for host in lab.inside)
    assert "are all in place" in told


@pytest.mark.kernel
def test_the_kernels_helper_goes_as_the_guide_says(lab: Lab) -> None:
    """It is attached, calls through it, is taken away, and then calls are ours."""
    attach, detach, unasked, end = (block.text for block in of("migration.md", "sh router"))
    attached = lab.run(lab.router, ["bash", "-ec", attach], check=False)
    if attached.returncode:
        pytest.skip(f"this kernel has no helper for PPTP: {attached.stderr.strip()}")
    with contextlib.closing(Loop()) as loop:
        clients = Clients(lab, loop)
        clients.all_hear(clients.dial())
        run_in(lab, detach)
        run_in(lab, unasked)
        run_in(lab, end)
        with daemon(lab) as running:
            clients.all_hear(clients.dial())
            assert 2 == len(running.calls())


@pytest.mark.kernel
def test_the_debian_guide_is_followed_to_its_end(lab: Lab, tmp_path: Path) -> None:
    """With the older iptables, whose rules the daemon may not read in its sandbox."""
    lab.sysctl(lab.router, "net.netfilter.nf_conntrack_acct", "1")
    with booted(tmp_path, lab.router.namespace) as machine:
        legacy = "/usr/sbin/iptables-legacy"
        machine.run("update-alternatives", "--set", "iptables", legacy)
        package = debian.build(tmp_path / "deb")
        shutil.copyfile(package, machine.root / "root" / package.name)
        for block in of("debian.md", "sh debian"):
            machine.run("bash", "-ec", f"cd /root\n{block.text}")
            if "apt-get install" in block.text:
                machine.run("pptp-nat", "status")
                assert "PPTP_NAT" in machine.said(f"{legacy}-save")
            if "textfile" in block.text:
                written = machine.root / "var/lib/prometheus/node-exporter/pptp-nat.prom"
                machine.until(written.exists, "the metrics are in their file")
        assert "PPTP_NAT" not in machine.said(f"{legacy}-save")


def test_the_openwrt_guide_is_followed_to_its_end(lab: Lab, tmp_path: Path) -> None:
    """With stubs of opkg, uci, service and logread; what they start is real."""
    skip_unless_possible()
    router = Router(
        tmp_path / "router", openwrt.build(tmp_path / "ipk"), namespace=lab.router.namespace
    )
    script = "set -e\ntrap 'kill $(cat /tmp/daemon.pid)' EXIT\n" + "".join(
        block.text for block in of("openwrt.md", "sh openwrt")
    )
    done = router.run("ash", "-c", script, check=False)

    assert 0 == done.returncode, (done.stdout, done.stderr)
    assert 'level = "debug"' in router.toml.read_text()


@pytest.mark.kernel
@pytest.mark.skipif(shutil.which("keepalived") is None, reason="not found: keepalived")
def test_keepalived_reads_the_example(lab: Lab) -> None:
    """But for the names of interfaces and user, which are not of the laboratory."""
    text = (ROOT / "deploy/systemd/keepalived/keepalived.conf").read_text()
    names = {"eth0": "wan", "br-lan": "lan", "script_user pptp-nat": "script_user root",
             "/usr/bin/pptp-nat status": "/bin/true status"}  # fmt: skip
    for theirs, ours in names.items():
        text = text.replace(theirs, ours)
    config = lab.directory / "keepalived.conf"
    config.write_text(text)
    config.chmod(0o600)
    told = lab.run(lab.router, ["keepalived", "--config-test", f"--use-file={config}"], check=False)

    assert (0, "") == (told.returncode, told.stderr)
