"""The two file formats: classic pcap and pcapng, in either byte order.

Sources: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.  A `Form` is what must be known to
read the next record; pcapng may change it between records.  Offsets are octets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pptp_nat.errors import UsageError

# Specification constants.
_PCAP: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e6), b"\xa1\xb2\xc3\xd4": (">", 1e6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e9), b"\xa1\xb2\x3c\x4d": (">", 1e9),
    # Alexey Kuznetsov's: 8 octets more per record
    b"\x34\xcd\xb2\xa1": ("<", 1e6), b"\xa1\xb2\xcd\x34": (">", 1e6),
}  # fmt: skip
_MODIFIED: Final = frozenset((b"\x34\xcd\xb2\xa1", b"\xa1\xb2\xcd\x34"))
SECTION: Final = 0x0A0D0D0A
SECTION_OCTETS: Final = b"\n\r\r\n"
_BYTE_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
INTERFACE: Final = 1
PACKET: Final = 2  #: obsolete
SIMPLE: Final = 3
ENHANCED: Final = 6
SHORTEST_BLOCK: Final = 12
_TIME_RESOLUTION: Final = 9
_TIME_OFFSET: Final = 14
_NAME: Final = 2
PCAP_HEADER: Final = 24
PCAP_RECORD: Final = 16

# Implementation constants.
#: octets of a record; Linux's largest loopback packet is 64 KiB, GSO's 512 KiB at most
LONGEST: Final = 1 << 20
_MOST_INTERFACES: Final = 1024
TIMELESS: Final = -1.0  #: stands for the time of a packet whose block has none


@dataclass(frozen=True, slots=True)
class Interface:
    """Where packets were captured (of pcap: the whole file)."""

    link: int
    rate: float  #: units of time per second
    offset: int = 0  #: seconds to be added
    snap: int = 0  #: octets; 0: no limit
    name: str = ""


@dataclass(slots=True)
class Form:
    """How the next record is to be read."""

    kind: str  #: ``pcap`` or ``pcapng``
    order: str  #: ``<`` or ``>``
    interfaces: list[Interface] = field(default_factory=list)
    header: int = 16  #: octets before the packet in a record (pcap) or block (pcapng)
    loose: bool = False  #: its first packet has a time that cannot be: its writer does so


class BadRecord(Exception):
    """What stands here is no record; the text says why."""


class Record(NamedTuple):
    """One packet as a file has it."""

    time: float
    interface: int
    frame: bytes
    wire: int  #: octets that it had on the wire


def recognise(start: bytes, name: str) -> Form:
    """Return how the file is written whose first octets are *start*.

    Raises:
        UsageError: it is no capture.
    """
    magic = start[:4]
    if magic in _PCAP and len(start) >= PCAP_HEADER:
        order, rate = _PCAP[magic]
        (snap, network) = struct.unpack_from(order + "II", start, 16)
        # the upper half may say how long a frame check sequence is
        link = Interface(network & 0xFFFF, rate, snap=snap)
        (parts,) = struct.unpack_from(order + "4xI", start.ljust(PCAP_HEADER + 8), PCAP_HEADER)
        header = 24 if magic in _MODIFIED else 16
        return Form("pcap", order, [link], header, loose=parts >= rate)
    if magic == SECTION_OCTETS and start[8:12] in _BYTE_ORDERS:
        return Form("pcapng", _BYTE_ORDERS[start[8:12]], header=28)
    if not start:
        raise UsageError(f"{name}: the file is empty")
    if magic in _PCAP or magic == SECTION_OCTETS:
        raise UsageError(f"{name}: the file ends within its first header")
    raise UsageError(f"{name}: neither pcap nor pcapng: record with `tcpdump -w FILE`")


def pcap_length(form: Form, start: bytes) -> int:
    """Return the octets of the record that begins with *start*, `PCAP_RECORD` octets."""
    return form.header + int(struct.unpack_from(form.order + "8xI", start)[0])


def pcap_record(form: Form, octets: bytes) -> Record:
    """Return the packet in a record, of which *octets* are all.

    Raises:
        BadRecord: it contradicts itself.
    """
    seconds, parts, captured, wire = struct.unpack_from(form.order + "IIII", octets)
    interface = form.interfaces[0]
    if captured > LONGEST or (captured == wire == 0):
        raise BadRecord(f"a packet that claims {captured} octets")
    if parts >= interface.rate and not form.loose:
        raise BadRecord(f"a packet whose time has {parts} parts of a second")
    frame = octets[form.header : form.header + captured]
    return Record(seconds + parts / interface.rate, 0, frame, wire)


def block_length(form: Form, start: bytes) -> tuple[int, int]:
    """Return (type, octets) of the block that begins with *start*, `SHORTEST_BLOCK` octets.

    Raises:
        BadRecord: there is none.
    """
    if len(start) < SHORTEST_BLOCK:
        raise BadRecord("the file ends within a block")
    order = form.order
    if start[:4] == SECTION_OCTETS:
        order = _BYTE_ORDERS.get(start[8:12], "")
        if not order:
            raise BadRecord("a section header without byte-order magic")
    kind, length = struct.unpack_from(order + "II", start)
    if length < SHORTEST_BLOCK or length % 4 or length > LONGEST + 64:
        raise BadRecord(f"a block of type {kind:#x} that claims {length} octets")
    return kind, length


def read_block(form: Form, kind: int, length: int, block: bytes) -> Record | None:
    """Return the packet in a block of *length* octets; take note of sections and interfaces.

    Raises:
        BadRecord: the block contradicts itself, or is not whole.
    """
    if len(block) < length:
        raise BadRecord("the file ends within a block")
    order = form.order
    if kind == SECTION:
        order = form.order = _BYTE_ORDERS[block[8:12]]
        form.interfaces.clear()
    if struct.unpack_from(order + "I", block, len(block) - 4)[0] != len(block):
        raise BadRecord("a block whose two lengths differ")
    if kind == INTERFACE:
        if len(form.interfaces) >= _MOST_INTERFACES:
            raise BadRecord(f"more than {_MOST_INTERFACES} interfaces")
        form.interfaces.append(_interface(order, block))
    elif kind in (ENHANCED, PACKET):
        return _enhanced(form, kind, block)
    elif kind == SIMPLE:
        return _simple(form, block)
    return None


def _enhanced(form: Form, kind: int, block: bytes) -> Record:
    if len(block) < 32:
        raise BadRecord("a packet block without packet header")
    if kind == ENHANCED:
        number, high, low, captured, wire = struct.unpack_from(form.order + "IIIII", block, 8)
    else:
        number, _, high, low, captured, wire = struct.unpack_from(form.order + "HHIIII", block, 8)
    if captured > len(block) - 32:
        raise BadRecord(f"a packet of {captured} octets in a block of {len(block)}")
    if number >= len(form.interfaces):
        raise BadRecord(f"a packet of interface {number}, which is not described")
    interface = form.interfaces[number]
    time = (high << 32 | low) / interface.rate + interface.offset
    return Record(time, number, block[28 : 28 + captured], wire)


def _simple(form: Form, block: bytes) -> Record:
    """Read a packet that has no time: `TIMELESS`."""
    if not form.interfaces or len(block) < 16:
        raise BadRecord("a packet of no interface")
    (wire,) = struct.unpack_from(form.order + "I", block, 8)
    snap = form.interfaces[0].snap
    captured = min(wire, len(block) - 16, snap or wire)
    return Record(TIMELESS, 0, block[12 : 12 + captured], wire)


def _interface(order: str, block: bytes) -> Interface:
    if len(block) < 20:
        raise BadRecord("an interface block that is too short")
    link, _, snap = struct.unpack_from(order + "HHI", block, 8)
    rate, offset, name = 1e6, 0, ""
    at = 16
    while at + 4 <= len(block) - 4:
        code, length = struct.unpack_from(order + "HH", block, at)
        value = block[at + 4 : min(at + 4 + length, len(block) - 4)]
        if code == 0:
            break
        if code == _TIME_RESOLUTION and len(value) == 1:
            rate = 2.0 ** (value[0] & 0x7F) if value[0] & 0x80 else 10.0 ** value[0]
        elif code == _TIME_OFFSET and len(value) == 8:
            (offset,) = struct.unpack(order + "q", value)
        elif code == _NAME:
            name = value.decode("utf-8", "replace")
        at += 4 + (length + 3 & ~3)
    return Interface(link, rate, offset, snap, name)
