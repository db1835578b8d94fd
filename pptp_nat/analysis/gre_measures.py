"""What `pptp_nat.analysis.gre_quality` counts with: durations, pauses, flags."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from operator import mul
from typing import Final, NamedTuple

from pptp_nat.analysis.packets import Evidence, GrePacket

_GROWTH: Final = 1 / math.log(1.02)  #: buckets per e-fold of delay
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


class Delays:
    """Durations as counts in buckets 2 % wide."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, delays: Iterable[float]) -> None:
        """Take in *delays*, in seconds; negative ones count as the shortest."""
        kept = [max(_SHORTEST, delay) for delay in delays]
        if kept:
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
