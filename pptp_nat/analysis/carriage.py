"""GRE of a capture: which call each packet belongs to, and whom of it is told what.

A number belongs to the call that showed it last; what came before that belongs to the call
before.  GRE of no call is a stray (`pptp_nat.analysis.strays`).  Where a file has packets
of several interfaces, a flow counts where it was seen first; what the others saw of it is
the same packets once more.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis import apart
from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.model import GreFlow
from pptp_nat.analysis.packets import NO_COLUMNS, Columns, Evidence, GrePacket, columns_of, in_turn
from pptp_nat.analysis.ppp import Ppp
from pptp_nat.analysis.sorting import DATA, PLAIN_KEPT, kind_of_payload
from pptp_nat.analysis.strays import Strays
from pptp_nat.core.messages import Role
from pptp_nat.core.packet import GRE_HEADER_SIZE

if TYPE_CHECKING:
    from pptp_nat.analysis.model import Analysis, Call
    from pptp_nat.analysis.packets import Row
    from pptp_nat.analysis.sorting import FlowKey, Special

_EARLY: Final = 3.0  #: seconds by which GRE may precede the message that explains it
_MOVED: Final = 2.0  #: seconds of silence after which a flow may count at another interface
_COPIED_WITHIN: Final = 0.05  #: seconds
_DOUBLED: Final = 0.9  #: of the packets, for a flow to be one that the capture has twice

_WAITING: Final = 1 << 20  #: packets that wait to be measured at most; 37 octets each
_SHARED: Final = 1 << 17  #: packets whose measuring is worth a second process

_EVER: Final = Evidence(-1, 0, 0.0)  #: before everything

Name = tuple[bytes, int]  #: of one direction: source and destination, key


class Owner(NamedTuple):
    """Whose a number is, from one packet of the capture on."""

    since: Evidence
    call: Call
    sender: Role  #: of the GRE with that number


class Carriage:
    """The GRE of one vantage point."""

    def __init__(
        self, analysis: Analysis, strays: Strays, measure: type[GreQuality] = GreQuality
    ) -> None:
        self._analysis, self._measure_of = analysis, measure
        self._strays = strays
        self._owners: dict[Name, list[Owner]] = {}
        self._homes: dict[Name, tuple[bytes, float]] = {}  # spot, last seen there
        self._plain: dict[tuple[int, Role], int] = {}  # by call and sender
        self._waiting: dict[int, tuple[Call, dict[Role, list[Columns]]]] = {}  # to be measured
        self._wait = 0  # packets in it
        self._latest: dict[Name, tuple[float, int]] = {}  # time and hash of the last looked at
        self.file = 0  #: index of the file that is being read

    def numbered(self, call: Call, evidence: Evidence) -> None:
        """Take note of the numbers that *call* has by now."""
        for sender in Role:
            receiver = call.end_of(sender.other)
            if receiver.call_id is None:
                continue
            name = call.end_of(sender).address + receiver.address, receiver.call_id
            owners = self._owners.setdefault(name, [])
            if owners and owners[-1].call is call:
                continue
            was_up_before = call.requested is None and not owners
            since = _EVER if was_up_before else evidence
            owners.append(Owner(since, call, sender))
            del owners[:-8]
            stray = self._strays.explained(name, since.time - _EARLY)
            if stray is not None:
                flow = self._flow(call, sender, name, stray.first)
                _count(flow, stray.packets, stray.octets, stray.first, stray.last)
                for packet in stray.kept:
                    self._show(owners[-1], packet._replace(sender=sender), name)

    def forget(self, calls: set[Call]) -> None:
        """Let go of the numbers of *calls*, which are over."""
        for name, owners in list(self._owners.items()):
            kept = [owner for owner in owners if owner.call not in calls]
            if kept:
                self._owners[name] = kept
            else:
                del self._owners[name]
                self._homes.pop(name, None)
                self._latest.pop(name, None)
        for call in calls:
            for role in Role:
                self._plain.pop((call.id, role), None)

    # One by one.

    def special(self, special: Special, *, fragments: int = 0, length: int | None = None) -> None:
        """Look at one packet of enhanced GRE."""
        packet = special.packet
        size = (packet[0] & 0x0F) * 4
        if len(packet) < size + GRE_HEADER_SIZE:
            self._analysis.counts["gre_cut"] += 1
            return
        name = packet[12:20], packet[size + 6] << 8 | packet[size + 7]
        if not self._is_home(name, special.spot, special.time):
            self._repeated(0 if special.ordinary else 1)
            return
        evidence = Evidence(self.file, special.number, special.time)
        owner = self._owner(name, evidence)
        gre = _packet(packet, size, evidence, Role.PNS if owner is None else owner.sender,
                      fragments, length)  # fmt: skip
        print_ = hash((gre.sequence, gre.acknowledgement, gre.payload))
        time, known = self._latest.get(name, (0.0, 0))
        self._latest[name] = special.time, print_
        if known == print_ and special.time - time < _COPIED_WITHIN and gre.payload:
            self._repeated(0 if special.ordinary else 1)
            return
        if owner is None:
            self._strays.keep(name, gre, count=not special.ordinary)
        else:
            self._show(owner, gre, name, ordinary=special.ordinary)

    def _show(self, owner: Owner, packet: GrePacket, name: Name, *, ordinary: bool = True) -> None:
        call, sender = owner.call, owner.sender
        if packet.payload and self._is_wanted(owner, packet.payload):
            assert call.ppp is not None
            call.ppp.feed(packet)
        if not ordinary:
            flow = self._flow(call, sender, name, packet.evidence)
            _count(flow, 1, packet.ip_length, packet.evidence, packet.evidence)
            assert flow.quality is not None
            self._settle(call)
            flow.quality.feed(packet)

    def _is_wanted(self, owner: Owner, payload: bytes) -> bool:
        if kind_of_payload(payload[:4]) != DATA:
            return True
        name = owner.call.id, owner.sender
        self._plain[name] = count = self._plain.get(name, 0) + 1
        return count <= PLAIN_KEPT

    # By the column.

    def columns(self, flows: dict[FlowKey, Columns]) -> None:
        """Take in the ordinary packets of a window, all flows of it."""
        mine: dict[int, tuple[Call, dict[Role, list[Columns]]]] = {}
        unknown: dict[Name, Columns] = {}
        for (spot, pair, key), columns in sorted(flows.items(), key=_first_number):
            name = pair, key
            if not self._is_home(name, spot, columns.first[1], columns.last[1]):
                self._repeated(len(columns))
                continue
            known = self._without_copies(columns)
            owners = self._owners.get(name)
            if owners is None:
                unknown[name] = known
                continue
            for owner, part in self._parts(name, owners, known, unknown):
                mine.setdefault(owner.call.id, (owner.call, {}))[1].setdefault(
                    owner.sender, []
                ).append(self._counted(owner, name, part))
        for name, columns in self._strays.take(unknown, self.file):
            owners = self._owners.get(name)
            if owners is None:
                self._analysis.strays_left_out += len(columns)
                continue
            owner = owners[-1]
            mine.setdefault(owner.call.id, (owner.call, {}))[1].setdefault(
                owner.sender, []
            ).append(self._counted(owner, name, columns))
        for call, by_sender in mine.values():
            self._measure(call, {role: _joined(by_sender.get(role, [])) for role in Role})

    def _parts(
        self, name: Name, owners: list[Owner], columns: Columns, unknown: dict[Name, Columns]
    ) -> list[tuple[Owner, Columns]]:
        """Return whose the packets of one flow are, in order."""
        if len(owners) == 1 and not self._is_before(columns.first[0], owners[0]):
            return [(owners[0], columns)]
        parts = []
        # each owner but the first has what comes from its packet on
        starts = [
            0 if owner.since.file < self.file else bisect_left(columns.numbers, owner.since.number)
            for owner in owners
        ]
        first = owners[0]
        if first.since.file == self.file and first.since.time - columns.first[1] < _EARLY:
            starts[0] = 0
        elif starts[0]:
            unknown[name] = columns.part(0, starts[0])
        for owner, start, stop in zip(owners, starts, [*starts[1:], len(columns)], strict=True):
            if start < stop:
                parts.append((owner, columns.part(start, stop)))
        return parts

    def _is_before(self, number: int, owner: Owner) -> bool:
        return owner.since.file == self.file and number < owner.since.number

    def _counted(self, owner: Owner, name: Name, columns: Columns) -> Columns:
        first, last = Evidence(self.file, *columns.first), Evidence(self.file, *columns.last)
        flow = self._flow(owner.call, owner.sender, name, first)
        _count(flow, len(columns), columns.octets, first, last)
        if last.time > owner.call.last.time:
            owner.call.last = last
        return columns

    def _measure(self, call: Call, columns: dict[Role, Columns]) -> None:
        """Measure packets of a call; arrays wait, since long ones cost less by the packet."""
        if not any(each.waits for each in columns.values()):
            self._settle(call)
            self._feed(call, columns)
            return
        _, waiting = self._waiting.setdefault(call.id, (call, {role: [] for role in Role}))
        for role, each in columns.items():
            if len(each):
                waiting[role].append(each)
                self._wait += len(each)
        if self._wait >= _WAITING:
            self.settle()

    def settle(self) -> None:
        """Measure all that waits."""
        calls = [call for call, _ in self._waiting.values()]
        count = apart.shares() if self._wait >= _SHARED else 1

        def measured(share: int) -> list[tuple[Ppp | None, dict[Role, GreQuality | None]]]:
            mine = calls[share::count]
            for call in mine:
                self._settle(call)
            return [
                (call.ppp, {role: flow.quality for role, flow in call.gre.items()})
                for call in mine
            ]

        for share, found in enumerate(apart.shared(measured, count)):
            for call, (ppp, qualities) in zip(calls[share::count], found, strict=True):
                call.ppp = ppp
                for role, quality in qualities.items():
                    call.gre[role].quality = quality
        self._waiting.clear()
        self._wait = 0

    def _settle(self, call: Call) -> None:
        """Measure what waits of one call."""
        if call.id in self._waiting:
            _, waiting = self._waiting.pop(call.id)
            columns = {role: in_turn(parts) for role, parts in waiting.items()}
            self._wait -= sum(map(len, columns.values()))
            self._feed(call, columns)

    @staticmethod
    def _feed(call: Call, columns: dict[Role, Columns]) -> None:
        for role in Role:
            flow = call.gre.get(role)
            if flow is not None and flow.quality is not None:
                flow.quality.feed_many(columns[role], columns[role.other])
            if len(columns[role]):
                assert call.ppp is not None
                call.ppp.feed_data(role, columns[role])

    # Whose it is.

    def _owner(self, name: Name, evidence: Evidence) -> Owner | None:
        """Return whose a packet is; a number's first owner has what came just before, too."""
        owners = self._owners.get(name)
        if owners is None:
            return None
        for owner in reversed(owners):
            if owner.since[:2] <= evidence[:2]:
                return owner
        first = owners[0]
        return first if first.since.time - evidence.time < _EARLY else None

    def _flow(self, call: Call, sender: Role, name: Name, evidence: Evidence) -> GreFlow:
        flow = call.gre.get(sender)
        if flow is None:
            flow = call.gre[sender] = GreFlow(
                call.file, name[0][:4], name[0][4:], name[1], evidence, evidence,
                call=call, sender=sender, quality=self._measure_of(call.file),
            )  # fmt: skip
            if call.ppp is None:
                call.ppp = Ppp(call.file)
        return flow

    def _is_home(self, name: Name, spot: bytes, first: float, last: float | None = None) -> bool:
        """Whether a flow counts where this was captured."""
        home, seen = self._homes.get(name, (spot, first))
        if home != spot and first - seen < _MOVED:
            return False
        self._homes[name] = spot, first if last is None else last
        return True

    def _repeated(self, packets: int) -> None:
        self._analysis.files[self.file].repeated += packets

    def _without_copies(self, columns: Columns) -> Columns:
        """Leave out every second packet of a flow that the capture has twice throughout."""
        if not columns.repeats:
            return columns
        rows = list(columns.rows())
        kept: list[Row] = []
        before: Row | None = None
        for row in rows:
            if (
                before is not None
                and row[2:] == before[2:]
                and row[0] - before[0] < _COPIED_WITHIN
            ):
                before = None
                continue
            kept.append(row)
            before = row
        copies = len(rows) - len(kept)
        if 2 * copies < _DOUBLED * len(rows):
            return columns
        self._repeated(copies)
        return columns_of(kept)


