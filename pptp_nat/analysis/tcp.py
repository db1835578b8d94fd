"""Control connections in captures: TCP segments put in order for the core's streams.

The daemon may drop a segment that is ahead of a gap and have TCP send it again; a capture
holds each segment once.  So here segments wait, within bounds, until the gap is closed, or
until the receiver acknowledges what the capture has never seen.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.core.packet import SEQUENCE_MASK, TCP_HEADER_SIZE
from pptp_nat.core.stream import Stream

if TYPE_CHECKING:
    from pptp_nat.analysis.model import TcpTrouble
    from pptp_nat.analysis.packets import Evidence
    from pptp_nat.core.stream import Reader

_MOST_WAITING: Final = 64  #: segments of one direction ahead of a gap
_PATIENCE: Final = 1.0  #: seconds that a gap stays open although it is acknowledged
_LONG_PATIENCE: Final = 120.0  #: seconds; no TCP retransmits later
_HISTORY: Final = 65536  #: octets kept to be compared with retransmissions
_RECENT: Final = 8  #: segments that a copy made by the capture is looked for among
_COPIED_WITHIN: Final = 0.05  #: seconds; no TCP retransmits that soon
_HEADER: Final = struct.Struct("!HHIIBBH").unpack_from


class Segment(NamedTuple):
    """One TCP segment, as far as it was captured."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    payload: bytes  #: with zeros for what the capture has cut off
    cut: int  #: octets that it has cut off
    print: int  #: equal for copies of one packet


def segment_of(packet: bytes) -> Segment | None:
    """Return the segment in an IPv4 packet; None if its headers were cut off or contradict."""
    size = (packet[0] & 0x0F) * 4
    total = packet[2] << 8 | packet[3] or len(packet)
    if len(packet) < size + TCP_HEADER_SIZE or total < size + TCP_HEADER_SIZE:
        return None
    source, destination, sequence, acknowledgement, offset, flags, window = _HEADER(packet, size)
    start = size + (offset >> 4) * 4
    if start < size + TCP_HEADER_SIZE or start > total:
        return None
    payload = packet[start:]
    cut = total - start - len(payload)
    return Segment(
        packet[12:16], packet[16:20], source, destination, sequence, acknowledgement, flags,
        window, payload + bytes(cut), cut, hash((packet[4:6], packet[size:])),
    )  # fmt: skip


def ahead(of: int, number: int) -> int:
    """Return how many octets *number* lies ahead of *of*; negative behind it (RFC 9293)."""
    distance = (number - of) & SEQUENCE_MASK
    return distance - (1 << 32) if distance >> 31 else distance


class Direction:
    """What one party sends on a control connection."""

    def __init__(self, trouble: TcpTrouble) -> None:
        self.trouble = trouble
        self.stream = Stream()
        self.carriers: list[int] = []  #: numbers of the packets with the message under way
        self.syn: int | None = None  #: sequence number of its SYN
        self.fin: int | None = None  #: of its FIN
        self.acknowledged: int | None = None  #: what it has acknowledged of the other's octets
        self.unanswered: float | None = None  #: since when it owes an acknowledgement
        self._waiting: dict[int, tuple[bytes, int]] = {}  # sequence: octets, packet number
        self._since = 0.0  # when the first of them came, or the last gap was given up
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def is_copy(self, segment: Segment, time: float) -> bool:
        """Whether the capture has this very packet already; take note of it if not."""
        for seen, known in self._recent:
            if known == segment.print and 0 <= time - seen < _COPIED_WITHIN:
                return True
        self._recent.append((time, segment.print))
        return False

    def push(self, segment: Segment, evidence: Evidence, reader: Reader) -> None:
        """Read a segment's payload, and those that have waited for it."""
        trouble, stream, payload = self.trouble, self.stream, segment.payload
        trouble.segments += 1
        trouble.cut += segment.cut > 0
        distance = 0 if stream.next is None else ahead(stream.next, segment.sequence)
        if distance < 0:
            old = min(-distance, len(payload))
            if not (old == len(payload) == 1 and distance == -1):  # a keep-alive is no data
                trouble.retransmissions += old
        if distance > 0 and stream.synced:
            if not self._waiting:
                self._since = evidence.time
            if segment.sequence not in self._waiting:
                self._waiting[segment.sequence] = payload, evidence.number
            self._catch_up(reader, evidence.time)
            return
        if distance > 0:
            trouble.missing += distance
        self._read(segment.sequence, payload, evidence.number, reader)
        self._catch_up(reader, evidence.time)

    def acknowledge(self, number: int, reader: Reader, time: float) -> None:
        """Note that the other party has everything before *number*."""
        self.stream.acknowledge(number)
        self._catch_up(reader, time)

    def finish(self, reader: Reader) -> None:
        """Read what still waits: nothing will close its gap any more."""
        self._catch_up(reader, math.inf)

    def _distance(self, sequence: int) -> int:
        assert self.stream.next is not None
        return ahead(self.stream.next, sequence)

    def _catch_up(self, reader: Reader, time: float) -> None:
        """Read what has waited and is no longer ahead of a gap, or whose gap is for good.

        An acknowledgement alone is not enough: where several queues are captured from, it
        may come before what it acknowledges.
        """
        stream = self.stream
        while self._waiting:
            sequence = min(self._waiting, key=self._distance)
            distance = self._distance(sequence)
            if distance > 0:
                acknowledged = stream.beyond is not None and ahead(sequence, stream.beyond) >= 0
                patience = _PATIENCE if acknowledged else _LONG_PATIENCE
                if len(self._waiting) <= _MOST_WAITING and time - self._since < patience:
                    return
                stream.beyond = sequence  # for all that we know the receiver has it
                self.trouble.missing += distance
                self.carriers.clear()
            payload, number = self._waiting.pop(sequence)
            self.trouble.reordered += distance <= 0
            self._since = time
            self._read(sequence, payload, number, reader)

    def _read(self, sequence: int, payload: bytes, number: int, reader: Reader) -> None:
        if not self.carriers or self.carriers[-1] != number:
            self.carriers.append(number)
        distance = 0 if self.stream.next is None else self._distance(sequence)
        self.stream.push(sequence, payload, reader, limit=_HISTORY)
        self.trouble.octets += len(payload) - min(max(-distance, 0), len(payload))
        if not self.stream.head:
            self.carriers.clear()
