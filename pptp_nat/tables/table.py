"""The rows that the daemon shows: calls, control connections, its own state.

The daemon makes rows of what it knows and sends them as items (`call_item`); a
client makes rows of items again (`call_row`) and renders them
(`pptp_nat.tables.rendering`).  A call ID that is not known yet is None; 0 is an
ordinary call ID.  Times are Unix seconds, sizes are octets of IP packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import inet_aton
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Role = Literal["PNS", "PAC"]
Direction = Literal["outgoing", "incoming"]
Inside = Literal["originator", "responder", "both", "neither"]
CallStateName = Literal["idle", "requested", "answered", "up", "clearing", "gone"]

STATES: Final[tuple[str, ...]] = get_args(CallStateName)
LARGEST_CALL_ID: Final = 0xFFFF


class Side(NamedTuple):
    """An address and the call ID that is used there; None while it is not known."""

    address: str  #: dotted
    call_id: int | None


class ControlEnds(NamedTuple):
    """The control connection's ends, by who opened it."""

    src: str
    sport: int
    dst: str
    dport: int


class Count(NamedTuple):
    """GRE carried in one direction."""

    packets: int
    octets: int  #: "bytes" in text and JSON, as conntrack has it
    missing: int | None = None  #: sequence numbers that were skipped; None: nobody looks
    late: int | None = None  #: packets that came after one with a higher number


class Code(NamedTuple):
    """A number of a message and what it means."""

    code: int
    text: str


class Result(NamedTuple):
    """What the message that answered or ended the call said."""

    code: int | None
    text: str | None
    error: Code | None = None  #: General Error Code; None: none
    cause: Code | None = None  #: Cause Code, Q.931's where there is ISDN; None: none


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call."""

    id: int
    state: str
    role: Role  #: what the inside party is
    direction: Direction
    inside: Side  #: the inside party's own address and number
    external: Side  #: what the remote party takes for that
    remote: Side  #: the other party
    control: ControlEnds
    created: float
    up_since: float | None
    setup_seconds: float | None  #: from the request to up
    last_seen: float | None  #: when GRE was last known to flow
    to_remote: Count
    to_inside: Count
    mark: int  #: connmark
    result: Result
    connection: int  #: id of the control connection
    cause: str | None  #: why the call is ending or gone


class End(NamedTuple):
    """One end of a control connection and what its Start-Control-Connection said."""

    address: str
    port: int
    host: str | None = None
    vendor: str | None = None
    version: str | None = None  #: of the protocol, "1.0"
    framing: int | None = None  #: bits: 1 asynchronous, 2 synchronous
    bearer: int | None = None  #: bits: 1 analogue, 2 digital
    channels: int | None = None  #: calls that it supports; a PNS says 0
    firmware: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """One control connection."""

    id: int
    state: str
    originator: End
    responder: End
    inside: Inside  #: who of them is hidden by this router
    opaque: bool  #: forwarded without being understood
    passive: str | None  #: why it is opaque for good, if it is
    calls: int
    age: float  #: seconds
    echo_age: float | None  #: seconds since an Echo-Request was last answered
    echo_seconds: float | None  #: from this router to who answered, and back
    echo_by: Literal["originator", "responder"] | None


class ApiRow(NamedTuple):
    """What the clients of the daemon's socket are about."""

    clients: int
    subscribers: int
    refused: int  #: connections turned away since all places were taken
    dropped: int  #: subscribers disconnected since they fell behind
    garbled: int  #: connections closed since what they sent was no request


class QueueRow(NamedTuple):
    """One NFQUEUE and its counters, as the kernel shows them."""

    queue: int
    purpose: str  #: "control" or "gre"
    bound: bool  #: this daemon listens to it
    waiting: int = 0  #: packets that wait for a verdict
    dropped: int = 0  #: packets that found the queue full
    user_dropped: int = 0  #: packets that found our socket's buffer full


@dataclass(frozen=True, slots=True)
class StatusRow:
    """What ``status`` shows of the daemon."""

    version: str
    pid: int
    started: float
    datapath: str  #: the one in use, never "auto"
    datapath_reason: str
    queues: tuple[QueueRow, ...]
    calls: Mapping[str, int]  #: by state
    connections: Mapping[str, int]  #: by state
    opaque: int  #: control connections that are forwarded without being understood
    api: ApiRow
    #: packets that the rules have dropped ahead of the queues, by the limit's name; None: not told
    paced: Mapping[str, int] | None = None
    silent: tuple[int, ...] = ()  #: workers that do not answer; what they have is not in here


