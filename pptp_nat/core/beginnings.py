"""Where control connections begin, as far as their packets tell.

A connection begins at the octet behind its SYN.  Of most of them that is not seen: the
rules let the SYN of a connection pass that conntrack does not know, since a packet in the
queue costs the daemon as much as anything that follows (decision 57).  Then a connection
begins with what only an opener says, and first: a Start-Control-Connection-Request (RFC
2637 section 3.1).  One that is met in its middle is followed from a certain message on.

Anything else is doubtful: an earlier segment may have been overtaken, and what goes by
unread cannot be translated.  It is dropped once.  TCP sends again from the first octet that
is missing, so a segment that comes twice has nothing before it that is still to come; and
if it has, the stream lets none of that pass (`pptp_nat.core.stream.Stream.meet`).
"""

from __future__ import annotations

from typing import Final

from pptp_nat.core.book import Book
from pptp_nat.core.calls import Connection
from pptp_nat.core.messages import OPENING, OPENING_AT, is_boundary, may_open
from pptp_nat.core.packet import ACK, SEQUENCE_MASK, Segment
from pptp_nat.core.states import ControlState
from pptp_nat.core.stream import Stream
from pptp_nat.core.tuples import Party, reverse_key

WINDOW: Final = 1 << 16  #: octets around the expected one in which FIN, RST, SYN are believed


class Beginnings:
    """Remembers SYNs, and what was dropped once; of each the latest, so many as *book* allows."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.half_open: dict[bytes, int] = {}  #: 12 octets of the opener's flow -> its first octet
        self._doubted: dict[bytes, int] = {}  # 12 octets of a flow -> where it was dropped once

    def syn(self, key: bytes, view: Segment, known: Connection | None, sender: Party) -> None:
        """Remember where a connection would begin, whose opener's flow is *key*.

        An old one of the same name, *known*, is over when octets follow, not yet: a SYN that
        comes twice or that anybody has forged ends nothing (RFC 9293 section 3.10.7.4).
        """
        if view.flags & ACK:
            return  # the responder's start is known from the opener's first acknowledgement
        start = (view.sequence + 1) & SEQUENCE_MASK
        if known is not None:
            expected = known.streams[sender].next
            if expected is not None and (expected - start) & SEQUENCE_MASK < WINDOW:
                return  # of this connection, late
        self._remember(self.half_open, key, start)

    def are_new(
        self, key: bytes, known: Connection | None, sender: Party, octets: bytes, sequence: int
    ) -> bool | None:
        """Whether a connection begins with *octets*; None: drop them, they will come again.

        Args:
            key: 12 octets of the flow.
            known: the connection of that name.
            sender: who of it sends them.
            octets: a segment's payload, not empty.
            sequence: of the first one.
        """
        if self.half_open and self.half_open.get(key) == sequence:
            return True
        if known is None:
            if key in self.half_open or reverse_key(key) in self.half_open:
                return True  # the stream knows what is missing
            return True if self.is_clear(key, octets, sequence) else None
        if not _opens(octets):
            return False  # nearly always
        expected = known.streams[sender].next
        if expected is None or (sequence - expected + WINDOW) & SEQUENCE_MASK <= 2 * WINDOW:
            return False
        if known.state is ControlState.CLOSING:
            return True
        return True if self._comes_again(key, sequence) else None

    def is_clear(self, key: bytes, octets: bytes, sequence: int) -> bool:
        """Whether what is sent by the flow *key* may be followed from *octets* on."""
        return _opens(octets) or is_boundary(octets) or self._comes_again(key, sequence)

    def _comes_again(self, key: bytes, sequence: int) -> bool:
        if self._doubted.pop(key, None) == sequence:
            return True
        self._book.counts["beginning_unknown"] += 1
        self._remember(self._doubted, key, sequence)
        return False

    def begin(self, connection: Connection, key: bytes, view: Segment, octets: bytes) -> None:
        """Have the streams of a new *connection* begin where they do, as far as is known.

        *octets* are the first ones of it that were seen, in a segment of the flow *key*.
        """
        opener, responder = connection.streams
        is_opener = connection.key == key
        start = self.half_open.pop(connection.key, None)
        if start is not None:
            opener.start(start)
        elif is_opener and may_open(octets):
            start = view.sequence
            opener.meet(start, synced=True)
        elif is_opener:
            opener.meet(view.sequence, synced=False)
        if not is_opener:
            responder.meet(view.sequence, synced=False)
        elif view.sequence == start and view.flags & ACK:
            # The opener speaks first (RFC 2637 section 3.1), so what it has
            # acknowledged is the start of the responder's octets.
            responder.start(view.acknowledgement)

    @staticmethod
    def earlier(connection: Connection, stream: Stream, sequence: int, octets: bytes) -> bytes:
        """Have *stream* begin with *octets* if it was met inside the message that these begin.

        A later piece of the first message has come twice while the first one was lost, twice.
        No number is in that message, so what has passed of it unread does no harm.  Return
        *octets*, and what is known of what follows them.
        """
        floor, following = stream.floor, stream.next
        if connection.state is not ControlState.OPENING or connection.calls or not _opens(octets):
            return octets
        if floor is None or following is None or stream.overlays or stream.cut is not None:
            return octets
        gap, passed = (floor - sequence) & SEQUENCE_MASK, (following - floor) & SEQUENCE_MASK
        if not gap:
            return octets  # nearly always: that is where it begins
        if stream.synced and len(stream.head) != passed:
            return octets  # it has heard something
        if gap + passed > octets[0] << 8 | octets[1]:
            return octets  # some of it lies behind that message
        known = stream.history
        stream.meet(sequence, synced=True)
        if gap <= len(octets) < gap + passed == gap + len(known) and known.startswith(octets[gap:]):
            octets = octets[:gap] + known
        return octets

    def _remember(self, among: dict[bytes, int], key: bytes, sequence: int) -> None:
        among.pop(key, None)
        while among and len(among) >= self._book.settings.half_open:
            del among[next(iter(among))]
        among[key] = sequence


def _opens(octets: bytes) -> bool:
    return octets[OPENING_AT : OPENING_AT + len(OPENING)] == OPENING
