"""What debug says of packets: of the wanted calls alone, what is odd, and no secret."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.analysis.ppp_glimpse import SHOWN, glimpse
from pptp_nat.control.subscription import MASKS
from pptp_nat.control.tracing import Trace
from pptp_nat.core.packet import pack_enhanced_gre
from pptp_nat.linux.datapath import Match
from pptp_nat.linux.gre_tap import HEADERS, MOST_LEGS, program
from pptp_nat.tables.rendering_events import event_text, stamped
from tests.core.wire import ip_packet

CLIENT, SERVER, EXTERNAL = "192.168.77.10", "198.18.7.2", "198.18.7.1"
LEGS = [
    {"call": 3, "to": "inside", "arrives": {"src": SERVER, "dst": EXTERNAL, "key": 1000},
     "leaves": {"src": SERVER, "dst": CLIENT, "key": 7}},
    {"call": 3, "to": "remote", "arrives": {"src": CLIENT, "dst": SERVER, "key": 500},
     "leaves": {"src": EXTERNAL, "dst": SERVER, "key": 500}},
]  # fmt: skip
SECRET = b"correct horse battery staple"


def octets(address):
    return bytes(map(int, address.split(".")))


def gre(payload=b"\x00\x21data", *, source=SERVER, destination=EXTERNAL, key=1000, **numbers):
    return ip_packet(
        octets(source), octets(destination), 47, pack_enhanced_gre(key, payload, **numbers)
    )


def trace(*masks, rate=1000):
    made = Trace(masks or MASKS, rate, glimpse)
    made.follow(LEGS)
    return made


def told(made, packet, now=1.0):
    records = made.packet(packet, "wan", now)
    for each in records:
        assert stamped(each)
        assert event_text(each).isascii()
        assert event_text(each).isprintable()
        json.dumps(each)
    return records


def test_a_packet_is_told_with_both_numbers_and_where_it_came_in() -> None:
    """The one that arrives and the one that leaves are what people compare."""
    [record] = told(trace("gre"), gre(sequence=4, acknowledgement=9))

    assert event_text(record) == (
        "    [GRE] gre      47 src=198.18.7.2 dst=198.18.7.1 dstkey=0x3e8->0x7 to=inside "
        "seq=4 ack=9 payload=6 bytes=42 dev=wan id=3"
    )


@pytest.mark.parametrize("packet", [
    gre(key=1001), gre(source=CLIENT), gre(destination=CLIENT), gre(source=EXTERNAL),
    ip_packet(octets(SERVER), octets(EXTERNAL), 47, b"\0\0\x08\0plain"),
])  # fmt: skip
def test_packets_of_others_are_not_told(packet) -> None:
    """A client's trouble is nobody else's."""
    assert told(trace(), packet) == []


def test_order_is_told_where_it_is_odd() -> None:
    """Gaps, and what comes late; the rest is as it must be."""
    made = trace("seq")
    orders = [
        (record["order"], record["by"])
        for number in (5, 6, 9, 7, 9, 10, 0xFFFFFFFF)
        for record in told(made, gre(sequence=number))
    ]

    assert orders == [
        ("first", 0), ("gap", 2), ("late or repeated", 3), ("late or repeated", 1),
        ("late or repeated", 12),
    ]  # fmt: skip


def test_numbers_go_round() -> None:
    """After four thousand million packets comes 0, and nothing is odd about that."""
    made = trace("seq")
    told(made, gre(sequence=0xFFFFFFFE))

    assert [told(made, gre(sequence=number)) for number in (0xFFFFFFFF, 0, 1)] == [[], [], []]


def test_the_two_directions_have_numbers_of_their_own() -> None:
    """Each end counts by itself."""
    made = trace("seq")
    told(made, gre(sequence=5))
    [record] = told(made, gre(sequence=90, source=CLIENT, destination=SERVER, key=500))

    assert (record["to"], record["order"]) == ("remote", "first")


def test_a_number_that_another_call_has_got_begins_anew() -> None:
    """Its peer starts at 0 again."""
    made = trace("seq")
    told(made, gre(sequence=5000))
    made.follow([{**LEGS[0], "call": 4}])
    [record] = told(made, gre(sequence=0))

    assert (record["call"], record["order"]) == (4, "first")


@pytest.mark.parametrize("header", [
    bytes.fromhex("3081 880b 0004 03e8"),  # claims a sequence number and an acknowledgement
    bytes.fromhex("b001 880b 0004 03e8 00000000"),  # C
    bytes.fromhex("2001 880b ffff 03e8"),
])  # fmt: skip
def test_broken_headers_are_told(header) -> None:
    """Who looks for a fault must see it."""
    [record] = told(trace("seq"), ip_packet(octets(SERVER), octets(EXTERNAL), 47, header))

    assert record["type"] == "gre"
    assert record["problem"].startswith("gre_")


FORMS = [b"\xff\x03%b", b"%b"]  # with and without address and control


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [
    0xC023, 0xC223, 0xC227, 0xC027, 0xC123, 0xC481, 0xC029, 0xC281, 0xC0FF, 0x003D, 0x00FD,
])  # fmt: skip
def test_no_secret_is_told(form, protocol) -> None:
    """Passwords, challenges and responses, also in pieces, whoever asks for whatever."""
    frame = form % (protocol.to_bytes(2, "big") + SECRET)
    records = told(trace(), gre(frame, sequence=1))
    shown = json.dumps(records) + "".join(map(event_text, records))

    assert [each["information"] for each in records if each["type"] == "data"] == [None]
    assert SECRET.hex()[:16] not in shown
    assert "correct" not in shown


def test_escaped_frames_are_not_told_either() -> None:
    """What is escaped may be anything."""
    records = told(trace("data"), gre(b"\x7e\xff\x7d\x23\xc0\x23" + SECRET + b"\x7e", sequence=1))

    assert [each["information"] for each in records] == [None]


@pytest.mark.parametrize(("payload", "protocol", "information"), [
    (bytes.fromhex("ff03 c021 01010004"), "LCP", "01010004"),
    (bytes.fromhex("0021") + bytes(range(64)), "IPv4", bytes(range(SHOWN)).hex()),
    (bytes.fromhex("21") + bytes(8), "IPv4", bytes(8).hex()),
    (b"\x00", None, None),
])  # fmt: skip
def test_a_frame_is_told_by_its_protocol_and_its_beginning(payload, protocol, information) -> None:
    """As far as an inner header goes."""
    [record] = told(trace("data"), gre(payload, sequence=1))

    assert (record["protocol"], record["information"]) == (protocol, information)


@given(st.binary(min_size=20, max_size=120))
def test_no_packet_is_too_strange(packet) -> None:
    """Whatever comes, the tracer goes on."""
    told(trace(), packet)


def test_what_is_beyond_the_rate_is_counted() -> None:
    """A flood must not fill the terminal of who looks at it."""
    made = trace("gre", rate=10)
    first = [told(made, gre(sequence=n)) for n in range(25)]
    later = told(made, gre(sequence=25), now=2.0)

    assert [len(each) for each in first] == [1] * 10 + [0] * 15
    assert [each["type"] for each in later] == ["suppressed", "gre"]
    assert later[0]["count"] == 15


# --- the program in the kernel ----------------------------------------------------------


def passes(rows, packet, *, kind=0, protocol=0x0800):
    """Run a classic BPF program, as far as ours use it, over a packet; return its verdict."""
    a = x = at = 0
    asides = {0xFFFFF000: protocol, 0xFFFFF004: kind}
    while True:
        code, jump_true, jump_false, k = rows[at]
        at += 1
        size = {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2, 0x50: 1}.get(code)
        if k in asides:
            a = asides[k]
        elif size is not None:
            start = k + (x if code in (0x48, 0x50) else 0)
            if start + size > len(packet):
                return 0
            a = int.from_bytes(packet[start : start + size], "big")
        elif code == 0xB1:
            x = 4 * (packet[k] & 15)
        elif code == 0x54:
            a &= k
        elif code == 0x05:
            at += k
        elif code == 0x15:
            at += jump_true if a == k else jump_false
        elif code == 0x45:
            at += jump_true if a & k else jump_false
        elif code == 0x06:
            return k
        else:
            raise AssertionError(code)


MATCHES = [Match(octets(SERVER), octets(EXTERNAL), 1000), Match(octets(CLIENT), octets(SERVER), 5)]


@pytest.mark.parametrize(("packet", "wanted"), [
    (gre(), True),
    (gre(source=CLIENT, destination=SERVER, key=5), True),
    (gre(source=CLIENT, destination=SERVER, key=1000), False),
    (gre(key=5), False),
    (ip_packet(octets(SERVER), octets(EXTERNAL), 47, b"\0\0\x08\0" + bytes(8)), False),
    (ip_packet(octets(SERVER), octets(EXTERNAL), 6, bytes(20)), False),
    (gre()[:6] + b"\x20\x01" + gre()[8:], False),  # a later fragment
    (gre()[:6] + b"\x20\x00" + gre()[8:], True),  # the first one
    (b"\x46" + gre()[1:20] + bytes(4) + gre()[20:], True),  # with an IP option
    (gre()[:24], False),
])  # fmt: skip
def test_the_kernel_passes_headers_of_the_wanted_legs_alone(packet, wanted) -> None:
    """What the program cuts off never leaves the kernel."""
    assert passes(program(MATCHES, HEADERS), packet) == (HEADERS if wanted else 0)


def test_what_leaves_and_what_is_no_ipv4_does_not_pass() -> None:
    """A packet that is forwarded leaves again; and IPv6 has other things at the same places."""
    assert passes(program(MATCHES, HEADERS), gre(), kind=4) == 0
    assert passes(program(MATCHES, HEADERS), gre(), protocol=0x86DD) == 0


def test_very_many_legs_are_one_program_all_the_same() -> None:
    """A program has 4096 instructions at most; beyond, all GRE with call IDs passes."""
    many = [Match(octets(SERVER), octets(EXTERNAL), key) for key in range(MOST_LEGS)]

    assert len(program(many, 1)) < 4096
    assert passes(program(many, 1), gre(key=MOST_LEGS - 1)) == 1
    assert passes(program(many, 1), gre(key=MOST_LEGS)) == 0
    assert passes(program(None, 1), gre(key=MOST_LEGS)) == 1
    assert passes(program([], 1), gre()) == 0
