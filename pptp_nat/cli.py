"""The command line: what can be asked for, and how an end is told.

Exit codes: 0 good, 1 failed, 2 usage or configuration, 130 interrupted.  An
error is a line on standard error: what, where, what to do.  A command's module
is imported when the command runs, so that a question costs no kernel library.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pptp_nat import __version__
from pptp_nat.errors import ConfigError, PptpNatError
from pptp_nat.table import LARGEST_CALL_ID, STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130  #: 128 and SIGINT

DATAPATHS: Final = ("auto", "conntrack", "queue")
SHORTEST_WATCH: Final = 0.1  #: seconds
MOST_CLIENTS: Final = 50  #: of the demo: one network namespace each


def main(argv: Sequence[str] | None = None) -> int:
    """Do what *argv* (the process's own if None) asks for; return the exit code."""
    try:
        options = _parser().parse_args(argv)
        code = _command(options.run)(options)
        sys.stdout.flush()
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
        if (error.name or "").startswith("pptp_nat"):
            raise
        return _say(f"pptp-nat: Python package {error.name} is missing: install it", FAILED)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pptp-nat",
        description="Many PPTP clients behind one address: a NAT helper for Linux.",
        epilog="`pptp-nat COMMAND --help` explains a command and shows an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pptp-nat {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for add in (_run, _status, _list, _connections, _clear, _rules, _demo):
        add(commands)
    return parser


def _add(
    commands: Any,  # noqa: ANN401  argparse keeps the class to itself
    name: str,
    run: str,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Return the parser of a new command, with the option that every command has."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        default=None if name in ("run", "rules") else Path("/run/pptp-nat/pptp-nat.sock"),
        help="the daemon's socket (/run/pptp-nat/pptp-nat.sock)",
    )
    return parser


def _run(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "run",
        "run:run",
        "run the daemon in the foreground",
        "  pptp-nat run --rules apply\n"
        "  pptp-nat run --config /etc/pptp-nat/pptp-nat.toml --check-config",
    )
    _config(parser)
    parser.add_argument("--state-dir", metavar="DIR", help="where the daemon keeps its state")
    parser.add_argument("--metrics", metavar="ADDR:PORT", help='where metrics are served, or "off"')
    _datapath(parser, "what carries the data of the calls")
    parser.add_argument(
        "--rules",
        choices=("apply", "keep"),
        help="apply: install the firewall rules at start and remove them at a clean stop",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and end: 0 or 2"
    )


def _status(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "status",
        "show:status",
        "show how the daemon does; 0 once it answers and its queues are bound",
        "  pptp-nat status\n  pptp-nat status -o json | jq .calls.up",
    )
    _output(parser, "text", "json")


def _list(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "list",
        "show:calls",
        "list the calls, like conntrack -L",
        "  pptp-nat list --state up --client 192.168.1.20\n"
        "  pptp-nat list -o json | jq '.[].external.call_id'\n"
        "  pptp-nat list --watch",
    )
    _output(parser, "text", "extended", "json", "xml")
    parser.add_argument("--state", type=str.lower, choices=STATES, help="only calls in this state")
    parser.add_argument("--client", type=_address, metavar="ADDR", help="only this inside host's")
    parser.add_argument("--server", type=_address, metavar="ADDR", help="only this remote host's")
    parser.add_argument(
        "--call-id",
        type=_call_id,
        metavar="N",
        help="only calls with this call ID inside, outside or remote; decimal or 0x...",
    )
    parser.add_argument(
        "--watch",
        type=_interval,
        metavar="SECONDS",
        nargs="?",
        const=2.0,
        help="again and again, every 2 SECONDS if none are given",
    )


def _connections(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "connections",
        "show:connections",
        "list the control connections and who of each is inside",
        "  pptp-nat connections\n  pptp-nat connections -o json | jq '.[] | select(.opaque)'",
    )
    _output(parser, "text", "json")


def _clear(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "clear",
        "show:clear",
        "end calls: one by the id that list shows, or all of a host; 1 if there are none",
        "  pptp-nat clear 7\n  pptp-nat clear --client 192.168.1.20",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("call", type=_row_id, metavar="CALL", nargs="?", help="the id of a call")
    which.add_argument("--client", type=_address, metavar="ADDR", help="all calls of this client")
    which.add_argument("--server", type=_address, metavar="ADDR", help="all calls to this server")


def _rules(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "rules",
        "rules:rules",
        "show, check, apply or remove the firewall rules that the daemon needs",
        "  pptp-nat rules show --backend nftables\n  pptp-nat rules check && echo all there",
    )
    parser.add_argument("action", choices=("show", "check", "apply", "remove"))
    parser.add_argument(
        "--backend", choices=("auto", "iptables", "nftables"), help="whose rules (auto: probe)"
    )
    _datapath(parser, "rules for this data path (auto: the running daemon's, else conntrack)")
    _config(parser)


def _demo(commands: Any) -> None:  # noqa: ANN401
    parser = _add(
        commands,
        "demo",
        "demo:demo",
        "build a small network in namespaces, dial several clients with one call ID, clean up",
        "  sudo pptp-nat demo --clients 5",
    )
    parser.add_argument("--clients", type=_clients, default=3, metavar="N", help="how many (3)")
    _datapath(parser, "what carries the data of the calls", default="auto")
    parser.add_argument("--keep", action="store_true", help="leave the network there to look at")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (/etc/pptp-nat/pptp-nat.toml if it is there)",
    )


def _datapath(parser: argparse.ArgumentParser, text: str, default: str | None = None) -> None:
    parser.add_argument("--datapath", choices=DATAPATHS, default=default, help=text)


def _output(parser: argparse.ArgumentParser, *formats: str) -> None:
    parser.add_argument(
        "-o", "--output", choices=formats, default=formats[0], help=f"format ({formats[0]})"
    )


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an IPv4 address such as 192.168.1.20"
        ) from None


def _number(text: str, low: int, high: int, what: str) -> int:
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text[:32]!r} is not {what}")
    return number


def _call_id(text: str) -> int:
    return _number(text, 0, LARGEST_CALL_ID, f"a call ID from 0 to {LARGEST_CALL_ID}")


def _row_id(text: str) -> int:
    return _number(text, 0, (1 << 63) - 1, "an id such as `pptp-nat list` shows after id=")


def _clients(text: str) -> int:
    return _number(text, 1, MOST_CLIENTS, f"a number of clients from 1 to {MOST_CLIENTS}")


def _interval(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not SHORTEST_WATCH <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text[:32]!r} is not {SHORTEST_WATCH} seconds or more")
    return number
