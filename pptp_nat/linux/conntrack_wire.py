"""Conntrack entries as ctnetlink writes them: encode and decode.

Layouts are those of linux/netfilter/nfnetlink_conntrack.h.  The kernel writes
the attributes of an IPv4 tuple always in the same order and without gaps, so one
struct reads or writes all of it (7 to 15 times faster than one attribute at a
time); a tuple of any other layout is read attribute by attribute.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
import zlib
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address, Flow, Leg, Placement, Seat
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.linux.netlink import (
    ATTRIBUTE,
    F_CREATE,
    F_ECHO,
    F_EXCL,
    NESTED,
    Message,
    attribute,
    attributes,
    nested,
)

GRE: Final = 47
TCP: Final = 6

# Specification: linux/netfilter/nfnetlink_conntrack.h.
CTNETLINK: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK, the upper octet of a message's kind
CT_NEW: Final = CTNETLINK | 0
CT_GET: Final = CTNETLINK | 1
CT_DELETE: Final = CTNETLINK | 2
CTA_TUPLE_ORIG: Final = 1
CTA_TUPLE_REPLY: Final = 2
CTA_STATUS: Final = 3
CTA_HELP: Final = 5
CTA_NAT_SRC: Final = 6
CTA_TIMEOUT: Final = 7
CTA_MARK: Final = 8
CTA_COUNTERS_ORIG: Final = 9
CTA_COUNTERS_REPLY: Final = 10
CTA_ID: Final = 12
CTA_NAT_DST: Final = 13
CTA_MARK_MASK: Final = 21
CTA_FILTER: Final = 25
CTA_STATUS_MASK: Final = 26
CTA_TUPLE_IP: Final = 1
CTA_TUPLE_PROTO: Final = 2
CTA_IP_V4_SRC: Final = 1
CTA_IP_V4_DST: Final = 2
CTA_PROTO_NUM: Final = 1
CTA_PROTO_SRC_PORT: Final = 2
CTA_PROTO_DST_PORT: Final = 3
CTA_COUNTERS_PACKETS: Final = 1
CTA_COUNTERS_BYTES: Final = 2
CTA_NAT_V4_MINIP: Final = 1
CTA_NAT_V4_MAXIP: Final = 2
CTA_NAT_PROTO: Final = 3
CTA_PROTONAT_PORT_MIN: Final = 1
CTA_PROTONAT_PORT_MAX: Final = 2
CTA_HELP_NAME: Final = 1

# Specification: net/netfilter/nf_internals.h, the bits of CTA_FILTER (Linux 5.8;
# older kernels take no notice of it and answer with more).
CTA_FILTER_ORIG_FLAGS: Final = 1
CTA_FILTER_REPLY_FLAGS: Final = 2
BY_PROTOCOL: Final = 1 << 3
BY_SOURCE_PORT: Final = 1 << 4
BY_DESTINATION_PORT: Final = 1 << 5

FAMILY: Final = struct.pack("!BBH", socket.AF_INET, 0, 0)  # struct nfgenmsg


class Status(enum.IntFlag):
    """Bits of CTA_STATUS (linux/netfilter/nf_conntrack_common.h)."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    DYING = 1 << 9
    FIXED_TIMEOUT = 1 << 10
    HELPER = 1 << 13  #: a rule has attached one


# CONFIRMED, or the kernel refuses (EBUSY).  FIXED_TIMEOUT, or the first packet sets the
# timeout to zero and ends the entry.  SEEN_REPLY makes its packets ESTABLISHED, ASSURED
# keeps it when the table is full.
CARRYING: Final = int(
    Status.CONFIRMED | Status.FIXED_TIMEOUT | Status.SEEN_REPLY | Status.ASSURED
)


class Tuple(NamedTuple):
    """One direction of an entry; a key is a port, or GRE's."""

    protocol: int
    source: Address
    source_key: int
    destination: Address
    destination_key: int

    @classmethod
    def of_flow(cls, flow: Flow) -> Tuple:
        """Return the tuple of a TCP flow."""
        source, source_port, destination, destination_port = flow
        return cls(TCP, source, source_port, destination, destination_port)

    @classmethod
    def of_match(cls, match: Match | Leg) -> Tuple:
        """Return the tuple of arriving GRE; the kernel gives all of it source key 0."""
        return tuple.__new__(cls, (GRE, match[0], 0, match[1], match[2]))


