"""GRE of stories and captures fed straight to the readers, with nothing in between."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.packets import ABSENT, Evidence, GrePacket, Row, columns_of
from pptp_nat.analysis.ppp import Ppp
from pptp_nat.core.messages import Role


def gre_packets(
    packets: Iterable[tuple[float, bytes]], pns: bytes, key: int | None = None
) -> list[GrePacket]:
    """Return the GRE packets among IPv4 *packets*; *pns* sends the PNS's, by its address."""
    found = []
    for number, (time, packet) in enumerate(packets, 1):
        if packet[9] != 47:
            continue
        octets = packet[20:]
        flags, _, length, call_id = struct.unpack_from("!HHHH", octets)
        at, numbers = 8, []
        for bit in (0x1000, 0x80):
            numbers.append(struct.unpack_from("!I", octets, at)[0] if flags & bit else None)
            at += 4 * bool(flags & bit)
        carried = struct.unpack_from("!H", packet, 2)[0] - 20 - at
        sender = Role.PNS if packet[12:16] == pns else Role.PAC
        found.append(GrePacket(
            Evidence(0, number, time), sender, call_id, flags, length, carried, *numbers,
            octets[at : at + length], len(packet), 0,
        ))  # fmt: skip
    return found


def ppp_of(packets: Iterable[GrePacket]) -> Ppp:
    """Feed *packets* to a reader of PPP."""
    ppp = Ppp()
    for packet in packets:
        ppp.feed(packet)
    return ppp


def row(packet: GrePacket) -> Row:
    return (
        packet.evidence.time, packet.evidence.number, packet.payload_length,
        ABSENT if packet.sequence is None else packet.sequence,
        ABSENT if packet.acknowledgement is None else packet.acknowledgement,
        int.from_bytes(packet.payload[:4].ljust(4, b"\0"), "big"),
    )  # fmt: skip


def quality_of(packets: Iterable[GrePacket], batch: int = 1000) -> dict[Role, GreQuality]:
    """Feed *packets*, *batch* at a time, to a measure of each direction."""
    packets = list(packets)
    measures = {role: GreQuality() for role in Role}
    for at in range(0, len(packets), batch):
        part = packets[at : at + batch]
        columns = {
            role: columns_of([row(each) for each in part if each.sender is role]) for role in Role
        }
        for role, quality in measures.items():
            quality.feed_many(columns[role], columns[role.other])
    return measures
