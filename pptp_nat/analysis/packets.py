"""What passes between whoever reads packets and whoever judges them.

A packet of enhanced GRE becomes one of two things:

`Columns`    the ordinary ones, by the hundred, column by column, so that what is true of
             all of them costs a comparison and not a loop
`GrePacket`  one by one, where something about it is worth a closer look: it may be
             PPP control, or it is cut, in fragments, or not as RFC 2637 section 4.1 has it

Times are Unix seconds, lengths octets, numbers host order.
"""

from __future__ import annotations

import sys
from array import array
from operator import eq
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pptp_nat.core.messages import Role

U32: Final = "I" if array("I").itemsize == 4 else "L"  #: of `array`
#: Where the four octets of a number in an array of `U32` stand, the highest first.
OCTETS_OF_U32: Final = (3, 2, 1, 0) if sys.byteorder == "little" else (0, 1, 2, 3)
OPENING: Final = 6  #: packets that `Columns.repeats` looks at
ABSENT: Final = -1  #: stands in a `Row` where the packet has no such field


def column(octets: bytes, meaning: bytes | None = None) -> int:
    """Return a column of octets as one number, each octet being what *meaning* has for it."""
    return int.from_bytes(octets if meaning is None else octets.translate(meaning), sys.byteorder)


class Evidence(NamedTuple):
    """Where something is to be seen: a packet of a capture."""

    file: int  #: index into `pptp_nat.analysis.model.Analysis.files`
    number: int  #: of the packet in its file, from 1, as Wireshark counts
    time: float


#: A row of `Columns`: (time, packet number, payload length, sequence number,
#: acknowledgement number, head); `ABSENT` for a number that the packet does not carry.
Row = tuple[float, int, int, int, int, int]


class Columns:
    """Ordinary packets of one direction of a call, in the order of capture.

    Ordinary is: no fragment, no IP options, K set, at least one of S and A set, all other
    flags clear, S set if there is payload, the header captured whole, and the payload as long
    as the header claims.
    Equal indices belong to one packet; treat all columns as read-only.
    """

    __slots__ = (
        "acknowledged", "acknowledgements", "heads", "lengths", "numbers", "sequenced",
        "sequences", "times",
    )  # fmt: skip

    waits = False  #: whether it had better be measured together with what follows

    def __init__(
        self, times: Sequence[float], numbers: Sequence[int], lengths: Sequence[int],
        sequenced: bytes, sequences: Sequence[int],
        acknowledged: bytes, acknowledgements: Sequence[int], heads: Sequence[int],
    ) -> None:  # fmt: skip
        self.times = times  #: Unix seconds
        self.numbers = numbers  #: of the packets in their file
        self.lengths = lengths  #: octets of payload
        self.sequenced = sequenced  #: 1 where S is set, else 0
        self.sequences = sequences  #: anything where S is not set
        self.acknowledged = acknowledged  #: 1 where A is set, else 0
        self.acknowledgements = acknowledgements  #: anything where A is not set
        self.heads = heads  #: the first 4 octets of the payload, zeros behind a shorter one

    def __len__(self) -> int:
        return len(self.times)

    @property
    def first(self) -> tuple[int, float]:
        """Number and time of the first packet."""
        return self.numbers[0], self.times[0]

    @property
    def last(self) -> tuple[int, float]:
        """Number and time of the last packet."""
        return self.numbers[-1], self.times[-1]

    @property
    def repeats(self) -> bool:
        """Whether as many of the first packets are like the one before as if each came twice."""
        first = list(zip(self.sequences[:OPENING], self.acknowledgements[:OPENING], strict=True))
        alike: int = sum(map(eq, first, first[1:]))
        return 2 * alike >= max(len(first) - 2, 1)

    def shift(self, base: int) -> None:
        """Add *base* to all packet numbers."""
        self.numbers = [base + number for number in self.numbers]

    def listed(self) -> Columns:
        """Return the same with numbers of Python's, whatever the columns are made of."""
        return self

    @property
    def octets(self) -> int:
        """Octets of the IP packets: 20 of IP, 8 of GRE, 4 per number, and the payload."""
        numbers = sum(self.sequenced) + sum(self.acknowledged)
        return sum(self.lengths) + 28 * len(self) + 4 * numbers

    def rows(self) -> Iterator[Row]:
        """Yield the packets one by one."""
        for time, number, length, has, sequence, said, acknowledgement, head in zip(
            self.times, self.numbers, self.lengths, self.sequenced, self.sequences,
            self.acknowledged, self.acknowledgements, self.heads, strict=True,
        ):  # fmt: skip
            yield (
                time, number, length,
                sequence if has else ABSENT, acknowledgement if said else ABSENT, head,
            )  # fmt: skip

    def followed_by(self, others: Sequence[Columns]) -> Columns:
        """Return these packets, and *others* behind them."""
        return columns_of([row for each in (self, *others) for row in each.rows()])

    def part(self, start: int, stop: int) -> Columns:
        """Return the packets from *start* to before *stop*."""
        return Columns(*(getattr(self, name)[start:stop] for name in COLUMNS))


