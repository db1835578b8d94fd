"""How well one direction of a call's GRE gets through, as seen at one place.

`GreQuality` is fed with the ordinary packets of its direction in batches and with the
odd ones singly.  A loss is a number that never came past the place of capture; what is
lost behind it shows in the acknowledgements alone.  All it keeps is bounded: the
latest sending times, 4,096 numbers that may still come late, 128 bins of time that get
twice as wide when there are more, and delays as counts in buckets 2 % wide, so that a
percentile is right to 1 %.

A batch is judged column by column, so that a packet in order costs no step of Python;
what is written out packet by packet is for gaps, acknowledgements and pauses.

Times are seconds, lengths octets, sequence numbers those of RFC 2637 section 4.1.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import chain, compress, islice, pairwise, repeat
from operator import lt, ne, sub
from typing import Final

from pptp_nat.analysis.gre_measures import Delays, Pauses, Silence, Stall, violations
from pptp_nat.analysis.packets import (
    ABSENT,
    NO_COLUMNS,
    Columns,
    Evidence,
    GrePacket,
    Row,
    column,
    columns_of,
)
from pptp_nat.analysis.timeline import Timeline

# Specification constants.
MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000  #: numbers as far ahead as this count as behind

# Implementation constants.
TIMES_KEPT: Final = 512  #: sending times that outlive a batch; twice as many at most
_LATE_AT_MOST: Final = 4096  #: a number further behind than this will not come any more
_ANEW: Final = 32  #: a first number this far behind begins a new count
_JUMP: Final = 65536  #: a step larger than this is a new count, not a loss
STALL: Final = 0.3  #: seconds without sending that an acknowledgement has to end
_PROMPTLY: Final = 0.1  #: seconds from the acknowledgement to what it lets through
KEPT: Final = 16  #: losses and stalls that are remembered one by one
LENGTHS_KEPT: Final = 2048
_NOT_ZERO: Final = b"\0" + b"\1" * 255
_ODD_KEPT: Final = 1024  #: odd packets that wait for the ordinary ones around them


def _has_payload(lengths: Sequence[int]) -> bytes:
    """Return 1 for each length that is not zero, else 0."""
    if not isinstance(lengths, array):
        return bytes(map(bool, lengths))
    octets = lengths.tobytes()  # two of each
    either = column(octets[::2], _NOT_ZERO) | column(octets[1::2], _NOT_ZERO)
    return either.to_bytes(len(lengths), sys.byteorder)


class GreQuality:
    """The measures of one direction of one call."""

    def __init__(self, file: int = 0) -> None:
        self.file = file
        self.packets = 0
        self.octets = 0  #: of GRE payload
        self.data = 0  #: packets that carry a sequence number
        self.acknowledging = 0  #: packets that carry an acknowledgement number
        self.first: Evidence | None = None
        self.first_sequence: int | None = None
        self.lost = 0  #: numbers that have not come past; late ones are taken off again
        self.duplicates = 0
        self.reordered = 0  #: packets that came behind one with a higher number
        self.depth = 0  #: the furthest that one came behind, in numbers
        self.restarts = 0  #: counts begun anew in mid-call, or steps too large for a loss
        self.losses: list[Evidence] = []  #: the packets behind the first gaps
        self.delays = Delays()  #: from a packet to the first acknowledgement that covers it
        self.outstanding = 0  #: most packets sent and not acknowledged at any time
        self.outstanding_time: float | None = None  #: when that was
        self.acks_of_unseen = 0  #: acknowledgements of numbers that never came past
        self.stalls: list[Stall] = []  #: the longest, longest first
        self.stalled = 0.0  #: seconds of all of them
        self.lengths: Counter[int] = Counter()  #: payload lengths and how often, bounded
        self.largest = 0  #: octets of the largest payload
        self.largest_at: list[Evidence] = []  #: the latest packets of that size
        self.fragmented = 0  #: packets that came in IP fragments
        self.lies = 0  #: payload lengths that IP does not carry
        self.oddities: dict[str, tuple[int, Evidence]] = {}  #: slug: how often, first seen
        self.timeline = Timeline()

        self._odd: list[Row] = []
        self._expected = -1  # the number behind the highest so far; -1: none came
        self._acked = -1  # the highest acknowledged; -1: not known
        self._missing: dict[int, None] = {}  # numbers passed over, oldest first
        self._sent: dict[int, float] = {}  # number: sending time
        self._data_time = -math.inf  # when the last packet with a number came
        self._pauses = Pauses(file)
        #: an acknowledgement in a pause: when it came, how many it found waiting
        self._ack_after: tuple[float, int] | None = None

    def feed(self, packet: GrePacket) -> None:
        """Take in a packet that is no ordinary one; it is measured with those around it."""
        evidence = packet.evidence
        if packet.fragments:
            self.fragmented += 1
        if packet.payload_length > packet.carried:
            self.lies += 1
        for slug in violations(packet):
            self._odd_one(slug, evidence)
        self._odd.append((
            evidence.time, evidence.number, min(packet.payload_length, packet.carried),
            ABSENT if packet.sequence is None else packet.sequence,
            ABSENT if packet.acknowledgement is None else packet.acknowledgement,
            ABSENT,
        ))  # fmt: skip
        if len(self._odd) >= _ODD_KEPT:
            self.settle()

    def settle(self) -> None:
        """Measure the odd packets that still wait for ordinary ones around them."""
        if self._odd:
            self.feed_many(NO_COLUMNS, NO_COLUMNS)

    def feed_many(self, sent: Columns, heard: Columns) -> None:
        """Measure ordinary packets: see `pptp_nat.analysis.packets.QualityReader`."""
        sent, heard = sent.listed(), heard.listed()
        if self._odd:
            sent = columns_of(sorted([*sent.rows(), *self._odd]))
            self._odd = []
        times, numbers, sequences = sent.times, sent.numbers, sent.sequences
        if len(sent):
            self._count(sent)
            self._pauses.spoken(times, numbers, heard.times)
            if _has_payload(sent.lengths) != sent.sequenced:
                self._unlike(sent)
            if 0 in sent.sequenced:
                times = tuple(compress(times, sent.sequenced))
                numbers = tuple(compress(numbers, sent.sequenced))
                sequences = tuple(compress(sequences, sent.sequenced))
        elif len(heard):
            self._pauses.heard(heard.times)
        highest = self._expected - 1
        if times:
            if self._ack_after is not None:  # the batch before has left it open
                self._end_stall(numbers[0], times[0], self._data_time)
            self._order(times, numbers, sequences)
        self._acknowledge(times, numbers, sequences, heard, highest)
        if times:
            self._data_time = times[-1]
        if len(self._sent) > 2 * TIMES_KEPT:
            self._sent = dict(islice(self._sent.items(), len(self._sent) - TIMES_KEPT, None))

    def _count(self, sent: Columns) -> None:
        """Take in what does not depend on the order, and what each bin of time holds."""
        times, lengths = sent.times, list(sent.lengths)
        self.packets += len(sent)
        self.octets += sum(lengths)
        self.acknowledging += sent.acknowledged.count(1)
        if len(self.lengths) < LENGTHS_KEPT:
            self.lengths.update(lengths)
        if self.first is None:
            self.first = Evidence(self.file, sent.numbers[0], times[0])
        largest = max(lengths)
        if largest >= self.largest:
            backwards = range(len(sent) - 1, -1, -1)
            ats = compress(backwards, map(largest.__eq__, reversed(lengths)))
            found = [
                Evidence(self.file, sent.numbers[at], times[at]) for at in islice(ats, KEPT)
            ][::-1]
            before = self.largest_at if largest == self.largest else []
            self.largest, self.largest_at = largest, [*before, *found][-KEPT:]
        timeline = self.timeline
        bin_, cuts = timeline.shares(times)
        for at, (begin, end) in enumerate(pairwise(cuts), bin_):
            if begin < end:
                timeline.packets[at] += end - begin
                timeline.octets[at] += sum(lengths[begin:end])

    def _unlike(self, sent: Columns) -> None:
        """Count payload without number and number without payload (section 4.1, S bit)."""
        for time, number, length, sequence, _, _ in sent.rows():
            if (sequence >= 0) != (length > 0):
                slug = "payload_without_sequence" if length else "sequence_without_payload"
                self._odd_one(slug, Evidence(self.file, number, time))

    def _order(
        self, times: Sequence[float], numbers: Sequence[int], sequences: Sequence[int]
    ) -> None:
        """Look for gaps, repeats and latecomers among numbers; in a run each is the next."""
        count = len(sequences)
        self.data += count
        breaks = []
        if tuple(sequences) != tuple(range(sequences[0], sequences[0] + count)):
            offsets = list(map(sub, sequences, range(count)))
            breaks = list(compress(range(1, count), map(ne, offsets[1:], offsets)))
        for begin, end in pairwise((0, *breaks, count)):
            at = begin
            while at < end and sequences[at] != self._expected:
                self._unexpected(sequences[at], times[at], numbers[at])
                at += 1
            if at < end:
                self._expected = (sequences[end - 1] + 1) & MASK
        self._sent.update(zip(sequences, times, strict=True))

    def _unexpected(self, sequence: int, time: float, number: int) -> None:
        """Judge a number that is not the next one."""
        expected = self._expected
        if expected < 0:
            self.first_sequence = sequence
            self._begin(sequence)
            return
        ahead = (sequence - expected) & MASK
        behind = (expected - sequence) & MASK
        if ahead < _JUMP:
            self._pass_over(expected, ahead, Evidence(self.file, number, time))
            self._expected = (sequence + 1) & MASK
        elif sequence in self._missing:
            del self._missing[sequence]
            self.lost -= 1
            self.reordered += 1
            self.depth = max(self.depth, behind - 1)
            self.timeline.lost[self.timeline.at(time)] -= 1
        elif behind <= (_LATE_AT_MOST if sequence > 1 else _ANEW):
            self.duplicates += 1
        else:
            self.restarts += 1
            self._begin(sequence)

    def _begin(self, sequence: int) -> None:
        """Count from *sequence* on; a call begins with 0 or 1, and nothing is acknowledged."""
        self._expected = (sequence + 1) & MASK
        self._acked = (sequence - 1) & MASK if sequence < 2 else -1
        self._missing.clear()
        self._sent.clear()

    def _pass_over(self, begin: int, count: int, evidence: Evidence) -> None:
        """Note *count* numbers from *begin* on as lost, until they come late."""
        self.lost += count
        self.timeline.lost[self.timeline.at(evidence.time)] += count
        if len(self.losses) < KEPT:
            self.losses.append(evidence)
        end = begin + count
        for sequence in range(max(begin, end - _LATE_AT_MOST), end):
            self._missing[sequence & MASK] = None
        while len(self._missing) > _LATE_AT_MOST:
            del self._missing[next(iter(self._missing))]

    def _acknowledge(
        self, times: Sequence[float], numbers: Sequence[int], sequences: Sequence[int],
        heard: Columns, highest: int,
    ) -> None:  # fmt: skip
        """Follow the acknowledgements in *heard*; *highest* was sent before all of *times*."""
        acks, came = heard.acknowledgements, heard.times
        if 0 in heard.acknowledged:
            acks = list(compress(acks, heard.acknowledged))
            came = list(compress(came, heard.acknowledged))
        if self._expected < 0 or not acks:
            return
        is_fresh = list(map(ne, acks, chain((self._acked,), acks)))
        acks, came = list(compress(acks, is_fresh)), list(compress(came, is_fresh))
        # What each acknowledgement finds: the packet before it, and that one's time.
        sequences = (highest, *sequences)
        befores = (self._data_time, *times)
        ats = list(map(bisect_right, repeat(times), came))
        waiting = self._in_step(came, acks, ats, sequences, befores)
        if waiting is None:
            kept: list[tuple[float, int, int]] = []
            for time, ack, at in zip(came, acks, ats, strict=True):
                found = self._judge(time, ack, sequences[at], befores[at])
                if found is not None:
                    kept.append((time, ack, found))
                if self._ack_after is not None and at < len(times):
                    self._end_stall(numbers[at], times[at], befores[at])
            came, acks, waiting = (
                (list(each) for each in zip(*kept, strict=True)) if kept else ([],) * 3
            )
        elif waiting:
            self._acked = acks[-1]
        sent = map(self._sent.get, acks, came)
        self._enter(came, waiting, list(map(sub, came, sent)))
        if self._acked >= 0 and times:
            self._most((self._expected - 1 - self._acked) & MASK, times[-1])

    def _in_step(
        self, came: Sequence[float], acks: Sequence[int], ats: Sequence[int],
        sequences: Sequence[int], befores: Sequence[float],
    ) -> list[int] | None:  # fmt: skip
        """Return how many packets each acknowledgement finds waiting.

        None unless they rise, are of packets seen, and come without pauses.
        """
        if not acks:
            return []
        if (
            not self._acked < acks[0] <= acks[-1] < self._expected
            or self._acked < 0
            or not all(map(lt, acks, acks[1:]))
            or max(map(sub, came, map(befores.__getitem__, ats))) > STALL
        ):
            return None
        return list(map(sub, map(sequences.__getitem__, ats), (self._acked, *acks)))

    def _judge(self, time: float, ack: int, highest: int, before: float) -> int | None:
        """Take in one acknowledgement that found *highest*, sent at *before*, as the last.

        Return how many packets it found waiting; None if it says nothing new.
        """
        if (ack - self._expected) & MASK < HALF:
            self.acks_of_unseen += 1
            return None
        acked, self._acked = self._acked, ack
        if acked < 0:
            return 0
        if (ack - acked - 1) & MASK >= HALF:
            self._acked = acked
            return None
        waiting = (highest - acked) & MASK
        if time - before > STALL:
            self._ack_after = time, waiting
        return waiting if waiting < HALF else 0

    def _enter(self, came: list[float], waiting: list[int], delays: list[float]) -> None:
        """Put what acknowledgements tell into the bins of their times; no delay is unknown."""
        if not came:
            return
        known = list(filter(None, delays))
        self.delays.add(known)
        unknown = len(delays) - len(known)
        most = max(waiting)
        self._most(most, came[waiting.index(most)])
        timeline = self.timeline
        bin_, cuts = timeline.shares(came)
        for at, (begin, end) in enumerate(pairwise(cuts), bin_):
            if begin < end:
                part = delays[begin:end]
                timeline.outstanding[at] = max(timeline.outstanding[at], *waiting[begin:end])
                timeline.delay[at] += sum(part)
                timeline.delayed[at] += end - begin - (part.count(0.0) if unknown else 0)
                timeline.longest[at] = max(timeline.longest[at], *part)

    def _most(self, waiting: int, time: float) -> None:
        if self.outstanding < waiting < HALF:
            self.outstanding, self.outstanding_time = waiting, time

    def _end_stall(self, number: int, time: float, previous: float) -> None:
        """Something is sent after a pause, in which an acknowledgement came."""
        assert self._ack_after is not None
        came, outstanding = self._ack_after
        self._ack_after = None
        if time - came <= _PROMPTLY:
            stall = Stall(Evidence(self.file, number, time), time - previous, outstanding)
            self.stalled += stall.seconds
            self.stalls = sorted([*self.stalls, stall], key=lambda each: -each.seconds)[:KEPT]

    def _odd_one(self, slug: str, evidence: Evidence) -> None:
        count, first = self.oddities.get(slug, (0, evidence))
        self.oddities[slug] = count + 1, first

    @property
    def last(self) -> Evidence | None:
        """The latest packet."""
        return self._pauses.last

    @property
    def longest_gap(self) -> float:
        """Seconds between two packets of this direction, at most."""
        return self._pauses.longest_gap

    @property
    def silence(self) -> Silence | None:
        """The longest silence that ended, if it was a second or more."""
        return self._pauses.silence

    @property
    def unanswered(self) -> Silence | None:
        """The silence of this direction that lasts to the end, if the other one spoke in it."""
        return self._pauses.unanswered

    @property
    def loss(self) -> float:
        """The share of numbers that never came past, 0 to 1."""
        return self.lost / (self.lost + self.data) if self.lost else 0.0

    @property
    def disorder(self) -> float:
        """The share of data packets that came late, 0 to 1."""
        return self.reordered / self.data if self.reordered else 0.0

    @property
    def seconds(self) -> float:
        """From the first packet to the last."""
        return self.last.time - self.first.time if self.first and self.last else 0.0
