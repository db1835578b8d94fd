"""Views of packets and edits in them: what is read, what is refused, what still verifies."""

import contextlib
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pptp_nat.core.packet import (
    ACK,
    Edit,
    EnhancedGre,
    edited,
    enhanced_gre,
    is_enhanced_gre,
    pack_enhanced_gre,
    segment,
)
from pptp_nat.errors import WireError

from .effort import effort
from .wire import ip_packet, read, reference_checksum, tcp_checksum, tcp_packet

A, B = bytes((192, 168, 77, 10)), bytes((198, 18, 7, 2))
WORDS = st.binary(max_size=10).map(lambda octets: octets * 4)  # options fill up whole words


@given(
    st.binary(max_size=300), WORDS, WORDS, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFF),
    st.binary(max_size=9),
)  # fmt: skip
@effort(200)
def test_a_segment_is_read_behind_any_options(
    payload: bytes, ip_options: bytes, tcp_options: bytes, sequence: int, flags: int, padding: bytes
) -> None:
    """IP options, TCP options, any flags; Ethernet's padding is no payload."""
    packet = tcp_packet(
        A, 4711, B, 1723, sequence=sequence, acknowledgement=77, flags=flags, payload=payload,
        ip_options=ip_options, tcp_options=tcp_options,
    )  # fmt: skip

    view = segment(packet + padding)

    assert view is not None
    assert (A, B, 4711, 1723) == (
        view.source, view.destination, view.source_port, view.destination_port
    )  # fmt: skip
    assert (sequence, 77, flags) == (view.sequence, view.acknowledgement, view.flags)
    assert payload == packet[view.payload_at : view.end]


PACKET = tcp_packet(A, 4711, B, 1723, sequence=1, payload=b"payload")


@pytest.mark.parametrize(
    ("what", "packet"),
    [
        ("nothing", b""),
        ("shorter than two headers", PACKET[:39]),
        ("IPv6", b"\x65" + PACKET[1:]),
        ("an IP header of 16 octets", b"\x44" + PACKET[1:]),
        ("an IP header longer than the packet", b"\x4f" + PACKET[1:]),
        ("another protocol", PACKET[:9] + b"\x11" + PACKET[10:]),
        ("a first fragment", PACKET[:6] + b"\x20\x00" + PACKET[8:]),
        ("a later fragment", PACKET[:6] + b"\x00\x01" + PACKET[8:]),
        ("a total length beyond the packet", PACKET[:2] + b"\xff\xff" + PACKET[4:]),
        ("a total length of 39", PACKET[:2] + b"\x00\x27" + PACKET[4:]),
        ("a TCP header of 16 octets", PACKET[:32] + b"\x40" + PACKET[33:]),
        ("a TCP header beyond the packet", PACKET[:32] + b"\xf0" + PACKET[33:]),
    ],
)
def test_what_is_no_whole_segment_is_none_of_our_business(what: str, packet: bytes) -> None:
    """Bounds are checked before anything is read."""
    assert segment(packet) is None, what


@given(st.binary(max_size=100))
@effort(300)
@example(PACKET[:40])
def test_no_octets_make_the_view_go_wrong(octets: bytes) -> None:
    """A view, or None; and a view lies within the packet."""
    for packet in (octets, b"\x45" + octets, PACKET[:20] + octets, PACKET[:33] + octets):
        view = segment(packet)
        if view is not None:
            assert 20 <= view.tcp_at < view.payload_at <= view.end <= len(packet)


@given(st.binary(min_size=1, max_size=300), WORDS, WORDS, st.data())
@effort(300)
def test_an_edited_packet_verifies(
    payload: bytes, ip_options: bytes, tcp_options: bytes, data: st.DataObject
) -> None:
    """Several edits, at odd places and over each other; every other octet stays."""
    packet = tcp_packet(
        A, 4711, B, 1723, sequence=5, payload=payload, ip_options=ip_options,
        tcp_options=tcp_options,
    ) + b"padding"  # fmt: skip
    view = segment(packet)
    assert view is not None
    places = st.integers(0, len(payload) - 1)
    edits = [
        Edit(at, octets[: len(payload) - at])
        for at, octets in data.draw(st.lists(st.tuples(places, st.binary(max_size=3)), max_size=5))
    ]
    expected = bytearray(payload)
    for at, octets in edits:
        expected[at : at + len(octets)] = octets

    after = edited(packet, view, edits)

    assert bytes(expected) == read(after).payload
    assert len(packet) == len(after)
    check = slice(view.tcp_at + 16, view.tcp_at + 18)
    assert packet[: check.start] == after[: check.start]
    assert packet[check.stop : view.payload_at] == after[check.stop : view.payload_at]
    assert b"padding" == after[view.end :]