COLUMNS: Final = (
    "times", "numbers", "lengths", "sequenced", "sequences", "acknowledged",
    "acknowledgements", "heads",
)  # fmt: skip


def in_turn(parts: Sequence[Columns]) -> Columns:
    """Return several columns as one, each behind the one before."""
    if len(parts) < 2:
        return parts[0] if parts else NO_COLUMNS
    return parts[0].followed_by(parts[1:])


NO_COLUMNS: Final = Columns((), (), (), b"", (), b"", (), ())


def columns_of(rows: Sequence[Row]) -> Columns:
    """Return *rows* column by column."""
    if not rows:
        return NO_COLUMNS
    times, numbers, lengths, sequences, acknowledgements, heads = zip(*rows, strict=True)
    return Columns(
        times, numbers, lengths,
        bytes(each != ABSENT for each in sequences), sequences,
        bytes(each != ABSENT for each in acknowledgements), acknowledgements, heads,
    )  # fmt: skip


class GrePacket(NamedTuple):
    """One packet of enhanced GRE, with its PPP octets as far as they were captured."""

    evidence: Evidence
    sender: Role  #: who sent it, in its call
    key: int  #: the receiver's call ID
    flags: int  #: the first two octets of the GRE header
    payload_length: int  #: as the GRE header claims
    carried: int  #: octets behind the GRE header, by IP's total length (all fragments)
    sequence: int | None
    acknowledgement: int | None
    payload: bytes  #: what was captured of `carried`, no more than `payload_length` octets
    ip_length: int  #: of the whole IP packet, put together if it came in fragments
    fragments: int  #: how many fragments it came in; 0: not fragmented

    @property
    def cut(self) -> bool:
        """Whether the capture's snap length has cut octets off the payload."""
        return len(self.payload) < min(self.payload_length, self.carried)


class PppReader(Protocol):
    """Follows the PPP of one call, both directions."""

    def feed(self, packet: GrePacket) -> None:
        """Read a packet that may be PPP control, in the order of capture.

        Every packet with payload comes here but those that certainly are data: protocol
        0x00FD (compressed or encrypted), and of the others below 0x0100 (IP, IPv6) all
        beyond the first 32 of each sender.
        """

    def feed_data(self, sender: Role, packets: Columns) -> None:
        """Read ordinary packets of *sender*, control among them, in the order of capture.

        They come late and in batches, so control packets that `feed` has seen stand
        in them too.
        """


class QualityReader(Protocol):
    """Measures one direction of one call."""

    def feed(self, packet: GrePacket) -> None:
        """Measure a packet that is no ordinary one."""

    def feed_many(self, sent: Columns, heard: Columns) -> None:
        """Measure the ordinary packets of this direction, *sent*.

        *heard* are those of the opposite direction, for their acknowledgements.  Both are
        in the order of capture and cover the same span of time; either may be empty.
        Each ordinary packet comes once.
        """
