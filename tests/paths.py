"""The data paths, for tests that hold for each of them."""

from __future__ import annotations

import os
from typing import Final

import pytest

from pptp_nat.linux.bpf_path import BpfPath

#: Why BPF programs cannot carry GRE here, if they cannot.
NO_BPF: Final = BpfPath.probe()
BPF: Final = pytest.param(
    "bpf", marks=pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}")
)
PATHS: Final = ["conntrack", BPF, "queue"]
every_path = pytest.mark.parametrize("by", PATHS)
#: For what takes long and asks little of the data path: ``make faults`` tries it on each.
at_length = pytest.mark.parametrize(
    "by", PATHS if os.environ.get("PPTP_NAT_FAULTS") else ["conntrack", "queue"]
)
