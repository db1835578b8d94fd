"""What carries the GRE of the calls: the interface that every data path offers.

A data path is told of legs (`pptp_nat.core.tuples.Leg`): what arrives, what
leaves.  It knows nothing of calls, control connections or who is inside.  A leg
is named by what arrives (source, destination, key), its *match*.

Two calls may have one leg in common: a client that dials again while its old
connection is half open, and a server that gives both calls the same number.
Installing a match that is there already replaces what leaves, and it takes as
many removals as there were installations to end it.  The counts of a match go on
through all of that; whose they are is its owners' business (`pptp_nat.router.carried`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from pptp_nat.core.tuples import Address, Leg
from pptp_nat.errors import AdapterError

#: The names of the data paths.
Carrying = Literal["conntrack", "bpf", "queue"]


class Match(NamedTuple):
    """What names a leg: the packet that arrives."""

    source: Address
    destination: Address
    key: int


def match_of_leg(leg: Leg | Match) -> Match:
    """Return what names *leg*, which is itself a `Match` and more."""
    # What a NamedTuple's constructor does, without its detour over Python: a dozen a set-up.
    return tuple.__new__(Match, leg[:3])


class Tally(NamedTuple):
    """GRE carried by one leg since it was installed; octets are those of the IP packets."""

    packets: int
    octets: int


class LegOrder(NamedTuple):
    """A leg to install and the connmark that its packets inherit."""

    leg: Leg
    mark: int


class Installed(NamedTuple):
    """What became of an installation."""

    #: matches that others have as well, and what had been carried under each until now
    shared: Mapping[Match, Tally]
    refused: Sequence[LegOrder] = ()  #: what is not carried
    error: AdapterError | None = None  #: why, of the first


class DataPath(Protocol):
    """Carries GRE for legs.  All methods are synchronous and raise `AdapterError`."""

    name: Carrying
    outlives_us: bool  #: whether legs carry on without this process
    #: by the names of legs, one int for all who keep something of them (`pptp_nat.linux.leg_table`)
    notes: dict[bytes, int]

    def install(self, orders: Sequence[LegOrder]) -> Installed:
        """Have the legs carry packets by the time this returns."""

    def restore(self, orders: Sequence[LegOrder]) -> Installed:
        """Have legs carry packets that may do so already; nobody becomes an owner by that.

        Returns:
            Matches whose leg was there after all, as far as that was met.
        """

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Stop carrying the legs whose last owner this was; return the last counts of each.

        What could not be removed is tried again with the next removal, also with one of
        no leg.
        """

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are installed another mark."""

    def take_over(
        self, orders: Sequence[LegOrder], *, trusted: bool = False
    ) -> Sequence[LegOrder]:
        """Carry the legs of calls of an earlier run; called once, before any `install`.

        Args:
            orders: for the legs.
            trusted: do not look whether they are there: they are, if they ever outlive us.

        Returns:
            The orders that are still to be installed: nothing carries them.
        """

    def left_over(self) -> Sequence[Leg]:
        """Return the legs of an earlier run that nobody has taken over or removed."""

    def kept(self) -> Iterator[tuple[Match, Tally]]:
        """Yield the counts that would be lost with this process; legs may come and go meanwhile."""

    def credit(self, leg: Leg, tally: Tally) -> None:
        """Add what *leg*, which is installed, had carried in an earlier run: what `kept` told."""

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Keep the counts of a leg that others deleted; it may be installed again."""

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts of all legs."""

    def tallies_of(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Return the counts of these *legs* alone."""

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts of all legs in pieces, between which other work may be done.

        Each count is true when it is yielded.  Legs that come, go or are made anew
        meanwhile may be left out.
        """

    def matches(self) -> Iterable[Match]:
        """Return what is installed, also by an earlier run where the path outlives us."""

    def renew(self, now: float) -> Iterator[None]:
        """Do what keeps legs alive, in steps; called about once a minute with monotonic seconds."""

    def close(self) -> None:
        """Let go of sockets.  Legs in the kernel stay."""
