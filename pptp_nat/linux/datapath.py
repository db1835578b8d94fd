"""What carries the GRE of the calls: the interface that every data path offers.

A data path is told of legs (`pptp_nat.core.tuples.Leg`): what arrives, what
leaves.  It knows nothing of calls, control connections or who is inside.  A leg
is named by what arrives (source, destination, key), its *match*; installing a
leg whose match is there already replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pptp_nat.core.tuples import Address, Leg


class Match(NamedTuple):
    """What names a leg: the packet that arrives."""

    source: Address
    destination: Address
    key: int


class Tally(NamedTuple):
    """GRE carried by one leg since it was installed; octets are those of the IP packets."""

    packets: int
    octets: int


class LegOrder(NamedTuple):
    """A leg to install and the connmark that its packets inherit."""

    leg: Leg
    mark: int


class DataPath(Protocol):
    """Carries GRE for legs.  All methods are synchronous and raise `AdapterError`."""

    name: str

    def install(self, orders: Sequence[LegOrder]) -> None:
        """Have the legs carry packets by the time this returns."""

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Stop carrying; return the last counts of those that were there.

        A leg that another one has replaced since (same match, other result) stays.
        """

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts of all legs."""

    def matches(self) -> Iterable[Match]:
        """Return what is installed, also by an earlier run where the path outlives us."""

    def renew(self, now: float) -> None:
        """Do what keeps legs alive; called about once a minute with monotonic seconds."""

    def close(self) -> None:
        """Let go of sockets.  Legs in the kernel stay."""
