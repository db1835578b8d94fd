"""Real peers' octets, as captured, through the core.

The kernel's helper translated the recorded connections.  Replayed with the
numbers that it chose, the translator must produce its octets, in both
directions: the LAN's side from the world's, the world's from the LAN's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import MessageType, unpack
from pptp_nat.core.packet import GRE, TCP, Edit, edited, enhanced_gre, segment
from pptp_nat.core.states import CallState, End
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Leg, Placement, Seat

from .legs import Legs, Match, assert_empty, run_out
from .pcap import FOLDER, packets

M = MessageType
ROUTER, SERVER = bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2))
RECORDED = ("healthy_mppe", "auth_fail_mschapv2", "gre_blocked_inbound")
NT, POPTOP = bytes((10, 1, 1, 11)), bytes((10, 1, 1, 10))


def protocol(packet: bytes) -> int:
    return packet[9]


def control(name: str) -> list[tuple[float, bytes]]:
    return [(when, packet) for when, packet in packets(name) if protocol(packet) == TCP]


def payload(packet: bytes) -> bytes:
    view = segment(packet)
    assert view is not None
    return packet[view.payload_at : view.end]


def name_of(packet: bytes) -> tuple[int, ...]:
    """Return what names a segment on either side: ports, sequence number, length."""
    view = segment(packet)
    assert view is not None
    return view.source_port, view.destination_port, view.sequence, view.end - view.payload_at


class Replay:
    """The recorded router, with the translator in the helper's place."""

    def __init__(self, capture: str) -> None:
        self.capture = capture
        self.lan = {name_of(packet): packet for _, packet in control(f"{capture}-lan")}
        self.wan = {name_of(packet): packet for _, packet in control(f"{capture}-wan")}
        self.drawn = 0
        self.legs = Legs()
        self.translator = Translator(self.locate, lambda: self.drawn)
        self.now = 0.0

    def locate(self, flow: Flow) -> Placement:
        opener = flow if flow.destination == SERVER else flow.reversed()
        return Placement(opener, Seat(opener.source, ROUTER), Seat(SERVER, SERVER), 0)

    def run(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (octets that leave, octets that the helper let leave) of each segment."""
        for when, lan in control(f"{self.capture}-lan"):
            wan = self.wan[name_of(lan)]
            arriving, expected = (lan, wan) if lan[16:20] == SERVER else (wan, lan)
            # The hook sees the hosts' own addresses, and what has arrived behind them.
            view = segment(lan)
            assert view is not None
            packet = edited(lan, view, [Edit(0, payload(arriving))]) if payload(lan) else lan
            octets = payload(expected)
            if octets[8:10] == b"\x00\x07":
                self.drawn = int.from_bytes(octets[12:14], "big")
            self.now = when
            outcome = self.translator.handle(packet, when, packet_id=1)
            self.legs.carry_out(outcome)
            assert outcome.verdict is Verdict.ACCEPT
            yield payload(outcome.packet or packet), octets


@pytest.mark.parametrize("capture", RECORDED)
def test_every_octet_is_what_the_kernels_helper_made_of_it(capture: str) -> None:
    """pptp-linux and pptpd behind the helper, with the numbers that it drew."""
    replay = Replay(capture)
    rewritten = 0
    for actual, expected in replay.run():
        assert expected == actual
        rewritten += 1
    assert rewritten > 10

    run_out(replay.translator, replay.legs, replay.now)
    assert_empty(replay.translator, replay.legs)
    assert {"rewritten"} >= set(replay.translator.book.counts) - {"collision_avoided"}


@pytest.mark.parametrize("capture", RECORDED)
def test_the_legs_carry_the_recorded_gre(capture: str) -> None:
    """Every GRE packet of either side, translated by the legs that are up at its time."""
    replay = Replay(capture)
    carried: dict[Match, Leg] = {}
    for _ in replay.run():
        carried |= replay.legs.carried
    lan, wan = Counter(), Counter()
    for side, into in (("lan", lan), ("wan", wan)):
        for _, packet in packets(f"{capture}-{side}"):
            if protocol(packet) == GRE:
                view = enhanced_gre(packet, 20)
                assert view is not None
                into[packet[12:16], packet[16:20], view.key] += 1
    for source, destination, key in lan:
        if destination == SERVER:
            leg = carried[source, destination, key]
            assert wan[leg.new_source, leg.new_destination, leg.new_key]
    for source, destination, key in wan:
        if source == SERVER:
            leg = carried[source, destination, key]
            got_through = lan[leg.new_source, leg.new_destination, leg.new_key]
            assert (capture != "gre_blocked_inbound") == bool(got_through)


def test_two_clients_with_one_number_get_two() -> None:
    """Both pptp-linux clients say 16961; the server must not hear it twice."""
    replay = Replay("healthy_mppe")
    for _ in replay.run():
        pass

    calls = [call for _, call in replay.translator.book.retired]
    calls += replay.translator.book.calls.values()
    assert [16961, 16961] == [call.own[0] for call in calls]
    assert {0xBF8E, 0x88FA} == {call.seen[0] for call in calls}
    assert {0, 128} == {call.own[1] for call in calls}


@pytest.mark.parametrize("inside", [False, True])
def test_windows_nt_with_call_id_zero(inside: bool) -> None:  # noqa: FBT001 (a parameter)
    """0 on both sides, every server packet twice, padding that says UUUUUU: tcpdump's capture."""
    external = ROUTER if inside else NT
    place = Placement(Flow(NT, 3025, POPTOP, 1723), Seat(NT, external), Seat(POPTOP, POPTOP), 0)
    translator = Translator(lambda _: place, lambda: 0x4242)
    legs, states, now = Legs(), [], 0.0
    for when, packet in control("windows-nt-to-poptop-2000"):
        view = segment(packet)
        assert view is not None
        octets = payload(packet)
        if view.source == POPTOP and octets[8:10] == b"\x00\x08" and inside:
            packet = edited(packet, view, [Edit(14, b"\x42\x42")])  # noqa: PLW2901 (as the server heard)
        now = when
        outcome = translator.handle(packet, when, packet_id=1)
        legs.carry_out(outcome)
        assert outcome.verdict is Verdict.ACCEPT
        states += [call.state for call in translator.book.calls.values()]
        out = payload(outcome.packet or packet)
        if view.source == POPTOP:
            assert out == octets or out[:8] + out[16:] == octets[:8] + octets[16:]
            if octets[8:10] == b"\x00\x08":
                assert unpack(out)[1]["peer_call_id"] == 0
        elif octets[8:10] == b"\x00\x07":
            assert unpack(out)[1]["call_id"] == (0x4242 if inside else 0)
        assert packet[view.end :] == (outcome.packet or packet)[view.end :]

    assert CallState.UP in states
    (connection,) = translator.book.connections.values()
    client, server = connection.introductions
    assert client is not None
    assert server is not None
    assert ("", "Microsoft Windows NT", 0x0100) == (client.host, client.vendor, client.version)
    assert ("local", "MoretonBay", 0x0100) == (server.host, server.vendor, server.version)
    assert translator.book.messages[M.SET_LINK_INFO, inside] == 1
    run_out(translator, legs, now)
    assert translator.book.ends == {End.CLOSED: 1}
    assert_empty(translator, legs)


def test_the_captures_say_where_they_come_from() -> None:
    """The licence and the story of each file stand beside it."""
    readme = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.pcap"):
        stem = path.stem.rsplit("-", 1)[0] if path.stem.endswith(("-lan", "-wan")) else path.stem
        assert stem in readme
