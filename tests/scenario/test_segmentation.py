"""What TCP and IP do to control messages on their way."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import LAYOUTS, MessageType, pack, unpack
from pptp_nat.core.states import CallState
from tests.core.wire import ACK, FIN, PSH, read, tcp_packet

from .ladder import ALICE, BOB, PAC, Dialled, Ladder

M = MessageType
REQUEST = pack(M.OUTGOING_CALL_REQUEST, call_id=0x1234, phone=b"123")


def reply_to(dialled: Dialled, answers: int = 100) -> bytes:
    return pack(M.OUTGOING_CALL_REPLY, call_id=answers, peer_call_id=dialled.heard, result=1)


def settled(nat: Ladder, arrived: bytes) -> bytes:
    """Return what arrives in the end, held packets included, in their order."""
    nat.wait(1)
    return b"".join(nat.held.values()) + arrived


@pytest.mark.parametrize("cut", range(1, 32))
def test_a_reply_in_two_segments(nat: Ladder, cut: int) -> None:
    """Cases 2 and 3.  Only a cut in the PNS's number makes the first part wait, and briefly."""
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC)
    reply = reply_to(dialled)

    first = dialled.tcp.segment(PAC, 156, reply[:cut])
    second = dialled.tcp.segment(PAC, 156 + cut, reply[cut:])

    assert (Verdict.HOLD if cut == 15 else Verdict.ACCEPT) is first.verdict
    arrived = nat.held.get(first.packet_id, first.payload) + second.payload
    assert reply[:14] + b"\x12\x34" + reply[16:] == arrived
    assert dialled.state is CallState.UP


def test_the_first_octet_of_a_new_number_never_waits(nat: Ladder) -> None:
    """Case 3.  We choose the number, so its first octet can go on at once."""
    tcp = nat.connect(ALICE, PAC)

    first = tcp.segment(ALICE, 156, REQUEST[:13])
    nat.drawn = [0x9999]  # what was sent on is not decided again
    again = tcp.segment(ALICE, 156, REQUEST[:13])
    second = tcp.segment(ALICE, 156 + 13, REQUEST[13:])

    assert [Verdict.ACCEPT] * 3 == [first.verdict, again.verdict, second.verdict]
    assert first.payload == again.payload
    seen = int.from_bytes(first.payload[12:] + second.payload[:1], "big")
    assert nat.calls[0].seen[0] == seen
    assert seen >> 8 == 0x5C


def test_a_sender_that_follows_nagle_is_not_kept_waiting(nat: Ladder) -> None:
    """Case 3.  It sends the second octet only when the first is acknowledged."""
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC)
    reply = reply_to(dialled)

    held = dialled.tcp.segment(PAC, 156, reply[:15])
    assert Verdict.HOLD is held.verdict
    nat.wait(0.05)
    first = nat.held[held.packet_id]
    second = dialled.tcp.segment(PAC, 171, reply[15:])

    assert reply[:14] + b"\x12\x34" + reply[16:] == first + second.payload


def test_a_retransmission_while_its_first_copy_waits_is_not_needed(nat: Ladder) -> None:
    """Case 3.  Either copy may be the one that comes with more."""
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC)
    reply = reply_to(dialled)
    tcp = dialled.tcp

    held = tcp.segment(PAC, 156, reply[:15])
    assert Verdict.DROP is tcp.segment(PAC, 156, reply[:15]).verdict
    assert Verdict.DROP is tcp.segment(PAC, 160, reply[4:15]).verdict
    assert reply[:10] == tcp.segment(PAC, 156, reply[:10]).payload
    merged = tcp.segment(PAC, 156, reply)

    assert reply[:14] + b"\x12\x34" + reply[16:] == merged.payload
    assert nat.held[held.packet_id] == merged.payload[:15]
    assert nat.translator.next_timer() is not None
    assert not nat.translator._holds


def test_a_number_that_nobody_knows_cut_in_two_may_be_misread(nat: Ladder) -> None:
    """Case 3.  The documented exception: counted, and a call's number is never the victim."""
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC, answers=100)
    unknown = dialled.heard ^ 1
    notice = pack(M.WAN_ERROR_NOTIFY, peer_call_id=unknown)
    tcp = dialled.tcp

    held = tcp.segment(PAC, 188, notice[:13])
    nat.wait(0.05)
    rest = tcp.segment(PAC, 201, notice[13:])

    assert nat.held[held.packet_id] + rest.payload == notice[:12] + b"\x12" + notice[13:]
    assert {"cut_call_id": 1, "unknown_peer_call_id": 1} == nat.counts
    tcp.sent[1].extend(notice)
    assert tcp.say(PAC, M.WAN_ERROR_NOTIFY, peer_call_id=dialled.heard)["peer_call_id"] == 0x1234