@pytest.mark.parametrize("wanted", [0x0000, 0xFFFE, 0x0001])
@pytest.mark.parametrize("at", [0, 1])
def test_a_checksum_at_the_edge_stays_right(wanted: int, at: int) -> None:
    """Where end-around carries meet, one octet too little shows as a wrong zero."""
    plain = tcp_packet(A, 4711, B, 1723, sequence=5, payload=b"\0\0\0\0abc")
    unpatched = tcp_checksum(A, B, plain[20:36] + b"\0\0" + plain[38:])
    filler = (unpatched - wanted) % 0xFFFF  # added to the sum, it leaves the checksum wanted
    packet = tcp_packet(
        A, 4711, B, 1723, sequence=5, payload=struct.pack("!HH", 0, filler) + b"abc"
    )
    assert wanted == struct.unpack_from("!H", packet, 36)[0]
    view = segment(packet)
    assert view is not None
    for octets in (b"\x00\x00", b"\xff\xff", b"\x00\x01", b"\xff\x00"):
        assert octets == read(edited(packet, view, [Edit(at, octets)])).payload[at : at + 2]


def test_an_upstream_error_stays_visible() -> None:
    """A patch, not a recomputation: whoever spoilt the packet is not covered up."""
    packet = bytearray(PACKET)
    packet[45] ^= 0x40
    view = segment(bytes(packet))
    assert view is not None

    after = edited(bytes(packet), view, [Edit(0, b"xy")])

    assert tcp_checksum(A, B, after[20:]) != 0


# Enhanced GRE.


@given(
    st.integers(0, 0xFFFF), st.binary(max_size=40),
    st.none() | st.integers(0, 0xFFFFFFFF), st.none() | st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=30), st.binary(max_size=9),
)  # fmt: skip
@effort(300)
def test_enhanced_gre_is_read_as_it_was_packed(
    key: int, payload: bytes, sequence: int | None, acknowledgement: int | None, before: bytes,
    padding: bytes,
) -> None:  # fmt: skip
    """With and without S and A, at any place in a packet, before any padding."""
    octets = pack_enhanced_gre(key, payload, sequence=sequence, acknowledgement=acknowledgement)
    size = 8 + 4 * ((sequence is not None) + (acknowledgement is not None))

    view = enhanced_gre(before + octets + padding, len(before))

    assert EnhancedGre(key, len(payload), sequence, acknowledgement, size) == view
    assert payload == octets[size:]


GRE = pack_enhanced_gre(7, b"ppp", sequence=1, acknowledgement=2)


@pytest.mark.parametrize(
    ("what", "octets"),
    [
        ("nothing", b""),
        ("three octets", GRE[:3]),
        ("GRE version 0", GRE[:1] + b"\x80" + GRE[2:]),
        ("GRE version 2", GRE[:1] + b"\x82" + GRE[2:]),
        ("NVGRE: version 0 with a key", b"\x20\x00\x65\x58" + GRE[4:]),
        ("version 1 of another protocol", GRE[:2] + b"\x08\x00" + GRE[4:]),
    ],
)
def test_another_kind_of_gre_is_none_of_our_business(what: str, octets: bytes) -> None:
    """Other tunnels run beside PPTP."""
    assert not is_enhanced_gre(octets), what
    assert enhanced_gre(octets) is None, what


@pytest.mark.parametrize(
    ("reason", "offset", "octets"),
    [
        ("gre_short", 7, GRE[:7]),
        ("gre_short", 12, GRE[:12]),
        ("gre_short", 15, GRE[:15]),
        ("gre_flags", 0, b"\xb0" + GRE[1:]),  # C
        ("gre_flags", 0, b"\x70" + GRE[1:]),  # R
        ("gre_flags", 0, b"\x10" + GRE[1:]),  # K not set
        ("gre_flags", 0, b"\x38" + GRE[1:]),  # s
        ("gre_flags", 0, b"\x31" + GRE[1:]),  # Recur
        ("gre_flags", 0, GRE[:1] + b"\x89" + GRE[2:]),  # Flags
        ("gre_payload_length", 4, GRE[:-1]),
    ],
)
def test_bad_enhanced_gre_is_named(reason: str, offset: int, octets: bytes) -> None:
    """Cut off, flags that RFC 2637 forbids, a payload that is not all there."""
    with pytest.raises(WireError) as raised:
        enhanced_gre(b"IP header" + octets, 9)

    assert (reason, offset) == (raised.value.reason, raised.value.offset)


@given(st.binary(max_size=40))
@effort(300)
def test_no_octets_make_gre_raise_anything_else(octets: bytes) -> None:
    """A header, None, or WireError."""
    for tried in (octets, GRE[:4] + octets):
        with contextlib.suppress(WireError):
            view = enhanced_gre(tried)
            assert view is None or view.size + view.payload_length <= len(tried)


def test_flags_are_those_of_tcp() -> None:
    """The names must mean what RFC 9293 section 3.1 means."""
    packet = tcp_packet(A, 1, B, 2, sequence=0, flags=0x10)
    view = segment(packet)
    assert view is not None
    assert ACK == view.flags
    assert reference_checksum(ip_packet(A, B, 6, b"")) == 0
