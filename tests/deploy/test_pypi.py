"""Wheel and sdist: complete, and installable into an empty environment on each Python here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.packages import pypi
from deploy.packages.tree import PACKAGE, ROOT
from pptp_nat import __version__

SUPPORTED = range(11, 15)  # the second number of Python 3's
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def pythons() -> list[str]:
    """Return the interpreters of the supported range that are on this machine, one of each."""
    found = {}
    for minor in SUPPORTED:
        places = [shutil.which(f"python3.{minor}"), *PYENV.glob(f"3.{minor}.*/bin/python")]
        for place in filter(None, map(str, filter(None, places))):
            told = subprocess.run([place, "-c", "import venv"], capture_output=True, check=False)
            if told.returncode == 0:
                found.setdefault(minor, place)
    return list(found.values())


def bundled_pip(python: str) -> Path:
    """Return the wheel of pip that *python* comes with: it runs from there, unpacked by nobody."""
    script = "import ensurepip; print(ensurepip.__path__[0])"
    told = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    places = (Path(told.stdout.strip()) / "_bundled", Path("/usr/share/python-wheels"))
    found = [wheel for place in places for wheel in place.glob("pip-*.whl")]
    if not found:
        pytest.skip(f"{python} comes without pip: apt install python3-venv")
    return found[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone: what belongs to the sources is not known")
    return pypi.build(tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_the_package_and_nothing_else(built: list[Path]) -> None:
    names = {name for name in zipfile.ZipFile(built[1]).namelist() if ".dist-info/" not in name}
    ours = {
        f"pptp_nat/{each.relative_to(PACKAGE)}"
        for each in PACKAGE.rglob("*")
        if each.is_file() and each.suffix != ".pyc"
    }

    assert ours == names


def test_the_sdist_holds_what_distributions_need(built: list[Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {
        "LICENSE", "pyproject.toml", "rules/pptp-nat.nft", "deploy/systemd/pptp-nat.service",
        "deploy/man/pptp-nat.8.in", "docs/configuration.md", "tests/test_layering.py",
    } <= names  # fmt: skip


def test_one_sdist_makes_one_wheel(built: list[Path], tmp_path: Path) -> None:
    """Bit for bit; a sdist has the dates of the machine that it was made on."""
    again = pypi.wheel(built[0], tmp_path)

    assert built[1].read_bytes() == again.read_bytes()


@pytest.mark.parametrize("python", pythons())
def test_it_installs_into_an_empty_environment(
    python: str, built: list[Path], tmp_path: Path
) -> None:
    """With PPTP_NAT_FULL_INSTALL=1 the libraries too: that needs the network and a compiler."""
    full = os.environ.get("PPTP_NAT_FULL_INSTALL") == "1"
    subprocess.run([python, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    inside = tmp_path / "bin" / "python"
    pip = [str(inside), str(bundled_pip(python) / "pip"), "--disable-pip-version-check"]
    if full:
        # Cython first: NetfilterQueue's own C does not compile on these Pythons.
        needed = ["-c", str(ROOT / "deploy/constraints.txt"), "setuptools", "wheel", "Cython"]
        subprocess.run([*pip, "install", "-q", *needed], check=True)
        with_libraries = ["--no-build-isolation", "-c", str(ROOT / "deploy/constraints.txt")]
    subprocess.run(
        [*pip, "install", "-q", *(with_libraries if full else ["--no-deps", "--no-index"]),
         str(built[1])],
        check=True,
    )  # fmt: skip
    command = str(tmp_path / "bin" / "pptp-nat")
    for words in (["--version"], ["run", "--check-config"], ["completion", "zsh"]):
        told = subprocess.run([command, *words], capture_output=True, text=True, check=False)
        assert (0, "") == (told.returncode, told.stderr)
        if words == ["--version"]:
            assert f"pptp-nat {__version__}\n" == told.stdout
    if full:
        subprocess.run([str(inside), "-c", "import pptp_nat.daemon"], check=True)
