"""Two hosts that talk: their TCP connection, octet by octet, and the calls that they agree on.

Each host has numbers of its own and those that it has heard; what it says about
a call is said in these.  So a host's view is the oracle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pptp_nat.core.calls import Call
from pptp_nat.core.events import CallChanged, Outcome
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Flow, Party, Placement, Seat
from tests.core.wire import ACK, FIN, PSH, RST, SYN, read, tcp_packet

from .hosts import ROUTER, Host

if TYPE_CHECKING:
    from .ladder import Ladder

M = MessageType
_MASK = 0xFFFFFFFF


@dataclass
class _End:
    """One host's TCP: what it has written and what it has received."""

    start: int  #: sequence number of its first octet
    octets: bytearray = field(default_factory=bytearray)
    last: int = 0  #: where its last write began
    received: bytearray = field(default_factory=bytearray)
    early: dict[int, bytes] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    fins: int = 0  #: 1 once the other's FIN has arrived


class Control:
    """One control connection, its opener first."""

    def __init__(
        self, nat: Ladder, opener: Host, responder: Host, port: int, starts: tuple[int, int]
    ) -> None:
        self.nat = nat
        self.hosts = (opener, responder)
        self.flow = Flow(opener.address, port, responder.address, 1723)
        self.ends = (_End(starts[0]), _End(starts[1]))
        self.mark = 0
        self.helper: str | None = None
        self.is_tracked = True
        self.ip_options = self.tcp_options = b""
        self.closed = False

    @property
    def placement(self) -> Placement:
        """What conntrack says of it."""
        opener, responder = (Seat(host.address, host.seen_as) for host in self.hosts)
        return Placement(self.flow, opener, responder, self.mark, self.helper)

    def party(self, host: Host) -> Party:
        """Return which end *host* is."""
        return Party(self.hosts.index(host))

    def other(self, host: Host) -> Host:
        """Return whom *host* talks to."""
        return self.hosts[self.party(host).other]

    def written_by(self, host: Host) -> int:
        """Return how many octets *host* has written."""
        return len(self.ends[self.party(host)].octets)

    def heard_by(self, host: Host) -> bytes:
        """Return all octets that *host* has received."""
        return bytes(self.ends[self.party(host)].received)

    # Segments.

    def handshake(self) -> Control:
        """Have the TCP connection opened."""
        opener, responder = self.hosts
        self.segment(opener, -1, flags=SYN)
        self.segment(responder, -1, flags=SYN | ACK)
        self.segment(opener, 0)
        return self

    def segment(
        self, host: Host, at: int, octets: bytes = b"", *, flags: int = ACK, arrives: bool = True
    ) -> Outcome:
        """Have *host* send one segment; *at* counts octets from its first one."""
        sender = self.party(host)
        end, other = self.ends[sender], self.ends[sender.other]
        flow = self.flow.reversed() if sender else self.flow
        packet = tcp_packet(
            flow.source, flow.source_port, flow.destination, flow.destination_port,
            sequence=end.start + at,
            acknowledgement=other.start + len(end.received) + end.fins if flags & ACK else 0,
            flags=flags | (PSH if octets else 0), payload=octets,
            ip_options=self.ip_options, tcp_options=self.tcp_options,
        )  # fmt: skip

        def deliver(out: bytes) -> None:
            _assert_only_payload_changed(packet, out)
            if arrives:
                self._receive(sender, out)

        return self.nat.forward(packet, deliver, is_local=ROUTER in self.hosts)

    def _receive(self, sender: Party, packet: bytes) -> None:
        segment = read(packet)
        source, end = self.ends[sender], self.ends[sender.other]
        offset = (segment.sequence - source.start) & _MASK
        if offset >> 31:
            return  # the SYN
        for place, octet in enumerate(segment.payload, offset):
            assert octet == end.seen.setdefault(place, octet), f"octet {place} has changed"
        if segment.payload:
            end.early[offset] = segment.payload
        for begin, payload in sorted(end.early.items()):
            have = len(end.received)
            if begin <= have:
                end.received += payload[have - begin :]
                del end.early[begin]
        if segment.flags & FIN and offset + len(segment.payload) == len(end.received):
            end.fins = 1

    def elsewhere(self, host: Host, octets: bytes) -> None:
        """Have *host* send *octets* that the router never sees."""
        party = self.party(host)
        self.ends[party].octets += octets
        self.ends[party.other].received += octets

    def say(
        self, host: Host, *messages: bytes, cuts: Iterable[int] = (), arrives: bool = True
    ) -> bytes:
        """Have *host* write *messages* in one go; return what the other newly hears.

        *cuts* are where the octets go on in another segment.
        """
        end = self.ends[self.party(host)]
        end.last = len(end.octets)
        end.octets += b"".join(messages)
        return self.repeat(host, cuts=cuts, arrives=arrives)

    def repeat(
        self, host: Host, *, last: int | None = None, cuts: Iterable[int] = (), flags: int = ACK,
        arrives: bool = True,
    ) -> bytes:  # fmt: skip
        """Have *host* send the last write, or its *last* octets, (again); see `say`."""
        party = self.party(host)
        end = self.ends[party]
        begin = end.last if last is None else len(end.octets) - last
        heard = len(self.ends[party.other].received)
        places = [begin, *(begin + cut for cut in cuts), len(end.octets)]
        for start, stop in itertools.pairwise(places):
            self.segment(
                host, start, bytes(end.octets[start:stop]), arrives=arrives,
                flags=flags if stop == places[-1] else ACK,
            )  # fmt: skip
        return bytes(self.ends[party.other].received[heard:])

    def fin(self, host: Host) -> None:
        """Have *host* close its half."""
        self.segment(host, self.written_by(host), flags=FIN | ACK)
        self.closed = True

    def rst(self, host: Host) -> None:
        """Have *host* reset the connection."""
        self.segment(host, self.written_by(host), flags=RST)
        self.closed = True

    # Messages.

    def tell(
        self, host: Host, kind: MessageType, *, cuts: Iterable[int] = (), **fields: int | bytes
    ) -> dict[str, int | bytes]:
        """Have *host* send one message; return the fields that the other hears.

        All but the call IDs must be those that were sent.
        """
        sent = pack(kind, **fields)
        heard_kind, heard = unpack(self.say(host, sent, cuts=cuts))
        assert kind == heard_kind
        for name, value in unpack(sent)[1].items():
            if name not in ("call_id", "peer_call_id"):
                assert value == heard[name], name
        return heard

    def start(self) -> Control:
        """Exchange the Start-Control-Connection messages."""
        opener, responder = self.hosts
        self.tell(opener, M.START_CONTROL_CONNECTION_REQUEST, version=0x100, vendor=b"opener")
        self.tell(responder, M.START_CONTROL_CONNECTION_REPLY, version=0x100, result=1)
        return self

    def echo(self, host: Host) -> None:
        """Have *host* ask for a sign of life, and have it answered."""
        self.tell(host, M.ECHO_REQUEST, identifier=7)
        self.tell(self.other(host), M.ECHO_REPLY, identifier=7, result=1)

    def ask(
        self, host: Host, call_id: int, *, incoming: bool = False, cuts: Iterable[int] = ()
    ) -> Dialled:
        """Have *host* ask for a call."""
        return Dialled(self, host, call_id, incoming=incoming, cuts=cuts)


