"""What the daemon answers on its socket: status, list, legs, connections, clear."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from pptp_nat import __version__
from pptp_nat.api import Request
from pptp_nat.control.gaps import gaps_of, with_gaps
from pptp_nat.control.server import Steps
from pptp_nat.core.calls import Call, Connection
from pptp_nat.errors import UsageError
from pptp_nat.linux.nfqueue import QUEUES, queue_counters
from pptp_nat.linux.ruleset import paced_drops
from pptp_nat.router.carried import Counts
from pptp_nat.router.carrier import FEW_CALLS
from pptp_nat.router.programs import where_early
from pptp_nat.state import takeover
from pptp_nat.tables import packed_connections, views
from pptp_nat.tables.packed import COLUMNS
from pptp_nat.tables.packing import Packer, pack_connection
from pptp_nat.tables.table import (
    ApiRow,
    Filter,
    QueueRow,
    StatusRow,
    call_item,
    connection_item,
    status_item,
)  # fmt: skip

if TYPE_CHECKING:
    from pptp_nat.daemon import Daemon

Items = Iterator[Mapping[str, object] | bytes | None]
Answer = Mapping[str, object] | Steps | Iterable[Mapping[str, object] | bytes | None]
_T = TypeVar("_T")

# Calls in one piece of work, each about a millisecond.
_CHOSEN: Final = 512  #: looked at
_ALL: Final = Filter()
_SHOWN: Final = 64  #: whose counts are asked for one by one


@dataclass(slots=True)
class _Counted:
    """When counts were read, monotonic seconds: no newer than they are."""

    at: float = 0.0


class Answers:
    """Answers requests about one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._verbs: Final[dict[str, Callable[[Mapping[str, object]], Answer]]] = {
            "status": self._status,
            "list": self._list,
            "legs": self._legs,
            "connections": self._connections,
            "clear": self._clear,
        }

    def __call__(self, request: Request) -> Answer:
        """Answer *request*.

        Raises:
            UsageError: there is no such thing to do, or not with these arguments.
        """
        if request.do == "takeover":
            return self._takeover(request)
        verb = self._verbs.get(request.do)
        if verb is None:
            raise UsageError(f"{request.do}: no such request; there are {', '.join(self._verbs)}")
        return verb(request.arguments)

    def _takeover(self, request: Request) -> Answer:
        """Hand all over; that this returns nothing means that it did not come to it."""
        door, *terms = (request.arguments.get(name) for name in ("door", *takeover.Terms._fields))
        if not isinstance(door, str) or set(request.arguments) - {"door", *takeover.Terms._fields}:
            raise UsageError("takeover: asked for by `pptp-nat run --takeover` only")
        takeover.hand_over(self._daemon, door, takeover.Terms._make(terms), request.uid)
        raise AssertionError

    def _status(self, arguments: Mapping[str, object]) -> Answer:
        _none(arguments)
        return Steps(self._status_in_steps())

    def _status_in_steps(self) -> Iterator[Mapping[str, object] | None]:
        daemon = self._daemon
        book, server = daemon.translator.book, daemon.server
        opaque, states = 0, Counter[str]()
        for some in _slices(list(book.connections.values()), _CHOSEN):
            opaque += sum(each.is_opaque for each in some)
            states.update(each.state.value for each in some)
            yield None
        row = StatusRow(
            version=__version__,
            pid=os.getpid(),
            started=daemon.started,
            datapath=daemon.carrier.path.name,
            datapath_reason=daemon.datapath_reason + where_early(daemon.carrier.path),
            queues=tuple(self._queues()),
            calls=views.calls_by_state(book),
            connections=dict(states),
            opaque=opaque,
            api=ApiRow(
                len(server.clients), len(server.subscribers), server.refused, server.dropped,
                server.garbled,
            ),
            paced=paced_drops(daemon.rule_settings),
        )  # fmt: skip
        yield status_item(row)

    def _queues(self) -> Iterator[QueueRow]:
        daemon = self._daemon
        for queue, purpose in ((daemon.control_queue, "control"), (daemon.gre_queue, "gre")):
            if queue is None:
                continue
            yield queue_row(queue.number, purpose)

    def _list(self, arguments: Mapping[str, object]) -> Answer:
        packed, fresh = (_said(arguments, name) for name in ("packed", "fresh"))
        wanted = Filter.of({n: v for n, v in arguments.items() if n not in {"packed", "fresh"}})
        return self._packed(wanted, fresh=fresh) if packed else self._calls(wanted, fresh=fresh)

    def _legs(self, arguments: Mapping[str, object]) -> Answer:
        return self._chosen_legs(Filter.of(arguments))

    def _chosen_legs(self, wanted: Filter) -> Iterator[Mapping[str, object] | None]:
        """Yield the legs of the calls that are *wanted*; None between two pieces of work."""
        book = self._daemon.translator.book
        for some in _slices(list(book.calls), _CHOSEN):
            for number in some:
                call = book.calls.get(number)
                if call is not None and views.fits(call, wanted):
                    yield from views.legs_json(call)
            yield None

    def _calls(self, wanted: Filter, *, fresh: bool) -> Items:
        """Yield the calls that are *wanted*; None between two pieces of work."""
        path = self._daemon.carrier.path
        for some in self._counted(wanted, _Counted(), fresh=fresh):
            yield from (
                call_item(with_gaps(
                    views.call_row(call, counts, wall=self._daemon.wall), call, path
                ))
                for call, counts in some
            )
            if not some:
                yield None

    def _packed(self, wanted: Filter, *, fresh: bool) -> Items:
        """Yield the calls that are *wanted* as `pptp_nat.tables.packed` has them."""
        counted, path = _Counted(), self._daemon.carrier.path
        packer: Packer | None = None
        for some in self._counted(wanted, counted, fresh=fresh):
            if some and packer is None:
                wall = self._daemon.wall
                packer = Packer(wall)
                yield {"columns": COLUMNS, "counted": counted.at + wall}
            if packer is not None and some:
                pack = packer.pack
                rows = ",".join([pack(c, counts, gaps_of(c, path)) for c, counts in some])
                yield b'{"rows":[%b]}' % rows.encode()
            yield None

    def _counted(
        self, wanted: Filter, counted: _Counted, *, fresh: bool
    ) -> Iterator[Sequence[tuple[Call, Counts]]]:
        """Yield the calls that are *wanted* and their counts, some at a time, or none yet.

        *counted* is told when the counts are of, before the first of them.
        """
        daemon, carrier, listening = self._daemon, self._daemon.carrier, self._daemon.listening
        book = daemon.translator.book
        chosen: list[int] = []
        if wanted == _ALL:
            chosen += book.calls
            yield ()
        for some in _slices([] if chosen else list(book.calls), _CHOSEN):
            chosen += (n for n in some if n in book.calls and views.fits(book.calls[n], wanted))
            yield ()
        are_many = len(chosen) > FEW_CALLS
        counted.at = time.monotonic()
        if are_many:
            for _ in listening.freshen(0.0 if fresh else listening.lasting):
                yield ()
            counted.at = listening.read_at or counted.at
        for some in _slices(chosen, _SHOWN):
            calls = [book.calls[number] for number in some if number in book.calls]
            if are_many:
                yield [(call, carrier.last_counts(call)) for call in calls]
            else:
                tallies = carrier.tallies_of(calls)
                listening.note(tallies, time.monotonic())
                yield [(call, carrier.counts(call, tallies)) for call in calls]

    def _connections(self, arguments: Mapping[str, object]) -> Answer:
        packed = _said(arguments, "packed")
        _none({name: value for name, value in arguments.items() if name != "packed"})
        connections = list(self._daemon.translator.book.connections.values())
        now = time.monotonic()
        if packed:
            return self._packed_connections(connections, now)
        return (connection_item(views.connection_row(each, now)) for each in connections)

    def _packed_connections(self, connections: Sequence[Connection], now: float) -> Items:
        """Yield them as `pptp_nat.tables.packed_connections` has them."""
        if connections:
            yield {"columns": packed_connections.COLUMNS, "counted": now + self._daemon.wall}
        for some in _slices(connections, _SHOWN):
            rows = ",".join([pack_connection(each, now) for each in some])
            yield b'{"rows":[%b]}' % rows.encode()
            yield None

    def _clear(self, arguments: Mapping[str, object]) -> Answer:
        wanted = Filter.of(arguments)
        if not arguments:
            raise UsageError("clear: say which calls: call, client, server, state or call_id")
        daemon = self._daemon
        calls = [c for c in daemon.translator.book.calls.values() if views.fits(c, wanted)]
        daemon.clear(calls)
        return {"cleared": len(calls)}


def queue_row(number: int, purpose: str) -> QueueRow:
    """Return what the kernel says of the queue *number*, whose socket is open."""
    seen = queue_counters(number)
    if seen is None:
        # A table that is not ours to read says nothing against our own open socket.
        return QueueRow(number, purpose, bound=not os.access(QUEUES, os.R_OK))
    return QueueRow(number, purpose, True, seen.waiting, seen.dropped, seen.user_dropped)


def _slices(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _said(arguments: Mapping[str, object], name: str) -> bool:
    """Return whether *name* was said to be so."""
    value = arguments.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name}: not a yes or no; write true or false")
    return value


def _none(arguments: Mapping[str, object]) -> None:
    if arguments:
        raise UsageError(f"{next(iter(arguments))}: this request takes no arguments")
