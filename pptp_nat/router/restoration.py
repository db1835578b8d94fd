"""Entries that others have deleted: put back as they are told, a few at a time.

Nothing is read to find out what is missing: the kernel names each entry that ends
(`pptp_nat.linux.conntrack_ends`).  So it costs the same whether one entry of a table
is deleted or all of them, and no more the tenth time than the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pptp_nat.core.calls import Call
from pptp_nat.core.events import LegUp
from pptp_nat.core.tuples import Leg, Party
from pptp_nat.linux.conntrack_ends import Ended
from pptp_nat.linux.leg_table import name_of, name_once
from pptp_nat.router.carrier import Carrier

_FIRST, _SECOND = Party
_AT_ONCE: Final = 64  #: legs that are put back in one step


def wanted(name: bytes, calls: Mapping[int, Call], carrier: Carrier) -> LegUp | None:
    """Return the leg named *name* as its call wants it; None: no call has it any more.

    Of several calls that have it the latest counts.
    """
    owner = carrier.totals.owner(name)
    call = None if owner is None else calls.get(owner)
    if call is not None:
        for party in Party:
            leg = call.leg(party)
            if leg is not None and name_of(leg) == name:
                return LegUp(call, party, leg, call.connection.mark)
    return None


class Restoration:
    """What is to be put back of the legs of *calls*."""

    def __init__(self, calls: Mapping[int, Call], carrier: Carrier) -> None:
        self._calls = calls
        self._carrier = carrier
        self._gone: list[Leg] = []

    def __len__(self) -> int:
        """Return how many legs are to be looked at, and put back if they are wanted."""
        return len(self._gone)

    def hear(self, ended: Sequence[Ended]) -> None:
        """Take note of what others have deleted; its counts are kept."""
        lost = self._carrier.lost
        for leg, tally in ended:
            lost(leg, tally)
        self._gone += [leg for leg, _ in ended]

    def step(self, now: float) -> int:
        """Put some of it back, what calls still want; return how many legs that were."""
        some = self._gone[-_AT_ONCE:]
        del self._gone[-_AT_ONCE:]
        ups = [up for up in map(self._wanted, some) if up is not None]
        return self._carrier.put_back(ups, now) if ups else 0

    def _wanted(self, was: Leg) -> LegUp | None:
        """Return what is to be carried in the place of *was*: nearly always the same."""
        name = name_once(was)
        owner = self._carrier.totals.owner(name)
        call = None if owner is None else self._calls.get(owner)
        if call is None:
            return None
        connection = call.connection
        party = _FIRST if connection.key[:4] == was.new_destination else _SECOND
        if call.leg(party) == was:
            return tuple.__new__(LegUp, (call, party, was, connection.mark))
        return wanted(name, self._calls, self._carrier)