def _packet(
    packet: bytes, size: int, evidence: Evidence, sender: Role, fragments: int, length: int | None
) -> GrePacket:
    """Read an enhanced GRE header (RFC 2637 section 4.1), whatever its flags are."""
    octets = packet[size:]
    flags, claimed = octets[0] << 8 | octets[1], octets[4] << 8 | octets[5]
    at = GRE_HEADER_SIZE
    sequence = acknowledgement = None
    if flags & 0x1000 and len(octets) >= at + 4:
        sequence = int.from_bytes(octets[at : at + 4], "big")
    at += 4 * bool(flags & 0x1000)
    if flags & 0x0080 and len(octets) >= at + 4:
        acknowledgement = int.from_bytes(octets[at : at + 4], "big")
    at += 4 * bool(flags & 0x0080)
    total = length or packet[2] << 8 | packet[3] or len(packet)
    return GrePacket(
        evidence, sender, octets[6] << 8 | octets[7], flags, claimed, max(total - size - at, 0),
        sequence, acknowledgement, octets[at : at + claimed], total, fragments,
    )  # fmt: skip


def _count(flow: GreFlow, packets: int, octets: int, first: Evidence, last: Evidence) -> None:
    flow.packets += packets
    flow.octets += octets
    if first[:2] < flow.first[:2]:
        flow.first = first
    if last[:2] > flow.last[:2]:
        flow.last = last


def _joined(parts: list[Columns]) -> Columns:
    if len(parts) < 2:
        return parts[0] if parts else NO_COLUMNS
    return columns_of(sorted((row for part in parts for row in part.rows()), key=itemgetter(1)))


def _first_number(item: tuple[FlowKey, Columns]) -> int:
    return item[1].first[0]
