"""One direction of a control connection: TCP segments in, edits out.

Theory of operation
-------------------
A rewrite never changes a length, so it is an *overlay* of two octets at an
absolute sequence number.  Whatever a segment holds - one octet, half a message,
three messages, an old one once more - its output is its octets with the
overlays that fall into it.  Retransmission, other cuts and merging are one case.

A segment is split at `next`, the first sequence number not yet seen:

    old octets   are compared with what came first (first seen wins) and get the
                 same overlays again
    new octets   go through the framer, which finds the messages and asks the
                 `Reader` for the number of each call-ID field
    a gap        is refused: TCP sends again, in order, unless the receiver says that
                 it has what is missing: then it went another way

A field cut between its two octets must not wait for the second: a sender that
follows Nagle's algorithm sends that only when the first is acknowledged.  The
reader is asked for the first octet alone; only when it cannot tell for certain
is the packet held, for a moment.

When the framing is lost the stream is *opaque*: octets pass untouched until a
message boundary is certain (`pptp_nat.core.messages.find_boundary`).  A stream
met in the middle starts like that.

Limits: `limit` octets of unacknowledged stream and `_OVERLAYS` overlays are
kept; one incomplete message is at most `pptp_nat.core.messages.LONGEST` octets.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from pptp_nat.core.messages import (
    CALL_REPLIES,
    HEADER,
    LAYOUTS,
    PREFIX,
    REGULAR,
    Frame,
    MessageType,
    find_boundary,
    frame,
)  # fmt: skip
from pptp_nat.core.packet import SEQUENCE_MASK, Edit
from pptp_nat.errors import ExhaustedError, WireError

#: Overlays kept while unacknowledged, 6 octets each: a window of 64 KiB full of the shortest
#: messages.  What is older is dropped if it comes again, since it cannot be translated.
_OVERLAYS: Final = 4096
_OVERLAY: Final = struct.Struct("!IH")  #: sequence number of a field, its value
OVERLAY_OCTETS: Final = _OVERLAY.size
#: Octets of overlays kept after that, eight of them, for a retransmission nobody needed.
_KEPT: Final = 8 * _OVERLAY.size
#: What may be rewritten, in stream order: (offset, whether it is the sender's number).  None
#: instead: Result Code and General Error Code, one octet each.
_FIELDS: Final[Mapping[MessageType, tuple[tuple[int, bool | None], ...]]] = MappingProxyType({
    kind: (*layout.fields, *(((layout.result, None),) if kind in CALL_REPLIES else ()))
    for kind, layout in LAYOUTS.items()
})  # fmt: skip
_NO_EDITS: Final[list[Edit]] = []


class FirstOctet(NamedTuple):
    """What the first octet of a cut call-ID field becomes."""

    octet: int
    certain: bool


class Reader(Protocol):
    """What a stream asks and tells while it reads."""

    def number(self, kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:
        """Return what a call-ID field becomes.

        *own* says whose it is: the sender's or the receiver's.  *sent* is what
        its first octet became if that has travelled on already.

        Raises:
            ExhaustedError: no number is left; the segment must be dropped.
        """

    def result(self, value: int) -> int:
        """Return what Result Code and Error Code of the reply under way become.

        What the first octet becomes does not depend on the second.
        """

    def first_octet(self, kind: MessageType, high: int, *, own: bool) -> FirstOctet:
        """Return what the first octet of a call-ID field becomes, with the second unknown.

        Raises:
            ExhaustedError: as for `number`.
        """

    def message(self, head: Frame, octets: bytes) -> None:
        """Take note of a whole message, in its sender's octets."""

    def release(self, octet: int) -> None:
        """Let the held packet go; its last octet becomes *octet*."""

    def abandon(self) -> None:
        """Take note that the message under way will never be whole."""

    def oddity(self, slug: str) -> None:
        """Count a departure from the RFC or from TCP's order."""


