"""What goes into a package: files with their modes, and archives that are the same every time."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "pptp_nat"
BUILD_ONLY: Final = (".pyc", ".pyx", ".pxd")
PIPS_OWN: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
EPOCH: Final = 1_700_000_000  #: when nothing else says how old the sources are


class File(NamedTuple):
    """A file of a package; ``path`` is where it will be, without the leading slash."""

    path: str
    octets: bytes
    mode: int = 0o644


def version() -> str:
    """Return the package's version, read and not imported."""
    found = re.search(r'__version__ = "([^"]+)"', (PACKAGE / "__init__.py").read_text())
    assert found, "pptp_nat/__init__.py names the version"
    return found[1]


def epoch() -> int:
    """Return what all files are dated: SOURCE_DATE_EPOCH, else the last commit, in Unix seconds."""
    if text := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(text)
    told = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(told.stdout) if told.returncode == 0 and told.stdout.strip() else EPOCH


def copied(source: Path, path: str, mode: int = 0o644) -> File:
    """Return the file *source* of this repository, to be at *path*."""
    return File(path, source.read_bytes(), mode)


def modules(where: str, *, without: Iterable[str] = ()) -> Iterator[File]:
    """Yield our own files, to be below *where*, less the parts named in *without*.

    They are Python's, and what clang made of the BPF programs.
    """
    left_out = set(without)
    for source in sorted(PACKAGE.rglob("*")):
        inside = source.relative_to(PACKAGE)
        is_ours = source.suffix in (".py", ".o") or source.name == "py.typed"
        if is_ours and not left_out & {inside.as_posix(), inside.parts[0]}:
            yield copied(source, f"{where}/pptp_nat/{inside.as_posix()}")


def rewriting(where: str) -> Iterator[File]:
    """Yield the rewriting of queued GRE in C, compiled for this Python, to be below *where*.

    Raises:
        subprocess.CalledProcessError: there is no C compiler, or Python's headers are missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", scratch]
        subprocess.run(
            [*command, "--build-temp", f"{scratch}/temp"], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "PPTP_NAT_COMPILE": "gre"}, check=True,
        )  # fmt: skip
        for built in Path(scratch).rglob("*.so"):
            yield copied(built, f"{where}/{built.relative_to(scratch).as_posix()}", 0o755)


def distribution(name: str, where: str) -> Iterator[File]:
    """Yield the files of an installed distribution, to be below *where*.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    for entry in sorted(metadata.files(name) or [], key=str):
        source = Path(str(entry.locate()))
        is_wanted = source.suffix not in BUILD_ONLY and source.name not in PIPS_OWN
        if is_wanted and source.is_file() and ".." not in entry.parts:
            mode = 0o755 if source.suffix == ".so" else 0o644
            yield File(f"{where}/{entry.as_posix()}", source.read_bytes(), mode)


def lay(files: Iterable[File], root: Path) -> None:
    """Write *files* below *root*, directories with mode 0755."""
    for file in files:
        target = root / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.octets)
        target.chmod(file.mode)
    for directory in [root, *(each for each in root.rglob("*") if each.is_dir())]:
        directory.chmod(0o755)


def tar_gz(files: Iterable[File]) -> bytes:
    """Return a compressed tar archive: sorted, owned by root, dated by `epoch`."""
    buffer = io.BytesIO()
    moment = epoch()
    kept = {file.path: file for file in files}
    directories = {str(parent) for path in kept for parent in Path(path).parents}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted({*kept, *directories}):
            entry = tarfile.TarInfo("./" if path == "." else f"./{path}")
            entry.mtime = moment
            if path in kept:
                entry.mode, entry.size = kept[path].mode, len(kept[path].octets)
                archive.addfile(entry, io.BytesIO(kept[path].octets))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
    return gzip.compress(buffer.getvalue(), 9, mtime=moment)