@dataclass(frozen=True, slots=True)
class Filter:
    """Which calls are meant; None lets all pass."""

    state: str | None = None
    client: str | None = None  #: inside address
    server: str | None = None  #: remote address
    call_id: int | None = None  #: any of the call's numbers
    call: int | None = None  #: the row's id

    @classmethod
    def of(cls, arguments: Mapping[str, object]) -> Filter:
        """Return the filter that a request's arguments describe.

        Raises:
            UsageError: an argument that no filter has, or that cannot match anything.
        """
        unknown = sorted(set(arguments) - set(_FILTERS))
        if unknown:
            raise UsageError(f"{unknown[0]}: no such filter; there are {', '.join(_FILTERS)}")
        return cls(**{name: _FILTERS[name](name, value) for name, value in arguments.items()})

    def arguments(self) -> dict[str, object]:
        """Return the arguments that `of` makes this filter of."""
        named = ((name, getattr(self, name)) for name in _FILTERS)
        return {name: value for name, value in named if value is not None}

    def matches(self, row: CallRow) -> bool:
        """Whether *row* is meant."""
        return (
            self.state in (None, row.state)
            and self.client in (None, row.inside.address)
            and self.server in (None, row.remote.address)
            and self.call in (None, row.id)
            and (
                self.call_id is None
                or self.call_id in (row.inside.call_id, row.external.call_id, row.remote.call_id)
            )
        )


def _state(name: str, value: object) -> Any:  # noqa: ANN401  the type is the filter's
    if value not in STATES:
        raise UsageError(f"{name}: no such state; there are {', '.join(STATES)}")
    return value


def _address(name: str, value: object) -> Any:  # noqa: ANN401
    try:
        return str(IPv4Address(value if isinstance(value, str) else ""))
    except ValueError:
        raise UsageError(f"{name}: not an IPv4 address; write one such as 192.168.1.20") from None


def _call_id(name: str, value: object) -> Any:  # noqa: ANN401
    if type(value) is not int or not 0 <= value <= LARGEST_CALL_ID:
        raise UsageError(f"{name}: not a call ID; write a number from 0 to {LARGEST_CALL_ID}")
    return value


def _row_id(name: str, value: object) -> Any:  # noqa: ANN401
    if type(value) is not int or value < 0:
        raise UsageError(f"{name}: not a call of the table; write the number that follows id=")
    return value


_FILTERS: Final = {
    "state": _state,
    "client": _address,
    "server": _address,
    "call_id": _call_id,
    "call": _row_id,
}


def in_order(rows: Iterable[CallRow]) -> list[CallRow]:
    """Return *rows* by client address, then by the client's call ID."""
    return sorted(rows, key=_place)


def _place(row: CallRow) -> tuple[bytes, int, int]:
    number = row.inside.call_id
    return inet_aton(row.inside.address), -1 if number is None else number, row.id


def call_json(row: CallRow) -> dict[str, Any]:
    """Return what ``list -o json`` shows of a call (docs/calls.schema.json)."""
    return {
        "id": row.id,
        "state": row.state,
        "role": row.role,
        "direction": row.direction,
        "inside": _side_json(row.inside),
        "external": _side_json(row.external),
        "remote": _side_json(row.remote),
        "control": dict(zip(ControlEnds._fields, row.control, strict=True)),
        "created": row.created,
        "up_since": row.up_since,
        "setup_seconds": row.setup_seconds,
        "last_seen": row.last_seen,
        "counters": {
            "to_remote": _count_json(row.to_remote),
            "to_inside": _count_json(row.to_inside),
        },
        "mark": row.mark,
        "result": result_json(row.result),
    }


def result_json(result: Result) -> dict[str, Any]:
    """Return what ``list -o json`` shows of an answer to a call, or of its end."""
    return {
        "code": result.code,
        "text": result.text,
        "error": _code_json(result.error),
        "cause": _code_json(result.cause),
    }