class Dialled:
    """One call as its two ends know it: each its own number, and what it heard of the other."""

    def __init__(
        self, control: Control, asker: Host, call_id: int, *, incoming: bool = False,
        cuts: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self.control = control
        self.asker, self.answerer = asker, control.other(asker)
        self.incoming = incoming
        self.own: dict[Host, int] = {asker: call_id}
        self.heard: dict[Host, int] = {}  #: what a host heard as the other's number
        before = len(control.nat.events)
        kind = M.INCOMING_CALL_REQUEST if incoming else M.OUTGOING_CALL_REQUEST
        self.heard[self.answerer] = _number(control.tell(asker, kind, cuts=cuts, call_id=call_id))
        self.record: Call | None = None  #: the translator's
        for event in control.nat.events[before:]:
            if isinstance(event, CallChanged) and event.was is CallState.IDLE:
                self.record = event.call

    @property
    def pns(self) -> Host:
        """Who placed an outgoing call, or answered an incoming one."""
        return self.answerer if self.incoming else self.asker

    @property
    def pac(self) -> Host:
        """The other one."""
        return self.asker if self.incoming else self.answerer

    @property
    def state(self) -> CallState:
        """The translator's opinion."""
        assert self.record is not None
        return self.record.state

    @property
    def end(self) -> End | None:
        """Why it is over, in the translator's opinion."""
        assert self.record is not None
        return self.record.end

    def answer(self, call_id: int, *, result: int = 1, cuts: Iterable[int] = ()) -> Dialled:
        """Have the other answer with a number of its own; the asker recognises its call."""
        self.own[self.answerer] = call_id
        kind = M.INCOMING_CALL_REPLY if self.incoming else M.OUTGOING_CALL_REPLY
        heard = self.control.tell(
            self.answerer, kind, call_id=call_id, peer_call_id=self.heard[self.answerer],
            result=result, cuts=cuts,
        )  # fmt: skip
        assert self.own[self.asker] == heard["peer_call_id"]
        self.heard[self.asker] = _number(heard)
        return self

    def connect(self) -> Dialled:
        """Have the PAC say that the incoming call is connected."""
        self.about(self.pac, M.INCOMING_CALL_CONNECTED)
        return self

    def about(self, host: Host, kind: MessageType, **fields: int) -> None:
        """Have *host* send a message with the Peer's Call ID; the other knows it as its own."""
        peer = self.control.other(host)
        heard = self.control.tell(host, kind, peer_call_id=self.heard[host], **fields)
        assert self.own[peer] == heard["peer_call_id"]

    def clear(self) -> Dialled:
        """Have the PNS ask for the end; the PAC knows the number."""
        heard = self.control.tell(self.pns, M.CALL_CLEAR_REQUEST, call_id=self.own[self.pns])
        assert self.heard[self.pac] == heard["call_id"]
        return self

    def disconnect(self, *, number: int | None = None) -> int:
        """Have the PAC notify the end, by *number* or its own; return what the PNS reads."""
        mine = self.own[self.pac] if number is None else number
        return _number(
            self.control.tell(self.pac, M.CALL_DISCONNECT_NOTIFY, call_id=mine, result=4)
        )

    @property
    def carries(self) -> bool:
        """Whether GRE arrives both ways, as its receivers' own calls."""
        return all(self.carries_to(host) for host in self.control.hosts)

    @property
    def is_silent(self) -> bool:
        """Whether GRE arrives neither way."""
        return not any(self.carries_to(host) for host in self.control.hosts)

    def carries_to(self, host: Host) -> bool:
        """Whether GRE that the other host sends arrives at *host*."""
        sender = self.control.other(host)
        if sender not in self.heard:
            return False
        arrival = self.control.nat.gre(sender, to=host, key=self.heard[sender])
        return arrival.reaches(host, key=self.own[host]) and arrival.source == sender.seen_as


def _number(heard: dict[str, int | bytes]) -> int:
    number = heard["call_id"]
    assert isinstance(number, int)
    return number


def _assert_only_payload_changed(before: bytes, after: bytes) -> None:
    """Nothing but payload and TCP checksum may differ, and both checksums must be right."""
    assert len(before) == len(after)
    first, second = read(before), read(after)
    assert first[:-1] == second[:-1]
    size, at = len(before) - len(first.payload), (before[0] & 15) * 4
    assert before[: at + 16] == after[: at + 16]
    assert before[at + 18 : size] == after[at + 18 : size]
