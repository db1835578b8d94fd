"""The fenced blocks of the documents: what stands in them, and where each is to be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
PAGES = sorted(GUIDES.glob("*.md"))
#: all others but the README, whose blocks stay bare for those who read it elsewhere
OTHERS = sorted(
    {
        *(ROOT / folder / "README.md" for folder in ("benchmarks", "rules")),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
    }
    - {*PAGES, ROOT / "README.md"}
)
#: the words behind ``sh``: on a router of the laboratory, on a machine with Debian, on a router
#: with OpenWrt's ways, in a clone of this repository
PLACES = ("router", "debian", "openwrt", "clone")
#: what nobody runs: output, and what is a piece of something
INERT = ("text",)
#: what a parser reads: a configuration of ours, or of OpenWrt; rules, units, programs, pictures
CHECKED = ("toml", "uci")
READ = ("ini", "mermaid", "nft", "python")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    page: str  #: the file's name
    section: str  #: the heading of the second level that it stands below; "" above the first
    kind: str  #: such as ``sh router``
    text: str


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        headings = re.findall(r"^## (.+)$", text[: match.start()], re.MULTILINE)
        found.append(Block(path.name, headings[-1] if headings else "", match[1], match[2]))
    return found


def of(page: str, kind: str, folder: Path = GUIDES) -> list[Block]:
    """Return the blocks of one kind on one page."""
    return [each for each in blocks(folder / page) if each.kind == kind]
