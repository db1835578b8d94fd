"""What more and more calls cost: set-ups, packets, scrapes, lists, memory, a start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from benchmarks import paths
from benchmarks.measures.gre import DIRECTIONS, bursts
from benchmarks.measures.scrape import LEARNING, SCRAPED, Scraper
from benchmarks.measures.setup import batch
from benchmarks.paths import Lab, labs
from benchmarks.plan import Run, Sample
from benchmarks.shell import BenchError

SIZE: Final = 64


def growth(run: Run) -> Iterator[Sample]:
    """Measure one daemon with ever more calls up; the last thing of each round is a crash."""
    with labs([SCRAPED], run.build, run.absent, suffix="w") as built:
        for calls in run.plan.growth_calls:
            run.prepare("growth", built, calls)
            for lab in built:
                run.tell(f"growth: {calls:,} up, scrapes")
                scraped = list(_scraped(lab, calls, len(run.numbers(run.plan.slow_rounds))))
                for number, scrape in enumerate(scraped):
                    run.tell(f"growth: {calls:,} up, round {number + 1}")
                    yield scrape | _round(run, lab, number, calls)


def _round(run: Run, lab: Lab, number: int, calls: int) -> Sample:
    assert lab.daemon
    dialed = batch(run, lab, number, calls)
    packets = {d: bursts(run, lab, d, SIZE, calls) for d in DIRECTIONS}
    lost = {f"{k}_{d}": packets[d][k] for k in ("wrong", "lost") for d in DIRECTIONS}
    rss_kb = lab.daemon.memory_kb()
    listed = _listed(lab)
    seconds, cpu_seconds = lab.daemon.crash_and_return()
    adopted = lab.daemon.calls_up()
    if adopted != calls:
        raise BenchError(f"{adopted:,} of {calls:,} calls were there after the daemon's crash")
    lab.settle()
    return {
        "measure": "growth",
        "way": SCRAPED.name,
        "calls": calls,
        "round": number,
        "per_second": dialed["per_second"],
        "daemon_us": dialed["daemon_us"],
        "failed": dialed["failed"],
        **{f"ns_{d}": packets[d]["ns"] for d in DIRECTIONS},
        **lost,
        "rss_kb": rss_kb,
        **listed,
        "start_s": seconds,
        "start_cpu_s": cpu_seconds,
        "adopted": adopted,
    }


def _scraped(lab: Lab, calls: int, rounds: int) -> Iterator[Sample]:
    """Scrape at an interval: once unexpected, and then when the daemon has learned it."""
    scraper = Scraper(lab, calls)
    _, unexpected = scraper.visit()
    for _ in range(LEARNING - 1):
        scraper.visit()
    lab.settle()
    for _ in range(rounds):
        seconds, cpu_seconds, age = scraper.timed()
        yield {
            "scrape_ms": seconds * 1e3,
            "scrape_cpu_ms": cpu_seconds * 1e3,
            "scrape_unexpected_ms": unexpected * 1e3,
            "scrape_age_s": age,
        }


def _listed(lab: Lab) -> Sample:
    """Have the command list all calls; return its seconds, and CPU's of both processes."""
    assert lab.daemon
    command = [sys.executable, "-m", "pptp_nat", "list", "--socket", str(lab.daemon.socket)]
    before, began = lab.daemon.cpu(), time.monotonic()
    listing = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=paths.CHECKOUT
    )
    _, status, usage = os.wait4(listing.pid, 0)
    seconds = time.monotonic() - began
    listing.returncode = os.waitstatus_to_exitcode(status)
    if listing.returncode:
        raise BenchError(f"pptp-nat list ended with {listing.returncode}")
    return {
        "list_s": seconds,
        "list_cpu_s": usage.ru_utime + usage.ru_stime + lab.daemon.cpu() - before,
    }
