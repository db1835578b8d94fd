"""A crash at any moment changes no octet: what is on record is what the peers have seen.

The network of `test_commutes`, with a translator that dies again and again, before a
verdict or after it, and another that goes on from the records alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import event, given
from hypothesis import strategies as st

from pptp_nat.core.book import Settings
from pptp_nat.core.events import LegDown, Outcome, Verdict
from pptp_nat.core.messages import MessageType, pack, unpack
from pptp_nat.core.snapshot import call_record, connection_record, without_positions
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Leg, Party
from pptp_nat.state import records
from pptp_nat.state.contents import Contents, LegCount
from pptp_nat.state.recorder import Recorder

from .effort import effort
from .hosts import Round, conversations
from .legs import Legs
from .network import RTT, Weather, Wire
from .test_commutes import (
    ALICE,
    FLOWS,
    SERVER,
    SETTINGS,
    STARTS,
    WEATHER,
    Setting,
    doubtful,
    end,
    wire_of,
)
from .wire import ACK, read, tcp_packet

M = MessageType


@dataclass
class Memory:
    """A store in memory, which a crash may cut off in the middle of its last record."""

    kept: bytearray = field(default_factory=bytearray)
    before: bytearray = field(default_factory=bytearray)
    appends: int = 0
    full_after: int = 40  #: records are written anew that often

    @property
    def is_full(self) -> bool:
        return self.appends > self.full_after

    def append(self, octets: bytes, *, lasting: bool = True) -> None:
        self.kept += octets
        self.appends += 1

    def renew(self) -> None:
        self.before, self.kept, self.appends = self.before + self.kept, bytearray(), 0

    def renewed(self) -> None:
        self.before.clear()

    def contents(self) -> Contents:
        into = Contents()
        for part in (self.before, self.kept):
            octets = bytes(part)
            assert records.is_torn(octets, records.read(octets, into))
        return into


def legs_of(translator: Translator) -> Iterable[tuple[Leg, int, Party]]:
    for call in translator.book.calls.values():
        for party in Party:
            if (leg := call.leg(party)) is not None:
                yield leg, call.id, party


class MortalWire(Wire):
    """A network whose translator may die with each packet."""

    def __init__(self, wire: Wire, setting: Setting, weather: Weather, mortality: float) -> None:
        self.setting = setting
        self.mortality = mortality
        self.lots = random.Random(weather.seed + 1)
        self.memory = Memory()
        self.deaths = 0
        vars(self).update(vars(wire))
        self.recorder = self.successor(self.translator)

    def successor(self, translator: Translator) -> Recorder:
        recorder = Recorder(translator, self.memory)
        recorder.begin(self.now)
        return recorder

    def die(self) -> None:
        self.deaths += 1
        placement = FLOWS[self.setting.place]
        setting = self.setting
        self.expired += len(self._held)  # what was made of their last octets is decided now
        self._held.clear()  # the kernel drops what waits in a queue that nobody has
        contents = self.memory.contents()
        translator = Translator(
            lambda _: placement, lambda: setting.drawn, preserve=setting.preserve
        )
        assert [] == translator.restore(contents.snapshot(self.now), self.now)
        for party in Party:
            if placement.seat(party).inside:
                for number in setting.crowd:
                    pair = placement.seat(party).seen_as, placement.seat(party.other).own
                    translator.claim(*pair, number)
        counts = translator.book.counts
        counts.update({"cut_call_id": self.translator.book.counts["cut_call_id"]})
        self.legs = Legs()
        for leg, call, party in legs_of(translator):
            self.legs.owners[leg[:3]][call, party] = leg
        self.translator = translator
        self.recorder = self.successor(translator)

    def _arrive(self, at: int) -> None:
        together = self.lots.choice((1, 1, 2, 4))  # packets whose verdicts travel in one send
        handled: list[tuple[int, Party, bytes, bool, Outcome]] = []
        while self._path and len(handled) < together:
            sender, packet, is_data = self._path.pop(min(at, len(self._path) - 1))
            self.now += RTT / 1000
            self._ids += 1
            outcome = self.translator.handle(packet, self.now, packet_id=self._ids)
            self.recorder.note(outcome, self.now)
            self.check_short_ways(outcome)
            handled.append((self._ids, sender, packet, is_data, outcome))
            if any(isinstance(each, LegDown) for each in outcome.events):
                break  # what comes after a verdict waits for it
        fate = self.lots.random() / self.mortality if self.mortality else 9
        if fate < 0.3:  # before anything is on record
            self.die()
            return
        self.recorder.write()
        self.recorder.tick(self.now)
        if fate < 0.6:  # before the verdicts
            self.expired += sum(each[-1].verdict is Verdict.HOLD for each in handled)
            self.die()
            return
        for number, sender, packet, is_data, outcome in handled:
            self._let_go(outcome)
            if outcome.verdict is Verdict.HOLD:
                self._held[number] = sender
            elif outcome.verdict is Verdict.ACCEPT:
                self._deliver(sender, outcome.packet or packet, is_data=is_data)
            self.legs.carry_out(outcome)
        if fate < 1:
            self.die()

    def check_short_ways(self, outcome: Outcome) -> None:
        """Compare what is written for every packet with what a snapshot would say."""
        book, connection = self.translator.book, outcome.connection
        if connection is None:
            return
        known = connection_record(book, connection)
        assert records.positions(known.positions) == records.current(connection)
        assert records.connection(known) == records.connection_now(book, connection)
        for call in connection.calls:
            known_call = call_record(book, call, 7.0)
            assert records.call(known_call) == records.call_now(book, call, 7.0)

    def _let_go(self, outcome: Outcome) -> None:
        if outcome.connection is None:  # a tick's
            self.recorder.note(outcome, self.now)
            self.recorder.write()
        super()._let_go(outcome)


@given(
    SETTINGS, conversations(), st.tuples(STARTS, STARTS), WEATHER,
    st.sampled_from((0.5, 0.1, 0.02)),
)
@effort(110)
def test_a_crash_at_any_moment_changes_no_octet(
    setting: Setting, rounds: list[Round], starts: tuple[int, int], weather: Weather,
    mortality: float,
) -> None:  # fmt: skip
    """Cuts, losses, repeats, another order, and a new process every few packets."""
    calm = wire_of(setting, (7, 7), Weather())
    rough = MortalWire(wire_of(setting, starts, weather), setting, weather, mortality)
    for wire in (calm, rough):
        for spoken in rounds:
            wire.speak(spoken)
    event(f"deaths: {min(rough.deaths, 10)}")
    counts = rough.translator.book.counts
    for party in Party:
        expected, actual = calm.outputs[party], rough.outputs[party]
        assert len(expected) == len(actual)
        differing = {at for at in range(len(actual)) if expected[at] != actual[at]}
        if counts["cut_call_id"]:
            differing -= set(doubtful(rounds, party, expected))
        assert set() == differing
    for wire in (calm, rough):
        wire.finish([Party.ORIGINATOR])
        end(wire, setting)


@given(SETTINGS, conversations(), st.tuples(STARTS, STARTS), WEATHER)
@effort(40)
def test_what_is_handed_over_is_all_there_is(
    setting: Setting, rounds: list[Round], starts: tuple[int, int], weather: Weather
) -> None:
    """A successor's own snapshot is the one that it was given, octet by octet."""
    wire = wire_of(setting, starts, weather)
    for spoken in rounds:
        wire.speak(spoken)
    taken = wire.translator.snapshot()
    into = Contents()
    tallies = [LegCount(bytes(4), b"abcd", 7, 3, 1 << 40)]
    octets = b"".join(records.whole(taken, tallies))
    assert len(octets) == records.read(octets, into)
    heir = Translator(lambda _: None, lambda: 7)
    assert [] == heir.restore(into.snapshot(wire.now), wire.now)

    assert taken == heir.snapshot()
    assert tallies == list(into.carried.values())


