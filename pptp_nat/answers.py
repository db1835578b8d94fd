"""What the daemon answers on its socket: status, list, connections, clear."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from pptp_nat import __version__, views
from pptp_nat.api import Request
from pptp_nat.carrier import counts
from pptp_nat.errors import UsageError
from pptp_nat.linux.nfqueue import QUEUES, queue_counters
from pptp_nat.table import (
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

Answer = Mapping[str, object] | Iterable[Mapping[str, object]]


class Answers:
    """Answers requests about one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._verbs: Final[dict[str, Callable[[Mapping[str, object]], Answer]]] = {
            "status": self._status,
            "list": self._list,
            "connections": self._connections,
            "clear": self._clear,
        }

    def __call__(self, request: Request) -> Answer:
        """Answer *request*.

        Raises:
            UsageError: there is no such thing to do, or not with these arguments.
        """
        verb = self._verbs.get(request.do)
        if verb is None:
            raise UsageError(f"{request.do}: no such request; there are {', '.join(self._verbs)}")
        return verb(request.arguments)

    def _status(self, arguments: Mapping[str, object]) -> Answer:
        _none(arguments)
        daemon = self._daemon
        book, server = daemon.translator.book, daemon.server
        row = StatusRow(
            version=__version__,
            pid=os.getpid(),
            started=daemon.started,
            datapath=daemon.carrier.path.name,
            datapath_reason=daemon.datapath_reason,
            queues=tuple(self._queues()),
            calls=views.calls_by_state(book),
            connections=views.connections_by_state(book),
            opaque=sum(map(views.is_opaque, book.connections.values())),
            api=ApiRow(
                len(server.clients), len(server.subscribers), server.refused, server.dropped,
                server.garbled,
            ),
        )  # fmt: skip
        return status_item(row)

    def _queues(self) -> Iterator[QueueRow]:
        daemon = self._daemon
        for queue, purpose in ((daemon.control_queue, "control"), (daemon.gre_queue, "gre")):
            if queue is None:
                continue
            seen = queue_counters(queue.number)
            if seen is None:
                # A table that is not ours to read says nothing against our own open socket.
                yield QueueRow(queue.number, purpose, bound=not os.access(QUEUES, os.R_OK))
            else:
                yield QueueRow(
                    queue.number, purpose, True, seen.waiting, seen.dropped, seen.user_dropped
                )

    def _list(self, arguments: Mapping[str, object]) -> Answer:
        wanted = Filter.of(arguments)
        daemon = self._daemon
        tallies, now = daemon.carrier.tallies(), time.monotonic()
        book, wall = daemon.translator.book, daemon.wall
        for call in book.calls.values():
            daemon.translator.heard(call, counts(call, tallies).packets, now)
        rows = views.call_rows(book, tallies, wall=wall)
        return (call_item(row) for row in rows if wanted.matches(row))

    def _connections(self, arguments: Mapping[str, object]) -> Answer:
        _none(arguments)
        rows = views.connection_rows(self._daemon.translator.book, time.monotonic())
        return map(connection_item, rows)

    def _clear(self, arguments: Mapping[str, object]) -> Answer:
        wanted = Filter.of(arguments)
        if not arguments:
            raise UsageError("clear: say which calls: call, client, server, state or call_id")
        daemon = self._daemon
        book = daemon.translator.book
        chosen = {
            row.id for row in views.call_rows(book, {}, wall=daemon.wall) if wanted.matches(row)
        }
        calls = [call for call in book.calls.values() if call.id in chosen]
        daemon.clear(calls)
        return {"cleared": len(calls)}


def _none(arguments: Mapping[str, object]) -> None:
    if arguments:
        raise UsageError(f"{next(iter(arguments))}: this request takes no arguments")