def call_item(row: CallRow) -> dict[str, Any]:
    """Return a call as the API's ``list`` has it: `call_json` and what `extended` needs."""
    return {**call_json(row), "connection": row.connection, "cause": row.cause}


def call_row(item: Mapping[str, Any]) -> CallRow:
    """Return the row that `call_item` made *item* of.  Unknown keys are left aside."""
    counters, control = item["counters"], item["control"]
    return CallRow(
        id=item["id"],
        state=item["state"],
        role=item["role"],
        direction=item["direction"],
        inside=_side(item["inside"]),
        external=_side(item["external"]),
        remote=_side(item["remote"]),
        control=ControlEnds(control["src"], control["sport"], control["dst"], control["dport"]),
        created=item["created"],
        up_since=item["up_since"],
        setup_seconds=item["setup_seconds"],
        last_seen=item["last_seen"],
        to_remote=_count(counters["to_remote"]),
        to_inside=_count(counters["to_inside"]),
        mark=item["mark"],
        result=_result(item["result"]),
        connection=item["connection"],
        cause=item["cause"],
    )


def connection_item(row: ConnectionRow) -> dict[str, Any]:
    """Return a control connection as the API and ``connections -o json`` have it."""
    return {
        "id": row.id,
        "state": row.state,
        "originator": row.originator._asdict(),
        "responder": row.responder._asdict(),
        "inside": row.inside,
        "opaque": row.opaque,
        "passive": row.passive,
        "calls": row.calls,
        "age": row.age,
        "echo_age": row.echo_age,
        "echo_seconds": row.echo_seconds,
        "echo_by": row.echo_by,
    }


def connection_row(item: Mapping[str, Any]) -> ConnectionRow:
    """Return the row that `connection_item` made *item* of."""
    ends = [End(*(item[end][name] for name in End._fields)) for end in ("originator", "responder")]
    return ConnectionRow(
        id=item["id"],
        state=item["state"],
        originator=ends[0],
        responder=ends[1],
        inside=item["inside"],
        opaque=item["opaque"],
        passive=item["passive"],
        calls=item["calls"],
        age=item["age"],
        echo_age=item["echo_age"],
        echo_seconds=item["echo_seconds"],
        echo_by=item["echo_by"],
    )


def _side_json(side: Side) -> dict[str, Any]:
    return {"address": side.address, "call_id": side.call_id}


def _side(item: Mapping[str, Any]) -> Side:
    return Side(item["address"], item["call_id"])


def _code_json(code: Code | None) -> dict[str, Any] | None:
    return None if code is None else code._asdict()


def _result(item: Mapping[str, Any]) -> Result:
    codes = (None if item[name] is None else Code(**item[name]) for name in ("error", "cause"))
    return Result(item["code"], item["text"], *codes)


def _count(item: Mapping[str, Any]) -> Count:
    return Count(item["packets"], item["bytes"], item.get("missing"), item.get("late"))


def _count_json(count: Count) -> dict[str, int]:
    shown = {"packets": count.packets, "bytes": count.octets}
    if count.missing is not None and count.late is not None:
        shown |= {"missing": count.missing, "late": count.late}
    return shown


def status_item(row: StatusRow) -> dict[str, Any]:
    """Return the daemon's state as the API and ``status -o json`` have it."""
    return {
        "version": row.version,
        "pid": row.pid,
        "started": row.started,
        "datapath": row.datapath,
        "datapath_reason": row.datapath_reason,
        "queues": [queue._asdict() for queue in row.queues],
        "calls": dict(row.calls),
        "connections": dict(row.connections),
        "opaque": row.opaque,
        "api": row.api._asdict(),
        "paced": None if row.paced is None else dict(row.paced),
        "silent": list(row.silent),
    }


def status_row(item: Mapping[str, Any]) -> StatusRow:
    """Return the row that `status_item` made *item* of."""
    known: dict[str, Any] = {"paced": None}  # which an older daemon does not tell
    known |= {name: item[name] for name in StatusRow.__slots__ if name in item}
    queues = tuple(
        QueueRow(*(queue[name] for name in QueueRow._fields)) for queue in item["queues"]
    )
    api = ApiRow(*(item["api"][name] for name in ApiRow._fields))
    silent = tuple(item.get("silent", ()))
    return StatusRow(**{**known, "queues": queues, "api": api, "silent": silent})
