"""What a packet of GRE costs, and how long it takes when the path is half busy."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator

from benchmarks.machine import Neighbours
from benchmarks.paths import BANKS, Lab, labs
from benchmarks.plan import Run, Sample
from benchmarks.shell import BenchError, queue_drops
from benchmarks.spread import rotated

DIRECTIONS = ("in", "out")
BURST = 4096  #: packets at most; a queue of the daemon holds 16,384
DELAY_SIZE = 64
DELAY_MILLISECONDS = 300


def gre(run: Run) -> Iterator[Sample]:
    """Measure packets with more and more calls up, in both directions."""
    with labs(run.ways_of("gre"), run.build, run.absent, suffix="g") as built:
        for calls in run.plan.gre_calls:
            run.prepare("gre", built, calls)
            # What is compared follows closely upon each other.
            for number in run.numbers():
                run.tell(f"gre: {calls:,} up, round {number + 1}")
                sizes = run.plan.gre_sizes[: None if number < run.plan.slow_rounds else 1]
                for direction, size in itertools.product(DIRECTIONS, sizes):
                    for lab in rotated(built, number):
                        sample = bursts(run, lab, direction, size, calls)
                        yield sample | {"measure": "gre", "round": number}


def delay(run: Run) -> Iterator[Sample]:
    """Measure how long packets take through a path that is given a part of what it can carry."""
    with labs(run.ways_of("delay"), run.build, run.absent, suffix="d") as built:
        for calls in run.plan.delay_calls:
            run.prepare("delay", built, calls)
            for number in run.numbers():
                run.tell(f"delay: {calls:,} up, round {number + 1}")
                for direction in DIRECTIONS:
                    for lab in rotated(built, number):
                        sample = delays(run, lab, direction, calls)
                        yield sample | {"measure": "delay", "round": number}


def bursts(run: Run, lab: Lab, direction: str, size: int, calls: int) -> Sample:
    """Send some bursts through one lab; return what they cost."""
    words = [direction, size, run.plan.gre_bursts, BURST, run.cpu, run.ksoftirqd]
    return _generated(run, lab, "gre", words, calls) | {"direction": direction, "size": size}


def delays(run: Run, lab: Lab, direction: str, calls: int) -> Sample:
    """Send a part of what one lab can carry; return how long the packets took."""
    words = [direction, DELAY_SIZE, DELAY_MILLISECONDS, run.plan.delay_percent, run.cpu]
    return _generated(run, lab, "delay", words, calls) | {"direction": direction}


def _generated(run: Run, lab: Lab, program: str, words: list[object], calls: int) -> Sample:
    """Run one of the two generators from one end of a lab to the other."""
    ends = [lab.topology.servers, lab.topology.clients]
    sender, receiver = ends if words[0] == "in" else reversed(ends)
    share = [(calls + BANKS - 1 - n) // BANKS for n in range(BANKS)]
    command = [str(run.build / program), sender.path, sender.device, sender.peer_path]
    command += [sender.peer_device, receiver.path, receiver.device]
    command += [sender.hardware, sender.next_hop, *map(str, words)]
    command += [f"{bank.table}:{n}" for bank, n in zip(lab.banks, share, strict=True) if n]
    dropped = queue_drops(lab.topology.router) if lab.topology.router else 0
    neighbours, spent = Neighbours(), sum(os.times()[:4])
    daemon = lab.daemon.cpu() if lab.daemon else 0.0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the generator failed on {lab.way.title}: {done.stderr.strip()}")
    daemon = lab.daemon.cpu() - daemon if lab.daemon else 0.0
    own = sum(os.times()[:4]) - spent + daemon
    sample: Sample = json.loads(done.stdout)
    return sample | {
        "way": lab.way.name,
        "calls": calls,
        "lost": sample["sent"] - sample["received"],
        "queue_drops": queue_drops(lab.topology.router) - dropped if lab.topology.router else 0,
        "daemon_ns": daemon * 1e9 / max(sample["received"], 1),
        "others_cpus": neighbours.cpus(own),
    }
