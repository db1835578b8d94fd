"""The Tab key: each shell offers what the parser takes, found out by asking the shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pptp_nat.cli import COMMANDS, parser
from pptp_nat.completion import SHELLS, Command, tree

TOP, FOUND = tree(parser())
PATIENCE = 30.0  # seconds for a shell to answer

Offer = Callable[[Path, list[str]], set[str]]


def offered_by_bash(script: Path, words: list[str]) -> set[str]:
    """Call the function that bash would call when Tab is pressed behind *words*."""
    listed = " ".join(f"'{word}'" for word in words)
    text = (
        f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; "
        '_pptp_nat; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    told = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert "" == told.stderr
    return set(told.stdout.split())


def offered_by_fish(script: Path, words: list[str]) -> set[str]:
    line = " ".join(words)
    told = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {line.split("\t")[0] for line in told.stdout.splitlines()}


def offered_by_zsh(script: Path, words: list[str]) -> set[str]:
    """Type *words* and Tab into a zsh at a terminal, and read what it lists."""
    folder = script.parent / "functions"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(script, folder / "_pptp-nat")
    rc = script.parent / ".zshrc"
    rc.write_text(
        f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; PS1='prompt> '\n"
        "setopt list_rows_first no_list_packed no_auto_menu no_beep\n"
        "zstyle ':completion:*' verbose no; LISTMAX=0; bindkey '^I' list-choices\n"
        # so that compinit does not look for the command in the path
        "pptp-nat() { :; }\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {"ZDOTDIR": str(script.parent), "TERM": "dumb", "PATH": os.environ["PATH"],
                   "COLUMNS": "60", "HOME": str(script.parent)}  # fmt: skip
        os.execvpe("zsh", ["zsh", "-i"], environ)
    try:
        _read_until(terminal, "prompt> ")
        line = " ".join(words)
        os.write(terminal, f"{line}\t".encode())
        # what stands behind the list: the line once more
        seen = _read_until(terminal, "prompt> ", count=1)
        return set(re.findall(r"(?:--?)?\w[\w-]*", seen.replace(line, " ").replace("\r", " ")))
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def _read_until(terminal: int, mark: str, count: int = 1) -> str:
    text, deadline = "", time.monotonic() + PATIENCE
    while text.count(mark) < count:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the shell does not answer: {text!r}"
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


OFFERS: dict[str, Offer] = {
    "bash": offered_by_bash,
    "fish": offered_by_fish,
    "zsh": offered_by_zsh,
}


@pytest.fixture(params=sorted(OFFERS))
def offers(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], set[str]]:
    """Give a function that says what one shell offers behind a line; "^" ends the line."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"not found: {shell}: apt install {shell}")
    script = tmp_path / f"completion.{shell}"
    script.write_text(SHELLS[shell](TOP, FOUND))
    return lambda line: OFFERS[shell](script, line.removesuffix("^").split(" "))


def test_every_shell_offers_every_command(offers: Callable[[str], set[str]]) -> None:
    assert {each.name for each in FOUND} <= offers("pptp-nat ^")


def test_every_shell_offers_the_values_of_a_choice(offers: Callable[[str], set[str]]) -> None:
    assert {"apply", "keep"} <= offers("pptp-nat run --rules ^")
    assert {"show", "check", "apply", "remove"} <= offers("pptp-nat rules ^")


def test_every_shell_offers_the_options_of_a_command(offers: Callable[[str], set[str]]) -> None:
    offered = offers("pptp-nat list --^")
    (listing,) = (each for each in FOUND if each.name == "list")
    long = {flag for each in listing.options for flag in each.flags if flag.startswith("--")}

    assert long <= offered
    assert "--rules" not in offered


@pytest.mark.parametrize("command", FOUND, ids=lambda command: command.name)
def test_bash_offers_all_that_a_command_takes(command: Command, tmp_path: Path) -> None:
    """The quickest of the shells is asked for everything; the others come from the same tree."""
    script = tmp_path / "completion"
    script.write_text(SHELLS["bash"](TOP, FOUND))

    assert set(command.words) == offered_by_bash(script, ["pptp-nat", command.name, ""])


def test_bash_offers_a_value_behind_an_equals_sign(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(SHELLS["bash"](TOP, FOUND))

    assert {"json"} == offered_by_bash(script, ["pptp-nat", "list", "--output", "=", "j"])


def test_the_tree_has_every_command() -> None:
    assert len(COMMANDS) == len(FOUND)
    assert all(each.help and each.description for each in FOUND)
