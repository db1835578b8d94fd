"""Conntrack over ctnetlink: who is inside, the entries that carry GRE, and their end.

Written on raw netlink and struct.  pyroute2 can do it too, but its conntrack
costs 32 MB of memory and 440 microseconds per entry; this module needs 10.

How an entry carries a leg
--------------------------
Linux tracks GRE by its key where CONFIG_NF_CT_PROTO_GRE is on: a packet's tuple
is (source, 0, destination, call ID).  An entry with that original tuple, and
with a reply tuple that is what leaves turned round, makes the kernel rewrite
addresses (by its NAT status bits) and call ID (gre_manip_pkt) at the cost of
plain conntrack.  One entry per leg, two legs per call.

The reply's destination key appears on no wire, so it is free to choose: 0 if
possible (`spare_keys` says why).  A reply whose source key is 0 is the tuple of
real packets too: where both hosts of a call chose call ID 0, the reply of one
leg is the original of the other.  Then the one that was there first moves to
another spare key.

All entries are sought in conntrack's default zone.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Self, TypeVar

from pptp_nat.core.parts import WHOLE, Part
from pptp_nat.core.tuples import Flow, Leg, Placement
from pptp_nat.errors import AdapterError
from pptp_nat.linux.accounting import accounting, turn_on_accounting
from pptp_nat.linux.conntrack_counts import last_counts, read_counts, read_datagram
from pptp_nat.linux.conntrack_ends import Ends
from pptp_nat.linux.conntrack_events import Change, CtEvent, Events, is_control, is_ours
from pptp_nat.linux.conntrack_insertion import Inserted, Met, instead_of_strays, is_twin
from pptp_nat.linux.conntrack_legs import Standing, leg_pieces
from pptp_nat.linux.conntrack_pieces import control_criteria, control_pieces
from pptp_nat.linux.conntrack_placement import is_spoken, read_placement
from pptp_nat.linux.conntrack_refusals import check, described, failed
from pptp_nat.linux.conntrack_rows import Reader, entries_of
from pptp_nat.linux.conntrack_wire import (
    BY_PROTOCOL,
    CARRYING,
    TCP,
    Entry,
    Status,
    Tuple,
    by_mark,
    by_status,
    by_tuple,
    delete_message,
    dump_message,
    get_message,
    new_message,
    read_entry,
    remark_message,
    spare_keys,
)
from pptp_nat.linux.datapath import LegOrder, Match, Tally, match_of_leg
from pptp_nat.linux.netlink import MOST_PER_SEND, Message, Netlink

__all__ = ["ENTRY_MARK", "LIFETIME", "Change", "Conntrack", "CtEvent", "accounting"]
__all__ += ["turn_on_accounting"]

_T = TypeVar("_T")

ENTRY_MARK: Final = 0x20000000  # of CTA_MARK; says that an entry is ours
LIFETIME: Final = 2_000_000  # seconds, 23 days: INT_MAX jiffies at HZ=1000 are 24.8 days
ATTEMPTS: Final = 60  # per leg; each either removes an obstacle or passes over a spare key


class Conntrack:
    """One namespace's conntrack table.  All methods raise `AdapterError`.

    Args:
        entry_mark: the bit of CTA_MARK that says an entry is ours.
        lifetime: of an entry, seconds; less where the kernel's clock cannot hold it.
        part: of several workers; entries and events of others' calls are not seen.
    """

    def __init__(
        self, entry_mark: int = ENTRY_MARK, *, lifetime: int = LIFETIME, part: Part = WHOLE
    ) -> None:
        self.entry_mark = entry_mark
        self.lifetime = lifetime
        self._part = part
        self._netlink = Netlink()
        self._events: Events | None = None
        self._next_search = 0.0  # monotonic seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of both sockets; entries in the kernel stay."""
        self._netlink.close()
        if self._events is not None:
            self._events.close()

    # Control connections.

    def locate(self, flow: Flow, *, search: bool = True) -> Placement | None:
        """Say who of *flow*'s two hosts is inside, and as whom the other knows him.

        In the FORWARD, INPUT and OUTPUT hooks a packet carries both hosts' own
        addresses: that is one of its entry's two tuples or the reverse of one,
        and the kernel compares with both, so two look-ups find it.  Only of a
        connection that is translated at both ends (a hairpin) it is neither.

        Args:
            flow: a packet's, in either direction.  The entry appears once the
                connection's first packet has left the machine.
            search: look for a hairpin too.  That reads through the whole table
                (milliseconds), so after one in vain there is none for ten times as long.

        Returns:
            None when conntrack has no such connection.

        Raises:
            AdapterError: the kernel refused, or it is too early for another search (EAGAIN).
        """
        way = flow
        for _ in range(2):
            code, body = self._netlink.get(get_message(Tuple.of_flow(way)))
            if code == 0:
                placement = read_placement(body)
                if placement is not None and is_spoken(placement, flow):
                    return placement
            elif code != errno.ENOENT:
                raise failed("looking up a control connection in conntrack", code)
            way = flow.reversed()
        return self._search(flow) if search else None

    def _search(self, flow: Flow) -> Placement | None:
        started = time.monotonic()
        if started < self._next_search:
            raise AdapterError("searching conntrack for a control connection", errno.EAGAIN)
        criteria = by_tuple(original=(BY_PROTOCOL, Tuple.of_flow(flow)), reply=None)
        criteria += by_status(Status.SRC_NAT | Status.DST_NAT)
        found = None
        for entry in self._dump(criteria, "searching conntrack for a control connection"):
            if found is None and entry.original.protocol == TCP:
                found = entry.placement if is_spoken(entry.placement, flow) else None
        if found is None:
            ended = time.monotonic()
            self._next_search = ended + 10 * (ended - started)
        return found

    def control_connections(self, ports: Collection[int]) -> Iterator[Placement]:
        """Yield the control connections that are answered on one of *ports*.

        Answered: the port that the opener dialled or that a port forward made of it.
        """
        seen: set[bytes] = set()  # most answer two of the questions
        for criteria in control_criteria(ports):
            listed = self._dump(criteria, "listing control connections in conntrack", seen)
            yield from (each.placement for each in listed if is_control(each, ports))

    def control_pieces(self, ports: Collection[int]) -> Iterator[list[Placement]]:
        """Yield the same in pieces of about a millisecond; with a socket of their own."""
        return control_pieces(ports)

    # Entries that carry GRE.

    def insert(self, orders: Sequence[LegOrder]) -> Inserted:
        """Have the kernel carry *orders* by the time this returns.

        An entry that carries the very same leg already stays as it is.  Any other
        entry in the way is replaced: it is an earlier leg with the same match, or
        the track of a packet that came too early.

        Returns:
            What our entries had counted that had to be made anew, the legs whose
            match an entry of ours had already, and what the kernel refused; mostly
            nothing.

        Raises:
            AdapterError: what has become of them is not known.
        """
        done = Inserted({}, {}, [])
        for batch in _batches(orders, MOST_PER_SEND):
            errnos = self._netlink.request([self._new(order, 0) for order in batch])
            if not any(errnos):
                continue
            taken = [
                order for order, code in zip(batch, errnos, strict=True) if code == errno.EEXIST
            ]
            replaced: Collection[LegOrder] = ()
            if len(taken) > 1:
                replaced = instead_of_strays(self._netlink, taken, self._new, self.entry_mark)
            for order, code in zip(batch, errnos, strict=True):
                if order in replaced:
                    continue
                try:
                    if code == errno.EEXIST:
                        done.counted.update(self._make_room(order, done.met))
                    elif code:
                        raise failed(f"inserting the conntrack entry {described(order.leg)}", code)
                except AdapterError as error:
                    done.refused.append((order, error))
        return done

    def _new(self, order: LegOrder, spare_key: int) -> Message:
        return new_message(order.leg, order.mark | self.entry_mark, spare_key, self.lifetime)

    def _make_room(self, order: LegOrder, met: dict[Leg, Met]) -> dict[Leg, Tally]:
        """Insert *order* although something is in the way of it; note in *met* if it is ours."""
        counted: dict[Leg, Tally] = {}
        pending = [(order, spare_keys(order.leg))]
        for _ in range(ATTEMPTS):
            (leg, _), spare = pending[-1]
            doing = f"making room for the conntrack entry {described(leg)}"
            holder = self._entry(Tuple.of_match(leg), doing)
            if holder is not None and leg not in met and is_twin(holder, leg, self.entry_mark):
                was = LegOrder(holder.leg, holder.mark & ~self.entry_mark)
                met[leg] = Met(was, holder.carried or Tally(0, 0), stays=True)
            if holder is None or not self._carries(holder, pending[-1][0]):
                crossed = holder is not None and holder.original != Tuple.of_match(leg)
                if crossed and len(spare) > 1:
                    spare.pop(0)  # 0 may cross the other way round
                messages = [self._new(pending[-1][0], spare[0])]
                if holder is not None:
                    messages.insert(0, delete_message(holder))
                errnos, received = self._netlink.exchange(messages)
                if holder is not None and crossed and self._is_mine(holder):
                    pending.insert(0, (LegOrder(holder.leg, holder.mark), spare_keys(holder.leg)))
                    counted |= last_counts([holder], received)
                elif holder is not None and leg in met and holder.leg == met[leg].order.leg:
                    last = last_counts([holder], received)[holder.leg]
                    met[leg] = met[leg]._replace(carried=last, stays=False)
                if errnos[-1] == errno.EEXIST:
                    if holder is None and len(spare) > 1:
                        spare.pop(0)  # nobody holds the original tuple: the reply is taken
                    continue
                if errnos[-1]:
                    raise failed(doing, errnos[-1])
            pending.pop()
            if not pending:
                return counted
        raise failed(doing, errno.EEXIST)

    def find(self, legs: Sequence[Leg]) -> list[Entry]:
        """Return our entries that carry exactly these *legs*, as many as there are."""
        found = []
        for batch in _batches(legs, MOST_PER_SEND):
            asked = [get_message(Tuple.of_match(leg)) for leg in batch]
            errnos, received = self._netlink.exchange(asked)
            check(errnos, "looking up our conntrack entries")
            for answer in received:
                entry = read_entry(answer.body)
                if entry and self._is_mine(entry) and entry.leg == batch[answer.asked]:
                    found.append(entry)
        return found

    def delete(self, legs: Sequence[Leg]) -> dict[Match, Tally]:
        """End the entries that carry exactly these *legs*; return their last counts.

        A leg that is not there, or that another with the same match has replaced,
        is passed over.
        """
        tallies: dict[Match, Tally] = {}
        for batch in _batches(self.find(legs), MOST_PER_SEND):
            errnos, received = self._netlink.exchange([delete_message(entry) for entry in batch])
            check(errnos, "deleting our conntrack entries")
            for leg, tally in last_counts(batch, received).items():
                tallies[match_of_leg(leg)] = tally
        return tallies

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the entries of these legs other marks; one that is not there is passed over."""
        for batch in _batches(orders, MOST_PER_SEND):
            asked = [remark_message(leg, mark | self.entry_mark) for leg, mark in batch]
            check(self._netlink.request(asked), "changing the mark of our conntrack entries")

    def entry(self, match: Match) -> Entry | None:
        """Return the entry of arriving GRE that *match* names, ours or not."""
        return self._entry(Tuple.of_match(match), "looking up a conntrack entry")

    def entries(self) -> Iterator[Entry]:
        """Yield our GRE entries, those of an earlier run too."""
        for entry in self._dump(by_mark(self.entry_mark), "listing our conntrack entries"):
            if self._is_mine(entry) and self._part.has_leg(entry.leg):
                yield entry

    def leg_pieces(self) -> Iterator[list[Standing]]:
        """Yield what our GRE entries carry, those of an earlier run too; see `count_pieces`."""
        return leg_pieces(self.entry_mark, self._part)

    def counts(self) -> dict[Match, Tally]:
        """Return what our GRE entries match and have counted; quicker than `entries`."""
        bodies = self._bodies(by_mark(self.entry_mark), "counting GRE in conntrack")
        return read_counts(bodies)

    def count_pieces(self) -> Iterator[dict[Match, Tally]]:
        """Yield what `counts` returns piece by piece, each a fraction of a millisecond.

        A socket of its own is open from the first piece to the last, in the namespace of
        whoever asks for the first.  An entry that comes or goes meanwhile may be left
        out, or come twice.
        """
        with Netlink() as reading:
            wanted = dump_message(by_mark(self.entry_mark))
            yield from reading.pieces(wanted, read_datagram, read_counts)

    def renew(self, entries: Sequence[Entry]) -> tuple[dict[Leg, Tally], AdapterError | None]:
        """Give our GRE *entries* their whole lifetime again.

        The kernel refuses to prolong a fixed timeout (EPERM), so each is deleted
        and made anew in one send.

        Returns:
            What they had counted, since their counters start at zero again, and why
            not all of them are there again, if so.

        Raises:
            AdapterError: what has become of them is not known.
        """
        counted: dict[Leg, Tally] = {}
        failure: AdapterError | None = None
        for batch in _batches(entries, MOST_PER_SEND // 2):
            orders = [LegOrder(entry.leg, entry.mark) for entry in batch]
            messages = []
            for entry, order in zip(batch, orders, strict=True):
                messages.append(delete_message(entry))
                messages.append(self._new(order, entry.reply.destination_key))
            errnos, received = self._netlink.exchange(messages)
            counted |= last_counts(batch, received)
            for order, code in zip(orders, errnos[1::2], strict=True):
                try:
                    if code == errno.EEXIST:  # a packet came between the two
                        counted |= self._make_room(order, {})
                    elif code:
                        raise failed(f"renewing the conntrack entry {described(order.leg)}", code)
                except AdapterError as error:
                    failure = failure or error
        return counted, failure

    def _is_mine(self, entry: Entry) -> bool:
        return is_ours(entry, self.entry_mark)

    def _carries(self, entry: Entry, order: LegOrder) -> bool:
        """Whether *entry* is what `insert` would make of *order*."""
        return (
            entry.original == Tuple.of_match(order.leg)
            and entry.leg == order.leg
            and entry.mark == order.mark | self.entry_mark
            and entry.status & (CARRYING | Status.DYING) == CARRYING
        )

    def _entry(self, wanted: Tuple, doing: str) -> Entry | None:
        """Return the entry that has *wanted* as one of its two tuples."""
        code, body = self._netlink.get(get_message(wanted))
        check((code,), doing)
        return read_entry(body) if code == 0 else None

    def _dump(self, criteria: bytes, doing: str, seen: set[bytes] | None = None) -> Iterator[Entry]:
        """Yield the entries that fit; those that were *seen*, by their tuples, are left out."""
        yield from entries_of(self._bodies(criteria, doing), Reader(), seen)

    def _bodies(self, criteria: bytes, doing: str) -> list[bytes]:
        try:
            return self._netlink.dump(dump_message(criteria))
        except AdapterError as error:
            raise failed(doing, error.errno) from error

    # Events.

    def follow(
        self, ports: Collection[int], changes: Collection[Change] = (Change.DESTROY,),
        *, but_ours: bool = False,
    ) -> None:  # fmt: skip
        """Listen for *changes* to control connections on *ports* and to our entries.

        The kernel makes an event for every connection of this namespace, ours or
        not, and drops the others before they wake us; so ask for few changes.

        Args:
            ports: of control connections.
            changes: what to listen for.
            but_ours: leave out our entries; see `ends`.
        """
        own = self._netlink.portid
        events = Events(ports, changes, self.entry_mark, own, self._part, but_ours=but_ours)
        if self._events is not None:
            self._events.close()
        self._events = events

    def ends(self) -> Ends:
        """Return what listens for the ends of our entries by others, none of which it misses."""
        return Ends(self.entry_mark, self._netlink, self._part)

    def fileno(self) -> int:
        """Return the descriptor that is readable when events are waiting."""
        assert self._events is not None, "follow() first"
        return self._events.fileno()

    def read_events(self) -> list[CtEvent]:
        """Return what has happened, without waiting; not what this object did itself."""
        assert self._events is not None, "follow() first"
        return self._events.read()


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
