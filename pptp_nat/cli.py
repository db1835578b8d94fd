"""The command line: what can be asked for, and how an end is told.

Exit codes: 0 good, 1 failed, 2 usage or configuration, 130 interrupted.  An
error is a line on standard error: what, where, what to do.  A command's module
is imported when the command runs, so that a question costs no kernel library.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

from pptp_nat import __version__
from pptp_nat.arguments import analysis, router, tables
from pptp_nat.errors import ConfigError, PptpNatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130  #: 128 and SIGINT

#: parts that a small router may be without, and how to have them
APART: Final = {
    "curses": "on OpenWrt it is in the package python3-ncurses",
    "pptp_nat.analysis": "on OpenWrt it is in the package pptp-nat-tools",
    "pptp_nat.lab": "OpenWrt has no package of it; look at it on another machine",
}
#: in the order of ``--help``
COMMANDS: Final = (
    router.run, tables.status, tables.list_, tables.connections, tables.events, tables.top,
    tables.debug, tables.clear, router.rules, analysis.analyze, analysis.monitor,
    analysis.conntrack, analysis.doctor, router.demo, router.completion,
)  # fmt: skip


#: The name under which a command keeps, in its options, what is not worth being let go of.
KEPT: Final = "kept"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what *argv* (the process's own if None) asks for; return the exit code."""
    try:
        options = parser().parse_args(argv)
        code = _command(options.run)(options)
        sys.stdout.flush()
        if argv is None and KEPT in options:
            _leave(code)
    except SystemExit as ended:  # argparse: --help, --version, or a wrong use
        return int(ended.code or 0)
    except BrokenPipeError:
        _let_go_of_stdout()
        return 0  # the reader has seen what it wanted
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConfigError as error:
        return _say(str(error), MISUSED)
    except PptpNatError as error:
        return _say(f"pptp-nat: {error}", FAILED)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pptp_nat") and error.name not in APART:
            raise
        mend = APART.get(error.name or "", "install it")
        return _say(f"pptp-nat: Python package {error.name} is missing: {mend}", FAILED)
    except OSError as error:
        if error.filename is None:
            _let_go_of_stdout()
        return _say(f"pptp-nat: {error.filename or 'output'}: {error.strerror}", FAILED)
    return code


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Return the function ``module:function`` of `pptp_nat.commands`."""
    module, _, function = name.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(
        import_module(f"pptp_nat.commands.{module}"), function
    )
    return found


def _leave(code: int) -> NoReturn:
    """End this process at once: to let go of 100,000 objects one by one takes a tenth of it."""
    sys.stderr.flush()
    os._exit(code)


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


def _let_go_of_stdout() -> None:
    """Keep the interpreter from writing once more, when it ends, to what failed."""
    with contextlib.suppress(OSError):  # no file is behind it, where somebody else calls main()
        stdout = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)
        os.close(nowhere)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    program = _Parser(
        prog="pptp-nat",
        description="Many PPTP clients behind one address: a NAT helper for Linux.",
        epilog="`pptp-nat COMMAND --help` explains a command and shows an example.",
        allow_abbrev=False,
    )
    program.add_argument("--version", action="version", version=f"pptp-nat {__version__}")
    commands = program.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for describe in COMMANDS:
        describe(commands)
    return program
