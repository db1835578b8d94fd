"""A ladder: hosts, their control connections through one translator, and the GRE of their calls.

What a test writes reads like a ladder diagram of RFC 2637.  Below it are real
IPv4 packets with real sequence numbers, a conntrack on paper (`Ladder.locate`)
and a data path on paper (`Legs`), which carries GRE as the translator has said,
and no other.  Every packet that leaves the router is checked: its checksums, its
headers, and that no octet of a stream is ever two things to its receiver.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from pptp_nat.core.book import Settings
from pptp_nat.core.events import CallRefused, Event, LegMarked, LegUp, Outcome, Verdict
from pptp_nat.core.packet import is_enhanced_gre, pack_enhanced_gre
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Address, Flow, Party, Placement
from tests.core.legs import Legs

from .conversation import Control, Dialled
from .hosts import EXTERNAL, Host


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
        if outcome.echoed:
            self.carry_out(self.translator.look_at_mark(outcome.connection))
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
        leg = None
        if is_enhanced_gre(octets) and len(octets) >= 8:
            key = int.from_bytes(octets[6:8])
            leg = self.legs.carried.get((sender.address, destination, key))
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


MakeLadder = Callable[..., Ladder]  #: takes what `Ladder` takes
