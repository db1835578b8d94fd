"""What is not quite PPTP, or not at all: it passes, is counted, and harms no call."""

from __future__ import annotations

import pytest

from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import HEADER, LAYOUTS, LONGEST, MAGIC, MAGIC_OCTETS, MessageType, pack
from pptp_nat.core.states import CallState
from tests.core.wire import ip_packet, tcp_packet

from .ladder import ALICE, PAC, Dialled, Ladder

M = MessageType


@pytest.fixture
def up(nat: Ladder) -> Dialled:
    """Return a call that must survive."""
    return nat.call(ALICE, call_id=1).to(PAC, answers=100)


def still_followed(up: Dialled) -> bool:
    """Whether the next message of the client is translated."""
    heard = up.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    return heard["call_id"] == up.heard and up.state is CallState.CLEARING


@pytest.mark.parametrize("length", [LONGEST + 1, 65535])
def test_a_length_that_no_message_has(nat: Ladder, up: Dialled, length: int) -> None:
    """Case 58.  The buffer is bounded; the next certain boundary is where to go on."""
    bad = HEADER.pack(length, 1, MAGIC, 12, 0) + bytes(4)

    assert bad == up.tcp.send(ALICE, bad)
    assert {"length_beyond_bound": 1} == nat.counts
    assert still_followed(up)


@pytest.mark.parametrize("length", [12, 15])
def test_a_message_shorter_than_its_type(nat: Ladder, up: Dialled, length: int) -> None:
    """Case 58.  It keeps the framing, and its field may not even be there."""
    bad = HEADER.pack(length, 1, MAGIC, 12, 0) + b"\0\1\0\0"[: length - 12]

    assert bad == up.tcp.send(ALICE, bad)
    assert {"short_message": 1} == nat.counts
    assert still_followed(up)


@pytest.mark.parametrize("length", [17, 220, LONGEST])
def test_a_message_longer_than_its_type(nat: Ladder, up: Dialled, length: int) -> None:
    """Case 58.  Some peers append to theirs: translated, the rest passes."""
    long = HEADER.pack(length, 1, MAGIC, 12, 0) + b"\0\1\0\0" + b"x" * (length - 16)

    arrived = up.tcp.send(ALICE, long)

    assert long[:12] + up.heard.to_bytes(2, "big") + long[14:] == arrived
    assert {"long_message": 1} == nat.counts
    assert CallState.CLEARING is up.state


def test_something_else_on_the_port(nat: Ladder) -> None:
    """Case 59.  A web browser, say: its octets pass, and no more is kept of them than of PPTP."""
    tcp = nat.open(ALICE, PAC)

    for _ in range(50):
        assert tcp.send(ALICE, b"GET / HTTP/1.1\r\n" * 90) == b"GET / HTTP/1.1\r\n" * 90
    assert {"bad_magic": 1} == nat.counts
    stream = tcp.followed.streams[0]
    assert len(stream.head) < 12
    assert len(stream.history) == nat.translator.settings.history
    tcp.say(PAC, M.ECHO_REQUEST)  # and acknowledges them
    assert stream.history == b""


def test_what_was_garbage_once_is_no_message_the_second_time(nat: Ladder) -> None:
    """Somebody's garbage that never arrives, then a request in its place: first seen wins."""
    tcp = nat.open(ALICE, PAC)
    request = pack(M.OUTGOING_CALL_REQUEST, call_id=7)
    hello = pack(M.START_CONTROL_CONNECTION_REQUEST)
    garbage = b"x" * len(hello + request)

    tcp.segment(ALICE, 0, garbage, arrives=False)

    assert garbage == tcp.segment(ALICE, 0, hello + request).payload
    assert [] == nat.calls
    assert 1 == nat.counts["conflicting_overlap"]


def test_garbage_after_good_messages(nat: Ladder, up: Dialled) -> None:
    """Case 59.  Opaque from there on, until a message certainly begins; the call stays up."""
    garbage = b"garbage" + MAGIC_OCTETS + b"\0\x0c" * 9
    late = pack(M.CALL_CLEAR_REQUEST, call_id=1)[2:]

    assert garbage + late == up.tcp.send(ALICE, garbage + late, 3, 11)
    assert CallState.UP is up.state
    assert {"bad_magic": 1} == nat.counts
    assert still_followed(up)


@pytest.mark.parametrize("cut", range(1, 28))
def test_a_boundary_is_found_however_it_is_cut(nat: Ladder, up: Dialled, cut: int) -> None:
    """Case 59.  Garbage and a message in two segments."""
    words = b"\0garbage!" + pack(M.CALL_CLEAR_REQUEST, call_id=1)

    arrived = up.tcp.send(ALICE, words, cut)

    if cut == 9 + 13:  # in the field, where the first octet waits
        nat.wait(1)
        (held,) = nat.held.values()
        arrived = held + arrived
    assert words[:21] + up.heard.to_bytes(2, "big") + words[23:] == arrived


