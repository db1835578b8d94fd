"""What a shell may offer behind ``pptp-nat``, out of the parser that reads it.

`tree` looks at an argparse parser and says what it takes; the other functions
say the same in the words of bash, zsh and fish.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

PROGRAM: Final = "pptp-nat"
FILE_TYPES: Final = (Path,)  #: types of an option whose value is looked for among the files
FILE_METAVARS: Final = ("FILE", "PATH", "DIR")


class Argument(NamedTuple):
    """An option, or a positional argument: that one has no flags."""

    flags: tuple[str, ...]
    help: str
    value: str  #: how its value is called; "" for a switch
    choices: tuple[str, ...]
    is_file: bool
    is_optional: bool  #: an option whose value may be left out


class Command(NamedTuple):
    """A command and what it takes."""

    name: str
    help: str
    arguments: tuple[Argument, ...]
    description: str = ""
    epilog: str = ""

    @property
    def options(self) -> list[Argument]:
        """The arguments that begin with a dash."""
        return [each for each in self.arguments if each.flags]

    @property
    def positionals(self) -> list[Argument]:
        """The arguments that do not."""
        return [each for each in self.arguments if not each.flags]

    @property
    def words(self) -> list[str]:
        """Everything that can be offered as a word of its own."""
        flags = [flag for each in self.options for flag in each.flags]
        return [*(word for each in self.positionals for word in each.choices), *flags]


def tree(parser: argparse.ArgumentParser) -> tuple[Command, list[Command]]:
    """Return what *parser* takes ahead of a command, and its commands."""
    commands = []
    for action in parser._actions:  # noqa: SLF001  argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {each.dest: each.help or "" for each in action._choices_actions}  # noqa: SLF001
            commands += [
                Command(name, helps.get(name, ""), tuple(_arguments(sub)),
                        sub.description or "", sub.epilog or "")
                for name, sub in action.choices.items()
            ]  # fmt: skip
    return Command("", parser.description or "", tuple(_arguments(parser))), commands


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            continue
        named = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        yield Argument(
            flags=tuple(action.option_strings),
            help=(action.help or "").replace("%%", "%"),
            value="" if action.nargs == 0 else named,
            choices=tuple(map(str, action.choices or ())),
            is_file=action.nargs != 0 and (action.type in FILE_TYPES or named in FILE_METAVARS),
            is_optional=bool(action.option_strings) and action.nargs == "?",
        )


def bash(top: Command, commands: list[Command]) -> str:
    """Return a completion script for bash 4 and later."""
    lines = [
        f"# bash completion for {PROGRAM}",
        "_pptp_nat() {",
        "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
        "    local command= word words=",
        "    # bash cuts --output=json into three words",
        "    if [[ $current == = ]]; then current=",
        "    elif [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        "        [[ $word == -* ]] || { command=$word; break; }",
        "    done",
        "    case $command/$before in",
    ]
    for command in (top, *commands):
        for option in command.options:
            if option.choices:
                offer = f'compgen -W "{" ".join(option.choices)}" -- "$current"'
            elif option.is_file:
                offer = 'compgen -f -- "$current"'
            elif option.value and not option.is_optional:
                offer = "true"  # any value: nothing to offer
            else:
                continue
            places = "|".join(f"{command.name}/{flag}" for flag in option.flags)
            lines.append(f"        {places}) mapfile -t COMPREPLY < <({offer}); return ;;")
    lines += ["    esac", "    case $command in"]
    names = " ".join(command.name for command in commands)
    lines.append(f'        "") words="{names} {" ".join(top.words)}" ;;')
    for command in commands:
        lines.append(f'        {command.name}) words="{" ".join(command.words)}"')
        if any(each.is_file for each in command.positionals):
            lines[-1] += "; [[ $current == -* ]] || compopt -o default 2>/dev/null"
        lines[-1] += " ;;"
    lines += [
        "    esac",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
        "}",
        f"complete -F _pptp_nat {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


def zsh(top: Command, commands: list[Command]) -> str:
    """Return a completion script for zsh, a file ``_pptp-nat`` in its ``fpath``."""
    lines = [
        f"#compdef {PROGRAM}",
        "_pptp_nat_commands() {",
        "    local -a commands=(",
        *(f"        {_quoted(f'{each.name}:{each.help}')}" for each in commands),
        "    )",
        "    _describe command commands",
        "}",
        "_pptp_nat() {",
        "    local context state state_descr line",
        "    typeset -A opt_args",
        "    _arguments -C \\",
        *(f"        {spec} \\" for option in top.options for spec in _zsh_specs(option)),
        "        '1:command:_pptp_nat_commands' '*::argument:->argument'",
        "    [[ $state == argument ]] || return",
        "    case $words[1] in",
    ]
    for command in commands:
        specs = [spec for each in command.arguments for spec in _zsh_specs(each)]
        lines.append(f"        {command.name}) _arguments \\")
        lines += [f"            {spec} \\" for spec in specs[:-1]]
        lines.append(f"            {specs[-1]} ;;")
    lines += ["    esac", "}", '_pptp_nat "$@"']
    return "\n".join(lines) + "\n"


def _zsh_specs(argument: Argument) -> Iterator[str]:
    value = argument.value.replace(":", " or ")
    action = "_files" if argument.is_file else " "
    if argument.choices:
        action = f"({' '.join(argument.choices)})"
    if not argument.flags:
        yield _quoted(f"*:{value}:{action}")
        return
    text = argument.help
    for mark in ("\\", "[", "]", ":"):
        text = text.replace(mark, f"\\{mark}")
    colon = "::" if argument.is_optional else ":"
    for flag in argument.flags:
        spec = flag + ("=" if argument.value and flag.startswith("--") else "") + f"[{text}]"
        if argument.value:
            spec += f"{colon}{value}:{action}"
        yield _quoted(spec)


def fish(top: Command, commands: list[Command]) -> str:
    """Return a completion script for fish."""
    first = f"complete -c {PROGRAM} -n __fish_use_subcommand"
    lines = [
        f"# fish completion for {PROGRAM}",
        f"complete -c {PROGRAM} -f",
        *(f"{first}{_fish_option(option)}" for option in top.options),
    ]
    for command in commands:
        lines.append(f"{first} -a {command.name} -d {_fish(command.help)}")
        when = f"-n '__fish_seen_subcommand_from {command.name}'"
        for each in command.arguments:
            if each.flags:
                lines.append(f"complete -c {PROGRAM} {when}{_fish_option(each)}")
            elif each.choices:
                lines.append(f"complete -c {PROGRAM} {when} -a {_fish(' '.join(each.choices))}")
            elif each.is_file:
                lines.append(f"complete -c {PROGRAM} {when} -F")
    return "\n".join(lines) + "\n"


def _fish_option(option: Argument) -> str:
    words = [f" -l {flag[2:]}" if flag[1] == "-" else f" -s {flag[1:]}" for flag in option.flags]
    words.append(f" -d {_fish(option.help)}")
    if option.choices:
        words.append(f" -x -a {_fish(' '.join(option.choices))}")
    elif option.is_file:
        words.append(" -r -F")
    elif option.value and not option.is_optional:
        words.append(" -x")
    return "".join(words)


def _quoted(text: str) -> str:
    """Quote for a shell of Bourne's kin."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Final[Mapping[str, Callable[[Command, list[Command]], str]]] = {
    "bash": bash,
    "zsh": zsh,
    "fish": fish,
}
