"""What is known of a control connection while its parties talk, and its one row while they rest.

Theory of operation
-------------------
A call lasts for hours and its control connection says two words a minute.  What reads
them - two streams, their octets, three times - are a dozen objects of 700 octets; what
remains to be known when all has been said is a sixth of that, packed in one row::

    awake    a `Talk`: every octet finds its stream, every message changes it
    asleep   a row of octets, from which the `Talk` is made again at the next octet

Only what is usual fits into a row (`Talk.row`): whoever is in the middle of a message, has
a packet held or a request refused stays awake.  A row loses nothing: a `Talk` that is made
from it does what the former would have done.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pptp_nat.core.refused import Refused
from pptp_nat.core.stream import OVERLAY_OCTETS, Stream
from pptp_nat.core.tuples import Party

#: Who asks with which identifier since when (NaN: nobody); when and after how long who answered.
_ECHO: Final = struct.Struct("=B4sddfB")
_NEVER: Final = float("nan")
_NOBODY_ASKS: Final = (0, bytes(4), _NEVER)
#: Beginning of a row: identity (48 bits), when it began and last spoke; of both streams the next
#: sequence number, how many overlays and octets of history follow; `_BITS`.
_ROW: Final = struct.Struct("=IHddIIBBBBB")
_IDENTITY: Final = struct.Struct("=IH")
_SPOKE: Final = struct.Struct("=d")
_SPOKE_AT: Final = 14
_KEPT_AT: Final = 32  #: sizes of both histories
_ANSWER: Final = struct.Struct("=df")  #: when the last echo was answered, and after how long
# Bits of a row: of each stream whether `next` is known and whether it is synced, whether an
# answer follows, and whose.
_KNOWN, _SYNCED, _SECOND, _ANSWERED, _BY = 1, 2, 2, 16, 32
_BOTH: Final = (_KNOWN | _SYNCED) << _SECOND | _KNOWN | _SYNCED
_BITS_AT: Final = _ROW.size - 1
_OPAQUE: Final = frozenset(
    bits for bits in range(_BOTH + 1)
    if any(bits >> at & (_KNOWN | _SYNCED) == _KNOWN for at in (0, _SECOND))
)  # fmt: skip
_HISTORY: Final = 0xFF  #: octets of each stream that fit
OVERLAYS: Final = 0xFF * OVERLAY_OCTETS  #: octets of each stream's that fit


class Echo(NamedTuple):
    """The last Echo-Request that was answered."""

    by: Party  #: who answered
    at: float  #: monotonic seconds
    seconds: float  #: from this router to that party and back


class Talk:
    """A control connection whose parties talk: what their octets change."""

    __slots__ = (
        "created", "echo", "fresh", "id", "last_message", "originators", "refused", "responders",
    )  # fmt: skip

    def __init__(self, number: int, created: float, last_message: float) -> None:
        self.id = number
        self.created = created
        self.last_message = last_message
        self.originators = Stream()
        self.responders = Stream()
        #: numbers chosen for a message that is not complete yet: (party, own) -> seen
        self.fresh: dict[tuple[Party, int], int] | None = None
        self.refused: Refused | None = None  #: what has been refused to it, if anything
        self.echo: bytes | None = None  #: packed, see `_ECHO`

    def echo_asked(self, party: Party, identifier: bytes, now: float) -> None:
        """Note an Echo-Request of *party*."""
        answered = _ECHO.unpack(self.echo)[3:] if self.echo else (_NEVER, 0.0, 0)
        self.echo = _ECHO.pack(party, identifier, now, *answered)

    def echo_answered(self, party: Party, identifier: bytes, now: float) -> None:
        """Note an Echo-Reply of *party*; one that nobody has asked for says nothing."""
        if self.echo is None:
            return
        asker, asked_with, asked, *_ = _ECHO.unpack(self.echo)
        if asker != party and asked_with == identifier and asked <= now:
            self.echo = _ECHO.pack(asker, identifier, _NEVER, now, now - asked, party)

    @property
    def last_echo(self) -> Echo | None:
        """The last echo that was answered."""
        if self.echo is None:
            return None
        *_, at, seconds, by = _ECHO.unpack(self.echo)
        return None if at != at else Echo(Party(by), at, seconds)  # noqa: PLR0124  NaN

    @property
    def is_opaque(self) -> bool:
        """Whether octets of either party travel without being understood."""
        first, second = self.originators, self.responders
        return (first.next is not None and not first.synced) or (
            second.next is not None and not second.synced
        )

    def settle(self) -> None:
        """Let go of what was kept for a retransmission; see `Stream.settle`."""
        self.originators.settle()
        self.responders.settle()

    def row(self) -> bytes | None:
        """Return all of this in one row; None while it does not fit into one."""
        first, second, echo = self.originators, self.responders, self.echo
        if self.fresh is not None or self.refused is not None:
            return None
        if not first.is_at_rest or not second.is_at_rest or self.id >> 48:
            return None
        overlays, others = first.overlays, second.overlays
        history, kept = first.history, second.history
        if len(overlays) > OVERLAYS or len(others) > OVERLAYS:
            return None
        if len(history) > _HISTORY or len(kept) > _HISTORY:
            return None
        bits, answer = _bits(first) | _bits(second) << _SECOND, b""
        if echo is not None:
            _, _, asked, at, seconds, by = _ECHO.unpack(echo)
            if asked == asked or at != at:  # noqa: PLR0124  NaN
                return None  # the answer is still to come
            bits |= _ANSWERED | (_BY if by else 0)
            answer = _ANSWER.pack(at, seconds)
        fixed = _ROW.pack(
            self.id & 0xFFFFFFFF, self.id >> 32, self.created, self.last_message,
            first.next or 0, second.next or 0, len(overlays) // OVERLAY_OCTETS,
            len(others) // OVERLAY_OCTETS, len(history), len(kept), bits,
        )  # fmt: skip
        return fixed + overlays + others + history + kept + answer


def resting(
    number: int, created: float, spoke_at: float,
    first: tuple[int, bytes], second: tuple[int, bytes],
) -> bytes:  # fmt: skip
    """Return the row of parties of an earlier run, whose streams are synced and at rest.

    *first* and *second* are of each stream `Stream.next` and its overlays, 255 at most.
    """
    (following, overlays), (other_following, others) = first, second
    return _ROW.pack(
        number & 0xFFFFFFFF, number >> 32, created, spoke_at, following, other_following,
        len(overlays) // OVERLAY_OCTETS, len(others) // OVERLAY_OCTETS, 0, 0, _BOTH,
    ) + overlays + others  # fmt: skip


def _bits(stream: Stream) -> int:
    return (_KNOWN if stream.next is not None else 0) | (_SYNCED if stream.synced else 0)


def woken(row: bytes) -> Talk:
    """Return the `Talk` of which *row* was made."""
    low, high, created, spoke, following, other_following, one, other, kept, other_kept, bits = (
        _ROW.unpack_from(row)
    )
    talk = Talk(high << 32 | low, created, spoke)
    first, second = talk.originators, talk.responders
    overlays_end = _ROW.size + one * OVERLAY_OCTETS
    others_end = overlays_end + other * OVERLAY_OCTETS
    history_end = others_end + kept
    first.rest_at(
        following if bits & _KNOWN else None, bool(bits & _SYNCED),
        row[_ROW.size : overlays_end], row[others_end:history_end],
    )  # fmt: skip
    second.rest_at(
        other_following if bits & _KNOWN << _SECOND else None, bool(bits & _SYNCED << _SECOND),
        row[overlays_end:others_end], row[history_end : history_end + other_kept],
    )  # fmt: skip
    if bits & _ANSWERED:
        at, seconds = _ANSWER.unpack_from(row, history_end + other_kept)
        talk.echo = _ECHO.pack(*_NOBODY_ASKS, at, seconds, bool(bits & _BY))
    return talk


def identity(row: bytes) -> int:
    """Return whose *row* it is: `Talk.id`."""
    low, high = _IDENTITY.unpack_from(row)
    number: int = high << 32 | low
    return number


def spoke(row: bytes) -> float:
    """Return when the parties of *row* spoke last: `Talk.last_message`."""
    at: float = _SPOKE.unpack_from(row, _SPOKE_AT)[0]
    return at


def is_opaque(row: bytes) -> bool:
    """Return what `Talk.is_opaque` is of *row*."""
    return row[_BITS_AT] & _BOTH in _OPAQUE


def settled(row: bytes) -> bytes:
    """Return *row* without what was kept for a retransmission."""
    if not row[_KEPT_AT] and not row[_KEPT_AT + 1]:
        return row
    talk = woken(row)
    talk.settle()
    return talk.row() or row
