"""The conntrack table as it is now, for people: control connections and all GRE, with their states.

`pptp_nat.linux.conntrack` looks at what is ours and changes it; this module only
looks, at the entries of anybody, and needs no daemon.
"""

from __future__ import annotations

import errno
import operator
import select
import struct
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_events import GROUPS, Change, change_of, event_filter
from pptp_nat.linux.conntrack_refusals import MENDS
from pptp_nat.linux.conntrack_wire import (
    BY_DESTINATION_PORT,
    BY_PROTOCOL,
    BY_SOURCE_PORT,
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
    TCP,
    TUPLE,
    Entry,
    Status,
    Tuple,
    by_tuple,
    dump_message,
    number,
    read_helper,
    read_tally,
    read_tuple,
)
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.netlink import ATTRIBUTE, TYPE_MASK, Netlink, attributes

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


def table(ports: Collection[int]) -> list[TableRow]:
    """Return all GRE entries and the control connections on *ports*.

    Kernels before 5.8 send the whole table for each question; what was not
    asked for is left out here.

    Raises:
        AdapterError: the kernel refused.
    """
    wildcard = Tuple(GRE, bytes(4), 0, bytes(4), 0)
    questions = [by_tuple(original=(BY_PROTOCOL, wildcard), reply=None)]
    for port in sorted(ports):
        end = Tuple(TCP, bytes(4), port, bytes(4), port)
        dialled = by_tuple(original=(BY_PROTOCOL | BY_DESTINATION_PORT, end), reply=None)
        forwarded = by_tuple(original=None, reply=(BY_PROTOCOL | BY_SOURCE_PORT, end))
        questions += [dialled, forwarded]
    found: dict[bytes, TableRow] = {}
    read = Reader()
    with Netlink() as netlink:
        for question in questions:
            try:
                bodies = netlink.dump(dump_message(question))
            except AdapterError as error:
                raise _failed("reading the conntrack table", error.errno) from error
            for body in bodies:
                # A connection may answer two questions; both tuples come first.
                tuples = body[:TUPLES]
                if tuples not in found and (row := _wanted(read(body), ports)) is not None:
                    found[tuples] = row
    return list(found.values())


