"""Pairs the entries of a conntrack table: which GRE belongs to which control connection.

A packet of GRE names no port, so the two are paired by their hosts.  An entry
tells each host's own address and the one that the other host knows; the control
connection and the GRE of one tunnel have the same two hosts, in either order.

Three ways of carrying a call look different:

- the kernel's helper has one entry for both ways, with both call IDs as keys;
- pptp-nat has an entry for each way, a *leg*, whose source key is 0 and which has
  its mark.  Where a tunnel has several calls, nothing in the table says which
  two legs make one call;
- with nobody to help, each way is a *stranger*: its own entry, unreplied, and the
  one that arrives at the hidden host's external address leads nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis.conntrack_entries import (
    ENTRY_MARK,
    FLOWING,
    GRE,
    Host,
    ListedEntry,
    is_control,
    is_ours,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

PORT: Final = 1723
EXPIRING: Final = 30  #: seconds; a keep-alive of PPP, every 30 to 60 s, comes too late for those
RENEWING: Final = 86_400  #: seconds; pptp-nat looks after its own entries at least once a day


class Leg(NamedTuple):
    """One way of a call's GRE: how it arrives at the router, and how it leaves."""

    entry: ListedEntry
    arriving_key: int | None  #: the receiver's call ID as the sender knows it
    leaving_key: int | None  #: the receiver's own
    packets: int | None
    octets: int | None


class TableCall(NamedTuple):
    """One call as the table shows it, or the half of one."""

    by: str  #: who carries it: ``pptp-nat``, ``helper`` or ``nobody``
    entries: tuple[ListedEntry, ...]
    to_responder: Leg | None
    to_originator: Leg | None

    @property
    def half(self) -> bool:
        """Whether only one way of it is known."""
        return self.to_responder is None or self.to_originator is None

    @property
    def lively(self) -> bool:
        """Whether GRE has gone every way that is known, as far as the kernel counts."""
        forth, back = self.to_responder, self.to_originator
        return (forth is None or forth.packets != 0) and (back is None or back.packets != 0)

    @property
    def both_ways(self) -> bool:
        """Whether GRE has gone both ways, as far as the table can tell."""
        if self.to_responder is None or self.to_originator is None or not self.lively:
            return False
        return True not in [entry.unreplied for entry in self.entries]