def test_a_number_that_nobody_knows_passes_when_its_octets_come_in_time(nat: Ladder) -> None:
    """Case 3.  While the first octet is held, the second can still say that it is unknown."""
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC, answers=100)
    notice = pack(M.WAN_ERROR_NOTIFY, peer_call_id=dialled.heard ^ 1)

    held = dialled.tcp.segment(PAC, 188, notice[:13])
    rest = dialled.tcp.segment(PAC, 201, notice[13:])

    assert notice == nat.held[held.packet_id] + rest.payload


@pytest.mark.parametrize("quirk", [False, True])
def test_a_cut_disconnect_notify_is_read_by_the_rfc_first(nat: Ladder, *, quirk: bool) -> None:
    """Cases 3, 29 and 30.  The PAC's own number and the quirk's begin with the same octet."""
    nat.drawn = [0x1234]
    dialled = nat.call(ALICE, call_id=0x7777).to(PAC, answers=0x1299)
    notice = pack(M.CALL_DISCONNECT_NOTIFY, call_id=0x1234 if quirk else 0x1299)
    tcp = dialled.tcp

    held = tcp.segment(PAC, 188, notice[:13])
    nat.wait(0.05)
    rest = tcp.segment(PAC, 201, notice[13:])

    arrived = unpack(nat.held[held.packet_id] + rest.payload)[1]["call_id"]
    assert arrived == (0x1277 if quirk else 0x1299)
    assert dialled.state is CallState.GONE
    assert quirk == ("cut_call_id" in nat.counts)


def test_one_octet_per_segment(nat: Ladder) -> None:
    """Case 4.  Every field is cut, and every octet is sent twice."""
    nat.drawn = [0x4321]
    tcp = nat.open(ALICE, PAC)
    arrived = {}
    words = pack(M.START_CONTROL_CONNECTION_REQUEST) + REQUEST + pack(M.ECHO_REQUEST)
    for at, octet in enumerate(words):
        tcp.sent[0].append(octet)
        first = tcp.segment(ALICE, at, bytes((octet,)))
        again = tcp.segment(ALICE, at, bytes((octet,)))
        assert first.payload == again.payload
        arrived[at] = first.payload

    seen = nat.calls[0].seen[0].to_bytes(2, "big")
    expected = words[:168] + seen + words[170:]
    assert expected == b"".join(arrived.values())
    assert {} == nat.counts


def test_a_clear_and_a_new_request_in_one_segment(nat: Ladder) -> None:
    """Case 5.  The number is used again at once: a new call, a new external number."""
    dialled = nat.call(ALICE, call_id=7).to(PAC, answers=100)
    words = pack(M.CALL_CLEAR_REQUEST, call_id=7) + pack(M.OUTGOING_CALL_REQUEST, call_id=7)

    arrived = dialled.tcp.send(ALICE, words)

    assert unpack(arrived[:16])[1]["call_id"] == dialled.heard
    again = unpack(arrived[16:])[1]["call_id"]
    assert again != dialled.heard
    assert [again] == [call.seen[0] for call in nat.calls]
    assert ["CLEARED"] == [end.name for end in nat.ends]


@pytest.mark.parametrize("extra", [1, 11, 12, 13, 14])
def test_a_message_and_the_beginning_of_the_next(nat: Ladder, extra: int) -> None:
    """Case 6.  Whether the header of the next one is whole or not, or its number."""
    tcp = nat.connect(ALICE, PAC)
    words = pack(M.ECHO_REQUEST) + REQUEST

    arrived = tcp.send(ALICE, words, 16 + extra)

    seen = nat.calls[0].seen[0].to_bytes(2, "big")
    assert words[:28] + seen + words[30:] == arrived


def test_three_requests_in_one_segment(nat: Ladder) -> None:
    """Case 7.  Three calls, three numbers."""
    tcp = nat.connect(ALICE, PAC)

    arrived = tcp.send(ALICE, b"".join(
        pack(M.OUTGOING_CALL_REQUEST, call_id=number) for number in (1, 2, 3)
    ))  # fmt: skip

    numbers = [unpack(arrived[at:])[1]["call_id"] for at in (0, 168, 336)]
    assert numbers == [call.seen[0] for call in nat.calls]
    assert len(set(numbers)) == 3


def test_a_clear_request_sent_again_together_with_fin(nat: Ladder) -> None:
    """Case 9.  pptp-linux sends Call-Clear-Request, FIN, and then both in one segment."""
    dialled = nat.call(ALICE, call_id=7).to(PAC, answers=100)
    first = dialled.tcp.send(ALICE, pack(M.CALL_CLEAR_REQUEST, call_id=7))
    dialled.tcp.finish(ALICE)
    dialled.tcp.segment(PAC, 188, b"", acknowledged=len(dialled.tcp.sent[0]) + 1)

    assert first == dialled.tcp.again(ALICE, 324, fin=True)
    assert first[4:] == dialled.tcp.again(ALICE, 328, fin=True)


