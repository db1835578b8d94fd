"""The data path that leaves GRE to the kernel: one conntrack entry per leg."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_wire import CARRYING, Entry, Status
from pptp_nat.linux.datapath import LegOrder, Match, Tally

LONGEST_UNSEEN: Final = 86400.0  # seconds between two looks at what is left of lifetimes
PROBE_LIFETIME: Final = 5  # seconds, should we die before we clean up

# TEST-NET-1 (RFC 5737): no packet carries these addresses.
_SERVER: Final = bytes((192, 0, 2, 1))
_EXTERNAL: Final = bytes((192, 0, 2, 2))
_CLIENT: Final = bytes((192, 0, 2, 3))
# A call's two legs, and the bit that says the kernel will translate.
PROBES: Final = {
    Leg(_SERVER, _EXTERNAL, 1723, _SERVER, _CLIENT, 1724): Status.DST_NAT,
    Leg(_CLIENT, _SERVER, 1725, _EXTERNAL, _SERVER, 1725): Status.SRC_NAT,
}


class ConntrackPath:
    """A `DataPath` on *conntrack*, which it closes.

    Entries live for `Conntrack.lifetime` and are renewed when less than half of
    it is left, so calls outlive a daemon that is away for days.
    """

    name = "conntrack"

    def __init__(self, conntrack: Conntrack) -> None:
        self._conntrack = conntrack
        self._orders: dict[Match, LegOrder] = {}  # what this run has installed
        self._owners: Counter[Match] = Counter()
        self._earlier: dict[Leg, Tally] = {}  # counts of entries that were made anew
        self._due = -math.inf  # when the next entry has half of its lifetime left

    @staticmethod
    def probe() -> str | None:
        """Return None where this path works, or one sentence that says why it does not.

        Makes two entries between addresses that nobody has, looks at what the
        kernel made of them, and removes them.  Sends no packet.
        """
        try:
            with Conntrack(lifetime=PROBE_LIFETIME) as conntrack:
                conntrack.insert([LegOrder(leg, 0) for leg in PROBES])
                try:
                    flaws = (_flaw(leg, conntrack.entry(_match(leg))) for leg in PROBES)
                    return next(filter(None, flaws), None)
                finally:
                    conntrack.delete(list(PROBES))
        except AdapterError as error:
            return str(error)

    def install(self, orders: Sequence[LegOrder]) -> None:
        """Have the kernel carry the legs; see `Conntrack.insert`."""
        self._remember(self._conntrack.insert(orders))
        for order in orders:
            match = _match(order.leg)
            before = self._orders.get(match)
            if before is not None and before.leg != order.leg:
                self._earlier.pop(before.leg, None)
            self._orders[match] = order
            self._owners[match] += 1

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Delete the entries whose last owner this was; return the counts of all of them."""
        ending: list[Leg] = []
        shared: list[Leg] = []
        for leg in legs:
            match = _match(leg)
            current = self._orders[match].leg if match in self._orders else leg
            self._owners[match] -= 1
            (shared if self._owners[match] > 0 else ending).append(current)
        last = {_match(e.leg): e.carried for e in self._conntrack.find(shared)}
        last.update(self._conntrack.delete(ending))
        tallies = {}
        for leg in (*shared, *ending):
            match, earlier = _match(leg), self._earlier.get(leg)
            if match in last or earlier is not None:
                tallies[match] = _sum(earlier, last.get(match))
        for leg in ending:
            self._forget(_match(leg))
            self._earlier.pop(leg, None)
        return tallies

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are installed another mark."""
        self._conntrack.remark(orders)
        for leg, mark in orders:
            match = _match(leg)
            if match in self._orders:
                self._orders[match] = self._orders[match]._replace(mark=mark)

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Keep the counts of a leg that others deleted; it may be installed again."""
        order = self._orders.get(_match(leg))
        if order is not None and order.leg == leg:
            self._remember({leg: tally})

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts, also those of entries that were made anew; one dump."""
        tallies = self._conntrack.counts()
        for leg, earlier in self._earlier.items():
            match = _match(leg)
            if match in tallies:
                tallies[match] = _sum(earlier, tallies[match])
        return tallies

    def matches(self) -> list[Match]:
        """Return what our entries match, those of an earlier run too; one dump.

        A leg whose entry others have deleted has no owners from here on: whoever
        installs it again is the first.
        """
        present = list(self._conntrack.counts())
        for match in self._orders.keys() - present:
            self._forget(match)
        return present

    def renew(self, now: float) -> None:
        """Make entries anew that have less than half of their lifetime left.

        Most calls do nothing: a look is due when the oldest entry can be that
        old, and once a day.
        """
        if now < self._due:
            return
        half = self._conntrack.lifetime // 2
        entries = list(self._conntrack.entries())
        aged = [entry for entry in entries if entry.seconds_left < half]
        self._remember(self._conntrack.renew(aged))
        left = [entry.seconds_left - half for entry in entries if entry.seconds_left >= half]
        self._due = now + min([LONGEST_UNSEEN, half, *left])

    def close(self) -> None:
        """Let go of the sockets; the entries stay and go on carrying."""
        self._conntrack.close()

    def _forget(self, match: Match) -> None:
        self._orders.pop(match, None)
        self._owners.pop(match, None)

    def _remember(self, counted: Mapping[Leg, Tally]) -> None:
        for leg, tally in counted.items():
            self._earlier[leg] = _sum(self._earlier.get(leg), tally)


def _match(leg: Leg) -> Match:
    return Match(*leg[:3])


def _sum(*tallies: Tally | None) -> Tally:
    known = [tally for tally in tallies if tally is not None]
    return Tally(sum(tally.packets for tally in known), sum(tally.octets for tally in known))


def _flaw(leg: Leg, entry: Entry | None) -> str | None:
    """Say what is wrong with the entry that was made for *leg*."""
    if entry is None or entry.leg.key != leg.key or entry.leg.new_key != leg.new_key:
        return "this kernel tracks GRE without its call IDs: it lacks CONFIG_NF_CT_PROTO_GRE"
    if entry.status & CARRYING != CARRYING:
        return f"this kernel made a conntrack entry of status {entry.status:#x}, not {CARRYING:#x}"
    if entry.leg != leg or not entry.status & PROBES[leg]:
        return "this kernel made a conntrack entry without address translation: load nf_nat"
    return None