@given(SETTINGS, conversations(), st.data())
@effort(25)
def test_octets_cut_off_anywhere_are_records_up_to_there(
    setting: Setting, rounds: list[Round], data: st.DataObject
) -> None:
    """A process that dies in the middle of a write leaves all that it wrote before."""
    wire = wire_of(setting, (7, 7), Weather())
    memory = Memory(full_after=1 << 30)
    wire = MortalWire(wire, setting, Weather(), 0)
    wire.memory = memory
    wire.recorder = wire.successor(wire.translator)
    for spoken in rounds:
        wire.speak(spoken)
    octets = bytes(memory.kept)
    cut = data.draw(st.integers(0, len(octets)))
    into = Contents()
    last = records.read(octets[:cut], into)

    assert records.is_torn(octets[:cut], last)
    heir = Translator(lambda _: None, lambda: 7)
    heir.restore(without_positions(into.snapshot(0.0)), wire.now)
    assert heir.book.last_id <= wire.translator.book.last_id
    assert {call.id for call in heir.book.calls.values()} <= set(range(heir.book.last_id + 1))


def test_a_call_that_was_refused_stays_refused() -> None:
    """A crash between the request that goes on in vain and the reply that is to say no."""
    alice, server = ALICE, SERVER
    placement = FLOWS["opener inside"]
    memory = Memory()
    settings = Settings(calls=1)
    at = [1, 1]

    def fresh() -> tuple[Translator, Recorder]:
        translator = Translator(lambda _: placement, lambda: 77, settings)
        translator.restore(memory.contents().snapshot(1.0), 1.0)
        recorder = Recorder(translator, memory)
        recorder.begin(1.0)
        return translator, recorder

    def said(sender: Party, octets: bytes) -> tuple[MessageType, dict[str, int | bytes]]:
        """Return what is heard of *octets*, of a translator that dies right after."""
        hosts = (alice, 4711, server, 1723)
        flow = hosts[2:] + hosts[:2] if sender else hosts
        packet = tcp_packet(
            *flow, sequence=at[sender], acknowledgement=at[sender.other], flags=ACK, payload=octets
        )
        at[sender] += len(octets)
        translator, recorder = fresh()
        outcome = translator.handle(packet, 1.0, packet_id=1)
        recorder.note(outcome, 1.0)
        recorder.write()
        assert outcome.verdict is Verdict.ACCEPT
        return unpack(read(outcome.packet or packet).payload)

    said(Party.ORIGINATOR, pack(M.START_CONTROL_CONNECTION_REQUEST))
    said(Party.RESPONDER, pack(M.START_CONTROL_CONNECTION_REPLY, result=1))
    said(Party.ORIGINATOR, pack(M.OUTGOING_CALL_REQUEST, call_id=7))
    _, request = said(Party.ORIGINATOR, pack(M.OUTGOING_CALL_REQUEST, call_id=8))
    assert 0 == request["call_id"]
    _, reply = said(
        Party.RESPONDER,
        pack(M.OUTGOING_CALL_REPLY, call_id=33, peer_call_id=0, result=1),
    )
    assert (8, 2, 4) == (reply["peer_call_id"], reply["result"], reply["error"])
