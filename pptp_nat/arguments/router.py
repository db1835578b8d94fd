"""Arguments of the commands that make a router of a machine: run, rules, demo, completion."""

from __future__ import annotations

from typing import Any

from pptp_nat.arguments.options import (
    add_command,
    clients,
    config_option,
    datapath_option,
    workers,
)  # fmt: skip
from pptp_nat.completion import SHELLS


def run(commands: Any) -> None:  # noqa: ANN401
    """Describe ``run``."""
    parser = add_command(
        commands,
        "run",
        "run:run",
        "run the daemon in the foreground",
        "  pptp-nat run --rules apply\n"
        "  pptp-nat run --config /etc/pptp-nat/pptp-nat.toml --check-config",
    )
    config_option(parser)
    parser.add_argument("--state-dir", metavar="DIR", help="where the daemon keeps its state")
    parser.add_argument("--metrics", metavar="ADDR:PORT", help='where metrics are served, or "off"')
    datapath_option(parser, "what carries the data of the calls")
    parser.add_argument(
        "--rules",
        choices=("apply", "leave", "keep"),
        help="apply: install the firewall rules at start and remove them at a clean stop; "
        "leave: install them and leave them, so that messages wait for the next start",
    )
    parser.add_argument(
        "--workers",
        type=workers,
        metavar="N",
        help="processes that share the control connections (1)",
    )
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="have the daemon that runs hand over its queues and state, and end: no gap",
    )
    parser.add_argument(
        "--guard",
        action="store_true",
        help="start the daemon from a small process that keeps its queues and starts it again "
        "if it dies: packets wait meanwhile; for where no systemd does that",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and end: 0 or 2"
    )


def rules(commands: Any) -> None:  # noqa: ANN401
    """Describe ``rules``."""
    parser = add_command(
        commands,
        "rules",
        "rules:rules",
        "show, check, apply or remove the firewall rules that the daemon needs",
        "  pptp-nat rules show --backend nftables\n  pptp-nat rules check && echo all there",
    )
    parser.add_argument("action", choices=("show", "check", "apply", "remove"))
    parser.add_argument(
        "--backend", choices=("auto", "iptables", "nftables"),
        help="whose rules (auto: probe; left out: as configured, and remove: of both)",
    )
    datapath_option(parser, "rules for this data path (auto: the running daemon's, else conntrack)")
    config_option(parser)


def demo(commands: Any) -> None:  # noqa: ANN401
    """Describe ``demo``."""
    parser = add_command(
        commands,
        "demo",
        "demo:demo",
        "build a small network in namespaces, dial several clients with one call ID, clean up",
        "  sudo pptp-nat demo --clients 5",
    )
    parser.add_argument("--clients", type=clients, default=3, metavar="N", help="how many (3)")
    datapath_option(parser, "what carries the data of the calls", default="auto")
    parser.add_argument("--keep", action="store_true", help="leave the network there to look at")


def completion(commands: Any) -> None:  # noqa: ANN401
    """Describe ``completion``."""
    parser = add_command(
        commands,
        "completion",
        "completion:completion",
        "print what makes a shell complete the commands and options of pptp-nat",
        "  pptp-nat completion bash > /etc/bash_completion.d/pptp-nat\n"
        "  pptp-nat completion fish > ~/.config/fish/completions/pptp-nat.fish",
    )
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell")
