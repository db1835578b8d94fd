"""How captures are followed: whatever happened to the packets, the story is the same."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.diagnosis import conclude
from pptp_nat.analysis.follower import Follower
from pptp_nat.analysis.formats import Interface, Record
from pptp_nat.analysis.items import analysis_item
from pptp_nat.analysis.links import RAW
from pptp_nat.analysis.model import Analysis, CaptureFile
from pptp_nat.analysis.sorting import Sorter
from pptp_nat.core.messages import MessageType, Role, pack
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Party
from tests.core.wire import SYN, ip_packet, tcp_packet

from . import writers
from .story import ALICE, BOB, OTHER_SERVER, ROUTER, SERVER, Story

M = MessageType
PNS, PAC = Role.PNS, Role.PAC
Packets = list[tuple[float, bytes]]


def follow(
    packets: Packets, *, window: int = 10**9, interfaces: list[int] | None = None
) -> Analysis:
    """Read *packets* as a capture, *window* at a time, each from the interface given for it."""
    analysis = Analysis(files=[CaptureFile("story")])
    follower, sorter, link = Follower(analysis), Sorter(), Interface(RAW, 1e6)
    for number, (time, packet) in enumerate(packets, 1):
        place = interfaces[number - 1] if interfaces else 0
        sorter.take(number, Record(time, place, packet, len(packet)), link)
        if number % window == 0:
            follower.take(sorter.finish())
    follower.take(sorter.finish())
    follower.finish()
    conclude(analysis)
    return analysis


def gist(analysis: Analysis) -> list[Any]:
    """Tell who called whom and what became of it."""
    return [
        (
            call.pns.address, call.pns.call_id, call.pac.address, call.pac.call_id, call.serial,
            call.state, call.end, call.incoming,
            {role: flow.packets for role, flow in call.gre.items()},
            call.ppp and [phase.state for phase in call.ppp.phases],
        )
        for call in analysis.calls
    ]  # fmt: skip


def said(analysis: Analysis) -> list[tuple[Party, str, dict[str, int | str]]]:
    return [
        (entry.sender, entry.title, dict(entry.fields))
        for connection in analysis.control_connections
        for entry in connection.ladder
        if entry.kind is not None
    ]


def conversation(octets: dict[bool, bytes], cuts: dict[bool, list[int]]) -> Packets:
    """Cut what two parties say into segments; both speak in turn, and acknowledge."""
    story = Story()
    tcp = story.open(ALICE, SERVER)
    parts = {
        who: [octets[who][a:b] for a, b in zip([0, *cut], [*cut, len(octets[who])], strict=True)]
        for who, cut in cuts.items()
    }
    for index in range(max(map(len, parts.values()))):
        for who, host in ((True, ALICE), (False, SERVER)):
            if index < len(parts[who]) and parts[who][index]:
                tcp.segment(host, parts[who][index])
    return story.packets


OPENERS = (
    pack(M.START_CONTROL_CONNECTION_REQUEST, version=0x100, host=b"a", vendor=b"b")
    + pack(M.OUTGOING_CALL_REQUEST, call_id=7, serial=3, window=64, phone=b"0123")
    + pack(M.ECHO_REQUEST, identifier=5)
)
RESPONDERS = (
    pack(M.START_CONTROL_CONNECTION_REPLY, version=0x100, result=1, vendor=b"c")
    + pack(M.OUTGOING_CALL_REPLY, call_id=9, peer_call_id=7, result=1, window=32)
    + pack(M.ECHO_REPLY, identifier=5, result=1)
)
SAID = {True: OPENERS, False: RESPONDERS}
WHOLE = conversation(SAID, {True: [], False: []})


def by_party(analysis: Analysis) -> list[list[Any]]:
    return [[each for each in said(analysis) if each[0] is party] for party in Party]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, len(OPENERS) - 1), max_size=8, unique=True).map(sorted),
    st.lists(st.integers(1, len(RESPONDERS) - 1), max_size=8, unique=True).map(sorted),
    st.randoms(use_true_random=False),
)
def test_cuts_reordering_and_repeats_change_nothing_of_what_was_said(
    own: list[int], others: list[int], chance: random.Random
) -> None:
    packets = conversation(SAID, {True: own, False: others})
    head, body = packets[:3], packets[3:]
    shuffled = sorted(range(len(body)), key=lambda i: i + chance.randrange(4))
    jumbled = [*head, *((head[-1][0] + 0.3 * n, body[i][1]) for n, i in enumerate(shuffled, 1))]
    again = chance.sample(body, min(3, len(body)))
    jumbled += [(jumbled[-1][0] + 0.3 * n, packet) for n, (_, packet) in enumerate(again, 1)]

    assert by_party(follow(jumbled)) == by_party(follow(WHOLE))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60))
def test_it_does_not_matter_where_windows_end(window: int) -> None:
    story = Story()
    call = story.dial(ALICE, SERVER).link().prove().network()
    call.chat(20).hang_up()
    whole = follow(story.packets)

    assert gist(follow(story.packets, window=window)) == gist(whole)


def test_a_copy_by_the_capture_is_told_from_a_retransmission() -> None:
    """The copy is the very packet, at once; TCP takes a fifth of a second at least."""
    story = Story()
    story.dial(ALICE, SERVER).link()
    copied = [each for time, packet in story.packets for each in (
        (time, packet), (time + 0.0001, packet))]  # fmt: skip
    found = follow(copied)
    (connection,) = found.control_connections

    assert gist(found) == gist(follow(story.packets))
    assert [each.retransmissions for each in connection.trouble] == [0, 0]
    assert found.files[0].repeated == len(story.packets)

    late = [*story.packets[:4], (story.packets[3][0] + 0.25, story.packets[3][1])]
    assert [t.retransmissions for t in follow(late).control_connections[0].trouble] == [156, 0]


def test_the_same_packets_on_two_interfaces_count_once() -> None:
    """A bridge, or a router without NAT."""
    story = Story()
    story.dial(ALICE, SERVER).link().prove().network().chat(30)
    both = [each for time, packet in story.packets for each in (
        (time, packet), (time + 0.0001, packet))]  # fmt: skip
    found = follow(both, interfaces=[1, 2] * len(story.packets))

    assert gist(found) == gist(follow(story.packets))
    assert found.files[0].repeated == len(story.packets)
    assert {0} == {f.quality.duplicates for c in found.calls for f in c.gre.values() if f.quality}


def test_octets_that_were_never_captured_lose_one_message_and_no_more() -> None:
    """The receiver has acknowledged them, so they are not to be waited for."""
    story = Story()
    call = story.dial(ALICE, SERVER)
    call.tcp.echo(ALICE)
    call.tcp.echo(ALICE, identifier=8)
    echo = next(i for i, (_, p) in enumerate(story.packets) if p[49:50] == b"\x05")
    found = follow([each for i, each in enumerate(story.packets) if i != echo])
    (connection,) = found.control_connections

    assert connection.trouble[Party.ORIGINATOR].missing == 16
    assert {t for _, t, f in said(found) if f.get("identifier") == 8} == {
        "Echo-Request", "Echo-Reply"
    }  # fmt: skip
    assert gist(found)[0][1:4] == (1, SERVER.address, 100)


def test_a_capture_begun_in_mid_call_finds_the_call_by_what_its_gre_acknowledges() -> None:
    story = Story()
    calls = [
        story.dial(ALICE, SERVER, call_id=7 + n, answers=100 + n).link().prove().network()
        for n in range(2)
    ]
    calls[0].chat(5)
    calls[1].chat(50)
    begin = story.now
    for _ in range(10):
        for call in calls:
            call.chat(1)
    calls[1].hang_up()
    packets = [each for each in story.packets if each[0] > begin]
    found = follow(packets)
    pairs = [(call.pns.call_id, call.pac.call_id, call.state) for call in found.calls]

    assert sorted(pairs) == [(7, 100, CallState.UP), (8, 101, CallState.GONE)]
    assert found.strays == []


def test_two_calls_in_mid_air_are_told_apart_by_their_sequence_numbers() -> None:
    """Both run between the same two hosts, as outside a NAT."""
    story = Story()
    one = story.dial(ROUTER, SERVER, call_id=5, answers=100, serial=1).chat(40)
    two = story.dial(ROUTER, SERVER, call_id=6, answers=101, serial=2).chat(200)
    begin = story.now
    for _ in range(20):
        one.chat(1)
        two.chat(1)
    found = follow([each for each in story.packets if each[0] > begin])

    assert {(c.pns.call_id, c.pac.call_id) for c in found.calls} == {(5, 100), (6, 101)}
    assert found.strays == []
    assert all(call.connection is None for call in found.calls)


def test_a_connection_met_in_mid_air_is_tied_to_the_call_that_it_clears() -> None:
    story = Story()
    call = story.dial(ALICE, SERVER, call_id=7, answers=100).link().prove().network()
    begin = story.now
    call.chat(10)
    call.tcp.echo(ALICE)
    call.chat(10).hang_up()
    found = follow([each for each in story.packets if each[0] > begin])

    assert [(c.pns.call_id, c.pac.call_id, c.state) for c in found.calls] == [
        (7, 100, CallState.GONE)
    ]  # fmt: skip
    assert found.calls[0].connection is found.control_connections[0]
    assert found.control_connections[0].under_way


def test_a_number_used_again_belongs_to_the_call_that_showed_it_last() -> None:
    story = Story()
    first = story.dial(ALICE, SERVER, call_id=7, answers=100).link()
    first.chat(5).hang_up()
    story.wait(5)
    story.dial(ALICE, SERVER, call_id=7, answers=100).link().chat(20)
    found = follow(story.packets)

    assert [sum(f.packets for f in call.gre.values()) for call in found.calls] == [16, 44]


def test_gre_of_nobodys_number_is_a_stray() -> None:
    story = Story()
    call = story.dial(ALICE, SERVER, call_id=7, answers=100).link()
    call.gre(PAC, b"\xff\x03\xc0\x21\x01\x01\x00\x04", key=4242)
    found = follow(story.packets)

    assert [(flow.key, flow.packets) for flow in found.strays] == [(4242, 1)]
    assert len(found.calls) == 1


def test_gre_that_comes_before_the_reply_belongs_to_the_call() -> None:
    """It overtakes the reply on its way."""
    story = Story()
    call = story.dial(ALICE, SERVER, call_id=7, answers=100)
    call.link()
    packets = list(story.packets)
    reply = next(i for i, (_, p) in enumerate(packets) if p[9] == 6 and p[49:50] == b"\x08")
    early = next(i for i, (_, p) in enumerate(packets) if p[9] == 47)
    packets[reply], packets[early] = (
        (packets[reply][0], packets[early][1]), (packets[early][0], packets[reply][1])
    )  # fmt: skip
    found = follow(packets)

    assert found.strays == []
    assert gist(found)[0][-2:] == gist(follow(story.packets))[0][-2:]


def test_fragments_of_gre_are_put_together() -> None:
    story = Story()
    call = story.dial(ALICE, SERVER).link().prove().network()
    call.seal(PNS, 1400)
    time, packet = story.packets.pop()
    body = packet[20:]
    parts = [
        ip_packet(ALICE.address, SERVER.address, 47, body[a:b], fragment=flag | a // 8)
        for a, b, flag in ((0, 800, 0x2000), (800, len(body), 0))
    ]
    for part in reversed(parts):
        story.packets.append((time, part))
    found = follow(story.packets)
    flow = found.calls[0].gre[PNS]
    assert flow.quality is not None

    assert flow.quality.fragmented == 1
    assert flow.quality.lost == 0
    assert found.counts["fragments"] == 2


def test_a_flood_of_first_fragments_is_bounded() -> None:
    packets = [
        (1.0 + n / 1e4, struct.pack("!BBHHHBBH", 0x45, 0, 820, n, 0x2000, 64, 47, 0)
         + ALICE.address + SERVER.address + bytes(800))
        for n in range(2000)
    ]  # fmt: skip
    found = follow(packets)

    assert found.counts["fragments_lost"] == 2000


def test_icmp_about_gre_and_port_1723_is_kept() -> None:
    story = Story()
    call = story.dial(ALICE, SERVER).link()
    quoted = next(p for _, p in story.packets if p[9] == 47)[:28]
    too_big = struct.pack("!BBHHH", 3, 4, 0, 0, 1300)
    story.put(ip_packet(ROUTER.address, ALICE.address, 1, too_big + quoted))
    other = ip_packet(ALICE.address, SERVER.address, 17, bytes(8))
    story.put(ip_packet(ROUTER.address, ALICE.address, 1, struct.pack("!BBHI", 3, 1, 0, 0) + other))
    found = follow(story.packets)
    (report,) = found.icmp

    assert (report.mtu, report.key, report.words) == (
        1300, call.ids[PAC], "fragmentation needed (MTU 1300)"
    )  # fmt: skip


def test_an_incoming_call_is_followed() -> None:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(SERVER, M.INCOMING_CALL_REQUEST, call_id=50, serial=9, dialed=b"12", dialing=b"34")
    tcp.say(ALICE, M.INCOMING_CALL_REPLY, call_id=7, peer_call_id=50, result=1, window=8)
    tcp.say(SERVER, M.INCOMING_CALL_CONNECTED, peer_call_id=7, window=16, speed=64000)
    found = follow(story.packets)
    (call,) = found.calls

    assert (call.incoming, call.state, call.phone, call.dialing) == (True, CallState.UP, "12", "34")
    assert (call.pns.call_id, call.pac.call_id, call.pns.window, call.pac.window) == (7, 50, 8, 16)


def test_a_refused_call_and_an_unanswered_one() -> None:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=7)
    tcp.say(SERVER, M.OUTGOING_CALL_REPLY, peer_call_id=7, result=2, error=4, cause=38)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=8)
    refused, unanswered = follow(story.packets).calls

    assert (refused.end, refused.reply and refused.reply.words) == (
        End.REFUSED, "general error (no resource)"
    )  # fmt: skip
    assert refused.pac.call_id is None
    assert (unanswered.state, unanswered.reply) == (CallState.REQUESTED, None)


@pytest.mark.parametrize("number", [1, 0x0100], ids=["as it is", "with its octets swapped"])
def test_a_disconnect_notify_with_the_pns_number_ends_the_right_call(number: int) -> None:
    story = Story()
    call = story.dial(ALICE, SERVER, call_id=1, answers=100)
    call.tcp.say(SERVER, M.CALL_DISCONNECT_NOTIFY, call_id=number, result=4)
    (found,) = follow(story.packets).calls

    assert (found.end, found.wrong_notify) == (End.DISCONNECTED, number)


def test_a_new_syn_with_the_same_ports_begins_another_connection() -> None:
    story = Story()
    story.dial(ALICE, SERVER, call_id=7)
    packets = list(story.packets)
    port = packets[0][1][20] << 8 | packets[0][1][21]
    packets.append((packets[-1][0] + 60, tcp_packet(
        ALICE.address, port, SERVER.address, 1723, sequence=777_777, flags=SYN
    )))  # fmt: skip
    found = follow(packets)

    assert len(found.control_connections) == 2
    assert found.calls[0].end is End.REPLACED


def test_both_sides_of_a_nat_are_paired_by_serial_number_when_the_isn_is_changed() -> None:
    """Some firewalls choose initial sequence numbers anew."""
    inside, outside = Story(), Story()
    inside.dial(ALICE, SERVER, call_id=7, answers=100, serial=31)
    inside.dial(BOB, SERVER, call_id=7, answers=101, serial=32)
    outside.now += 0.001
    outside.dial(ROUTER, SERVER, call_id=700, answers=100, serial=31)
    outside.dial(ROUTER, SERVER, call_id=701, answers=101, serial=32)
    other = [(t, p.replace((1000).to_bytes(4, "big"), (5000).to_bytes(4, "big"))) for t, p in
             outside.packets]  # fmt: skip
    analysis = Analysis(files=[CaptureFile("inside"), CaptureFile("outside", vantage=1)])
    for index, packets in enumerate((inside.packets, other)):
        follower, sorter = Follower(analysis), Sorter()
        follower.begin(index)
        for number, (time, packet) in enumerate(packets, 1):
            sorter.take(number, Record(time, 0, packet, len(packet)), Interface(RAW, 1e6))
        follower.take(sorter.finish())
    conclude(analysis)

    assert {
        (t.inside.pns.address, t.outside.pns.call_id, t.hidden) for t in analysis.translations
    } == {(ALICE.address, 700, PNS), (BOB.address, 701, PNS)}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([6, 47, 1]), st.binary(max_size=80)), max_size=20))
def test_no_packets_make_the_follower_fail(packets: list[tuple[int, bytes]]) -> None:
    story = Story()
    call = story.dial(ALICE, SERVER)
    for protocol, body in packets:
        story.put(ip_packet(ALICE.address, SERVER.address, protocol, body))
        if protocol == 6:
            call.tcp.segment(ALICE, body)
        if protocol == 47:
            call.gre(PAC, body)
    found = follow(story.packets)

    assert len(found.calls) <= 2
    analysis_item(found)


def test_hostile_numbers_of_calls_and_strays_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pptp_nat.analysis.follower._MOST_CALLS", 10)
    monkeypatch.setattr("pptp_nat.analysis.strays._MOST", 10)
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    for number in range(50):
        tcp.segment(ALICE, pack(M.OUTGOING_CALL_REQUEST, call_id=number))
        story.put(ip_packet(OTHER_SERVER.address, ALICE.address, 47, struct.pack(
            "!HHHHI", 0x3001, 0x880B, 4, number, 0) + bytes(4)))  # fmt: skip
    found = follow(story.packets)

    assert (len(found.calls), found.left_out) == (10, 40)
    assert len(found.strays) == 10
    assert found.strays_left_out == 40


def test_a_capture_of_the_reply_direction_alone_tells_what_it_can(tmp_path: Path) -> None:
    """Asymmetric ways: nobody ever acknowledges."""
    story = Story()
    story.dial(ALICE, SERVER, call_id=7, answers=100).link().chat(20)
    path = tmp_path / "half.pcap"
    half = [each for each in story.packets if each[1][12:16] == SERVER.address]
    path.write_bytes(writers.pcap(half))
    found = analyze([path])

    assert [(c.pns.call_id, c.pac.call_id) for c in found.calls] == [(7, 100)]
    assert set(found.calls[0].gre) == {PAC}
