"""The data path that leaves GRE to the kernel: one conntrack entry per leg."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_legs import Standing
from pptp_nat.linux.conntrack_wire import CARRYING, Entry, Status
from pptp_nat.linux.datapath import Carrying, Installed, LegOrder, Match, Tally, match_of_leg
from pptp_nat.linux.earlier import Earlier
from pptp_nat.linux.leg_table import Notes, name_once
from pptp_nat.linux.shares import Left, Shares

LONGEST_UNSEEN: Final = 86400.0  # seconds between two looks at what is left of lifetimes
_RENEWED: Final = 64  # entries at a time, so that the counts of those are known that were
PROBE_LIFETIME: Final = 5  # seconds, should we die before we clean up

_INSTALLED: Final = Installed(MappingProxyType({}))  #: all of it, and nobody has any of it besides

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

    name: Carrying = "conntrack"
    outlives_us = True

    def __init__(self, conntrack: Conntrack) -> None:
        self._conntrack = conntrack
        self.notes: Notes = {}  # nothing in them is ours: legs have their places in the kernel
        self._shares = Shares()
        self._earlier_runs: dict[Match, Leg] = {}  # entries that were there at the start
        self._unremoved: dict[Match, Leg] = {}  # the kernel refused; nobody's any more
        self._earlier = Earlier()  # counts of entries that are made anew, or will be
        self._absent: set[bytes] = set()  # of these, whose entries were not there last time
        #: reads some of the ends that are waiting, of what others have deleted just now;
        #: whether there were any
        self.catch_up: Callable[[], bool] = _never
        self._awaited: set[Match] = set()  # whose ends are missing from a count that is asked for
        #: whether several calls have the leg of a match; the one that is being installed counts
        self.has_several: Callable[[Match], bool] = _always
        self._aged: list[Leg] = []  # found with less than half of its lifetime left
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
                done = conntrack.insert([LegOrder(leg, 0) for leg in PROBES])
                if done.refused:
                    return str(done.refused[0][1])
                try:
                    flaws = (_flaw(leg, conntrack.entry(match_of_leg(leg))) for leg in PROBES)
                    return next(filter(None, flaws), None)
                finally:
                    conntrack.delete(list(PROBES))
        except AdapterError as error:
            return str(error)

    def install(self, orders: Sequence[LegOrder]) -> Installed:
        """Have the kernel carry the legs; see `Conntrack.insert`."""
        done = self._conntrack.insert(orders)
        if not (done.met or done.refused or done.counted or self._shares):  # nearly always
            if self._earlier:
                for order in orders:
                    self._forget(match_of_leg(order.leg))
            return _INSTALLED
        refused = [order for order, _ in done.refused]
        shared = {}
        for order in orders:
            match, met = match_of_leg(order.leg), done.met.get(order.leg)
            if order in refused:
                continue
            if match in self._shares:
                self._shares.join(match, order)
            elif met is not None and not self._is_nobodys(match):
                self._shares.join(match, order, met.order)
            else:
                self._forget(match)
                continue
            shared[match] = _sum(self._earlier.get(match), met and met.carried)
            if met is not None and not met.stays:
                self._remember(match, met.carried)
        self._remember_all(done.counted)
        return Installed(shared, refused, done.refused[0][1] if refused else None)

    def _is_nobodys(self, match: Match) -> bool:
        """Whether the entry of *match* has no owner, whom nobody is now."""
        unremoved = match in self._unremoved
        self._unremoved.pop(match, None)
        left = self._earlier_runs.pop(match, None) is not None
        return left or unremoved or not self.has_several(match)

    def restore(self, orders: Sequence[LegOrder]) -> Installed:
        """Have the kernel carry legs whose entries others have deleted; their counts go on."""
        done = self._conntrack.insert(orders)
        self._remember_all(done.counted)
        refused = [order for order, _ in done.refused]
        stay = {match_of_leg(leg): met.carried for leg, met in done.met.items() if met.stays}
        return Installed(stay, refused, done.refused[0][1] if refused else None)

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Delete the entries whose last owner this was; return the counts of all of them."""
        shared: dict[Match, Left] = {}
        for leg in legs:
            match, left = match_of_leg(leg), self._shares.leave(leg)
            if left is not None:
                was = shared[match].was if match in shared else left.was
                shared[match] = Left(was, left.now)
            else:
                before = shared.pop(match, None)
                self._unremoved[match] = leg if before is None else before.was.leg
        ending = list(self._unremoved.values())
        last = {match_of_leg(e.leg): e.carried for e in self._conntrack.find(
            [left.was.leg for left in shared.values()])}  # fmt: skip
        last.update(self._conntrack.delete(ending))
        asked = {*shared, *self._unremoved}
        self._unremoved.clear()
        self._await(asked - last.keys())  # others were faster
        tallies = {}
        for match in asked:
            if match in last or match in self._earlier:
                tallies[match] = _sum(self._earlier.get(match), last.get(match))
        for leg in ending:
            self._distrust(match_of_leg(leg))
            self._earlier.forget(name_once(leg))
            self._earlier_runs.pop(match_of_leg(leg), None)
        changed = [left for left in shared.values() if left.now != left.was]
        replacing = [left.now for left in changed if left.now.leg != left.was.leg]
        if replacing:
            done = self._conntrack.insert(replacing)
            for met in done.met.values():
                self._remember(match_of_leg(met.order.leg), met.carried)
        self._conntrack.remark([left.now for left in changed if left.now.leg == left.was.leg])
        return tallies

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are installed another mark."""
        self._conntrack.remark([order for order in orders if self._shares.remark(order)])

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Keep the counts of a leg that others deleted; it may be installed again."""
        if self._awaited:
            self._awaited.discard(match_of_leg(leg))
        self._remember(leg, tally)

    def _await(self, matches: Iterable[Match]) -> None:
        """Read events until the ends of *matches* are told, with what they counted, or no more.

        After a flush 200,000 ends may be waiting: one call need not wait for all of them.
        """
        self._awaited.update(matches)
        while self._awaited and self.catch_up():
            pass
        self._awaited.clear()

    def _await_all(self) -> None:
        while self.catch_up():
            pass

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts, also those of entries that were made anew; one dump."""
        with self._reading() as ended:
            self._await_all()
            ended.clear()
            tallies = self._conntrack.counts()
            self._await_all()
            for match in ended:  # counted in the dump, and since then in an event
                tallies.pop(match, None)
        for match, earlier in self._earlier.items():
            tallies[match] = _sum(earlier, tallies.get(match))
        return tallies

    def tallies_of(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Return the counts of these *legs* alone."""
        found = {match_of_leg(entry.leg): entry.carried for entry in self._conntrack.find(legs)}
        if len(found) < len(legs):
            self._await(set(map(match_of_leg, legs)) - found.keys())
        return {
            match: _sum(self._earlier.get(match), found.get(match))
            for match in map(match_of_leg, legs) if match in found or match in self._earlier
        }  # fmt: skip

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts in pieces; see `DataPath`."""
        with self._reading() as ended:
            for piece in self._conntrack.count_pieces():
                if self._earlier or ended:
                    yield {
                        match: self._whole(match, tally)
                        for match, tally in piece.items() if match not in ended
                    }  # fmt: skip
                else:
                    yield piece

    @contextlib.contextmanager
    def _reading(self) -> Iterator[set[Match]]:
        """Give a set that is told the matches whose entries end meanwhile."""
        ended: set[Match] = set()
        self._readings[id(ended)] = ended
        try:
            yield ended
        finally:
            del self._readings[id(ended)]

    def _whole(self, match: Match, tally: Tally) -> Tally:
        earlier = self._earlier.get(match)
        return tally if earlier is None else _sum(earlier, tally)

    def _distrust(self, match: Match) -> None:
        for ended in self._readings.values():
            ended.add(match)

    def matches(self) -> list[Match]:
        """Return what our entries match, those of an earlier run too; one dump."""
        return list(self._conntrack.counts())

    def take_over(
        self, orders: Sequence[LegOrder], *, trusted: bool = False
    ) -> Sequence[LegOrder]:
        """Find what an earlier run has left; return those of *orders* that are not among it."""
        # One that several calls share is installed by each of them, as it once was.
        wanted: dict[Match, LegOrder | None] = {}
        for order in orders:
            match = match_of_leg(order.leg)
            wanted[match] = None if match in wanted else order
        there: Iterable[LegOrder] = orders
        if not trusted:  # reading the table takes a tenth of a second, however little is in it
            there = chain.from_iterable(map(self._found, self._conntrack.leg_pieces()))
        taken: set[Match] = set()
        for found in there:
            match = match_of_leg(found.leg)
            if wanted.get(match) == found:
                taken.add(match)
            else:
                self._earlier_runs[match] = found.leg
        return [order for order in orders if match_of_leg(order.leg) not in taken]

    def left_over(self) -> Sequence[Leg]:
        """Return the entries of an earlier run that are no call's."""
        return list(self._earlier_runs.values())

    def kept(self) -> Iterator[tuple[Match, Tally]]:
        """Yield the counts of entries that were made anew."""
        yield from self._earlier.items()

    def credit(self, leg: Leg, tally: Tally) -> None:
        """Add what entries of *leg* had counted before the one that there is now."""
        self._remember(leg, tally)

    def renew(self, now: float) -> Iterator[None]:
        """Make entries anew that have less than half of their lifetime left, in steps.

        Most calls do nothing: a look is due when the oldest entry can be that
        old, and once a day.
        """
        if self._unremoved:
            self.remove([])
        if now >= self._due:
            for _ in self.standing(now):
                yield
        while self._aged:
            some = self._aged[-_RENEWED:]
            del self._aged[-_RENEWED:]
            counted, error = self._conntrack.renew(self._conntrack.find(some))
            self._remember_all(counted)
            if error is not None:
                self._due = now  # once more
                raise error
            yield

    def standing(self, now: float) -> Iterator[Sequence[LegOrder]]:
        """Yield what is carried, also by an earlier run, in pieces of about a millisecond.

        A leg that comes or goes meanwhile may be left out, or come twice.  Whoever reads
        all of it spares `renew` a look of its own.
        """
        half = self._conntrack.lifetime // 2
        aged: list[Leg] = []
        least = half
        present: set[bytes] = set()
        for piece in self._conntrack.leg_pieces():
            for leg, _, left in piece:
                if left < half:
                    aged.append(leg)
                elif left - half < least:
                    least = left - half
            if self._earlier:
                present.update(name_once(each.leg) for each in piece)
            yield self._found(piece)
        absent = self._earlier.names() - present
        for name in absent & self._absent:  # nobody has put it back: it has no owner
            self._earlier.forget(name)
        self._absent = absent
        self._aged = aged
        self._due = now + min(LONGEST_UNSEEN, least)

    def _found(self, piece: Iterable[Standing]) -> list[LegOrder]:
        others = ~self._conntrack.entry_mark
        return [LegOrder(leg, mark & others) for leg, mark, _ in piece]

    def close(self) -> None:
        """Let go of the sockets; the entries stay and go on carrying."""
        self._conntrack.close()

    def _remember_all(self, counted: Mapping[Leg, Tally]) -> None:
        for leg, tally in counted.items():
            self._remember(leg, tally)

    def _remember(self, leg: Leg | Match, tally: Tally) -> None:
        self._earlier.add(leg, tally)
        if self._readings:
            self._distrust(match_of_leg(leg))

    def _forget(self, match: Match) -> None:
        """Have *match* count from zero on: who had it before is gone."""
        if self._earlier.forget(name_once(match)):
            self._distrust(match)


def _sum(*tallies: Tally | None) -> Tally:
    if len(tallies) == 2 and tallies[0] is None and tallies[1] is not None:
        return tallies[1]  # nearly always: an entry that was never made anew
    known = [tally for tally in tallies if tally is not None]
    return Tally(sum(tally.packets for tally in known), sum(tally.octets for tally in known))


def _always(_match: Match) -> bool:
    return True


def _never() -> bool:
    return False


def _flaw(leg: Leg, entry: Entry | None) -> str | None:
    """Say what is wrong with the entry that was made for *leg*."""
    if entry is None or entry.leg.key != leg.key or entry.leg.new_key != leg.new_key:
        return "this kernel tracks GRE without its call IDs: it lacks CONFIG_NF_CT_PROTO_GRE"
    if entry.status & CARRYING != CARRYING:
        return f"this kernel made a conntrack entry of status {entry.status:#x}, not {CARRYING:#x}"
    if entry.leg != leg or not entry.status & PROBES[leg]:
        return "this kernel made a conntrack entry without address translation: load nf_nat"
    return None
