"""The binding table: which external call IDs are taken, by whom, and for how long.

Theory of operation
-------------------
A call ID is unique only inside one tunnel (RFC 2637 section 3.2.2).  Two inside
hosts of one remote address are two parties to themselves but one to the remote
host, so their numbers may collide.  We give each call a number that is unique
per pair (external address, remote address).

Reserve    on the first message that shows an inside host's number.
Release    when the call is gone; the number then sits in quarantine.
Quarantine so that late GRE cannot reach the next owner.

A number is chosen in two steps, because TCP may cut a call-ID field between its
two octets and the first must travel on before the second is known: first a
*block* (the high octet) that has room, then the low octet.

A pair's numbers are 256 blocks of 256 bits: taking, freeing and finding a free
number are each a few operations on integers, however full the table is.

With several workers each gives the numbers of its part alone (`pptp_nat.core.parts`);
what others hold of it is looked up before one is given.

Invariants, checked by tests/core/test_bindings.py as a state machine:
  1. No two live or quarantined numbers of a pair are equal; 0 is never given.
  2. A refusal changes nothing.
  3. After the last release and quarantine the table is empty.
Limit: 65,535 numbers per pair.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from pptp_nat.core.parts import WHOLE, Elsewhere, Part
from pptp_nat.core.tuples import Address
from pptp_nat.errors import ExhaustedError

BLOCK: Final = 256  #: numbers that share a high octet
_FULL: Final = (1 << BLOCK) - 1
_DRAWS: Final = 8  #: random tries before the nearest free number is taken
LIMIT: Final = 0xFFFF  #: numbers per pair; 0 is not one of them


class Pair(NamedTuple):
    """What call IDs are unique within."""

    external: Address
    remote: Address


def _first_clear(bits: int, start: int) -> int | None:
    """Return the first clear bit of 256 at or after *start*, wrapping round."""
    free = ~bits & _FULL
    if not free:
        return None
    ahead = free >> start << start
    chosen = ahead or free
    return (chosen & -chosen).bit_length() - 1


class _Pool:
    """The numbers of one pair that are taken, quarantine included."""

    __slots__ = ("blocks", "closed", "count", "full")

    def __init__(self, closed: int) -> None:
        self.closed = closed  # low octets that are not ours to give
        self.blocks: dict[int, int] = {0: 1}  # call ID 0 is nobody's to give
        self.full = 0  # bit n: block n has no room
        self.count = 0

    def has(self, number: int) -> bool:
        return bool(self.blocks.get(number >> 8, 0) >> (number & 0xFF) & 1)

    def take(self, number: int) -> None:
        block = number >> 8
        bits = self.blocks.get(block, 0) | 1 << (number & 0xFF)
        self.blocks[block] = bits
        if bits | self.closed == _FULL:
            self.full |= 1 << block
        self.count += 1

    def free(self, number: int) -> None:
        block = number >> 8
        bits = self.blocks[block] & ~(1 << (number & 0xFF))
        if bits:
            self.blocks[block] = bits
        else:
            del self.blocks[block]
        if not self.closed >> (number & 0xFF) & 1:  # another worker's number made no room
            self.full &= ~(1 << block)
        self.count -= 1


class Bindings:
    """External call IDs of all pairs.

    Args:
        draw: returns a random int below 65,536.
        preserve: keep the inside host's own number when it is free.
        quarantine: seconds that a released number is kept back.
        part: whose numbers are given.
        elsewhere: what other workers hold.
    """

    __slots__ = (
        "_closed", "_draw", "_elsewhere", "_part", "_pools", "_shares", "_waiting", "_zeros",
        "doubt", "preserve", "quarantine", "released",
    )  # fmt: skip

    def __init__(
        self,
        draw: Callable[[], int],
        *,
        preserve: bool = False,
        quarantine: float = 60.0,
        part: Part = WHOLE,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._draw = draw
        self._part = part
        self._closed = part.closed
        self._elsewhere = elsewhere
        self._pools: dict[Pair, _Pool] = {}
        self._waiting: deque[tuple[float, Pair, int]] = deque()
        self._shares: Counter[tuple[Pair, int]] = Counter()  # owners of each shared number
        self._zeros: Counter[Pair] = Counter()  # owners of 0, which any number may have
        self.preserve = preserve
        self.quarantine = quarantine
        #: says until when a number is to be kept back that something of an earlier run still
        #: carries, None if nothing does; as long as that is not known of all numbers
        self.doubt: Callable[[Pair, int], float | None] | None = None
        #: (until, pair, number) of what was put into quarantine since somebody looked, if he wants
        self.released: list[tuple[float, Pair, int]] | None = None

    def choose_block(self, pair: Pair, high: int, *, like: int | None, unlike: set[int]) -> int:
        """Choose the high octet of the number for an inside number that begins with *high*.

        Args:
            pair: what the number must be unique within.
            high: the high octet of the inside host's own number.
            like: the block that this connection's other numbers with the same
                high octet map to, if any.  One octet then decides the other
                (see `pptp_nat.core.calls`).
            unlike: blocks that this connection uses for other high octets.

        Raises:
            ExhaustedError: ``call_ids_exhausted``, every number of the pair is taken.
        """
        pool = self._pools.get(pair)
        full = pool.full if pool else 0
        if like is not None and not full >> like & 1:
            return like
        if self.preserve and high not in unlike and not full >> high & 1:
            return high
        for _ in range(_DRAWS):
            block = self._draw() >> 8
            if block not in unlike and not full >> block & 1:
                return block
        start = self._draw() >> 8
        taken = full
        for block in unlike:
            taken |= 1 << block
        chosen = _first_clear(taken, start)
        if chosen is None:
            chosen = _first_clear(full, start)
        if chosen is None:
            raise ExhaustedError("call_ids_exhausted")
        return chosen

    def reserve(self, pair: Pair, own: int, block: int) -> int:
        """Take a number of *block* for the inside number *own* and return it.

        Raises:
            ExhaustedError: ``call_id_block_full``, since it was chosen.
        """
        number = self._take(pair, own, block)
        while self.doubt is not None and (until := self.doubt(pair, number)) is not None:
            self._wait(until, pair, number)
            number = self._take(pair, own, block)
        return number

    def _take(self, pair: Pair, own: int, block: int) -> int:
        pool = self._pools.get(pair)
        if pool is None:
            pool = self._pools[pair] = _Pool(self._closed)
        number = block << 8 | own & 0xFF
        taken = pool.blocks.get(block, 0) | self._closed
        if self._elsewhere is not None:
            taken |= self._elsewhere.held(*pair, block)
        if not (self.preserve and number == own and not taken >> (own & 0xFF) & 1):
            for _ in range(_DRAWS):
                low = self._draw() & 0xFF
                if not taken >> low & 1:
                    break
            else:
                chosen = _first_clear(taken, self._draw() & 0xFF)
                if chosen is None:
                    raise ExhaustedError("call_id_block_full")
                low = chosen
            number = block << 8 | low
        pool.take(number)
        return number

    def claim(self, pair: Pair, number: int, *, shared: bool = False) -> bool:
        """Take *number* as it is, for a host whose numbers we do not choose.

        Returns whether nobody else has it.  A number in quarantine is claimed out
        of it; 0 is never given to anyone, so it needs no claim.  A *shared* claim
        stands beside others: a host that dials again may use the number of its
        old call, which is not over yet.
        """
        if number == 0:
            self._zeros[pair] += 1
            return True
        if not shared or not self._shares[pair, number]:
            if shared and self._is_taken_elsewhere(pair, number):
                return False
            pool = self._pools.get(pair)
            if pool is None:
                pool = self._pools[pair] = _Pool(self._closed)
            if not pool.has(number):
                pool.take(number)
                if self._elsewhere is not None and not self._part.has_number(number):
                    self._elsewhere.hold(*pair, number)
            elif not self.keep(pair, number):
                return False
        if shared:
            self._shares[pair, number] += 1
        return True

    def _is_taken_elsewhere(self, pair: Pair, number: int) -> bool:
        """Whether another worker has *number*, which this router's own client chose."""
        elsewhere = self._elsewhere
        return elsewhere is not None and (
            bool(elsewhere.held(*pair, number >> 8) >> (number & 0xFF) & 1)
            or (not self._part.has_number(number) and elsewhere.is_carried(*pair, number))
        )

    def has_zero(self, pair: Pair) -> bool:
        """Whether somebody has claimed 0."""
        return pair in self._zeros

    def _give_zero_back(self, pair: Pair) -> None:
        self._zeros[pair] -= 1
        if self._zeros[pair] <= 0:
            del self._zeros[pair]

    def _is_shared(self, pair: Pair, number: int) -> bool:
        """Give one share in *number* back; whether others have one still."""
        left = self._shares[pair, number] - 1
        if left > 0:
            self._shares[pair, number] = left
            return True
        self._shares.pop((pair, number), None)
        return False

    def has(self, pair: Pair, number: int) -> bool:
        """Whether *number* is taken or kept back."""
        pool = self._pools.get(pair)
        return pool is not None and pool.has(number)

    def keep(self, pair: Pair, number: int) -> bool:
        """Take *number* out of quarantine for another call; whether it was there."""
        for entry in reversed(self._waiting):
            if entry[1:] == (pair, number):
                self._waiting.remove(entry)
                return True
        return False

    def release(self, pair: Pair, number: int, now: float) -> None:
        """Put *number* into quarantine."""
        if number == 0:
            self._give_zero_back(pair)
            return
        if self._is_shared(pair, number):
            return
        self._wait(now + self.quarantine, pair, number)

    def keep_back(self, pair: Pair, number: int, until: float) -> None:
        """Have *number* in quarantine as an earlier run has left it; *until* never falls."""
        if self.claim(pair, number):
            self._wait(until, pair, number)

    def _wait(self, until: float, pair: Pair, number: int) -> None:
        self._waiting.append((until, pair, number))
        if self.released is not None:
            self.released.append(self._waiting[-1])

    def drop(self, pair: Pair, number: int) -> None:
        """Free *number* at once: no GRE can have used it."""
        if number == 0:
            self._give_zero_back(pair)
            return
        if self._is_shared(pair, number):
            return
        pool = self._pools[pair]
        pool.free(number)
        if not pool.count:
            del self._pools[pair]
        if self._elsewhere is not None and not self._part.has_number(number):
            self._elsewhere.let_go(*pair, number)

    def next_timer(self) -> float | None:
        """Return when the next number leaves quarantine."""
        return self._waiting[0][0] if self._waiting else None

    def tick(self, now: float) -> None:
        """Let go of the numbers whose quarantine is over."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            _, pair, number = waiting.popleft()
            self.drop(pair, number)

    def quarantined(self) -> list[tuple[float, Pair, int]]:
        """Return (until, pair, number) of the numbers kept back."""
        return list(self._waiting)

    def used(self) -> dict[Pair, int]:
        """Return how many numbers each pair has taken, quarantine included."""
        return {pair: pool.count for pair, pool in self._pools.items()}
