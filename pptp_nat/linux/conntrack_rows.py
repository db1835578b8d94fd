"""Entries of anybody as ctnetlink writes them, one by one or many at once.

What the kernel writes is known from one entry of a length; what differs from it is
read attribute by attribute.
"""

from __future__ import annotations

import errno
import itertools
import operator
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_wire import (
    CT_NEW,
    CTA_COUNTERS_BYTES,
    CTA_COUNTERS_ORIG,
    CTA_COUNTERS_PACKETS,
    CTA_COUNTERS_REPLY,
    CTA_HELP,
    CTA_HELP_NAME,
    CTA_ID,
    CTA_IP_V4_DST,
    CTA_IP_V4_SRC,
    CTA_MARK,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT,
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
    Status,
    Tuple,
    number,
    read_helper,
    read_tally,
    read_tuple,
)
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.netlink import (
    ATTRIBUTE,
    F_DUMP_FILTERED,
    F_MULTI,
    HEADER,
    TYPE_MASK,
    attributes,
)

# Specification: linux/netfilter/nfnetlink_conntrack.h.
CTA_PROTOINFO: Final = 4
CTA_PROTOINFO_TCP: Final = 1
CTA_PROTOINFO_TCP_STATE: Final = 1
CTA_TIMESTAMP: Final = 20
CTA_TIMESTAMP_START: Final = 1

#: by number, as conntrack-tools and /proc write them (nf_conntrack_proto_tcp.c)
TCP_STATES: Final = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK",
    "TIME_WAIT", "CLOSE", "SYN_SENT2",
)  # fmt: skip
SEEN_REPLY: Final = int(Status.SEEN_REPLY)  # plain numbers: three tests for each entry
ASSURED: Final = int(Status.ASSURED)
OFFLOADED: Final = 3 << 14  # IPS_OFFLOAD, IPS_HW_OFFLOAD (nf_conntrack_common.h)


_START: Final = struct.Struct("=IHH")  # of a message: length, kind, flags
_NONE: Final = 0, 0, 0
MOST_MASKS: Final = 8  #: numbers of messages for which a mask is kept, 60 KB each

#: octets of an IPv4 entry up to the end of its second tuple
TUPLES: Final = len(FAMILY) + 2 * (ATTRIBUTE.size + TUPLE.size)


class TableRow(NamedTuple):
    """One entry of the table.  Tallies are None where the kernel does not count."""

    original: Tuple
    reply: Tuple
    keyed: bool  #: False: this kernel tracks GRE without its call IDs, the keys mean nothing
    status: int
    state: str  #: of TCP; "" for GRE
    seconds_left: int | None  #: None in an event that ends it
    carried: Tally | None
    returned: Tally | None
    mark: int
    helper: str | None
    identity: int
    started: float | None  #: Unix seconds, where net.netfilter.nf_conntrack_timestamp is on


#: An entry with each field on its own, None where the kernel does not say: protocol, source, its
#: key, destination, its key; the same of the reply; status, seconds left, TCP's state by number,
#: packets and octets of both ways, mark, helper (with zeros behind), CTA_ID, start (nanoseconds).
FlatRow = tuple[
    int, bytes, int | None, bytes, int | None, int, bytes, int | None, bytes, int | None,
    int | None, int | None, int | None, int | None, int | None, int | None, int | None,
    int | None, bytes | None, int | None, int | None,
]  # fmt: skip


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


