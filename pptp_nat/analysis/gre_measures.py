"""What `pptp_nat.analysis.gre_quality` counts with: durations, pauses, flags."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from operator import mul, sub
from typing import Final, NamedTuple

from pptp_nat.analysis.packets import Evidence, GrePacket

_GROWTH: Final = 1 / math.log(1.02)  #: buckets per e-fold of delay
_SILENCE: Final = 1.0  #: seconds; shorter ones are nothing to speak of
_SHORTEST: Final = 1e-6  #: seconds; shorter delays count as this


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
        at, last = 0, self.last
        if not last or times[0] - last.time > _SILENCE:
            at = bisect_left(heard, times[0])
            self.heard(heard[:at])
            self._end(times[0])
        if last:
            self.longest_gap = max(self.longest_gap, times[0] - last.time)
        gaps = list(map(sub, times[1:], times))
        longest = max(gaps, default=0.0)
        self.longest_gap = max(self.longest_gap, longest)
        if longest > _SILENCE:
            for index, gap in enumerate(gaps):
                if gap > _SILENCE:
                    begin = bisect_left(heard, times[index], at)
                    at = bisect_left(heard, times[index + 1], begin)
                    self.unanswered = None
                    self.last = Evidence(self._file, numbers[index], times[index])
                    self.heard(heard[begin:at])
                    self._end(times[index + 1])
        self.unanswered = None
        self.last = Evidence(self._file, numbers[-1], times[-1])
        self.heard(heard[bisect_left(heard, times[-1], at) :])

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
        if longest > max(silence.rest, _SILENCE):
            at = pauses.index(longest)
            silence = silence._replace(rest=longest, began=times[at], heard=-at)
        self.unanswered = silence._replace(until=times[-1], heard=silence.heard + len(times))

    def _end(self, until: float) -> None:
        """Note that this direction speaks again; the other may have spoken meanwhile."""
        silence = self.unanswered
        if silence is not None and silence.heard > 2:
            silence = silence._replace(until=until)
            longest = self.silence.seconds if self.silence else _SILENCE
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
            if min(kept) < _SHORTEST:
                kept = [max(_SHORTEST, delay) for delay in kept]
            self.count += len(kept)
            self.longest = max(self.longest, *kept)
            self._buckets.update(map(math.floor, map(mul, map(math.log, kept), repeat(_GROWTH))))

    def percentile(self, share: float) -> float | None:
        """Return the duration that *share* (0 to 1) of all do not exceed; None without any."""
        if not self.count:
            return None
        wanted = math.ceil(share * self.count) or 1
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                break
        return min(math.exp((bucket + 0.5) / _GROWTH), self.longest)


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
