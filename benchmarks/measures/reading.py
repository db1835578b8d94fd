"""How fast a large capture is read, beside tshark, and a conntrack table; with how much memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measures.capture import write_capture
from benchmarks.plan import Run, Sample
from benchmarks.shell import BenchError, sh
from benchmarks.spread import rotated
from benchmarks.targets import LISTER
from benchmarks.topology import PREFIX

CALLS = 200
TELLER = [sys.executable, "-m", "pptp_nat", "conntrack", "-o"]
_FIELDS = ("frame.number", "pptp.control_message_type", "pptp.call_id", "pptp.peer_call_id")
#: Who reads, and how he is called.
READERS = {
    "pptp-nat analyze": [sys.executable, "-m", "pptp_nat", "analyze", "--summary"],
    "tshark io,stat of GRE": ["tshark", "-q", "-z", "io,stat,0", "-Y", "gre", "-r"],
    "tshark fields of PPTP": [
        "tshark", "-Y", "pptp", "-T", "fields",
        *(word for field in _FIELDS for word in ("-e", field)), "-r",
    ],
}  # fmt: skip


def reading(run: Run) -> Iterator[Sample]:
    """Read one generated capture in turns; the last size is for memory against the first."""
    for packets in run.plan.reading_packets:
        path = run.build / f"{packets}.pcap"
        run.tell(f"reading: a capture of {packets:,} packets is written")
        write_capture(path, packets, CALLS)
        try:
            for number in run.numbers(run.plan.slow_rounds):
                for way in rotated(list(READERS), number):
                    if way.startswith("tshark") and packets != run.plan.reading_packets[0]:
                        continue
                    run.tell(f"reading: round {number + 1}, {way}")
                    yield {
                        "measure": "reading", "way": way, "packets": packets, "round": number,
                        **_read([*READERS[way], str(path)]),
                    }  # fmt: skip
        finally:
            path.unlink()
    yield from _listing(run)


def _listing(run: Run) -> Iterator[Sample]:
    """Judge one conntrack table, out of a listing and live, and have conntrack list it."""
    entries = run.plan.listing_entries
    with _live_table(entries) as inside, _written(run.build / "conntrack.txt", entries) as path:
        ways = {
            "text": [*TELLER, "text", path],
            "json": [*TELLER, "json", path],
            "text, live": [*inside, *TELLER, "text"],
            "json, live": [*inside, *TELLER, "json"],
            LISTER: [*inside, "conntrack", "-L"],
        }
        for number in run.numbers(run.plan.slow_rounds):
            for way in rotated(list(ways), number):
                run.tell(f"reading: round {number + 1}, a conntrack table, {way}")
                figures = _read(ways[way])
                if way == LISTER:
                    del figures["megabytes"]  # it needs less than we do, which it begins with
                yield {
                    "measure": "listing", "way": way, "entries": entries, "round": number,
                    **figures,
                }  # fmt: skip


@contextlib.contextmanager
def _written(path: Path, entries: int) -> Iterator[str]:
    sh(sys.executable, "-m", "benchmarks.measures.listing", str(path), str(entries))
    try:
        yield str(path)
    finally:
        path.unlink()


@contextlib.contextmanager
def _live_table(entries: int) -> Iterator[list[str]]:
    """Yield the words that run a command where the conntrack table has *entries*."""
    namespace = f"{PREFIX}{os.getpid()}-table"
    sh("ip", "netns", "add", namespace)
    try:
        sh("sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1", where=namespace)
        filler = [sys.executable, "-m", "benchmarks.measures.live_table", str(-(-entries // 3))]
        sh(*filler, where=namespace)
        yield ["ip", "netns", "exec", namespace]
    finally:
        sh("ip", "netns", "del", namespace)


def _read(argv: list[str]) -> dict[str, float]:
    begun = time.monotonic()
    try:
        process = subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2], env=_as_installed(),
        )  # fmt: skip
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is not here: apt-get install {argv[0]}") from None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BenchError(f"{argv[0]} ends with {process.returncode}")
    return {
        "seconds": time.monotonic() - begun,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,  # its children's included
        "megabytes": usage.ru_maxrss / 1024,
    }


def _as_installed() -> dict[str, str]:
    """Return the environment, but that modules are compiled once, as those of a package are."""
    return {name: word for name, word in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
