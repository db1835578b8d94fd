"""One view of all workers: what the supervisor answers and publishes."""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pptp_nat import __version__, api, log
from pptp_nat.control import sockets
from pptp_nat.control.subscription import EVENT_TYPES, MOST_RATE, About
from pptp_nat.errors import UsageError
from pptp_nat.tables.table import QueueRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pptp_nat.api import Request
    from pptp_nat.workers.supervisor import Supervisor

_log: Final = logging.getLogger(__name__)
PATIENCE: Final = 5.0  #: seconds for a worker's next octet
_AGAIN_SECONDS: Final = 1.0  #: until a worker that has hung up is subscribed to again
_LONG: Final = frozenset(("list", "legs", "connections"))


class Merged:
    """Answers requests about all workers of *supervisor*."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def __call__(
        self, request: Request
    ) -> Mapping[str, object] | Iterable[Mapping[str, object] | None]:
        """Answer *request*.

        Raises:
            UsageError: a worker says no, or one is missing that would know.
        """
        asked = {"do": request.do, **request.arguments}
        if request.do == "takeover":
            raise UsageError("takeover: a daemon with workers hands nothing over; restart it")
        if request.do == "status":
            if request.arguments:
                self._ask(asked)  # it says what is wrong
            return self._status()
        if request.do in _LONG:
            return self._stream(asked)
        if request.do == "clear":
            return {"cleared": sum(int(str(each["cleared"])) for each in self._ask(asked))}
        return self._ask({"do": request.do})[0]  # it says what there is

    def _paths(self) -> list[Path]:
        missing = self._supervisor.missing()
        if missing:
            raise UsageError(f"worker {missing[0]} is being started again; ask in a moment")
        return self._supervisor.sockets()

    def _ask(self, asked: Mapping[str, object]) -> list[dict[str, Any]]:
        return [api.ask(path, asked, timeout=PATIENCE) for path in self._paths()]

    def _stream(self, asked: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
        for path in self._paths():
            yield from api.stream(path, asked, timeout=PATIENCE)

    def _status(self) -> Mapping[str, object]:
        supervisor = self._supervisor
        missing = supervisor.missing()
        answers = [
            api.ask(path, {"do": "status"}, timeout=PATIENCE)
            for index, path in enumerate(supervisor.sockets())
            if index not in missing
        ]
        queues = [queue for answer in answers for queue in answer["queues"]]
        queues += [
            QueueRow(
                supervisor.config.control.queue + index, "control", bound=False
            )._asdict()
            for index in missing
        ]
        return {
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

        Raises:
            UsageError: one of them does not answer.
        """
        if types != self._types:
            self.close()
        self._types = types
        for path in paths if types else ():
            if path not in self._peers:
                self._listen(path)

    def _listen(self, path: Path) -> None:
        peer = sockets.connect(path, PATIENCE)
        try:
            asked = {"do": api.SUBSCRIBE, "types": sorted(self._types), "rate": MOST_RATE}
            api.send(peer, asked)
            octets = b""
            while b"\n" not in octets:  # from here on nothing is missed
                more = peer.recv(1 << 16)
                octets += more or b"\n"  # it has ended; `_hear` finds out
        except OSError as error:
            peer.close()
            raise UsageError(f"{path}: {error}") from error
        peer.setblocking(False)
        self._peers[path], self._rests[path] = peer, octets.partition(b"\n")[2]
        self._selector.register(peer, selectors.EVENT_READ, lambda _mask: self._hear(path))

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
