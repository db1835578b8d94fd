"""Compare ways of carrying PPTP through a router, side by side, in one run.

Needs root, a C compiler, iptables and nftables; makes its own network
namespaces and removes them again.  Read benchmarks/README.md for the method.
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import machine, paths, plots, programs, publish, report, results, topology
from benchmarks.measures import MEASURES
from benchmarks.paths import WAYS
from benchmarks.plan import FULL, QUICK, Plan, Run, Sample
from benchmarks.results import LATEST, Samples
from benchmarks.shell import BenchError
from benchmarks.spread import Spread
from benchmarks.targets import Target, evaluate


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(int(word.replace("_", "")) for word in text.split(","))
    if min(found) < 1:
        raise ValueError
    return tuple(sorted(set(found)))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line (or *words*) asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks --quick --only gre --json /tmp/gre.json",
    )
    parser.add_argument("--quick", action="store_true", help="fewer calls, sizes and rounds")
    parser.add_argument(
        "--only", choices=MEASURES, action="append", metavar="MEASURE",
        help=f"measure this alone; may be given again ({', '.join(MEASURES)})",
    )  # fmt: skip
    parser.add_argument(
        "--way", choices=[way.name for way in WAYS], action="append", metavar="WAY",
        help=f"this way alone; may be given again ({', '.join(way.name for way in WAYS)})",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help=f"rounds of each ({FULL.rounds})")
    parser.add_argument(
        "--calls", type=_numbers, metavar="N,N...",
        help="calls that are up beforehand, for all measures alike",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=_numbers, metavar="N,N...", help="octets of the IP packets, 64 to 1500"
    )
    parser.add_argument(
        "--package", type=Path, metavar="DIR",
        help="measure the pptp_nat in DIR, such as build/compiled (make compiled)",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=Path, metavar="PATH",
        help="write every sample there, and the plots beside it; if not told, a full run is"
        " written to benchmarks/results/latest.json, and its figures into the documents",
    )  # fmt: skip
    asked = parser.parse_args(words)
    if asked.rounds is not None and asked.rounds < 1:
        parser.error("--rounds: at least 1")
    if asked.sizes and not 64 <= min(asked.sizes) <= max(asked.sizes) <= 1500:
        parser.error("--sizes: 64 to 1500 octets")
    if asked.package is not None and not (asked.package / "pptp_nat" / "daemon.py").exists():
        parser.error(f"--package: there is no pptp_nat in {asked.package}")
    partial = (asked.quick, asked.only, asked.way, asked.calls, asked.sizes, asked.package)
    if asked.json is None and not any(partial):
        asked.json = LATEST
    return asked


def plan_of(asked: argparse.Namespace) -> Plan:
    """Return how much is to be measured."""
    plan = QUICK if asked.quick else FULL
    changes: dict[str, Any] = {}
    if asked.rounds:
        changes |= {"rounds": asked.rounds, "slow_rounds": min(asked.rounds, plan.slow_rounds)}
    if asked.sizes:
        changes["gre_sizes"] = asked.sizes
    if asked.calls:
        names = [field.name for field in dataclasses.fields(Plan)]
        changes |= {name: asked.calls for name in names if name.endswith("_calls")}
    return dataclasses.replace(plan, **changes)


def ways_of(asked: argparse.Namespace) -> tuple[paths.Way, ...]:
    """Return the ways that are to be measured; mypyc alone takes longer than a quick run."""
    if asked.way:
        return tuple(way for way in WAYS if way.name in asked.way)
    return tuple(way for way in WAYS if not asked.quick or way.compiled != "1")


def _tell(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _stop(number: int, _: FrameType | None) -> None:
    # Once is enough: what follows is cleaning up, and that is not to be cut short.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


@dataclasses.dataclass
class _Taken:
    """What was measured, what was not and why, and how long each measure took in seconds."""

    samples: list[Sample] = dataclasses.field(default_factory=list)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    tables: dict[str, object] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def _measure(plan: Plan, chosen: list[str], ways: tuple[paths.Way, ...]) -> _Taken:
    machine.check()
    topology.remove_leftovers()
    taken = _Taken()
    prefix = f"{topology.BUILD_PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix) as build:
        programs.compile_peers(Path(build))
        run = Run(plan, Path(build), _tell, ways)
        taken.absent = run.absent
        for name in chosen:
            began = time.monotonic()
            try:
                with machine.connection_table(name) as sizes:
                    taken.tables[name] = sizes
                    # Piece by piece: what was measured before an error counts.
                    for sample in MEASURES[name](run):
                        taken.samples.append(sample)
            except BenchError as error:
                # What the other measures say holds all the same.
                run.absent[name] = str(error)
                _tell(f"{name}: {error}")
            taken.seconds[name] = round(time.monotonic() - began, 1)
            _tell(f"{name}: done in {taken.seconds[name]:.0f} s")
    return taken


def _print(taken: _Taken, chosen: list[str], judged: list[Target]) -> None:
    samples = Samples(taken.samples)
    for name in chosen:
        if samples.pick(measure=name):
            for block in report.PARTS[name](samples):
                print(f"\n{block}")
    if judged:
        print(f"\n{report.targets(judged)}")
    busy = [s["others_cpus"] for s in samples.all if "others_cpus" in s]
    if busy:
        print(f"\nother work on this machine meanwhile: {Spread.of(busy).median:.1f} CPUs (median)")
    for what, reason in taken.absent.items():
        print(f"not measured: {what}: {reason}")


def main() -> int:
    """Run, print, write; return the exit code."""
    asked = arguments()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)
    if asked.package is not None:
        paths.CHECKOUT = asked.package.resolve()
    # As where it is installed: no command of it compiles itself, whatever the environment says.
    compileall.compile_dir(paths.CHECKOUT / "pptp_nat", quiet=1)
    plan = plan_of(asked)
    chosen = [name for name in MEASURES if not asked.only or name in asked.only]
    ways = ways_of(asked)
    facts = machine.facts()
    began = time.monotonic()
    try:
        taken = _measure(plan, chosen, ways)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"stopped ({stopped or 'SIGINT'}); everything is removed", file=sys.stderr)
        return 130
    judged = evaluate(Samples(taken.samples), chosen, [way.name for way in ways])
    if asked.json:
        document = {
            "machine": facts,
            "connection_table": taken.tables,
            "seconds": round(time.monotonic() - began, 1),
            "seconds_of": taken.seconds,
            "plan": dataclasses.asdict(plan),
            "ways": {way.name: dataclasses.asdict(way) for way in ways},
            "absent": taken.absent,
            "targets": [t.as_dict() for t in judged],
            "samples": taken.samples,
        }
        results.write(asked.json, document)
        drawn = plots.write(asked.json, Samples(taken.samples))
    _print(taken, chosen, judged)
    if asked.json:
        print(f"written: {asked.json} and {len(drawn)} plots beside it")
        if asked.json == LATEST:
            publish.fill()
            print("figures put into docs/performance.md and README.md: git diff shows them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