class Follower:
    """Listens to what becomes of GRE entries and control connections on *ports*.

    Raises:
        AdapterError: the kernel refused.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        try:
            self._netlink = Netlink(sum(GROUPS.values()))
        except AdapterError as error:
            raise _failed("listening to conntrack", error.errno) from error
        try:
            self._netlink.attach(event_filter(self._ports))
        except BaseException:
            self._netlink.close()
            raise

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def wait(self, seconds: float | None) -> bool:
        """Wait for something to read; False when *seconds* went by without."""
        return bool(select.select([self._netlink], [], [], seconds)[0])

    def read(self) -> Iterator[tuple[Change, TableRow | None]]:
        """Yield what has happened, without waiting; the row is None after an overrun."""
        received, overrun = self._netlink.drain()
        if overrun:
            yield Change.OVERRUN, None
        for message in received:
            change = change_of(message)
            if change is not None:
                row = _wanted(read_row(message.body), self._ports)
                if row is not None:
                    yield change, row


def _failed(doing: str, code: int) -> AdapterError:
    return AdapterError(doing, code, mend=MENDS.get(code, ""))


def _wanted(row: TableRow | None, ports: Collection[int]) -> TableRow | None:
    """Pass an entry of GRE, or of a control connection on *ports*."""
    if row is None or row.original.protocol == GRE:
        return row
    control = row.original.destination_key in ports or row.reply.source_key in ports
    return row if control and row.original.protocol == TCP else None


class Reader:
    """Reads entries as `read_row` does, the faster the more of them are alike."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout | None] = {}  # by length; None: none can be learnt

    def __call__(self, body: bytes) -> TableRow | None:
        """Read an entry of TCP or GRE; None for anything else.

        Raises:
            AdapterError: a length in it is impossible.
        """
        length = len(body)
        layout = self._layouts.get(length)
        if layout is not None and body[:1] == FAMILY[:1]:
            row = layout.read(body)
            if row is not None:
                return row
        row = read_row(body)
        if row is not None and length not in self._layouts:
            try:
                self._layouts[length] = Layout(body)
            except AdapterError:
                self._layouts[length] = None
        return row


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

    The kernel writes the attributes of entries of a kind in the same order.  One
    struct unpacks all of an entry, headers too; if those are as in the model, each
    field is where it was there.  That takes half of the time that one attribute
    after the other takes (measured on samples of both kinds).

    Raises:
        AdapterError: a length in the model is impossible.
    """

    def __init__(self, model: bytes) -> None:
        self._form = ["!4x"]  # struct nfgenmsg
        self._headers: list[int] = []  # where in what is unpacked
        self._places: dict[tuple[int, ...], int] = {}
        self._visit(model, len(FAMILY), len(model), ())
        self._struct = struct.Struct("".join(self._form))
        self._pick_headers = operator.itemgetter(*self._headers)
        self._expected = self._pick_headers(self._struct.unpack(model))
        count = len(self._form) - 1
        self._pick = operator.itemgetter(*(self._places.get(path, count) for path in _FIELDS))

    def _visit(self, octets: bytes, at: int, end: int, path: tuple[int, ...]) -> None:
        while at + ATTRIBUTE.size <= end:
            length, kind = ATTRIBUTE.unpack_from(octets, at)
            following = at + (length + 3 & ~3)
            if length < ATTRIBUTE.size or following > end:
                raise AdapterError("reading a netlink attribute", errno.EBADMSG)
            here = (*path, kind & TYPE_MASK)
            self._headers.append(len(self._form) - 1)
            self._form.append("4s")
            if here in _NESTED:
                self._visit(octets, at + ATTRIBUTE.size, following, here)
            else:
                self._places[here] = len(self._form) - 1
                pads = following - at - length
                self._form.append(_form(here, length - ATTRIBUTE.size) + "x" * pads)
            at = following
        if at != end:
            raise AdapterError("reading a netlink attribute", errno.EBADMSG)

    def read(self, body: bytes) -> TableRow | None:
        """Read an entry with two keys each way; None: it is laid out otherwise."""
        values = self._struct.unpack(body)
        if self._pick_headers(values) != self._expected:
            return None
        (
            protocol, source, source_key, destination, destination_key,
            back_protocol, back_source, back_source_key, back_destination, back_destination_key,
            status, left, state, packets, octets, back_packets, back_octets,
            mark, helper, identity, started,
        ) = self._pick((*values, None))  # fmt: skip
        if back_destination_key is None or destination_key is None:
            return None
        return TableRow(
            Tuple(protocol, source, source_key, destination, destination_key),
            Tuple(
                back_protocol, back_source, back_source_key, back_destination, back_destination_key
            ),
            True,
            status or 0,
            "" if state is None else _state_name(state),
            left,
            None if packets is None else Tally(packets, octets),
            None if back_packets is None else Tally(back_packets, back_octets),
            mark or 0,
            None if helper is None else helper.rstrip(b"\0").decode("ascii", "replace"),
            identity or 0,
            None if started is None else started / 1e9,
        )


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
    is_address = path[0] in _WAYS and path[1:2] == (CTA_TUPLE_IP,)
    if is_address or path[0] == CTA_HELP or path not in _FIELDS:
        return f"{size}s"
    if size not in _SIZES:
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
    return _state_name(number(tcp.get(CTA_PROTOINFO_TCP_STATE)))


def _state_name(state: int) -> str:
    return TCP_STATES[state] if state < len(TCP_STATES) else f"TCP_{state}"


def _started(octets: bytes) -> float | None:
    start = attributes(octets).get(CTA_TIMESTAMP_START)
    return None if start is None else number(start) / 1e9
