"""Follows what one vantage point saw: packets in, an `Analysis` that grows.

One vantage point is one file, several files of which each continues the one before, or a
live session.  Windows (`pptp_nat.analysis.sorting.Window`) come in the order of capture.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.carriage import Carriage
from pptp_nat.analysis.conversation import Conversation
from pptp_nat.analysis.fragments import Reassembler
from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.links import name_of
from pptp_nat.analysis.model import Call, CallEnd, ControlConnection, IcmpReport, Socket
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp import Ppp
from pptp_nat.analysis.sorting import FRAGMENT, ICMP
from pptp_nat.analysis.strays import Strays
from pptp_nat.analysis.tcp import Segment, segment_of
from pptp_nat.core.messages import PORT, Role
from pptp_nat.core.packet import ACK, GRE, SYN, TCP
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from pptp_nat.analysis.model import Analysis, GreFlow
    from pptp_nat.analysis.sorting import Special, Window

# Implementation constants.
_MOST_CONNECTIONS: Final = 20_000
_MOST_CALLS: Final = 20_000
_ICMP_KEPT: Final = 200
_MOVED: Final = 2.0  #: seconds of silence after which a flow may count at another interface
_CHALLENGE: Final = b"\xc2\x23\x01"  #: CHAP, Challenge

_IP: Final = struct.Struct("!BxHxxHxB").unpack_from
_ICMP: Final = struct.Struct("!BBxxHH").unpack_from
_PORTS: Final = struct.Struct("!HH").unpack_from

#: Addresses and ports, the smaller first.
_Ends = tuple[tuple[bytes, int], tuple[bytes, int]]


class Follower:
    """Reads the windows of one vantage point."""

    def __init__(
        self, analysis: Analysis, ports: frozenset[int] = frozenset((PORT,)),
        measure: type[GreQuality] = GreQuality,
    ) -> None:  # fmt: skip
        """*measure* is what each direction of GRE is measured with."""
        self.analysis = analysis
        self._ports = ports
        self._strays = Strays(analysis, self)
        self._carriage = Carriage(analysis, self._strays, measure)
        self._reassembler = Reassembler()
        self._conversations: dict[_Ends, Conversation] = {}
        self._between: dict[bytes, list[Conversation]] = {}  # by both addresses
        self._homes: dict[tuple[_Ends, bool], tuple[bytes, float]] = {}
        self._file = 0

    def begin(self, file: int) -> None:
        """Go on with another file, of which `Analysis.files` knows."""
        self._file = self._carriage.file = file

    def take(self, window: Window) -> None:
        """Read a window."""
        file = self.analysis.files[self._file]
        file.packets += window.packets
        file.octets += window.octets
        file.cut += window.cut
        file.damage = window.damage
        if window.first is not None and window.last is not None:
            file.first = window.first if file.first is None else min(file.first, window.first)
            file.last = window.last if file.last is None else max(file.last, window.last)
        for link in sorted(window.links):
            if name_of(link) not in file.links:
                file.links.append(name_of(link))
        self.analysis.counts.update(window.counts)
        for special in window.specials:
            self._special(special)
        self._carriage.columns(window.flows)

    def finish(self) -> None:
        """Take note that nothing more comes."""
        for conversation in self._conversations.values():
            conversation.finish()
        self._reassembler.finish()
        if self._reassembler.lost:
            self.analysis.counts["fragments_lost"] += self._reassembler.lost
        self._carriage.settle()
        for call in self.analysis.calls:
            for flow in call.gre.values():
                if flow.quality is not None:
                    flow.quality.settle()

    def forget(self, before: float) -> tuple[list[int], list[int]]:
        """Let go of what ended before a time; return the ids of connections and of calls.

        A connection that is open stays, however silent it is.
        """
        analysis = self.analysis
        gone = {
            connection
            for connection in analysis.control_connections
            if connection.last.time < before
            and connection.state is not ControlState.OPEN
            and all(call.last.time < before for call in connection.calls)
        }
        calls = {
            call
            for call in analysis.calls
            if call.connection in gone or (call.connection is None and call.last.time < before)
        }
        if gone:
            for ends, conversation in list(self._conversations.items()):
                if conversation.connection in gone:
                    del self._conversations[ends]
                    self._homes.pop((ends, True), None)
                    self._homes.pop((ends, False), None)
            self._between = {
                both: kept
                for both, each in self._between.items()
                if (kept := [c for c in each if c.connection not in gone])
            }
            analysis.control_connections = [
                each for each in analysis.control_connections if each not in gone
            ]
        if calls:
            self._carriage.forget(calls)
            analysis.calls = [call for call in analysis.calls if call not in calls]
        self._strays.forget(before)
        return [each.id for each in gone], [each.id for each in calls]

    def _special(self, special: Special) -> None:
        _, _, fragment, protocol = _IP(special.packet)
        if fragment & FRAGMENT:
            whole = self._reassembler.take(special.packet, special.time)
            if whole is None:
                return
            special = special._replace(packet=whole.packet)
            if protocol == GRE:
                self.analysis.counts["gre"] += 1
                self._carriage.special(special, fragments=whole.fragments, length=whole.length)
                return
        if protocol == GRE:
            self._carriage.special(special)
        elif protocol == TCP:
            self._tcp(special)
        elif protocol == ICMP and not fragment & FRAGMENT:
            self._icmp(special)

    def _tcp(self, special: Special) -> None:
        segment = segment_of(special.packet)
        if segment is None:
            self.analysis.counts["tcp_cut"] += 1
            return
        evidence = Evidence(self._file, special.number, special.time)
        source = segment.source, segment.source_port
        destination = segment.destination, segment.destination_port
        if self._ports.isdisjoint((source[1], destination[1])):
            return  # put together of fragments
        is_first = source <= destination
        ends = (source, destination) if is_first else (destination, source)
        home, seen = self._homes.get((ends, is_first), (special.spot, special.time))
        if home != special.spot and special.time - seen < _MOVED:
            self.analysis.files[self._file].repeated += 1
            return
        self._homes[ends, is_first] = special.spot, special.time
        conversation = self._conversations.get(ends)
        if segment.flags & SYN and not segment.flags & ACK and conversation is not None:
            if conversation.is_begun_anew_by(segment):
                conversation.end(evidence)
                conversation = None
        elif conversation is None and not segment.payload and not segment.flags & SYN:
            # a connection that is seen to do nothing but end tells nothing
            self.analysis.counts["tcp_of_no_connection"] += 1
            return
        if conversation is None:
            conversation = self._converse(ends, segment, evidence)
            if conversation is None:
                return
        opener = conversation.connection.ends[Party.ORIGINATOR]
        is_opener = (opener.address, opener.port) == source
        party = Party.ORIGINATOR if is_opener else Party.RESPONDER
        if not conversation.take(party, segment, evidence):
            self.analysis.files[self._file].repeated += 1

    def _converse(
        self, ends: _Ends, segment: Segment, evidence: Evidence
    ) -> Conversation | None:
        """Begin to follow a control connection."""
        if len(self.analysis.control_connections) >= _MOST_CONNECTIONS:
            self.analysis.left_out += 1
            return None
        source = Socket(segment.source, segment.source_port)
        destination = Socket(segment.destination, segment.destination_port)
        if segment.flags & SYN:
            from_opener = not segment.flags & ACK
        else:
            from_opener = destination.port in self._ports
        connection = ControlConnection(
            next(self.analysis.connection_ids), self._file,
            (source, destination) if from_opener else (destination, source),
            evidence, evidence, under_way=not segment.flags & SYN,
        )  # fmt: skip
        self.analysis.control_connections.append(connection)
        conversation = self._conversations[ends] = Conversation(connection, self)
        between = self._between.setdefault(_both(source.address, destination.address), [])
        between.append(conversation)
        return conversation

    # What conversations and strays ask of a `pptp_nat.analysis.calls.Keeper`.

    def open_call(
        self, connection: ControlConnection | None, pns: CallEnd, pac: CallEnd, evidence: Evidence
    ) -> Call:
        """Return a new call."""
        call = Call(
            next(self.analysis.call_ids), self._file, connection, pns, pac, evidence, evidence,
            ppp=Ppp(self._file),
        )  # fmt: skip
        if len(self.analysis.calls) < _MOST_CALLS:
            self.analysis.calls.append(call)
            if connection is not None:
                connection.calls.append(call)
        else:
            self.analysis.left_out += 1
        return call

    def numbered(self, call: Call, evidence: Evidence) -> None:
        """Take note that a number of *call* has become known."""
        self._carriage.numbered(call, evidence)

    def orphan(self, own: bytes, other: bytes, role: Role, number: int) -> Call | None:
        """Return a call without connection in which *own* has *role* and *number*."""
        for call in reversed(self.analysis.calls):
            end = call.end_of(role)
            if (
                call.connection is None
                and (end.address, end.call_id) == (own, number)
                and call.end_of(role.other).address == other
            ):
                return call
        return None

    def introduce(self, one: GreFlow, other: GreFlow | None) -> None:
        """Make a call of two strays, or one of them the missing half of a call."""
        conversations = [
            each
            for each in self._between.get(_both(one.source, one.destination), ())
            if each.connection.under_way and each.connection.state is not ControlState.CLOSED
        ]
        if other is None:
            self._complete(one, conversations)
            return
        waiting = [each for each in conversations if not each.connection.calls]
        conversation = waiting[0] if len(waiting) == 1 else None
        if conversation is not None:
            is_to_pac = conversation.connection.ends[Party.RESPONDER].address == one.destination
        else:
            is_to_pac = _CHALLENGE not in b"".join([p.payload[:5] for p in one.kept]) and (
                one.first[:2] < other.first[:2]
                or _CHALLENGE in b"".join([p.payload[:5] for p in other.kept])
            )
        to_pac, to_pns = (one, other) if is_to_pac else (other, one)
        call = self.open_call(
            None if conversation is None else conversation.connection,
            CallEnd(to_pns.destination, to_pns.key), CallEnd(to_pac.destination, to_pac.key),
            min(one.first, other.first),
        )  # fmt: skip
        call.state = CallState.UP
        call.roles_guessed = conversation is None
        if conversation is not None:
            conversation.calls.adopt(call, Party.ORIGINATOR)
        self._carriage.numbered(call, call.first)

    def _complete(self, flow: GreFlow, conversations: list[Conversation]) -> None:
        """Give a call the number that a stray of it shows, if only one call wants one."""
        wanting = [
            (each, call, end)
            for each in conversations
            for call in each.connection.calls
            for end in (call.pns, call.pac)
            if end.call_id is None and end.address == flow.destination
        ]
        if len(wanting) == 1:
            conversation, call, end = wanting[0]
            end.call_id = flow.key
            opener = conversation.connection.ends[Party.ORIGINATOR].address
            is_opener = call.pns.address == opener
            conversation.calls.adopt(call, Party.ORIGINATOR if is_opener else Party.RESPONDER)
            self._carriage.numbered(call, flow.first)

    def _icmp(self, special: Special) -> None:
        """Read an ICMP error about what is of interest (RFC 792)."""
        packet = special.packet
        at = (packet[0] & 0x0F) * 4
        inner = at + 8
        if len(packet) < inner + 28 or len(self.analysis.icmp) >= _ICMP_KEPT:
            return
        kind, code, _, mtu = _ICMP(packet, at)
        first, _, _, protocol = _IP(packet, inner)
        payload = inner + (first & 0x0F) * 4
        if protocol not in (TCP, GRE) or len(packet) < payload + 8:
            return
        ports = _PORTS(packet, payload) if protocol == TCP else None
        if ports is not None and self._ports.isdisjoint(ports):
            return
        self.analysis.icmp.append(IcmpReport(
            Evidence(self._file, special.number, special.time), packet[12:16], kind, code,
            protocol, packet[inner + 12 : inner + 16], packet[inner + 16 : inner + 20], ports,
            packet[payload + 6] << 8 | packet[payload + 7] if protocol == GRE else None,
            mtu if (kind, code) == (3, 4) and mtu else None,
        ))  # fmt: skip


def _both(one: bytes, other: bytes) -> bytes:
    return min(one, other) + max(one, other)
