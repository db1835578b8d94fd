"""Entries of anybody as ctnetlink writes them, one by one or many at once.

What the kernel writes is known from one entry of a length; what differs from it is
read attribute by attribute.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_layout import (
    CTA_PROTOINFO,
    CTA_PROTOINFO_TCP,
    CTA_PROTOINFO_TCP_STATE,
    CTA_TIMESTAMP,
    CTA_TIMESTAMP_START,
    FlatRow,
    Layout,
    TableRow,
    state_name,
)
from pptp_nat.linux.conntrack_wire import (
    CT_NEW,
    CTA_COUNTERS_ORIG,
    CTA_COUNTERS_REPLY,
    CTA_HELP,
    CTA_ID,
    CTA_IP_V4_DST,
    CTA_IP_V4_SRC,
    CTA_MARK,
    CTA_PROTO_NUM,
    CTA_STATUS,
    CTA_TIMEOUT,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    FAMILY,
    GRE,
    TUPLE,
    Entry,
    Tuple,
    number,
    read_helper,
    read_tally,
    read_tuple,
)
from pptp_nat.linux.netlink import ATTRIBUTE, F_DUMP_FILTERED, F_MULTI, HEADER, attributes

_START: Final = struct.Struct("=IHH")  # of a message: length, kind, flags
_NONE: Final = 0, 0, 0
#: octets of an IPv4 entry up to the end of its second tuple
TUPLES: Final = len(FAMILY) + 2 * (ATTRIBUTE.size + TUPLE.size)


class Piece(NamedTuple):
    """Entries out of one datagram, of whatever protocol if the kernel does not filter."""

    flat: list[Iterator[FlatRow]]
    rows: list[TableRow]  #: those that are unlike others


class Reader:
    """Reads entries as `read_row` does, the faster the more of them are alike."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout | None] = {}  # by length; None: none can be learnt

    def __call__(self, body: bytes) -> TableRow | None:
        """Read an entry of TCP or GRE; None for anything else.

        Raises:
            AdapterError: a length in it is impossible.
        """
        layout = self._layouts.get(len(body))
        if layout is not None:
            row = layout.read(body)
            if row is not None:
                return row
        row = read_row(body)
        if row is not None and len(body) not in self._layouts:
            self._learn(body)
        return row

    def read_datagram(self, datagram: bytes) -> Piece | None:
        """Read a datagram of a dump; None where not all of it are entries.

        Raises:
            AdapterError: a length in it is impossible.
        """
        if len(datagram) < HEADER.size:
            return None
        size = HEADER.unpack_from(datagram)[0]
        if size > HEADER.size and not len(datagram) % size:
            rows = self._alike(datagram, size)
            if rows is not None:  # all of it is of one kind, mostly
                return Piece([rows], [])
        by_size: dict[int, list[bytes]] = {}
        at = 0
        while at < len(datagram):
            rest = len(datagram) - at
            size, kind, flags = _START.unpack_from(datagram, at) if rest >= HEADER.size else _NONE
            if kind != CT_NEW or flags & ~F_DUMP_FILTERED != F_MULTI:
                return None
            if not HEADER.size <= size <= rest or size % 4:
                return None
            by_size.setdefault(size, []).append(datagram[at : at + size])
            at += size
        piece = Piece([], [])
        for size, messages in by_size.items():
            rows = self._alike(b"".join(messages), size)
            if rows is None:
                one_by_one = (self(message[HEADER.size :]) for message in messages)
                piece.rows.extend(row for row in one_by_one if row is not None)
            else:
                piece.flat.append(rows)
        return piece

    def _alike(self, messages: bytes, size: int) -> Iterator[FlatRow] | None:
        """Read messages of one *size* after the model of the last one that was unlike others."""
        body = messages[HEADER.size : size]
        if len(body) not in self._layouts:
            self._learn(body)
        layout = self._layouts[len(body)]
        rows = None if layout is None else layout.read_all(messages)
        if rows is None:
            del self._layouts[len(body)]  # what comes next may be a better model
        return rows

    def _learn(self, body: bytes) -> None:
        try:
            self._layouts[len(body)] = Layout(body)
        except AdapterError:
            self._layouts[len(body)] = None


def entries_of(bodies: list[bytes], read: Reader, seen: set[bytes] | None) -> Iterator[Entry]:
    """Yield the entries with two keys a way out of *bodies*, which this empties.

    Those that were *seen*, by their tuples, are left out, and noted there.
    """
    bodies.reverse()
    while bodies:  # let go of one by one: 300,000 are 130 MB
        body = bodies.pop()
        if seen is not None:
            if body[:TUPLES] in seen:
                continue
            seen.add(body[:TUPLES])
        row = read(body)
        if row is not None and row.keyed:
            rest = row.carried, row.returned, row.helper, row.identity
            yield Entry(row.original, row.reply, row.status, row.mark, row.seconds_left or 0, *rest)


def read_row(body: bytes) -> TableRow | None:
    """Read an entry of TCP or GRE; None for anything else.

    Raises:
        AdapterError: a length in it is impossible.
    """
    if body[:1] != FAMILY[:1]:
        return None
    get = attributes(body[len(FAMILY) :]).get
    ways = get(CTA_TUPLE_ORIG, b""), get(CTA_TUPLE_REPLY, b"")
    original, reply = read_tuple(ways[0]), read_tuple(ways[1])
    keyed = original is not None and reply is not None
    if original is None or reply is None:
        original, reply = _keyless(ways[0]), _keyless(ways[1])
        if original is None or reply is None:
            return None
    left, state, helper, started = (
        get(CTA_TIMEOUT), get(CTA_PROTOINFO), get(CTA_HELP), get(CTA_TIMESTAMP)
    )  # fmt: skip
    return TableRow(
        original,
        reply,
        keyed,
        number(get(CTA_STATUS)),
        "" if state is None else _tcp_state(state),
        None if left is None else number(left),
        read_tally(get(CTA_COUNTERS_ORIG)),
        read_tally(get(CTA_COUNTERS_REPLY)),
        number(get(CTA_MARK)),
        None if helper is None else read_helper(helper),
        number(get(CTA_ID)),
        None if started is None else _started(started),
    )


def _keyless(octets: bytes) -> Tuple | None:
    """Read a GRE tuple of a kernel without CONFIG_NF_CT_PROTO_GRE: addresses alone."""
    parts = attributes(octets)
    addresses = attributes(parts.get(CTA_TUPLE_IP, b""))
    protocol = attributes(parts.get(CTA_TUPLE_PROTO, b"")).get(CTA_PROTO_NUM)
    source, destination = addresses.get(CTA_IP_V4_SRC), addresses.get(CTA_IP_V4_DST)
    if number(protocol) != GRE or source is None or destination is None:
        return None
    return Tuple(GRE, _four(source), 0, _four(destination), 0)


def _four(octets: bytes) -> Address:
    if len(octets) != 4:
        raise AdapterError("reading an address from conntrack", errno.EBADMSG)
    return octets


def _tcp_state(octets: bytes) -> str:
    tcp = attributes(attributes(octets).get(CTA_PROTOINFO_TCP, b""))
    return state_name(number(tcp.get(CTA_PROTOINFO_TCP_STATE)))


def _started(octets: bytes) -> float | None:
    start = attributes(octets).get(CTA_TIMESTAMP_START)
    return None if start is None else number(start) / 1e9
