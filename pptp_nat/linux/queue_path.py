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
together in an IP header without options: one slice, one look-up, one join.  The
checksum needs no look at the addresses: each leg knows the sum of what it
changes (RFC 1624 section 3, equation 3).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pptp_nat.core.packet import is_enhanced_gre
from pptp_nat.core.tuples import Leg
from pptp_nat.linux.datapath import Carrying, Installed, LegOrder, Match, Tally
from pptp_nat.linux.shares import Shares

if TYPE_CHECKING:
    from pptp_nat.linux.nfqueue import Packet, Queue

_POSTROUTING: Final = 4
_PLAIN_IP: Final = 0x45  # version 4, no options
_PIECE: Final = 512  #: legs whose counts are read in one go: half a millisecond
_IP_HEADER: Final = 20  #: octets at least
_SHORTEST: Final = 28  # octets: IP header without options, GRE with its key
#: How GRE of a call begins (RFC 2637 section 4.1): K, with or without S and A; version 1; 0x880B.
_OF_CALLS: Final = frozenset(
    bytes((0x20 | s, 0x01 | a, 0x88, 0x0B)) for s in (0, 0x10) for a in (0, 0x80)
)


class _Carried:
    """One leg, or one stage of it, at work."""

    __slots__ = (
        "addresses", "again", "delta", "key", "mark", "octets", "packets",
    )  # fmt: skip

    def __init__(self, leg: Leg, mark: int, *, again: bool = False) -> None:
        self.mark = mark
        self.again = again  #: the next hook has to see the packet too
        self.addresses = leg.new_source + leg.new_destination
        self.key = leg.new_key.to_bytes(2, "big")
        self.delta = _delta(leg.source + leg.destination, self.addresses)
        self.packets = 0
        self.octets = 0


