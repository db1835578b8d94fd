"""One view of all workers: what the supervisor answers and publishes."""

from __future__ import annotations

import json
import logging
import os
import select
import selectors
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pptp_nat import __version__, api, log
from pptp_nat.control import sockets
from pptp_nat.control.answers import queue_row
from pptp_nat.control.server import Steps
from pptp_nat.control.subscription import EVENT_TYPES, MOST_RATE, About
from pptp_nat.errors import UsageError
from pptp_nat.tables.table import QueueRow
from pptp_nat.workers.asking import Round

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from pptp_nat.api import Request
    from pptp_nat.control.answers import Answer
    from pptp_nat.workers.supervisor import Supervisor

_log: Final = logging.getLogger(__name__)
_BEGIN_SECONDS: Final = 1.0  #: for subscriptions to begin
_AGAIN_SECONDS: Final = 1.0  #: until a worker that has hung up is subscribed to again
_LONG: Final = ("list", "legs", "connections")


class Merged:
    """Answers requests about all workers of *supervisor*."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def __call__(self, request: Request) -> Answer:
        """Answer *request*.

        What a worker that does not answer would know is left out, and that is said.

        Raises:
            UsageError: a worker says no.
        """
        asked = {"do": request.do, **request.arguments}
        if request.do == "takeover":
            raise UsageError("takeover: a daemon with workers hands nothing over; restart it")
        if request.do in _LONG:
            return self._stream(asked)
        if request.do == "status":
            return Steps(self._status(asked))
        if request.do == "clear":
            return Steps(self._clear(asked))
        # Workers do what we alone may ask for: no other word goes to them.
        known = ", ".join(("status", *_LONG, "clear"))
        raise UsageError(f"{request.do}: no such request; there are {known}")

    def _stream(self, asked: Mapping[str, object]) -> Iterator[bytes | None]:
        """Yield what all workers have, and say at the end whose is missing."""
        asking = self._round(asked)
        for said in asking:
            yield said.item if said is not None else None
        self._is_whole(asking)

    def _clear(self, asked: Mapping[str, object]) -> Iterator[Mapping[str, object] | None]:
        """Yield how many calls all workers have cleared."""
        asking = self._round(asked)
        for _ in asking:
            yield None
        cleared = sum(int(answer["cleared"]) for answer in asking.answered.values())
        self._is_whole(asking, f"{cleared} calls cleared, but ")
        yield {"cleared": cleared}

    def _round(self, asked: Mapping[str, object]) -> Round:
        return Round(self._supervisor.places(), asked)

    def _is_whole(self, asking: Round, so_far: str = "") -> None:
        """Raise `UsageError` unless all workers have answered *asking*."""
        if asking.refused:
            raise UsageError(next(iter(asking.refused.values())))
        missing = self._supervisor.missing()
        away = [f"worker {index} is being started again" for index in missing]
        silent = self._silent(asking)
        away += (f"worker {index} does not answer" for index in silent)
        if away:
            raise UsageError(
                f"{so_far}{', '.join(away)}: its calls are not among these; ask in a moment"
            )

    def _silent(self, asking: Round) -> list[int]:
        """Return the workers that run and have not answered *asking*."""
        known, missing = len(self._supervisor.sockets()), self._supervisor.missing()
        return [
            index for index in range(known)
            if index not in asking.answered and index not in missing
        ]

    def _status(self, asked: Mapping[str, object]) -> Iterator[Mapping[str, object] | None]:
        supervisor = self._supervisor
        asking = self._round(asked)
        for _ in asking:
            yield None
        if asking.refused:
            raise UsageError(next(iter(asking.refused.values())))
        answers = list(asking.answered.values())
        silent, missing = self._silent(asking), supervisor.missing()
        first = supervisor.config.control.queue
        queues = [queue for answer in answers for queue in answer["queues"]]
        queues += (queue_row(first + index, "control")._asdict() for index in silent)
        queues += (QueueRow(first + index, "control", bound=False)._asdict() for index in missing)
        yield {
            "version": __version__,
            "pid": os.getpid(),
            "started": supervisor.started,
            "datapath": supervisor.datapath,
            "datapath_reason": supervisor.datapath_reason,
            "queues": sorted(queues, key=lambda queue: int(queue["queue"])),
            "calls": _sums(answer["calls"] for answer in answers),
            "connections": _sums(answer["connections"] for answer in answers),
            "opaque": sum(answer["opaque"] for answer in answers),
            "api": supervisor.api_row()._asdict(),
            "paced": next((each["paced"] for each in answers if each["paced"] is not None), None),
            "silent": silent,
        }


def _sums(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)  # keeps names whose sum is 0
    return dict(total)


class Ears:
    """Hears what workers publish, as long as somebody wants to hear it from us.

    Args:
        selector: the supervisor's.
        publish: tells the supervisor's subscribers; see `ControlServer.publish`.
        again: calls `want` once more, with those workers that there are by then.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        publish: Callable[[About, Callable[[], Mapping[str, object]]], None],
        again: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._publish = publish
        self._again = again
        self._again_at: float | None = None  # monotonic seconds
        self._types: frozenset[str] = frozenset()
        self._peers: dict[Path, socket.socket] = {}
        self._rests: dict[Path, bytes] = {}

    def want(self, types: frozenset[str], paths: Sequence[Path]) -> None:
        """Hear events of *types* from the workers that listen at *paths*, by the time it returns.

        One that hangs is waited for no longer than `_BEGIN_SECONDS`, and is heard once it goes on.

        Raises:
            UsageError: one of them is not there.
        """
        if types != self._types:
            self.close()
        self._types = types
        complaint: UsageError | None = None
        waiting: list[socket.socket] = []
        for path in paths if types else ():
            if path not in self._peers:
                try:
                    waiting.append(self._listen(path))
                except UsageError as error:
                    complaint = error
        deadline = time.monotonic() + _BEGIN_SECONDS
        while waiting and (patience := deadline - time.monotonic()) > 0:
            begun, _, _ = select.select(waiting, [], [], patience)  # from here on nothing is missed
            waiting = [peer for peer in waiting if peer not in begun]
        if complaint is not None:
            raise complaint

    def _listen(self, path: Path) -> socket.socket:
        """Subscribe; the first thing that comes back says that it has begun."""
        peer = sockets.connect(path, 0.0)
        try:
            api.send(
                peer, {"do": api.SUBSCRIBE, "types": sorted(self._types), "rate": MOST_RATE}
            )
        except OSError as error:
            peer.close()
            raise UsageError(f"{path}: {error}") from error
        self._peers[path], self._rests[path] = peer, b""
        self._selector.register(peer, selectors.EVENT_READ, lambda _mask: self._hear(path))
        return peer

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._again_at

    def tick(self, now: float) -> None:
        """Hear again of a worker that has hung up on us: we were too slow, or it is dying."""
        if self._again_at is not None and self._again_at <= now:
            self._again_at = None
            self._again()

    def _hear(self, path: Path) -> None:
        peer = self._peers.get(path)
        if peer is None:
            return  # let go of in this very turn
        try:
            octets = peer.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._forget(path)
            self._again_at = time.monotonic() + _AGAIN_SECONDS
            log.event(_log, logging.WARNING, "worker-hung-up", place=path.name, lost="events")
            return
        *lines, self._rests[path] = (self._rests[path] + octets).split(b"\n")
        for line in lines:
            event = json.loads(line).get("event")
            if event is not None and event["type"] != "suppressed":
                self._tell(event)

    def _tell(self, event: Mapping[str, Any]) -> None:
        self._publish(about(event), lambda: event)

    def _forget(self, path: Path) -> None:
        peer = self._peers.pop(path)
        del self._rests[path]
        self._selector.unregister(peer)
        peer.close()

    def close(self) -> None:
        """Hear nobody any more."""
        for path in list(self._peers):
            self._forget(path)


def wanted_types(hears: Callable[[str], bool]) -> frozenset[str]:
    """Return the types that somebody hears."""
    return frozenset(kind for kind in EVENT_TYPES if hears(kind))


def about(event: Mapping[str, Any]) -> About:
    """Return what an event as it is told is about."""
    kind = event["type"]
    call, connection = event.get("call"), event.get("connection")
    if isinstance(connection, Mapping):
        ends = connection["originator"], connection["responder"]
        return About(kind, None, connection["id"], (ends[0]["address"], ends[1]["address"]))
    if isinstance(call, Mapping):
        control, connection, number = call["control"], call["connection"], call["id"]
    else:
        control, number = event["control"], call
    assert isinstance(connection, int)
    return About(kind, number, connection, (control["src"], control["dst"]))
