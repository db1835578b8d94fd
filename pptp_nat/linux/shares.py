"""Matches that several calls have in common: who has them, and whose leg carries.

Two calls of one client to one server may have the same outward match, since the
server's number is all that it holds: a client that dials again, or one that
reaches the server by two external addresses.  The latest owner's leg carries;
when its call ends, the one before it is carried again.

Only matches with more than one owner are here.  Of 100,000 calls hardly any is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pptp_nat.core.tuples import Leg
from pptp_nat.linux.datapath import LegOrder, Match, match_of_leg


class Left(NamedTuple):
    """What an owner that left leaves behind."""

    was: LegOrder  #: what carried until now
    now: LegOrder  #: what must carry from here on


class Shares:
    """The owners of shared matches, in the order of their installations."""

    def __init__(self) -> None:
        self._owners: dict[Match, list[LegOrder]] = {}

    def __bool__(self) -> bool:
        return bool(self._owners)

    def __contains__(self, match: Match) -> bool:
        return match in self._owners

    def join(self, match: Match, order: LegOrder, before: LegOrder | None = None) -> None:
        """Add an owner; *before* is the one owner of a match that was not shared until now."""
        owners = self._owners.get(match)
        if owners is None:
            assert before is not None
            owners = self._owners[match] = [before]
        owners.append(order)

    def leave(self, leg: Leg) -> Left | None:
        """Take an owner of *leg* out; None: the match is not shared, so nobody is left."""
        match = match_of_leg(leg)
        owners = self._owners.get(match)
        if owners is None:
            return None
        was = owners[-1]
        del owners[_latest(owners, leg)]
        if len(owners) == 1:
            del self._owners[match]
        return Left(was, owners[-1])

    def remark(self, order: LegOrder) -> bool:
        """Note another mark of a leg; whether it is one that carries."""
        owners = self._owners.get(match_of_leg(order.leg))
        if owners is None:
            return True
        at = _latest(owners, order.leg)
        if owners[at].leg == order.leg:
            owners[at] = order
        return owners[-1].leg == order.leg


def _latest(owners: Sequence[LegOrder], leg: Leg) -> int:
    """Return where the latest owner of exactly *leg* stands, the first place if nobody has it."""
    return next((at for at in range(len(owners) - 1, 0, -1) if owners[at].leg == leg), 0)
