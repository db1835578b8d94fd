"""Between the core's orders and the data path: what is wanted, and that it comes true.

A data path may refuse for a while (a full table, a lack of memory).  A leg that
could not be installed is tried again until it can or is no longer wanted; the
control message is not held back for it, since TCP would only repeat it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pptp_nat.core.calls import Call
from pptp_nat.core.events import Event, LegDown, LegMarked, LegUp, legs_up
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Leg, Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.datapath import DataPath, Installed, LegOrder, Match, Tally, match_of_leg
from pptp_nat.linux.leg_table import name_of
from pptp_nat.router.carried import NO_GRE, Carried, Counts, add
from pptp_nat.router.complaints import Complaints
from pptp_nat.router.totals import Totals
from pptp_nat.state.contents import LegCount

FEW_CALLS: Final = 512  #: up to which counts are looked up one by one
_AT_ONCE: Final = 16  #: calls looked up in one piece
_COMPARED: Final = 128  #: calls compared in one step: less than a millisecond
_RETRY_SECONDS: Final = 0.2
_NOBODY: Final[Mapping[int, Counts | None]] = MappingProxyType({})


class Carrier:
    """Carries out leg orders on a data path and knows what GRE has gone by."""

    def __init__(self, path: DataPath) -> None:
        self.path = path
        self.totals = Totals(path.notes)
        self.failures = 0
        self._carried = Carried()
        if isinstance(path, ConntrackPath):
            path.has_several = self.totals.has_several
        # Calls may have a match in common, so a leg is known by its call as well.
        self._wanted: dict[tuple[Match, int], LegUp] = {}  # what could not be installed yet
        self._unsure: dict[tuple[Match, int], LegUp] = {}  # what may be there or not
        self._present: list[set[bytes]] = []  # of comparisons under way, what is carried
        self._missing: list[set[bytes]] = []  # the same, what was not met yet
        self._is_behind = False  # some legs could not be removed yet
        self._complaints = Complaints()
        self._retry_at: float | None = None
        self._gathered: list[LegUp] = []  # to be carried before the verdicts in hand are sent
        self._marks: list[LegOrder] = []
        self._now = 0.0  # when the latest of both was gathered

    def before(self, events: Iterable[Event], now: float) -> None:
        """Carry out what must be true before the packet in hand goes on."""
        self.gather(events, now)
        self.settle()

    def gather(self, events: Iterable[Event], now: float) -> None:
        """Take note of what must be true before the packet in hand goes on; see `settle`."""
        for each in events:
            if isinstance(each, LegUp):
                self._gathered.append(each)
                self.totals.begin(each)
            elif isinstance(each, LegMarked):
                self._marks.append(LegOrder(each.leg, each.mark))
        self._now = now

    def settle(self) -> None:
        """Carry out what was gathered, that of several packets in one piece."""
        if self._gathered:
            ups, self._gathered = self._gathered, []
            self._install(ups, self._now)
        if self._marks:
            marks, self._marks = self._marks, []
            try:
                self.path.remark(marks)
            except AdapterError as error:
                self._complain(error, self._now, waits=False)

    def after(self, events: Iterable[Event], now: float) -> Mapping[int, Counts | None]:
        """Carry out what comes after the packets in hand have gone on.

        Returns:
            What the calls that are gone had carried, by their ids, those that had no
            legs left out; None where the data path refused to say.
        """
        downs = [each for each in events if isinstance(each, LegDown)]
        if not downs:
            return _NOBODY
        return self._remove(downs, now)

    def adopt(self, calls: Collection[Call], now: float, *, trusted: bool = False) -> int:
        """Carry the legs of an earlier run's *calls*; return how many were not there any more.

        *trusted*: they are all there, as far as anybody knows; whoever wants to be sure
        compares afterwards (`pptp_nat.router.comparison`).
        """
        self.totals.adopt(calls)
        ups: Iterable[LegUp] = legs_up(calls)
        if trusted and self.path.outlives_us:
            # Nothing is to be done but for legs that several calls have.
            several = self.totals.has_several
            ups = (up for up in ups if several(match_of_leg(up.leg))) if self.totals.shares else ()
        mine = list(ups)
        orders = [LegOrder(each.leg, each.mark) for each in mine]
        absent = set(self.path.take_over(orders, trusted=trusted))
        missing = [up for up, order in zip(mine, orders, strict=True) if order in absent]
        if missing:
            self._install(missing, now)
        return 0 if trusted else len(missing)

    def _install(self, ups: Sequence[LegUp], now: float) -> None:
        try:
            done = self.path.install([LegOrder(up.leg, up.mark) for up in ups])
        except AdapterError as error:
            self._complain(error, now)
            self._unsure.update((_name(up), up) for up in ups)
            self._retry_at = now + _RETRY_SECONDS
            return
        for present in self._present:
            present.update(name_of(up.leg) for up in ups)
        for missing in self._missing:
            missing.difference_update(name_of(up.leg) for up in ups)
        if done.shared:
            for up in ups:
                match = match_of_leg(up.leg)
                if match in done.shared:
                    self._carried.join(up.call.id, match, done.shared[match])
        if done.error is not None:
            self._complain(done.error, now)
            refused = {order.leg for order in done.refused}
            self._wanted.update((_name(up), up) for up in ups if up.leg in refused)
            self._retry_at = now + _RETRY_SECONDS

    def _remove(self, downs: Sequence[LegDown], now: float) -> Mapping[int, Counts | None]:
        legs = []
        for down in downs:
            name = _name(down)
            self._unsure.pop(name, None)
            if self._wanted.pop(name, None) is None:
                legs.append(down.leg)
        tallies: Mapping[Match, Tally] | None = None
        try:
            tallies = self.path.remove(legs)
        except AdapterError as error:
            self._complain(error, now)
            self._is_behind = True
            self._retry_at = now + _RETRY_SECONDS
        gone: dict[int, Counts | None] = {}
        for down in downs:
            call, party, leg = down
            match = match_of_leg(leg)
            counted = None if tallies is None else tallies.get(match)
            self.totals.end(down, counted)
            tally = NO_GRE if counted is None else counted
            self._carried.keep(call.id, party, self._carried.leave(call.id, match, tally))
            if call.state is CallState.GONE:
                gone[call.id] = None if tallies is None else self._carried.former(call.id)
        for number in gone:
            self._carried.forget(number)
        return gone

    def _complain(self, error: AdapterError, now: float, *, waits: bool = True) -> None:
        self.failures += 1
        self._complaints.tell(error, now, waits=waits)

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._retry_at

    def tick(self, now: float) -> None:
        """Try again what was refused."""
        if self._retry_at is None or self._retry_at > now:
            return
        wanted, self._wanted = list(self._wanted.values()), {}
        unsure, self._unsure = list(self._unsure.values()), {}
        self._retry_at = None
        for up in wanted:
            self._install([up], now)
        if unsure:
            self._make_sure(unsure, now)
        if self._is_behind:
            self._is_behind = False
            self._remove([], now)
        if self._retry_at is None:
            self._complaints.over(now)

    def _make_sure(self, ups: Sequence[LegUp], now: float) -> None:
        """Have legs there that may be there or not; of a common match each call is an owner."""
        first: dict[Match, LegUp] = {}
        further = [up for up in ups if first.setdefault(match_of_leg(up.leg), up) is not up]
        self.restore(first.values(), now)
        for up in further:
            if self._unsure:
                self._unsure[_name(up)] = up
            else:
                self._install([up], now)

    def restore(self, ups: Iterable[LegUp], now: float) -> int:
        """Install what is wanted and no longer there; return how many legs that were."""
        try:
            present = set(map(name_of, self.path.matches()))
        except AdapterError as error:
            self._complain(error, now)
            self._unsure.update((_name(up), up) for up in ups)
            self._retry_at = now + _RETRY_SECONDS
            return 0
        return self._put_back(ups, present, now)

    def compare(
        self, calls: Mapping[int, Call], clock: Callable[[], float]
    ) -> Generator[None, None, int | None]:
        """Put back the legs of *calls* that nothing carries any more, in steps.

        Calls may come, go and change their numbers between two steps: what is installed
        meanwhile is there, and what is looked for is what *calls* holds at that moment.

        Returns:
            How many legs that were; None: the data path did not say what it carries.
        """
        present: set[bytes] = set()  # half the memory of matches
        self._present.append(present)
        try:
            for piece in self.path.tally_pieces():
                present.update(map(name_of, piece))
                yield
            numbers, restored = list(calls), 0
            for start in range(0, len(numbers), _COMPARED):
                some = numbers[start : start + _COMPARED]
                live = [calls[number] for number in some if number in calls]
                restored += self._put_back(legs_up(live), present, clock())
                yield
        except AdapterError as error:
            self._complain(error, clock(), waits=False)
            return None
        finally:
            self._present = [each for each in self._present if each is not present]
        return restored

    @contextlib.contextmanager
    def awaiting(self, names: set[bytes]) -> Iterator[None]:
        """Have each of *names* go from there that is installed meanwhile."""
        self._missing.append(names)
        try:
            yield
        finally:
            self._missing = [each for each in self._missing if each is not names]

    def install(self, ups: Sequence[LegUp], now: float) -> int:
        """Carry *ups* in place of what is there; return their number."""
        self._install(ups, now)
        return len(ups)

    def put_back(self, ups: Sequence[LegUp], now: float) -> int:
        """Carry *ups* again, whose entries others deleted; return how many legs that were."""
        if self._wanted:
            ups = [up for up in ups if _name(up) not in self._wanted]
        return self._restore(ups, now)

    def end(self, legs: Sequence[Leg], now: float) -> list[Leg]:
        """End those of *legs* that are no call's; return those that were there to the last."""
        strange = [leg for leg in legs if self.totals.owner(name_of(leg)) is None]
        try:
            ended = self.path.remove(strange)
        except AdapterError as error:
            self._complain(error, now)
            self._is_behind, self._retry_at = True, now + _RETRY_SECONDS
            return strange
        return [leg for leg in strange if match_of_leg(leg) in ended]

    def _put_back(self, ups: Iterable[LegUp], present: Collection[bytes], now: float) -> int:
        missing = {
            match_of_leg(up.leg): up for up in ups
            if name_of(up.leg) not in present and _name(up) not in self._wanted
        }  # fmt: skip
        return self._restore(list(missing.values()), now)

    def _restore(self, ups: Sequence[LegUp], now: float) -> int:
        if not ups:
            return 0
        # Without the detour over Python: it may be all legs there are.
        orders = [tuple.__new__(LegOrder, (leg, mark)) for _, _, leg, mark in ups]
        try:
            done = self.path.restore(orders)
        except AdapterError as error:
            done = Installed({}, orders, error)
        if done.error is not None:
            self._complain(done.error, now)
            refused = set(done.refused)
            unsure = (up for up in ups if LegOrder(up.leg, up.mark) in refused)
            self._unsure.update((_name(up), up) for up in unsure)
            self._retry_at = now + _RETRY_SECONDS
        return len(orders) - len(done.refused) - len(done.shared)

    def kept(self) -> Iterator[LegCount]:
        """Yield the counts that would be lost with this process."""
        for match, tally in self.path.kept():
            yield LegCount(*match, *tally)

    def renew(self, now: float) -> Generator[None, None, bool]:
        """Do what keeps legs alive, in steps; return whether all of it could be done."""
        try:
            for _ in self.path.renew(now):
                yield
        except AdapterError as error:
            self._complain(error, now, waits=False)
            return False
        return True

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Take note that others deleted *leg* after it had carried so much."""
        self.path.lost(leg, tally)

    def tallies_of(self, calls: Iterable[Call]) -> Mapping[Match, Tally]:
        """Return the counts of the legs of these *calls*.  Raises `AdapterError`."""
        legs = (call.leg(party) for call in calls for party in Party)
        return self.path.tallies_of([leg for leg in legs if leg is not None])

    def tally_pieces(self, calls: Collection[Call]) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts of *calls*, all that there are, in pieces of about half a millisecond.

        Of few calls each is looked up: a walk through a table of 262,144 buckets, be they
        empty, takes the kernel eight milliseconds, and only entries cut it into pieces.

        Raises:
            AdapterError: while it is iterated.
        """
        if len(calls) > FEW_CALLS:
            yield from self.path.tally_pieces()
            return
        waiting = iter(list(calls))
        while some := list(itertools.islice(waiting, _AT_ONCE)):
            yield self.tallies_of(some)

    def counts(self, call: Call, tallies: Mapping[Match, Tally]) -> Counts:
        """Return what *call* has carried, out of the tallies of all legs."""
        former = self._carried.former(call.id)
        return Counts(*(
            add(former[party], self._part(call, call.leg(party), tallies)) for party in Party
        ))  # fmt: skip

    def last_counts(self, call: Call) -> Counts:
        """Return what *call* had carried when the counts of its legs were last read."""
        last = self.totals.last(call)
        if not self._carried:
            return tuple.__new__(Counts, last)  # without the detour over Python: for every call
        legs = ((call.leg(party), last[party]) for party in Party)
        return self.counts(call, {match_of_leg(leg): tally for leg, tally in legs if leg})

    def _part(self, call: Call, leg: Leg | None, tallies: Mapping[Match, Tally]) -> Tally:
        if leg is None:
            return NO_GRE
        match = match_of_leg(leg)
        return self._carried.part(call.id, match, tallies.get(match, NO_GRE))


def _name(each: LegUp | LegDown) -> tuple[Match, int]:
    return match_of_leg(each.leg), each.call.id
