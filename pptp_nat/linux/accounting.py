"""Whether the kernel counts packets and octets of conntrack entries."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ACCOUNTING: Final = Path("/proc/sys/net/netfilter/nf_conntrack_acct")


def accounting() -> bool | None:
    """Return whether the kernel counts per entry here; None where it cannot say."""
    try:
        return ACCOUNTING.read_text().strip() != "0"
    except OSError:
        return None


def turn_on_accounting() -> bool:
    """Have the kernel count in entries made from now on; return whether it does."""
    try:
        ACCOUNTING.write_text("1\n")
    except OSError:
        return accounting() is True
    return True
