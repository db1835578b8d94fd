"""The manual pages: prose from ``deploy/man``, commands and keys from where the code has them.

The commands come out of the parser that reads them, the keys out of the tables in
``docs/configuration.md``, which a test holds against the code.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator
from typing import Final

from deploy.packages.tree import ROOT, epoch
from pptp_nat.cli import parser
from pptp_nat.completion import Argument, Command, tree

TEMPLATES: Final = ROOT / "deploy" / "man"
KEYS: Final = ROOT / "docs" / "configuration.md"
PAGES: Final = ("pptp-nat.8", "pptp-nat.toml.5")
_CODE: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def page(name: str) -> str:
    """Return the manual page *name* in mdoc(7)."""
    text = (TEMPLATES / f"{name}.in").read_text(encoding="utf-8")
    moment = time.gmtime(epoch())
    fills = {
        "@DATE@": [f"{time.strftime('%B', moment)} {moment.tm_mday}, {moment.tm_year}"],
        "@SYNOPSIS@": _synopsis(),
        "@COMMANDS@": _commands(),
        "@KEYS@": _keys(KEYS.read_text(encoding="utf-8")),
    }
    for mark, lines in fills.items():
        if mark in text:
            text = text.replace(mark, "\n".join(lines))
    return text


def _synopsis() -> Iterator[str]:
    _, commands = tree(parser())
    for command in commands:
        yield ".Nm"
        yield f".Cm {_word(command.name)}"
        for each in command.arguments:
            if "--help" not in each.flags:
                yield f".Op {_usage(each)}" if each.flags else f".Ar {_positional(each)}"


def _positional(argument: Argument) -> str:
    if argument.choices:
        return " | ".join(map(_word, argument.choices))
    return _word(argument.value.lower())


def _usage(option: Argument, flag: str | None = None) -> str:
    """Return one option as mdoc writes it."""
    flag = flag or max(option.flags, key=len)
    words = f"Fl {_word(flag[1:])}"
    if option.value:
        value = "|".join(option.choices) or option.value.lower()
        value = f"Ar {_word(value)}"
        words += f" Op {value}" if option.is_optional else f" {value}"
    return words


def _commands() -> Iterator[str]:
    _, commands = tree(parser())
    for command in commands:
        yield f".It Cm {_word(command.name)}"
        yield from _prose(_sentence(command.description or command.help))
        shown = [each for each in command.arguments if "--help" not in each.flags]
        if shown:
            yield ".Bl -tag -width Ds"
            for each in shown:
                if each.flags:
                    usages = " , ".join(_usage(each, flag) for flag in each.flags)
                    yield f".It {usages}"
                else:
                    yield f".It Ar {_positional(each)}"
                yield from _prose(_sentence(each.help) if each.help else "What to do.")
            yield ".El"
        yield from _examples(command)


def _examples(command: Command) -> Iterator[str]:
    _, _, example = command.epilog.partition("example:\n")
    if example:
        yield ".Bd -literal -offset indent"
        yield from (_literal(line.strip()) for line in example.splitlines())
        yield ".Ed"


def _keys(text: str) -> Iterator[str]:
    """Read the tables below the headings ``### [section]``."""
    _, _, rest = text.partition("\n## Keys\n")
    section = ""
    is_open = False
    for line in rest.splitlines():
        if line.startswith("## "):
            break
        if heading := re.match(r"### \[(\w+)\](?:: (.*))?", line):
            if is_open:
                yield ".El"
            is_open, section = False, heading[1]
            yield f".Sh SECTION {section.upper()}"
            if heading[2]:
                yield from _prose(_sentence(heading[2]))
        elif section and line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not is_open:
                yield ".Bl -tag -width Ds"
                is_open = True
            key, default, allowed, meaning, reload = (_plain(cell) for cell in cells)
            yield f".It Ic {_word(f'{section}.{key}')}"
            yield from _prose(_sentence(meaning))
            yield from _prose(f"Allowed: {allowed}.")
            yield f"Default: {_literal(default)}" + (" (live)." if reload == "live" else ".")
        elif section and line and not line.startswith("|") and not is_open:
            yield from _prose(_plain(line))
    if is_open:
        yield ".El"


def _plain(markdown: str) -> str:
    return _LINK.sub(r"\1", _CODE.sub(r"\1", markdown)).replace("\\|", "|")


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", ":")) else f"{text}."


def _prose(text: str) -> Iterator[str]:
    """Yield lines, one sentence each, that mdoc does not take for macros."""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
        for line in textwrap.wrap(sentence, 78, break_on_hyphens=False):
            yield _literal(line)


def _literal(line: str) -> str:
    line = line.replace("\\", "\\e")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _word(text: str) -> str:
    """Return *text* as one argument of a macro, that is no macro itself."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f'"{text}"' if " " in text else f"\\&{text}" if len(text) <= 2 else text