def test_a_reserved_field_that_is_not_zero(nat: Ladder, up: Dialled) -> None:
    """Case 60.  RFC 2637 says general error 3; pptp-linux says 0xA196."""
    clear = pack(M.CALL_CLEAR_REQUEST, call_id=1, reserved1=0xA196)
    clear = clear[:10] + b"\xa1\x96" + clear[12:]

    arrived = up.tcp.send(ALICE, clear)

    assert clear[:12] + up.heard.to_bytes(2, "big") + clear[14:] == arrived
    assert {"reserved_not_zero": 1} == nat.counts


@pytest.mark.parametrize("kind", M, ids=lambda kind: kind.title)
def test_reserved_fields_of_every_message_pass(nat: Ladder, up: Dialled, kind: MessageType) -> None:
    """Case 60.  A public capture has 0xA196 in several."""
    names = LAYOUTS[kind].names
    fields = {name: 77 for name in ("call_id", "peer_call_id") if name in names}
    for count, place in enumerate(LAYOUTS[kind].reserved, 1):
        octets = bytearray(pack(kind, **fields))
        octets[place] = b"\xa1\x96"[: place.stop - place.start]
        heard = up.tcp.send(ALICE, bytes(octets))
        assert octets[place] == heard[place]
        assert count == nat.counts["reserved_not_zero"]


def test_a_boundary_that_is_not_certain_is_not_believed(nat: Ladder, up: Dialled) -> None:
    """Case 59.  The magic number alone may be anything's; type and length must agree."""
    almost = b"".join(
        HEADER.pack(length, kind, magic, control, 0) + bytes(length - 12)
        for length, kind, magic, control in
        ((168, 1, 0, 7), (100, 1, MAGIC, 7), (168, 1, MAGIC, 16), (16, 2, MAGIC, 7))
    )  # fmt: skip
    assert almost == up.tcp.send(ALICE, almost)

    assert {"bad_magic": 1} == nat.counts
    assert still_followed(up)


@pytest.mark.parametrize(
    ("header", "slug"),
    [
        ((2, MAGIC, 12), "not_a_control_message"),
        ((1, MAGIC, 0), "unknown_control_type"),
        ((1, MAGIC, 16), "unknown_control_type"),
        ((1, MAGIC, 65535), "unknown_control_type"),
    ],
)
def test_a_message_that_the_rfc_does_not_know(
    nat: Ladder, up: Dialled, header: tuple[int, int, int], slug: str
) -> None:
    """Case 61.  Linux read past its table here until 2020."""
    strange = HEADER.pack(16, *header, 0) + b"\0\1\0\0"

    assert strange == up.tcp.send(ALICE, strange)
    assert {slug: 1} == nat.counts
    assert nat.messages()[-1] == (0, None)
    assert still_followed(up)


def test_another_protocol_version(nat: Ladder) -> None:
    """Case 62.  The peers will agree on it or not."""
    tcp = nat.open(ALICE, PAC)

    heard = tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST, version=0x0200)

    assert heard["version"] == 0x0200
    assert {} == nat.counts


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x60" + bytes(60),  # IPv6
        ip_packet(ALICE.address, PAC.address, 47, bytes(40)),
        ip_packet(ALICE.address, PAC.address, 6, bytes(10)),
        ip_packet(ALICE.address, PAC.address, 6, bytes(40), fragment=0x2000),
        ip_packet(ALICE.address, PAC.address, 6, bytes(40), fragment=7),
    ],
)
def test_a_packet_that_is_no_segment(nat: Ladder, packet: bytes) -> None:
    """Cases 15 and 67.  IPv6, other protocols, fragments: none of our business."""
    outcome = nat.translator.handle(packet, nat.now, packet_id=1)

    assert Verdict.ACCEPT is outcome.verdict
    assert outcome.packet is None
    assert {"not_a_segment": 1} == nat.counts


def test_octets_in_the_syn_are_found_again(nat: Ladder) -> None:
    """TCP Fast Open: the first message is in a packet that is not read; the reply tells."""
    tcp = nat.open(ALICE, PAC, syn=False)
    hello = pack(M.START_CONTROL_CONNECTION_REQUEST)
    syn = tcp_packet(
        ALICE.address, tcp.ports[0], PAC.address, 1723, sequence=tcp.starts[0] - 1, flags=2,
        payload=hello,
    )  # fmt: skip
    nat.carry(syn)
    tcp.sent[0].extend(hello)
    tcp.say(PAC, M.START_CONTROL_CONNECTION_REPLY, result=1)
    dialled = nat.call(ALICE, call_id=1, over=tcp).to(PAC, answers=100)

    assert CallState.UP is dialled.state
    assert nat.gre(PAC, key=dialled.heard).reaches(ALICE, key=1)