@dataclass(slots=True)
class Tunnel:
    """Everything between two hosts.  Without control connection nobody knows who opened it."""

    originator: Host
    responder: Host
    controls: list[ListedEntry] = field(default_factory=list)
    open: list[ListedEntry] = field(default_factory=list)  #: of those, what is not closed
    gre: list[ListedEntry] = field(default_factory=list)
    calls: list[TableCall] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether it is plainly well: one open control connection, each call by one carrier."""
        if len(self.controls) != 1 or len(self.open) != 1:
            return False
        control = self.controls[0]
        if control.offloaded or not self.calls:
            return False
        by = "helper" if control.helper else "pptp-nat"
        for call in self.calls:  # noqa: SIM110  all() would cost more than what it asks
            if call.by != by or not call.both_ways:
                return False
        return True

    @property
    def carried(self) -> int:
        """How many calls have had GRE both ways; halves count as pairs."""
        whole = sum([call.both_ways for call in self.calls])
        halves = [call for call in self.calls if call.by == "pptp-nat" and call.half]
        if not halves:
            return whole
        forth = sum(each.to_responder is not None and each.lively for each in halves)
        back = sum(each.to_originator is not None and each.lively for each in halves)
        return whole + min(forth, back)

    def __str__(self) -> str:
        return f"{self.originator} - {self.responder}"


class PlainTunnel(NamedTuple):
    """A tunnel of which nothing is to be said but that it is well: nearly all of a large table.

    One open control connection and one call, by who carries such calls, in both ways, with
    time left.  To be looked at, it is like a `Tunnel`.
    """

    control: ListedEntry
    gre: tuple[ListedEntry, ...]  #: the helper's one entry, or our two: to the responder, and back

    @property
    def originator(self) -> Host:
        """Who has opened it."""
        return tuple.__new__(Host, (self[0][1], self[0][6]))

    @property
    def responder(self) -> Host:
        """Who has answered."""
        return tuple.__new__(Host, (self[0][5], self[0][2]))

    @property
    def controls(self) -> tuple[ListedEntry]:
        """The one control connection."""
        return (self.control,)

    @property
    def calls(self) -> tuple[TableCall]:
        """The one call."""
        forth, back = self.gre[0], self.gre[-1]
        if forth is not back:
            by, legs = "pptp-nat", (_leg(forth, reply=False), _leg(back, reply=False))
        else:
            by, legs = "helper", (_leg(forth, reply=False), _leg(forth, reply=True))
            if forth.source != self.control.source:
                legs = legs[::-1]
        return (tuple.__new__(TableCall, (by, self.gre, *legs)),)

    def whole(self, entry_mark: int) -> Tunnel:
        """Return the same for what only a `Tunnel` can be asked."""
        return _whole((self.control, *self.gre), entry_mark)


class Stranger(NamedTuple):
    """GRE between the hosts of tunnels, but not as their control connections are translated."""

    entry: ListedEntry
    tunnels: tuple[Tunnel, ...]  #: those it could be of
    arrives: bool  #: it comes to a hidden host's external address and goes no further


@dataclass(slots=True)
class PptpTable:
    """All that concerns PPTP in a table."""

    tunnels: list[Tunnel | PlainTunnel]
    examined: list[Tunnel]  #: of the tunnels, those that are not plain
    orphans: list[Tunnel]  #: GRE of two hosts without any control connection
    strangers: list[Stranger]
    suspects: list[Tunnel]  #: of the examined, those that are not sound
    other_gre: int  #: entries of GRE that has no call IDs, between hosts without PPTP
    unkeyed: list[ListedEntry]  #: GRE of a kernel that does not look at call IDs
    entry_mark: int


def pptp_table(
    entries: Iterable[ListedEntry],
    ports: Collection[int] = (PORT,),
    entry_mark: int = ENTRY_MARK,
) -> PptpTable:
    """Pair *entries*; *entry_mark* is the bit by which pptp-nat's own are known."""
    between: list[list[ListedEntry]] = []  # two hosts: control connections, then GRE
    by_hosts: dict[_Hosts, list[ListedEntry]] = {}  # each twice, from either end
    gre: list[ListedEntry] = []
    loose: list[ListedEntry] = []
    for entry in entries:
        if entry[0] == GRE:
            gre.append(entry)
        elif is_control(entry, ports):
            hosts = _hosts(entry)
            some = by_hosts.get(hosts)
            if some is None:
                some = by_hosts[hosts] = by_hosts[*hosts[2:], *hosts[:2]] = []
                between.append(some)
            some.append(entry)
    for entry in gre:
        by_hosts.get((entry[1], entry[6], entry[5], entry[2]), loose).append(entry)
    wanted = {(entry.source, entry.back_source) for entry in loose}
    table = PptpTable([], [], [], [], [], 0, [], entry_mark)
    for some in between:
        tunnel = _plain(some, entry_mark)
        if tunnel is None or (wanted and _is_near(tunnel, wanted)):
            examined = _whole(some, entry_mark)
            table.examined.append(examined)
            table.tunnels.append(examined)
        else:
            table.tunnels.append(tunnel)
    if loose:
        _place(loose, table)
    near = (*(e for t in table.examined for e in t.gre), *(each.entry for each in table.strangers))
    table.unkeyed.extend(entry for entry in near if entry.destination_key is None)
    table.suspects.extend(tunnel for tunnel in table.examined if not tunnel.sound)
    return table


_Hosts = tuple[str, str, str, str]


def _hosts(entry: ListedEntry) -> _Hosts:
    """Return the sender's own address, that which is seen, and the receiver's likewise."""
    return entry.source, entry.back_destination, entry.back_source, entry.destination


def _plain(some: list[ListedEntry], entry_mark: int) -> PlainTunnel | None:
    """Return the plain tunnel that *some* entries are; None where there is more to say."""
    control = some[0]
    if control.state not in FLOWING or control.offloaded:
        return None
    if len(some) == 3 and not control.helper:
        _, out, into = some
        source = control.source
        if into.source == source:
            out, into = into, out
        if out.source != source or into.source == source:
            return None
        for entry in (out, into):
            left = entry.seconds_left
            if (
                entry.protocol != GRE or entry.source_key or entry.unreplied
                or not entry.mark & entry_mark or entry.packets == 0
                or entry.destination_key is None or entry.back_source_key is None
                or (left is not None and left < RENEWING)
            ):  # fmt: skip
                return None
        return tuple.__new__(PlainTunnel, (control, (out, into)))
    if len(some) == 2 and control.helper:
        entry = some[1]
        left = entry.seconds_left
        if (
            entry.both_ways and not entry.unreplied and entry.packets != 0
            and entry.back_packets != 0 and entry.protocol == GRE
            and not (entry.assured and left is not None and left < EXPIRING)
        ):  # fmt: skip
            return PlainTunnel(control, (entry,))
    return None