class Entry(NamedTuple):
    """One conntrack entry.  Tallies are None where the kernel does not count."""

    original: Tuple
    reply: Tuple
    status: int
    mark: int
    seconds_left: int
    carried: Tally | None  #: in the original direction
    returned: Tally | None  #: in the reply direction
    helper: str | None
    identity: int  #: CTA_ID, opaque; 0 where there was none

    @property
    def leg(self) -> Leg:
        """The leg that a GRE entry carries: what its reply undoes."""
        arriving, leaving = self.original, self.reply
        return tuple.__new__(Leg, (
            arriving.source, arriving.destination, arriving.destination_key,
            leaving.destination, leaving.source, leaving.source_key,
        ))  # fmt: skip

    @property
    def placement(self) -> Placement:
        """The control connection of a TCP entry."""
        opener, answer = self.original, self.reply
        return Placement(
            Flow(opener.source, opener.source_key, answer.source, answer.source_key),
            Seat(opener.source, answer.destination),
            Seat(answer.source, opener.destination),
            self.mark,
            self.helper,
        )


# An IPv4 tuple with two keys inside its attribute, 48 octets: each header is followed by
# what it announces.  All headers are constants, written in the machine's octet order.
TUPLE: Final = struct.Struct("!4s4s4s4s4s4s4sB3x4sH2x4sH2x")
_TUPLE_HEADERS: Final = (
    _IP := ATTRIBUTE.pack(20, NESTED | CTA_TUPLE_IP),
    _IP_SRC := ATTRIBUTE.pack(8, CTA_IP_V4_SRC),
    _IP_DST := ATTRIBUTE.pack(8, CTA_IP_V4_DST),
    _PROTO := ATTRIBUTE.pack(28, NESTED | CTA_TUPLE_PROTO),
    _NUM := ATTRIBUTE.pack(5, CTA_PROTO_NUM),
    _SRC_PORT := ATTRIBUTE.pack(6, CTA_PROTO_SRC_PORT),
    _DST_PORT := ATTRIBUTE.pack(6, CTA_PROTO_DST_PORT),
)
TUPLE_HEADER: Final = {
    kind: ATTRIBUTE.pack(ATTRIBUTE.size + TUPLE.size, NESTED | kind)
    for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
}
_U32: Final = struct.Struct("!I")
_COUNTERS: Final = struct.Struct("!4sQ4sQ")
_COUNTER_HEADERS: Final = (
    ATTRIBUTE.pack(12, CTA_COUNTERS_PACKETS),
    ATTRIBUTE.pack(12, CTA_COUNTERS_BYTES),
)
# How a GRE entry starts: before its source, its destination and its original key.
ARRIVING_HEADERS: Final = (
    TUPLE_HEADER[CTA_TUPLE_ORIG] + _IP + _IP_SRC,
    _IP_DST,
    _PROTO + _NUM + bytes((GRE, 0, 0, 0)) + _SRC_PORT + bytes(4) + _DST_PORT,
)
#: the headers of its packet count and of its octet count
COUNT_HEADERS: Final = (
    ATTRIBUTE.pack(28, NESTED | CTA_COUNTERS_ORIG) + _COUNTER_HEADERS[0],
    _COUNTER_HEADERS[1],
)
_MARK: Final = struct.Struct("!4sI")
_MARK_HEADER: Final = ATTRIBUTE.pack(8, CTA_MARK)
# A range of one address, and one of one address and one key: the kernel takes the upper
# end from the lower one when it is not given (nf_nat_core.c).
_NAT_DST: Final = struct.Struct("!4s4s4s")
_NAT_DST_HEADER: Final = ATTRIBUTE.pack(12, NESTED | CTA_NAT_DST)
_NAT_SRC: Final = struct.Struct("!4s4s4s4s4sH2x")
_NAT_SRC_HEADER: Final = ATTRIBUTE.pack(24, NESTED | CTA_NAT_SRC)
_NAT_MINIP: Final = ATTRIBUTE.pack(8, CTA_NAT_V4_MINIP)
_NAT_PROTO: Final = ATTRIBUTE.pack(12, NESTED | CTA_NAT_PROTO)
_NAT_PORT: Final = ATTRIBUTE.pack(6, CTA_PROTONAT_PORT_MIN)
_CARRYING: Final = attribute(CTA_STATUS, _U32.pack(CARRYING))
_TIMEOUT_HEADER: Final = ATTRIBUTE.pack(8, CTA_TIMEOUT)
_GRE_FROM: Final = _PROTO + _NUM + bytes((GRE, 0, 0, 0)) + _SRC_PORT
_REPLY_HEADERS: Final = TUPLE_HEADER[CTA_TUPLE_REPLY] + _IP + _IP_SRC
#: How its reply does: before its source, its destination, its original and its spare key.
LEAVING_HEADERS: Final = (_REPLY_HEADERS, _IP_DST, _GRE_FROM, _DST_PORT)
#: A new entry behind its family: both tuples, status, timeout, mark.
_NEW: Final = struct.Struct("!12s4s4s4s16sH2x4sH2x12s4s4s4s16sH2x4sH2x8s4sI4sI")