@pytest.mark.parametrize("begin", [300, 323, 324, 330, 336, 337])
def test_a_retransmission_that_begins_in_the_middle(nat: Ladder, begin: int) -> None:
    """Case 10.  Old octets as they were, new ones behind them read as ever."""
    dialled = nat.call(ALICE, call_id=7).to(PAC, answers=100)
    tcp = dialled.tcp
    clear = pack(M.CALL_CLEAR_REQUEST, call_id=7)
    first = tcp.send(ALICE, clear)
    tcp.sent[0].extend(pack(M.ECHO_REQUEST))

    arrived = tcp.again(ALICE, begin)

    assert (first + pack(M.ECHO_REQUEST))[max(begin - 324, 0) :] == arrived[max(324 - begin, 0) :]
    assert nat.messages().count((0, M.ECHO_REQUEST)) == 1
    assert nat.messages().count((0, M.CALL_CLEAR_REQUEST)) == 1


def test_segments_out_of_order(nat: Ladder) -> None:
    """Case 11.  What comes too early is sent again by TCP; nothing is guessed."""
    tcp = nat.connect(ALICE, PAC)

    early = tcp.segment(ALICE, 156 + 100, REQUEST[100:])
    first = tcp.segment(ALICE, 156, REQUEST[:100])
    again = tcp.segment(ALICE, 156 + 100, REQUEST[100:])

    assert Verdict.DROP is early.verdict
    assert REQUEST[100:] == again.payload
    assert unpack(first.payload + again.payload)[1]["call_id"] == nat.calls[0].seen[0]
    assert {"gap": 1} == nat.counts


def test_other_octets_in_the_same_place(nat: Ladder) -> None:
    """Case 12.  First seen wins: a filter can be fooled by nobody who sends twice."""
    tcp = nat.connect(ALICE, PAC)
    first = tcp.segment(ALICE, 156, REQUEST)
    other = pack(M.OUTGOING_CALL_REQUEST, call_id=0x6666, phone=b"666")

    again = tcp.segment(ALICE, 156, other)

    assert first.payload == again.payload
    assert [0x1234] == [call.own[0] for call in nat.calls]
    assert {"conflicting_overlap": 1} == nat.counts


@pytest.mark.parametrize("garbage", [b"", b"\0", b"\xff"])
def test_a_keep_alive(nat: Ladder, garbage: bytes) -> None:
    """Case 13.  One octet before the next, with or without one of garbage: not data."""
    dialled = nat.call(ALICE, call_id=7).to(PAC, answers=100)

    probe = dialled.tcp.segment(ALICE, 323, garbage, flags=ACK, arrives=False)
    heard = dialled.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=7)

    assert Verdict.ACCEPT is probe.verdict
    assert heard["call_id"] == dialled.heard
    assert {} == nat.counts


def test_only_the_number_and_the_checksum_change(nat: Ladder) -> None:
    """Cases 14 and 15.  Options of both headers, PSH, URG, ECE, CWR: all of it stays."""
    tcp = nat.connect(ALICE, PAC)
    packet = tcp_packet(
        ALICE.address, tcp.ports[0], PAC.address, 1723, sequence=tcp.starts[0] + 156,
        acknowledgement=tcp.starts[1] + 156, flags=0xF8, payload=REQUEST, urgent=5,
        ip_options=b"\x94\x04\0\0" + b"\x01" * 16,
        tcp_options=b"\x01\x01\x08\x0a" + b"tsvaluee" + b"\x01\x01\x05\x0a" + b"sackback",
    )  # fmt: skip

    outcome = nat.translator.handle(packet, nat.now, packet_id=1)
    nat._take(outcome)

    assert outcome.packet is not None
    read(outcome.packet)
    changed = [at for at, (a, b) in enumerate(zip(packet, outcome.packet, strict=True)) if a != b]
    header = 40 + 44
    assert {40 + 16, 40 + 17} >= set(changed) - {header + 12, header + 13}
    assert {header + 12, header + 13} <= set(changed)


@pytest.mark.parametrize("before", range(156, 180))
def test_sequence_numbers_wrap_inside_a_message(nat: Ladder, before: int) -> None:
    """Case 17.  2^32 lies before, in and behind the field, and the octets come twice."""
    tcp = nat.open(ALICE, PAC, starts=(2**32 - before, 2**32 - 156 - 14))
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    dialled = nat.call(ALICE, call_id=7, over=tcp).to(PAC, answers=100)

    assert dialled.heard == unpack(tcp.again(ALICE, 156))[1]["call_id"]
    assert unpack(tcp.again(PAC, 156))[1]["peer_call_id"] == 7
    assert tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=7)["call_id"] == dialled.heard
    assert {} == nat.counts


