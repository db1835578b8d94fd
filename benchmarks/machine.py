"""What the run ran on, what else ran there, and the one global setting it needs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.shell import BenchError, sh

# Shared by all namespaces of the machine, and so the same for every router.  Routers side by
# side with 100,000 calls each hold up to 220,000 entries, two hash places an entry.
ENTRIES = 1 << 21
BUCKETS = {"gre": 1 << 21}
#: Where there is one router: what walks the table pays for each bucket.
ONE_ROUTER = {"scrape", "growth", "memory", "flush"}
BUCKETS_ELSEWHERE = {True: 1 << 18, False: 1 << 20}


def facts() -> dict[str, object]:
    """Return machine, kernel and versions."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _from_file("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_kb": int((_from_file("/proc/meminfo", "MemTotal") or "0").split()[0]),
        "virtual": "hypervisor" in (_from_file("/proc/cpuinfo", "flags") or ""),
        "kernel": platform.release(),
        "system": _from_file("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "python": platform.python_version(),
        "gcc": _first_line("gcc", "--version"),
        "iptables": _first_line("iptables", "--version"),
        "nftables": _first_line("nft", "--version"),
        "iproute2": _first_line("ip", "-V"),
        "tshark": _first_line("tshark", "--version"),
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("NetfilterQueue", "prometheus-client", "pyroute2")
            if _installed(name)
        },
        "revision": _first_line("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "changed_files": _count_lines("git", "status", "--short", "--", "pptp_nat", "benchmarks"),
        "command": [Path(sys.executable).name, "-m", "benchmarks", *sys.argv[1:]],
    }


def _from_file(path: str, key: str, colon: str = ":") -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(colon)
        if name.strip() == key:
            return value.strip()
    return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
        )
    except FileNotFoundError:
        return ""
    return done.stdout


def _first_line(*command: str) -> str:
    return next(iter(_output(*command).splitlines()), "")


def _count_lines(*command: str) -> int:
    return len(_output(*command).splitlines())


def _installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(package))
    return False


class Neighbours:
    """How many CPUs' worth of time went to work that is not the run's, between two moments."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy_seconds()

    def cpus(self, own: float) -> float:
        """Return it since construction; *own* is the CPU time that was the run's, in seconds."""
        elapsed = time.monotonic() - self._began
        return max(0.0, (_busy_seconds() - self._busy - own) / elapsed)


def _busy_seconds() -> float:
    # /proc/stat, "cpu": user nice system idle iowait irq softirq steal; steal is others' too.
    ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def check() -> None:
    """Refuse early, with what to do, where the run cannot work.

    Raises:
        BenchError: no root, or a tool is missing.
    """
    if os.geteuid():
        raise BenchError("the benchmark makes network namespaces: run it as root")
    for tool, package in {
        "ip": "iproute2",
        "iptables": "iptables",
        "nft": "nftables",
        "setpriv": "util-linux",
        "sysctl": "procps",
    }.items():
        if not _output("sh", "-c", f"command -v {tool}"):
            raise BenchError(f"{tool} not found: apt-get install {package}")
    # Where these are modules, nothing else loads them in time.
    for module in ("nf_conntrack_pptp", "nf_nat_pptp", "xt_CT", "nfnetlink_queue"):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["modprobe", "-q", module], capture_output=True, check=False)


@contextlib.contextmanager
def connection_table(measure: str) -> Iterator[dict[str, int]]:
    """Have the machine's connection table of the size for *measure*, and put it back after."""
    buckets = BUCKETS.get(measure, BUCKETS_ELSEWHERE[measure in ONE_ROUTER])
    # The limit follows the buckets on some kernels, so it goes last both times.
    wanted = {"nf_conntrack_buckets": buckets, "nf_conntrack_max": ENTRIES}
    before = {name: _table_size(name) for name in wanted}
    try:
        for name, value in wanted.items():
            if before[name] != value:
                sh("sysctl", "-qw", f"net.netfilter.{name}={value}")
        yield {name: _table_size(name) for name in wanted}
    finally:
        for name, value in before.items():
            with contextlib.suppress(BenchError):
                sh("sysctl", "-qw", f"net.netfilter.{name}={value}")


def _table_size(name: str) -> int:
    return int((Path("/proc/sys/net/netfilter") / name).read_text())
