"""What a translator knows, as octets: the records of journals, copies and hand-overs.

A record is a header (CRC-32 of the body, which begins with length and kind; length
of the body; kind) and a body.  Records about one thing replace each other: the last one counts.  So
octets that were cut off anywhere still say what was true at some moment, and
records may be written again at any time, in any order between things.

Numbers are in network order; `pptp_nat.state.record_format` has the layouts.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isnan
from typing import Final

from pptp_nat.core.bindings import Pair
from pptp_nat.core.book import Book
from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.messages import MessageType
from pptp_nat.core.refused import Asked
from pptp_nat.core.snapshot import (
    CallRecord,
    ConnectionRecord,
    Positions,
    RefusedRecord,
    Snapshot,
    StreamRecord,
)
from pptp_nat.core.snapshot import positions as positions_of
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.core.talk import Talk
from pptp_nat.core.tuples import Party
from pptp_nat.state import record_format as form
from pptp_nat.state.contents import Contents, LegCount

_make: Final = tuple.__new__
_PARTIES: Final = tuple(Party)
_UNKNOWN: Final = (StreamRecord(), StreamRecord())


def record(kind: int, body: bytes) -> bytes:
    """Return one record."""
    size = len(body)
    return form.HEADER.pack(zlib.crc32(body, size << 8 | kind), size, kind) + body


# Writing.


def last_id(number: int) -> bytes:
    """Return the record of the highest identity given."""
    return record(form.LAST_ID, form.ID_BODY.pack(number))


def connection(known: ConnectionRecord) -> bytes:
    """Return the records of a control connection."""
    first, second = known.seen_as
    flags = known.is_local | (first is not None) << 1 | (second is not None) << 2
    body = form.CONNECTION_BODY.pack(
        known.id, known.key, first or form.NO_ADDRESS, second or form.NO_ADDRESS, known.mark, flags,
        form.PASSIVE.index(known.passive), form.CONTROL_STATES.index(known.state),
        known.created, _time(known.due),
    )  # fmt: skip
    body += b"".join(map(_said, known.said))
    return record(form.CONNECTION, body) + positions(known.positions)


def positions(known: Positions) -> bytes:
    """Return the record of where a control connection stands."""
    places: list[int] = []
    octets: list[bytes] = []
    for following, synced, head, cut, floor, overlays, history in known.streams:
        flags = (following is not None) | synced << 1 | (cut is not None) << 2
        places += (flags | (floor is not None) << 3, following or 0, cut or 0, floor or 0)
        places += (len(head), len(overlays), len(history))
        octets += (head, overlays, history)
    count = len(known.fresh)
    fixed = form.POSITIONS_BODY.pack(known.connection, known.last_message, count, *places)
    fresh = [form.NUMBERS_BODY.pack(*each) for each in known.fresh]
    return record(form.POSITIONS, b"".join((fixed, *fresh, *octets, _refused(known.refused))))


def call_now(book: Book, known: Call, gone_until: float) -> bytes:
    """Return the record of *known* as it is now: `call`, for every packet of a set-up."""
    state, (end, codes) = known.state, known.over
    if state is CallState.UP:
        due = form.NEVER
    elif state is CallState.GONE:
        due = gone_until
    else:
        due = _time(book.due(known))
    own, others_own, seen, others_seen, requester, pns, created = known.lasting
    return record(form.CALL, form.CALL_BODY.pack(
        known.id, known.connection.id, requester, pns, form.PLACE_OF_STATE[state],
        own, others_own, seen, others_seen, created, _time(known.up_since),
        _time(known.last_gre), known.packets, 0 if end is None else 1 + form.ENDS.index(end), due,
        *(form.NO_CODES if codes is None else codes),
    ))  # fmt: skip


def connection_now(book: Book, known: Connection) -> bytes:
    """Return the records of *known* as it is now: `connection`, for every packet of a set-up."""
    first, second = known.seen_as
    flags = known.is_local | (first is not None) << 1 | (second is not None) << 2
    due = _time(book.due(known)) if known.state is ControlState.CLOSING else form.NEVER
    talk = known.told
    fixed = form.CONNECTION_BODY.pack(
        talk.id, known.key, first or form.NO_ADDRESS, second or form.NO_ADDRESS, known.mark, flags,
        form.PASSIVE.index(known.passive), form.CONTROL_STATES.index(known.state),
        talk.created, due,
    )  # fmt: skip
    one, other = known.said
    return record(form.CONNECTION, fixed + _said(one) + _said(other)) + _current(known, talk)


def current(connection: Connection) -> bytes:
    """Return the record of where *connection* stands now: `positions`, for every packet."""
    return _current(connection, connection.told)


def _current(connection: Connection, talk: Talk) -> bytes:
    """Write `positions`; where its talk lies is looked for once, not five times."""
    if talk.fresh or talk.refused is not None:
        return positions(positions_of(connection))
    first, second = talk.originators, talk.responders
    head, overlays = first.head, first.overlays
    other_head, other_overlays = second.head, second.overlays
    body = form.POSITIONS_BODY.pack(
        talk.id, talk.last_message, 0,
        (first.next is not None) | first.synced << 1 | (first.cut is not None) << 2
        | (first.floor is not None) << 3,
        first.next or 0, first.cut or 0, first.floor or 0, len(head), len(overlays), 0,
        (second.next is not None) | second.synced << 1 | (second.cut is not None) << 2
        | (second.floor is not None) << 3,
        second.next or 0, second.cut or 0, second.floor or 0,
        len(other_head), len(other_overlays), 0,
    ) + head + overlays + other_head + other_overlays + b"\0"  # fmt: skip
    return record(form.POSITIONS, body)


def _refused(known: RefusedRecord | None) -> bytes:
    if known is None:
        return bytes(1)
    first, second = known.requests
    flags = 1 | (first is not None) << 1 | (second is not None) << 2
    flags |= known.replies[0] << 3 | known.replies[1] << 4
    asked = [each for each in (first, second) if each is not None]
    return bytes((flags, len(known.waiting))) + b"".join(
        form.NUMBERS_BODY.pack(*each) for each in (*asked, *known.waiting)
    )


def closed(number: int) -> bytes:
    """Return the record of a control connection's end."""
    return record(form.CLOSED, form.ID_BODY.pack(number))


