"""A Prometheus server beside the laboratory's router, for tests and pictures."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import sys
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

    from pptp_nat.lab.network import Lab

PORT: Final = 9090
START: Final = 60.0  # seconds; a busy machine needs some
_CONFIG: Final = """global: {{scrape_interval: {interval}, evaluation_interval: {interval}}}
scrape_configs:
  - job_name: pptp-nat
    static_configs: [{{targets: ["127.0.0.1:9723"]}}]
{more}
"""


class Series(NamedTuple):
    """One row of a query's result: labels, and (Unix seconds, value) of each point."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


def tool(name: str) -> str | None:
    """Return the path of *name* (``promtool``, ``prometheus``), from beside Python if it is there.

    deploy/make-venv puts them there out of Debian's package, since the package
    itself would start a server on this machine.
    """
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


class Prometheus:
    """A server in the router's namespace that scrapes the daemon there.

    Args:
        lab: the laboratory.
        interval: between two scrapes, as Prometheus writes times.
        more: further lines of YAML for the scrape's configuration.

    Raises:
        UsageError: there is no such program, or it does not start.
    """

    def __init__(self, lab: Lab, *, interval: str = "1s", more: Sequence[str] = ()) -> None:
        program = tool("prometheus")
        if program is None:
            raise UsageError("not found: prometheus: run make venv")
        self._lab = lab
        directory = lab.directory / "prometheus"
        directory.mkdir()
        config = directory / "prometheus.yml"
        lines = "\n".join(f"    {line}" for line in more)
        config.write_text(_CONFIG.format(interval=interval, more=lines), encoding="ascii")
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] = lab.popen(
            lab.router,
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{PORT}",
            ],
            log=self._log,
        )
        deadline = time.monotonic() + START
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text(errors="replace").splitlines()[-1:]
                raise UsageError(f"prometheus does not start: {' '.join(last)}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return self._get("/-/ready", {})[0] == http.client.OK
        except OSError:
            return False

    def query(self, expression: str) -> list[Series]:
        """Return what *expression* is now."""
        rows = self._ask("query", {"query": expression})
        return [Series(row["metric"], (_point(row["value"]),)) for row in rows]

    def value(self, expression: str) -> float | None:
        """Return the one number that *expression* is now; None: there is none yet."""
        found = self.query(expression)
        assert len(found) <= 1, f"{expression} has several values"
        return found[0].points[0][1] if found else None

    def query_range(self, expression: str, seconds: float, step: float = 1.0) -> list[Series]:
        """Return what *expression* was in the last *seconds*."""
        now = time.time()
        wanted = {"query": expression, "start": now - seconds, "end": now, "step": step}
        rows = self._ask("query_range", wanted)
        return [Series(row["metric"], tuple(map(_point, row["values"]))) for row in rows]

    def _ask(self, what: str, wanted: Mapping[str, object]) -> list[dict[str, Any]]:
        status, octets = self._get(f"/api/v1/{what}", wanted)
        answer = json.loads(octets)
        if status != http.client.OK:
            raise UsageError(f"prometheus: {answer.get('error', status)}")
        rows: list[dict[str, Any]] = answer["data"]["result"]
        return rows

    def _get(self, path: str, wanted: Mapping[str, object]) -> tuple[int, bytes]:
        with self._lab.entered(self._lab.router):
            opened = socket.create_connection(("127.0.0.1", PORT), timeout=20)
        connection = http.client.HTTPConnection("127.0.0.1", PORT)
        connection.sock = opened
        try:
            connection.request("GET", f"{path}?{urllib.parse.urlencode(wanted)}")
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _point(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
