"""Between the core's orders and the data path: what is wanted, and that it comes true.

A data path may refuse for a while (a full table, a lack of memory).  A leg that
could not be installed is tried again until it can or is no longer wanted; the
control message is not held back for it, since TCP would only repeat it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from pptp_nat.core.calls import Call
from pptp_nat.core.events import Event, LegDown, LegMarked, LegUp
from pptp_nat.core.tuples import Leg, Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import DataPath, LegOrder, Match, Tally
from pptp_nat.log import event

_log: Final = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 0.2
_NO_GRE: Final = Tally(0, 0)


class Counts(NamedTuple):
    """GRE of one call, by the party that it went to."""

    to_originator: Tally
    to_responder: Tally

    @property
    def packets(self) -> int:
        """Both ways together."""
        return self.to_originator.packets + self.to_responder.packets


NOTHING: Final = Counts(_NO_GRE, _NO_GRE)


class Ledger(Protocol):
    """Who keeps account of what legs have carried: `pptp_nat.totals.Totals`."""

    def begin(self, up: LegUp) -> None:
        """Take note of a leg before it carries anything."""

    def end(self, down: LegDown, tally: Tally | None) -> None:
        """Take note of a leg's end and last count; None: it could not be read."""


class Carrier:
    """Carries out leg orders on a data path and knows what GRE has gone by."""

    def __init__(self, path: DataPath) -> None:
        self.path = path
        self.ledger: Ledger | None = None  #: told of every leg, if there is one
        self.failures = 0
        self._wanted: dict[Match, LegOrder] = {}  # what could not be installed yet
        self._retry_at: float | None = None

    def before(self, events: Iterable[Event], now: float) -> None:
        """Carry out what must be true before the packet in hand goes on."""
        orders, marks = [], []
        for each in events:
            if isinstance(each, LegUp):
                orders.append(LegOrder(each.leg, each.mark))
                if self.ledger is not None:
                    self.ledger.begin(each)
            elif isinstance(each, LegMarked):
                marks.append(LegOrder(each.leg, each.mark))
        if orders:
            self._install(orders, now)
        if marks:
            try:
                self.path.remark(marks)
            except AdapterError as error:
                self._complain(error)

    def after(
        self, events: Iterable[Event], flush: Callable[[], None]
    ) -> Mapping[int, Counts | None]:
        """Carry out what comes after the packet in hand has gone on, which *flush* sees to.

        Returns:
            What the calls whose legs ended had carried, by their ids; None where the
            data path refused to say.
        """
        downs = [each for each in events if isinstance(each, LegDown)]
        if not downs:
            return {}
        flush()
        return self._remove(downs)

    def _install(self, orders: Sequence[LegOrder], now: float) -> None:
        try:
            self.path.install(orders)
        except AdapterError as error:
            self._complain(error)
            self._wanted.update((Match(*order.leg[:3]), order) for order in orders)
            self._retry_at = now + _RETRY_SECONDS

    def _remove(self, downs: Sequence[LegDown]) -> Mapping[int, Counts | None]:
        for down in downs:
            self._wanted.pop(Match(*down.leg[:3]), None)
        last: dict[int, Counts | None] = {}
        tallies: Mapping[Match, Tally] = {}
        try:
            tallies = self.path.remove([down.leg for down in downs])
        except AdapterError as error:
            self._complain(error)
            last = dict.fromkeys(down.call.id for down in downs)
        else:
            for call, party, leg in downs:
                so_far = list(last.get(call.id) or NOTHING)
                so_far[party] = _sum(so_far[party], tallies.get(Match(*leg[:3]), _NO_GRE))
                last[call.id] = Counts(*so_far)
        if self.ledger is not None:
            for down in downs:
                self.ledger.end(down, tallies.get(Match(*down.leg[:3])))
        return last

    def _complain(self, error: AdapterError) -> None:
        self.failures += 1
        event(_log, logging.ERROR, "data-path-refused", reason=str(error))

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._retry_at

    def tick(self, now: float) -> None:
        """Try again what was refused."""
        if self._retry_at is not None and self._retry_at <= now:
            orders, self._wanted, self._retry_at = list(self._wanted.values()), {}, None
            for order in orders:
                self._install([order], now)

    def restore(self, legs: Iterable[LegOrder], now: float) -> int:
        """Install what is wanted and no longer there; return how many legs that were."""
        try:
            present = set(self.path.matches())
        except AdapterError as error:
            self._complain(error)
            return 0
        missing = list({
            match: order for order in legs if (match := Match(*order.leg[:3])) not in present
        }.values())  # fmt: skip
        if missing:
            self._install(missing, now)
        return len(missing)

    def renew(self, now: float) -> None:
        """Do what keeps legs alive."""
        try:
            self.path.renew(now)
        except AdapterError as error:
            self._complain(error)

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Take note that others deleted *leg* after it had carried so much."""
        self.path.lost(leg, tally)

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts of all legs, none if the data path cannot say."""
        try:
            return self.path.tallies()
        except AdapterError as error:
            self._complain(error)
            return {}


def counts(call: Call, tallies: Mapping[Match, Tally]) -> Counts:
    """Return what *call* has carried, out of the tallies of all legs."""
    return Counts(*(_tally(call.leg(party), tallies) for party in Party))


def _tally(leg: Leg | None, tallies: Mapping[Match, Tally]) -> Tally:
    return _NO_GRE if leg is None else tallies.get(Match(*leg[:3]), _NO_GRE)


def _sum(a: Tally, b: Tally) -> Tally:
    return Tally(a.packets + b.packets, a.octets + b.octets)
