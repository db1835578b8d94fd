"""What of all control connections and numbers one worker has, if there are several.

Workers share nothing while calls come up.  Two rules divide the work:

    a pair of hosts has one worker, whoever of the two sends: a multiplicative hash of
    both addresses, exclusive-ored.  The firewall's rules compute the same
    (`pptp_nat.linux.ruleset_bpf.share`), so a connection stays with its worker.
    Every n-th number of each pair (external, remote) has one worker: clients of one
    server may be at different workers, and must not get the same number.

So everybody can tell whose a call on record is, how many workers there were before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from pptp_nat.core.tuples import Address, Leg

#: Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4): the odd number
#: nearest to 2**32 divided by the golden ratio spreads addresses that follow each other, and
#: those in steps.
MULTIPLIER: Final = 0x9E3779B1
SHIFT: Final = 16  #: the product's upper half depends on all bits
_WORD: Final = 0xFFFFFFFF


def worker_of(one: Address, other: Address, count: int) -> int:
    """Return which of *count* workers has the control connections between two hosts.

    Args:
        one: a host's own address, as packets in FORWARD, INPUT and OUTPUT show it.
        other: the other one's.
        count: of workers.
    """
    mixed = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return ((mixed * MULTIPLIER & _WORD) >> SHIFT) % count


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one worker of several."""

    index: int = 0
    count: int = 1

    def has_hosts(self, one: Address, other: Address) -> bool:
        """Whether control connections between these two are of this part."""
        return worker_of(one, other, self.count) == self.index

    def has_leg(self, leg: Leg) -> bool:
        """Whether *leg* is of a call of this part: it joins two hosts by their own addresses."""
        return self.count == 1 or self.has_hosts(leg.source, leg.new_destination)

    def has_number(self, number: int) -> bool:
        """Whether *number* is this worker's to give."""
        return (number & 0xFF) % self.count == self.index

    @property
    def closed(self) -> int:
        """The low octets of the numbers that are not this worker's to give, as bits."""
        return sum(1 << low for low in range(256) if low % self.count != self.index)


WHOLE: Final = Part()


class Elsewhere(Protocol):
    """What other workers have that is ours to give, and we that is theirs.

    A number is held outside of its part by this router's own client, who chooses for
    himself, and by calls of a run that had another count of workers.
    """

    def hold(self, external: Address, remote: Address, number: int) -> None:
        """Tell the others that we have a number that one of them might give."""

    def let_go(self, external: Address, remote: Address, number: int) -> None:
        """Tell the others that we no longer have it."""

    def held(self, external: Address, remote: Address, block: int) -> int:
        """Return the numbers with the high octet *block* that others hold, as bits."""

    def is_carried(self, external: Address, remote: Address, number: int) -> bool:
        """Whether an inside host's call has *number*, whoever gave it."""
