"""How long a scrape takes with many calls up, and what it does to packets meanwhile."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.paths import CONNTRACK, Lab, labs
from benchmarks.plan import Run, Sample
from benchmarks.shell import BenchError
from pptp_nat.lab import namespaces

PORT = 9723
SCRAPED = replace(CONNTRACK, metrics=f"127.0.0.1:{PORT}")
ECHOES = 500  #: of one command
INTERVAL_SECONDS = 6.0  #: between scrapes; with many calls counts are not read anew before 5 s
LONG_INTERVAL_SECONDS = 15.0  #: Prometheus' own; a reading is good for ten times as long as it took
LONG_CALLS = 20_000  #: with more than these the interval is long
LEARNING = 2  #: visits after which the daemon expects the next one
LONG_TURN = "0.005"  #: seconds, a bound of the histogram


class Scraper:
    """Comes at an interval, as Prometheus does, beginning now."""

    def __init__(self, lab: Lab, calls: int) -> None:
        self._lab = lab
        self._interval = _interval(calls)
        self._due = time.monotonic()

    def visit(self) -> tuple[str, float]:
        """Scrape when it is time to; return the text and the seconds that it took."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due += self._interval
        return get(self._lab)

    def timed(self) -> tuple[float, float, float]:
        """Return the next scrape's seconds, its CPU seconds, and how old its counts of GRE are.

        CPU is all that the daemon does from now on: counts are read before the scrape.
        """
        assert self._lab.daemon
        before = self._lab.daemon.cpu()
        text, seconds = self.visit()
        age = time.time() - _value(text, "gre_read_timestamp_seconds")
        self._lab.settle()
        return seconds, self._lab.daemon.cpu() - before, age


def _interval(calls: int) -> float:
    """Return the seconds between two scrapes."""
    return LONG_INTERVAL_SECONDS if calls > LONG_CALLS else INTERVAL_SECONDS


def scrape(run: Run) -> Iterator[Sample]:
    """Measure scrapes beside Echo-Requests, and Echo-Requests without scrapes."""
    if not run.plan.scrape_calls:
        return
    with labs([SCRAPED], run.build, run.absent, suffix="x") as built:
        for calls in run.plan.scrape_calls:
            run.prepare("scrape", built, calls)
            for number, lab in run.rounds(built, at_most=run.plan.slow_rounds):
                run.tell(f"scrape: {calls:,} up, round {number + 1}")
                yield _round(lab, calls) | {"round": number}


def _round(lab: Lab, calls: int) -> Sample:
    # As long as the interval: the longest of many depends on how many there are.
    quiet = _echoes(lab, until=time.monotonic() + _interval(calls))
    scraper = Scraper(lab, calls)
    before, unexpected = scraper.visit()
    for _ in range(LEARNING - 1):
        scraper.visit()
    lab.settle()
    alone, spent, age = scraper.timed()
    visits: list[tuple[str, float]] = []
    faults: list[BaseException] = []

    def scrapes() -> None:
        try:
            visits.append(scraper.visit())
        except (OSError, http.client.HTTPException) as error:
            faults.append(error)

    thread = threading.Thread(target=scrapes)
    thread.start()
    beside = _echoes(lab, thread=thread)
    thread.join()
    if faults:
        raise BenchError(f"a scrape failed: {faults[0]}")
    ((after, took),) = visits
    turns = _turns(after) - _turns(before)
    return {
        "measure": "scrape",
        "way": SCRAPED.name,
        "calls": calls,
        "alone_ms": alone * 1e3,
        "beside_ms": took * 1e3,
        "unexpected_ms": unexpected * 1e3,
        "daemon_ms": spent * 1e3,
        "age_s": age,
        "step_us": _value(after, "scrape_longest_step_seconds") * 1e6,
        "echo_p99_us": beside["p99_us"],
        "echo_max_us": beside["max_us"],
        "quiet_p99_us": quiet["p99_us"],
        "quiet_max_us": quiet["max_us"],
        "turns": turns,
        "long_turns": turns - (_turns(after, LONG_TURN) - _turns(before, LONG_TURN)),
    }


def _echoes(
    lab: Lab, *, until: float = 0.0, thread: threading.Thread | None = None
) -> dict[str, float]:
    """Send one Echo-Request after another; return the worst of all figures."""
    worst: dict[str, float] = {"p99_us": 0.0, "max_us": 0.0}
    while time.monotonic() < until or (thread is not None and thread.is_alive()):
        echoed: dict[str, Any] = lab.banks[0].client.ask(f"echo 0 {ECHOES}")
        worst = {name: max(value, echoed[name]) for name, value in worst.items()}
    return worst


def get(lab: Lab) -> tuple[str, float]:
    """Scrape; return the text and the seconds that it took."""
    assert lab.topology.router
    with namespaces.entered(lab.topology.router):
        opened = socket.create_connection(("127.0.0.1", PORT), timeout=30)
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    connection.sock = opened
    began = time.monotonic()
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return text, time.monotonic() - began


def _turns(text: str, bound: str = "+Inf") -> int:
    """Return how many turns of the loop took at most *bound* seconds."""
    return int(_value(text, f'loop_turn_duration_seconds_bucket{{le="{bound}"}}'))


def _value(text: str, series: str) -> float:
    found = re.search(rf"^pptp_nat_{re.escape(series)} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise BenchError(f"a scrape has no pptp_nat_{series}")
    return float(found[1])
