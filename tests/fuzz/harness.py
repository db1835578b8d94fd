"""Never an exception other than the declared ones, never more memory than the bound.

Declared are `WireError` from what reads octets, `ExhaustedError` from a stream's
reader, and `AdapterError` that conntrack raises through `Translator.handle`.
Each input is run whole and octet by octet, and both must tell the same story.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from hypothesis import strategies as st

from pptp_nat.core.book import Settings
from pptp_nat.core.events import MessageSeen, Verdict
from pptp_nat.core.messages import HEADER, LAYOUTS, LONGEST, MAGIC, MessageType, pack
from pptp_nat.core.packet import segment
from pptp_nat.core.refused import MOST
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Placement, Seat
from pptp_nat.errors import AdapterError
from tests.core.legs import Legs, assert_empty, run_out
from tests.core.wire import read, tcp_packet

HOSTS = [bytes((192, 168, 77, 10)), bytes((192, 168, 77, 11)), bytes((198, 18, 7, 2))]
ROUTER = bytes((198, 18, 7, 1))
HISTORY = 700  # octets
OVERLAYS = 4096 * 6  # octets
SETTINGS = Settings(connections=3, calls=6, history=HISTORY, half_open=4, calls_per_connection=4)

# Octets: what a peer could say, and what it could not.

_NUMBERS = st.sampled_from((0, 1, 2, 0x0100, 0x1234, 0x3412, 0xFFFF))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Draw a message with numbers that others have too."""
    kind = draw(st.sampled_from(MessageType))
    fields = {
        name: draw(_NUMBERS) for name in ("call_id", "peer_call_id")
        if name in LAYOUTS[kind].names
    }  # fmt: skip
    if "result" in LAYOUTS[kind].names:
        fields["result"] = draw(st.sampled_from((1, 2)))
    return pack(kind, **fields)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a message of which something is wrong."""
    octets = bytearray(draw(messages()))
    for _ in range(draw(st.integers(1, 3))):
        octets[draw(st.integers(0, min(len(octets), 20) - 1))] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(0, len(octets)))])


_HEADERS = st.builds(
    HEADER.pack, st.sampled_from((0, 11, 12, 16, 220, LONGEST, LONGEST + 1, 0xFFFF)),
    st.sampled_from((1, 2)), st.just(MAGIC), st.integers(0, 17), st.sampled_from((0, 0xA196)),
)  # fmt: skip
#: A valid prefix and whatever comes then.
TALK = st.tuples(
    st.lists(messages(), max_size=8).map(b"".join),
    st.lists(mutated() | _HEADERS | st.binary(max_size=40) | messages(), max_size=4).map(b"".join),
).map(b"".join)


def pieces(octets: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut *octets*; yield (offset, piece)."""
    for at in range(0, len(octets), size):
        yield at, octets[at : at + size]


# Packets for a whole translator.


class Shot(NamedTuple):
    """A packet, or a moment."""

    sender: int
    receiver: int
    ports: tuple[int, int]
    ahead: int  #: of what was sent before, octets
    flags: int
    acknowledged: int  #: ahead of what the other side has sent
    octets: bytes
    is_local: bool
    seconds: float


_NEAR = st.one_of(st.just(0), st.just(0), st.integers(-400, 400), st.integers(0, 0xFFFFFFFF))
SHOTS = st.lists(st.builds(
    Shot,
    st.integers(0, 2), st.integers(0, 2),
    st.sampled_from(((4711, 1723), (1723, 4711), (4712, 1723))),
    _NEAR,
    st.sampled_from((0x18, 0x18, 0x18, 0x18, 0x02, 0x12, 0x19, 0x11, 0x04, 0x14, 0x00)),
    _NEAR,
    TALK, st.booleans(),
    st.sampled_from((0.0, 0.0, 0.001, 0.05, 6.0, 61.0, 200.0)),
), min_size=1, max_size=14)  # fmt: skip


