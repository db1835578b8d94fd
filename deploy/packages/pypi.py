"""Wheel and sdist, out of what the repository tracks and nothing else that lies about.

Built as PyPA's build does it: the sdist from the sources, the wheel from the sdist.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from deploy.packages.tree import ROOT, epoch


def build(target: Path) -> list[Path]:
    """Write sdist and wheel into the folder *target*; return their paths.

    Raises:
        subprocess.CalledProcessError: git or setuptools refused; its words are in ``stderr``.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "sources"
        for name in _tracked():
            place = sources / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place, follow_symlinks=False)
        sdist = target / _built("sdist", sources, target)
    return [sdist, wheel(sdist, target)]


def wheel(sdist: Path, target: Path) -> Path:
    """Write the wheel of *sdist* into the folder *target*; return its path."""
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(sdist) as archive:
        archive.extractall(scratch)  # noqa: S202  we have written it
        unpacked = Path(scratch) / sdist.name.removesuffix(".tar.gz")
        return target / _built("wheel", unpacked, target)


def _tracked() -> list[str]:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in told.stdout.split("\0") if name and (ROOT / name).exists()]


def _built(kind: str, sources: Path, target: Path) -> str:
    """Have setuptools build *kind* in a process of its own; return the file's name."""
    script = f"from setuptools import build_meta as it; print(it.build_{kind}({str(target)!r}))"
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=sources, capture_output=True, text=True, check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch())},
    )  # fmt: skip
    return told.stdout.splitlines()[-1]
