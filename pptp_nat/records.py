"""What a translator knows, as octets: the records of journals, copies and hand-overs.

A record is a header (CRC-32 of all that follows it, length of the body, kind)
and a body.  Records about one thing replace each other: the last one counts.  So
octets that were cut off anywhere still say what was true at some moment, and
records may be written again at any time, in any order between things.

Numbers are in network order.  Codes of states are their places in the tables
below; whoever changes a table, a body or a kind raises `VERSION`.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pptp_nat.core.bindings import Pair
from pptp_nat.core.messages import MessageType
from pptp_nat.core.refused import Asked
from pptp_nat.core.snapshot import (
    CallRecord,
    ConnectionRecord,
    KeptBack,
    Positions,
    RefusedRecord,
    Snapshot,
    StreamRecord,
)
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.core.tuples import Address, Party

VERSION: Final = 1
LONGEST: Final = 4 << 20  #: octets of a body; two histories at their largest setting

# Kinds.
LAST_ID, CONNECTION, POSITIONS, CLOSED, CALL, KEPT_BACK, TALLY, ASTRAY, HALF_OPEN, COUNTS = range(
    1, 11
)

CALL_STATES: Final = tuple(CallState)
CONTROL_STATES: Final = tuple(ControlState)
ENDS: Final = tuple(End)
_PASSIVE: Final = (None, "kernel_helper")

_CRC: Final = struct.Struct("!I")
_HEADER: Final = struct.Struct("!IB")  # length of the body, kind
_ID: Final = struct.Struct("!Q")
_CONNECTION: Final = struct.Struct("!Q12s4s4sIBBBdd")
_POSITIONS: Final = struct.Struct("!QdB")
_FRESH: Final = struct.Struct("!BHH")
_STREAM: Final = struct.Struct("!BIBIHHI")
_CALL: Final = struct.Struct("!QQBBB4idddQBdhBBH")
_KEPT_BACK: Final = struct.Struct("!d4s4sH")
_TALLY: Final = struct.Struct("!4s4sHQQ")
_HALF_OPEN: Final = struct.Struct("!12sI")

_NONE: Final = math.nan  # a time that is not there
_NO_ADDRESS: Final = bytes(4)
_NO_CODES: Final = (-1, 0, 0, 0)


class LegCount(NamedTuple):
    """GRE of a leg that nobody else counts: source, destination and key of what arrives."""

    source: Address
    destination: Address
    key: int
    packets: int
    octets: int


@dataclass(slots=True)
class Contents:
    """What records say together."""

    last_id: int = 0
    connections: dict[int, ConnectionRecord] = field(default_factory=dict)
    positions: dict[int, Positions] = field(default_factory=dict)
    calls: dict[int, CallRecord] = field(default_factory=dict)
    kept_back: dict[tuple[Pair, int], float] = field(default_factory=dict)
    carried: dict[tuple[Address, Address, int], LegCount] = field(default_factory=dict)
    half_open: dict[bytes, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    messages: dict[tuple[MessageType | None, bool], int] = field(default_factory=dict)
    ends: dict[End, int] = field(default_factory=dict)
    whole: bool = False  #: all that a translator knew, at one moment
    astray: bool = False  #: octets have gone by since that nobody has read

    def snapshot(self, now: float) -> Snapshot:
        """Return all of it but what is over at *now*, and of two with one flow the later one."""
        latest = {self.connections[number].key: number for number in sorted(self.connections)}
        return Snapshot(
            self.last_id,
            [
                each._replace(positions=self.positions.get(each.id, each.positions))
                for each in map(self.connections.__getitem__, latest.values())
            ],
            [
                each
                for each in self.calls.values()
                if each.connection in self.connections
                and latest[self.connections[each.connection].key] == each.connection
                and (each.state is not CallState.GONE or (each.due or 0.0) > now)
            ],
            [
                KeptBack(until, pair, number)
                for (pair, number), until in self.kept_back.items()
                if until > now
            ],
            self.half_open, self.counts, self.messages, self.ends,
        )  # fmt: skip


def record(kind: int, body: bytes) -> bytes:
    """Return one record."""
    rest = _HEADER.pack(len(body), kind) + body
    return _CRC.pack(zlib.crc32(rest)) + rest


# Writing.


def last_id(number: int) -> bytes:
    """Return the record of the highest identity given."""
    return record(LAST_ID, _ID.pack(number))


def connection(known: ConnectionRecord) -> bytes:
    """Return the records of a control connection."""
    first, second = known.seen_as
    flags = known.is_local | (first is not None) << 1 | (second is not None) << 2
    body = _CONNECTION.pack(
        known.id, known.key, first or _NO_ADDRESS, second or _NO_ADDRESS, known.mark, flags,
        _PASSIVE.index(known.passive), CONTROL_STATES.index(known.state),
        known.created, _time(known.due),
    )  # fmt: skip
    body += b"".join(map(_said, known.said))
    return record(CONNECTION, body) + positions(known.positions)


def positions(known: Positions) -> bytes:
    """Return the record of where a control connection stands."""
    parts = [_POSITIONS.pack(known.connection, known.last_message, len(known.fresh))]
    parts += [_FRESH.pack(*each) for each in known.fresh]
    for following, synced, head, cut, floor, overlays, history in known.streams:
        flags = (following is not None) | synced << 1 | (cut is not None) << 2
        parts += (
            _STREAM.pack(
                flags | (floor is not None) << 3, following or 0, cut or 0, floor or 0,
                len(head), len(overlays), len(history),
            ),
            head, overlays, history,
        )  # fmt: skip
    parts.append(_refused(known.refused))
    return record(POSITIONS, b"".join(parts))


def _refused(known: RefusedRecord | None) -> bytes:
    if known is None:
        return bytes(1)
    first, second = known.requests
    flags = 1 | (first is not None) << 1 | (second is not None) << 2
    flags |= known.replies[0] << 3 | known.replies[1] << 4
    asked = [each for each in (first, second) if each is not None]
    return bytes((flags, len(known.waiting))) + b"".join(
        _FRESH.pack(*each) for each in (*asked, *known.waiting)
    )


def closed(number: int) -> bytes:
    """Return the record of a control connection's end."""
    return record(CLOSED, _ID.pack(number))


