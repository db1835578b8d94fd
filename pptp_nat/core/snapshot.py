"""What a translator knows, as plain values: for a successor in another process.

Two uses, one form.  A *hand-over* takes all of it at once.  A journal takes the
records of what a packet has changed, before its verdict: after any crash the
last record of each connection and call is what the last verdict was based on.

Left out of a record: held packets.  They die with the process that holds them;
TCP sends them again, and the stream still knows what it made of their last octet.
Times are the monotonic seconds of this boot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

from pptp_nat.core.bindings import Pair
from pptp_nat.core.book import Book
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.messages import MessageType
from pptp_nat.core.refused import Asked, Refused
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.core.stream import Stream
from pptp_nat.core.talk import OVERLAYS, Talk, resting
from pptp_nat.core.tuples import Address, Party


class StreamRecord(NamedTuple):
    """One direction of a control connection; fields are those of `Stream`."""

    next: int | None = None
    synced: bool = False
    head: bytes = b""
    cut: int | None = None
    floor: int | None = None
    overlays: bytes = b""
    history: bytes = b""  #: only in a hand-over: without it, what comes again is not compared


class RefusedRecord(NamedTuple):
    """What one connection has had refused; fields are those of `Refused`."""

    requests: tuple[Asked | None, Asked | None]
    replies: tuple[bool, bool]
    waiting: tuple[Asked, ...]


class Positions(NamedTuple):
    """Where a control connection stands in its octets: what nearly every packet changes."""

    connection: int  #: its identity
    last_message: float = 0.0
    fresh: tuple[tuple[Party, int, int], ...] = ()  #: party, own, seen
    streams: tuple[StreamRecord, StreamRecord] = (StreamRecord(), StreamRecord())
    refused: RefusedRecord | None = None


class ConnectionRecord(NamedTuple):
    """One control connection without its calls; fields are those of `Connection`."""

    id: int
    key: bytes
    seen_as: tuple[Address | None, ...]  #: by party; None: its own address
    mark: int
    is_local: bool
    passive: str | None
    state: ControlState
    created: float
    due: float | None  #: when its grace is over
    said: tuple[bytes | None, bytes | None]
    positions: Positions


class CallRecord(NamedTuple):
    """One call; fields are those of `Call`."""

    id: int
    connection: int
    requester: Party
    pns: Party
    state: CallState
    numbers: tuple[int, int, int, int]  #: own, own, seen, seen; `NOBODY` where not known
    created: float
    up_since: float | None
    last_gre: float | None
    packets: int
    end: End | None
    codes: tuple[int, int, int, int] | None
    due: float | None  #: when its state runs out; of one that is gone, when it is forgotten


class KeptBack(NamedTuple):
    """A number in quarantine."""

    until: float
    pair: Pair
    number: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A translator."""

    last_id: int = 0  #: the highest identity that was ever given
    connections: Sequence[ConnectionRecord] = ()
    calls: Sequence[CallRecord] = ()
    kept_back: Sequence[KeptBack] = ()
    half_open: Mapping[bytes, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    messages: Mapping[tuple[MessageType | None, bool], int] = field(default_factory=dict)
    ends: Mapping[End, int] = field(default_factory=dict)


_UNKNOWN: Final = StreamRecord()
_PARTIES: Final = tuple(Party)


def stream_record(stream: Stream, *, whole: bool = False) -> StreamRecord:
    """Return what is known of *stream*; with its history if *whole*."""
    return StreamRecord(
        stream.next, stream.synced, stream.head, stream.cut, stream.floor, stream.overlays,
        stream.history if whole else b"",
    )  # fmt: skip


def positions(connection: Connection, *, whole: bool = False) -> Positions:
    """Return where *connection* stands; *whole* as in `stream_record`."""
    first, second = connection.streams
    fresh, refused = connection.fresh, connection.refused
    return Positions(
        connection.id, connection.last_message,
        () if fresh is None else tuple((*key, seen) for key, seen in fresh.items()),
        (stream_record(first, whole=whole), stream_record(second, whole=whole)),
        None if refused is None else RefusedRecord(
            (refused.requests[0], refused.requests[1]),
            (refused.replies[0], refused.replies[1]), tuple(refused.waiting),
        ),
    )  # fmt: skip


def connection_record(
    book: Book, connection: Connection, *, whole: bool = False
) -> ConnectionRecord:
    """Return what is known of *connection*; *whole* as in `stream_record`."""
    return ConnectionRecord(
        connection.id, connection.key, connection.seen_as, connection.mark,
        connection.is_local, connection.passive, connection.state,
        connection.created, book.due(connection), connection.said,
        positions(connection, whole=whole),
    )  # fmt: skip


def call_record(book: Book, call: Call, gone_until: float) -> CallRecord:
    """Return what is known of *call*; if it is gone it is remembered until *gone_until*."""
    due = gone_until if call.state is CallState.GONE else book.due(call)
    return CallRecord(
        call.id, call.connection.id, call.requester, call.pns, call.state,
        (*call.own, *call.seen), call.created, call.up_since, call.last_gre, call.packets,
        call.end, call.codes, due,
    )  # fmt: skip


def snapshot(book: Book, half_open: Mapping[bytes, int]) -> Snapshot:
    """Return everything that *book* holds, and the SYNs that are remembered."""
    return Snapshot(
        book.last_id,
        [connection_record(book, each, whole=True) for each in book.connections.values()],
        [call_record(book, each, 0.0) for each in book.calls.values()]
        + [call_record(book, each, until) for until, each in book.retired],
        [KeptBack(*each) for each in book.bindings.quarantined()],
        dict(half_open), dict(book.counts), dict(book.messages), dict(book.ends),
    )  # fmt: skip


def restore(book: Book, taken: Snapshot, *, spent: bool = False) -> list[CallRecord]:
    """Put what was *taken* into *book*; calls may belong to connections that it has already.

    Args:
        book: what goes on.
        taken: what was known.
        spent: nobody needs *taken* any more.  Then its lists are emptied, so that what is
            made takes the place in memory of what it is made of.

    Returns:
        The calls that were left out: their connection is not there, or another
        call has their number.  A whole snapshot has none; records that were read
        from a copy that is older than the last verdict may.
    """
    connections = {each.id: each for each in book.connections.values()}
    came: list[tuple[Connection, ControlState, float | None]] = []
    fresh: list[tuple[Connection, tuple[tuple[Party, int, int], ...]]] = []
    left_out: list[CallRecord] = []
    calls: list[tuple[Call, CallState, float | None]] = []
    last_id = taken.last_id
    waiting = list(reversed(taken.connections))
    # What is gone comes first: a number is found in its latest call.
    waiting_calls = sorted(taken.calls, key=_age)
    waiting_calls.reverse()  # to be taken from the end
    if spent and isinstance(taken.connections, list) and isinstance(taken.calls, list):
        taken.connections.clear()
        taken.calls.clear()
    while waiting:
        known = waiting.pop()
        connection = connections[known.id] = _connection(known)
        connection.said = book.one_for_all(known.said)
        came.append((connection, known.state, known.due))
        last_id = max(last_id, known.id)
        if known.positions.fresh:
            fresh.append((connection, known.positions.fresh))
    while waiting_calls:
        record = waiting_calls.pop()
        last_id = max(last_id, record.id)
        owner = connections.get(record.connection)
        if owner is None or not _take(book, owner, record):
            left_out.append(record)
            continue
        call = _call(record, owner)
        owner.add(call)
        calls.append((call, record.state, record.due))
    for connection, numbers in fresh:
        _take_fresh(book, connection, numbers)
    for kept in sorted(taken.kept_back, key=itemgetter(0)):
        book.bindings.keep_back(kept.pair, kept.number, kept.until)
    book.put_back(came, calls)
    book.last_id = last_id
    book.counts.update(taken.counts)
    book.messages.update(taken.messages)
    book.ends.update(taken.ends)
    return left_out


def _age(record: CallRecord) -> int:
    return 0 if record.state is CallState.GONE else record.id


def _connection(record: ConnectionRecord) -> Connection:
    talk: Talk | bytes | None = _row(record)
    if talk is None:
        positions = record.positions
        talk = Talk(record.id, record.created, positions.last_message)
        talk.refused = _refused(positions.refused)
        for stream, known in zip(
            (talk.originators, talk.responders), positions.streams, strict=True
        ):
            if known != _UNKNOWN:
                for name, value in known._asdict().items():
                    setattr(stream, name, value)
    first, second = record.seen_as
    return Connection(
        talk, record.key, (first, second), record.mark,
        is_local=record.is_local, passive=record.passive,
    )  # fmt: skip


def _row(record: ConnectionRecord) -> bytes | None:
    """Return what `Talk.row` would, of parties that are as nearly all are; else None."""
    _, spoke, fresh, (first, second), refused = record.positions
    if fresh or refused is not None or record.id >> 48:
        return None
    for known in (first, second):
        following, synced, head, cut, floor, overlays, history = known
        if following is None or not synced or head or history:
            return None
        if cut is not None or floor is not None or len(overlays) > OVERLAYS:
            return None
    assert first.next is not None
    assert second.next is not None
    return resting(
        record.id, record.created, spoke, (first.next, first.overlays),
        (second.next, second.overlays),
    )  # fmt: skip


def _refused(record: RefusedRecord | None) -> Refused | None:
    if record is None:
        return None
    refused = Refused()
    refused.requests, refused.replies = list(record.requests), list(record.replies)
    refused.waiting = list(record.waiting)
    return refused


def _call(record: CallRecord, connection: Connection) -> Call:
    call = Call(record.id, connection, record.requester, record.pns, record.created)
    own, others_own, seen, others_seen = record.numbers
    if own != NOBODY:
        call.give(_PARTIES[0], own, seen)
    if others_own != NOBODY:
        call.give(_PARTIES[1], others_own, others_seen)
    call.up_since, call.last_gre, call.packets = record.up_since, record.last_gre, record.packets
    if record.end is not None or record.codes is not None:
        call.end, call.codes = record.end, record.codes
    return call


def _take(book: Book, connection: Connection, record: CallRecord) -> bool:
    """Take the numbers of a call that is not gone; whether nobody else has them."""
    if record.state is CallState.GONE:
        return True
    taken: list[tuple[Pair, int]] = []
    for party in _PARTIES:
        chosen = connection.seen_as[party] is not None
        if record.numbers[party] == NOBODY or not (chosen or connection.is_local):
            continue
        pair, number = connection.pair(party), record.numbers[2 + party]
        if not book.bindings.claim(pair, number, shared=not chosen):
            for other in taken:
                book.bindings.drop(*other)
            return False
        taken.append((pair, number))
    return True


def _take_fresh(
    book: Book, connection: Connection, fresh: Iterable[tuple[Party, int, int]]
) -> None:
    for party, own, seen in fresh:
        shared = connection.claims(party)
        if book.bindings.claim(connection.pair(party), seen, shared=shared):
            connection.talk.fresh = {**(connection.fresh or {}), (party, own): seen}


def without_positions(taken: Snapshot) -> Snapshot:
    """Return *taken* as of long ago: octets have gone by that it knows nothing of.

    Each stream begins anew at the next octets that come, and is translated from
    the next certain message boundary on.
    """
    return Snapshot(
        taken.last_id,
        [
            each._replace(positions=Positions(each.id, each.positions.last_message))
            for each in taken.connections
        ],
        taken.calls, taken.kept_back,
    )  # fmt: skip
