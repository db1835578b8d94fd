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

import enum
import errno
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

from pptp_nat.core.tuples import Flow, Leg, Placement
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_wire import (
    BY_DESTINATION_PORT,
    BY_PROTOCOL,
    BY_SOURCE,
    BY_SOURCE_PORT,
    CARRYING,
    CT_DELETE,
    CT_NEW,
    GRE,
    TCP,
    Entry,
    Tuple,
    by_mark,
    by_tuple,
    delete_message,
    dump_message,
    event_filter,
    get_message,
    new_message,
    read_entry,
    spare_keys,
)
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.netlink import F_CREATE, MOST_PER_SEND, Message, Netlink, Received

_T = TypeVar("_T")

ENTRY_MARK: Final = 0x20000000  # of CTA_MARK; says that an entry is ours
LIFETIME: Final = 2_000_000  # seconds, 23 days: INT_MAX jiffies at HZ=1000 are 24.8 days
ATTEMPTS: Final = 100  # per leg; each either removes an obstacle or passes over a spare key

ACCOUNTING: Final = Path("/proc/sys/net/netfilter/nf_conntrack_acct")

MENDS: Final = {
    errno.EPERM: "run it as root, with CAP_NET_ADMIN over this network namespace",
    errno.EINVAL: "load the module nf_conntrack_netlink",
    errno.EOPNOTSUPP: "load the modules nf_nat and nf_conntrack_netlink",
    errno.ENOMEM: "raise net.netfilter.nf_conntrack_max if the table is full",
    errno.ENOSPC: "raise net.netfilter.nf_conntrack_buckets",
}


class Change(enum.Enum):
    """What became of an entry."""

    NEW = "new"
    UPDATE = "update"
    DESTROY = "destroy"
    OVERRUN = "overrun"  # events were lost; compare with what is there


# Multicast groups as bits for bind() (linux/netfilter/nfnetlink_compat.h).
GROUPS: Final = {Change.NEW: 1, Change.UPDATE: 2, Change.DESTROY: 4}


class CtEvent(NamedTuple):
    """A change to a control connection's entry, or to one of our GRE entries.

    Of ``placement`` and ``leg`` one is set, none in an overrun.  ``tally`` holds
    a leg's last counts, zeros where the kernel does not count.
    """

    change: Change
    placement: Placement | None = None
    leg: Leg | None = None
    mark: int = 0
    tally: Tally = Tally(0, 0)


def accounting() -> bool | None:
    """Return whether the kernel counts per entry here; None where it cannot say."""
    try:
        return ACCOUNTING.read_text().strip() != "0"
    except OSError:
        return None


def turn_on_accounting() -> bool:
    """Have the kernel count in entries made from now on; return whether it does."""
    try:
        ACCOUNTING.write_text("1\n")
    except OSError:
        return accounting() is True
    return True


def _failed(doing: str, code: int) -> AdapterError:
    return AdapterError(doing, code, mend=MENDS.get(code, ""))


def _dotted(address: bytes) -> str:
    return ".".join(map(str, address))


def _described(leg: Leg) -> str:
    return f"from {_dotted(leg.source)} to {_dotted(leg.destination)} with call ID {leg.key}"


