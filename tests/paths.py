"""The data paths, for tests that hold for each of them."""

from __future__ import annotations

import os
from typing import Final

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.linux.xdp import Abilities


def no_early() -> str | None:
    """Say why this kernel does not tell what devices can do before the stack; None: it does."""
    try:
        with Abilities():
            return None
    except AdapterError as error:
        return str(error)


#: Why BPF programs cannot carry GRE here, if they cannot.
NO_BPF: Final = BpfPath.probe()
#: Why nothing goes before the stack here, if nothing does.
NO_EARLY: Final = NO_BPF or no_early()
BPF: Final = pytest.param(
    "bpf", marks=pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}")
)
PATHS: Final = ["conntrack", BPF, "queue"]
every_path = pytest.mark.parametrize("by", PATHS)


def _at_least(*short: str) -> pytest.MarkDecorator:
    """Return the mark of a test on *short* data paths, which ``make faults`` tries on each."""
    return pytest.mark.parametrize("by", PATHS if os.environ.get("PPTP_NAT_FAULTS") else short)


#: For what takes long and asks little of the data path.
at_length = _at_least("conntrack", "queue")
#: For what takes a quarter of a minute on each.
at_great_length = _at_least("conntrack")
#: For what is about the queue of GRE.
queued_at_least = _at_least("queue")
