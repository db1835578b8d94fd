"""Arguments of the commands that ask the daemon."""

from __future__ import annotations

from typing import Any

from pptp_nat.arguments.options import (
    add_command,
    address,
    call_id,
    count,
    duration,
    event_types,
    interval,
    masks,
    output_option,
    rate,
    row_id,
    target,
)  # fmt: skip
from pptp_nat.tables.table import STATES


def _host_options(parser: Any, client: str, server: str) -> None:  # noqa: ANN401
    """Add ``--client`` and ``--server`` with these helps to a parser or a group of one."""
    parser.add_argument("--client", type=address, metavar="ADDR", help=client)
    parser.add_argument("--server", type=address, metavar="ADDR", help=server)


def status(commands: Any) -> None:  # noqa: ANN401
    """Describe ``status``."""
    parser = add_command(
        commands,
        "status",
        "show:status",
        "show how the daemon does; 0 once it answers and its queues are bound",
        "  pptp-nat status\n  pptp-nat status -o json | jq .calls.up",
    )
    output_option(parser, "text", "json")


def list_(commands: Any) -> None:  # noqa: ANN401
    """Describe ``list``."""
    parser = add_command(
        commands,
        "list",
        "show:calls",
        "list the calls, like conntrack -L",
        "  pptp-nat list --state up --client 192.168.1.20\n"
        "  pptp-nat list -o json | jq '.[].external.call_id'\n"
        "  pptp-nat list --watch",
    )
    output_option(parser, "text", "extended", "json", "xml")
    parser.add_argument("--state", type=str.lower, choices=STATES, help="only calls in this state")
    _host_options(parser, "only this inside host's", "only this remote host's")
    parser.add_argument(
        "--call-id",
        type=call_id,
        metavar="N",
        help="only calls with this call ID inside, outside or remote; decimal or 0x...",
    )
    parser.add_argument(
        "--fresh", action="store_true",
        help="count GRE anew even where that takes a second, with more than some 20,000 calls",
    )  # fmt: skip
    parser.add_argument(
        "--watch",
        type=interval,
        metavar="SECONDS",
        nargs="?",
        const=2.0,
        help="again and again, every 2 SECONDS if none are given",
    )


def connections(commands: Any) -> None:  # noqa: ANN401
    """Describe ``connections``."""
    parser = add_command(
        commands,
        "connections",
        "show:connections",
        "list the control connections and who of each is inside",
        "  pptp-nat connections\n  pptp-nat connections -o json | jq '.[] | select(.opaque)'",
    )
    output_option(parser, "text", "json")


def events(commands: Any) -> None:  # noqa: ANN401
    """Describe ``events``."""
    parser = add_command(
        commands,
        "events",
        "events:events",
        "show what happens to calls as it happens, like conntrack -E",
        "  pptp-nat events -o timestamp --client 192.168.1.20\n"
        "  pptp-nat events --types all --for 5m\n"
        "  pptp-nat events -o json --types destroy | jq -c '[.call.cause, .call.result.text]'",
    )
    output_option(parser, "text", "timestamp", "json")
    parser.add_argument(
        "--types",
        type=event_types,
        metavar="TYPE,...",
        default=["new", "update", "destroy", "refused"],
        help="new, update, destroy, refused (these four if none are given); connection; "
        "oddity, message: every departure from the RFC and every control message; all",
    )
    parser.add_argument("--call", type=row_id, metavar="CALL", help="only of the call with this id")
    _host_options(parser, "only of this host's calls", "only of calls to this host")
    parser.add_argument("--count", type=count, metavar="N", help="end after N events")
    parser.add_argument(
        "--for", type=duration, metavar="TIME", dest="seconds", help="end after 90s, 5m, 1h"
    )


def top(commands: Any) -> None:  # noqa: ANN401
    """Describe ``top``."""
    parser = add_command(
        commands,
        "top",
        "top:top",
        "show the calls and what they carry per second, on the whole terminal",
        "  pptp-nat top\n  pptp-nat top --interval 5",
    )
    parser.add_argument(
        "--interval",
        type=interval,
        metavar="SECONDS",
        default=2.0,
        help="between two looks (2); a long table is looked at less often",
    )


def debug(commands: Any) -> None:  # noqa: ANN401
    """Describe ``debug``."""
    parser = add_command(
        commands,
        "debug",
        "debug:debug",
        "trace the messages and packets of one call, one client or all, for a minute",
        "  pptp-nat debug 7\n"
        "  pptp-nat debug 192.168.1.20 --mask all --for 5m\n"
        "  pptp-nat debug all --mask control,seq -o json",
    )
    parser.add_argument(
        "target", type=target, metavar="CALL|CLIENT|all",
        help="the id of a call, as list shows it after id=; an end's address; or all",
    )  # fmt: skip
    parser.add_argument(
        "--mask",
        type=masks,
        metavar="CLASS,...",
        default=["control"],
        help="control: control messages and what becomes of calls (this if none is given); "
        "gre: the header of each GRE packet; seq: sequence numbers that are out of order; "
        "data: how PPP frames begin, without what could be secret; all",
    )
    parser.add_argument(
        "--for", type=duration, metavar="TIME", dest="seconds", default=60.0,
        help="end after 90s, 5m, 1h (60s)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=rate, metavar="N", default=200,
        help="lines per second of either kind, messages and packets (200); others are counted",
    )  # fmt: skip
    output_option(parser, "timestamp", "text", "json")


def clear(commands: Any) -> None:  # noqa: ANN401
    """Describe ``clear``."""
    parser = add_command(
        commands,
        "clear",
        "show:clear",
        "end calls: one by the id that list shows, or all of a host; 1 if there are none",
        "  pptp-nat clear 7\n  pptp-nat clear --client 192.168.1.20",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("call", type=row_id, metavar="CALL", nargs="?", help="the id of a call")
    _host_options(which, "all calls of this client", "all calls to this server")
