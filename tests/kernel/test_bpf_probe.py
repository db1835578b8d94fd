"""Whether BPF programs can carry GRE here: the answer does not depend on who else asks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import NO_BPF

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}"),
]

ASK = """
import json, multiprocessing
from pptp_nat.linux.bpf_path import BpfPath

def answers(_):
    return [BpfPath.probe() for _ in range(20)]

with multiprocessing.get_context("fork").Pool(3) as pool:
    print(json.dumps(sum(pool.map(answers, range(3), 1), [])))
"""


def test_those_who_try_at_the_same_time_are_told_the_same() -> None:
    """Workers start together, and the doctor may ask; all try it on one loopback device."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", ASK],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip

    assert [None] * 60 == json.loads(done.stdout)
