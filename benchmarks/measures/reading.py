"""How fast a large capture is read, beside tshark, and a large listing; with how much memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measures.capture import write_capture
from benchmarks.measures.listing import write_listing
from benchmarks.plan import Run, Sample
from benchmarks.shell import BenchError
from benchmarks.spread import rotated

CALLS = 200
LISTER = [sys.executable, "-m", "pptp_nat", "conntrack"]
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
    """Judge one listing of a conntrack table."""
    path = run.build / "conntrack.txt"
    write_listing(path, run.plan.listing_entries)
    try:
        for number in run.numbers(run.plan.slow_rounds):
            for output in rotated(["text", "json"], number):
                run.tell(f"reading: round {number + 1}, pptp-nat conntrack -o {output}")
                yield {
                    "measure": "listing", "way": output, "entries": run.plan.listing_entries,
                    "round": number, **_read([*LISTER, "-o", output, str(path)]),
                }  # fmt: skip
    finally:
        path.unlink()


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
