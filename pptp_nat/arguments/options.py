"""What commands have in common: their parser, options that several have, kinds of values."""

from __future__ import annotations

import argparse
import math
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from pptp_nat.control.subscription import EVENT_TYPES, LONGEST, MASKS, MOST_RATE
from pptp_nat.tables.table import LARGEST_CALL_ID

DATAPATHS: Final = ("auto", "conntrack", "bpf", "queue")
SHORTEST_WATCH: Final = 0.1  #: seconds
LONGEST_NAME: Final = 253  #: characters (RFC 1035, section 2.3.4)
MOST_WORKERS: Final = 64  #: as `pptp_nat.config` has it
MOST_CLIENTS: Final = 50  #: of the demo: one network namespace each


def add_command(
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
        default=None if name in ("run", "rules", "doctor") else Path("/run/pptp-nat/pptp-nat.sock"),
        help="the daemon's socket (/run/pptp-nat/pptp-nat.sock)",
    )
    return parser


def config_option(parser: argparse.ArgumentParser) -> None:
    """Add --config, the file that the daemon reads."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (/etc/pptp-nat/pptp-nat.toml if it is there)",
    )


def datapath_option(parser: argparse.ArgumentParser, text: str, default: str | None = None) -> None:
    """Add --datapath; *text* says what for."""
    parser.add_argument("--datapath", choices=DATAPATHS, default=default, help=text)


def output_option(parser: argparse.ArgumentParser, *formats: str) -> None:
    """Add --output; the first of *formats* is the default."""
    parser.add_argument(
        "-o", "--output", choices=formats, default=formats[0], help=f"format ({formats[0]})"
    )


def address(text: str) -> str:
    """Return an IPv4 address as it is written shortest."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an IPv4 address such as 192.168.1.20"
        ) from None


def host(text: str) -> str:
    """Return a host's name, or an IPv4 address in four numbers.

    1.2.3 is neither, though inet_aton(3) takes it, and any resolver with it, for 1.2.0.3.
    """
    last = text.rstrip(".").rpartition(".")[2].lower()
    if last.isdigit() or last.startswith("0x"):  # as no name ends (RFC 3696, section 2)
        return address(text)
    if not last or len(text) > LONGEST_NAME or any(c.isspace() or c in ":/@" for c in text):
        raise argparse.ArgumentTypeError(
            f"{text[:64]!r} is neither an IPv4 address nor a name such as vpn.example.org"
        )
    return text


def workers(text: str) -> int:
    """Return how many processes share the control connections."""
    return _number(text, 1, MOST_WORKERS, f"a number of workers from 1 to {MOST_WORKERS}")


def _number(text: str, low: int, high: int, what: str) -> int:
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text[:32]!r} is not {what}")
    return number


def call_id(text: str) -> int:
    """Return a call ID, written in decimal or as 0x..."""
    return _number(text, 0, LARGEST_CALL_ID, f"a call ID from 0 to {LARGEST_CALL_ID}")


def row_id(text: str) -> int:
    """Return the id of a row of a table."""
    return _number(text, 0, (1 << 63) - 1, "an id such as `pptp-nat list` shows after id=")


def port(text: str) -> int:
    """Return a TCP port."""
    return _number(text, 1, 0xFFFF, "a TCP port from 1 to 65535")


def bit(text: str) -> int:
    """Return one bit of a mark, written in decimal or as 0x..."""
    number = _number(text, 1, 0xFFFFFFFF, "one bit of a mark such as 0x20000000")
    if number.bit_count() != 1:
        raise argparse.ArgumentTypeError(f"{text[:32]!r} has more than one bit")
    return number


def mebioctets(text: str) -> int:
    """Return a size of files."""
    return _number(text, 1, 1 << 20, "a size in MiB from 1 to 1048576")


def clients(text: str) -> int:
    """Return how many clients the demo has."""
    return _number(text, 1, MOST_CLIENTS, f"a number of clients from 1 to {MOST_CLIENTS}")


def interval(text: str) -> float:
    """Return seconds between two looks."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not SHORTEST_WATCH <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text[:32]!r} is not {SHORTEST_WATCH} seconds or more")
    return number


def count(text: str) -> int:
    """Return how many of something."""
    return _number(text, 1, (1 << 31) - 1, "a number from 1 up")


_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Return seconds, written as ``90``, ``90s``, ``5m`` or ``1h``; at most a day."""
    unit = _UNITS.get(text[-1:])
    try:
        seconds = float(text[:-1] if unit else text) * (unit or 1.0)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text[:32]!r} is not a time such as 90s, 5m or 1h, at most a day"
        )
    return seconds


def event_types(text: str) -> list[str]:
    """Return the types of events in a list with commas; ``all`` means all."""
    if text == "all":
        return list(EVENT_TYPES)
    named = text.split(",")
    for each in named:
        if each not in EVENT_TYPES:
            raise argparse.ArgumentTypeError(
                f"{each[:32]!r} is no type of event; there are {', '.join(EVENT_TYPES)}"
            )
    return named


def target(text: str) -> str | int | None:
    """Return what is debugged: an address, the id of a call, or None for all."""
    if text == "all":
        return None
    return row_id(text) if text.isdigit() else address(text)


def masks(text: str) -> list[str]:
    """Return classes of messages in a list with commas; ``all`` means all."""
    named = list(MASKS) if text == "all" else text.split(",")
    for each in named:
        if each not in MASKS:
            raise argparse.ArgumentTypeError(
                f"{each[:32]!r} is no class of messages; there are {', '.join(MASKS)}, all"
            )
    return named


def rate(text: str) -> int:
    """Return how many per second."""
    return _number(text, 1, MOST_RATE, f"a number from 1 to {MOST_RATE}")
