"""What happened, for people: one log line per event, and events for subscribers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from socket import inet_ntoa
from typing import Final

from pptp_nat.control.subscription import About
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.events import (
    CallChanged,
    CallRefused,
    ConnectionChanged,
    Event,
    MessageSeen,
    OddityMet,
)  # fmt: skip
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.log import event
from pptp_nat.router.carried import NOTHING, Counts
from pptp_nat.tables.table import call_item, connection_item
from pptp_nat.tables.views import (
    call_row,
    connection_row,
    control_of,
    hosts_of,
    inside_party,
    message_call,
    message_fields,
    message_json,
    result_of,
)  # fmt: skip

_log: Final = logging.getLogger(__name__)
Publish = Callable[[About, Callable[[], Mapping[str, object]]], None]

#: What a call's change is called, by its new state, and how loud it is.
_CALL_LINES: Final = {
    CallState.REQUESTED: ("call-requested", logging.DEBUG),
    CallState.ANSWERED: ("call-answered", logging.DEBUG),
    CallState.UP: ("call-up", logging.INFO),
    CallState.CLEARING: ("call-clearing", logging.DEBUG),
    CallState.GONE: ("call-gone", logging.INFO),
}
_QUIET: Final = frozenset(s for s, (_, level) in _CALL_LINES.items() if level == logging.DEBUG)
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
    "calls_per_client_limit": "limits.calls_per_client are up of this client",
    "setups_per_client_limit": "the client asks for more than limits.setups_per_client a second",
    "call_ids_exhausted": "all 65,535 call IDs between these two addresses are taken",
    "call_id_block_full": "the call IDs that begin as this one had to are taken",
    "router_number_taken": "another call has the number that this router's own client has chosen",
}
_TOLD_TO_ALL: Final = (CallChanged, CallRefused)
_SUBSCRIBED: Final = {CallState.REQUESTED: "new", CallState.GONE: "destroy"}


class News:
    """Tells the log and those who subscribed.

    Args:
        publish: tells subscribers, see `ControlServer.publish`.
        wanted: whether there are any.
        admits: whether the log would write another line.
    """

    def __init__(
        self, publish: Publish, wanted: Callable[[], bool], admits: Callable[[], bool]
    ) -> None:
        self._publish = publish
        self._wanted = wanted
        self._admits = admits

    def tell(self, events: Iterable[Event], ended: Mapping[int, Counts | None]) -> None:
        """Tell *events*.

        Args:
            events: of one packet or tick, carried out already.
            ended: what calls that are gone by these events have carried, by their ids;
                None where the kernel would not say.
        """
        if not self._wanted() and not _log.isEnabledFor(logging.DEBUG):
            # Most packets have news only for those who want all of it.
            events = [each for each in events if isinstance(each, _TOLD_TO_ALL)]
            if not events or (
                len(events) == 1
                and isinstance(change := events[0], CallChanged)
                and change.call.state in _QUIET
            ):
                return
        for each, became in _with_states(events):
            if isinstance(each, CallChanged):
                assert isinstance(became, CallState)
                self._call(each.call, became, ended.get(each.call.id, NOTHING))
            elif isinstance(each, ConnectionChanged):
                assert isinstance(became, ControlState)
                self._connection(each.connection, became)
            elif isinstance(each, CallRefused):
                event(
                    _log, logging.WARNING, "call-refused",
                    **_parties(each.connection), reason=each.reason,
                    text=REFUSALS[each.reason],
                )  # fmt: skip
                said: dict[str, object] = {
                    "sender": each.sender.name.lower(), "reason": each.reason,
                    "text": REFUSALS[each.reason],
                }  # fmt: skip
                self._about_connection("refused", each.connection, said)
            elif isinstance(each, OddityMet):
                event(
                    _log, logging.DEBUG, "oddity",
                    **_parties(each.connection), kind=each.slug,
                    sender=each.sender.name.lower(),
                )  # fmt: skip
                said = {"sender": each.sender.name.lower(), "kind": each.slug}
                self._about_connection("oddity", each.connection, said)
            elif isinstance(each, MessageSeen):
                self._message(each)

    def _call(self, call: Call, state: CallState, carried: Counts | None) -> None:
        name, level = _CALL_LINES[state]
        if _log.isEnabledFor(level) and self._admits():
            event(_log, level, name, **_identity(call), **_details(call, state, carried))
        if not self._wanted():
            return

        def made() -> Mapping[str, object]:
            now = time.time()
            wall = now - time.monotonic()
            item = call_item(call_row(call, carried or NOTHING, wall=wall))
            item["state"] = state.value
            if carried is None:
                item["counters"] = None
            elif state is not CallState.GONE:
                del item["counters"]  # not read from the kernel for every change
            return {"type": kind, "time": now, "call": item}

        kind = _SUBSCRIBED.get(state, "update")
        self._publish(About(kind, call.id, call.connection.id, hosts_of(call.connection)), made)

    def _connection(self, connection: Connection, state: ControlState) -> None:
        _log_connection(connection, state)
        if not self._wanted():
            return

        def made() -> Mapping[str, object]:
            now = time.time()
            item = connection_item(connection_row(connection, time.monotonic()))
            item["state"] = state.value
            return {"type": "connection", "time": now, "connection": item}

        self._publish(About("connection", None, connection.id, hosts_of(connection)), made)

    def _about_connection(
        self, kind: str, connection: Connection, said: Mapping[str, object]
    ) -> None:
        if not self._wanted():
            return
        self._publish(
            About(kind, None, connection.id, hosts_of(connection)),
            lambda: {
                "type": kind, "time": time.time(), "connection": connection.id,
                "control": control_of(connection)._asdict(), **said,
            },
        )  # fmt: skip

    def _message(self, seen: MessageSeen) -> None:
        fields = message_fields(seen.octets)
        call = message_call(seen, fields)
        number = None if call is None else call.id
        connection = seen.connection
        self._publish(
            About("message", number, connection.id, hosts_of(connection)),
            lambda: {
                "type": "message", "time": time.time(), "connection": connection.id,
                "control": control_of(connection)._asdict(),
                "call": number, "sender": seen.sender.name.lower(),
                **message_json(seen, fields),
            },
        )  # fmt: skip


def _with_states(
    events: Iterable[Event],
) -> Iterator[tuple[Event, CallState | ControlState | None]]:
    """Yield each event with the state that it speaks of.

    One packet may change a call twice; what the call itself says then is the second.
    """
    later: dict[int, CallState | ControlState | None] = {}
    states: list[CallState | ControlState | None] = []
    events = list(events)
    for each in reversed(events):
        state: CallState | ControlState | None = None
        if isinstance(each, (CallChanged, ConnectionChanged)):
            subject = each.call if isinstance(each, CallChanged) else each.connection
            state = later.get(subject.id, subject.state)
            later[subject.id] = each.was
        states.append(state)
    return zip(events, reversed(states), strict=True)


def _log_connection(connection: Connection, state: ControlState) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        name = _CONNECTION_LINES[state]
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
        "client": inet_ntoa(call.connection.own(inside)),
        "server": inet_ntoa(call.connection.own(inside.other)),
    }


def _details(call: Call, state: CallState, carried: Counts | None) -> dict[str, object]:
    inside = inside_party(call)
    details: dict[str, object] = {
        "call_id": _known(call.own_of(inside)),
        "external_call_id": _known(call.seen_of(inside)),
        "peer_call_id": _known(call.own_of(inside.other)),
    }
    if call.up_since is not None and state is CallState.UP:
        details["setup_seconds"] = call.up_since - call.created
    if state is CallState.GONE and call.end is not None:
        result = result_of(call)
        details |= {"cause": call.end.value, "result": result.code, "text": result.text}
        details |= {
            "error": result.error and result.error.code,
            "error_text": result.error and result.error.text,
            "cause_code": result.cause and result.cause.code,
            "cause_text": result.cause and result.cause.text,
        }
        for name, party in (("to_remote", inside.other), ("to_inside", inside)):
            if carried is not None:
                details[f"{name}_packets"], details[f"{name}_bytes"] = carried[party]
    return details


def _known(number: int) -> int | None:
    return None if number == NOBODY else number
