"""TCP between two hosts with a translator in between, as kernels and networks do it.

`Wire` holds two senders, two receivers, a path that loses, repeats and
reorders, and the router's queue with its held packets.  Every decision is the
first and best, or, as often as the weather is bad, any.  In the end it is good.  A sender
may follow Nagle's algorithm, retransmit with other boundaries, merge what it
has sent with what it has not, and send FIN along with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pptp_nat.core.events import Outcome, Verdict
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Party

from .hosts import Host, Round, split
from .legs import Legs
from .wire import ACK, FIN, PSH, SYN, read, tcp_packet

RTT = 0.01  # seconds
_WHIMS = 3000  # decisions, then the weather is good
_PATIENCE = 20_000  # steps of good weather in which everything must have arrived
_REMEMBERED = 88  #: octets, four messages of 24 with two fields each


class Weather(NamedTuple):
    """How often something else happens than what should, and what."""

    badness: float = 0.0
    seed: int = 0
    nagle: bool = False  #: hosts send no part of what is written while octets are on their way
    handshake: bool = True  #: comes by the daemon; False: the rules let it pass


@dataclass
class _End:
    """One host's TCP: what it sends and what it has received."""

    start: int  #: sequence number of its first octet
    octets: bytearray = field(default_factory=bytearray)  #: written by the application
    writes: list[int] = field(default_factory=list)  #: where each write ended
    acknowledged: int = 0  #: octets
    sent: int = 0  #: octets
    closed: bool = False
    received: bytearray = field(default_factory=bytearray)
    early: dict[int, bytes] = field(default_factory=dict)  #: behind a gap, by offset
    seen: dict[int, int] = field(default_factory=dict)  #: every octet that ever arrived


