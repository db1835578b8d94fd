"""Packets sorted: what is of interest, what is ordinary GRE, what may be PPP control.

One packet at a time here; `pptp_nat.analysis.bulk` does the same to thousands that are alike.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis import links
from pptp_nat.analysis.formats import TIMELESS, Interface, Record
from pptp_nat.analysis.packets import ABSENT, Columns, Row, columns_of
from pptp_nat.core.messages import PORT
from pptp_nat.core.packet import ENHANCED_GRE_PROTOCOL, GRE, IP_HEADER_SIZE, TCP

if TYPE_CHECKING:
    from pptp_nat.analysis.model import Damage

ICMP: Final = 1
_ICMP_ERRORS: Final = frozenset((3, 11, 12))
FRAGMENT: Final = 0x3FFF  #: More Fragments and the offset
PLAIN_KEPT: Final = 32  #: packets of unencrypted data of each flow that are shown whole
_IP: Final = struct.Struct("!BxHxxHxB").unpack_from
_PORTS: Final = struct.Struct("!HH").unpack_from
_GRE: Final = struct.Struct("!HHHH").unpack_from
_U32: Final = struct.Struct("!I").unpack_from

#: Flags of ordinary GRE: whether S is set, whether A is.
FLAGS: Final = {0x3001: (True, False), 0x3081: (True, True), 0x2081: (False, True)}

#: (spot, source and destination, key): one direction of GRE at one place.
FlowKey = tuple[bytes, bytes, int]


class Special(NamedTuple):
    """A packet that is looked at by itself."""

    number: int
    time: float
    spot: bytes
    packet: bytes  #: from its IPv4 header on, up to IP's total length or where it was cut
    ordinary: bool  #: it stands in the columns as well


@dataclass(slots=True)
class Window:
    """A stretch of a capture, sorted."""

    packets: int = 0
    octets: int = 0  #: on the wire
    cut: int = 0  #: packets that the snap length has shortened
    first: float | None = None
    last: float | None = None
    links: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    flows: dict[FlowKey, Columns] = field(default_factory=dict)
    specials: list[Special] = field(default_factory=list)  #: in the order of capture
    damage: Damage | None = None
    position: int = 0  #: octets of the file that have been read

    def shift(self, base: int) -> None:
        """Add *base* to all packet numbers."""
        self.specials = [each._replace(number=each.number + base) for each in self.specials]
        for columns in self.flows.values():
            columns.shift(base)


# What a payload's first octets are.
ENCRYPTED: Final = 0  #: or compressed
DATA: Final = 1  #: of the network protocols, in the clear
_NOTHING_TO_SEE: Final = (b"\xfd", b"\0", b"")
CONTROL: Final = 2  #: PPP control, or framed so that one must look closer


def kind_of_payload(head: bytes) -> int:
    """Tell what a PPP packet is by its first 4 octets (RFC 1661 section 2).

    The address and control field may be left out, and of the protocol field the first
    octet if it is zero.  Protocols below 0x0100 are data; the rest is control.
    """
    if head[:2] == b"\xff\x03":
        head = head[2:]
    if head[:1] == b"\0":
        head = head[1:]
    elif head[:1] in (b"\x7d", b"\xff"):  # escaped octets
        return CONTROL
    if head[:1] in _NOTHING_TO_SEE:
        return ENCRYPTED
    return DATA if head[0] & 1 else CONTROL


class Sorter:
    """Sorts packets into a `Window`."""

    def __init__(self, ports: frozenset[int] = frozenset((PORT,))) -> None:
        self.ports = ports
        self.window = Window()
        self._rows: dict[FlowKey, list[Row]] = {}
        self._plain: Counter[FlowKey] = Counter()

    def take(self, number: int, record: Record, interface: Interface) -> None:
        """Sort one packet."""
        window, frame, time = self.window, record.frame, record.time
        if time == TIMELESS:
            time = window.last or 0.0
        self.seen(time, time)
        window.packets += 1
        window.octets += record.wire
        window.cut += record.wire > len(frame)
        window.links.add(interface.link)
        at = links.ipv4_at(interface.link, frame)
        if at is None or len(frame) < at + IP_HEADER_SIZE:
            return
        first, total, fragment, protocol = _IP(frame, at)
        size = (first & 0x0F) * 4
        # Where segmentation is offloaded the length may be 0: what is there is all.
        packet = frame[at : at + total] if total else frame[at:]
        if size < IP_HEADER_SIZE or len(packet) < size:
            return
        spot = links.spot_of(interface.link, frame)
        if record.interface:
            spot += record.interface.to_bytes(4, "big")
        if fragment & FRAGMENT:
            if protocol in (TCP, GRE, ICMP):
                window.counts["fragments"] += 1
                window.specials.append(Special(number, time, spot, packet, ordinary=False))
        elif protocol == GRE:
            self._gre(number, time, spot, packet, size)
        elif self.wanted(protocol, packet, size):
            window.counts["tcp" if protocol == TCP else "icmp"] += 1
            window.specials.append(Special(number, time, spot, packet, ordinary=False))

    def wanted(self, protocol: int, packet: bytes, size: int) -> bool:
        """Whether a packet that is neither GRE nor a fragment is of interest."""
        if protocol == TCP:
            return len(packet) >= size + 4 and not self.ports.isdisjoint(_PORTS(packet, size))
        return protocol == ICMP and len(packet) > size and packet[size] in _ICMP_ERRORS

    def seen(self, first: float, last: float) -> None:
        """Note when packets were captured."""
        window = self.window
        window.first = first if window.first is None else min(window.first, first)
        window.last = last if window.last is None else max(window.last, last)

    def _gre(self, number: int, time: float, spot: bytes, packet: bytes, size: int) -> None:
        window = self.window
        if len(packet) < size + 4 or not _is_enhanced(packet, size):
            window.counts["other_gre"] += 1
            return
        window.counts["gre"] += 1
        row = ordinary(packet, number, time) if size == IP_HEADER_SIZE else None
        if row is None:
            window.specials.append(Special(number, time, spot, packet, ordinary=False))
            return
        key = (spot, packet[12:20], packet[26] << 8 | packet[27])
        self._rows.setdefault(key, []).append(row)
        if row[2] and self.is_wanted(key, kind_of_payload(row[5].to_bytes(4, "big"))):
            self.show(key, number, time, packet)

    def is_wanted(self, key: FlowKey, kind: int) -> bool:
        """Whether the next packet of a flow deserves a closer look for its *kind* of payload."""
        if kind == DATA:
            self._plain[key] += 1
            return self._plain[key] <= PLAIN_KEPT
        return kind != ENCRYPTED

    def show(self, key: FlowKey, number: int, time: float, packet: bytes) -> None:
        """Keep an ordinary packet for a closer look."""
        self.window.specials.append(Special(number, time, key[0], packet, ordinary=True))

    def finish(self) -> Window:
        """Return what was sorted, and begin anew."""
        window = self.window
        for key, rows in self._rows.items():
            if key in window.flows:
                rows = sorted([*window.flows[key].rows(), *rows], key=_number)  # noqa: PLW2901
            window.flows[key] = columns_of(rows)
        window.specials.sort(key=_position)
        self.window, self._rows, self._plain = Window(), {}, Counter()
        return window


def ordinary(packet: bytes, number: int, time: float) -> Row | None:
    """Return the row of a packet with a 20-octet IP header; None if it is no ordinary one."""
    if len(packet) < 28:
        return None
    flags, _, length, _ = _GRE(packet, 20)
    if flags not in FLAGS:
        return None
    has_sequence, has_acknowledgement = FLAGS[flags]
    at = 28 + 4 * (has_sequence + has_acknowledgement)
    if (
        (packet[2] << 8 | packet[3]) != at + length
        or len(packet) < at + min(length, 4)
        or (length and not has_sequence)
    ):
        return None
    sequence = acknowledgement = ABSENT
    if has_sequence:
        (sequence,) = _U32(packet, 28)
    if has_acknowledgement:
        (acknowledgement,) = _U32(packet, at - 4)
    head = int.from_bytes(packet[at : at + min(length, 4)].ljust(4, b"\0"), "big")
    return time, number, length, sequence, acknowledgement, head


def _is_enhanced(packet: bytes, at: int) -> bool:
    return (
        packet[at + 1] & 7 == 1
        and packet[at + 2] << 8 | packet[at + 3] == ENHANCED_GRE_PROTOCOL
    )


def _number(row: Row) -> int:
    return row[1]


def _position(special: Special) -> int:
    return special.number
