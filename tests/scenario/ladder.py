"""A ladder: hosts on both sides of a router, and what they say to each other.

`Ladder` is a router with a translator, a conntrack of its own and a data path
on paper.  It reads like the ladder diagrams of RFC 2637 section 3.2::

    nat.call(ALICE, call_id=1).to(PAC, answers=100)
    assert nat.gre(PAC, key=nat.external_id(ALICE)).reaches(ALICE, key=1)

A host's words travel as whole messages in segments of their own, unless told
otherwise; what a method returns is what the other host has heard.

Every packet that leaves the router is looked at: nothing but its payload and its
checksum may differ from what came in, both checksums are right, and no octet of a
stream is ever two things to its receiver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pptp_nat.core.book import Settings
from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import CallRefused, Event, LegUp, MessageSeen, Outcome, Verdict
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Address, Flow, Party, Placement, Seat
from tests.core.legs import Legs
from tests.core.wire import ACK, FIN, PSH, RST, SYN, read, tcp_packet

M = MessageType
Fields = dict[str, int | bytes]
PORT = 1723
DRAWN = 0x5C35  # what the draw gives while a test does not say otherwise


class Host(NamedTuple):
    """Somebody with an address."""

    name: str
    address: Address

    @property
    def inside(self) -> bool:
        """Whether the router hides it."""
        return self.address[:3] == bytes((192, 168, 77))


ALICE = Host("Alice", bytes((192, 168, 77, 10)))
BOB = Host("Bob", bytes((192, 168, 77, 11)))
HOME_PAC = Host("a PAC at home", bytes((192, 168, 77, 20)))
HOME_PAC_TOO = Host("another PAC at home", bytes((192, 168, 77, 21)))
ROUTER = Host("the router", bytes((198, 18, 7, 1)))
PAC = Host("the PAC", bytes((198, 18, 7, 2)))
OTHER_PAC = Host("another PAC", bytes((198, 18, 7, 3)))
TRAVELLER = Host("a client in the world", bytes((203, 0, 113, 5)))


class Gre(NamedTuple):
    """A GRE packet as it left the router; None: nobody carries it."""

    source: Address | None
    destination: Address | None
    key: int | None

    def reaches(self, host: Host, *, key: int) -> bool:
        """Whether *host* gets it, under *key*."""
        return (self.destination, self.key) == (host.address, key)

    @property
    def is_stray(self) -> bool:
        """Whether no call carries it."""
        return self.destination is None


class Heard(NamedTuple):
    """What became of one segment."""

    verdict: Verdict
    payload: bytes  #: empty if it was dropped or is held
    packet_id: int


class Tcp:
    """A control connection between two hosts, each octet of which a test may place itself."""

    def __init__(
        self, nat: Ladder, client: Host, server: Host, source_port: int, port: int,
        starts: tuple[int, int],
    ) -> None:  # fmt: skip
        self.nat = nat
        self.hosts = (client, server)
        self.ports = (source_port, port)
        self.starts = starts
        self.sent: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._heard: tuple[dict[int, int], dict[int, int]] = ({}, {})  #: octets by place and sender

    @property
    def flow(self) -> Flow:
        """The opener's direction, as the router sees it."""
        return Flow(self.hosts[0].address, self.ports[0], self.hosts[1].address, self.ports[1])

    def party(self, host: Host) -> Party:
        """Which end *host* is."""
        return Party(self.hosts.index(host))

    def segment(
        self, host: Host, offset: int, octets: bytes, *, flags: int = PSH | ACK,
        acknowledged: int | None = None, is_local: bool | None = None, arrives: bool = True,
        **options: bytes | int,
    ) -> Heard:  # fmt: skip
        """Send *octets*, of which the first is *host*'s octet number *offset*.

        *arrives*: False for what is lost behind the router, or means nothing to the receiver.
        """
        me = self.party(host)
        got = len(self.sent[me.other]) if acknowledged is None else acknowledged
        packet = tcp_packet(
            host.address, self.ports[me], self.hosts[me.other].address, self.ports[me.other],
            sequence=self.starts[me] + offset, flags=flags, payload=octets,
            acknowledgement=self.starts[me.other] + got if flags & ACK else 0, **options,
        )  # fmt: skip
        if is_local is None:
            is_local = ROUTER in self.hosts

        def hear(payload: bytes) -> None:
            for place, octet in enumerate(payload if arrives else b"", offset):
                before = self._heard[me].setdefault(place, octet)
                assert octet == before, f"octet {place} has changed"

        return self.nat.carry(packet, is_local=is_local, hear=hear)

    def send(self, host: Host, octets: bytes, *cuts: int, flags: int = PSH | ACK) -> bytes:
        """Send the next *octets*, cut where *cuts* say; return what arrives."""
        arrived = b""
        for begin, end in zip((0, *cuts), (*cuts, len(octets)), strict=True):
            mine = self.sent[self.party(host)]
            offset = len(mine)
            mine += octets[begin:end]
            arrived += self.segment(host, offset, octets[begin:end], flags=flags).payload
        return arrived

    def again(self, host: Host, begin: int, end: int | None = None, *, fin: bool = False) -> bytes:
        """Send octets once more; return what arrives."""
        octets = bytes(self.sent[self.party(host)][begin:end])
        return self.segment(host, begin, octets, flags=PSH | ACK | (FIN if fin else 0)).payload

    def say(self, host: Host, kind: MessageType, /, **fields: int | bytes) -> Fields:
        """Say one message; return the fields that the other host reads, {} if it gets none."""
        octets = self.send(host, pack(kind, **fields))
        return unpack(octets)[1] if octets else {}

    def finish(self, host: Host, flags: int = FIN | ACK) -> None:
        """Send a FIN or what *flags* say."""
        self.segment(host, len(self.sent[self.party(host)]), b"", flags=flags)

    def reset(self, host: Host) -> None:
        """Send a RST."""
        self.finish(host, RST | ACK)

    @property
    def followed(self) -> Connection | None:
        """The connection as the translator knows it."""
        return self.nat.translator._find(
            self.flow.source + self.flow.destination
            + self.ports[0].to_bytes(2, "big") + self.ports[1].to_bytes(2, "big")
        )[0]  # fmt: skip

    @property
    def state(self) -> ControlState | None:
        """Where it stands, None if the translator does not follow it."""
        return None if self.followed is None else self.followed.state


