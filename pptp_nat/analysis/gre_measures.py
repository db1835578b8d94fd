"""What `pptp_nat.analysis.gre_quality` counts with: durations, pauses, flags."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from operator import mul, sub
from typing import Final, NamedTuple

from pptp_nat.analysis.packets import Evidence, GrePacket

GROWTH: Final = 1 / math.log(1.02)  #: buckets per e-fold of delay
SILENCE: Final = 1.0  #: seconds; shorter ones are nothing to speak of
SHORTEST: Final = 1e-6  #: seconds; shorter delays count as this


class Stall(NamedTuple):
    """A pause in sending that an acknowledgement ended: the sender had to wait for it."""

    evidence: Evidence  #: the first packet after it
    seconds: float
    outstanding: int  #: packets without acknowledgement during the pause


class Silence(NamedTuple):
    """A time in which the other direction spoke and this one did not."""

    since: Evidence | None  #: the last packet of this direction before it; None: none came yet
    begin: float  #: when that was; without one, when the other direction began
    rest: float  #: seconds of the longest part in which the other did not speak either
    began: float  #: when the other direction spoke after that
    until: float
    heard: int  #: packets of the other direction from then on

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.until - self.begin


class Pauses:
    """The times in which one direction was silent, and what the other said in them."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.last: Evidence | None = None  #: the latest packet
        self.longest_gap = 0.0  #: seconds between two packets
        self.silence: Silence | None = None  #: the longest that ended, if a second or more
        self.unanswered: Silence | None = None  #: since `last`, if the other direction spoke

    def spoken(
        self, times: Sequence[float], numbers: Sequence[int], heard: Sequence[float]
    ) -> None:
        """Take in packets of this direction, and when those of the other came."""
        gaps = list(map(sub, times[1:], times))
        longest = max(gaps, default=0.0)
        ends = [len(times)]
        if longest > SILENCE:
            ends[:0] = [index for index, gap in enumerate(gaps, 1) if gap > SILENCE]
        begin = said = 0
        for end in ends:
            resumed = bisect_left(heard, times[begin], said)
            before = heard[said:resumed]
            said = bisect_left(heard, times[end - 1], resumed)
            last = Evidence(self._file, numbers[end - 1], times[end - 1])
            behind = heard[said:] if end == len(times) else ()
            self.went_on(times[begin], last, longest, before, behind)
            begin = end

    def went_on(
        self, first: float, last: Evidence, longest: float,
        before: Sequence[float], behind: Sequence[float],
    ) -> None:  # fmt: skip
        """Take in packets of this direction without a silence among them.

        They are from the time *first* to *last*, with gaps of *longest* seconds at most;
        packets of the other direction came *before* them and *behind* them.
        """
        if not self.last or first - self.last.time > SILENCE:
            self.heard(before)
            self._end(first)
        if self.last:
            self.longest_gap = max(self.longest_gap, first - self.last.time)
        self.longest_gap = max(self.longest_gap, longest)
        self.unanswered = None
        self.last = last
        self.heard(behind)

    def heard(self, times: Sequence[float]) -> None:
        """Take in packets of the other direction behind the last of this one."""
        if not times:
            return
        silence = self.unanswered
        if silence is None:
            begin = self.last.time if self.last else times[0]
            silence = Silence(self.last, begin, 0.0, begin, begin, 0)
        pauses = list(map(sub, times, chain((silence.until,), times)))
        longest = max(pauses)
        if longest > max(silence.rest, SILENCE):
            at = pauses.index(longest)
            silence = silence._replace(rest=longest, began=times[at], heard=-at)
        self.unanswered = silence._replace(until=times[-1], heard=silence.heard + len(times))

    def _end(self, until: float) -> None:
        """Note that this direction speaks again; the other may have spoken meanwhile."""
        silence = self.unanswered
        if silence is not None and silence.heard > 2:
            silence = silence._replace(until=until)
            longest = self.silence.seconds if self.silence else SILENCE
            if silence.seconds > longest:
                self.silence = silence


class Delays:
    """Durations as counts in buckets 2 % wide."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, delays: Sequence[float]) -> None:
        """Take in *delays*, in seconds; negative ones count as the shortest."""
        kept = delays
        if kept:
            if min(kept) < SHORTEST:
                kept = [max(SHORTEST, delay) for delay in kept]
            buckets = map(math.floor, map(mul, map(math.log, kept), repeat(GROWTH)))
            self.add_counted(Counter(buckets), max(kept))

    def add_counted(self, buckets: Mapping[int, int], longest: float) -> None:
        """Take in how often each bucket was met, and the longest delay."""
        self.count += sum(buckets.values())
        self.longest = max(self.longest, longest)
        self._buckets.update(buckets)

    def percentile(self, share: float) -> float | None:
        """Return the duration that *share* (0 to 1) of all do not exceed; None without any."""
        if not self.count:
            return None
        wanted = math.ceil(share * self.count) or 1
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                break
        return min(math.exp((bucket + 0.5) / GROWTH), self.longest)


#: Bits of the first two octets that RFC 2637 section 4.1 has otherwise: (mask, value, slug).
_FLAG_RULES: Final = (
    (0x8000, 0, "checksum_flag"), (0x4000, 0, "routing_flag"), (0x2000, 0x2000, "no_key_flag"),
    (0x0800, 0, "source_route_flag"), (0x0700, 0, "recursion_not_zero"),
    (0x0078, 0, "reserved_flags"), (0x0007, 1, "version_not_one"),
)  # fmt: skip


def violations(packet: GrePacket) -> Iterator[str]:
    """Yield the slugs of what RFC 2637 section 4.1 does not allow in *packet*."""
    for mask, value, slug in _FLAG_RULES:
        if packet.flags & mask != value:
            yield slug
    if packet.payload_length > packet.carried:
        yield "payload_length_lies"
