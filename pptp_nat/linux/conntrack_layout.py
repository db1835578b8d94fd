"""Where an entry that ctnetlink writes has what, learnt from one of its kind."""

from __future__ import annotations

import errno
import itertools
import operator
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

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
    Status,
    Tuple,
)
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.netlink import ATTRIBUTE, F_DUMP_FILTERED, F_MULTI, HEADER, TYPE_MASK

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
MOST_MASKS: Final = 8  #: numbers of messages for which a mask is kept, 60 KB each


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


def helper_name(octets: bytes) -> str:
    """Return what CTA_HELP_NAME has."""
    return octets.rstrip(b"\0").decode("ascii", "replace")


def state_name(state: int) -> str:
    """Return the word for a state of TCP."""
    return TCP_STATES[state] if state < len(TCP_STATES) else f"TCP_{state}"