class Range:
    """A translator under fire."""

    def __init__(self, insiders: int, *, deaf_every: int, preserve: bool) -> None:
        self.insiders = insiders
        self.deaf_every = deaf_every
        self.asked = 0
        self.translator = Translator(self.locate, lambda: 0x1234, SETTINGS, preserve=preserve)
        self.translator.observe(wanted=True)
        self.legs = Legs()
        self.sent: dict[tuple[object, ...], int] = {}
        self.waiting: dict[int, float] = {}
        self.now = 50.0
        self.story: list[tuple[object, ...]] = []
        self._ids = 0

    def locate(self, flow: Flow) -> Placement | None:
        """Answer as a router would, or fail as a kernel may."""
        self.asked += 1
        if self.deaf_every and self.asked % self.deaf_every == 0:
            raise AdapterError("asking conntrack", 105)
        opener = flow if flow.source_port > flow.destination_port else flow.reversed()
        seats = [
            Seat(address, ROUTER if self.insiders >> HOSTS.index(address) & 1 else address)
            for address in (opener.source, opener.destination)
        ]
        helper = "pptp" if opener.source_port == 4712 and self.insiders == 7 else None
        return Placement(opener, *seats, 0, helper)

    def fire(self, shot: Shot, size: int) -> None:
        """Send the shot's octets in pieces of *size*, each checked."""
        source, destination = HOSTS[shot.sender], HOSTS[shot.receiver]
        mine = (source, destination, *shot.ports)
        other = (destination, source, *shot.ports[::-1])
        start = self.sent.get(mine, 1000) + shot.ahead
        for at, octets in [*pieces(shot.octets, size)] or [(0, b"")]:
            packet = tcp_packet(
                source, shot.ports[0], destination, shot.ports[1], sequence=start + at,
                acknowledgement=self.sent.get(other, 1000) + shot.acknowledged,
                flags=shot.flags, payload=octets,
            )  # fmt: skip
            self.put(packet, is_local=shot.is_local)
        if not shot.ahead:
            self.sent[mine] = start + len(shot.octets) + (shot.flags & 3 != 0)
        self.wait(shot.seconds)

    def put(self, packet: bytes, *, is_local: bool = False) -> None:
        """Have one packet judged."""
        self._ids += 1
        with contextlib.suppress(AdapterError):
            outcome = self.translator.handle(
                packet, self.now, packet_id=self._ids, is_local=is_local
            )
            self.legs.carry_out(outcome)
            if outcome.verdict is Verdict.HOLD:
                self.waiting[self._ids] = self.now
            if outcome.packet is not None:
                assert segment(packet) is not None
                read(outcome.packet)
                assert len(packet) == len(outcome.packet)
            self._let_go(outcome)
            if outcome.echoed:
                self.legs.carry_out(self.translator.look_at_mark(outcome.connection))
        self.check_bounds()

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        while (due := self.translator.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            outcome = self.translator.tick(self.now)
            self.legs.carry_out(outcome)
            self._let_go(outcome)
        self.now = end
        assert all(since + 1 > self.now for since in self.waiting.values()), "held for too long"
        self.check_bounds()

    def _let_go(self, outcome) -> None:
        for packet_id, packet in outcome.released:
            del self.waiting[packet_id]
            read(packet)
        for event in outcome.events:
            if isinstance(event, MessageSeen):
                self.story.append((event.sender, event.kind, event.octets))

    def check_bounds(self) -> None:
        """Count what is kept."""
        book = self.translator.book
        assert len(book.connections) <= SETTINGS.connections
        beginnings = self.translator._beginnings
        assert len(beginnings.half_open) <= SETTINGS.half_open
        assert len(beginnings._doubted) <= SETTINGS.half_open
        # Numbers are chosen before a message is whole, so each stream may be one ahead.
        assert len(book.calls) <= SETTINGS.calls + 2 * SETTINGS.connections
        assert len(self.translator._holds) == len(self.waiting)
        for connection in book.connections.values():
            assert len(connection.fresh or ()) <= 2
            assert connection.refused is None or len(connection.refused.waiting) <= MOST
            for stream in connection.streams:
                assert len(stream.head) < LONGEST
                assert len(stream.history) <= HISTORY
                assert len(stream.overlays) <= OVERLAYS

    def end(self) -> None:
        """Let all times run out: nothing may be left."""
        self.wait(1)
        run_out(self.translator, self.legs, self.now)
        assert_empty(self.translator, self.legs)
