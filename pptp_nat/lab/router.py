"""What translates PPTP in the laboratory's router: our daemon, the kernel's helper, or nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from pptp_nat import api
from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pptp_nat.lab.network import Lab

START: Final = 20.0  # seconds until the daemon must answer; a slow machine needs two
STOP: Final = 10.0  # seconds for it to remove its rules and end
_PROGRAM: Final = (sys.executable, "-m", "pptp_nat")


class Daemon:
    """``pptp-nat run`` in the router's namespace.

    Args:
        lab: the laboratory; it ends the daemon if nobody else does.
        datapath: ``auto``, ``conntrack``, ``bpf`` or ``queue``.
        options: more of the command line.
        config: the text of a configuration file.
        metrics: where it serves them.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        datapath: str = "auto",
        options: Sequence[str] = (),
        config: str | None = None,
        metrics: str = "off",
    ) -> None:
        self.socket: Path = lab.directory / "pptp-nat.sock"
        self.state: Path = lab.directory / "state"
        self._log: Path = lab.directory / "pptp-nat.log"
        self._lab = lab
        self._command = [
            *_PROGRAM,
            "run",
            *("--socket", str(self.socket)),
            *("--state-dir", str(self.state)),
            *("--metrics", metrics),
            *("--datapath", datapath),
            *("--rules", "apply"),
        ]
        if config is not None:
            file = lab.directory / "pptp-nat.toml"
            file.write_text(config, encoding="utf-8")
            self._command += ["--config", str(file)]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Return what the daemon wrote to its standard error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def pid(self) -> int | None:
        """Return its process ID while it runs."""
        return None if self._process is None else self._process.pid

    def start(self, *, seconds: float = START) -> None:
        """Start it and wait until it answers.

        Raises:
            UsageError: it ended, or took too long; carries its last words.
        """
        self.state.mkdir(exist_ok=True)
        self._process = self._lab.popen(self._lab.router, self._command, log=self._log)
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while True:
            if self._process.poll() is not None:
                status = self._process.returncode
                raise UsageError(f"the daemon ended with status {status}: {self._last_words()}")
            with contextlib.suppress(UsageError):
                api.ask(self.socket, {"do": "status"})  # a process each time would hold it up
                return
            if time.monotonic() > deadline:
                self.stop()
                raise UsageError(f"the daemon does not answer: {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        lines = self.log.strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def take_over(self, *, seconds: float = START) -> None:
        """Start another one that takes over from it, and wait until that answers.

        Raises:
            UsageError: the other one ended, or the first one did not.
        """
        first = self._process
        assert first is not None, "it was never started"
        command = [*self._command, "--takeover"]
        self._process = self._lab.popen(self._lab.router, command, log=self._log)
        try:
            first.wait(seconds)
        except subprocess.TimeoutExpired:
            heir, self._process = self._process, first
            self._lab.end(heir)
            raise UsageError(f"nothing was taken over: {self._last_words()}") from None
        self._lab.end(first)
        self._wait(seconds)

    def stop(self) -> int:
        """End it in good order (SIGTERM) and return its exit status."""
        assert self._process is not None, "it was never started"
        status = self._lab.end(self._process, grace=STOP)
        self._process = None
        return status

    def kill(self) -> None:
        """End it without warning (SIGKILL), as a crash would."""
        assert self._process is not None, "it was never started"
        self._process.kill()
        self.stop()

    def ask(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``pptp-nat`` with *argv* against this daemon.

        Raises:
            UsageError: it failed and *check* was asked for.
        """
        command, *rest = argv
        full = [*_PROGRAM, command, "--socket", str(self.socket), *rest]
        return self._lab.run(self._lab.router, full, check=check)

    def status(self) -> dict[str, Any]:
        """Return what ``pptp-nat status -o json`` says."""
        found: dict[str, Any] = json.loads(self.ask("status", "-o", "json").stdout)
        return found

    def calls(self, *argv: str) -> list[dict[str, Any]]:
        """Return what ``pptp-nat list -o json`` knows of the calls."""
        found: list[dict[str, Any]] = json.loads(self.ask("list", "-o", "json", *argv).stdout)
        return found


@contextlib.contextmanager
def daemon(
    lab: Lab,
    *,
    datapath: str = "auto",
    options: Sequence[str] = (),
    config: str | None = None,
    metrics: str = "off",
) -> Iterator[Daemon]:
    """Run our daemon in the router while the ``with`` block lasts.

    Raises:
        UsageError: it does not start.
    """
    running = Daemon(lab, datapath=datapath, options=options, config=config, metrics=metrics)
    running.start()
    try:
        yield running
    finally:
        if running.pid is not None:
            running.stop()


def kernel_helper(lab: Lab) -> None:
    """Have the kernel's own helper follow control connections to any server.

    Raises:
        UsageError: this kernel has none.
    """
    for chain in ("PREROUTING", "OUTPUT"):
        rule = ["-p", "tcp", "--dport", "1723", "-j", "CT", "--helper", "pptp"]
        lab.run(lab.router, ["iptables", "-t", "raw", "-A", chain, *rule])
