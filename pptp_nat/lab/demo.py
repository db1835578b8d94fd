"""``pptp-nat demo``: several clients behind one address, all with the same call ID."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from pptp_nat.errors import PptpNatError, UsageError
from pptp_nat.lab.firewall import EXTERNAL
from pptp_nat.lab.loop import PATIENCE
from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.peers import Call, Loop, Station, converse
from pptp_nat.lab.router import Daemon, daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

CALL_ID: Final = 7777  # what all clients choose
ROUNDS: Final = 4
PACKETS: Final = 25  # each way, in each round
MOST: Final = 50  # clients; the table is meant to be read
INTERRUPTED: Final = 130  # what a shell says of a command that Ctrl-C ended

_EXPLANATION: Final = """\
Each client chose call ID {call_id} by itself.  GRE has no ports: had the router left the
numbers alone, the server's packets for all {clients} calls would have looked the same, and it
could not have told for whom they are.  So it gave each call a number of its own
towards the server, in the control messages, and turns that back in every GRE packet."""


def run_demo(clients: int = 3, datapath: str = "auto", *, keep: bool = False) -> int:
    """Show in a few seconds what pptp-nat does; return the exit status.

    Needs root and iptables, and no PPTP software.  Whatever it makes is gone
    afterwards, also after Ctrl-C.

    Args:
        clients: LAN clients, 1 to 50.
        datapath: as ``pptp-nat run --datapath``.
        keep: leave it running until Enter or Ctrl-C, and say how to look around.
    """
    try:
        if why := missing(["iptables", "iptables-restore"]):
            raise UsageError(why)
        if not 1 <= clients <= MOST:
            raise UsageError(f"--clients is 1 to {MOST}, not {clients}")
        with _terminable():
            return _Demo(clients, datapath).run(keep=keep)
    except KeyboardInterrupt:
        print("\ninterrupted; everything has been removed", flush=True)
        return INTERRUPTED
    except PptpNatError as error:
        print(f"pptp-nat demo: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that it cleans up as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Demo:
    def __init__(self, clients: int, datapath: str) -> None:
        self._count = clients
        self._datapath = datapath
        self._began = time.monotonic()

    def _step(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def run(self, *, keep: bool) -> int:
        self._step(f"building a LAN of {self._count}, a router and a server")
        with Lab(inside=self._count, outside=1) as lab, contextlib.closing(Loop()) as loop:
            self._step("starting pptp-nat in the router")
            with daemon(lab, datapath=self._datapath) as running:
                good = self._show(lab, loop, running)
                if keep:
                    with contextlib.suppress(KeyboardInterrupt):
                        self._wait(lab, loop, running)
                self._step("removing everything")
        print(f"\n{good[1]}", flush=True)
        return 0 if good[0] else 1

    def _show(self, lab: Lab, loop: Loop, running: Daemon) -> tuple[bool, str]:
        stations = {
            host: Station(host.name, loop, functools.partial(lab.open_socket, host))
            for host in [*lab.inside, *lab.outside]
        }
        server = stations[lab.outside[0]]
        server.listen()
        self._step(f"{self._count} clients dial {lab.outside[0].address}")
        connections = [stations[host].dial(lab.outside[0].address) for host in lab.inside]
        _expect(loop, lambda: all(each.established for each in connections), "a connection")
        self._step(f"each places a call, all with call ID {CALL_ID}")
        calls = [each.call(CALL_ID) for each in connections]
        _expect(loop, lambda: all(each.up for each in calls), "an answer to its call")
        self._calls = [*calls, *(server.named(each.label) for each in calls)]
        for number in range(1, ROUNDS + 1):
            self._step(f"{PACKETS} GRE packets each way ({number} of {ROUNDS})")
            converse(loop, self._calls, count=PACKETS)
        print(f"\n{_picture(lab)}\n\n$ pptp-nat list\n{running.ask('list').stdout.rstrip()}\n")
        print(_numbers(running.calls()))
        print(f"\n{_EXPLANATION.format(call_id=CALL_ID, clients=self._count)}\n", flush=True)
        return _judge(self._calls)

    def _wait(self, lab: Lab, loop: Loop, running: Daemon) -> None:
        inside = f"ip netns exec {lab.router.namespace}"
        print(
            "Look around from another terminal; the calls carry a packet a second:\n"
            f"  {sys.executable} -m pptp_nat list --socket {running.socket}\n"
            f"  {inside} iptables-save\n"
            f"  {inside} conntrack -L -p gre\n"
            f"  {inside} tcpdump -ni wan 'proto gre or tcp port 1723'\n"
            f"  ip netns exec {lab.inside[0].namespace} ip address\n"
            "Enter or Ctrl-C ends it.",
            flush=True,
        )
        _until_enter(loop, self._calls)


def _expect(loop: Loop, done: Callable[[], bool], what: str) -> None:
    if not loop.run_until(done):
        raise UsageError(f"not every client got {what} within {PATIENCE:.0f} s")


def _until_enter(loop: Loop, calls: list[Call]) -> None:
    pressed: list[int] = []
    if sys.stdin.isatty():
        loop.watch(sys.stdin, pressed.append)
    while not loop.run_until(lambda: bool(pressed), 1.0):
        for call in calls:
            call.say()


def _picture(lab: Lab) -> str:
    shown = lab.inside if len(lab.inside) <= 5 else [*lab.inside[:2], lab.inside[-1]]
    middle = len(shown) // 2
    rows = []
    for number, host in enumerate(shown):
        router = ""
        if number == middle:
            router = f"-- router (NAT) {EXTERNAL} ---- server {lab.outside[0].address}"
        rows.append(f"  {host.name:<9} {host.address:<14} --+{router}")
    if len(shown) < len(lab.inside):
        rows.insert(2, f"  {'...':<24} --+")
    return "\n".join(rows)


def _numbers(calls: list[dict[str, Any]]) -> str:
    head = ("client", "its call ID", "as the server sees it", "packets to server", "to client")
    rows = [
        (
            each["inside"]["address"],
            each["inside"]["call_id"],
            f"{each['external']['address']} {each['external']['call_id']}",
            each["counters"]["to_remote"]["packets"],
            each["counters"]["to_inside"]["packets"],
        )
        for each in calls
    ]
    form = "{:<15} {:>11}   {:<22} {:>17} {:>10}"
    return "\n".join(form.format(*row) for row in [head, *rows])


def _judge(calls: list[Call]) -> tuple[bool, str]:
    """Return whether each end received exactly its own data, and a line that says so."""
    wanted = ROUNDS * PACKETS * len(calls)
    right = sum(call.right for call in calls)
    wrong = sum(len(call.wrong) for call in calls)
    strays = sum(len(station.strays) for station in {c.connection.station for c in calls})
    good = (right, wrong, strays) == (wanted, 0, 0)
    text = f"{right} of {wanted} packets arrived where they belong, {wrong + strays} elsewhere"
    if good:
        return True, f"Every client received exactly its own data: {text}."
    return False, f"NOT every client received exactly its own data: {text}."
