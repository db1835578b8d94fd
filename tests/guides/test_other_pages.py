"""Commands on all other pages: in blocks they are run, in sentences they are spelled right."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pptp_nat import cli
from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.peers import Loop
from pptp_nat.lab.router import Daemon, daemon
from tests.deploy.clients import Clients

from .blocks import CHECKED, INERT, OTHERS, PAGES, PLACES, READ, ROOT, blocks, of

KINDS = {*(f"sh {place}" for place in PLACES), *CHECKED, *INERT, *READ}
SOCKET = "/run/pptp-nat/pptp-nat.sock"
#: what a command that would take minutes is asked besides, so that it only looks at what it is told
LOOK = {"make": "-n", "pytest": "--collect-only -q", "-m benchmarks": "--help", "docs/": ""}
#: what writes into the clone: it is given a copy
WRITES = ("-m deploy.packages pot", "--write")
_INLINE = re.compile(r"`(?:sudo )?(pptp-nat [^`]+)`")
_TARGET = re.compile(r"`(?:sudo )?make ([\w-]+)`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (found,) = (
        action.choices
        for action in cli.parser()._actions
        if isinstance(action.choices, dict)
    )
    return found


@pytest.mark.parametrize("page", OTHERS, ids=name)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert [] == [block for block in blocks(page) if block.kind not in KINDS]


@pytest.mark.parametrize("page", [*OTHERS, *PAGES, ROOT / "README.md"], ids=name)
def test_a_command_in_a_sentence_is_one_that_there_is(page: Path) -> None:
    known = commands()
    wrong = []
    for told in _INLINE.findall(page.read_text()):
        words = shlex.split(told)
        parser = known.get(words[1])
        options = [word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)]
        if parser is None or not set(options) <= set(parser._option_string_actions):
            wrong.append(told)

    assert [] == [told for told in wrong if "COMMAND" not in told]


@pytest.mark.parametrize("page", [*OTHERS, *PAGES, ROOT / "README.md"], ids=name)
def test_a_target_in_a_sentence_is_in_the_makefile(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()

    assert [] == [
        target
        for target in _TARGET.findall(page.read_text())
        if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    ]


CLONE = [
    shlex.join(shlex.split(line, comments=True))
    for page in OTHERS
    for block in blocks(page)
    if block.kind == "sh clone"
    for line in block.text.splitlines()
]


@pytest.mark.parametrize("command", CLONE)
def test_a_command_for_the_clone_is_understood(command: str, tmp_path: Path) -> None:
    """Run as it is, but for those that would run all tests, or measure for minutes."""
    told = command.replace(".venv/bin/pytest", "python -m pytest").replace(".venv/bin/", "")
    told = re.sub(r"^pptp-nat ", "python -m pptp_nat ", told)
    told = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", told)
    clone = ROOT
    if told.endswith(WRITES):
        clone = tmp_path / "clone"
        for folder in ("deploy", "docs", "pptp_nat"):
            shutil.copytree(ROOT / folder, clone / folder)
    if "--package build/compiled" in told and not (ROOT / "build/compiled").exists():
        told = told.replace("build/compiled", ".")
    look = next((more for of_what, more in LOOK.items() if of_what in told), "")
    told = told.replace("FILE", str(ROOT / "deploy/pptp-nat.toml"))
    told = told.replace("run.json", str(tmp_path / "run.json"))
    done = subprocess.run(
        shlex.split(f"{told} {look}"), cwd=clone, capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stderr


# -- On a router -----------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Lab]:
    if why := missing(["iptables", "iptables-restore", "conntrack", "unshare"]):
        pytest.skip(why)
    with Lab(inside=2) as lab:
        yield lab


@pytest.fixture
def shell(lab: Lab) -> Shell:
    return Shell(lab)


class Shell:
    """The router's shell, where ``pptp-nat`` is this one, and its files are the clone's."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        programs = lab.directory / "programs"
        programs.mkdir()
        program = programs / "pptp-nat"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pptp_nat "$@"\n')
        program.chmod(0o755)
        self._path = f"PATH={programs}:$PATH PYTHONPATH={ROOT}\nexport PATH PYTHONPATH\n"

    def run(self, script: str, *arguments: str) -> str:
        script = script.replace("/usr/share/pptp-nat", str(ROOT / "rules"))
        argv = ["bash", "-ec", self._path + script, "sh", *arguments]
        done = self._lab.run(self._lab.router, argv, check=False)
        assert 0 == done.returncode, (script, done.stdout, done.stderr)
        return done.stdout

    def rules(self) -> set[str]:
        return {word for word in self.run("iptables-save").split() if word.startswith("PPTP_NAT")}


