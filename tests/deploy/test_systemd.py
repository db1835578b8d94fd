"""The units: systemd reads them without complaint, and what they allow is little."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="not found: systemd-analyze: install systemd"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Give a folder of the units in which the program is one that is there."""
    for unit in UNITS:
        text = unit.read_text().replace("/usr/bin/pptp-nat ", "/bin/true ")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def test_systemd_reads_the_units_without_a_complaint(installed: Path) -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(installed / each.name) for each in UNITS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    ours = [line for line in verified.stderr.splitlines() if "pptp-nat" in line]

    assert ([], 0) == (ours, verified.returncode)


@pytest.mark.parametrize(
    ("unit", "most"), [("pptp-nat.service", 1.7), ("pptp-nat-rules.service", 2.9)]
)
def test_the_sandbox_is_tight(installed: Path, unit: str, most: float) -> None:
    """The second is root's, for a moment; the first faces the world, for ever."""
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(installed / unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged.stdout)

    assert level is not None, judged.stderr
    assert float(level[1]) <= most


def test_the_daemon_has_one_capability_and_keeps_no_other(installed: Path) -> None:
    text = (installed / "pptp-nat.service").read_text()

    assert ["CAP_NET_ADMIN"] == re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    assert ["CAP_NET_ADMIN"] == re.findall(r"^AmbientCapabilities=(.*)$", text, re.MULTILINE)


def test_users_and_folders_are_made_as_the_unit_expects_them(tmp_path: Path) -> None:
    """Dry runs of the tools that will read the snippets, in a root of their own."""
    (tmp_path / "etc").mkdir()
    sysusers = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "pptp-nat.sysusers")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (0, "") == (sysusers.returncode, sysusers.stderr.replace(_created(sysusers.stderr), ""))
    (user,) = [
        line.split(":")
        for line in (tmp_path / "etc/passwd").read_text().splitlines()
        if line.startswith("pptp-nat:")
    ]
    assert ["/var/lib/pptp-nat", "/usr/sbin/nologin"] == user[-2:]
    tmpfiles = subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(SYSTEMD / "pptp-nat.tmpfiles")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (0, "") == (tmpfiles.returncode, tmpfiles.stderr)
    for folder in ("run/pptp-nat", "var/lib/pptp-nat"):
        found = (tmp_path / folder).stat()
        assert (0o750, int(user[2])) == (found.st_mode & 0o7777, found.st_uid)


def _created(stderr: str) -> str:
    """Return what systemd-sysusers says when all is well: it says it on standard error."""
    return "".join(re.findall(r"^(?:Creating (?:group|user) 'pptp-nat'.*\n)", stderr, re.MULTILINE))
