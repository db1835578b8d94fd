"""How much memory the daemon takes on a router that is short of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.router import Daemon

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(("metrics", "most"), [("off", 32), ("127.0.0.1:9723", 45)])
def test_the_daemon_fits_into_a_small_router(metrics: str, most: int) -> None:
    """In MB of resident memory, what it shares with others included."""
    if why := missing(["iptables", "iptables-restore", "unshare"]):
        pytest.skip(why)
    with Lab(inside=1) as lab:
        daemon = Daemon(lab, options=["--metrics", metrics])
        daemon.start()
        if metrics != "off":
            scrape = f"import urllib.request as it; it.urlopen('http://{metrics}/metrics').read()"
            lab.run(lab.router, ["/usr/bin/env", "python3", "-c", scrape])
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        daemon.stop()
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)

    assert peak
    assert int(peak[1]) / 1024 < most
