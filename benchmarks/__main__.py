"""Compare ways of carrying PPTP through a router, side by side, in one run.

Needs root, a C compiler, iptables and nftables; makes its own network
namespaces and removes them again.  Read benchmarks/README.md for the method.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from benchmarks import machine, measures, paths, programs, report, topology
from benchmarks.measures import FULL, QUICK, Plan, Run, Sample
from benchmarks.paths import WAYS
from benchmarks.reading import reading
from benchmarks.scrape import scrape
from benchmarks.shell import BenchError
from benchmarks.spread import Spread
from benchmarks.targets import Samples, Target, evaluate

MEASURES = {**measures.MEASURES, "scrape": scrape, "reading": reading}
RESULTS = Path(__file__).parent / "results"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks --quick --only gre --json /tmp/gre.json",
    )
    parser.add_argument("--quick", action="store_true", help="fewer calls, sizes and rounds")
    parser.add_argument("--only", choices=MEASURES, help="measure this alone")
    parser.add_argument("--rounds", type=int, help=f"rounds of each ({FULL.rounds})")
    parser.add_argument(
        "--package", type=Path, metavar="DIR",
        help="measure the pptp_nat in DIR, such as build/compiled (make compiled)",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=Path, metavar="PATH",
        help="write everything there; a full run is written to benchmarks/results/ if not told",
    )  # fmt: skip
    asked = parser.parse_args()
    if asked.rounds is not None and asked.rounds < 1:
        parser.error("--rounds: at least 1")
    if asked.package is not None and not (asked.package / "pptp_nat" / "daemon.py").exists():
        parser.error(f"--package: there is no pptp_nat in {asked.package}")
    if asked.json is None and not (asked.quick or asked.only or asked.package):
        asked.json = _usual_place()
    return asked


def _usual_place() -> Path:
    """Return where the full run on a machine like this one is kept."""
    kernel = ".".join(os.uname().release.split(".")[:2])
    return RESULTS / f"linux-{kernel}-{os.cpu_count()}-cores.json"


def _tell(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _stop(number: int, _: FrameType | None) -> None:
    # Once is enough: what follows is cleaning up, and that is not to be cut short.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _measure(
    plan: Plan, chosen: list[str]
) -> tuple[list[Sample], dict[str, str], dict[str, object]]:
    machine.check()
    topology.remove_leftovers()
    samples: list[Sample] = []
    with (
        tempfile.TemporaryDirectory(prefix=f"{topology.BUILD_PREFIX}{os.getpid()}-") as build,
        machine.connection_table() as sizes,
    ):
        programs.compile_peers(Path(build))
        run = Run(plan, Path(build), _tell)
        for name in chosen:
            try:
                # Extends piece by piece: what was measured before an error counts.
                samples += MEASURES[name](run)
            except BenchError as error:
                # What the other measures say holds all the same.
                run.absent[name] = str(error)
                _tell(f"{name}: {error}")
    return samples, run.absent, dict(sizes)


def _print(
    samples: Samples, chosen: list[str], absent: dict[str, str], judged: list[Target]
) -> None:
    for name in chosen:
        if samples.pick(measure=name):
            for block in report.PARTS[name](samples):
                print(f"\n{block}")
    if judged:
        print(f"\n{report.targets(judged)}")
    busy = [s["others_cpus"] for s in samples.all if "others_cpus" in s]
    if busy:
        print(f"\nother work on this machine meanwhile: {Spread.of(busy).median:.1f} CPUs (median)")
    for what, reason in absent.items():
        print(f"not measured: {what}: {reason}")


def _one_line_each(document: dict[str, object]) -> str:
    """Return the JSON with each sample and each target on a line of its own."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, indent=1)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """Run, print, write; return the exit code."""
    asked = _arguments()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)
    if asked.package is not None:
        paths.CHECKOUT = asked.package.resolve()
    plan = QUICK if asked.quick else FULL
    if asked.rounds:
        plan = dataclasses.replace(plan, rounds=asked.rounds)
    chosen = [asked.only] if asked.only else list(MEASURES)
    facts = machine.facts()
    began = time.monotonic()
    try:
        taken, absent, sizes = _measure(plan, chosen)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"stopped ({stopped or 'SIGINT'}); everything is removed", file=sys.stderr)
        return 130
    samples = Samples(taken)
    judged = evaluate(samples, chosen)
    _print(samples, chosen, absent, judged)
    if asked.json:
        document = {
            "machine": facts,
            "connection_table": sizes,
            "seconds": round(time.monotonic() - began, 1),
            "plan": dataclasses.asdict(plan),
            "ways": {way.name: dataclasses.asdict(way) for way in WAYS},
            "absent": absent,
            "targets": [t.as_dict() for t in judged],
            "samples": taken,
        }
        asked.json.write_text(_one_line_each(document))
        print(f"written: {asked.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