#: what comes before a tuple's source, behind the header of the tuple itself
IP_SOURCE: Final = _IP + _IP_SRC


def headers_within(protocol: int) -> tuple[bytes, bytes, bytes]:
    """Return what comes before the destination, the source key and the destination key."""
    return _IP_DST, _PROTO + _NUM + bytes((protocol, 0, 0, 0)) + _SRC_PORT, _DST_PORT


def tuple_attribute(kind: int, value: Tuple) -> bytes:
    """Return *value* as CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    protocol, source, source_key, destination, destination_key = value
    return TUPLE_HEADER[kind] + TUPLE.pack(
        _IP, _IP_SRC, source, _IP_DST, destination,
        _PROTO, _NUM, protocol, _SRC_PORT, source_key, _DST_PORT, destination_key,
    )  # fmt: skip


def get_message(value: Tuple) -> Message:
    """Ask for the entry one of whose two tuples is *value* (the kernel tries both)."""
    return tuple.__new__(Message, (CT_GET, 0, FAMILY + tuple_attribute(CTA_TUPLE_ORIG, value)))


def new_message(leg: Leg, mark: int, spare_key: int, lifetime: int) -> Message:
    """Ask for the entry that carries *leg*.

    Args:
        leg: what arrives and what leaves.
        mark: CTA_MARK.
        spare_key: GRE has no source key, so the reply's destination key is free
            to choose; it must make the reply tuple unique.
        lifetime: seconds.
    """
    source, destination, key, new_source, new_destination, new_key = leg
    # The reply's addresses go in untranslated: only what the NAT attributes change
    # makes the kernel set IPS_SRC_NAT and IPS_DST_NAT.  Its keys go in translated:
    # nf_nat leaves GRE keys alone.
    body = _NEW.pack(
        ARRIVING_HEADERS[0], source, _IP_DST, destination, _GRE_FROM, 0, _DST_PORT, key,
        _REPLY_HEADERS, destination, _IP_DST, source, _GRE_FROM, new_key, _DST_PORT, spare_key,
        _CARRYING, _TIMEOUT_HEADER, lifetime, _MARK_HEADER, mark,
    )  # fmt: skip
    if new_destination != destination:
        body += _NAT_DST.pack(_NAT_DST_HEADER, _NAT_MINIP, new_destination)
    if new_source != source:
        # Without a key the kernel would borrow one from another call of this source.
        body += _NAT_SRC.pack(
            _NAT_SRC_HEADER, _NAT_MINIP, new_source, _NAT_PROTO, _NAT_PORT, spare_key
        )
    return tuple.__new__(Message, (CT_NEW, F_CREATE | F_EXCL, FAMILY + body))


def delete_message(entry: Entry) -> Message:
    """Ask for the end of *entry* and for its last counts.

    NLM_F_ECHO has the kernel send us the event of the entry's end, counters and
    all, so that no packet between a look and the deletion goes uncounted.
    """
    body = FAMILY + tuple_attribute(CTA_TUPLE_ORIG, entry.original)
    return Message(CT_DELETE, F_ECHO, body + attribute(CTA_ID, _U32.pack(entry.identity)))


def end_message(leg: Leg) -> Message:
    """Ask for the end of whatever entry has the match of *leg*."""
    return Message(CT_DELETE, 0, FAMILY + tuple_attribute(CTA_TUPLE_ORIG, Tuple.of_match(leg)))


def remark_message(leg: Leg, mark: int) -> Message:
    """Ask for another CTA_MARK on the entry of *leg*; all else stays."""
    arriving = tuple_attribute(CTA_TUPLE_ORIG, Tuple.of_match(leg))
    return Message(CT_NEW, 0, FAMILY + arriving + _MARK.pack(_MARK_HEADER, mark))


def dump_message(*criteria: bytes) -> Message:
    """Ask for all IPv4 entries that meet *criteria*, see the ``by_...`` below."""
    return Message(CT_GET, 0, FAMILY + b"".join(criteria))


def by_mark(mark: int) -> bytes:
    """Ask for entries that have all bits of *mark*."""
    return attribute(CTA_MARK, _U32.pack(mark)) + attribute(CTA_MARK_MASK, _U32.pack(mark))


def by_status(bits: int) -> bytes:
    """Ask for entries that have all *bits* of `Status` (Linux 5.13; older ones take no notice)."""
    asked = _U32.pack(bits)
    return attribute(CTA_STATUS, asked) + attribute(CTA_STATUS_MASK, asked)


def by_tuple(*, original: tuple[int, Tuple] | None, reply: tuple[int, Tuple] | None) -> bytes:
    """Ask for entries whose tuples agree with these in what the flags name (BY_...)."""
    parts = []
    flags = []
    for given, kind, flag in (
        (original, CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS),
        (reply, CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS),
    ):
        if given is not None:
            parts.append(tuple_attribute(kind, given[1]))
            flags.append(attribute(flag, struct.pack("=I", given[0])))
    return b"".join(parts) + nested(CTA_FILTER, *flags)


def read_tuple(octets: bytes) -> Tuple | None:
    """Read what is inside a tuple attribute; None where it has no IPv4 or no keys."""
    if len(octets) == TUPLE.size:
        (
            ip, ip_src, source, ip_dst, destination,
            proto, num, protocol, src_port, source_key, dst_port, destination_key,
        ) = TUPLE.unpack(octets)  # fmt: skip
        if (ip, ip_src, ip_dst, proto, num, src_port, dst_port) == _TUPLE_HEADERS:
            return tuple.__new__(
                Tuple, (protocol, source, source_key, destination, destination_key)
            )
    parts = attributes(octets)
    try:
        addresses = attributes(parts[CTA_TUPLE_IP])
        keys = attributes(parts[CTA_TUPLE_PROTO])
        return Tuple(
            number(keys[CTA_PROTO_NUM]),
            _address(addresses[CTA_IP_V4_SRC]),
            number(keys[CTA_PROTO_SRC_PORT]),
            _address(addresses[CTA_IP_V4_DST]),
            number(keys[CTA_PROTO_DST_PORT]),
        )
    except KeyError:
        return None


def _address(octets: bytes) -> Address:
    if len(octets) != 4:
        raise AdapterError("reading an address from conntrack", errno.EBADMSG)
    return octets


def number(octets: bytes | None) -> int:
    """Return an attribute's unsigned number, 0 where it is not there."""
    return 0 if octets is None else int.from_bytes(octets)


