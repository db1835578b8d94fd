"""Packets that wait for a moment, since one octet of theirs cannot be told yet."""

from __future__ import annotations

from pptp_nat.core.calls import Connection
from pptp_nat.core.events import Released
from pptp_nat.core.packet import Edit, Segment, edited
from pptp_nat.core.tuples import Party


class Held:
    """A packet that waits for the second octet of a cut call-ID field."""

    __slots__ = ("connection", "packet", "packet_id", "sender", "view")

    def __init__(
        self, connection: Connection, sender: Party, packet_id: int, packet: bytes, view: Segment
    ) -> None:
        self.connection = connection
        self.sender = sender
        self.packet_id = packet_id
        self.packet = packet
        self.view = view

    def release(self, octet: int) -> Released:
        """Return the packet with *octet* as the last of its payload."""
        last = Edit(self.view.end - self.view.payload_at - 1, bytes((octet,)))
        return Released(self.packet_id, edited(self.packet, self.view, [last]))
