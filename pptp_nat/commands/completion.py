"""The command completion: what makes a shell's Tab key know this program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pptp_nat.cli import parser
from pptp_nat.completion import SHELLS, tree

if TYPE_CHECKING:
    from argparse import Namespace


def completion(options: Namespace) -> int:
    """Print the script for one shell."""
    sys.stdout.write(SHELLS[options.shell](*tree(parser())))
    return 0
