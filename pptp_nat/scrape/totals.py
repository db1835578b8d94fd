"""GRE that this run has seen carried: totals that never fall.

The kernel counts per leg, and a leg's count dies with its entry.  Here what each
leg was last known to have carried is kept, and only what came on top is added:
so it does not matter how often a count is read, in which order the pieces of a
table come, or whether a leg's end overtakes them.  A count that is lower than
it was began anew and counts in full.

Some 150 octets per leg; nothing is kept where nobody wants totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from pptp_nat.core.events import LegDown, LegUp
from pptp_nat.core.tuples import Address, Leg
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.tables.views import inside_party

_PACKETS: Final = (1 << 63) - 1
_OCTETS_AT: Final = 64  #: bit of a note at which its octets begin
_NOTHING: Final = Tally(0, 0)


class ClientTotals:
    """What one inside host's calls have carried since its first call of those that are up."""

    __slots__ = ("legs", "octets", "packets")

    def __init__(self) -> None:
        self.legs = 0
        self.packets = [0, 0]  #: by "to the inside"
        self.octets = [0, 0]


class Totals:
    """Adds up what legs have carried, by direction as the table of calls shows it.

    Args:
        by_client: add up per inside host as well, as long as it has legs.
        earlier: counts of legs that were there before this run; what they had
            carried by then is not ours to count.
    """

    def __init__(
        self, *, by_client: bool = False, earlier: Mapping[Match, Tally] | None = None
    ) -> None:
        self.packets = [0, 0]  #: by "to the inside"
        self.octets = [0, 0]
        self.clients: dict[Address, ClientTotals] = {}
        self._by_client = by_client
        self._earlier = {_name(match): tally for match, tally in (earlier or {}).items()}
        #: name of a leg -> octets, packets and direction in one int: 64 bits, 63 and 1
        self._known: dict[bytes, int] = {}
        self._further: Counter[bytes] = Counter()  # owners of a leg besides the first
        self._client: dict[bytes, Address] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, up: LegUp) -> None:
        """Count what *up* carries from here on."""
        name = _name(up.leg)
        if name in self._known:
            self._further[name] += 1
            return
        inside = inside_party(up.call)
        octets = packets = 0
        if self._earlier:
            packets, octets = self._earlier.pop(name, _NOTHING)
        self._known[name] = octets << _OCTETS_AT | packets << 1 | (up.party is inside)
        if self._by_client:
            client = self._client[name] = up.call.connection.seat(inside).own
            self.clients.setdefault(client, ClientTotals()).legs += 1

    def end(self, down: LegDown, tally: Tally | None) -> None:
        """Add the last count of a leg, None if it is not known, and forget the leg."""
        name = _name(down.leg)
        known = self._known.get(name)
        if tally is not None and known is not None:
            self._add(name, known, tally)
        if self._further.get(name):
            self._further[name] -= 1
            if not self._further[name]:
                del self._further[name]
            return
        self._known.pop(name, None)
        client = self._client.pop(name, None)
        if client is not None:
            self.clients[client].legs -= 1
            if not self.clients[client].legs:
                del self.clients[client]

    def read(self, tallies: Mapping[Match, Tally]) -> None:
        """Add what legs have carried since their counts were last read."""
        known_as = self._known.get
        for (source, destination, key), (packets, octets) in tallies.items():
            # Most legs are idle: this much is done for each of them.
            name = source + destination + key.to_bytes(2, "big")
            known = known_as(name)
            if known is not None and known >> 1 != octets << _OCTETS_AT - 1 | packets:
                self._add(name, known, Tally(packets, octets))

    def _add(self, name: bytes, known: int, tally: Tally) -> None:
        packets = tally.packets - (known >> 1 & _PACKETS)
        octets = tally.octets - (known >> _OCTETS_AT)
        if packets < 0 or octets < 0:
            packets, octets = tally
        to_inside = known & 1
        self._known[name] = tally.octets << _OCTETS_AT | tally.packets << 1 | to_inside
        self.packets[to_inside] += packets
        self.octets[to_inside] += octets
        if self._by_client:
            client = self.clients[self._client[name]]
            client.packets[to_inside] += packets
            client.octets[to_inside] += octets


def _name(leg: Match | Leg) -> bytes:
    return leg[0] + leg[1] + leg[2].to_bytes(2, "big")
