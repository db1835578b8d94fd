"""The four measurements.  Each yields samples: plain dictionaries, one a round and way."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import Neighbours
from benchmarks.paths import BANKS, CONNTRACK, QUEUE, WAYS, WIRE, Lab, labs
from benchmarks.shell import BenchError, pid_of, queue_drops
from benchmarks.spread import rotated

Sample = dict[str, Any]
Tell = Callable[[str], None]

DIRECTIONS = ("in", "out")
BURST = 4096  #: packets at most; a queue of the daemon holds 16,384
SETUPS_IN_FLIGHT = 32
ECHOES = 1000
FIRST_FREE_SLOT = 20000  #: of a bank; the slots below hold calls that stay up


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    gre_calls: tuple[int, ...] = (1, 1000, 20000)
    gre_sizes: tuple[int, ...] = (64, 1400)  #: octets of the IP packet
    gre_bursts: int = 6  #: of one way, direction and size in one round
    setup_calls: tuple[int, ...] = (0, 10000)  #: calls up beforehand
    setup_batch: int = 1000
    memory_calls: tuple[int, ...] = (1000, 10000)
    scrape_calls: tuple[int, ...] = (20000,)
    #: of generated captures; the first is read by tshark too
    reading_packets: tuple[int, ...] = (1_000_000, 3_000_000)


FULL = Plan(rounds=7)
QUICK = Plan(
    rounds=3,
    gre_calls=(1, 1000),
    gre_sizes=(64,),
    gre_bursts=4,
    setup_calls=(0,),
    setup_batch=500,
    memory_calls=(1000, 3000),
    scrape_calls=(3000,),
    reading_packets=(200_000,),
)


class Run:
    """What all measurements need: where the peers are, what is not here, whom to tell."""

    def __init__(self, plan: Plan, build: Path, tell: Tell) -> None:
        self.plan = plan
        self.build = build
        self.tell = tell
        self.absent: dict[str, str] = {}  #: way -> why it was not measured
        self.cpu = max(os.sched_getaffinity(0))  #: where generators and pinned peers run
        self.ksoftirqd = pid_of(f"ksoftirqd/{self.cpu}")

    def prepare(self, measure: str, built: list[Lab], calls: int) -> None:
        """Have *calls* calls up in each lab; one that cannot is noted and left out from here."""
        for lab in list(built):
            self.tell(f"{measure}: {calls:,} up through {lab.way.title}")
            try:
                lab.grow(calls)
            except BenchError as error:
                built.remove(lab)
                self.absent[f"{lab.way.name} with {calls:,} calls ({measure})"] = str(error)
        self.tell(f"{measure}: {calls:,} up, {self.plan.rounds} rounds")

    def rounds(self, built: list[Lab]) -> Iterator[tuple[int, Lab]]:
        """Go round the labs, beginning with another one each time."""
        for number in range(self.plan.rounds):
            for lab in rotated(built, number):
                yield number, lab


def gre(run: Run) -> Iterator[Sample]:
    """Measure packets with more and more calls up, in both directions."""
    with labs(WAYS, run.build, run.absent, suffix="g") as built:
        for calls in run.plan.gre_calls:
            run.prepare("gre", built, calls)
            # What is compared follows closely upon each other.
            for number in range(run.plan.rounds):
                for direction, size in itertools.product(DIRECTIONS, run.plan.gre_sizes):
                    for lab in rotated(built, number):
                        sample = _gre_slice(run, lab, direction, size, calls)
                        yield sample | {"round": number}


def _gre_slice(run: Run, lab: Lab, direction: str, size: int, calls: int) -> Sample:
    ends = [lab.topology.servers, lab.topology.clients]
    sender, receiver = ends if direction == "in" else reversed(ends)
    share = [(calls + BANKS - 1 - n) // BANKS for n in range(BANKS)]
    command = [str(run.build / "gre"), sender.path, sender.device, sender.peer_path]
    command += [sender.peer_device, receiver.path, receiver.device]
    command += [sender.hardware, sender.next_hop, direction, str(size), str(run.plan.gre_bursts)]
    command += [str(BURST), str(run.cpu), str(run.ksoftirqd)]
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
    received = max(sample["received"], 1)
    return sample | {
        "measure": "gre",
        "way": lab.way.name,
        "calls": calls,
        "direction": direction,
        "size": size,
        "lost": sample["sent"] - sample["received"],
        "queue_drops": queue_drops(lab.topology.router) - dropped if lab.topology.router else 0,
        "daemon_ns": daemon * 1e9 / received,
        "others_cpus": neighbours.cpus(own),
    }


def setup(run: Run) -> Iterator[Sample]:
    """Measure whole call set-ups, with few and with many calls up beforehand."""
    ways = [way for way in WAYS if way is not WIRE]
    with labs(ways, run.build, run.absent, suffix="s") as built:
        for calls in run.plan.setup_calls:
            run.prepare("setup", built, calls)
            # One round that does not count: pages, caches and dictionaries grow in it.
            for lab in built:
                _setup_batch(run, lab, 0, calls)
            for number, lab in run.rounds(built):
                yield _setup_batch(run, lab, number + 1, calls) | {"round": number}


def _setup_batch(run: Run, lab: Lab, number: int, calls: int) -> Sample:
    bank, batch = lab.banks[0], run.plan.setup_batch
    first = FIRST_FREE_SLOT + number * batch % (40000 - 40000 % batch)
    daemon = lab.daemon.cpu if lab.daemon else lambda: 0.0
    before = bank.server.cpu(), daemon()
    neighbours = Neighbours()
    dialed = bank.client.ask(f"dial {first} {batch} {SETUPS_IN_FLIGHT}")
    server, dialing = bank.server.cpu() - before[0], daemon() - before[1]
    own = dialed["cpu_ns"] / 1e9 + server + dialing
    others = neighbours.cpus(own)
    lab.settle()
    settled = daemon()
    cleared = bank.client.ask(f"clear {first} {batch} {SETUPS_IN_FLIGHT}")
    lab.settle()
    done = max(dialed["done"], 1)
    return dialed | {
        "measure": "setup",
        "way": lab.way.name,
        "calls": calls,
        "per_second": dialed["done"] / dialed["seconds"],
        "peers_us": (own - dialing) * 1e6 / done,
        "daemon_us": (settled - before[1]) * 1e6 / done,
        "daemon_clear_us": (daemon() - settled) * 1e6 / max(cleared["done"], 1),
        "clear_failed": cleared["failed"],
        "others_cpus": others,
    }


def latency(run: Run) -> Iterator[Sample]:
    """Measure the round trip of an Echo-Request, one at a time."""
    with labs(WAYS, run.build, run.absent, suffix="l") as built:
        run.prepare("latency", built, 1)
        for lab in built:
            for peer in (lab.banks[0].client, lab.banks[0].server):
                peer.pin({run.cpu})
            lab.banks[0].client.ask(f"echo 0 {ECHOES}")
        for number, lab in run.rounds(built):
            bank = lab.banks[0]
            daemon = lab.daemon.cpu if lab.daemon else lambda: 0.0
            before, server, neighbours = daemon(), bank.server.cpu(), Neighbours()
            echoed = bank.client.ask(f"echo 0 {ECHOES}")
            spent = daemon() - before
            own = echoed["cpu_ns"] / 1e9 + bank.server.cpu() - server + spent
            yield echoed | {
                "measure": "latency",
                "way": lab.way.name,
                "round": number,
                "daemon_us": spent * 1e6 / max(echoed["done"], 1),
                "others_cpus": neighbours.cpus(own),
            }


def memory(run: Run) -> Iterator[Sample]:
    """Measure the daemon's memory in a process of its own, before and after calls come up."""
    for way in (CONNTRACK, QUEUE):
        with labs([way], run.build, run.absent, suffix="m") as built:
            for lab in built:
                assert lab.daemon
                time.sleep(1)
                lab.settle()
                run.tell(f"memory: {way.title}")
                up, spent = 0, lab.daemon.cpu()
                for calls in (0, *run.plan.memory_calls):
                    lab.grow(calls)
                    now = lab.daemon.cpu()
                    yield {
                        "measure": "memory",
                        "way": way.name,
                        "round": 0,
                        "calls": calls,
                        "rss_kb": lab.daemon.memory_kb(),
                        "daemon_us": (now - spent) * 1e6 / (calls - up) if calls > up else 0.0,
                    }
                    up, spent = calls, now


MEASURES: dict[str, Callable[[Run], Iterator[Sample]]] = {
    "gre": gre,
    "setup": setup,
    "latency": latency,
    "memory": memory,
}