class Dialled:
    """A call that somebody has asked for."""

    def __init__(
        self, nat: Ladder, caller: Host, call_id: int, *, incoming: bool, over: Tcp | None
    ) -> None:
        self.nat = nat
        self.caller = caller
        self.call_id = call_id
        self.incoming = incoming
        self.tcp = over
        self.heard = -1  #: the caller's number, as the called host knows it
        self.heard_back = -1  #: the called host's number, as the caller knows it
        self.known: Call | None = None  #: the call as the translator knows it

    def to(self, called: Host, *, answers: int | None = None, result: int = 1) -> Dialled:
        """Ask *called* for the call; without *answers* it says nothing."""
        if self.tcp is None:
            self.tcp = self.nat.connect(self.caller, called)
        request, reply = (
            (M.INCOMING_CALL_REQUEST, M.INCOMING_CALL_REPLY) if self.incoming
            else (M.OUTGOING_CALL_REQUEST, M.OUTGOING_CALL_REPLY)
        )  # fmt: skip
        fields = self.tcp.say(self.caller, request, call_id=self.call_id)
        if not fields:
            return self
        self.heard = int(fields["call_id"])
        calls = self.nat.translator.book.calls
        newest = calls[max(calls)] if calls else None
        asker = self.tcp.party(self.caller)
        if newest is not None and (self.heard, asker) == (newest.seen[asker], newest.requester):
            self.known = newest
        if answers is None:
            return self
        back = self.tcp.say(called, reply, call_id=answers, peer_call_id=self.heard, result=result)
        assert self.call_id == back["peer_call_id"]
        self.heard_back = int(back["call_id"])
        if self.incoming and result == 1:
            told = self.tcp.say(
                self.caller, M.INCOMING_CALL_CONNECTED, peer_call_id=self.heard_back
            )
            assert answers == told["peer_call_id"]
        return self

    @property
    def state(self) -> CallState:
        """Where the call stands."""
        assert self.known is not None
        return self.known.state


