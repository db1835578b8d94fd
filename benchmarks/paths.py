"""The ways through a router that are compared, each a `Lab`: namespaces, rules, peers, daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.programs import Peer
from benchmarks.shell import BenchError, cpu_seconds, family, resident_kb, sh
from benchmarks.topology import FIRST_CLIENTS, SERVERS, Topology

CHECKOUT = Path(__file__).parent.parent
READY_SECONDS = 300
BANKS = 2  #: processes a side; 20,000 calls are 10,000 descriptors in each
ALONE = 10_000  #: calls of a bank with a connection each; a process may have 20,000 descriptors
TOGETHER = 10  #: calls on each connection of the others
FIRST_FREE_SLOT = 51_000  #: of a bank; the slots below hold calls that stay up
FREE_SLOTS = 14_000

# What a router has anyway.
ESTABLISHED = ("iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",)
MASQUERADE = "iptables -t nat -A POSTROUTING -o wan -j MASQUERADE"
# Registers the NAT hooks and matches nothing.
MASQUERADE_NOBODY = "iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -o wan -j MASQUERADE"
HELPER = "iptables -t raw -A PREROUTING -i lan -p tcp --dport 1723 -j CT --helper pptp"


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the router: its name, its rules, and the daemon's data path if any.

    The *short* title is for plots.  It takes part in *measures*, or in all if none are named.
    """

    name: str
    short: str
    title: str
    rules: tuple[str, ...] = ()
    datapath: str | None = None
    router: bool = True
    metrics: str = "off"
    options: tuple[str, ...] = ()  #: more words for ``pptp-nat run``
    settings: str = ""  #: more lines for its configuration
    most_calls: int = 100_000
    measures: tuple[str, ...] = ()
    compiled: str = ""  #: what of the package is in C, as PPTP_NAT_COMPILE for setup.py

    @property
    def is_default(self) -> bool:
        """Whether the daemon is as it is by itself, but for its data path."""
        return bool(self.datapath) and not (self.options or self.settings or self.compiled)


WIRE = Way("wire", "no router", "no router: generator and receiver only", router=False)
PLAIN = Way("plain", "plain routing", "plain routing")
TRACKED = Way(
    "tracked", "routing, conntrack", "plain routing, conntrack and NAT hooks",
    (*ESTABLISHED, MASQUERADE_NOBODY),
)  # fmt: skip
KERNEL = Way(
    "helper", "kernel helper", "kernel helper (nf_conntrack_pptp)",
    (*ESTABLISHED, MASQUERADE, HELPER),
    most_calls=BANKS * ALONE,  # it takes one call a connection
)  # fmt: skip
_NATTED = (*ESTABLISHED, MASQUERADE)
CONNTRACK = Way("conntrack", "pptp-nat conntrack", "pptp-nat, conntrack", _NATTED, "conntrack")
WORKERS = Way(
    "workers", "pptp-nat, 2 workers", "pptp-nat, conntrack, 2 workers", _NATTED, "conntrack",
    options=("--workers", "2"), measures=("setup",),
)  # fmt: skip
BPF = Way("bpf", "pptp-nat bpf", "pptp-nat, bpf", _NATTED, "bpf")
REDIRECT = Way(
    "redirect", "pptp-nat bpf, redirect", "pptp-nat, bpf past the stack", _NATTED, "bpf",
    settings='[gre]\nforwarding = "redirect"\n', measures=("gre",),
)  # fmt: skip
XDP = Way(
    "xdp", "pptp-nat bpf, XDP", "pptp-nat, bpf before the stack", _NATTED, "bpf",
    settings='[gre]\nforwarding = "xdp"\n', measures=("gre",),
)  # fmt: skip
QUEUE = Way("queue", "pptp-nat queue", "pptp-nat, queue", _NATTED, "queue")
QUEUE_C = Way(
    "queue-c", "pptp-nat queue in C", "pptp-nat, queue, rewriting in C", _NATTED, "queue",
    compiled="gre", measures=("gre",),
)  # fmt: skip
COMPILED = Way(
    "compiled", "pptp-nat compiled", "pptp-nat, conntrack, compiled", _NATTED, "conntrack",
    compiled="1", measures=("setup", "latency"),
)  # fmt: skip
COMPILED_WORKERS = Way(
    "compiled-2", "compiled, 2 workers", "pptp-nat, conntrack, compiled, 2 workers", _NATTED,
    "conntrack", options=("--workers", "2"), compiled="1", measures=("setup",),
)  # fmt: skip
WAYS = (
    WIRE, PLAIN, TRACKED, KERNEL, CONNTRACK, WORKERS, BPF, REDIRECT, XDP, QUEUE, QUEUE_C, COMPILED,
    COMPILED_WORKERS,
)  # fmt: skip
#: Those of pptp-nat, one a data path.
OURS: Final = tuple(way for way in WAYS if way.datapath)
#: Whose GRE passes the daemon.
QUEUED: Final = tuple(way.name for way in OURS if way.datapath == "queue")


