"""What an earlier run has left: records, the kernel's entries, live control connections.

The three are reconciled once, at the start:

    records      say which calls there are, with both numbers of each party
    connections  conntrack's dump, say which of them can still be told about
    legs         conntrack's entries of ours, say what the kernel carries

A call on record whose legs are there takes them over; legs that are missing are
put back.  Legs that no call on record explains are those of calls that have ended,
if the records are exact.  If not, those of calls of which no record is left: a
control connection that joins their hosts makes them a call again (`rebuilt`).
The rest is nobody's: it is removed, and its numbers are kept back.

Where the records are exact and of this boot, only the process has died: the kernel
carries what it did.  Then they are believed, packets are served, and connections and
legs are looked at afterwards, in steps (`pptp_nat.router.comparison`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from pptp_nat import log
from pptp_nat.core.bindings import Pair
from pptp_nat.core.book import Settings
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.events import Outcome, legs_up
from pptp_nat.core.snapshot import (
    CallRecord,
    ConnectionRecord,
    Positions,
    Snapshot,
    without_positions,
)
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Address, Flow, Leg, Party, Placement, flow_key
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Match, Tally, match_of_leg
from pptp_nat.router.carrier import Carrier
from pptp_nat.state.store import Found

_log: Final = logging.getLogger(__name__)
_LAST_GRE: Final = CallRecord._fields.index("last_gre")
_SAMPLED: Final = 32  #: calls that are looked at before records are believed
_MANY: Final = 64  # legs that are removed at a time

#: source, destination, new source and new destination of a leg
Hosts = tuple[Address, Address, Address, Address]


class Adopted(NamedTuple):
    """What came of it."""

    unseen: list[Flow]  #: control connections that conntrack does not know (any more)
    outcomes: list[Outcome]  #: what ends with it
    #: what was trusted, since it is exact and of this boot: to be compared with the kernel soon
    trusted: Found | None = None


class Adoption:
    """Puts what an earlier run has left into a translator that has seen nothing yet."""

    def __init__(self, translator: Translator, carrier: Carrier) -> None:
        self._translator = translator
        self._carrier = carrier

    def begin(
        self, found: Found | None, live: Iterable[Placement], now: float
    ) -> Adopted:
        """Do it.

        Args:
            found: what the store has.
            live: the control connections that conntrack knows.
            now: monotonic seconds.

        Raises:
            AdapterError: the kernel does not say what it carries.
        """
        translator, book = self._translator, self._translator.book
        left_out = 0
        if found is not None:
            left_out = self._restore(found, now)
            if found.exact and found.this_boot and self._is_carried():
                self._carry_on(found, now)
                log.event(
                    _log, logging.INFO, "adopted", calls=len(book.calls),
                    connections=len(book.connections), exact=True, source=found.source,
                    left_out=left_out,
                )  # fmt: skip
                return Adopted([], [], found)
        placements = {flow_key(placement.flow): placement for placement in live}
        unseen: list[Flow] = []
        moved: list[Connection] = []
        for key, connection in book.connections.items():
            if not any(connection.seat(party).inside for party in Party):
                continue  # conntrack need not know it
            placement = placements.get(key)
            if placement is None:
                unseen.append(connection.flow)
            elif any(placement.seat(party) != connection.seat(party) for party in Party):
                moved.append(connection)
        outcomes = [translator.moved(moved, now), translator.ended(self._ended(found), now)]
        missing = self._carrier.adopt(book.calls.values(), now)
        self._credit(found)
        again, orphans = 0, self._carrier.path.left_over()
        if found is None or not found.exact:
            again, orphans = self._rebuild(placements.values(), now)
        self._remove(orphans, now)
        if found is not None or again or orphans:
            log.event(
                _log, logging.INFO, "adopted", calls=len(book.calls),
                connections=len(book.connections), exact=found is not None and found.exact,
                source=None if found is None else found.source,
                put_back=missing, rebuilt=again, orphans=len(orphans), left_out=left_out,
                moved=len(moved), unseen=len(unseen),
            )  # fmt: skip
        return Adopted(unseen, outcomes)

    def _is_carried(self) -> bool:
        """Whether some of the legs, taken from everywhere, are carried as calls want it.

        They are not after the table was flushed, or with another data path before.
        """
        path, calls = self._carrier.path, self._translator.book.calls
        if not path.outlives_us:
            return False
        some = islice(calls.values(), 0, None, 1 + len(calls) // _SAMPLED)
        legs = {match_of_leg(each.leg): each.leg for each in legs_up(some)}
        return len(path.tallies_of(list(legs.values()))) == len(legs)

    def _ended(self, found: Found | None) -> list[Call]:
        """Return the calls of an old copy that have ended since: the kernel carries none of it."""
        path = self._carrier.path
        if found is None or found.exact or not found.this_boot or not path.outlives_us:
            return []
        carried = set(path.matches())
        legs = {
            call: [leg for party in Party if (leg := call.leg(party)) is not None]
            for call in self._translator.book.calls.values()
        }
        return [
            call
            for call, its in legs.items()
            if its and not any(Match(*leg[:3]) in carried for leg in its)
        ]

    def inherit(self, found: Found, now: float) -> None:
        """Go on with what another process hands over: there is nothing to reconcile."""
        self._restore(found, now)
        self._carry_on(found, now)

    def _restore(self, found: Found, now: float) -> int:
        """Put what was *found* into the book; return how many calls were left out."""
        taken = _as_of_now(found, self._translator.book.settings, now)
        found.contents.let_go()
        return len(self._translator.restore(taken, now, spent=True))

    def _carry_on(self, found: Found, now: float) -> None:
        self._carrier.adopt(self._translator.book.calls.values(), now, trusted=True)
        self._credit(found)

    def _credit(self, found: Found | None) -> None:
        """Give the data path the counts that died with the process that had them."""
        if found is None or not found.this_boot or not found.contents.carried:
            return
        legs = {each.leg[:3]: each.leg for each in legs_up(self._translator.book.calls.values())}
        for match, known in found.contents.carried.items():
            leg = legs.get(match)
            if leg is not None:
                self._carrier.path.credit(leg, Tally(known.packets, known.octets))

    def _rebuild(self, live: Iterable[Placement], now: float) -> tuple[int, Sequence[Leg]]:
        """Make calls of legs that no record explains; return their number, and what is left."""
        left = self._carrier.path.left_over()
        if not left:
            return 0, ()
        book = self._translator.book
        known = {key: connection.id for key, connection in book.connections.items()}
        taken = rebuilt(left, live, known, book.next_id, now)
        if taken.calls:
            before = set(book.calls)
            self._translator.restore(taken, now)
            calls = [call for number, call in book.calls.items() if number not in before]
            ups = list(legs_up(calls))
            self._carrier.before(ups, now)
            self._carrier.totals.unread(ups)
        return len(taken.calls), self._carrier.path.left_over()

    def _remove(self, orphans: Sequence[Leg], now: float) -> None:
        bindings = self._translator.book.bindings
        for start in range(0, len(orphans), _MANY):
            try:
                self._carrier.path.remove(orphans[start : start + _MANY])
            except AdapterError as error:
                log.event(_log, logging.ERROR, "data-path-refused", reason=str(error))
        for leg in orphans:
            if leg.destination != leg.new_destination:
                pair = Pair(leg.destination, leg.source)
                bindings.keep_back(pair, leg.key, now + bindings.quarantine)


# Records that are not of this very moment.


def _as_of_now(found: Found, settings: Settings, now: float) -> Snapshot:
    """Return what was *found* in the times of this boot, with no more than is still true."""
    taken = found.contents.snapshot(now)
    if not found.this_boot:
        taken = _of_this_boot(found, settings, now)
    if not found.exact:
        taken = without_positions(taken)
    if found.contents.whole:
        return taken
    # Nobody has looked at what it carried since; it has its whole time again.
    calls = [
        tuple.__new__(CallRecord, (*each[:_LAST_GRE], now, *each[_LAST_GRE + 1 :]))
        if each.state is CallState.UP else each
        for each in taken.calls
    ]
    return Snapshot(
        taken.last_id, taken.connections, calls, taken.kept_back, taken.half_open,
        taken.counts, taken.messages, taken.ends,
    )  # fmt: skip


def _of_this_boot(found: Found, settings: Settings, now: float) -> Snapshot:
    """Return what another boot has left: monotonic time began anew, and clocks may jump."""
    shift = found.wall - (time.time() - time.monotonic())
    taken = found.contents.snapshot(float("-inf"))
    due = {
        CallState.REQUESTED: settings.request,
        CallState.ANSWERED: settings.request,
        CallState.CLEARING: settings.clearing,
    }

    def moment(then: float) -> float:
        return min(then + shift, now)

    connections = [
        each._replace(
            created=moment(each.created),
            due=None if each.due is None else now + settings.closing_grace,
            positions=each.positions._replace(last_message=now),
        )
        for each in taken.connections
    ]
    calls = [
        each._replace(
            created=moment(each.created), packets=0, last_gre=None,
            up_since=None if each.up_since is None else moment(each.up_since),
            due=now + due[each.state] if each.state in due else None,
        )
        for each in taken.calls
        if each.state is not CallState.GONE
    ]  # fmt: skip
    kept_back = [each._replace(until=now + settings.quarantine) for each in taken.kept_back]
    return Snapshot(taken.last_id, connections, calls, kept_back)


# Calls without records.


def rebuilt(
    legs: Iterable[Leg],
    live: Iterable[Placement],
    known: Mapping[bytes, int],
    new_id: Callable[[], int],
    now: float,
) -> Snapshot:
    """Return the calls that *legs* are of, as far as *live* control connections say so.

    One leg each way between two hosts is a call.  Of several nobody can say which
    two belong together: then each is a call of which one number is known, which
    is enough to translate every message and to let no number be given twice.

    Args:
        legs: that the kernel carries and no record explains.
        live: the control connections that conntrack knows.
        known: `Connection.key` and identity of those on record.
        new_id: returns an identity that nobody has.
        now: monotonic seconds.
    """
    joins: dict[Hosts, tuple[Placement, Party]] = {}
    for placement in live:
        for party in Party:
            there, here = placement.seat(party.other), placement.seat(party)
            joins[there.own, here.seen_as, there.seen_as, here.own] = placement, party
    numbers: dict[bytes, tuple[Placement, tuple[list[Leg], list[Leg]]]] = {}
    for leg in legs:
        hosts = leg.source, leg.destination, leg.new_source, leg.new_destination
        if hosts in joins:
            placement, party = joins[hosts]
            key = flow_key(placement.flow)
            numbers.setdefault(key, (placement, ([], [])))[1][party].append(leg)
    connections: list[ConnectionRecord] = []
    calls: list[CallRecord] = []
    for key, (placement, (first, second)) in numbers.items():
        number = known.get(key)
        if number is None:
            number = new_id()
            connections.append(_connection(number, placement, now))
        pairs: list[tuple[Leg | None, Leg | None]]
        if len(first) == len(second) == 1:
            pairs = [(first[0], second[0])]
        else:
            pairs = [(leg, None) for leg in first] + [(None, leg) for leg in second]
        calls += [_call(new_id(), number, pair, now) for pair in pairs]
    return Snapshot(0, connections, calls)


def _connection(number: int, placement: Placement, now: float) -> ConnectionRecord:
    seats = (placement.originator, placement.responder)
    return ConnectionRecord(
        number, flow_key(placement.flow),
        tuple(seat.seen_as if seat.inside else None for seat in seats),
        placement.mark, False, None if placement.helper is None else "kernel_helper",
        ControlState.OPEN, now, None, (None, None), Positions(number, now),
    )  # fmt: skip


def _call(
    number: int, connection: int, legs: tuple[Leg | None, Leg | None], now: float
) -> CallRecord:
    """Return a call of which *legs* lead to the parties; whoever opened is taken for the PNS."""
    first, second = (NOBODY if leg is None else leg.new_key for leg in legs)
    third, fourth = (NOBODY if leg is None else leg.key for leg in legs)
    return CallRecord(
        number, connection, Party.ORIGINATOR, Party.ORIGINATOR, CallState.UP,
        (first, second, third, fourth), now, now, now, 0, None, None, None,
    )  # fmt: skip