class Ladder:
    """The router, and the network on both sides of it."""

    def __init__(self, settings: Settings | None = None, *, preserve: bool = False) -> None:
        self.drawn = [DRAWN]
        self.mark = 0
        self.helper: str | None = None
        self.external = ROUTER.address
        self.now = 1000.0
        self.translator = Translator(self.locate, self.draw, settings, preserve=preserve)
        self.translator.observe(wanted=True)
        self.legs = Legs()
        self.events: list[Event] = []
        self.held: dict[int, bytes] = {}  #: payloads that were let go later, by packet id
        self._holding: dict[int, tuple[bytes, Callable[[bytes], None]]] = {}
        self.dialled: dict[Host, Dialled] = {}
        self._ids = 0
        self._port = 40000

    def draw(self) -> int:
        """Return the next number of `drawn`, the last one for ever."""
        return self.drawn.pop(0) if len(self.drawn) > 1 else self.drawn[0]

    def locate(self, flow: Flow) -> Placement | None:
        """Know what conntrack would: openers dial from other ports than the one dialled."""
        opener = flow if flow.source_port > flow.destination_port else flow.reversed()

        def seat(address: Address) -> Seat:
            return Seat(address, self.external if Host("", address).inside else address)

        return Placement(
            opener, seat(opener.source), seat(opener.destination), self.mark, self.helper
        )

    def carry(
        self, packet: bytes, *, is_local: bool = False,
        hear: Callable[[bytes], None] = lambda _: None,
    ) -> Heard:  # fmt: skip
        """Put a packet through the router; *hear* takes the payload when it arrives."""
        self._ids += 1
        number = self._ids
        outcome = self.translator.handle(packet, self.now, packet_id=number, is_local=is_local)
        if outcome.verdict is Verdict.HOLD:
            self._holding[number] = packet, hear
        self._take(outcome)
        payload = b""
        if outcome.verdict is Verdict.ACCEPT:
            payload = _payload(packet, outcome.packet or packet)
            hear(payload)
        if outcome.echoed:
            self._take(self.translator.look_at_mark(outcome.connection))
        return Heard(outcome.verdict, payload, number)

    def _take(self, outcome: Outcome) -> None:
        self.events += outcome.events
        self.legs.carry_out(outcome)
        for packet_id, packet in outcome.released:
            before, hear = self._holding.pop(packet_id)
            self.held[packet_id] = _payload(before, packet)
            hear(self.held[packet_id])

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        while (due := self.translator.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self._take(self.translator.tick(self.now))
        self.now = end

    # What hosts do.

    def open(
        self, client: Host, server: Host, *, source_port: int | None = None, port: int = PORT,
        starts: tuple[int, int] = (1_000, 900_000), syn: bool = True,
    ) -> Tcp:  # fmt: skip
        """Open a TCP connection."""
        self._port += 1
        tcp = Tcp(self, client, server, source_port or self._port, port, starts)
        if syn:
            tcp.segment(client, -1, b"", flags=SYN)
        return tcp

    def connect(self, client: Host, server: Host, *, port: int = PORT) -> Tcp:
        """Open a control connection as far as calls."""
        tcp = self.open(client, server, port=port)
        tcp.say(client, M.START_CONTROL_CONNECTION_REQUEST, version=0x0100, host=b"client")
        tcp.say(server, M.START_CONTROL_CONNECTION_REPLY, version=0x0100, result=1)
        return tcp

    def call(self, caller: Host, *, call_id: int, over: Tcp | None = None) -> Dialled:
        """Have *caller*, as PNS, dial."""
        return self._remember(Dialled(self, caller, call_id, incoming=False, over=over))

    def ring(self, pac: Host, *, call_id: int, over: Tcp | None = None) -> Dialled:
        """Have *pac* announce an incoming call."""
        return self._remember(Dialled(self, pac, call_id, incoming=True, over=over))

    def _remember(self, dialled: Dialled) -> Dialled:
        self.dialled[dialled.caller] = dialled
        return dialled

    def gre(self, sender: Host, *, key: int, to: Host = ROUTER) -> Gre:
        """Send GRE to *to*."""
        leg = self.legs.carried.get((sender.address, to.address, key))
        return Gre(None, None, None) if leg is None else Gre(*leg[3:])

    # What a test asks.

    def external_id(self, caller: Host) -> int:
        """Return what the world knows the last call of *caller* as."""
        return self.dialled[caller].heard

    @property
    def calls(self) -> list[Call]:
        """The calls that are not gone."""
        return list(self.translator.book.calls.values())

    @property
    def counts(self) -> dict[str, int]:
        """Oddities, rewriting left out."""
        return {
            slug: count for slug, count in self.translator.book.counts.items()
            if slug not in ("rewritten", "collision_avoided")
        }  # fmt: skip

    @property
    def ends(self) -> list[str]:
        """Why calls have ended, by the names of `pptp_nat.core.states.End`."""
        return sorted(self.translator.book.ends.elements(), key=lambda end: end.name)

    @property
    def refusals(self) -> list[str]:
        """Why calls were refused."""
        return [event.reason for event in self.events if isinstance(event, CallRefused)]

    def installed(self, dialled: Dialled) -> list[Party]:
        """Return whom legs of the call were made towards, in order."""
        return [e.party for e in self.events if isinstance(e, LegUp) and e.call is dialled.known]

    def messages(self) -> list[tuple[Party, MessageType | None]]:
        """Return who said what."""
        return [(e.sender, e.kind) for e in self.events if isinstance(e, MessageSeen)]


def _payload(before: bytes, after: bytes) -> bytes:
    """Return the payload of a packet that left as *after*: all else is as it came."""
    first, second = read(before), read(after)
    assert first[:-1] == second[:-1]
    size, at = len(before) - len(first.payload), (before[0] & 15) * 4
    assert before[: at + 16] == after[: at + 16]
    assert before[at + 18 : size] == after[at + 18 : size]
    assert len(before) == len(after)
    return second.payload


def assert_nothing_left(nat: Ladder) -> None:
    """Nothing of any call is kept."""
    assert {} == nat.legs.carried
    assert {} == nat.translator.book.bindings.used()
    assert [] == list(nat.translator.book.retired)
    assert not any(nat.translator.book.deadlines.values())