def call(known: CallRecord) -> bytes:
    """Return the record of a call."""
    return record(form.CALL, form.CALL_BODY.pack(
        known.id, known.connection, known.requester, known.pns,
        form.CALL_STATES.index(known.state), *known.numbers,
        known.created, _time(known.up_since), _time(known.last_gre), known.packets,
        0 if known.end is None else 1 + form.ENDS.index(known.end), _time(known.due),
        *(known.codes or form.NO_CODES),
    ))  # fmt: skip


def kept_back(until: float, pair: Pair, number: int) -> bytes:
    """Return the record of a number in quarantine."""
    return record(form.KEPT_BACK, form.KEPT_BACK_BODY.pack(until, *pair, number))


def carried(known: LegCount) -> bytes:
    """Return the record of what a leg has carried that nobody else counts."""
    return record(form.TALLY, form.TALLY_BODY.pack(*known))


def astray() -> bytes:
    """Return the record that says: octets go by unread from here on."""
    return record(form.ASTRAY, b"")


def whole(taken: Snapshot, tallies: Iterable[LegCount] = ()) -> Iterator[bytes]:
    """Yield the records of all that was *taken*."""
    yield last_id(taken.last_id)
    yield from map(connection, taken.connections)
    yield from map(call, taken.calls)
    for each in taken.kept_back:
        yield kept_back(*each)
    for key, start in taken.half_open.items():
        yield record(form.HALF_OPEN, form.HALF_OPEN_BODY.pack(key, start))
    yield from map(carried, tallies)
    counts = {
        "counts": dict(taken.counts),
        "messages": [
            [kind and int(kind), inside, n] for (kind, inside), n in taken.messages.items()
        ],
        "ends": {end.value: n for end, n in taken.ends.items()},
    }
    yield record(form.COUNTS, json.dumps(counts).encode())


def _time(moment: float | None) -> float:
    return form.NEVER if moment is None else moment


def _said(octets: bytes | None) -> bytes:
    return bytes(1) if octets is None else bytes((len(octets),)) + octets


# Reading.
#
# A hundred thousand records of each kind are read before anybody is served, so NamedTuples are
# made without the detour of their constructors over Python.


def read(octets: bytes, into: Contents, at: int = 0) -> int:
    """Read records from *at* on into *into*; return where the last complete one ends.

    What follows is a record that was cut off, or damage: see `is_torn`.
    """
    end, begin = len(octets), form.HEADER.size
    while at + begin <= end:
        check, size, kind = form.HEADER.unpack_from(octets, at)
        stop = at + begin + size
        reader = _READERS.get(kind)
        if size > form.LONGEST or stop > end or reader is None:
            break
        body = octets[at + begin : stop]
        if zlib.crc32(body, size << 8 | kind) != check:
            break
        try:
            reader(body, into)
        except (struct.error, IndexError, ValueError, KeyError, TypeError):
            break  # a right sum over wrong octets: written by a mistake of ours
        at = stop
    return at


def is_torn(octets: bytes, at: int) -> bool:
    """Whether what stands from *at* on is one record that was cut off in the writing."""
    rest = len(octets) - at
    if rest < form.HEADER.size:
        return True
    _, size, kind = form.HEADER.unpack_from(octets, at)
    return kind in _READERS and size <= form.LONGEST and rest < form.HEADER.size + size


def _read_last_id(body: bytes, into: Contents) -> None:
    into.last_id = max(into.last_id, form.ID_BODY.unpack(body)[0])


