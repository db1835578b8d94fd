"""The laboratory's network: namespaces, cables, addresses and firewall rules.

    inside[0] 192.168.77.10 --+                          +-- outside[0] 198.18.7.2
    inside[1] 192.168.77.11 --+-- lan  ROUTER  wan ------+-- outside[1] 198.18.7.3
    inside[2] 192.168.77.12 --+   .1   (NAT)   198.18.7.1

Every cable is made inside the router's namespace, so nothing ever appears in
the machine's own one.  198.18.0.0/15 is set aside for tests (RFC 2544).
Sockets of a namespace can be opened right in this process (`Lab.open_socket`): a
thread may step into a namespace, and a socket stays where it was made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from pyroute2 import IPRoute

from pptp_nat.errors import AdapterError, UsageError
from pptp_nat.lab import namespaces
from pptp_nat.lab.firewall import EXTERNAL, LAN_ROUTER, router_rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

GRACE: Final = 2.0  # seconds between SIGTERM and SIGKILL for what runs in the laboratory
SETTLE: Final = 10.0  # seconds; usually a few milliseconds
MOST: Final = 200  # hosts a side; the networks are /24

_PACKAGES: Final = {  # Debian's names, where they are not the command's
    "iptables-restore": "iptables",
    "pptp": "pptp-linux",
    "unshare": "util-linux",
}
_INDEX: Final = {"lan": 1000, "wan": 2000}  # interface numbers of the cables' ends in the router
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Host:
    """One machine of the laboratory: a network namespace with one address that matters."""

    name: str  #: ``inside-0``, ``outside-1`` or ``router``
    namespace: str  #: what ``ip netns exec`` calls it
    address: str  #: dotted


def missing(commands: Sequence[str]) -> str | None:
    """Return one line that says why the laboratory cannot be built here, or None."""
    if os.geteuid() != 0:
        return "the laboratory needs root, to make network namespaces: run it with sudo"
    path = _environment()["PATH"]
    absent = [command for command in commands if shutil.which(command, path=path) is None]
    if absent:
        packages = sorted({_PACKAGES.get(command, command) for command in absent})
        return f"not found: {', '.join(absent)}: apt install {' '.join(packages)}"
    return None


class Lab:
    """The namespaces while the ``with`` block lasts; afterwards there is nothing left.

    Args:
        inside: hosts on the LAN, at most 200.
        outside: hosts on the WAN, at most 200.
        nat: masquerade what leaves for the WAN; otherwise plain routing.
        firewall: ``"established"``: FORWARD drops all but new TCP and UDP from the
            LAN, the published port, and what conntrack calls ESTABLISHED or RELATED.
        publish: the number of the inside host to whom port 1723 of the external
            address is forwarded.
        hairpin: let inside hosts use the published port too; they are then seen as
            the router's LAN address (``"internal"``) or the external address.

    Raises:
        UsageError: not root, a command is missing, too many hosts.
        AdapterError: the kernel refused a namespace, a cable or a rule.
    """

    def __init__(
        self,
        *,
        inside: int = 3,
        outside: int = 1,
        nat: bool = True,
        firewall: Literal["established"] | None = None,
        publish: int | None = None,
        hairpin: Literal["internal", "external"] | None = None,
    ) -> None:
        if not (0 < inside <= MOST and 0 < outside <= MOST):
            raise UsageError(f"a laboratory has 1 to {MOST} hosts a side, not {inside}/{outside}")
        self.prefix = f"pptpnat-{os.getpid()}-{next(_numbers)}"
        self.router = self._host("router", EXTERNAL)
        self.inside = [self._host(f"inside-{n}", f"192.168.77.{10 + n}") for n in range(inside)]
        self.outside = [self._host(f"outside-{n}", f"198.18.7.{2 + n}") for n in range(outside)]
        self.directory = Path()  #: for logs, sockets and pid files; gone at the end
        self._rules = router_rules(
            nat=nat,
            firewall=firewall,
            published=None if publish is None else self.inside[publish].address,
            hairpin=hairpin,
        )
        self._nat = nat
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []

    def _host(self, name: str, address: str) -> Host:
        return Host(name, f"{self.prefix}-{name}", address)

    @property
    def hosts(self) -> list[Host]:
        """All hosts, the router first."""
        return [self.router, *self.inside, *self.outside]

    def __enter__(self) -> Self:
        if why := missing(["iptables-restore"]):
            raise UsageError(why)
        try:
            # Named before it is made: an interruption in between would leave it to nobody.
            self.directory = Path(tempfile.gettempdir(), f"{self.prefix}-{secrets.token_hex(8)}")
            self.directory.mkdir(mode=0o700)
            self._build()
        except OSError as error:
            self.close()
            raise AdapterError("building the laboratory", error.errno or 0) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- building ------------------------------------------------------------

    def _build(self) -> None:
        for host in self.hosts:
            namespaces.create(host.namespace)
        self._write(
            self.router,
            {
                "net/ipv4/ip_forward": "1",
                "net/ipv4/conf/all/rp_filter": "0",
                "net/ipv6/conf/all/disable_ipv6": "1",
                "net/ipv6/conf/default/disable_ipv6": "1",
            },
        )
        with self._netlink(self.router) as link:
            _up(link, "lo")
            self._side(link, "lan", self.inside)
            self._side(link, "wan", self.outside)
            for host in self.inside:
                self._configure(host, gateway=LAN_ROUTER)
            for host in self.outside:
                self._configure(host, gateway=None if self._nat else EXTERNAL)
            # A bridge that goes up before its ports would be without carrier for a second.
            _settle(link, {"lo", "lan", "wan"}, attribute="IFLA_OPERSTATE", wanted="UP")
            _address(link, "lan", LAN_ROUTER)
            _address(link, "wan", EXTERNAL)
            _settle(link, set(), attribute="IFLA_CARRIER", wanted=1)
        self.run(self.router, ["iptables-restore"], text=self._rules)

    def _side(self, link: IPRoute, name: str, hosts: list[Host]) -> None:
        """Cable *hosts* to the router: one directly, several over a bridge called *name*."""
        if len(hosts) == 1:
            _cable(link, name, hosts[0], index=_INDEX[name])
            _up(link, name)
            return
        link.link("add", ifname=name, kind="bridge")
        bridge = link.link_lookup(ifname=name)[0]
        for number, host in enumerate(hosts):
            port = _INDEX[name] + number
            _cable(link, f"{name}{number}", host, index=port)
            link.link("set", index=port, master=bridge, state="up")

    def _configure(self, host: Host, *, gateway: str | None) -> None:
        self._write(
            host,
            {
                "net/ipv6/conf/all/disable_ipv6": "1",
                "net/ipv6/conf/default/disable_ipv6": "1",
            },
        )
        with self._netlink(host) as link:
            _up(link, "lo")
            _address(link, "eth0", host.address)
            if gateway is not None:
                link.route("add", dst="default", gateway=gateway)

    def _write(self, host: Host, values: Mapping[str, str]) -> None:
        with self.entered(host):
            for name, value in values.items():
                path = Path("/proc/sys", name)
                if path.exists():  # a kernel without IPv6 has no switch to turn it off
                    path.write_text(value, encoding="ascii")

    @contextlib.contextmanager
    def _netlink(self, host: Host) -> Iterator[IPRoute]:
        with self.entered(host):
            link = IPRoute()
        with link:
            yield link

    # -- using it ------------------------------------------------------------

    @contextlib.contextmanager
    def entered(self, host: Host) -> Iterator[None]:
        """Let this thread, and what it starts, live in the namespace of *host* for a while."""
        with namespaces.entered(host.namespace):
            yield

    def open_socket(self, host: Host, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
        """Open an IPv4 socket in the namespace of *host*; closed with the laboratory."""
        with self.entered(host):
            opened = socket.socket(socket.AF_INET, kind, protocol)
        self._sockets.append(opened)
        return opened

    def sysctl(self, host: Host, name: str, value: str) -> None:
        """Set *name* (``net.ipv4.ip_forward``) in the namespace of *host*."""
        self._write(host, {name.replace(".", "/"): value})

    def run(
        self, host: Host, argv: Sequence[str], *, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* to its end in the namespace of *host*, *text* on its standard input.

        Raises:
            UsageError: it failed and *check* was asked for; carries its first words.
        """
        with self.entered(host):
            done = subprocess.run(
                argv, input=text, capture_output=True, text=True, check=False, env=_environment()
            )
        if check and done.returncode != 0:
            words = (done.stderr or done.stdout).strip().splitlines()[:1] or ["no message"]
            raise UsageError(f"{' '.join(argv)} in {host.name}: {words[0]}")
        return done

    def popen(
        self,
        host: Host,
        argv: Sequence[str],
        *,
        mounts: Mapping[str, Path] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        log: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start *argv* in the namespace of *host*; ended with the laboratory.

        With *mounts* it also has a mount namespace of its own, in which each
        path (a key) shows the file or directory given for it.  Both must exist.
        Its standard error goes to *log*, a file that is appended to.
        """
        command = list(argv)
        if mounts:
            script = "".join(
                f"mount --bind '{there}' '{path}' && " for path, there in mounts.items()
            )
            command = ["unshare", "--mount", "sh", "-c", f'{script}exec "$@"', "sh", *command]
        with contextlib.ExitStack() as stack:
            stderr = subprocess.DEVNULL
            if log is not None:
                stderr = stack.enter_context(log.open("ab")).fileno()
            stack.enter_context(self.entered(host))
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C at the terminal is for us; we end them in order
                env=_environment(),
            )
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], *, grace: float = GRACE) -> int:
        """Ask *process* to end, make it end after *grace* seconds, and return its status."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
        status = process.wait()
        if process in self._processes:
            self._processes.remove(process)
        return status

    def pids(self, *hosts: Host) -> list[int]:
        """Return the processes that live in the namespaces of *hosts* (all, if none is named)."""
        return namespaces.pids([host.namespace for host in hosts or self.hosts])

    # -- the end -------------------------------------------------------------

    def close(self) -> None:
        """End everything that was started here and remove it.  Safe to call twice."""
        blocked = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}
        )  # an impatient second Ctrl-C must not leave half a laboratory
        try:
            self._end_processes()
            for opened in self._sockets:
                opened.close()  # an open socket would keep its namespace alive
            self._sockets.clear()
            for host in self.hosts:
                namespaces.remove(host.namespace)
            if self.directory != Path():
                shutil.rmtree(self.directory, ignore_errors=True)
                self.directory = Path()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _end_processes(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + GRACE
        # Not only ours: a PPTP client leaves its call manager, a server its children.
        while (left := self.pids()) and time.monotonic() < deadline:
            for process in self._processes:
                process.poll()
            for pid in left:
                _signal(pid, signal.SIGTERM)
            time.sleep(0.02)
        for pid in self.pids():
            _signal(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes.clear()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _environment() -> dict[str, str]:
    """Return our environment, but with this very package and all commands on its paths."""
    home = str(Path(__file__).parents[2])
    path = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHON": sys.executable,
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
    }


def _up(link: IPRoute, name: str) -> None:
    link.link("set", index=link.link_lookup(ifname=name)[0], state="up")


def _address(link: IPRoute, name: str, address: str) -> None:
    link.addr("add", index=link.link_lookup(ifname=name)[0], address=address, prefixlen=24)
    _up(link, name)


def _settle(link: IPRoute, besides: set[str], *, attribute: str, wanted: object) -> None:
    """Wait until every link but those named carries; the kernel finds out a little later."""
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        links = {each.get_attr("IFLA_IFNAME"): each for each in link.get_links()}
        if all(
            each.get_attr(attribute) == wanted
            for name, each in links.items()
            if name not in besides
        ):
            return
        time.sleep(0.005)
    raise UsageError("the laboratory's cables stay without carrier: is veth in this kernel?")


def _cable(link: IPRoute, name: str, host: Host, *, index: int) -> None:
    """Make a cable to *host*.

    Its two ends must not have the same interface number: the kernel takes such
    a one for no cable at all and leaves it without carrier for up to a second
    (linkwatch_urgent_event in net/core/link_watch.c).
    """
    peer = {"ifname": "eth0", "net_ns_fd": host.namespace}
    link.link("add", index=index, ifname=name, kind="veth", peer=peer)
