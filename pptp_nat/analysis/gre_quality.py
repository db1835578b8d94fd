"""How well one direction of a call's GRE gets through, as seen at one place.

`GreQuality` is fed with the ordinary packets of its direction in batches and with the
odd ones singly.  A loss is a number that never came past the place of capture; what is
lost behind it shows in the acknowledgements alone.  All it keeps is bounded: the
latest sending times, 4,096 numbers that may still come late, 240 bins of time that get
twice as wide when there are more, and delays as counts in buckets 2 % wide, so that a
percentile is right to 1 %.

A batch is judged column by column, so that a packet in order costs no step of Python;
what is written out packet by packet is for gaps, acknowledgements and pauses.

Times are seconds, lengths octets, sequence numbers those of RFC 2637 section 4.1.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import chain, compress, islice, pairwise, repeat
from operator import lt, ne, sub
from typing import Final

from pptp_nat.analysis.gre_measures import Delays, Silence, Stall, violations
from pptp_nat.analysis.packets import (
    ABSENT,
    NO_COLUMNS,
    Columns,
    Evidence,
    GrePacket,
    Row,
    columns_of,
)
from pptp_nat.analysis.timeline import Bin, Timeline

# Specification constants.
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000  #: numbers as far ahead as this count as behind

# Implementation constants.
_TIMES_KEPT: Final = 4096  #: sending times that outlive a batch; twice as many at most
_LATE_AT_MOST: Final = 4096  #: a number further behind than this will not come any more
_ANEW: Final = 32  #: a first number this far behind begins a new count
_JUMP: Final = 65536  #: a step larger than this is a new count, not a loss
_SILENCE: Final = 1.0  #: seconds; shorter ones are nothing to speak of
_STALL: Final = 0.3  #: seconds without sending that an acknowledgement has to end
_PROMPTLY: Final = 0.1  #: seconds from the acknowledgement to what it lets through
_KEPT: Final = 16  #: losses and stalls that are remembered one by one
_LENGTHS_KEPT: Final = 2048
_ODD_KEPT: Final = 1024  #: odd packets that wait for the ordinary ones around them


class GreQuality:
    """The measures of one direction of one call."""

    def __init__(self, file: int = 0) -> None:
        self.file = file
        self.packets = 0
        self.octets = 0  #: of GRE payload
        self.data = 0  #: packets that carry a sequence number
        self.acknowledging = 0  #: packets that carry an acknowledgement number
        self.first: Evidence | None = None
        self.last: Evidence | None = None
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
        self.silence: Silence | None = None  #: the longest that ended, if it was a second or more
        self.longest_gap = 0.0  #: seconds between two packets of this direction
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
        self._heard: Silence | None = None  # since the last packet of this direction
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
        if self._odd:
            sent = columns_of(sorted([*sent.rows(), *self._odd]))
            self._odd = []
        times, numbers, sequences = sent.times, sent.numbers, sent.sequences
        if len(sent):
            self._count(sent)
            self._pauses(times, numbers, heard.times)
            if 0 in sent.sequenced or 0 in sent.lengths:
                self._unlike(sent)
                times = tuple(compress(times, sent.sequenced))
                numbers = tuple(compress(numbers, sent.sequenced))
                sequences = tuple(compress(sequences, sent.sequenced))
        elif len(heard):
            self._hear(heard.times)
        highest = self._expected - 1
        if times:
            if self._ack_after is not None:  # the batch before has left it open
                self._end_stall(numbers[0], times[0], self._data_time)
            self._order(times, numbers, sequences)
        self._acknowledge(times, numbers, sequences, heard, highest)
        if times:
            self._data_time = times[-1]

    def _count(self, sent: Columns) -> None:
        """Take in what does not depend on the order, and what each bin of time holds."""
        times, lengths = sent.times, sent.lengths
        self.packets += len(sent)
        self.octets += sum(lengths)
        self.acknowledging += sum(sent.acknowledged)
        if len(self.lengths) < _LENGTHS_KEPT:
            self.lengths.update(lengths)
        if self.first is None:
            self.first = Evidence(self.file, sent.numbers[0], times[0])
        largest = max(lengths)
        if largest >= self.largest:
            places = zip(sent.numbers, times, map(largest.__eq__, lengths), strict=True)
            found = [Evidence(self.file, number, time) for number, time, is_it in places if is_it]
            before = self.largest_at if largest == self.largest else []
            self.largest, self.largest_at = largest, [*before, *found][-_KEPT:]
        begin = 0
        while begin < len(sent):
            each, bin_end = self.timeline.at(times[begin])
            end = bisect_left(times, bin_end, begin + 1)
            each.packets += end - begin
            each.octets += sum(lengths[begin:end])
            begin = end

    def _pauses(
        self, times: Sequence[float], numbers: Sequence[int], heard: Sequence[float]
    ) -> None:
        """Find the longest times without a packet, and those in which the other side spoke."""
        at, last = 0, self.last
        if not last or times[0] - last.time > _SILENCE:
            at = bisect_right(heard, times[0])
            self._hear(heard[:at])
            self._end_silence(times[0])
        if last:
            self.longest_gap = max(self.longest_gap, times[0] - last.time)
        gaps = list(map(sub, times[1:], times))
        longest = max(gaps, default=0.0)
        self.longest_gap = max(self.longest_gap, longest)
        if longest > _SILENCE:
            for index, gap in enumerate(gaps):
                if gap > _SILENCE:
                    begin = bisect_right(heard, times[index], at)
                    at = bisect_right(heard, times[index + 1], begin)
                    self._heard = None
                    self.last = Evidence(self.file, numbers[index], times[index])
                    self._hear(heard[begin:at])
                    self._end_silence(times[index + 1])
        self._heard = None
        self.last = Evidence(self.file, numbers[-1], times[-1])
        self._hear(heard[bisect_right(heard, times[-1], at) :])

    def _hear(self, times: Sequence[float]) -> None:
        """Note packets of the other direction behind the last of this one."""
        if not times:
            return
        heard = self._heard
        if heard is None:
            begin = self.last.time if self.last else times[0]
            heard = Silence(self.last, begin, 0.0, begin, begin, 0)
        pauses = list(map(sub, times, chain((heard.until,), times)))
        longest = max(pauses)
        if longest > max(heard.rest, _SILENCE):
            at = pauses.index(longest)
            heard = heard._replace(rest=longest, began=times[at], heard=-at)
        self._heard = heard._replace(until=times[-1], heard=heard.heard + len(times))

    def _end_silence(self, until: float) -> None:
        """Note that this direction speaks again; the other may have spoken meanwhile."""
        silence = self._heard
        if silence is not None and silence.heard > 2:
            silence = silence._replace(until=until)
            longest = self.silence.seconds if self.silence else _SILENCE
            if silence.seconds > longest:
                self.silence = silence

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
        offsets = list(map(sub, sequences, range(count)))
        breaks = list(compress(range(1, count), map(ne, offsets[1:], offsets)))
        for begin, end in pairwise((0, *breaks, count)):
            at = begin
            while at < end and sequences[at] != self._expected:
                self._unexpected(sequences[at], times[at], numbers[at])
                at += 1
            if at < end:
                self._expected = (sequences[end - 1] + 1) & _MASK
        self._sent.update(zip(sequences, times, strict=True))
        if len(self._sent) > 2 * _TIMES_KEPT:
            self._sent = dict(islice(self._sent.items(), len(self._sent) - _TIMES_KEPT, None))

    def _unexpected(self, sequence: int, time: float, number: int) -> None:
        """Judge a number that is not the next one."""
        expected = self._expected
        if expected < 0:
            self.first_sequence = sequence
            self._begin(sequence)
            return
        ahead = (sequence - expected) & _MASK
        behind = (expected - sequence) & _MASK
        if ahead < _JUMP:
            self._pass_over(expected, ahead, Evidence(self.file, number, time))
            self._expected = (sequence + 1) & _MASK
        elif sequence in self._missing:
            del self._missing[sequence]
            self.lost -= 1
            self.reordered += 1
            self.depth = max(self.depth, behind - 1)
            self.timeline.at(time)[0].lost -= 1
        elif behind <= (_LATE_AT_MOST if sequence > 1 else _ANEW):
            self.duplicates += 1
        else:
            self.restarts += 1
            self._begin(sequence)

    def _begin(self, sequence: int) -> None:
        """Count from *sequence* on; a call begins with 0 or 1, and nothing is acknowledged."""
        self._expected = (sequence + 1) & _MASK
        self._acked = (sequence - 1) & _MASK if sequence < 2 else -1
        self._missing.clear()
        self._sent.clear()

    def _pass_over(self, begin: int, count: int, evidence: Evidence) -> None:
        """Note *count* numbers from *begin* on as lost, until they come late."""
        self.lost += count
        self.timeline.at(evidence.time)[0].lost += count
        if len(self.losses) < _KEPT:
            self.losses.append(evidence)
        end = begin + count
        for sequence in range(max(begin, end - _LATE_AT_MOST), end):
            self._missing[sequence & _MASK] = None
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
        begin = 0
        while begin < len(acks):
            each, bin_end = self.timeline.at(came[begin])
            end = bisect_left(came, bin_end, begin + 1)
            part = slice(begin, end)
            if not self._in_step(each, came[part], acks[part], ats[part], sequences, befores):
                for time, ack, at in zip(came[part], acks[part], ats[part], strict=True):
                    self._judge(each, time, ack, sequences[at], befores[at])
                    if self._ack_after is not None and at < len(times):
                        self._end_stall(numbers[at], times[at], befores[at])
            begin = end
        if self._acked >= 0 and times:
            self._most((self._expected - 1 - self._acked) & _MASK, times[-1])

    def _in_step(
        self, each: Bin, came: Sequence[float], acks: Sequence[int], ats: Sequence[int],
        sequences: Sequence[int], befores: Sequence[float],
    ) -> bool:  # fmt: skip
        """Take in acknowledgements that rise, of packets seen, without pauses; else say no."""
        if (
            not self._acked < acks[0] <= acks[-1] < self._expected
            or self._acked < 0
            or not all(map(lt, acks, acks[1:]))
            or max(map(sub, came, map(befores.__getitem__, ats))) > _STALL
        ):
            return False
        waiting = list(map(sub, map(sequences.__getitem__, ats), (self._acked, *acks)))
        most = max(waiting)
        each.outstanding = max(each.outstanding, most)
        if most > self.outstanding:
            self._most(most, came[waiting.index(most)])
        self._acked = acks[-1]
        was = map(self._sent.get, acks)
        self._delayed(each, [time - at for time, at in zip(came, was, strict=True) if at])
        return True

    def _judge(self, each: Bin, time: float, ack: int, highest: int, before: float) -> None:
        """Take in one acknowledgement that found *highest*, sent at *before*, as the last."""
        if (ack - self._expected) & _MASK < _HALF:
            self.acks_of_unseen += 1
            return
        if self._acked >= 0:
            if (ack - self._acked - 1) & _MASK >= _HALF:
                return
            waiting = (highest - self._acked) & _MASK
            if each.outstanding < waiting < _HALF:
                each.outstanding = waiting
            self._most(waiting, time)
            if time - before > _STALL:
                self._ack_after = time, waiting
        self._acked = ack
        was = self._sent.get(ack)
        if was is not None:
            self._delayed(each, [time - was])

    def _most(self, waiting: int, time: float) -> None:
        if self.outstanding < waiting < _HALF:
            self.outstanding, self.outstanding_time = waiting, time

    def _delayed(self, each: Bin, delays: list[float]) -> None:
        """Take *delays* into the bin and into the whole."""
        if not delays:
            return
        self.delays.add(delays)
        each.delay += sum(delays)
        each.delayed += len(delays)
        each.longest = max(each.longest, *delays)

    def _end_stall(self, number: int, time: float, previous: float) -> None:
        """Something is sent after a pause, in which an acknowledgement came."""
        assert self._ack_after is not None
        came, outstanding = self._ack_after
        self._ack_after = None
        if time - came <= _PROMPTLY:
            stall = Stall(Evidence(self.file, number, time), time - previous, outstanding)
            self.stalled += stall.seconds
            self.stalls = sorted([*self.stalls, stall], key=lambda each: -each.seconds)[:_KEPT]

    def _odd_one(self, slug: str, evidence: Evidence) -> None:
        count, first = self.oddities.get(slug, (0, evidence))
        self.oddities[slug] = count + 1, first

    @property
    def unanswered(self) -> Silence | None:
        """The silence of this direction that lasts to the end, if the other one spoke in it."""
        return self._heard

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
