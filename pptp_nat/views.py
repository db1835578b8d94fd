"""Rows for people out of the core's book: calls, control connections, the daemon itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from socket import inet_ntoa
from typing import Final

from pptp_nat.carrier import Counts, counts
from pptp_nat.core.book import Book
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.messages import RESULTS, MessageType
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Party
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.table import (
    CallRow,
    ConnectionRow,
    ControlEnds,
    Count,
    Direction,
    End,
    Inside,
    Result,
    Role,
    Side,
)  # fmt: skip

_INSIDE: Final[Mapping[tuple[bool, ...], Inside]] = {
    (True, False): "originator",
    (False, True): "responder",
    (True, True): "both",
    (False, False): "neither",
}


def inside_party(call: Call) -> Party:
    """Return the party whose side of the call is shown as the inside one.

    The one that this router hides; the PNS where it hides both or neither.
    """
    hidden = [party for party in Party if call.connection.seat(party).inside]
    return hidden[0] if len(hidden) == 1 else call.pns


def result_of(call: Call) -> Result:
    """Return the code and words of the message that refused or ended *call*."""
    if call.codes is None:
        return Result(None, None)
    kind, code, _, _ = call.codes
    words = RESULTS.get(MessageType(kind), {})
    return Result(code, words.get(code, f"unknown result {code}"))


def call_row(call: Call, carried: Counts, *, wall: float) -> CallRow:
    """Return the row of *call*; *wall* is added to monotonic seconds to give Unix seconds."""
    connection = call.connection
    inside = inside_party(call)
    remote = inside.other
    here, there = connection.seat(inside), connection.seat(remote)
    flow = connection.flow
    role: Role = "PNS" if call.pns is inside else "PAC"
    direction: Direction = "outgoing" if call.requester is call.pns else "incoming"
    setup = None if call.up_since is None else call.up_since - call.created
    return CallRow(
        id=call.id,
        state=call.state.value,
        role=role,
        direction=direction,
        inside=Side(inet_ntoa(here.own), _number(call.own[inside])),
        external=Side(inet_ntoa(here.seen_as), _number(call.seen[inside])),
        remote=Side(inet_ntoa(there.own), _number(call.own[remote])),
        control=ControlEnds(
            inet_ntoa(flow.source), flow.source_port,
            inet_ntoa(flow.destination), flow.destination_port,
        ),
        created=call.created + wall,
        up_since=None if call.up_since is None else call.up_since + wall,
        setup_seconds=setup,
        last_seen=None if call.last_gre is None else call.last_gre + wall,
        to_remote=Count(*carried[remote]),
        to_inside=Count(*carried[inside]),
        mark=connection.mark,
        result=result_of(call),
        connection=connection.id,
        cause=None if call.end is None else call.end.value,
    )  # fmt: skip


def call_rows(book: Book, tallies: Mapping[Match, Tally], *, wall: float) -> Iterator[CallRow]:
    """Yield the rows of all calls; a call that ends meanwhile is left out."""
    for number in list(book.calls):
        call = book.calls.get(number)
        if call is not None:
            yield call_row(call, counts(call, tallies), wall=wall)


def connection_row(connection: Connection, now: float) -> ConnectionRow:
    """Return the row of *connection* at *now*, monotonic seconds."""
    flow = connection.flow
    names = connection.names or (None, None, None, None)
    hidden = tuple(connection.seat(party).inside for party in Party)
    return ConnectionRow(
        id=connection.id,
        state=connection.state.value,
        originator=End(inet_ntoa(flow.source), flow.source_port, names[0], names[1]),
        responder=End(inet_ntoa(flow.destination), flow.destination_port, names[2], names[3]),
        inside=_INSIDE[hidden],
        opaque=is_opaque(connection),
        calls=sum(call.state is not CallState.GONE for call in connection.calls),
        age=now - connection.created,
    )  # fmt: skip


def connection_rows(book: Book, now: float) -> Iterator[ConnectionRow]:
    """Yield the rows of all control connections."""
    for connection in list(book.connections.values()):
        yield connection_row(connection, now)


def is_opaque(connection: Connection) -> bool:
    """Whether some of its octets travel without being understood."""
    return connection.passive is not None or any(
        stream.next is not None and not stream.synced for stream in connection.streams
    )


def calls_by_state(book: Book) -> dict[str, int]:
    """Return how many calls there are in each state."""
    return dict(Counter(call.state.value for call in book.calls.values()))


def connections_by_state(book: Book) -> dict[str, int]:
    """Return how many control connections there are in each state."""
    return dict(Counter(each.state.value for each in book.connections.values()))


def headline(book: Book, datapath: str) -> str:
    """Return how much there is to do, in one line."""
    up = sum(call.state is CallState.UP for call in book.calls.values())
    return f"{up} calls up, {len(book.connections)} control connections, data path {datapath}"


def _number(value: int) -> int | None:
    return None if value == NOBODY else value
