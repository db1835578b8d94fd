"""The manual pages: sound mdoc, and nothing of the program missing from them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.packages import manual
from pptp_nat.cli import parser
from pptp_nat.completion import tree
from pptp_nat.config import SECTIONS


def rendered(name: str) -> str:
    """Return the page as a reader sees it, without overstriking."""
    shown = subprocess.run(
        ["mandoc", "-Tutf8", "-Owidth=200"],
        input=manual.page(name), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.sub(".\b", "", shown.stdout)


needs_mandoc = pytest.mark.skipif(
    shutil.which("mandoc") is None, reason="not found: mandoc: apt install mandoc"
)


@needs_mandoc
@pytest.mark.parametrize("name", manual.PAGES)
def test_mandoc_finds_nothing_to_complain_of(name: str, tmp_path: Path) -> None:
    """But that the other of the two pages is not installed on this machine."""
    page = tmp_path / name
    page.write_text(manual.page(name))
    linted = subprocess.run(
        ["mandoc", "-Tlint", str(page)], capture_output=True, text=True, check=False
    )
    complaints = [
        line for line in linted.stdout.splitlines() if "referenced manual not found" not in line
    ]

    assert [] == complaints


@needs_mandoc
def test_the_manual_tells_every_command_and_option() -> None:
    text = rendered("pptp-nat.8")
    for command in tree(parser())[1]:
        assert re.search(rf"^ *pptp-nat {command.name}\b", text, re.MULTILINE), command.name
        for each in command.arguments:
            for flag in set(each.flags) - {"-h", "--help"}:
                assert flag in text, f"{command.name} {flag}"


@needs_mandoc
def test_the_manual_tells_every_key() -> None:
    text = rendered("pptp-nat.toml.5")
    told = set(re.findall(r"^ +([a-z_]+\.[a-z_]+)$", text, re.MULTILINE))

    assert {f"{section}.{name}" for section, keys in SECTIONS.items() for name in keys} <= told


def test_a_line_that_begins_with_a_dot_is_no_macro() -> None:
    assert ["\\&.Dd of no importance"] == list(manual._prose(".Dd of no importance"))