# One client sends echoes without a pause, and all of them dial as fast as they can: the rules
# that pace them stay, and count, but drop nothing.  One host sends all GRE, as fast as it can.
UNPACED = """
[limits]
openers = 100000
segments_per_client = 100000
gre_per_host = 0
"""

_INSIDE = ("ip", "netns", "exec")
_DYING_WITH_US = ("setpriv", "--pdeathsig", "TERM")


class Daemon:
    """pptp-nat in a router's namespace."""

    def __init__(self, namespace: str, way: Way, directory: Path) -> None:
        assert way.datapath
        directory.mkdir()
        build = directory.parent
        self._package = built_package(way.compiled, build) if way.compiled else CHECKOUT
        (directory / "state").mkdir()
        self.socket = directory / "socket"
        self._log = directory / "log"
        config = directory / "config.toml"
        config.write_text(UNPACED + way.settings)
        words = ["run", "--config", str(config), "--socket", str(self.socket)]
        words += ["--state-dir", str(directory / "state"), "--metrics", way.metrics]
        words += ["--datapath", way.datapath, "--rules", "apply", *way.options]
        self._command = [*_INSIDE, namespace, *_DYING_WITH_US]
        self._command += [sys.executable, "-m", "pptp_nat", *words]
        self._start()

    def _start(self) -> None:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._package,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                lines = self._log.read_text().strip().splitlines()
                raise BenchError(f"pptp-nat ended at its start: {lines[-1] if lines else 'silent'}")
            with contextlib.suppress(OSError):
                if self.status():
                    return
            time.sleep(0.005)
        raise BenchError(f"pptp-nat was not ready within {READY_SECONDS} s")

    def status(self) -> dict[str, Any]:
        """Return what the daemon says of itself.

        Raises:
            OSError: nobody listens, or not for long.
        """
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(READY_SECONDS)
            asking.connect(str(self.socket))
            asking.sendall(b'{"v":1,"id":1,"do":"status"}\n')
            with asking.makefile() as answer:
                found: dict[str, Any] = json.loads(answer.readline() or "{}")
                return found

    def calls_up(self) -> int:
        """Return how many calls are up, as the daemon says."""
        states: dict[str, int] = self.status()["calls"]
        return states.get("up", 0)

    def crash_and_return(self) -> tuple[float, float]:
        """Kill the daemon and start another; return its seconds until it answers, and CPU's."""
        self.process.kill()
        self.process.wait()
        began = time.monotonic()
        self._start()
        return time.monotonic() - began, self.cpu()

    @property
    def pid(self) -> int:
        """Return its process ID."""
        return self.process.pid

    def cpu(self) -> float:
        """Return its CPU seconds so far."""
        if self.process.poll() is not None:
            lines = self._log.read_text().strip().splitlines()
            raise BenchError(f"pptp-nat ended: {lines[-1] if lines else 'silent'}")
        return sum(map(cpu_seconds, family(self.pid)))

    def memory_kb(self) -> int:
        """Return its resident memory in units of 1024 octets, its workers' included."""
        return sum(map(resident_kb, family(self.pid)))

    def settle(self, *, at_most: float = 20.0) -> None:
        """Wait until it has nothing more to do."""
        deadline = time.monotonic() + at_most
        before = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            now = self.cpu()
            if now - before < 0.005:
                return
            before = now

    def close(self) -> None:
        """Stop it in good order, or else at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Bank:
    """A client process, a server process and the table of the calls between them."""

    def __init__(self, topology: Topology, number: int, build: Path, stack: ExitStack) -> None:
        self.table = build / f"{topology.clients.namespace}-{number}.calls"
        address = SERVERS[number]
        here = str(self.table)
        self.server = Peer(build / "server", topology.servers.namespace, here, address)
        stack.callback(self.server.close)
        first = FIRST_CLIENTS[number]
        self.client = Peer(build / "client", topology.clients.namespace, here, first, address)
        stack.callback(self.client.close)
        self.up = 0  #: slots 0..up-1 hold calls

    def grow(self, calls: int, inflight: int) -> None:
        """Have *calls* calls up: the first ones on a connection each, then several on one."""
        for beyond, together in ((min(calls, ALONE), 1), (calls, TOGETHER)):
            missing = beyond - self.up
            if missing <= 0:
                continue
            dialed = self.client.ask(f"dial {self.up} {missing} {inflight} {together}")
            self.up = beyond
            if dialed["wrong"] or dialed["failed"] > missing // 1000:
                raise BenchError(
                    f"{self.client.name}: of {missing} set-ups {dialed['failed']} failed"
                    f" {dialed['stuck']}, {dialed['wrong']} had wrong numbers"
                )


class Lab:
    """A way that is built and running, with peers on both sides."""

    def __init__(self, way: Way, build: Path, *, suffix: str = "") -> None:
        self.way = way
        self._stack = ExitStack()
        self.daemon: Daemon | None = None
        try:
            self.topology = Topology(way.name + suffix, with_router=way.router)
            self._stack.callback(self.topology.close)
            for rule in way.rules:
                sh(*rule.split(), where=self.topology.router)
            if way.datapath:
                assert self.topology.router
                self.daemon = Daemon(self.topology.router, way, build / self.topology.router)
                self._stack.callback(self.daemon.close)
            self.banks = [Bank(self.topology, n, build, self._stack) for n in range(BANKS)]
        except BaseException:
            self.close()
            raise

    def grow(self, calls: int, inflight: int = 32) -> None:
        """Have *calls* calls up, shared out evenly among the banks.

        Raises:
            BenchError: this way cannot have so many, or set-ups failed.
        """
        if calls > self.way.most_calls:
            raise BenchError(f"{self.way.title}: no more than {self.way.most_calls:,} calls")
        for number, bank in enumerate(self.banks):
            bank.grow((calls + BANKS - 1 - number) // BANKS, inflight)
        self.settle()

    def settle(self) -> None:
        """Let the daemon finish what it has to do."""
        if self.daemon:
            self.daemon.settle()

    def close(self) -> None:
        """Stop the processes and remove the namespaces."""
        self._stack.close()


def built_package(compiled: str, build: Path) -> Path:
    """Build the package with *compiled* of it in C below *build*, once; return where it is.

    Raises:
        BenchError: it cannot be built here.
    """
    package = build / f"package-{compiled}"
    if package.exists():
        return package
    made = build / f"making-{compiled}"
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(made)]
    done = subprocess.run(
        [*command, "--build-lib", str(made / "package")], cwd=CHECKOUT, capture_output=True,
        text=True, env={**os.environ, "PPTP_NAT_COMPILE": compiled}, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BenchError(f"compiling the package: {said[-1]}")
    return (made / "package").rename(package)


def reason_not_here(way: Way) -> str | None:
    """Say why this machine cannot run *way*, or None."""
    if way.datapath and not (CHECKOUT / "pptp_nat" / "daemon.py").exists():
        return "pptp_nat/daemon.py is not in this checkout"
    return None


@contextlib.contextmanager
def labs(
    ways: Sequence[Way], build: Path, absent: dict[str, str], *, suffix: str = ""
) -> Iterator[list[Lab]]:
    """Build a lab for each way; one that cannot be built is noted in *absent* and left out."""
    with ExitStack() as stack:
        built = []
        for way in ways:
            reason = absent.get(way.name) or reason_not_here(way)
            if not reason:
                try:
                    lab = Lab(way, build, suffix=suffix)
                except BenchError as error:
                    reason = str(error)
                else:
                    stack.callback(lab.close)
                    built.append(lab)
            if reason:
                absent[way.name] = reason
        yield built
