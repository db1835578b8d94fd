"""Rows for people out of the core's book: calls, control connections, the daemon itself."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from socket import inet_ntoa
from typing import Any, Final, Literal

from pptp_nat.core.book import Book, Deadline
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.causes import CAUSES
from pptp_nat.core.events import MessageSeen
from pptp_nat.core.introductions import introduction
from pptp_nat.core.messages import GENERAL_ERRORS, RESULTS, MessageType, text, unpack
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Party
from pptp_nat.errors import WireError
from pptp_nat.router.carried import Counts
from pptp_nat.tables.table import (
    CallRow,
    Code,
    ConnectionRow,
    ControlEnds,
    Count,
    Direction,
    End,
    Filter,
    Inside,
    Result,
    Role,
    Side,
)  # fmt: skip

#: Most hosts of a kind say the same.
PARTIES: Final[tuple[Literal["originator"], Literal["responder"]]] = ("originator", "responder")
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
    originator, responder = call.connection.seen_as
    if (originator is None) == (responder is None):
        return call.pns
    return Party.RESPONDER if originator is None else Party.ORIGINATOR


def result_of(call: Call) -> Result:
    """Return the code and words of the message that refused or ended *call*."""
    if call.codes is None:
        return Result(None, None)
    kind, code, error, cause = call.codes
    words = RESULTS.get(MessageType(kind), {})
    return Result(
        code, words.get(code, f"unknown result {code}"), error_of(error), cause_of(cause)
    )


def error_of(number: int) -> Code | None:
    """Return a General Error Code in words; 0 says that there is none (RFC 2637 section 2.16)."""
    if not number:
        return None
    known = number < len(GENERAL_ERRORS)
    return Code(number, GENERAL_ERRORS[number] if known else f"unknown error {number}")


def cause_of(number: int) -> Code | None:
    """Return a Cause Code in words; 0 says that there is none."""
    return Code(number, CAUSES.get(number, f"unknown cause {number}")) if number else None


def call_row(call: Call, carried: Counts, *, wall: float) -> CallRow:
    """Return the row of *call*; *wall* is added to monotonic seconds to give Unix seconds."""
    connection = call.connection
    inside = inside_party(call)
    remote = inside.other
    here, there = connection.seat(inside), connection.seat(remote)
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
        control=control_of(connection),
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
    )


def legs_json(call: Call) -> Iterator[dict[str, Any]]:
    """Yield the legs of *call* as the API has them: GRE as it arrives here and as it leaves."""
    inside = inside_party(call)
    for party in Party:
        leg = call.leg(party)
        if leg is not None:
            ends = (leg[:3], leg[3:])
            arrives, leaves = (
                {"src": inet_ntoa(source), "dst": inet_ntoa(destination), "key": key}
                for source, destination, key in ends
            )
            yield {
                "call": call.id, "to": "inside" if party is inside else "remote",
                "arrives": arrives, "leaves": leaves,
            }  # fmt: skip


def fits(call: Call, wanted: Filter) -> bool:
    """Whether *call* is meant; as `Filter.matches` of its row, without making one."""
    if wanted.call not in (None, call.id) or wanted.state not in (None, call.state.value):
        return False
    if wanted.client is None and wanted.server is None and wanted.call_id is None:
        return True
    inside, connection = inside_party(call), call.connection
    if wanted.client not in (None, inet_ntoa(connection.seat(inside).own)):
        return False
    if wanted.server not in (None, inet_ntoa(connection.seat(inside.other).own)):
        return False
    numbers = (call.own[inside], call.seen[inside], call.own[inside.other])
    return wanted.call_id is None or wanted.call_id in numbers


def connection_row(connection: Connection, now: float) -> ConnectionRow:
    """Return the row of *connection* at *now*, monotonic seconds."""
    talk = connection.told
    echo = talk.last_echo
    return ConnectionRow(
        id=talk.id,
        state=connection.state.value,
        originator=_end(connection, Party.ORIGINATOR),
        responder=_end(connection, Party.RESPONDER),
        inside=hidden_by(connection),
        opaque=connection.is_opaque,
        passive=connection.passive,
        calls=calls_of(connection),
        age=now - talk.created,
        echo_age=None if echo is None else now - echo.at,
        echo_seconds=None if echo is None else echo.seconds,
        echo_by=None if echo is None else PARTIES[echo.by],
    )


def calls_of(connection: Connection) -> int:
    """Return how many calls it has that are not gone."""
    return sum(call.state is not CallState.GONE for call in connection.calls)


def hidden_by(connection: Connection) -> Inside:
    """Return who of the two ends is hidden by this router."""
    originator, responder = connection.seen_as
    return _INSIDE[originator is not None, responder is not None]


def _end(connection: Connection, party: Party) -> End:
    ends = connection.flow
    address, port = ends[2:] if party else ends[:2]
    return End(inet_ntoa(address), port, *(said_of(connection.said[party]) or ()))


@functools.lru_cache(maxsize=256)
def said_of(
    octets: bytes | None
) -> tuple[str, str, str, int, int, int, int] | None:
    """Return what an end has said of itself, in the order of `End`; None where it has not."""
    said = introduction(octets)
    if said is None:
        return None
    return (
        said.host, said.vendor, f"{said.version >> 8}.{said.version & 0xFF}", said.framing,
        said.bearer, said.channels, said.firmware,
    )  # fmt: skip


def hosts_of(connection: Connection) -> tuple[str, str]:
    """Return both ends' own addresses, the opener's first."""
    flow = connection.flow
    return inet_ntoa(flow.source), inet_ntoa(flow.destination)


def control_of(connection: Connection) -> ControlEnds:
    """Return the ends of *connection*, as each knows itself."""
    flow = connection.flow
    return ControlEnds(
        inet_ntoa(flow.source), flow.source_port,
        inet_ntoa(flow.destination), flow.destination_port,
    )  # fmt: skip


def message_fields(octets: bytes) -> Mapping[str, int | bytes]:
    """Return the fields of a control message by name; none of one that cannot be read."""
    try:
        return unpack(octets)[1]
    except WireError:
        return {}


def message_call(seen: MessageSeen, fields: Mapping[str, int | bytes]) -> Call | None:
    """Return the call that a message names, None if it names none that there is."""
    find, sender = seen.connection.find, seen.sender
    found = None
    if "call_id" in fields:
        found = find(sender, int(fields["call_id"]), seen=False)
    if found is None and "peer_call_id" in fields:
        found = find(sender.other, int(fields["peer_call_id"]), seen=True)
    return found


def message_json(seen: MessageSeen, fields: Mapping[str, int | bytes]) -> dict[str, Any]:
    """Return a control message as its sender wrote it, and what we made of its numbers.

    What is reserved is left out; ``forwarded`` has the call IDs that went on as
    others, ``words`` the codes that have a meaning.
    """
    find, sender = seen.connection.find, seen.sender
    forwarded, words = {}, {}
    if "call_id" in fields:
        call = find(sender, int(fields["call_id"]), seen=False)
        if call is not None and call.seen[sender] != fields["call_id"]:
            forwarded["call_id"] = call.seen[sender]
    if "peer_call_id" in fields:
        call = find(sender.other, int(fields["peer_call_id"]), seen=True)
        if call is not None and call.own[sender.other] != fields["peer_call_id"]:
            forwarded["peer_call_id"] = call.own[sender.other]
    results = {} if seen.kind is None else RESULTS.get(seen.kind, {})
    for name in ("result", "reason"):
        if name in fields:
            number = int(fields[name])
            words[name] = results.get(number, f"unknown {name} {number}")
    for name, said in (("error", error_of), ("cause", cause_of)):
        code = said(int(fields.get(name, 0)))
        if code is not None:
            words[name] = code.text
    return {
        "message": None if seen.kind is None else seen.kind.title,
        "octets": len(seen.octets),
        "fields": {
            name: text(value) if isinstance(value, bytes) else value
            for name, value in fields.items() if not name.startswith("reserved")
        },
        "forwarded": forwarded,
        "words": words,
    }  # fmt: skip


def calls_by_state(book: Book) -> dict[str, int]:
    """Return how many calls there are in each state, without looking at those that are up."""
    waiting = (book.deadlines[kind] for kind in (Deadline.REQUEST, Deadline.CLEARING))
    states = Counter(
        call.state.value for queue in waiting for call in queue if isinstance(call, Call)
    )
    if up := len(book.calls) - states.total():
        states[CallState.UP.value] = up
    return dict(states)


def headline(book: Book, datapath: str) -> str:
    """Return how much there is to do, in one line."""
    up = calls_by_state(book).get(CallState.UP.value, 0)
    return f"{up} calls up, {len(book.connections)} control connections, data path {datapath}"


def _number(value: int) -> int | None:
    return None if value == NOBODY else value
