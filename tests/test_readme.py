"""What the README tells people to type is typed, and answers as it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("pptp-nat ")]
MAKE = re.compile(r"^(?:sudo )?make (\w+)", re.MULTILINE)
TARGETS = [word for block in BLOCKS for word in MAKE.findall(block)]


def said(command: str) -> str:
    argv = [sys.executable, "-m", "pptp_nat", *shlex.split(command)[1:]]
    return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_it_is_there_for(command: str) -> None:
    assert said(command)


def test_the_diagnosis_that_is_shown_is_the_one_that_is_given() -> None:
    (shown,) = [block for block in BLOCKS if block.startswith("ERROR ")]
    (asked,) = [command for command in COMMANDS if " analyze " in command]

    assert shown in said(asked)


def test_each_make_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()

    assert {"demo", "test", "deb"} <= set(TARGETS)
    assert [] == [name for name in TARGETS if not re.search(rf"^{name}:", makefile, re.MULTILINE)]
