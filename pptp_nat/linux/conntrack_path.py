"""The data path that leaves GRE to the kernel: one conntrack entry per leg."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_wire import CARRYING, Entry, Status
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.shares import Shares

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
        self._shares = Shares()
        self._earlier_runs: dict[Match, Leg] = {}  # entries that were there at the start
        #: counts of entries that were made anew, and of which leg they are
        self._earlier: dict[Match, tuple[Leg, Tally]] = {}
        self._due = -math.inf  # when the next entry has half of its lifetime left
        #: of each reading in pieces under way, the legs whose entries have ended since it began:
        #: what the kernel wrote of them may still lie in the socket
        self._readings: dict[int, set[Match]] = {}

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
        met = self._insert(orders)
        for order in orders:
            match = _match(order.leg)
            if match in self._shares:
                self._shares.join(match, order)
            elif order.leg in met and self._earlier_runs.pop(match, None) is None:
                self._shares.join(match, order, met[order.leg])

    def _insert(self, orders: Sequence[LegOrder]) -> Mapping[Leg, LegOrder]:
        """Insert, keep the counts of what was made anew, return what was met of ours."""
        done = self._conntrack.insert(orders)
        if self._earlier:
            for leg, _ in orders:
                if self._earlier.get(_match(leg), (leg,))[0] != leg:
                    del self._earlier[_match(leg)]
                    self._distrust(_match(leg))
        self._remember(done.counted)
        return done.met

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Delete the entries whose last owner this was; return the counts of all of them."""
        ending: list[Leg] = []
        staying: list[Leg] = []
        replacing: list[LegOrder] = []
        marking: list[LegOrder] = []
        for leg in legs:
            left = self._shares.leave(leg)
            if left is None:
                ending.append(leg)
                continue
            staying.append(left.was.leg)
            if left.now.leg != left.was.leg:
                replacing.append(left.now)
            elif left.now != left.was:
                marking.append(left.now)
        last = {_match(e.leg): e.carried for e in self._conntrack.find(staying)}
        last.update(self._conntrack.delete(ending))
        tallies = {}
        for leg in (*staying, *ending):
            match = _match(leg)
            earlier = self._earlier.get(match)
            if match in last or earlier is not None:
                tallies[match] = _sum(earlier and earlier[1], last.get(match))
        for leg in (*ending, *(order.leg for order in replacing)):
            self._distrust(_match(leg))
            self._earlier.pop(_match(leg), None)
            self._earlier_runs.pop(_match(leg), None)
        if replacing:
            self._conntrack.insert(replacing)  # what is replaced has told its counts above
        self._conntrack.remark(marking)
        return tallies

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are installed another mark."""
        self._conntrack.remark([order for order in orders if self._shares.remark(order)])

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Keep the counts of a leg that others deleted; it may be installed again."""
        self._remember({leg: tally})

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts, also those of entries that were made anew; one dump."""
        tallies = self._conntrack.counts()
        for match, (_, earlier) in self._earlier.items():
            if match in tallies:
                tallies[match] = _sum(earlier, tallies[match])
        return tallies

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts in pieces; see `DataPath`."""
        ended: set[Match] = set()
        self._readings[id(ended)] = ended
        try:
            for piece in self._conntrack.count_pieces():
                if self._earlier or ended:
                    yield {
                        match: self._whole(match, tally)
                        for match, tally in piece.items() if match not in ended
                    }  # fmt: skip
                else:
                    yield piece
        finally:
            del self._readings[id(ended)]

    def _whole(self, match: Match, tally: Tally) -> Tally:
        earlier = self._earlier.get(match)
        return tally if earlier is None else _sum(earlier[1], tally)

    def _distrust(self, match: Match) -> None:
        for ended in self._readings.values():
            ended.add(match)

    def matches(self) -> list[Match]:
        """Return what our entries match, those of an earlier run too; one dump."""
        return list(self._conntrack.counts())

    def adopt(self) -> None:
        """Note what an earlier run has left, before anything is installed.

        It carries on; a call whose leg is among it takes it over.
        """
        self._earlier_runs = {_match(entry.leg): entry.leg for entry in self._conntrack.entries()}

    @property
    def adopted(self) -> list[Leg]:
        """The legs of an earlier run that no call has taken over and nobody removed."""
        return list(self._earlier_runs.values())

    def renew(self, now: float) -> None:
        """Make entries anew that have less than half of their lifetime left.

        Most calls do nothing: a look is due when the oldest entry can be that
        old, and once a day.
        """
        if now < self._due:
            return
        half = self._conntrack.lifetime // 2
        entries = list(self._conntrack.entries())
        present = {_match(entry.leg) for entry in entries}
        self._earlier = {match: kept for match, kept in self._earlier.items() if match in present}
        aged = [entry for entry in entries if entry.seconds_left < half]
        self._remember(self._conntrack.renew(aged))
        left = [entry.seconds_left - half for entry in entries if entry.seconds_left >= half]
        self._due = now + min([LONGEST_UNSEEN, half, *left])

    def close(self) -> None:
        """Let go of the sockets; the entries stay and go on carrying."""
        self._conntrack.close()

    def _remember(self, counted: Mapping[Leg, Tally]) -> None:
        for leg, tally in counted.items():
            before = self._earlier.get(_match(leg))
            known = before[1] if before is not None and before[0] == leg else None
            self._earlier[_match(leg)] = leg, _sum(known, tally)
            self._distrust(_match(leg))


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
