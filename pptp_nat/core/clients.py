"""What each client may take: so many calls, and so many new ones per second.

A client is whoever asks for calls, by its own address.  There may be a hundred
thousand of them, so nothing is kept by client: each has a cell in either of two
tables, and of its two cells the lower one counts (a count-min sketch).  Cells are
given up exactly as they were taken.  Where a client shares both its cells with
others it may be refused too early; with the tables' size that needs others who
are at their limits themselves, and a chance of one in 268 million for each two.

The rate is a token bucket in the form of its *theoretical arrival time* (GCRA,
ITU-T I.371): when the bucket would be full again.  One number, one comparison.
"""

from __future__ import annotations

from array import array
from typing import Final

from pptp_nat.core.tuples import Address

CELLS: Final = 1 << 14  #: of each table
_MASK: Final = CELLS - 1
_BURST_SECONDS: Final = 2.0  #: of the rate, at once


class Clients:
    """Counts and paces, in memory that does not depend on how many clients there are."""

    __slots__ = ("_calls", "_full_at")

    def __init__(self) -> None:
        self._calls: list[array[int]] = []  # both are made when they are needed
        self._full_at: list[array[float]] = []

    def began(self, client: Address) -> None:
        """Count a call of *client*."""
        if not self._calls:
            self._calls = [array("I", bytes(4 * CELLS)) for _ in range(2)]
        one, other = _cells(client)
        self._calls[0][one] += 1
        self._calls[1][other] += 1

    def ended(self, client: Address) -> None:
        """Count a call of *client* no longer."""
        one, other = _cells(client)
        self._calls[0][one] -= 1
        self._calls[1][other] -= 1

    def calls(self, client: Address) -> int:
        """Return how many calls *client* has: never fewer than it has, hardly ever more."""
        if not self._calls:
            return 0
        first, second = _cells(client)
        return min(self._calls[0][first], self._calls[1][second])

    def may_ask(self, client: Address, rate: float, now: float) -> bool:
        """Whether *client* may ask for another call now, of which *rate* per second are let."""
        if not self._full_at:
            self._full_at = [array("d", bytes(8 * CELLS)) for _ in range(2)]
        one, other = _cells(client)
        first, second = self._full_at
        full_at = max(min(first[one], second[other]), now)
        if full_at - now > _BURST_SECONDS - 1 / rate:
            return False
        full_at += 1 / rate
        first[one] = max(first[one], full_at)
        second[other] = max(second[other], full_at)
        return True


def _cells(client: Address) -> tuple[int, int]:
    """Return the cells of *client*: Python's hashes of octets are keyed anew in each process."""
    return hash(client) & _MASK, hash(client + b"\1") & _MASK
