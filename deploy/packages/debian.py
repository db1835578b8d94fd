"""The package for Debian and its kin: one ``.deb`` for the Python that builds it.

Debian has no NetfilterQueue, so the package brings its own, compiled for the one minor
version of Python that the release has, as is the rewriting of queued GRE, in a folder of
the application's own
(``/usr/lib/pptp-nat``); docs/decisions/0030-own-folder-in-the-deb.md says why no virtual
environment.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Final

from deploy.packages import manual
from deploy.packages.tree import (
    ROOT,
    File,
    copied,
    distribution,
    epoch,
    lay,
    modules,
    rewriting,
    version,
)
from pptp_nat.cli import parser
from pptp_nat.completion import SHELLS, tree

DEPLOY: Final = ROOT / "deploy"
HOME: Final = "usr/lib/pptp-nat"
#: -I: what an environment or a user's folder holds is none of a root command's business
LAUNCHER: Final = f"""#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{HOME}")
from pptp_nat.__main__ import main

sys.exit(main())
"""
UNITS: Final = ("pptp-nat.service", "pptp-nat-rules.service", "nftables.service.d/pptp-nat.conf")
SNIPPETS: Final = {
    "sysusers": "sysusers.d", "tmpfiles": "tmpfiles.d", "modules": "modules-load.d",
}  # fmt: skip
#: where a completion script goes, by shell
COMPLETIONS: Final = {
    "bash": "usr/share/bash-completion/completions/pptp-nat",
    "zsh": "usr/share/zsh/vendor-completions/_pptp-nat",
    "fish": "usr/share/fish/vendor_completions.d/pptp-nat.fish",
}
#: folders of `deploy` whose files are examples
EXAMPLES: Final = ("systemd/keepalived", "prometheus", "grafana")
#: the kernel's machine is BPF on whatever processor
OVERRIDES: Final = """\
pptp-nat: binary-from-other-architecture [usr/lib/pptp-nat/pptp_nat/bpf/gre.eb.o]
pptp-nat: binary-from-other-architecture [usr/lib/pptp-nat/pptp_nat/bpf/gre.el.o]
"""
MAINTAINER_SCRIPTS: Final = ("postinst", "prerm", "postrm")


def files() -> Iterator[File]:
    """Yield what the package installs."""
    yield File("usr/bin/pptp-nat", LAUNCHER.encode(), 0o755)
    yield from modules(HOME)
    yield from rewriting(HOME)
    for name in ("NetfilterQueue", "prometheus-client"):
        yield from distribution(name, HOME)
    for unit in UNITS:
        yield copied(DEPLOY / "systemd" / unit, f"lib/systemd/system/{unit}")
    for kind, folder in SNIPPETS.items():
        yield copied(DEPLOY / "systemd" / f"pptp-nat.{kind}", f"usr/lib/{folder}/pptp-nat.conf")
    yield copied(DEPLOY / "pptp-nat.toml", "etc/pptp-nat/pptp-nat.toml")
    for name in ("pptp-nat.nft", "pptp-nat.iptables", "README.md"):
        yield copied(ROOT / "rules" / name, f"usr/share/pptp-nat/{name}")
    for page in manual.PAGES:
        text = manual.page(page).encode()
        yield File(f"usr/share/man/man{page[-1]}/{page}.gz", _gzip(text))
    for shell, path in COMPLETIONS.items():
        yield File(path, SHELLS[shell](*tree(parser())).encode())
    yield File("usr/share/lintian/overrides/pptp-nat", OVERRIDES.encode())
    documents = "usr/share/doc/pptp-nat"
    yield File(f"{documents}/copyright", _copyright().encode())
    yield File(f"{documents}/changelog.Debian.gz", _gzip(_changelog().encode()))
    yield copied(ROOT / "README.md", f"{documents}/README.md")
    for document in sorted((ROOT / "docs").rglob("*.md")):
        yield copied(document, f"{documents}/{document.relative_to(ROOT)}")
    for name in EXAMPLES:
        for source in sorted((DEPLOY / name).glob("*")):
            yield copied(source, f"{documents}/examples/{Path(name).name}/{source.name}")


def build(target: Path) -> Path:
    """Write the package into the folder *target* and return its path.

    Raises:
        FileNotFoundError: dpkg-deb or strip is not installed.
        subprocess.CalledProcessError: one of them refused.
    """
    architecture = _told("dpkg", "--print-architecture")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        lay(files(), root)
        for library in root.rglob("*.so"):
            _told("strip", "--strip-unneeded", str(library))
        control = root / "DEBIAN"
        control.mkdir()
        (control / "control").write_text(_control(architecture, root))
        (control / "conffiles").write_text("/etc/pptp-nat/pptp-nat.toml\n")
        (control / "md5sums").write_text(_sums(root))
        for name in MAINTAINER_SCRIPTS:
            shutil.copyfile(DEPLOY / "debian" / name, control / name)
            (control / name).chmod(0o755)
        package = target / f"pptp-nat_{version()}-1_{architecture}.deb"
        # dpkg-deb dates every file by SOURCE_DATE_EPOCH at the latest, and sorts them.
        _told(
            "dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(package),
            SOURCE_DATE_EPOCH=str(epoch()),
        )  # fmt: skip
    return package


def _control(architecture: str, root: Path) -> str:
    major, minor = sys.version_info[:2]
    size = sum(each.stat().st_size for each in root.rglob("*") if each.is_file())
    fills = {
        "@VERSION@": f"{version()}-1",
        "@ARCHITECTURE@": architecture,
        "@SIZE@": str(size // 1024),
        "@PYTHON@": f"python3 (>= {major}.{minor}~), python3 (<< {major}.{minor + 1})",
    }
    return _filled(DEPLOY / "debian" / "control.in", fills)


def _copyright() -> str:
    lines = (ROOT / "LICENSE").read_text().strip().splitlines()
    holder = next(line for line in lines if line.startswith("Copyright (c) "))
    after = lines[lines.index(holder) + 1 :]
    licence = "\n".join(f" {line}" if line.strip() else " ." for line in after[1:])
    fills = {"@COPYRIGHT@": holder.removeprefix("Copyright (c) "), "@LICENSE@": licence}
    return _filled(DEPLOY / "debian" / "copyright.in", fills)


def _changelog() -> str:
    return (
        f"pptp-nat ({version()}-1) stable; urgency=medium\n\n"
        "  * What is new stands in CHANGELOG.md of the sources.\n\n"
        f" -- The pptp-nat project <pptp-nat@pptp-nat.invalid>  {formatdate(epoch())}\n"
    )


def _sums(root: Path) -> str:
    paths = sorted(each.relative_to(root) for each in root.rglob("*") if each.is_file())
    packed = [path for path in paths if path.parts[0] != "DEBIAN"]
    return _told("md5sum", *map(str, packed), folder=root) + "\n"


def _filled(template: Path, fills: dict[str, str]) -> str:
    text = template.read_text()
    for mark, value in fills.items():
        text = text.replace(mark, value)
    left = re.findall(r"@[A-Z]+@", text)
    assert not left, f"{template.name}: {left} is not known"
    return text


def _gzip(octets: bytes) -> bytes:
    return gzip.compress(octets, 9, mtime=0)


def _told(*command: str, folder: Path | None = None, **environ: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, **environ},
    )  # fmt: skip
    return done.stdout.strip()