class Progress(enum.Enum):
    """What is to become of the segment that was pushed."""

    PASS = "pass"  #: with the edits returned
    HOLD = "hold"  #: with the edits returned, once the cut field is decided
    DROP = "drop"  #: TCP will send it again


def _ahead(of: int, number: int) -> int:
    """Return how many octets *number* lies ahead of *of*; negative behind it (RFC 9293)."""
    distance = (number - of) & SEQUENCE_MASK
    return distance - (1 << 32) if distance >> 31 else distance


class Stream:
    """The octets that one party sends on a control connection."""

    __slots__ = (
        "beyond", "cut", "floor", "head", "held", "history", "next", "overlays", "synced",
    )  # fmt: skip

    def __init__(self) -> None:
        self.next: int | None = None  #: sequence number of the next new octet
        self.synced = False  #: whether message boundaries are known
        self.head = b""  #: octets of the message under way, up to `next`
        self.history = b""  #: octets as they came, unacknowledged, up to `next`
        self.overlays = b""  #: `_OVERLAY` records, oldest first
        #: what comes from before this sequence number cannot be translated: overlays were evicted,
        #: or the stream was met here
        self.floor: int | None = None
        self.beyond: int | None = None  #: what the receiver says to have, if it is more than we saw
        #: what the last octet of `head` became, if it is the first of a cut field
        self.cut: int | None = None
        self.held: object = None  #: the packet that waits for a cut field, as the caller knows it

    def start(self, sequence: int) -> None:
        """Begin at *sequence*, where a message certainly begins."""
        self.next = sequence & SEQUENCE_MASK
        self.synced = True
        self.head = self.history = b""

    def meet(self, sequence: int, *, synced: bool) -> None:
        """Begin at *sequence*, and let nothing pass from before it: it was never read.

        Until the receiver says that it has all of that; *synced*: a message seems to begin here.
        """
        self.start(sequence)
        self.synced, self.floor = synced, self.next

    @property
    def is_at_rest(self) -> bool:
        """Whether `rest_at` can tell all there is: no message is under way, no octet is missing."""
        return not (
            self.head or self.cut is not None or self.held is not None
            or self.floor is not None or self.beyond is not None
        )

    def rest_at(
        self, following: int | None, synced: bool, overlays: bytes, history: bytes  # noqa: FBT001
    ) -> None:
        """Be where a stream at rest was; the arguments are its attributes, *following* `next`."""
        self.next, self.synced = following, synced
        self.overlays, self.history = overlays, history

    def push(
        self, sequence: int, octets: bytes, reader: Reader, *, limit: int
    ) -> tuple[Progress, list[Edit]]:
        """Take a segment's payload; return what becomes of it and the edits to make.

        Args:
            sequence: of the first octet.
            octets: the payload, at least one octet.
            reader: is asked for numbers and told of messages.
            limit: octets of history to keep.

        Raises:
            ExhaustedError: no call ID is left for a new call; drop the segment.
        """
        if sequence == self.next and self.synced and not self.head:
            head = REGULAR.get(octets[:PREFIX])
            if head is not None and head.length == len(octets):
                return Progress.PASS, self._whole(head, octets, reader, limit)
        if self.next is None:
            self.next = sequence
        ahead = _ahead(self.next, sequence)
        if ahead > 0:
            if self.beyond is None or _ahead(sequence, self.beyond) < 0:
                reader.oddity("gap")
                return Progress.DROP, _NO_EDITS
            self._skip(sequence, reader)
            ahead = 0
        old = min(-ahead, len(octets))
        if old == 0:
            return self._advance(octets, 0, reader, limit)
        if self.floor is not None and _ahead(self.floor, sequence) < 0:
            reader.oddity("retransmission_too_old")
            return Progress.DROP, _NO_EDITS
        progress = Progress.PASS
        edits: list[Edit] = []
        if old < len(octets):
            progress, edits = self._advance(octets[old:], old, reader, limit)
        elif self.held is not None and ahead + old == 0:
            return Progress.DROP, _NO_EDITS  # its first copy is held and will be let go
        return progress, self._repeated(sequence, octets[:old], reader) + edits

    def _whole(self, head: Frame, octets: bytes, reader: Reader, limit: int) -> list[Edit]:
        """Read a segment that is one message: what `_advance` does, for nearly all segments."""
        assert self.next is not None
        assert head.type is not None
        edits = _NO_EDITS
        overlays = self.overlays
        for place, own in _FIELDS[head.type]:
            value = octets[place] << 8 | octets[place + 1]
            if own is None:
                became = reader.result(value)
            else:
                became = reader.number(head.type, value, own=own, sent=None)
            if became != value:
                overlays += _OVERLAY.pack(self.next + place & SEQUENCE_MASK, became)
                edits = [*edits, Edit(place, became.to_bytes(2, "big"))]
        self.overlays = overlays
        reader.message(head, octets)
        self._commit(octets, b"", limit)
        return edits

    def _skip(self, sequence: int, reader: Reader) -> None:
        """Go on at *sequence*: what comes before it went another way."""
        if self.held is not None:
            assert self.cut is not None
            reader.release(self.cut)
        reader.abandon()
        self.next, self.synced = sequence, False
        self.head, self.history, self.cut = b"", b"", None

    def _repeated(self, sequence: int, octets: bytes, reader: Reader) -> list[Edit]:
        """Return the edits that make old *octets* what they were the first time."""
        edits: list[Edit] = []
        assert self.next is not None
        first = _ahead(sequence, self.next) - len(self.history)  # where history begins in octets
        begin = max(first, 0)
        known = self.history[begin - first :][: max(len(octets) - begin, 0)]
        if known != octets[begin : begin + len(known)]:
            # A keep-alive's one octet is no data and may be anything (RFC 9293 section 3.8.4).
            if len(octets) > 1 or _ahead(sequence, self.next) > 1:
                reader.oddity("conflicting_overlap")
            edits.append(Edit(begin, known))
        for record in range(self._overlay(sequence - 1), len(self.overlays), _OVERLAY.size):
            at_sequence, value = _OVERLAY.unpack_from(self.overlays, record)
            at = _ahead(sequence, at_sequence)
            if not -1 <= at < len(octets):
                break
            field = value.to_bytes(2, "big")
            if at == -1:
                at, field = 0, field[1:]
            edits.append(Edit(at, field[: len(octets) - at]))
        if self.cut is not None and self.held is None:
            at = _ahead(sequence, self.next) - 1
            if 0 <= at < len(octets):
                edits.append(Edit(at, bytes((self.cut,))))
        return edits

    def _overlay(self, sequence: int) -> int:
        """Return where the first overlay at or after *sequence* is.

        They are in order, but for a sender that jumps about in the sequence space.
        """
        first, last = 0, len(self.overlays) // _OVERLAY.size
        while first < last:
            middle = (first + last) // 2
            (at, _) = _OVERLAY.unpack_from(self.overlays, middle * _OVERLAY.size)
            if _ahead(sequence, at) < 0:
                first = middle + 1
            else:
                last = middle
        return first * _OVERLAY.size

    def _advance(
        self, new: bytes, at: int, reader: Reader, limit: int
    ) -> tuple[Progress, list[Edit]]:
        """Read new octets, which begin at *at* in their segment."""
        have = len(self.head)
        octets = self.head + new if have else new
        edits: list[Edit] = []
        start = 0  # of the message under way, in octets
        progress = Progress.PASS
        try:
            while True:
                if not self.synced:
                    boundary = find_boundary(octets, start)
                    if boundary is None:
                        start = max(len(octets) - HEADER.size + 1, start)
                        break
                    self.synced = True
                    start = boundary
                if len(octets) - start < HEADER.size:
                    break
                try:
                    head = frame(octets, start)
                except WireError as error:
                    reader.oddity(error.reason)
                    self.synced = False
                    self.cut = None
                    start += 1
                    continue
                if head.type is not None:
                    for field, own in _FIELDS[head.type]:
                        place = start + field
                        if place + 1 < have or place >= len(octets):
                            continue
                        if place + 1 == len(octets):
                            progress = self._cut(head.type, octets[place], reader, own=own)
                            if self.cut != octets[place]:
                                assert self.cut is not None
                                edits.append(Edit(place - have + at, bytes((self.cut,))))
                            continue
                        self._field(octets, place, head.type, reader, edits, at - have, own=own)
                if len(octets) - start < head.length:
                    break
                reader.message(head, octets[start : start + head.length])
                start += head.length
        except ExhaustedError:
            # What came before the refused message is not read twice.
            self._commit(new[: max(start - have, 0)], octets[min(start, have) : have], limit)
            raise
        self._commit(new, octets[start:], limit)
        return progress, edits

    def _field(
        self, octets: bytes, place: int, kind: MessageType, reader: Reader,
        edits: list[Edit], shift: int, *, own: bool | None,
    ) -> None:  # fmt: skip
        """Decide the field at *place*, whose second octet is new."""
        assert self.next is not None
        have = len(self.head)
        was_cut = place < have
        value = octets[place] << 8 | octets[place + 1]
        sent = self.cut if was_cut and self.held is None else None
        if own is None:
            became = reader.result(value)
        else:
            became = reader.number(kind, value, own=own, sent=sent)
        if was_cut:
            self.cut = None
            if self.held is not None:
                reader.release(became >> 8)
        if became == value:
            return
        self.overlays += _OVERLAY.pack((self.next - have + place) & SEQUENCE_MASK, became)
        field = became.to_bytes(2, "big")
        edits.append(
            Edit(place + 1 + shift, field[1:]) if was_cut else Edit(place + shift, field)
        )

    def _cut(self, kind: MessageType, high: int, reader: Reader, *, own: bool | None) -> Progress:
        """Decide the first octet of a field whose second has not come yet."""
        if own is None:
            self.cut = reader.result(high << 8) >> 8
            return Progress.PASS
        decided = reader.first_octet(kind, high, own=own)
        self.cut = decided.octet
        return Progress.PASS if decided.certain else Progress.HOLD

    def _commit(self, new: bytes, head: bytes, limit: int) -> None:
        """Move on past *new*; what is left of an incomplete message is *head*."""
        assert self.next is not None
        self.next = (self.next + len(new)) & SEQUENCE_MASK
        self.head = head
        self.history = (self.history + new)[-limit:] if self.history else new[-limit:]
        excess = len(self.overlays) - _OVERLAYS * _OVERLAY.size
        if excess > 0:
            self.overlays = self.overlays[excess:]
            (self.floor, _) = _OVERLAY.unpack_from(self.overlays)

    def acknowledge(self, number: int) -> None:
        """Note that the receiver has everything before *number*."""
        if number == self.next and len(self.overlays) <= _KEPT and self.floor is None:
            self.history = b""  # the usual case
            self.beyond = None
            return
        if self.next is None:
            return
        unacknowledged = _ahead(number, self.next)
        # The end of a stream (FIN) is acknowledged like an octet; an old connection's late
        # segment acknowledges anything.  So this alone changes nothing.
        self.beyond = number if unacknowledged < 0 else None
        if unacknowledged < 0:
            return
        if unacknowledged < len(self.history):
            self.history = self.history[len(self.history) - unacknowledged :]
        if self.floor is not None and _ahead(self.floor, number) >= 0:
            self.floor = None
        most = len(self.overlays) - _KEPT
        if most > 0:
            self.overlays = self.overlays[min(self._overlay(number), most) :]

    def settle(self) -> None:
        """Let go of the octets of a stream that has been quiet for long; overlays stay."""
        self.history = b""
