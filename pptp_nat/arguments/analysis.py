"""Arguments of the commands that explain: conntrack."""

from __future__ import annotations

from typing import Any

from pptp_nat.arguments.options import add_command, bit, output_option, port


def conntrack(commands: Any) -> None:  # noqa: ANN401
    """Describe ``conntrack``."""
    parser = add_command(
        commands,
        "conntrack",
        "conntrack:conntrack",
        "pair the conntrack table's control connections with their GRE; say what is wrong; "
        "3 if anything is",
        "  pptp-nat conntrack\n"
        "  conntrack -L -o extended,id | pptp-nat conntrack -\n"
        "  pptp-nat conntrack pasted.txt -o json | jq -r '.diagnoses[].rule'\n"
        "  pptp-nat conntrack --follow",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a listing instead of this router's table, - for standard input: conntrack -L in any "
        "form, conntrack -E, or /proc/net/nf_conntrack",
    )
    output_option(parser, "text", "json")
    parser.add_argument("--follow", action="store_true", help="go on and tell what changes")
    parser.add_argument(
        "--port", type=port, action="append", metavar="N", help="of PPTP servers (1723); repeatable"
    )
    parser.add_argument(
        "--entry-mark",
        type=bit,
        default=0x20000000,
        metavar="BIT",
        help="the mark of pptp-nat's own entries, gre.entry_mark (0x20000000)",
    )