class Conntrack:
    """One namespace's conntrack table.  All methods raise `AdapterError`.

    Args:
        entry_mark: the bit of CTA_MARK that says an entry is ours.
        lifetime: of an entry, seconds; less where the kernel's clock cannot hold it.
    """

    def __init__(self, entry_mark: int = ENTRY_MARK, *, lifetime: int = LIFETIME) -> None:
        self.entry_mark = entry_mark
        self.lifetime = lifetime
        self._netlink = Netlink()
        self._events: Netlink | None = None
        self._ports: frozenset[int] = frozenset()

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
        so two look-ups find it.  Only a connection that is translated at both
        ends (a hairpin) is to be found in neither; for this the table is searched,
        which takes milliseconds.

        Args:
            flow: a packet's, in either direction.  The entry appears once the
                connection's first packet has left the machine.
            search: False saves the search for a hairpin, for a packet which may
                well have no entry.

        Returns:
            None when conntrack has no such connection.
        """
        way = Tuple.of_flow(flow)
        back = Tuple.of_flow(flow.reversed())
        for wanted in (way, back):
            entry = self._entry(wanted, "looking up a control connection in conntrack")
            if entry is not None and _speaks(entry, flow):
                return entry.placement
        return self._locate_hairpin(way, back, flow) if search else None

    def _locate_hairpin(self, way: Tuple, back: Tuple, flow: Flow) -> Placement | None:
        flags = BY_SOURCE | BY_PROTOCOL | BY_SOURCE_PORT
        for opener, answer in ((way, back), (back, way)):
            criteria = by_tuple(original=(flags, opener), reply=(flags, answer))
            for entry in self._dump(criteria, "searching conntrack for a control connection"):
                if entry.original.protocol == TCP and _speaks(entry, flow):
                    return entry.placement
        return None

    def control_connections(self, ports: Collection[int]) -> Iterator[Placement]:
        """Yield the control connections that are answered on one of *ports*.

        Answered: the port that the opener dialled or that a port forward made of it.
        """
        seen: set[Flow] = set()
        for port in ports:
            dialled = Tuple(TCP, bytes(4), port, bytes(4), port)
            for criteria in (
                by_tuple(original=(BY_PROTOCOL | BY_DESTINATION_PORT, dialled), reply=None),
                by_tuple(original=None, reply=(BY_PROTOCOL | BY_SOURCE_PORT, dialled)),
            ):
                for entry in self._dump(criteria, "listing control connections in conntrack"):
                    flow = entry.placement.flow
                    if _is_control(entry, ports) and flow not in seen:
                        seen.add(flow)
                        yield entry.placement

    # Entries that carry GRE.

    def insert(self, orders: Sequence[LegOrder]) -> dict[Leg, Tally]:
        """Have the kernel carry *orders* by the time this returns.

        An entry that carries the very same leg already stays as it is.  Any other
        entry in the way is replaced: it is an earlier leg with the same match, or
        the track of a packet that came too early.

        Returns:
            What our entries had counted that had to be made anew; mostly nothing.
        """
        counted: dict[Leg, Tally] = {}
        for batch in _batches(orders, MOST_PER_SEND):
            errnos = self._netlink.request([self._new(order, 0) for order in batch])
            for order, code in zip(batch, errnos, strict=True):
                if code == errno.EEXIST:
                    counted |= self._make_room(order)
                elif code:
                    raise _failed(f"inserting the conntrack entry {_described(order.leg)}", code)
        return counted

    def _new(self, order: LegOrder, spare_key: int) -> Message:
        return new_message(order.leg, order.mark | self.entry_mark, spare_key, self.lifetime)

    def _make_room(self, order: LegOrder) -> dict[Leg, Tally]:
        """Insert *order* although something is in the way of it."""
        doing = f"making room for the conntrack entry {_described(order.leg)}"
        wanted = Tuple.of_match(order.leg)
        keys = spare_keys(order.leg)
        spare_key = next(keys)
        displaced: list[Entry] = []
        counted: dict[Leg, Tally] = {}
        for _ in range(ATTEMPTS):
            holder = self._entry(wanted, doing)
            if holder is not None and self._carries(holder, order):
                return counted
            messages = [self._new(order, spare_key)]
            if holder is not None:
                messages.insert(0, delete_message(holder))
            errnos, received = self._netlink.exchange(messages)
            if holder is not None and self._is_mine(holder) and holder.original != wanted:
                displaced.append(holder)  # both hosts chose call ID 0; see above
                counted |= _counted([holder], received)
            if errnos[-1] == 0:
                for entry in displaced:
                    counted |= self._make_room(LegOrder(entry.leg, entry.mark))
                return counted
            if errnos[-1] != errno.EEXIST:
                raise _failed(doing, errnos[-1])
            if holder is None:  # nobody holds the original tuple: it is the reply that is taken
                spare_key = next(keys, spare_key)
        raise _failed(doing, errno.EEXIST)

    def delete(self, legs: Sequence[Leg]) -> dict[Match, Tally]:
        """End the entries that carry exactly these *legs*; return their last counts.

        A leg that is not there, or that another with the same match has replaced,
        is passed over.
        """
        tallies: dict[Match, Tally] = {}
        doing = "deleting conntrack entries"
        for batch in _batches(legs, MOST_PER_SEND):
            asked = [get_message(Tuple.of_match(leg)) for leg in batch]
            errnos, received = self._netlink.exchange(asked)
            _check(errnos, doing)
            doomed = []
            for answer in received:
                entry = read_entry(answer.body)
                if entry and self._is_mine(entry) and entry.leg == batch[answer.asked]:
                    doomed.append(entry)
            if doomed:
                errnos, received = self._netlink.exchange([delete_message(e) for e in doomed])
                _check(errnos, doing)
                counted = _counted(doomed, received)
                tallies |= {Match(*leg[:3]): tally for leg, tally in counted.items()}
        return tallies

    def entry(self, match: Match) -> Entry | None:
        """Return the entry of arriving GRE that *match* names, ours or not."""
        return self._entry(Tuple.of_match(match), "looking up a conntrack entry")

    def entries(self) -> Iterator[Entry]:
        """Yield our GRE entries, those of an earlier run too."""
        for entry in self._dump(by_mark(self.entry_mark), "listing our conntrack entries"):
            if self._is_mine(entry):
                yield entry

    def renew(self, entries: Sequence[Entry]) -> dict[Leg, Tally]:
        """Give our GRE *entries* their whole lifetime again.

        The kernel refuses to prolong a fixed timeout (EPERM), so each is deleted
        and made anew in one send.

        Returns:
            What they had counted; their counters start at zero again.
        """
        counted: dict[Leg, Tally] = {}
        for batch in _batches(entries, MOST_PER_SEND // 2):
            orders = [LegOrder(entry.leg, entry.mark) for entry in batch]
            messages = []
            for entry, order in zip(batch, orders, strict=True):
                messages.append(delete_message(entry))
                messages.append(self._new(order, entry.reply.destination_key))
            errnos, received = self._netlink.exchange(messages)
            counted |= _counted(batch, received)
            for order, code in zip(orders, errnos[1::2], strict=True):
                if code == errno.EEXIST:  # a packet came between the two
                    counted |= self._make_room(order)
                elif code:
                    raise _failed(f"renewing the conntrack entry {_described(order.leg)}", code)
        return counted

    def _is_mine(self, entry: Entry) -> bool:
        return entry.original.protocol == GRE and bool(entry.mark & self.entry_mark)

    def _carries(self, entry: Entry, order: LegOrder) -> bool:
        """Whether *entry* is what `insert` would make of *order*."""
        return (
            entry.original == Tuple.of_match(order.leg)
            and entry.leg == order.leg
            and entry.mark == order.mark | self.entry_mark
            and entry.status & CARRYING == CARRYING
        )

    def _entry(self, wanted: Tuple, doing: str) -> Entry | None:
        """Return the entry that has *wanted* as one of its two tuples."""
        code, body = self._netlink.get(get_message(wanted))
        _check((code,), doing)
        return read_entry(body) if code == 0 else None

    def _dump(self, criteria: bytes, doing: str) -> Iterator[Entry]:
        try:
            bodies = self._netlink.dump(dump_message(criteria))
        except AdapterError as error:
            raise _failed(doing, error.errno) from error
        for body in bodies:
            entry = read_entry(body)
            if entry is not None:
                yield entry

    # Events.

    def follow(
        self, ports: Collection[int], changes: Collection[Change] = (Change.DESTROY,)
    ) -> None:
        """Listen for *changes* to control connections on *ports* and to our entries.

        The kernel makes an event for every connection of this namespace, ours or
        not, and drops the others before they wake us; so ask for few changes.
        """
        groups = sum(group for change, group in GROUPS.items() if change in changes)
        events = Netlink(groups)
        events.attach(event_filter(ports))
        if self._events is not None:
            self._events.close()
        self._events, self._ports = events, frozenset(ports)

    def fileno(self) -> int:
        """Return the descriptor that is readable when events are waiting."""
        assert self._events is not None, "follow() first"
        return self._events.fileno()

    def read_events(self) -> list[CtEvent]:
        """Return what has happened, without waiting; not what this object did itself."""
        assert self._events is not None, "follow() first"
        received, overrun = self._events.drain()
        events = [CtEvent(Change.OVERRUN)] if overrun else []
        for message in received:
            if message.portid == self._netlink.portid:
                continue
            change = _change(message)
            entry = read_entry(message.body) if change else None
            if change is None or entry is None:
                continue
            if self._is_mine(entry):
                tally = entry.carried or Tally(0, 0)
                events.append(CtEvent(change, leg=entry.leg, mark=entry.mark, tally=tally))
            elif _is_control(entry, self._ports):
                events.append(CtEvent(change, placement=entry.placement, mark=entry.mark))
        return events


def _speaks(entry: Entry, flow: Flow) -> bool:
    """Whether *flow* is one of the directions of *entry*, between the hosts' own addresses."""
    opener = entry.placement.flow
    return flow == opener or flow.reversed() == opener


def _is_control(entry: Entry, ports: Collection[int]) -> bool:
    dialled, answering = entry.original.destination_key, entry.reply.source_key
    return entry.original.protocol == TCP and (dialled in ports or answering in ports)


def _change(message: Received) -> Change | None:
    if message.kind == CT_DELETE:
        return Change.DESTROY
    if message.kind == CT_NEW:
        return Change.NEW if message.flags & F_CREATE else Change.UPDATE
    return None


def _counted(entries: Iterable[Entry], received: Iterable[Received]) -> dict[Leg, Tally]:
    """Return the last counts of *entries* that are deleted now.

    From the echoes of their ends; where the kernel sends none (it does not when
    net.netfilter.nf_conntrack_events was off when the entry was made), what was
    last read.
    """
    last = {entry.leg: entry.carried or Tally(0, 0) for entry in entries}
    for message in received:
        if message.kind == CT_DELETE:
            ended = read_entry(message.body)
            if ended is not None and ended.carried is not None and ended.leg in last:
                last[ended.leg] = ended.carried
    return last


def _check(errnos: Iterable[int], doing: str) -> None:
    """Raise the first errno that says more than "there is none"."""
    for code in errnos:
        if code not in {0, errno.ENOENT}:
            raise _failed(doing, code)


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
