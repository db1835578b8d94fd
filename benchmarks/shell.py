"""Commands, CPU clocks and memory of other processes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path


class BenchError(Exception):
    """Something the benchmark needs is not to be had.  One line: what, where, what to do."""


def sh(*words: str, where: str | None = None, given: str | None = None) -> str:
    """Run a command, in network namespace *where* if named; return its output.

    Raises:
        BenchError: it did not exit with 0.
    """
    command = ["ip", "netns", "exec", where, *words] if where else list(words)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise BenchError(f"`{' '.join(command)}` failed: {complaint}")
    return done.stdout


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of *pid*, user and system, softirqs in them included."""
    # The kernel's clock number of a process: include/linux/posix-timers.h, CPUCLOCK_SCHED.
    return time.clock_gettime((~pid << 3) | 2)


def family(pid: int) -> list[int]:
    """Return *pid* and its descendants, as far as they are there."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def resident_kb(pid: int) -> int:
    """Return the resident memory of *pid* in units of 1024 octets."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise BenchError(f"process {pid} has no VmRSS in /proc/{pid}/status: it has ended")


def queue_drops(namespace: str) -> int:
    """Return how many packets the NFQUEUEs of *namespace* have lost so far."""
    listed = sh("cat", "/proc/net/netfilter/nfnetlink_queue", where=namespace)
    # Columns 6 and 7: dropped because the queue, or the listener's socket, was full.
    return sum(int(row[5]) + int(row[6]) for row in map(str.split, listed.splitlines()))


def pid_of(thread: str) -> int:
    """Return the process ID of the kernel thread named *thread*, or 0 if it is out of sight."""
    for entry in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if entry.read_text().strip() == thread:
                return int(entry.parent.name)
    return 0
