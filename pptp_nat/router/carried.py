"""What each call has carried, where the counts of a match are not those of one call.

Two cases, both rare, so that of 100,000 calls hardly any is here:

A match that several calls have (`pptp_nat.linux.shares`).  Its counts go on while
its owners change; each has what was carried while it was the latest.

A call that has had another number.  What was carried under the old one is its too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pptp_nat.core.tuples import Party
from pptp_nat.linux.datapath import Match, Tally

NO_GRE: Final = Tally(0, 0)


class Counts(NamedTuple):
    """GRE of one call, by the party that it went to."""

    to_originator: Tally
    to_responder: Tally

    @property
    def packets(self) -> int:
        """Both ways together."""
        return self.to_originator.packets + self.to_responder.packets


NOTHING: Final = Counts(NO_GRE, NO_GRE)


class _Share:
    """The owners of one match, and what each had when others were the latest."""

    __slots__ = ("owners", "parts", "since")

    def __init__(self) -> None:
        # The first owner is not known by name; all others are.
        self.owners: list[int | None] = [None]
        self.parts: dict[int | None, Tally] = {}
        self.since = NO_GRE  #: the match's count when the latest owner became that

    def settle(self, tally: Tally) -> None:
        """Give the latest owner what was carried until *tally*."""
        latest = self.owners[-1]
        self.parts[latest] = add(self.parts.get(latest, NO_GRE), minus(tally, self.since))
        self.since = tally

    def name(self, call: int) -> int | None:
        """Return what *call* is called here."""
        return call if call in self.owners else None


class Carried:
    """Knows which part of a match's counts is whose.  Calls are named by their ids."""

    def __init__(self) -> None:
        self._shares: dict[Match, _Share] = {}
        self._former: dict[int, Counts] = {}  # what calls carried under numbers that they had

    def __bool__(self) -> bool:
        """Whether any call's counts are not simply those of its legs."""
        return bool(self._shares or self._former)

    def join(self, call: int, match: Match, tally: Tally) -> None:
        """Note that *call* has *match* too from here on, of which *tally* was carried so far."""
        share = self._shares.setdefault(match, _Share())
        share.settle(tally)
        share.owners.append(call)

    def leave(self, call: int, match: Match, tally: Tally) -> Tally:
        """Note that *call* no longer has *match*, and return its part of *tally*."""
        share = self._shares.get(match)
        if share is None:
            return tally
        share.settle(tally)
        name = share.name(call)
        share.owners.reverse()
        share.owners.remove(name)  # the latest, should it be there twice
        share.owners.reverse()
        if not share.owners:
            del self._shares[match]
        return share.parts.pop(name, NO_GRE)

    def part(self, call: int, match: Match, tally: Tally) -> Tally:
        """Return what *call* has of *tally*, all that was carried under *match*."""
        share = self._shares.get(match)
        if share is None:
            return tally
        name = share.name(call)
        part = share.parts.get(name, NO_GRE)
        return add(part, minus(tally, share.since)) if share.owners[-1] == name else part

    def keep(self, call: int, party: Party, part: Tally) -> None:
        """Keep what *call* has carried to *party* under a number that it no longer has."""
        kept = list(self._former.get(call, NOTHING))
        kept[party] = add(kept[party], part)
        self._former[call] = Counts(*kept)

    def former(self, call: int) -> Counts:
        """Return what *call* has carried under numbers that it had."""
        return self._former.get(call, NOTHING)

    def forget(self, call: int) -> None:
        """Take note that *call* is gone."""
        self._former.pop(call, None)


def add(one: Tally, other: Tally) -> Tally:
    """Return the sum."""
    return Tally(one.packets + other.packets, one.octets + other.octets)


def minus(one: Tally, other: Tally) -> Tally:
    """Return the difference, nothing where the kernel's counts began anew."""
    return Tally(max(0, one.packets - other.packets), max(0, one.octets - other.octets))
