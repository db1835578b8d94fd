"""What a whole call set-up costs, and what a control message waits for the daemon."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.machine import Neighbours
from benchmarks.paths import (
    CONNTRACK,
    FIRST_FREE_SLOT,
    FREE_SLOTS,
    WIRE,
    WORKERS,
    Lab,
    labs,
)
from benchmarks.plan import Run, Sample
from benchmarks.spread import rotated

IN_FLIGHT = 32
ALONE = 200  #: set-ups one after another
LIGHT_EACH = 25  #: calls of a connection where clients are light: no TCP, no start messages
ECHOES = 1000
MOST_ECHOES = 60000  #: of one command; more than fit beside a crowd
PACE = 1000  #: calls that come up in a second beside the echoes
#: load beside the echoes -> how many dial at a time, how many begin in a second (0: no limit)
CROWDS = {"paced": (IN_FLIGHT, PACE), "flat out": (IN_FLIGHT, 0)}


def setup(run: Run) -> Iterator[Sample]:
    """Measure whole call set-ups, with few and with many calls up beforehand."""
    ways = [way for way in run.ways_of("setup") if way is not WIRE]
    with labs(ways, run.build, run.absent, suffix="s") as built:
        for calls in run.plan.setup_calls:
            run.prepare("setup", built, calls)
            # One round that does not count: pages, caches and dictionaries grow in it.
            for lab in built:
                batch(run, lab, 0, calls)
            ends = (run.plan.setup_calls[0], run.plan.setup_calls[-1])
            for number in run.numbers(None if calls in ends else run.plan.slow_rounds):
                run.tell(f"setup: {calls:,} up, round {number + 1}")
                for lab in rotated(built, number):
                    sample = batch(run, lab, number + 1, calls)
                    yield sample | {"measure": "setup", "round": number}


def batch(run: Run, lab: Lab, number: int, calls: int) -> Sample:
    """Set a batch of calls up and clear them again, then some one by one."""
    bank, size = lab.banks[0], run.plan.setup_batch
    first = FIRST_FREE_SLOT + number * size % (FREE_SLOTS - FREE_SLOTS % size)
    daemon = lab.daemon.cpu if lab.daemon else lambda: 0.0
    before = bank.server.cpu(), daemon()
    neighbours = Neighbours()
    dialed = bank.client.ask(f"dial {first} {size} {IN_FLIGHT}")
    server, dialing = bank.server.cpu() - before[0], daemon() - before[1]
    own = dialed["cpu_ns"] / 1e9 + server + dialing
    others = neighbours.cpus(own)
    lab.settle()
    settled = daemon()
    cleared = bank.client.ask(f"clear {first} {size} {IN_FLIGHT}")
    lab.settle()
    ended = daemon()
    alone = bank.client.ask(f"dial {first} {ALONE} 1")
    bank.client.ask(f"clear {first} {ALONE} {IN_FLIGHT}")
    lab.settle()
    done = max(dialed["done"], 1)
    return dialed | (_light(lab, first, size) if lab.way in (CONNTRACK, WORKERS) else {}) | {
        "way": lab.way.name,
        "calls": calls,
        "per_second": dialed["done"] / dialed["seconds"],
        "peers_us": (own - dialing) * 1e6 / done,
        "daemon_us": (settled - before[1]) * 1e6 / done,
        "daemon_clear_us": (ended - settled) * 1e6 / max(cleared["done"], 1),
        "clear_failed": cleared["failed"],
        "alone_p50_us": alone["p50_us"],
        "alone_p99_us": alone["p99_us"],
        "failed": dialed["failed"] + alone["failed"],
        "wrong": dialed["wrong"] + alone["wrong"],
        "others_cpus": others,
    }


def _light(lab: Lab, first: int, size: int) -> Sample:
    """Set calls up over few connections: what a set-up costs the peers is small then."""
    assert lab.daemon
    bank = lab.banks[0]
    before = bank.server.cpu(), lab.daemon.cpu()
    dialed = bank.client.ask(f"dial {first} {size} {IN_FLIGHT} {LIGHT_EACH}")
    server, daemon = bank.server.cpu() - before[0], lab.daemon.cpu() - before[1]
    bank.client.ask(f"reset {first} {size} {LIGHT_EACH}")
    lab.settle()
    done = max(dialed["done"], 1)
    return {
        "light_per_second": dialed["done"] / dialed["seconds"],
        "light_peers_us": (dialed["cpu_ns"] / 1e9 + server) * 1e6 / done,
        "light_daemon_us": daemon * 1e6 / done,
        "light_failed": dialed["failed"] + dialed["wrong"],
    }


def echo(run: Run) -> Iterator[Sample]:
    """Measure the round trip of an Echo-Request: alone, and while other calls come up."""
    with labs(run.ways_of("latency"), run.build, run.absent, suffix="l") as built:
        run.prepare("latency", built, 2)
        for lab in built:
            for peer in (lab.banks[0].client, lab.banks[0].server):
                peer.pin({run.cpu})
            lab.banks[0].client.ask(f"echo 0 {ECHOES}")
        for number, lab in run.rounds(built):
            run.tell(f"latency: round {number + 1}, {lab.way.title}")
            about = {"measure": "latency", "way": lab.way.name, "round": number}
            yield about | {"load": "idle"} | _idle(lab)
            if lab.way is not WIRE:
                for load, (inflight, pace) in CROWDS.items():
                    crowd = f"{run.plan.echo_crowd} {inflight} 1 {pace}"
                    yield about | {"load": load} | _beside(lab, crowd)


def _idle(lab: Lab) -> Sample:
    bank = lab.banks[0]
    daemon = lab.daemon.cpu if lab.daemon else lambda: 0.0
    before, server, neighbours = daemon(), bank.server.cpu(), Neighbours()
    echoed = bank.client.ask(f"echo 0 {ECHOES}")
    spent = daemon() - before
    own = echoed["cpu_ns"] / 1e9 + bank.server.cpu() - server + spent
    return echoed | {
        "daemon_us": spent * 1e6 / max(echoed["done"], 1),
        "others_cpus": neighbours.cpus(own),
    }


def _beside(lab: Lab, crowd: str) -> Sample:
    """Echo on one bank for as long as the other one sets calls up."""
    echoing, dialing = lab.banks
    echoing.client.tell(f"echo 0 {MOST_ECHOES}")
    dialed = dialing.client.ask(f"dial {FIRST_FREE_SLOT} {crowd}")
    echoing.client.tell("enough")
    echoed = echoing.client.answer()
    dialing.client.ask(f"clear {FIRST_FREE_SLOT} {crowd.split(maxsplit=1)[0]} {IN_FLIGHT}")
    lab.settle()
    failed, wrong = (echoed[k] + dialed[k] for k in ("failed", "wrong"))
    return echoed | {
        "failed": failed,
        "wrong": wrong,
        "crowd_per_second": dialed["done"] / dialed["seconds"],
    }