def _read_connection(body: bytes, into: Contents) -> None:
    (number, key, first, second, mark, flags, passive, state, created, due) = (
        form.CONNECTION_BODY.unpack_from(body)
    )
    said: list[bytes | None] = []
    at = form.CONNECTION_BODY.size
    for _ in range(2):
        size = body[at]
        said.append(body[at + 1 : at + 1 + size] or None)
        at += 1 + size
    into.connections[number] = _make(ConnectionRecord, (
        number, key, (first if flags & 2 else None, second if flags & 4 else None), mark,
        bool(flags & 1), form.PASSIVE[passive], form.CONTROL_STATES[state], created,
        None if isnan(due) else due,
        (said[0], said[1]), _make(Positions, (number, created, (), _UNKNOWN, None)),
    ))  # fmt: skip
    into.last_id = max(into.last_id, number)


def _read_positions(body: bytes, into: Contents) -> None:
    number, last_message, count, *places = form.POSITIONS_BODY.unpack_from(body)
    at = form.POSITIONS_BODY.size
    fresh = []
    for _ in range(count):
        party, own, seen = form.NUMBERS_BODY.unpack_from(body, at)
        fresh.append((Party(party), own, seen))
        at += form.NUMBERS_BODY.size
    streams = []
    for half in (places[:7], places[7:]):
        flags, following, cut, floor, head, overlays, history = half
        begin = at
        middle, last = begin + head, begin + head + overlays
        at = last + history
        if at > len(body):
            raise ValueError(at)
        streams.append(_make(StreamRecord, (
            following if flags & 1 else None, bool(flags & 2), body[begin:middle],
            cut if flags & 4 else None, floor if flags & 8 else None,
            body[middle:last], body[last:at],
        )))  # fmt: skip
    into.positions[number] = _make(Positions, (
        number, last_message, tuple(fresh), (streams[0], streams[1]), _read_refused(body, at)
    ))  # fmt: skip


def _read_refused(body: bytes, at: int) -> RefusedRecord | None:
    flags = body[at]
    if not flags:
        return None
    waiting, at = body[at + 1], at + 2
    asked = []
    for _ in range((flags >> 1 & 1) + (flags >> 2 & 1) + waiting):
        party, own, seen = form.NUMBERS_BODY.unpack_from(body, at)
        asked.append(Asked(Party(party), own, seen))
        at += form.NUMBERS_BODY.size
    requests = [asked.pop(0) if flags >> bit & 1 else None for bit in (1, 2)]
    replies = bool(flags & 8), bool(flags & 16)
    return RefusedRecord((requests[0], requests[1]), replies, tuple(asked))


def _read_closed(body: bytes, into: Contents) -> None:
    (number,) = form.ID_BODY.unpack(body)
    into.connections.pop(number, None)
    into.positions.pop(number, None)


def _read_call(body: bytes, into: Contents) -> None:
    (number, owner, requester, pns, state, *numbers, created, up_since, last_gre, packets, end,
     due, kind, result, error, cause) = form.CALL_BODY.unpack(body)  # fmt: skip
    into.calls[number] = _make(CallRecord, (
        number, owner, _PARTIES[requester], _PARTIES[pns], form.CALL_STATES[state], tuple(numbers),
        created, None if isnan(up_since) else up_since,
        None if isnan(last_gre) else last_gre, packets, form.ENDS[end - 1] if end else None,
        None if kind < 0 else (kind, result, error, cause), None if isnan(due) else due,
    ))  # fmt: skip
    into.last_id = max(into.last_id, number)


def _read_kept_back(body: bytes, into: Contents) -> None:
    until, external, remote, number = form.KEPT_BACK_BODY.unpack(body)
    into.kept_back[Pair(external, remote), number] = until


def _read_carried(body: bytes, into: Contents) -> None:
    known = LegCount(*form.TALLY_BODY.unpack(body))
    into.carried[known[:3]] = known


def _read_astray(_body: bytes, into: Contents) -> None:
    into.astray = True


def _read_half_open(body: bytes, into: Contents) -> None:
    key, start = form.HALF_OPEN_BODY.unpack(body)
    into.half_open[key] = start


def _read_counts(body: bytes, into: Contents) -> None:
    into.whole = True
    counts = json.loads(body)
    into.counts = {str(slug): int(n) for slug, n in counts["counts"].items()}
    into.messages = {
        (None if kind is None else MessageType(kind), bool(inside)): int(n)
        for kind, inside, n in counts["messages"]
    }
    into.ends = {End(value): int(n) for value, n in counts["ends"].items()}


_READERS: Final[Mapping[int, Callable[[bytes, Contents], None]]] = {
    form.LAST_ID: _read_last_id,
    form.CONNECTION: _read_connection,
    form.POSITIONS: _read_positions,
    form.CLOSED: _read_closed,
    form.CALL: _read_call,
    form.KEPT_BACK: _read_kept_back,
    form.TALLY: _read_carried,
    form.ASTRAY: _read_astray,
    form.HALF_OPEN: _read_half_open,
    form.COUNTS: _read_counts,
}