RULES = ROOT / "rules"


@pytest.mark.kernel
def test_the_four_ways_to_ask_for_rules(shell: Shell) -> None:
    (asked, *_) = of("README.md", "sh router", RULES)
    show, check, put, remove = (
        re.sub(r"\[.*?\]", "", each.partition("#")[0]) for each in asked.text.splitlines()
    )
    assert "PPTP_NAT_CONTROL" in shell.run(show)
    shell.run(put)
    shell.run(put)
    assert "in place" in shell.run(check)
    assert shell.rules()
    shell.run(remove)
    assert set() == shell.rules()


@pytest.mark.kernel
def test_rules_that_are_loaded_by_hand_are_taken_away_by_hand(shell: Shell) -> None:
    _, load, remove, *_ = (block.text for block in of("README.md", "sh router", RULES))
    shell.run(load)
    assert "in place" in shell.run("pptp-nat rules check")
    shell.run(remove)
    assert set() == shell.rules()


@pytest.mark.kernel
def test_ufws_script_puts_the_rules_in_place_and_takes_them_away(shell: Shell) -> None:
    *_, script = (block.text for block in of("README.md", "sh router", RULES))
    shell.run(script, "start")
    assert "in place" in shell.run("pptp-nat rules check")
    shell.run(script, "flush-all")
    assert set() == shell.rules()


def test_rules_of_nftables_are_read_by_nft(lab: Lab, tmp_path: Path) -> None:
    """The line for a firewall's forward chain, and the file that is included."""
    if why := missing(["nft"]):
        pytest.skip(why)
    *first, included = (block.text for block in of("README.md", "nft", RULES))
    # this kernel may have no `queue`
    rules = (RULES / "pptp-nat.nft").read_text()
    (tmp_path / "pptp-nat.nft").write_text(re.sub(r"\bqueue num \d+", "drop", rules))
    file = tmp_path / "nftables.conf"
    line = "".join(first)
    file.write_text(
        included.replace("/usr/share/pptp-nat", str(tmp_path))
        + f"table ip own {{ chain forward {{\ntype filter hook forward priority 0;\n{line}}}\n}}\n"
    )
    done = lab.run(lab.router, ["nft", "-c", "-f", str(file)], check=False)

    assert (0, "") == (done.returncode, done.stderr)


@pytest.fixture
def running(lab: Lab) -> Iterator[Daemon]:
    with daemon(lab) as running:
        yield running


@pytest.mark.kernel
@pytest.mark.skipif(shutil.which("socat") is None, reason="not found: socat")
def test_the_socket_is_asked_as_the_page_says(shell: Shell, running: Daemon) -> None:
    (block,) = of("api.md", "sh router", ROOT / "docs")
    command, answer = block.text.splitlines()
    told = shell.run(command.removeprefix("$ ").replace(SOCKET, str(running.socket)))

    assert told.startswith(answer.partition('"version"')[0])


@pytest.mark.kernel
def test_the_program_in_python_hears_of_calls(lab: Lab, running: Daemon) -> None:
    """It prints what is up, and then an event for each call that comes."""
    (block,) = of("api.md", "python", ROOT / "docs")
    program = block.text.replace(SOCKET, str(running.socket))
    with contextlib.closing(Loop()) as loop, printing(program) as printed:
        clients = Clients(lab, loop)
        clients.dial()
        assert loop.run_until(lambda: printed() is not None, 60)

    assert (printed() or "").startswith(("new ", "update ", "{"))


@contextlib.contextmanager
def printing(program: str) -> Iterator[Any]:
    """Run a program that does not end; yield what returns its first line, once there is one."""
    argv = [sys.executable, "-uc", program]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()))
        reader.start()
        yield lambda: lines[0] if lines else None
        process.terminate()
        reader.join()
