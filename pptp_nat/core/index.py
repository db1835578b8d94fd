"""The calls of a connection that has many, by their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

from pptp_nat.core.tuples import Party


class Numbered(Protocol):
    """A call, as far as it is told from others by its numbers; -1: one is not known yet."""

    id: int

    def own_of(self, party: Party) -> int:
        """Return *party*'s own number."""

    def seen_of(self, party: Party) -> int:
        """Return what the other party knows *party*'s number as."""


_PARTIES: Final = tuple(Party)
_CallT = TypeVar("_CallT", bound=Numbered)


class Index(Generic[_CallT]):
    """Many calls, found by any of their numbers; a number's latest owner wins."""

    __slots__ = ("blocks", "by_number", "calls")

    def __init__(self) -> None:
        self.calls: dict[int, _CallT] = {}
        self.by_number: dict[int, _CallT] = {}
        #: (party, high octet of own) -> high octet of seen; kept when calls end
        self.blocks: dict[tuple[Party, int], int] = {}

    def note(self, call: _CallT) -> None:
        """Make *call* findable by the numbers it has now."""
        self.calls[call.id] = call
        by_number = self.by_number
        for party in _PARTIES:
            if (own := call.own_of(party)) >= 0:
                seen = call.seen_of(party)
                self.blocks[party, own >> 8] = seen >> 8
                by_number[party << 16 | own] = by_number[1 << 17 | party << 16 | seen] = call

    def drop(self, call: _CallT) -> None:
        """Forget *call*."""
        del self.calls[call.id]
        for key in _keys(call):
            if self.by_number.get(key) is call:
                del self.by_number[key]

    def find(self, party: Party, number: int, *, seen: bool) -> _CallT | None:
        """Return the call in which *number* is that of *party*: its own, or as it is seen."""
        return self.by_number.get(_key(party, number, seen=seen))


def _key(party: int, number: int, *, seen: bool) -> int:
    return seen << 17 | party << 16 | number


def _keys(call: Numbered) -> Iterator[int]:
    for party in Party:
        if (own := call.own_of(party)) >= 0:
            yield _key(party, own, seen=False)
            yield _key(party, call.seen_of(party), seen=True)
