"""What happened, for people: one log line per event, and events for subscribers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from socket import inet_ntoa
from typing import Final

from pptp_nat.carrier import Counts
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.events import (
    CallChanged,
    CallRefused,
    ConnectionChanged,
    Event,
    OddityMet,
)  # fmt: skip
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.linux.datapath import Tally
from pptp_nat.log import event
from pptp_nat.table import call_item
from pptp_nat.views import call_row, inside_party, result_of

_log: Final = logging.getLogger(__name__)
_NOTHING: Final = Counts(Tally(0, 0), Tally(0, 0))

#: What a call's change is called, by its new state, and how loud it is.
_CALL_LINES: Final = {
    CallState.REQUESTED: ("call-requested", logging.DEBUG),
    CallState.ANSWERED: ("call-answered", logging.DEBUG),
    CallState.UP: ("call-up", logging.INFO),
    CallState.CLEARING: ("call-clearing", logging.DEBUG),
    CallState.GONE: ("call-gone", logging.INFO),
}
#: What a connection's change is called, by its new state; the others are debug lines.
_CONNECTION_LINES: Final = {
    ControlState.OPENING: "connection-seen",
    ControlState.OPEN: "connection-open",
    ControlState.STOPPING: "connection-stopping",
    ControlState.CLOSING: "connection-closing",
    ControlState.CLOSED: "connection-closed",
}
#: Why a new call is refused, in words, by the slugs of `CallRefused`.
REFUSALS: Final = {
    "calls_limit": "limits.calls are up already",
    "calls_per_connection_limit": "limits.calls_per_connection are up on its control connection",
    "call_ids_exhausted": "all 65,535 call IDs between these two addresses are taken",
    "call_id_block_full": "the call IDs that begin as this one had to are taken",
    "router_number_taken": "another call has the number that this router's own client has chosen",
}
_SUBSCRIBED: Final = {CallState.REQUESTED: "new", CallState.GONE: "destroy"}


class News:
    """Tells the log and those who subscribed.

    Args:
        publish: tells subscribers.
        wanted: whether there are any.
        admits: whether the log would write another line.
    """

    def __init__(
        self,
        publish: Callable[[Mapping[str, object]], None],
        wanted: Callable[[], bool],
        admits: Callable[[], bool],
    ) -> None:
        self._publish = publish
        self._wanted = wanted
        self._admits = admits

    def tell(self, events: Iterable[Event], wall: float) -> None:
        """Tell *events*; *wall* plus monotonic seconds is Unix seconds."""
        for each in events:
            if isinstance(each, CallChanged):
                self._call(each.call, wall)
            elif isinstance(each, ConnectionChanged):
                _connection(each.connection)
            elif isinstance(each, CallRefused):
                event(
                    _log, logging.WARNING, "call-refused",
                    **_parties(each.connection), reason=each.reason,
                    text=REFUSALS[each.reason],
                )  # fmt: skip
            elif isinstance(each, OddityMet):
                event(
                    _log, logging.DEBUG, "oddity",
                    **_parties(each.connection), kind=each.slug,
                    sender=each.sender.name.lower(),
                )  # fmt: skip

    def _call(self, call: Call, wall: float) -> None:
        name, level = _CALL_LINES[call.state]
        if _log.isEnabledFor(level) and self._admits():
            event(_log, level, name, **_identity(call), **_details(call))
        if self._wanted():
            kind = _SUBSCRIBED.get(call.state, "update")
            item = call_item(call_row(call, _NOTHING, wall=wall))
            del item["counters"]  # not read from the kernel for every change
            self._publish({"type": kind, "call": item})


def _connection(connection: Connection) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        name = _CONNECTION_LINES[connection.state]
        event(_log, logging.DEBUG, name, **_parties(connection), passive=connection.passive)


def _parties(connection: Connection) -> dict[str, object]:
    flow = connection.flow
    return {
        "connection": connection.id,
        "client": f"{inet_ntoa(flow.source)}:{flow.source_port}",
        "server": f"{inet_ntoa(flow.destination)}:{flow.destination_port}",
    }


def _identity(call: Call) -> dict[str, object]:
    inside = inside_party(call)
    return {
        "call": call.id,
        "client": inet_ntoa(call.connection.seat(inside).own),
        "server": inet_ntoa(call.connection.seat(inside.other).own),
    }


def _details(call: Call) -> dict[str, object]:
    inside = inside_party(call)
    details: dict[str, object] = {
        "call_id": _known(call.own[inside]),
        "external_call_id": _known(call.seen[inside]),
        "peer_call_id": _known(call.own[inside.other]),
    }
    if call.up_since is not None and call.state is CallState.UP:
        details["setup_seconds"] = call.up_since - call.created
    if call.end is not None:
        result = result_of(call)
        details |= {"cause": call.end.value, "result": result.code, "text": result.text}
        if call.codes is not None:
            details |= {"error": call.codes[2] or None, "cause_code": call.codes[3] or None}
    return details


def _known(number: int) -> int | None:
    return None if number == NOBODY else number