class Wire:
    """Two hosts, the network between them, and the translator in its middle."""

    def __init__(
        self, translator: Translator, flow: Flow, starts: tuple[int, int],
        weather: Weather,
    ) -> None:  # fmt: skip
        self.translator = translator
        self.flow = flow
        self.now = 1000.0
        self.legs = Legs()
        self.hosts = (Host(), Host())
        self.ends = (_End(starts[0]), _End(starts[1]))
        self._weather = weather
        self._random = random.Random(weather.seed)
        self._left = _WHIMS if weather.badness else 0
        self._path: list[tuple[Party, bytes, bool]] = []  # sender, packet, is it data
        self._held: dict[int, Party] = {}
        self._ids = 0
        self.expired = 0  #: packets that were held until the time was over
        self._handshake()

    # What the test does.

    def speak(self, spoken: Round) -> None:
        """Have both hosts say their part and hear the other's."""
        for party, ops in enumerate(spoken):
            for op in ops:
                self._write(Party(party), self.hosts[party].write(op))
        heard = [len(end.received) for end in self.ends]
        self._run()
        if not self.expired:
            assert self.translator.book.counts["cut_call_id"] == 0, "nobody waited"
        doubtful = self.translator.book.counts["cut_call_id"] > 0
        for party, ops in enumerate(spoken):
            listener = Party(party).other
            messages = split(bytes(self.ends[listener].received[heard[listener] :]))
            assert len(ops) == len(messages)
            for op, octets in zip(ops, messages, strict=True):
                self.hosts[listener].read(op, octets, self.hosts[party], doubtful=doubtful)

    def finish(self, closers: Sequence[Party]) -> None:
        """Have *closers* close the connection."""
        for party in closers:
            self.ends[party].closed = True
        for party in closers:
            size = len(self.ends[party].octets)
            # FIN may come along with octets sent before: acknowledged ones too, but not from
            # before the eight fields that are remembered of those (`pptp_nat.core.stream`).
            again = self._whim(min(size, _REMEMBERED))
            self._send(party, size - again, again)
        self._run()

    @property
    def outputs(self) -> tuple[bytes, bytes]:
        """What arrived, by its sender."""
        return bytes(self.ends[1].received), bytes(self.ends[0].received)

    # Decisions.

    def _whim(self, below: int) -> int:
        if not self._left or below < 2:
            return 0
        self._left -= 1
        return self._random.randrange(below) if self._random.random() < self._weather.badness else 0

    def _run(self) -> None:
        for _ in range(_PATIENCE):
            choices = list(self._choices())
            if self._is_done() and self._whim(4) < 3:
                return
            choices[self._whim(len(choices))]()
        raise AssertionError("the connection is stuck")

    def _choices(self) -> Iterator[Callable[[], None]]:
        """Yield what can happen next; the first is what happens in good weather."""
        if self._path:
            yield lambda: self._arrive(0)
            at = self._whim(len(self._path))
            yield lambda: self._arrive(at)
            yield lambda: self._lose(at)
            yield lambda: self._path.append(self._path[at])
        for party in Party:
            end, other = self.ends[party], self.ends[party.other]
            if len(other.received) > end.acknowledged:
                yield lambda p=party: self._acknowledge(p)
            if end.sent < len(end.octets) and self._may_send(end):
                yield lambda p=party: self._send_new(p)
        if self._held:
            yield self._pass_time
        for party in Party:
            end = self.ends[party]
            if end.acknowledged < end.sent:
                yield lambda p=party: self._send_again(p)
            elif self._left and end.sent and not self._held:
                yield lambda p=party: self._keep_alive(p)
        yield lambda: None

    def _is_done(self) -> bool:
        """Whether all has arrived; copies may still be on their way if it whims."""
        if self._held or (self._path and self._whim(2) == 0):
            return False
        return all(len(end.octets) == end.acknowledged for end in self.ends)

    def _may_send(self, end: _End) -> bool:
        return not self._weather.nagle or end.acknowledged == end.sent

    # The hosts.

    def _write(self, party: Party, octets: bytes) -> None:
        end = self.ends[party]
        end.octets += octets
        end.writes.append(len(end.octets))

    def _handshake(self) -> None:
        if not self._weather.handshake:
            return
        opener, responder = self.ends
        self._put(Party.ORIGINATOR, opener.start - 1, SYN, b"", is_data=False)
        self._put(Party.RESPONDER, responder.start - 1, SYN | ACK, b"", is_data=False)
        while self._path:
            self._arrive(0)

    def _send_new(self, party: Party) -> None:
        end = self.ends[party]
        write = next(size for size in end.writes if size > end.sent)
        self._send(party, end.sent, self._some(end, end.sent, write - end.sent))

    def _some(self, end: _End, begin: int, usual: int) -> int:
        """Return how many octets from *begin* go into a segment: often a cut in a call-ID field."""
        most = len(end.octets) - begin
        choice = self._whim(4)
        if choice == 0:
            return min(usual, most)
        if choice == 1:
            return 1 + self._whim(min(most, 255))
        field = (13, 15)[choice - 2]
        messages = [at for at in (0, *end.writes) if begin < at + field <= len(end.octets)]
        return messages[self._whim(min(len(messages), 3))] + field - begin if messages else most

    def _send_again(self, party: Party) -> None:
        end = self.ends[party]
        begin, size = end.acknowledged, end.sent - end.acknowledged
        if self._whim(2):  # begin in the middle, or before what is acknowledged
            begin = max(0, begin - 3 + self._whim(size + 3))
        self._send(party, begin, self._some(end, begin, size))

    def _send(self, party: Party, begin: int, size: int) -> None:
        end = self.ends[party]
        flags = PSH | ACK
        if end.closed and begin + size == len(end.octets):
            flags |= FIN
        self._put(party, end.start + begin, flags, bytes(end.octets[begin : begin + size]))
        end.sent = max(end.sent, begin + size)

    def _keep_alive(self, party: Party) -> None:
        end = self.ends[party]
        self._put(party, end.start + end.sent - 1, ACK, bytes((self._whim(256),)), is_data=False)

    def _acknowledge(self, party: Party) -> None:
        """Tell *party* what the other has received; the router may see that or not."""
        self.ends[party].acknowledged = len(self.ends[party.other].received)
        if self._whim(2):
            self._put(party.other, self.ends[party.other].start + self.ends[party.other].sent,
                      ACK, b"", is_data=False)  # fmt: skip

    def _put(
        self, sender: Party, sequence: int, flags: int, payload: bytes, *, is_data: bool = True
    ) -> None:
        other = self.ends[sender.other]
        flow = self.flow.reversed() if sender else self.flow
        got = other.start + len(self.ends[sender].received)
        if other.closed and len(self.ends[sender].received) == len(other.octets):
            got += 1
        packet = tcp_packet(
            flow.source, flow.source_port, flow.destination, flow.destination_port,
            sequence=sequence, acknowledgement=got if flags & ACK else 0, flags=flags,
            payload=payload,
        )  # fmt: skip
        self._path.append((sender, packet, is_data))

    # The router.

    def _lose(self, at: int) -> None:
        del self._path[at]

    def _arrive(self, at: int) -> None:
        sender, packet, is_data = self._path.pop(at)
        self.now += RTT / 1000
        self._ids += 1
        outcome = self.translator.handle(packet, self.now, packet_id=self._ids)
        self._let_go(outcome)
        if outcome.verdict is Verdict.HOLD:
            self._held[self._ids] = sender
        elif outcome.verdict is Verdict.ACCEPT:
            self._deliver(sender, outcome.packet or packet, is_data=is_data)
        self.legs.carry_out(outcome)

    def _pass_time(self) -> None:
        due = self.translator.next_timer()
        assert due is not None
        assert due <= self.now + 1, "a held packet is let go soon"
        self.now = max(due, self.now)
        outcome = self.translator.tick(self.now)
        self.expired += len(outcome.released)
        self._let_go(outcome)
        self.legs.carry_out(outcome)

    def _let_go(self, outcome: Outcome) -> None:
        for packet_id, packet in outcome.released:
            self._deliver(self._held.pop(packet_id), packet, is_data=True)

    def _deliver(self, sender: Party, packet: bytes, *, is_data: bool) -> None:
        """Give the packet to the host that it is for."""
        segment = read(packet)
        source, end = self.ends[sender], self.ends[sender.other]
        acknowledged = (segment.acknowledgement - end.start) & 0xFFFFFFFF
        if segment.flags & ACK and end.acknowledged < acknowledged <= len(end.octets):
            end.acknowledged = acknowledged
        if not segment.payload or not is_data:
            return
        offset = (segment.sequence - source.start) & 0xFFFFFFFF
        for place, octet in enumerate(segment.payload, offset):
            assert octet == end.seen.setdefault(place, octet), f"octet {place} has changed"
        end.early[offset] = segment.payload
        for begin, payload in sorted(end.early.items()):
            have = len(end.received)
            if begin <= have:
                end.received += payload[have - begin :]
                del end.early[begin]