def _is_near(tunnel: PlainTunnel, wanted: Collection[tuple[str, str]]) -> bool:
    """Whether GRE between the *wanted* could be of *tunnel*, see `_place`."""
    own, seen, peer, peer_seen = _hosts(tunnel.control)
    return (own != seen and ((peer, seen) in wanted or (own, peer) in wanted)) or (
        peer != peer_seen and ((own, peer_seen) in wanted or (peer, own) in wanted)
    )


def _whole(some: Sequence[ListedEntry], entry_mark: int) -> Tunnel:
    controls = [entry for entry in some if entry.protocol != GRE]
    tunnel = Tunnel(
        controls[0].sender, controls[0].receiver, controls,
        [entry for entry in controls if entry.flowing], list(some[len(controls) :]),
    )  # fmt: skip
    tunnel.calls = _calls(tunnel, entry_mark)
    return tunnel


def _place(loose: list[ListedEntry], table: PptpTable) -> None:
    """Find for GRE that is not translated as a control connection is where it belongs."""
    outside: defaultdict[tuple[str, str], list[Tunnel]] = defaultdict(list)
    inside: defaultdict[tuple[str, str], list[Tunnel]] = defaultdict(list)
    for tunnel in table.examined:
        one, other = tunnel.originator, tunnel.responder
        for host, peer in ((one, other), (other, one)):
            if host.hidden:
                outside[peer.own, host.seen_as].append(tunnel)
                inside[host.own, peer.own].append(tunnel)
    orphans: dict[frozenset[Host], Tunnel] = {}
    for entry in loose:
        sender, receiver = entry.sender, entry.receiver
        if arriving := outside.get((sender.own, receiver.own)):
            table.strangers.append(Stranger(entry, tuple(arriving), arrives=True))
        elif leaving := inside.get((sender.own, receiver.own)):
            table.strangers.append(Stranger(entry, tuple(leaving), arrives=False))
        elif not any((*entry[3:5], *entry[7:9])):
            table.other_gre += 1
            continue
        else:
            key = frozenset((sender, receiver))
            if key not in orphans:
                orphans[key] = Tunnel(*_by_hiding(sender, receiver))
            orphans[key].gre.append(entry)
    for orphan in orphans.values():
        orphan.calls = _calls(orphan, table.entry_mark)
    table.orphans.extend(orphans.values())


def _by_hiding(one: Host, other: Host) -> tuple[Host, Host]:
    """Return the two with the hidden one first: mostly that is who dialled."""
    return (other, one) if other.hidden and not one.hidden else (one, other)


def _calls(tunnel: Tunnel, entry_mark: int) -> list[TableCall]:
    calls: list[TableCall] = []
    outward: list[ListedEntry] = []
    inward: list[ListedEntry] = []
    originator = tunnel.originator.own
    for entry in tunnel.gre:
        from_originator = entry.source == originator
        if entry.both_ways:
            forth = _leg(entry, reply=False)
            back = None if entry.unreplied else _leg(entry, reply=True)
            legs = (forth, back) if from_originator else (back, forth)
            calls.append(TableCall("helper", (entry,), *legs))
        else:
            (outward if from_originator else inward).append(entry)
    if len(outward) == len(inward) == 1:
        pair = out, into = outward[0], inward[0]
        by = "pptp-nat" if is_ours(out, entry_mark) and is_ours(into, entry_mark) else "nobody"
        forth, back = _leg(out, reply=False), _leg(into, reply=False)
        calls.append(tuple.__new__(TableCall, (by, pair, forth, back)))
        return calls
    for entry in outward:
        by = "pptp-nat" if is_ours(entry, entry_mark) else "nobody"
        calls.append(TableCall(by, (entry,), _leg(entry, reply=False), None))
    for entry in inward:
        by = "pptp-nat" if is_ours(entry, entry_mark) else "nobody"
        calls.append(TableCall(by, (entry,), None, _leg(entry, reply=False)))
    return calls


def _leg(entry: ListedEntry, *, reply: bool) -> Leg:
    if reply:
        key, other = entry.back_destination_key, entry.source_key
        return Leg(entry, key, other, entry.back_packets, entry.back_octets)
    return tuple.__new__(Leg, (
        entry, entry.destination_key, entry.back_source_key, entry.packets, entry.octets
    ))  # fmt: skip
