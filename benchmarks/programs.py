"""The C peers: compiled when a run starts, driven over their standard input and output."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.shell import BenchError, cpu_seconds

SOURCES = Path(__file__).parent / "peers"
PATIENCE_SECONDS = 900  #: 50,000 calls take minutes on a busy machine
_FLAGS = ("-O2", "-Wall", "-Wextra")


def compile_peers(into: Path) -> None:
    """Build every peer into the directory *into*."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise BenchError("no C compiler found for the peers: apt-get install gcc libc6-dev")
    for source in sorted(SOURCES.glob("*.c")):
        built = subprocess.run(
            [compiler, *_FLAGS, "-o", str(into / source.stem), str(source), "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise BenchError(f"{source.name} does not compile: {built.stderr.strip()}")


class Peer:
    """One client or server process in a namespace.  It ends when its input ends."""

    def __init__(self, program: Path, namespace: str, *arguments: str) -> None:
        self.name = f"{program.name} in {namespace}"
        self._told = ""
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the run, which ends its peers in order.
            start_new_session=True,
        )
        if self._line() != "ready":
            raise BenchError(f"{self.name} did not start")

    def _line(self) -> str:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        if not ready:
            raise BenchError(f"{self.name} said nothing for {PATIENCE_SECONDS} s")
        line = self.process.stdout.readline().strip()
        if not line:
            raise BenchError(f"{self.name} ended")
        return line

    def ask(self, command: str) -> dict[str, Any]:
        """Send one command and return its answer."""
        self.tell(command)
        return self.answer()

    def tell(self, command: str) -> None:
        """Send one command; its answer is to be fetched later."""
        assert self.process.stdin
        self._told = command
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the answer that is due."""
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise BenchError(f"{self.name} refused `{self._told}`: {answer['error']}")
        return answer

    def cpu(self) -> float:
        """Return the CPU seconds of this process so far."""
        return cpu_seconds(self.process.pid)

    def pin(self, cpus: set[int]) -> None:
        """Let the process run on *cpus* only."""
        os.sched_setaffinity(self.process.pid, cpus)

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        # A peer with 10,000 connections open need not close them one by one in good order.
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
