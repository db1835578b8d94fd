"""Arguments of the commands that explain: analyze, monitor, conntrack, doctor."""

from __future__ import annotations

from typing import Any

from pptp_nat.arguments.options import (
    add_command,
    bit,
    config_option,
    host,
    interval,
    mebioctets,
    output_option,
    port,
)  # fmt: skip


def analyze(commands: Any) -> None:  # noqa: ANN401
    """Describe ``analyze``."""
    parser = add_command(
        commands,
        "analyze",
        "analyze:analyze",
        "tell what captures (pcap, pcapng, gzipped or not) say about PPTP, and why calls fail",
        "  tcpdump -i any -w call.pcap 'tcp port 1723 or proto gre'\n"
        "  pptp-nat analyze call.pcap\n"
        "  pptp-nat analyze lan.pcap wan.pcap    # both sides of the NAT\n"
        "  pptp-nat analyze call.pcap -o html --output report.html\n"
        "  pptp-nat analyze call.pcap -o json | jq -r '.diagnoses[].rule'",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="captures; merged by time")
    parser.add_argument(
        "-o",
        dest="output",
        choices=("text", "json", "html"),
        default="text",
        help="format (text); html is one page with pictures, which needs nothing else",
    )
    parser.add_argument("--output", dest="path", metavar="PATH", help="write the report there")
    parser.add_argument(
        "--summary", action="store_true", help="files and diagnoses alone, no stories"
    )
    parser.add_argument(
        "--port", type=port, action="append", metavar="N", help="of PPTP servers (1723); repeatable"
    )


def monitor(commands: Any) -> None:  # noqa: ANN401
    """Describe ``monitor``."""
    parser = add_command(
        commands,
        "monitor",
        "monitor:monitor",
        "watch the PPTP that passes this machine, without touching it: calls, PPP, what is wrong",
        "  pptp-nat monitor\n"
        "  pptp-nat monitor -i eth0 --for 60 -o json | jq -r .text\n"
        "  pptp-nat monitor --write evidence.pcapng --limit 100",
    )
    parser.add_argument(
        "-i", "--interface", action="append", metavar="IFACE", help="watch it (all); repeatable"
    )
    output_option(parser, "text", "json")
    parser.add_argument(
        "--write", metavar="FILE", help="keep the packets, as pcapng, in FILE and a second file "
        "that take turns when full",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=mebioctets, default=256, metavar="MIB", help="of both files (256 MiB)"
    )
    parser.add_argument(
        "--for", dest="seconds", type=interval, metavar="SECONDS", help="end by itself"
    )
    parser.add_argument(
        "--user", default="nobody", metavar="NAME", help="become NAME once all is open (nobody)"
    )
    parser.add_argument(
        "--port", type=port, action="append", metavar="N", help="of PPTP servers (1723); repeatable"
    )


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


def doctor(commands: Any) -> None:  # noqa: ANN401
    """Describe ``doctor``."""
    parser = add_command(
        commands,
        "doctor",
        "doctor:doctor",
        "say what keeps PPTP from passing through this router, and how to mend it; "
        "0 all well, 3 warnings, 1 something fails",
        "  sudo pptp-nat doctor\n"
        "  sudo pptp-nat doctor --server vpn.example.org\n"
        "  pptp-nat doctor -o json | jq '.checks[] | select(.outcome != \"pass\")'",
    )
    config_option(parser)
    output_option(parser, "text", "json")
    parser.add_argument(
        "--server",
        type=host,
        metavar="ADDR",
        help="dial this server from here, without an account, and say at which step it fails",
    )
    parser.add_argument(
        "--server-port", type=port, default=1723, metavar="N", help="its TCP port (1723)"
    )
    parser.add_argument(
        "--only-server", action="store_true", help="leave out what concerns this router"
    )
    parser.add_argument(
        "--timeout",
        type=interval,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait at each step with the server (5)",
    )