def call(known: CallRecord) -> bytes:
    """Return the record of a call."""
    return record(CALL, _CALL.pack(
        known.id, known.connection, known.requester, known.pns,
        CALL_STATES.index(known.state), *known.numbers,
        known.created, _time(known.up_since), _time(known.last_gre), known.packets,
        0 if known.end is None else 1 + ENDS.index(known.end), _time(known.due),
        *(known.codes or _NO_CODES),
    ))  # fmt: skip


def kept_back(until: float, pair: Pair, number: int) -> bytes:
    """Return the record of a number in quarantine."""
    return record(KEPT_BACK, _KEPT_BACK.pack(until, *pair, number))


def carried(known: LegCount) -> bytes:
    """Return the record of what a leg has carried that nobody else counts."""
    return record(TALLY, _TALLY.pack(*known))


def astray() -> bytes:
    """Return the record that says: octets go by unread from here on."""
    return record(ASTRAY, b"")


def whole(taken: Snapshot, tallies: Iterable[LegCount] = ()) -> Iterator[bytes]:
    """Yield the records of all that was *taken*."""
    yield last_id(taken.last_id)
    yield from map(connection, taken.connections)
    yield from map(call, taken.calls)
    for each in taken.kept_back:
        yield kept_back(*each)
    for key, start in taken.half_open.items():
        yield record(HALF_OPEN, _HALF_OPEN.pack(key, start))
    yield from map(carried, tallies)
    counts = {
        "counts": dict(taken.counts),
        "messages": [
            [kind and int(kind), inside, n] for (kind, inside), n in taken.messages.items()
        ],
        "ends": {end.value: n for end, n in taken.ends.items()},
    }
    yield record(COUNTS, json.dumps(counts).encode())


def _time(moment: float | None) -> float:
    return _NONE if moment is None else moment


def _said(octets: bytes | None) -> bytes:
    return bytes(1) if octets is None else bytes((len(octets),)) + octets


# Reading.


def read(octets: bytes, into: Contents) -> int:
    """Read records into *into*; return where the last complete one ends.

    What follows is a record that was cut off, or damage: see `is_torn`.
    """
    at, end, begin = 0, len(octets), _CRC.size + _HEADER.size
    while at + begin <= end:
        (check,) = _CRC.unpack_from(octets, at)
        size, kind = _HEADER.unpack_from(octets, at + _CRC.size)
        stop = at + begin + size
        if size > LONGEST or stop > end or zlib.crc32(octets[at + _CRC.size : stop]) != check:
            break
        reader = _READERS.get(kind)
        if reader is None:
            break
        try:
            reader(octets[at + begin : stop], into)
        except (struct.error, IndexError, ValueError, KeyError, TypeError):
            break  # a right sum over wrong octets: written by a mistake of ours
        at = stop
    return at