def read_tally(octets: bytes | None) -> Tally | None:
    """Read the counters of one direction; None where the kernel does not count."""
    if octets is None:
        return None
    if len(octets) == _COUNTERS.size:
        packets_header, packets, octets_header, total = _COUNTERS.unpack(octets)
        if (packets_header, octets_header) == _COUNTER_HEADERS:
            return Tally(packets, total)
    counters = attributes(octets)
    return Tally(
        number(counters.get(CTA_COUNTERS_PACKETS)), number(counters.get(CTA_COUNTERS_BYTES))
    )


def read_entry(body: bytes) -> Entry | None:
    """Read an entry from an answer, a dump or an event.

    Returns:
        None for what has no two keys per tuple: IPv6, ICMP, protocols that conntrack
        does not know.

    Raises:
        AdapterError: a length in it is impossible.
    """
    if body[:1] != FAMILY[:1]:
        return None
    parts = attributes(body[len(FAMILY) :])
    try:
        original = read_tuple(parts[CTA_TUPLE_ORIG])
        reply = read_tuple(parts[CTA_TUPLE_REPLY])
    except KeyError:
        return None
    if original is None or reply is None:
        return None
    return Entry(
        original,
        reply,
        number(parts.get(CTA_STATUS)),
        number(parts.get(CTA_MARK)),
        number(parts.get(CTA_TIMEOUT)),
        read_tally(parts.get(CTA_COUNTERS_ORIG)),
        read_tally(parts.get(CTA_COUNTERS_REPLY)),
        read_helper(parts.get(CTA_HELP)),
        number(parts.get(CTA_ID)),
    )


def read_helper(octets: bytes | None) -> str | None:
    """Read the name of the helper that is attached, if any is."""
    name = None if octets is None else attributes(octets).get(CTA_HELP_NAME)
    return None if name is None else name.rstrip(b"\0").decode("ascii", "replace")


def spare_keys(leg: Leg) -> list[int]:
    """Return reply destination keys for *leg* in the order in which to try them.

    0 comes first: conntrack gives the packet quoted in an ICMP error source key
    0, so only with 0 is the error recognized and translated.  It is taken when
    the receiver uses one call ID for several callers; then what differs between
    callers is tried, the mapped number and the source, and then a scatter.
    """
    seed = zlib.crc32(leg.source + leg.destination + leg.key.to_bytes(2))
    scatter = [(seed + step * 0x9E37) & 0xFFFF for step in range(24)]
    return list(dict.fromkeys((0, leg.key, number(leg.source[2:]), *scatter)))
