"""Packages for OpenWrt without its SDK: ``.ipk`` of what is Python and shell alone.

The feed's recipes beside this (``deploy/openwrt``) install the same files, with byte code in
place of sources and in the folder of their Python.  Here the sources go to ``/usr/lib/pptp-nat``,
which no version of Python's is part of; the same package serves every release.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.packages import keys
from deploy.packages.tree import ROOT, File, copied, distribution, modules, tar_gz, version

FEED: Final = ROOT / "deploy" / "openwrt"
FILES: Final = FEED / "pptp-nat" / "files"
LUCI: Final = FEED / "luci-app-pptp-nat"
HOME: Final = "usr/lib/pptp-nat"
RELEASE: Final = "r1"
#: parts of the package that a router's daemon has no use for
TOOLS: Final = ("analysis",)
NOT_FOR_ROUTERS: Final = ("lab",)
#: parts of prometheus-client that the feed's recipe leaves out as well
NOT_OF_PROMETHEUS: Final = ("aiohttp", "bridge", "django", "twisted")

#: a file of the folder files, where it goes, and its mode
PLACES: Final = (
    ("pptp-nat", "usr/bin/pptp-nat", 0o755),
    ("pptp-nat.config", "etc/config/pptp-nat", 0o600),
    ("pptp-nat.init", "etc/init.d/pptp-nat", 0o755),
    ("pptp-nat.defaults", "etc/uci-defaults/50-pptp-nat", 0o755),
    ("capabilities.json", "etc/capabilities/pptp-nat.json", 0o644),
    ("generate.sh", f"{HOME}/generate.sh", 0o644),
    ("firewall-include", f"{HOME}/firewall-include", 0o755),
    ("ruleset-post.nft", "usr/share/nftables.d/ruleset-post/pptp-nat.nft", 0o644),
    ("forward.nft", "usr/share/nftables.d/chain-pre/forward/pptp-nat.nft", 0o644),
)

#: what opkg runs; default_postinst and default_prerm enable, start and stop the service
SCRIPTS: Final = {
    "postinst": """#!/bin/sh
[ "${IPKG_NO_SCRIPT}" = "1" ] && exit 0
[ -s "${IPKG_INSTROOT}/lib/functions.sh" ] || exit 0
. "${IPKG_INSTROOT}/lib/functions.sh"
default_postinst "$0" "$@"
""",
    "prerm": """#!/bin/sh
[ -s "${IPKG_INSTROOT}/lib/functions.sh" ] || exit 0
. "${IPKG_INSTROOT}/lib/functions.sh"
default_prerm "$0" "$@"
""",
}


@dataclass(frozen=True, slots=True)
class Package:
    """A package before it is packed."""

    name: str
    version: str
    title: str
    depends: tuple[str, ...]
    files: tuple[File, ...]
    conffiles: tuple[str, ...] = ()
    has_service: bool = False

    @property
    def filename(self) -> str:
        """What opkg's index calls it."""
        return f"{self.name}_{self.version}-{RELEASE}_all.ipk"


def packages() -> list[Package]:
    """Return the packages that need no compiler."""
    ours = version()
    return [
        Package(
            "pptp-nat", ours, "NAT helper for many PPTP clients",
            _depends("pptp-nat"), (*_daemon(),), ("/etc/config/pptp-nat",), has_service=True,
        ),
        Package(
            "pptp-nat-tools", ours, "NAT helper for many PPTP clients (analysis)",
            ("pptp-nat",), (*_tools(),),
        ),
        Package(
            "luci-app-pptp-nat", ours, "LuCI support for pptp-nat",
            ("luci-base", "pptp-nat"), (*_luci(),),
        ),
        Package(
            "python3-prometheus-client", _prometheus_version(), "Prometheus instrumentation",
            ("python3-light", "python3-openssl", "python3-urllib"), (*_prometheus(),),
        ),
    ]  # fmt: skip