def _delta(old: bytes, new: bytes) -> int:
    """Return the folded sum of ``~old + new``, what a checksum's complement grows by."""
    total: int = sum(0xFFFF - word for word in struct.unpack("!4H", old))
    total += sum(struct.unpack("!4H", new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class QueuePath:
    """Carries GRE through a `Queue` whose judge is `judge` (a `DataPath`)."""

    name: Carrying = "queue"
    outlives_us = False

    def __init__(self) -> None:
        self._legs: dict[bytes, _Carried] = {}
        self._second: dict[bytes, _Carried] = {}  # the other stages of hairpins, rare
        self._firsts: Counter[bytes] = Counter()  # how many legs share each of them
        self._shares = Shares()
        self.counts: Counter[str] = Counter()  #: strays by reason
        self.judge = self._make_judge()

    def install(self, orders: Sequence[LegOrder]) -> Installed:
        """Have the legs carry packets."""
        shared = {}
        for order in orders:
            match = Match(*order.leg[:3])
            before = self._order(_name(order.leg))
            if before is not None:
                self._shares.join(match, order, before)
                shared[match] = self._tally(_name(order.leg))
            self._carry(order)
        return Installed(shared)

    def restore(self, orders: Sequence[LegOrder]) -> Installed:
        """Have legs carry packets that do not."""
        for order in orders:
            if _name(order.leg) not in self._legs:
                self._carry(order)
        return Installed({})

    def _carry(self, order: LegOrder) -> None:
        first, second = _stages(order.leg)
        carried = _Carried(first, order.mark, again=second is not None)
        if (before := self._legs.get(_name(first))) is not None:
            carried.packets, carried.octets = before.packets, before.octets
            self._drop(_name(first))
        self._legs[_name(first)] = carried
        if second is not None:
            self._second[_name(second)] = _Carried(second, order.mark)
            self._firsts[_name(second)] += 1

    def _tally(self, name: bytes) -> Tally:
        carried = self._legs[name]
        return Tally(carried.packets, carried.octets)

    def _order(self, name: bytes) -> LegOrder | None:
        """Return what is carried under *name*."""
        carried = self._legs.get(name)
        if carried is None:
            return None
        new = carried.addresses + carried.key
        if carried.again:
            new = self._second[new].addresses + carried.key
        return LegOrder(Leg(*_match(name), *_match(new)), carried.mark)

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are carried another mark."""
        for order in orders:
            carried = self._legs.get(_name(order.leg))
            if self._shares.remark(order) and carried is not None:
                carried.mark = order.mark

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Stop carrying the legs whose last owner this was; return their last counts."""
        tallies = {}
        for leg in legs:
            carried = self._legs.get(_name(leg))
            if carried is None:
                continue
            tallies[Match(*leg[:3])] = Tally(carried.packets, carried.octets)
            left = self._shares.leave(leg)
            if left is None:
                self._drop(_name(leg))
            else:
                self._carry(left.now)
        return tallies

    def _drop(self, name: bytes) -> None:
        carried = self._legs.pop(name)
        if not carried.again:
            return
        second = carried.addresses + carried.key
        self._firsts[second] -= 1
        if not self._firsts[second]:
            del self._firsts[second], self._second[second]

    def take_over(
        self, orders: Sequence[LegOrder], *, trusted: bool = False  # noqa: ARG002
    ) -> Sequence[LegOrder]:
        """Return all *orders*: nothing here outlives the process."""
        return orders

    def left_over(self) -> Sequence[Leg]:
        """Return nothing."""
        return ()

    def kept(self) -> Mapping[Match, Tally]:
        """Return all counts."""
        return self.tallies()

    def credit(self, leg: Leg, tally: Tally) -> None:
        """Add what *leg* had carried in an earlier process."""
        carried = self._legs.get(_name(leg))
        if carried is not None:
            carried.packets += tally.packets
            carried.octets += tally.octets

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Do nothing: nobody else can delete a leg here."""

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts of all legs."""
        return {
            _match(name): Tally(carried.packets, carried.octets)
            for name, carried in self._legs.items()
        }

    def tallies_of(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Return the counts of these *legs* alone."""
        return {
            Match(*leg[:3]): self._tally(_name(leg)) for leg in legs if _name(leg) in self._legs
        }

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts of `_PIECE` legs at a time."""
        names = list(self._legs)
        for start in range(0, len(names), _PIECE):
            yield {
                _match(name): Tally(carried.packets, carried.octets)
                for name in names[start : start + _PIECE]
                if (carried := self._legs.get(name)) is not None
            }

    def matches(self) -> Iterable[Match]:
        """Return what is carried; nothing outlives the daemon."""
        return list(map(_match, self._legs))

    def renew(self, now: float) -> None:
        """Do nothing: legs here do not age."""

    def close(self) -> None:
        """Do nothing: the queue is its owner's."""

    def _make_judge(self) -> Callable[[Queue, Packet], None]:
        """Return the judge: a function of local variables, since it runs for every packet."""
        find = self._legs.get
        stray = self._stray

        def judge(queue: Queue, packet: Packet) -> None:
            octets = packet.octets
            if octets[0] == _PLAIN_IP and len(octets) >= _SHORTEST:
                carried = find(octets[12:20] + octets[26:28])
                if carried is not None and octets[20:24] in _OF_CALLS:
                    check = 0xFFFF - (octets[10] << 8 | octets[11]) + carried.delta
                    if check > 0xFFFF:
                        check -= 0xFFFF
                    carried.packets += 1
                    carried.octets += len(octets)
                    if carried.mark:
                        packet.mark = carried.mark
                    changed = b"".join((
                        octets[:10], (0xFFFF - check).to_bytes(2, "big"), carried.addresses,
                        octets[20:26], carried.key, octets[28:],
                    ))  # fmt: skip
                    if carried.again:
                        queue.repeat(packet, changed)
                    else:
                        queue.let_pass(packet, changed)
                    return
            stray(queue, packet, octets)

        return judge

    def _stray(self, queue: Queue, packet: Packet, octets: bytes) -> None:
        """Judge what the short way does not take: IP options, other GRE, GRE of no call."""
        size = (octets[0] & 0x0F) * 4
        gre = octets[size:]
        if size < _IP_HEADER or not is_enhanced_gre(gre):
            self.counts["plain_gre"] += 1
            queue.let_pass(packet)
            return
        name = octets[12:20] + gre[6:8]
        carried = self._legs.get(name) or self._second.get(name)
        if carried is not None and len(gre) >= 8 and gre[:4] in _OF_CALLS:
            check = 0xFFFF - (octets[10] << 8 | octets[11]) + carried.delta
            check = 0xFFFF - (check & 0xFFFF) - (check >> 16)
            carried.packets += 1
            carried.octets += len(octets)
            if carried.mark:
                packet.mark = carried.mark
            changed = b"".join((
                octets[:10], check.to_bytes(2, "big"), carried.addresses,
                octets[20:size], gre[:6], carried.key, gre[8:],
            ))  # fmt: skip
            if carried.again:
                queue.repeat(packet, changed)
            else:
                queue.let_pass(packet, changed)
            return
        if packet.hook == _POSTROUTING:
            self.counts["stray_outbound"] += 1
            queue.drop(packet)  # it would carry an inside address into the world
        else:
            self.counts["stray_inbound"] += 1
            queue.accept(packet)  # this router's own, tracked as if no rule of ours were there


def _stages(leg: Leg) -> tuple[Leg, Leg | None]:
    """Return what is done where the packet arrives, and what only where it leaves."""
    if leg.source == leg.new_source or leg.destination == leg.new_destination:
        return leg, None
    first = leg._replace(new_source=leg.source)
    return first, Leg(*first[3:], *leg[3:])


def _match(name: bytes) -> Match:
    return Match(name[:4], name[4:8], int.from_bytes(name[8:], "big"))


def _name(leg: Leg) -> bytes:
    return leg.source + leg.destination + leg.key.to_bytes(2, "big")
