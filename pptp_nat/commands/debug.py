"""The command that traces one call, one client or all: debug.

Control messages are told by the daemon, which reads them anyway.  GRE is looked
at right here, with the rights of whoever asks
(docs/decisions/0022-who-asks-looks-at-gre-himself.md); without them the counters are
all there is to be had.
"""

from __future__ import annotations

import contextlib
import json
import queue
import selectors
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from socket import inet_aton
from typing import TYPE_CHECKING, Any, Final, Self

from pptp_nat import api
from pptp_nat.commands.events import connection_of, lasting
from pptp_nat.control.tracing import Trace
from pptp_nat.errors import AdapterError, PptpNatError, UsageError
from pptp_nat.linux.datapath import Match
from pptp_nat.linux.gre_tap import HEADERS, GreTap
from pptp_nat.tables.rendering_events import event_text, stamped

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence

    from pptp_nat.control.tracing import Glimpse

_OF_CALLS: Final = ("new", "update", "destroy")
_OF_CONTROL: Final = ("connection", "refused", "oddity", "message")
_PPP_AT_MOST: Final = 4 + 24  #: octets: a frame's header, and what a glimpse shows of the rest
_TURN: Final = 0.1  #: seconds between two looks at what the daemon has told
_COUNTS: Final = 1.0  #: seconds between two looks at counters

_RENDERINGS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "text": event_text,
    "timestamp": stamped,
    "json": json.dumps,
}


def debug(options: Namespace) -> int:
    """Trace until the time is over or Ctrl-C."""
    which = _which(options.target)
    request: dict[str, object] = {"do": "subscribe", **which, "rate": options.rate}
    if "call" in which:
        request["connection"] = connection_of(options.socket, options.target)
    request["types"] = [*_OF_CALLS, *(_OF_CONTROL if "control" in options.mask else ())]
    tracer = _Tracer(options, which)
    with tracer, selectors.DefaultSelector() as selector:
        told = _told(options.socket, request, options.seconds)
        tracer.count()
        ends = time.monotonic() + options.seconds
        if tracer.tap is not None:
            selector.register(tracer.tap, selectors.EVENT_READ)
        while (left := ends - time.monotonic()) > 0:
            if selector.select(min(_TURN, left)):
                tracer.look()
            if not _pass_on(told, tracer, options):
                break
            tracer.count()
    return 0


def _which(target: str | int | None) -> dict[str, object]:
    """Return the filter that fits what is debugged."""
    if target is None:
        return {}
    return {"call": target} if isinstance(target, int) else {"client": target}


def _told(
    path: Path, request: Mapping[str, object], seconds: float
) -> queue.Queue[Mapping[str, Any] | PptpNatError | None]:
    """Return a queue of what the daemon tells; at the end comes None, or why."""
    told: queue.Queue[Mapping[str, Any] | PptpNatError | None] = queue.Queue(10_000)

    def listen() -> None:
        try:
            for event in lasting(path, request, seconds):
                told.put(event)
        except PptpNatError as error:
            told.put(error)
        else:
            told.put(None)

    threading.Thread(target=listen, daemon=True).start()
    return told


def _pass_on(
    told: queue.Queue[Mapping[str, Any] | PptpNatError | None], tracer: _Tracer, options: Namespace
) -> bool:
    """Show what the daemon has told meanwhile; whether there may be more."""
    with contextlib.suppress(queue.Empty):
        while True:
            event = told.get_nowait()
            if isinstance(event, PptpNatError):
                raise event
            if event is None:
                return False
            if event["type"] in _OF_CALLS:
                tracer.stale = True
            if "control" in options.mask:
                tracer.show(event)
    return True


class _Tracer:
    """Shows GRE of the wanted calls, or their counters where GRE cannot be looked at."""

    def __init__(self, options: Namespace, which: Mapping[str, object]) -> None:
        self.stale = True  #: the legs are not what they were
        self.tap: GreTap | None = None
        self._path: Path = options.socket
        self._which = which
        self._render = _RENDERINGS[options.output]
        self._trace = Trace(options.mask, options.rate, *_glimpse(options.mask))
        self._counts: dict[int, Mapping[str, Any]] | None = None
        self._due = 0.0
        self._lost = 0
        if not set(options.mask) - {"control"}:
            return
        try:
            _same_network(self._path)
            self.tap = GreTap(HEADERS + (_PPP_AT_MOST if "data" in options.mask else 0))
        except AdapterError as error:
            sys.stderr.write(
                f"pptp-nat: GRE cannot be looked at ({error}); counters are shown instead\n"
            )
            self._counts = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tap is not None:
            self.tap.close()

    def show(self, event: Mapping[str, Any]) -> None:
        """Write one line, at once."""
        sys.stdout.write(f"{self._render(event)}\n")
        sys.stdout.flush()

    def look(self) -> None:
        """Show the packets that have come."""
        assert self.tap is not None
        for octets, interface in self.tap.read():
            for record in self._trace.packet(octets, interface, time.time()):
                self.show(record)
        if self.tap.lost > self._lost:
            sys.stderr.write(f"pptp-nat: {self.tap.lost - self._lost} packets came too fast\n")
            self._lost = self.tap.lost

    def count(self) -> None:
        """Do what is due: follow other legs, or show what the counters say."""
        now = time.monotonic()
        if self.tap is not None and self.stale and now >= self._due:
            self.stale, self._due = False, now + _TURN
            with contextlib.suppress(UsageError):  # the daemon is gone for a while
                self._trace.follow(api.stream(self._path, {"do": "legs", **self._which}))
            self.tap.watch([
                Match(inet_aton(source), inet_aton(destination), key)
                for source, destination, key in self._trace.arriving
            ])  # fmt: skip
        elif self._counts is not None and now >= self._due:
            self._due = now + _COUNTS
            with contextlib.suppress(UsageError):
                self._compare()

    def _compare(self) -> None:
        """Show the counters of calls that have carried something since the last look."""
        assert self._counts is not None
        before, self._counts = self._counts, {}
        for call in api.stream(self._path, {"do": "list", **self._which}):
            counters = self._counts[call["id"]] = call["counters"]
            was = before.get(call["id"])
            if was is None or was == counters:
                continue
            grown = {
                way: {unit: counters[way][unit] - was[way][unit] for unit in ("packets", "bytes")}
                for way in ("to_remote", "to_inside")
            }
            self.show({
                "type": "counts", "time": time.time(), "call": call["id"], **counters,
                "grown": grown,
            })  # fmt: skip


def _glimpse(masks: Sequence[str]) -> tuple[Glimpse, ...]:
    """Return what looks into PPP frames; on OpenWrt it is in a package of its own."""
    if "data" not in masks:
        return ()
    return (import_module("pptp_nat.analysis.ppp_glimpse").glimpse,)


def _same_network(path: Path) -> None:
    """Make sure that GRE that arrives at the daemon's router arrives here.

    Raises:
        UsageError: the daemon is in another network namespace.
    """
    pid = api.ask(path, {"do": "status"})["pid"]
    with contextlib.suppress(OSError):  # not root, or another process namespace: nobody knows
        theirs = Path(f"/proc/{pid}/ns/net").stat().st_ino
        if theirs != Path("/proc/self/ns/net").stat().st_ino:
            raise UsageError(
                "the daemon is in another network namespace, where its GRE is: "
                f"run this with `nsenter -n -t {pid}`, or with --mask control alone"
            )
