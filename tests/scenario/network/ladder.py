"""A ladder: hosts, their control connections through one translator, and the GRE of their calls.

What a test writes reads like a ladder diagram of RFC 2637.  Below it are real
IPv4 packets with real sequence numbers, a conntrack on paper (`Ladder.locate`)
and a data path on paper (`Legs`), which carries GRE as the translator has said,
and no other.  Every packet that leaves the router is checked: its checksums, its
headers, and that no octet of a stream is ever two things to its receiver.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pptp_nat.core.book import Settings
from pptp_nat.core.calls import Call
from pptp_nat.core.events import (
    CallChanged,
    CallRefused,
    Event,
    LegMarked,
    LegUp,
    Outcome,
    Verdict,
)
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.packet import enhanced_gre, pack_enhanced_gre
from pptp_nat.core.states import CallState, End
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Address, Flow, Leg, Party, Placement, Seat
from pptp_nat.errors import WireError
from tests.core.legs import Legs
from tests.core.wire import ACK, FIN, PSH, RST, SYN, read, tcp_packet

M = MessageType
_MASK = 0xFFFFFFFF


class Host(NamedTuple):
    """A host, and the address that the world sees it as."""

    name: str
    address: Address
    seen_as: Address


def _host(name: str, address: str, seen_as: str = "") -> Host:
    own, seen = (bytes(map(int, text.split("."))) for text in (address, seen_as or address))
    return Host(name, own, seen)


EXTERNAL = bytes((203, 0, 113, 1))
ALICE = _host("Alice", "192.168.77.10", "203.0.113.1")
BOB = _host("Bob", "192.168.77.11", "203.0.113.1")
PAC = _host("PAC", "198.51.100.2")
OTHER_PAC = _host("the other PAC", "198.51.100.3")
DAVE = _host("Dave, a client outside", "198.51.100.44")
PUBLISHED = _host("the published PAC inside", "192.168.77.80", "203.0.113.1")
ROUTED = _host("a host that nobody hides", "192.0.2.33")
ROUTER = _host("the router itself", "203.0.113.1")


class Arrival(NamedTuple):
    """What became of a GRE packet."""

    source: Address | None
    destination: Address | None
    key: int | None

    def reaches(self, host: Host, *, key: int) -> bool:
        """Whether *host* has it, with its own number as *key*."""
        return (self.destination, self.key) == (host.address, key)

    @property
    def is_lost(self) -> bool:
        """Whether no call carried it."""
        return self.destination is None


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


class _Caller:
    """The first half of a sentence: who calls, with which number."""

    def __init__(self, nat: Ladder, host: Host, call_id: int, *, incoming: bool) -> None:
        self._nat, self._host, self._call_id, self._incoming = nat, host, call_id, incoming

    def to(self, host: Host, *, answers: int) -> Dialled:
        """Call *host* on the connection that both have, or a new one, and be answered."""
        control = self._nat.between(self._host, host)
        call = control.ask(self._host, self._call_id, incoming=self._incoming).answer(answers)
        return call.connect() if self._incoming else call


class Ladder:
    """The router with its translator, and everybody around it."""

    def __init__(
        self, settings: Settings | None = None, draw: Callable[[], int] | None = None, *,
        preserve: bool = False,
    ) -> None:  # fmt: skip
        chance = random.Random(1723)
        self.translator = Translator(
            self.locate, draw or (lambda: chance.randrange(0x10000)), settings, preserve=preserve
        )
        self.now = 1000.0
        self.legs = Legs()
        self.marks: dict[tuple[Address, Address, int], int] = {}
        self.events: list[Event] = []
        self.controls: list[Control] = []
        self.last: Outcome = Outcome()
        self._held: dict[int, Callable[[bytes], None]] = {}
        self._packets = 0
        self._port = 40_000

    # The router.

    def locate(self, flow: Flow) -> Placement | None:
        """Say who is inside, as conntrack would."""
        for control in reversed(self.controls):
            if control.is_tracked and flow in (control.flow, control.flow.reversed()):
                return control.placement
        return None

    def forward(
        self, packet: bytes, deliver: Callable[[bytes], None], *, is_local: bool = False
    ) -> Outcome:
        """Have the router decide *packet* and carry that out."""
        self._packets += 1
        number = self._packets
        self.now += 0.0001
        outcome = self.translator.handle(packet, self.now, packet_id=number, is_local=is_local)
        if outcome.verdict is Verdict.HOLD:
            self._held[number] = deliver
        self.carry_out(outcome)
        if outcome.verdict is Verdict.ACCEPT:
            deliver(packet if outcome.packet is None else outcome.packet)
        return outcome

    def carry_out(self, outcome: Outcome) -> None:
        """Do what the translator has said, but for the verdict of the packet in hand."""
        self.last = outcome
        self.events += outcome.events
        for packet_id, packet in outcome.released:
            self._held.pop(packet_id)(packet)
        self.legs.carry_out(outcome)
        for event in outcome.events:
            if isinstance(event, LegUp | LegMarked):
                self.marks[event.leg[:3]] = event.mark

    def wait(self, seconds: float) -> None:
        """Let time pass, and everything run out that does."""
        end = self.now + seconds
        while (due := self.translator.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.carry_out(self.translator.tick(self.now))
        self.now = end

    def gre(
        self, sender: Host, *, key: int = 0, to: Host | None = None, octets: bytes | None = None
    ) -> Arrival:
        """Have *sender* send GRE, to this router's address unless another host is named."""
        destination = EXTERNAL if to is None else to.seen_as
        if octets is None:
            octets = pack_enhanced_gre(key, b"\xff\x03", sequence=0)
        try:
            header = enhanced_gre(octets)
        except WireError:
            header = None
        leg: Leg | None = None
        if header is not None:
            leg = self.legs.carried.get((sender.address, destination, header.key))
        return Arrival(None, None, None) if leg is None else Arrival(*leg[3:])

    # The hosts.

    def connect(
        self, opener: Host, responder: Host, *, port: int | None = None,
        starts: tuple[int, int] = (1_000_001, 2_000_001), helper: str | None = None,
        is_tracked: bool = True, mark: int = 0, is_watched: bool = True,
    ) -> Control:  # fmt: skip
        """Open a TCP connection to port 1723; the router may not be watching yet."""
        if port is None:
            self._port += 1
            port = self._port
        control = Control(self, opener, responder, port, starts)
        control.helper, control.is_tracked, control.mark = helper, is_tracked, mark
        self.controls.append(control)
        return control.handshake() if is_watched else control

    def between(self, host: Host, other: Host) -> Control:
        """Return the latest open connection of the two; *host* opens one if there is none."""
        for control in reversed(self.controls):
            if not control.closed and {host, other} == set(control.hosts):
                return control
        return self.connect(host, other).start()

    def call(self, host: Host, *, call_id: int) -> _Caller:
        """Place an outgoing call: *host* is the PNS."""
        return _Caller(self, host, call_id, incoming=False)

    def offer(self, host: Host, *, call_id: int) -> _Caller:
        """Offer an incoming call: *host* is the PAC."""
        return _Caller(self, host, call_id, incoming=True)

    # What a test looks at.

    def external_id(self, host: Host) -> int:
        """Return the number that the world knows the latest live call of *host* by."""
        for call in reversed(self.translator.book.calls.values()):
            for party in Party:
                if call.connection.seat(party).own == host.address:
                    return call.seen[party]
        raise AssertionError(f"{host.name} has no call")

    def counted(self, slug: str) -> int:
        """Return how often something has happened."""
        return self.translator.book.counts[slug]

    @property
    def live(self) -> int:
        """How many calls there are."""
        return len(self.translator.book.calls)

    @property
    def refusals(self) -> list[str]:
        """Why calls were refused, in order."""
        return [event.reason for event in self.events if isinstance(event, CallRefused)]


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


MakeLadder = Callable[..., Ladder]  #: takes what `Ladder` takes
