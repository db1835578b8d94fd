"""The command demo: many clients, one address, in network namespaces of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pptp_nat.lab.demo import run_demo

if TYPE_CHECKING:
    from argparse import Namespace


def demo(options: Namespace) -> int:
    """Show it at work; return the exit code."""
    return run_demo(clients=options.clients, datapath=options.datapath, keep=options.keep)