class Layout:
    """Where a dumped entry has what, learnt from one of the same length.

    The kernel writes the attributes of entries of a kind in the same order.  Where all
    headers are as in the model, each field is where it was there; they are compared all at
    once, as one number, and one struct unpacks the fields.  That takes a third of the time
    that one attribute after the other takes (measured on samples of both kinds).

    Raises:
        AdapterError: a length in the model is impossible, or it is no entry of IPv4.
    """

    def __init__(self, model: bytes) -> None:
        self._form = ["1x3x"]  # struct nfgenmsg: the family, which is compared, and what is not
        self._mask = bytearray(len(model))
        self._mask[0] = 0xFF
        self._seen: set[tuple[int, ...]] = set()
        self._count = 0  # of what is unpacked
        self._places: dict[tuple[int, ...], int] = {}
        self._visit(model, len(FAMILY), len(model), ())
        form = "".join(self._form)
        self._struct = struct.Struct(f"!{form}")
        self._headed = struct.Struct(f"!{HEADER.size}x{form}")
        places = [path in self._places for path in _FIELDS]
        # Addresses; keys, all or none; counters by pairs; of TCP its state.
        keys, counters = [*places[2:5:2], *places[7:10:2]], (places[13:15], places[15:17])
        if (
            model[:1] != FAMILY[:1] or places[12] != ((CTA_PROTOINFO,) in self._seen)
            or not all((*places[:2], places[3], *places[5:7], places[8])) or len({*keys}) > 1
            or any(len({*pair}) > 1 for pair in counters)
        ):  # fmt: skip
            raise AdapterError("learning where a conntrack entry has what", errno.EBADMSG)
        absent = self._count
        self._pick = operator.itemgetter(*(self._places.get(path, absent) for path in _FIELDS))
        self._compared = int.from_bytes(self._mask, "little")
        self._expected = int.from_bytes(model, "little") & self._compared
        self._many: dict[int, tuple[int, int]] = {}
        self._model = model

    def _visit(self, octets: bytes, at: int, end: int, path: tuple[int, ...]) -> None:
        while at + ATTRIBUTE.size <= end:
            length, kind = ATTRIBUTE.unpack_from(octets, at)
            following = at + (length + 3 & ~3)
            if length < ATTRIBUTE.size or following > end:
                raise AdapterError("reading a netlink attribute", errno.EBADMSG)
            here = (*path, kind & TYPE_MASK)
            if here in self._seen:
                raise AdapterError("reading a netlink attribute that comes twice", errno.EBADMSG)
            self._seen.add(here)
            self._mask[at : at + ATTRIBUTE.size] = b"\xff" * ATTRIBUTE.size
            self._form.append(f"{ATTRIBUTE.size}x")
            at += ATTRIBUTE.size
            if here in _NESTED:
                self._visit(octets, at, following, here)
            elif here in _FIELDS:
                self._places[here] = self._count
                self._count += 1
                pads = following - at - (length - ATTRIBUTE.size)
                self._form.append(_form(here, length - ATTRIBUTE.size) + "x" * pads)
            else:
                self._form.append(f"{following - at}x")
            at = following
        if at != end:
            raise AdapterError("reading a netlink attribute", errno.EBADMSG)

    def read(self, body: bytes) -> TableRow | None:
        """Read an entry with two keys each way; None: it is laid out otherwise."""
        if int.from_bytes(body, "little") & self._compared != self._expected:
            return None
        (
            protocol, source, source_key, destination, destination_key,
            back_protocol, back_source, back_source_key, back_destination, back_destination_key,
            status, left, state, packets, octets, back_packets, back_octets,
            mark, helper, identity, started,
        ) = self._pick((*self._struct.unpack(body), None))  # fmt: skip
        if back_destination_key is None or destination_key is None:
            return None
        return TableRow(
            Tuple(protocol, source, source_key, destination, destination_key),
            Tuple(
                back_protocol, back_source, back_source_key, back_destination, back_destination_key
            ),
            True,
            status or 0,
            "" if state is None else state_name(state),
            left,
            None if packets is None else Tally(packets, octets),
            None if back_packets is None else Tally(back_packets, back_octets),
            mark or 0,
            None if helper is None else helper_name(helper),
            identity or 0,
            None if started is None else started / 1e9,
        )

    def read_all(self, messages: bytes) -> Iterator[FlatRow] | None:
        """Read messages with their headers, which follow one another; None: one is otherwise."""
        size = self._headed.size
        count = len(messages) // size
        if count not in self._many:
            if len(self._many) == MOST_MASKS:
                self._many.clear()
            # The sequence number and the port ID are the socket's business.
            header = HEADER.pack(0xFFFFFFFF, 0xFFFF, 0xFFFF & ~F_DUMP_FILTERED, 0, 0)
            mask = int.from_bytes((header + self._mask) * count, "little")
            header = HEADER.pack(size, CT_NEW, F_MULTI, 0, 0)
            expected = int.from_bytes((header + self._model) * count, "little")
            self._many[count] = mask, expected & mask
        mask, expected = self._many[count]
        if int.from_bytes(messages, "little") & mask != expected:
            return None
        rows = self._headed.iter_unpack(messages)
        return map(self._pick, map(operator.add, rows, itertools.repeat((None,))))


_WAYS = (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
_TCP = (CTA_PROTOINFO, CTA_PROTOINFO_TCP)
_NESTED: Final = frozenset({
    (CTA_TUPLE_ORIG,), (CTA_TUPLE_REPLY,), (CTA_COUNTERS_ORIG,), (CTA_COUNTERS_REPLY,),
    (CTA_PROTOINFO,), _TCP, (CTA_TIMESTAMP,), (CTA_HELP,),
    *((way, inner) for way in _WAYS for inner in (CTA_TUPLE_IP, CTA_TUPLE_PROTO)),
})  # fmt: skip
#: the paths of what `Layout.read` unpacks, in its order
_FIELDS: Final = (
    *(
        (way, *path)
        for way in _WAYS
        for path in (
            (CTA_TUPLE_PROTO, CTA_PROTO_NUM),
            (CTA_TUPLE_IP, CTA_IP_V4_SRC), (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT),
            (CTA_TUPLE_IP, CTA_IP_V4_DST), (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT),
        )
    ),
    (CTA_STATUS,), (CTA_TIMEOUT,), (*_TCP, CTA_PROTOINFO_TCP_STATE),
    *(
        (way, count)
        for way in (CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY)
        for count in (CTA_COUNTERS_PACKETS, CTA_COUNTERS_BYTES)
    ),
    (CTA_MARK,), (CTA_HELP, CTA_HELP_NAME), (CTA_ID,), (CTA_TIMESTAMP, CTA_TIMESTAMP_START),
)  # fmt: skip
_SIZES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _form(path: tuple[int, ...], size: int) -> str:
    """Return how a payload is unpacked: a number, but for addresses and names."""
    is_address = path[0] in _WAYS and path[1] == CTA_TUPLE_IP
    if path[0] == CTA_HELP or (is_address and size == 4):
        return f"{size}s"
    if is_address or size not in _SIZES:
        raise AdapterError("reading a number from conntrack", errno.EBADMSG)
    return _SIZES[size]


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


def helper_name(octets: bytes) -> str:
    """Return what CTA_HELP_NAME has."""
    return octets.rstrip(b"\0").decode("ascii", "replace")


def state_name(state: int) -> str:
    """Return the word for a state of TCP."""
    return TCP_STATES[state] if state < len(TCP_STATES) else f"TCP_{state}"


def _started(octets: bytes) -> float | None:
    start = attributes(octets).get(CTA_TIMESTAMP_START)
    return None if start is None else number(start) / 1e9