@pytest.mark.parametrize("seed", range(5))
def test_many_connections_in_bits_and_pieces(nat: Ladder, seed: int) -> None:
    """Cases 1 to 4 together: two clients' octets interleaved, each in pieces of their own."""
    drawn = random.Random(seed)
    talks = [(nat.connect(host, PAC), host) for host in (ALICE, BOB)]
    words = REQUEST + pack(M.ECHO_REQUEST) + pack(M.CALL_CLEAR_REQUEST, call_id=0x1234)
    places = [0, 0]
    arrived = [b"", b""]
    while min(places) < len(words):
        which = drawn.randrange(2)
        tcp, host = talks[which]
        size = drawn.randrange(1, 30)
        piece = words[places[which] : places[which] + size]
        if piece:
            heard = tcp.segment(host, 156 + places[which], piece)
            if heard.verdict is Verdict.HOLD:
                nat.wait(0.05)
            arrived[which] += nat.held.pop(heard.packet_id, heard.payload)
            places[which] += len(piece)

    calls = sorted(nat.calls, key=lambda call: call.connection.key)
    for octets, call in zip(arrived, calls, strict=True):
        assert unpack(octets[184:])[1]["call_id"] == call.seen[0]
        assert unpack(octets[:168])[1]["call_id"] == call.seen[0]
        assert call.state is CallState.CLEARING


@pytest.mark.parametrize("kind", [kind for kind in M if LAYOUTS[kind].fields])
@pytest.mark.parametrize("from_inside", [False, True])
def test_every_field_of_every_message_cut_in_two(
    nat: Ladder, kind: MessageType, *, from_inside: bool
) -> None:
    """Case 3.  Either party sends it, about a call that is up, after a pause in the field."""
    nat.drawn = [0x5C35]
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC, answers=0x4567)
    sender = ALICE if from_inside else PAC
    own, peers = (0x1234, 0x4567) if from_inside else (0x4567, dialled.heard)
    fields = {"call_id": own, "peer_call_id": peers, "result": 1}
    message = pack(kind, **{n: v for n, v in fields.items() if n in LAYOUTS[kind].names})
    cuts = [0, *(at + 1 for at, _ in LAYOUTS[kind].fields), len(message)]
    begin = len(dialled.tcp.sent[0 if from_inside else 1])

    arrived = b""
    for start, end in pairwise(cuts):
        heard = dialled.tcp.segment(sender, begin + start, message[start:end])
        nat.wait(0.05)
        arrived += nat.held.get(heard.packet_id, heard.payload)

    meant = {"call_id": dialled.heard if from_inside else 0x4567,
             "peer_call_id": 0x4567 if from_inside else 0x1234}  # fmt: skip
    for name, value in unpack(arrived)[1].items():
        if name in meant:
            assert meant[name] == value
    assert "cut_call_id" not in nat.counts


def test_a_half_message_at_the_end_disturbs_nobody(nat: Ladder) -> None:
    """A connection that ends inside a message is that connection's matter alone."""
    dialled = nat.call(BOB, call_id=1).to(PAC, answers=100)
    tcp = nat.connect(ALICE, PAC)
    tcp.send(ALICE, REQUEST[:50])
    tcp.reset(ALICE)
    nat.wait(6)

    assert [dialled.known] == nat.calls
    assert CallState.UP is dialled.state


def test_octets_beyond_the_history_are_dropped_if_they_come_again(nat: Ladder) -> None:
    """Nothing is sent on that might carry a number that is not the one sent before."""
    tcp = nat.call(ALICE, call_id=1).to(PAC, answers=100).tcp
    clears = pack(M.CALL_CLEAR_REQUEST, call_id=1) * 1024
    for _ in range(5):
        tcp.send(ALICE, clears)

    assert Verdict.DROP is tcp.segment(ALICE, 324, clears[:16]).verdict
    assert {"retransmission_too_old": 1} == nat.counts


def test_a_fin_in_the_packet_that_is_held(nat: Ladder) -> None:
    """The end is noted when it is seen; the packet still goes on."""
    dialled = nat.call(ALICE, call_id=0x1234).to(PAC, answers=100)
    clear = pack(M.CALL_CLEAR_REQUEST, call_id=0x1234)

    held = dialled.tcp.segment(ALICE, 324, clear[:13], flags=PSH | ACK | FIN)
    nat.wait(10)

    assert Verdict.HOLD is held.verdict
    assert len(nat.held[held.packet_id]) == 13
    assert [] == nat.calls