def is_torn(octets: bytes, at: int) -> bool:
    """Whether what stands from *at* on is one record that was cut off in the writing."""
    rest = len(octets) - at
    if rest < _CRC.size + _HEADER.size:
        return True
    size, kind = _HEADER.unpack_from(octets, at + _CRC.size)
    return kind in _READERS and size <= LONGEST and rest < _CRC.size + _HEADER.size + size


def _moment(value: float) -> float | None:
    return None if math.isnan(value) else value


def _read_last_id(body: bytes, into: Contents) -> None:
    into.last_id = max(into.last_id, _ID.unpack(body)[0])


def _read_connection(body: bytes, into: Contents) -> None:
    (number, key, first, second, mark, flags, passive, state, created, due) = (
        _CONNECTION.unpack_from(body)
    )
    said: list[bytes | None] = []
    at = _CONNECTION.size
    for _ in range(2):
        size = body[at]
        said.append(body[at + 1 : at + 1 + size] or None)
        at += 1 + size
    into.connections[number] = ConnectionRecord(
        number, key, (first if flags & 2 else None, second if flags & 4 else None), mark,
        bool(flags & 1), _PASSIVE[passive], CONTROL_STATES[state], created, _moment(due),
        (said[0], said[1]), Positions(number, created),
    )  # fmt: skip
    into.last_id = max(into.last_id, number)


def _read_positions(body: bytes, into: Contents) -> None:
    number, last_message, count = _POSITIONS.unpack_from(body)
    at = _POSITIONS.size
    fresh = []
    for _ in range(count):
        party, own, seen = _FRESH.unpack_from(body, at)
        fresh.append((Party(party), own, seen))
        at += _FRESH.size
    streams = []
    for _ in range(2):
        flags, following, cut, floor, head, overlays, history = _STREAM.unpack_from(body, at)
        begin = at + _STREAM.size
        middle, last = begin + head, begin + head + overlays
        at = last + history
        if at > len(body):
            raise ValueError(at)
        streams.append(StreamRecord(
            following if flags & 1 else None, bool(flags & 2), body[begin:middle],
            cut if flags & 4 else None, floor if flags & 8 else None,
            body[middle:last], body[last:at],
        ))  # fmt: skip
    into.positions[number] = Positions(
        number, last_message, tuple(fresh), (streams[0], streams[1]), _read_refused(body, at)
    )


def _read_refused(body: bytes, at: int) -> RefusedRecord | None:
    flags = body[at]
    if not flags:
        return None
    waiting, at = body[at + 1], at + 2
    asked = []
    for _ in range((flags >> 1 & 1) + (flags >> 2 & 1) + waiting):
        party, own, seen = _FRESH.unpack_from(body, at)
        asked.append(Asked(Party(party), own, seen))
        at += _FRESH.size
    requests = [asked.pop(0) if flags >> bit & 1 else None for bit in (1, 2)]
    replies = bool(flags & 8), bool(flags & 16)
    return RefusedRecord((requests[0], requests[1]), replies, tuple(asked))


def _read_closed(body: bytes, into: Contents) -> None:
    (number,) = _ID.unpack(body)
    into.connections.pop(number, None)
    into.positions.pop(number, None)


def _read_call(body: bytes, into: Contents) -> None:
    (number, owner, requester, pns, state, *numbers, created, up_since, last_gre, packets, end,
     due, kind, result, error, cause) = _CALL.unpack(body)  # fmt: skip
    first, second, third, fourth = numbers
    codes = None if kind < 0 else (kind, result, error, cause)
    into.calls[number] = CallRecord(
        number, owner, Party(requester), Party(pns), CALL_STATES[state],
        (first, second, third, fourth), created, _moment(up_since), _moment(last_gre), packets,
        ENDS[end - 1] if end else None, codes, _moment(due),
    )  # fmt: skip
    into.last_id = max(into.last_id, number)


def _read_kept_back(body: bytes, into: Contents) -> None:
    until, external, remote, number = _KEPT_BACK.unpack(body)
    into.kept_back[Pair(external, remote), number] = until


def _read_carried(body: bytes, into: Contents) -> None:
    known = LegCount(*_TALLY.unpack(body))
    into.carried[known[:3]] = known


def _read_astray(_body: bytes, into: Contents) -> None:
    into.astray = True


def _read_half_open(body: bytes, into: Contents) -> None:
    key, start = _HALF_OPEN.unpack(body)
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
    LAST_ID: _read_last_id,
    CONNECTION: _read_connection,
    POSITIONS: _read_positions,
    CLOSED: _read_closed,
    CALL: _read_call,
    KEPT_BACK: _read_kept_back,
    TALLY: _read_carried,
    ASTRAY: _read_astray,
    HALF_OPEN: _read_half_open,
    COUNTS: _read_counts,
}
