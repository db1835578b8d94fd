"""What entries had counted that are there no more, kept for those that took their place.

After somebody has emptied the table every leg has something here, for as long as its
call lives: 200,000 with 100,000 calls.  So both counts are one number, under the ten
octets that name a match: 140 octets a leg, where a `Match` and a `Tally` take 360.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.linux.leg_table import match_of, name_once

_OCTETS_AT: Final = 64
_PACKETS: Final = (1 << _OCTETS_AT) - 1


class Earlier:
    """Counts by match.  A match of which nothing was ever added is not there."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, match: Match) -> bool:
        return name_once(match) in self._counts

    def get(self, match: Match) -> Tally | None:
        """Return what *match* has counted, if anything is known of it."""
        counted = self._counts.get(name_once(match))
        if counted is None:
            return None
        return tuple.__new__(Tally, (counted & _PACKETS, counted >> _OCTETS_AT))

    def items(self) -> Iterator[tuple[Match, Tally]]:
        """Yield all of it; matches may come and go meanwhile."""
        for name in list(self._counts):
            match = match_of(name)
            if (tally := self.get(match)) is not None:
                yield match, tally

    def names(self) -> KeysView[bytes]:
        """Return the names of all matches."""
        return self._counts.keys()

    def add(self, leg: Leg | Match, tally: Tally) -> None:
        """Add what an entry of *leg* has counted."""
        name, (packets, octets) = name_once(leg), tally
        self._counts[name] = self._counts.get(name, 0) + (octets << _OCTETS_AT | packets)

    def forget(self, name: bytes) -> bool:
        """Forget what is known of the match that *name* names; whether there was anything."""
        return self._counts.pop(name, None) is not None
