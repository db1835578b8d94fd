"""The data path through NFQUEUE: GRE rewritten here, packet by packet.

Works wherever packets can be queued, whatever the kernel knows of GRE.  Two
hooks (rules/README.md): what the world sends to an external address is queued
in PREROUTING, before routing; what the inside sends is queued in POSTROUTING,
after it.  Both are untracked, so no other translation touches them.

A leg that changes both addresses (a hairpin) is carried in two stages, since a
source of this router's own would not get past routing: destination and key in
PREROUTING, without the repeat mark, so that POSTROUTING queues it again for its
source.

A packet's leg is found by its source, destination and key, ten octets that lie
nearly together: one look-up.  The checksum needs no look at the addresses: each
leg knows the sum of what it changes (RFC 1624 section 3, equation 3).

Here is the judge of any packet.  Where the usual ones are read in batches they
are rewritten in `pptp_nat.linux.gre_queue`, and only the others come here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from sys import byteorder
from typing import TYPE_CHECKING, Final

from pptp_nat.core.packet import is_enhanced_gre
from pptp_nat.core.tuples import Leg
from pptp_nat.linux.datapath import Carrying, Installed, LegOrder, Match, Tally, match_of_leg
from pptp_nat.linux.leg_table import ROW, TALLY, LegTable, Row, match_of, name_of, place_of
from pptp_nat.linux.shares import Shares

if TYPE_CHECKING:
    from pptp_nat.linux.nfqueue import Packet, Queue

_POSTROUTING: Final = 4
_PIECE: Final = 512  #: legs whose counts are read in one go: half a millisecond
_IP_HEADER: Final = 20  #: octets at least
_GRE_HEADER: Final = 8  #: octets, with its key
#: How GRE of a call begins (RFC 2637 section 4.1): K, with or without S and A; version 1; 0x880B.
OF_CALLS: Final = frozenset(
    bytes((0x20 | s, 0x01 | a, 0x88, 0x0B)) for s in (0, 0x10) for a in (0, 0x80)
)


class QueuePath:
    """Carries GRE through a `Queue` whose judge is `judge` (a `DataPath`)."""

    name: Carrying = "queue"
    outlives_us = False

    def __init__(self) -> None:
        self.legs = LegTable()
        self.notes = self.legs.notes
        self.seconds: dict[bytes, Row] = {}  #: the other stages of hairpins, rare
        self._firsts: Counter[bytes] = Counter()  # how many legs share each of them
        self._shares = Shares()
        self.counts: Counter[str] = Counter()  #: strays by reason

    def install(self, orders: Sequence[LegOrder]) -> Installed:
        """Have the legs carry packets."""
        shared = {}
        for order in orders:
            name = name_of(order.leg)
            before = self._order(name)
            if before is not None:
                match = match_of_leg(order.leg)
                self._shares.join(match, order, before)
                shared[match] = self.legs.tally(name) or Tally(0, 0)
            self._carry(order)
        return Installed(shared)

    def restore(self, orders: Sequence[LegOrder]) -> Installed:
        """Have legs carry packets that do not."""
        for order in orders:
            if name_of(order.leg) not in self.legs:
                self._carry(order)
        return Installed({})

    def _carry(self, order: LegOrder) -> None:
        first, second = _stages(order.leg)
        row, name = Row.of(first, order.mark, again=second is not None), name_of(first)
        if name in self.legs:
            before = self._drop(name)
            row = row._replace(packets=before.packets, octets=before.octets)
        self.legs.put(name, row)
        if second is not None:
            self.seconds[name_of(second)] = Row.of(second, order.mark)
            self._firsts[name_of(second)] += 1

    def _order(self, name: bytes) -> LegOrder | None:
        """Return what is carried under *name*."""
        row = self.legs.get(name)
        if row is None:
            return None
        new = row.addresses + row.key
        if row.again:
            new = self.seconds[new].addresses + row.key
        return LegOrder(Leg(*match_of(name), *match_of(new)), row.mark)

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are carried another mark."""
        for order in orders:
            if self._shares.remark(order):
                self.legs.remark(name_of(order.leg), order.mark)

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Stop carrying the legs whose last owner this was; return their last counts."""
        tallies = {}
        for leg in legs:
            tally = self.legs.tally(name_of(leg))
            if tally is None:
                continue
            tallies[match_of_leg(leg)] = tally
            left = self._shares.leave(leg)
            if left is None:
                self._drop(name_of(leg))
            else:
                self._carry(left.now)
        return tallies

    def _drop(self, name: bytes) -> Row:
        row = self.legs.pop(name)
        if row.again:
            second = row.addresses + row.key
            self._firsts[second] -= 1
            if not self._firsts[second]:
                del self._firsts[second], self.seconds[second]
        return row

    def take_over(
        self, orders: Sequence[LegOrder], *, trusted: bool = False  # noqa: ARG002
    ) -> Sequence[LegOrder]:
        """Return all *orders*: nothing here outlives the process."""
        return orders

    def left_over(self) -> Sequence[Leg]:
        """Return nothing."""
        return ()

    def kept(self) -> Iterator[tuple[Match, Tally]]:
        """Yield all counts."""
        return self.legs.tallies(self.legs.names())

    def credit(self, leg: Leg, tally: Tally) -> None:
        """Add what *leg* had carried in an earlier process."""
        self.legs.credit(name_of(leg), *tally)

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Do nothing: nobody else can delete a leg here."""

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts of all legs."""
        return dict(self.legs.tallies(self.legs.names()))

    def tallies_of(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Return the counts of these *legs* alone."""
        return dict(self.legs.tallies(list(map(name_of, legs))))

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts of `_PIECE` legs at a time."""
        names = self.legs.names()
        for start in range(0, len(names), _PIECE):
            yield dict(self.legs.tallies(names[start : start + _PIECE]))

    def matches(self) -> Iterable[Match]:
        """Return what is carried; nothing outlives the daemon."""
        return list(map(match_of, self.legs.names()))

    def renew(self, now: float) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: legs here do not age."""
        return iter(())

    def close(self) -> None:
        """Do nothing: the queue is its owner's."""

    def judge(self, queue: Queue, packet: Packet) -> None:
        """Give one packet its verdict, whatever its form."""
        octets = packet.octets
        size = (octets[0] & 0x0F) * 4
        gre = octets[size:]
        if size < _IP_HEADER or not is_enhanced_gre(gre):
            self.counts["plain_gre"] += 1
            queue.let_pass(packet)
            return
        name = octets[12:20] + gre[6:8]
        place = place_of(self.notes, name)
        row = ROW.unpack_from(self.legs.rows, place) if place else self.seconds.get(name)
        if row is not None and len(gre) >= _GRE_HEADER and gre[:4] in OF_CALLS:
            packets, total, delta, key, addresses, mark, again = row
            if place:
                TALLY.pack_into(self.legs.rows, place, packets + 1, total + len(octets))
            check = 0xFFFF - int.from_bytes(octets[10:12], byteorder) + delta
            check = 0xFFFF - (check & 0xFFFF) - (check >> 16)
            packet.mark = mark or packet.mark
            changed = b"".join((
                octets[:10], check.to_bytes(2, byteorder), addresses,
                octets[20:size], gre[:6], key, gre[8:],
            ))  # fmt: skip
            if again:
                queue.repeat(packet, changed)
            else:
                queue.let_pass(packet, changed)
            return
        if self.must_drop(packet.hook):
            queue.drop(packet)
        else:
            queue.accept(packet)

    def must_drop(self, hook: int) -> bool:
        """Count GRE of no call that came to *hook*; return whether it ends here."""
        if hook == _POSTROUTING:
            self.counts["stray_outbound"] += 1
            return True  # it would carry an inside address into the world
        self.counts["stray_inbound"] += 1
        return False  # this router's own, tracked as if no rule of ours were there


def _stages(leg: Leg) -> tuple[Leg, Leg | None]:
    """Return what is done where the packet arrives, and what only where it leaves."""
    if leg.source == leg.new_source or leg.destination == leg.new_destination:
        return leg, None
    first = leg._replace(new_source=leg.source)
    return first, Leg(*first[3:], *leg[3:])

