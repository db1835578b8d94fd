"""What workers must tell each other of numbers, in memory that all of them see.

A worker gives the numbers of its part alone.  A number outside of it is held by a
call of this router's own client, who chose it, or of an earlier run with another
count of workers.  Its holder writes it here, and its giver looks before he gives.
Mostly nothing is held; a look then compares two words per other worker.

Each worker writes an *area* of its own: a log of numbers taken and let go, which
readers follow.  A log that is full is written anew, without what is over, in the
other half of the area, and the word that says which half counts changes last.
A worker that died leaves its area as it was; its successor writes it anew.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

from pptp_nat.core.parts import Part

_HEADER: Final = 4  # words: how often written anew, entries of the two halves, spare
_HELD: Final = 1 << 16  # of an entry's second word: taken; else let go
_EPOCH_AT: Final = 17  # bit: the lower bits of how often it was written anew, by then
_EPOCHS: Final = 1 << 40
_WORD: Final = 8

Key = tuple[int, int]  #: both addresses of a pair as one number, a call ID


class Board:
    """The memory, made before the workers are.

    Args:
        workers: how many write there.
        room: numbers that each can hold outside of its part.
    """

    def __init__(self, workers: int, room: int) -> None:
        self.workers = workers
        self.capacity = 2 * room + 1024
        self.size = _HEADER + 4 * self.capacity
        self.words = memoryview(mmap.mmap(-1, workers * self.size * _WORD)).cast("Q")

    def area(self, index: int) -> int:
        """Return where the area of worker *index* begins, in words."""
        return index * self.size


class Seat:
    """One worker's place at the board: an `Elsewhere`.

    Args:
        board: that all share.
        part: this worker's.
        carries: says whether the kernel carries a number of a pair to an inside host.
    """

    def __init__(
        self, board: Board, part: Part, carries: Callable[[bytes, bytes, int], bool]
    ) -> None:
        self._words = board.words
        self._capacity = board.capacity
        self._at = board.area(part.index)
        self._carries = carries
        self._mine: dict[Key, None] = {}
        self._is_shown = False
        others = (index for index in range(board.workers) if index != part.index)
        self._readers = [_Reader(board, board.area(index)) for index in others]

    # Writing.

    def hold(self, external: bytes, remote: bytes, number: int) -> None:
        """See `Elsewhere.hold`."""
        key = _pair(external, remote), number
        self._mine[key] = None
        self._note(key, _HELD)

    def let_go(self, external: bytes, remote: bytes, number: int) -> None:
        """See `Elsewhere.let_go`."""
        key = _pair(external, remote), number
        self._mine.pop(key, None)
        self._note(key, 0)

    def show(self) -> None:
        """Write what is held for all to see, instead of what a predecessor held."""
        epoch = self._words[self._at] + 1
        half = epoch & 1
        count = 0
        for key in self._mine:
            if count == self._capacity:
                break  # more than all calls that there may be
            self._write(half, count, epoch, key, _HELD)
            count += 1
        self._words[self._at + 1 + half] = count
        self._words[self._at] = epoch
        self._is_shown = True

    def _note(self, key: Key, held: int) -> None:
        if not self._is_shown:
            return
        epoch = self._words[self._at]
        half = epoch & 1
        count = self._words[self._at + 1 + half]
        if count == self._capacity:
            self.show()
            return
        self._write(half, count, epoch, key, held)
        self._words[self._at + 1 + half] = count + 1

    def _write(self, half: int, place: int, epoch: int, key: Key, held: int) -> None:
        at = self._at + _HEADER + 2 * (half * self._capacity + place)
        pair, number = key
        self._words[at] = pair
        self._words[at + 1] = epoch % _EPOCHS << _EPOCH_AT | held | number

    # Reading.

    def held(self, external: bytes, remote: bytes, block: int) -> int:
        """See `Elsewhere.held`."""
        bits = 0
        for reader in self._readers:
            reader.follow()
            if reader.blocks:
                bits |= reader.blocks.get((_pair(external, remote), block), 0)
        return bits

    def is_carried(self, external: bytes, remote: bytes, number: int) -> bool:
        """See `Elsewhere.is_carried`."""
        return self._carries(external, remote, number)


class _Reader:
    """Follows the area of one other worker."""

    __slots__ = ("_at", "_capacity", "_count", "_epoch", "_words", "blocks")

    def __init__(self, board: Board, at: int) -> None:
        self._words = board.words
        self._capacity = board.capacity
        self._at = at
        self._epoch = self._count = 0
        self.blocks: dict[Key, int] = {}  #: (pair, block) -> numbers held, as bits

    def follow(self) -> None:
        """Read what is new."""
        words, at = self._words, self._at
        epoch = words[at]
        if epoch != self._epoch:
            self._epoch, self._count = epoch, 0
            self.blocks.clear()
        half = epoch & 1
        count = words[at + 1 + half]
        while self._count < count:
            place = at + _HEADER + 2 * (half * self._capacity + self._count)
            pair, entry = words[place], words[place + 1]
            if entry >> _EPOCH_AT != epoch % _EPOCHS:
                return  # the count has come before the entry; or both of another epoch
            self._count += 1
            number = entry & 0xFFFF
            key, bit = (pair, number >> 8), 1 << (number & 0xFF)
            bits = self.blocks.get(key, 0)
            bits = bits | bit if entry & _HELD else bits & ~bit
            if bits:
                self.blocks[key] = bits
            else:
                self.blocks.pop(key, None)


def _pair(external: bytes, remote: bytes) -> int:
    return int.from_bytes(external + remote, "big")