def _depends(package: str) -> tuple[str, ...]:
    """Return what the feed's recipe depends on, less what depends on a choice."""
    recipe = (FEED / "pptp-nat" / "Makefile").read_text(encoding="utf-8")
    block = re.search(rf"define Package/{package}\n(.*?)endef", recipe, re.DOTALL)
    assert block, f"deploy/openwrt/pptp-nat/Makefile defines {package}"
    return tuple(re.findall(r"(?<=\s)\+([a-z0-9-]+)(?=[\s\\])", block[1]))


def _daemon() -> Iterator[File]:
    yield from modules(HOME, without=(*TOOLS, *NOT_FOR_ROUTERS))
    for name, path, mode in PLACES:
        yield copied(FILES / name, path, mode)
    yield File(f"{HOME}/{keys.NAME}", keys.table().encode())


def _tools() -> Iterator[File]:
    for file in modules(HOME, without=NOT_FOR_ROUTERS):
        if any(file.path.startswith(f"{HOME}/pptp_nat/{part}/") for part in TOOLS):
            yield file


def _luci() -> Iterator[File]:
    for folder, target in (("root", ""), ("htdocs", "www/")):
        for source in sorted((LUCI / folder).rglob("*")):
            if source.is_file():
                yield copied(source, f"{target}{source.relative_to(LUCI / folder)}")


def _prometheus() -> Iterator[File]:
    for file in distribution("prometheus-client", HOME):
        parts = Path(file.path).relative_to(HOME).parts
        if len(parts) < 2 or parts[1] not in NOT_OF_PROMETHEUS:
            yield file


def _prometheus_version() -> str:
    recipe = (FEED / "python-prometheus-client" / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^PKG_VERSION:=(\S+)", recipe, re.MULTILINE)
    assert found, "the recipe names its version"
    return found[1]


def build(target: Path) -> list[Path]:
    """Write the packages and their index into the folder *target*; return what was written."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for package in packages():
        path = target / package.filename
        path.write_bytes(ipk(package))
        written.append(path)
    return written


def ipk(package: Package) -> bytes:
    """Return the package as opkg reads it: a compressed tar of two more and a version."""
    return tar_gz([
        File("debian-binary", b"2.0\n"),
        File("control.tar.gz", tar_gz(_control(package))),
        File("data.tar.gz", tar_gz(package.files)),
    ])  # fmt: skip


def _control(package: Package) -> Iterator[File]:
    size = sum(len(file.octets) for file in package.files)
    text = (
        f"Package: {package.name}\n"
        f"Version: {package.version}-{RELEASE}\n"
        f"Depends: {', '.join(('libc', *package.depends))}\n"
        "Section: net\n"
        "Architecture: all\n"
        f"Installed-Size: {size}\n"
        f"Description: {package.title}\n"
    )
    yield File("control", text.encode())
    if package.conffiles:
        yield File("conffiles", "".join(f"{path}\n" for path in package.conffiles).encode())
    if package.has_service:
        for name, script in SCRIPTS.items():
            yield File(name, script.encode(), 0o755)


def translations() -> str:
    """Return the template of translations: the texts of the views and the menu, in order."""
    found: dict[str, None] = {}
    for view in sorted((LUCI / "htdocs").rglob("*.js")):
        for text in re.findall(r"\b_\('((?:[^'\\]|\\.)*)'\)", view.read_text(encoding="utf-8")):
            found[text.replace("\\'", "'")] = None
    for menu in sorted((LUCI / "root").rglob("menu.d/*.json")):
        for entry in json.loads(menu.read_text(encoding="utf-8")).values():
            found[entry["title"]] = None
    head = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8"\n'
    return head + "".join(f'\nmsgid {json.dumps(text)}\nmsgstr ""\n' for text in found)


def write_translations() -> Path:
    """Write the template of translations."""
    path = LUCI / "po" / "templates" / "pptp-nat.pot"
    path.write_text(translations(), encoding="utf-8")
    return path


def installed_size(files: Iterable[File]) -> int:
    """Return how many octets *files* take."""
    return sum(len(file.octets) for file in files)
