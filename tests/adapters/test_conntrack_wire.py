"""ctnetlink on the wire, without a kernel: what is written, what is read, what is refused.

The samples are what Linux 6.18 answered; `hexadecimal` undoes their layout.
"""

from __future__ import annotations

import contextlib
import errno
import re
import struct
import sys
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pptp_nat.core.parts import WHOLE
from pptp_nat.core.tuples import Flow, Leg, Placement, Seat
from pptp_nat.errors import AdapterError
from pptp_nat.linux import conntrack_counts as counts
from pptp_nat.linux import conntrack_wire as wire
from pptp_nat.linux import netlink as nl
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_events import ACCEPT, Change, CtEvent, Events, event_filter
from pptp_nat.linux.conntrack_placement import read_placement
from pptp_nat.linux.conntrack_wire import GRE, TCP, Tuple, read_entry
from pptp_nat.linux.datapath import LegOrder, Tally
from pptp_nat.linux.netlink import Instruction, Message, Netlink

# The samples are a little-endian machine's, as is every machine with a PPTP router nearly.
pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="samples are little-endian")


def hexadecimal(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


CLIENT, EXTERNAL, SERVER = bytes((10, 9, 0, 2)), bytes((203, 0, 113, 1)), bytes((203, 0, 113, 9))
INBOUND = Leg(SERVER, EXTERNAL, 1000, SERVER, CLIENT, 7)
OUTBOUND = Leg(CLIENT, SERVER, 500, EXTERNAL, SERVER, 500)

CONTROL = hexadecimal("""
    02000000
    34000180 14000180 080001000a090002 08000200cb007109
             1c000280 0500010006000000 06000200dfa10000 0600030006bb0000
    34000280 14000180 08000100cb007109 08000200cb007101
             1c000280 0500010006000000 0600020006bb0000 06000300dfa10000
    080003000000219e 0800080000000042 08000c00c0445c63 08000b0000000002 0800070000069780
    30000480 2c000180 0500010003000000 050002000a000000 050003000a000000
             0600040023000000 0600050023000000
    1c000980 0c0001000000000000000002 0c000200000000000000 0070
    1c000a80 0c0001000000000000000001 0c000200000000000000 003c
    10000580 0900010070707470 00000000
""")
CARRIED = hexadecimal("""
    02000000
    34000180 14000180 08000100cb007109 08000200cb007101
             1c000280 050001002f000000 0600020000000000 0600030003e80000
    34000280 14000180 080001000a090002 08000200cb007109
             1c000280 050001002f000000 0600020000070000 0600030000000000
    08000300000005ae 0800080020000003 08000c00062a3cfa 08000b0000000002 08000700001e8480
    1c000980 0c0001000000000000000001 0c000200000000000000 0023
    1c000a80 0c0001000000000000000000 0c000200000000000000 0000
    1c001880 0800010000000000 0800020000000000 0800030000000000
""")


def event(body: bytes, *, kind: int = wire.CT_DELETE, flags: int = 0, portid: int = 0) -> bytes:
    return nl.HEADER.pack(16 + len(body), kind, flags, 0, portid) + body


# Reading.


def test_a_control_connection_says_who_is_inside() -> None:
    entry = read_entry(CONTROL)

    assert entry is not None
    flow = Flow(CLIENT, 57249, SERVER, 1723)
    expected = Placement(flow, Seat(CLIENT, EXTERNAL), Seat(SERVER, SERVER), 0x42, "pptp")
    assert expected == entry.placement


def test_a_gre_entry_says_what_it_carries() -> None:
    entry = read_entry(CARRIED)

    assert entry is not None
    assert INBOUND == entry.leg
    assert (0x20000003, 2_000_000, Tally(1, 35)) == (
        entry.mark, entry.seconds_left, entry.carried,
    )  # fmt: skip


@given(st.integers(0, len(CONTROL)), st.binary(max_size=60), st.integers(0, 255))
@example(len(CONTROL), b"", 0)
@example(len(CONTROL) - 16, b"", 0)  # without the helper
@example(108, CONTROL[4:56], 0)  # a tuple that comes a second time
@example(229, b"", 0)  # an impossible length among the counters
def test_who_is_inside_is_read_quickly_and_right(cut: int, tail: bytes, flip: int) -> None:
    """The short way must agree with the long one, whatever the octets."""
    for body in (CONTROL[:cut] + tail, CONTROL[: cut - 1] + bytes((flip,)) + CONTROL[cut:]):
        try:
            entry = read_entry(body)
            long_way = entry.placement if entry and entry.original.protocol == TCP else None
        except AdapterError:  # perhaps over counters, at which the short way does not look
            with contextlib.suppress(AdapterError):
                read_placement(body)
        else:
            assert long_way == read_placement(body)


UNKEYED = CARRIED.replace(b"\x06\x00\x02\x00", b"\x06\x00\x07\x00")
REORDERED = CARRIED[:4] + CARRIED[56:108] + CARRIED[4:56] + CARRIED[108:]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (CARRIED, (INBOUND[:3], (1, 35))),
        (REORDERED, (INBOUND[:3], (1, 35))),
        (CARRIED[:148], (INBOUND[:3], (0, 0))),
        (CONTROL, None),
        (UNKEYED, None),
        (b"", None),
    ],
    ids=["usual", "another order", "not counted", "TCP", "no keys", "nothing"],
)
def test_counts_are_read_quickly_and_right(body: bytes, expected: object) -> None:
    """The short way must agree with the long one."""
    assert expected == counts.read_count(body)


def message(body: bytes) -> bytes:
    """Return *body* as the kernel sends it in a dump."""
    return nl.HEADER.pack(nl.HEADER.size + len(body), wire.CT_NEW, 2, 7, 9) + body


def test_a_datagram_of_entries_is_read_at_once_and_the_same() -> None:
    """The short way for many must agree with the short way for one."""
    other = CARRIED.replace(SERVER, bytes((198, 18, 7, 99)))
    bodies = [CARRIED, other] * 3

    assert counts.read_counts(bodies) == counts.read_datagram(b"".join(map(message, bodies)))
    assert 2 == len(counts.read_counts(bodies))


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        message(CONTROL),
        message(REORDERED) + message(CARRIED),
        message(CARRIED) + message(CARRIED[:148]),
        message(CARRIED) + message(CARRIED)[:-4],
        message(CARRIED) + nl.HEADER.pack(20, nl.NLMSG_DONE, 2, 7, 9) + bytes(4),
        message(CARRIED) + message(CARRIED.replace(b"\x2f\0\0\0", b"\x06\0\0\0")),
    ],
    ids=["nothing", "TCP", "mixed", "one not counted", "cut", "the end", "one of TCP"],
)
def test_a_datagram_of_other_things_is_left_to_the_long_way(datagram: bytes) -> None:
    """A guess about what lies where would count one call's packets for another."""
    assert counts.read_datagram(datagram) is None


def test_a_tuple_of_another_layout_is_read_all_the_same() -> None:
    """Another kernel may write attributes in another order, or a zone beside them."""
    addresses = (
        nl.attribute(wire.CTA_IP_V4_DST, EXTERNAL) + nl.attribute(wire.CTA_IP_V4_SRC, SERVER)
    )
    keys = (
        nl.attribute(wire.CTA_PROTO_DST_PORT, b"\x03\xe8")
        + nl.attribute(wire.CTA_PROTO_SRC_PORT, b"\x00\x00")
        + nl.attribute(wire.CTA_PROTO_NUM, b"\x2f")
    )
    original = nl.nested(
        wire.CTA_TUPLE_ORIG,
        nl.nested(wire.CTA_TUPLE_PROTO, keys),
        nl.nested(wire.CTA_TUPLE_IP, addresses),
        nl.attribute(3, b"\x00\x05"),
    )
    usual = wire.tuple_attribute(wire.CTA_TUPLE_ORIG, Tuple(GRE, SERVER, 0, EXTERNAL, 1000))
    assert usual in CARRIED

    assert read_entry(CARRIED) == read_entry(CARRIED.replace(usual, original))


def test_counters_with_padding_are_read_all_the_same() -> None:
    """Where 64 bits must be aligned the kernel puts an empty attribute before them."""
    usual = nl.nested(
        wire.CTA_COUNTERS_ORIG,
        nl.attribute(1, struct.pack("!Q", 1)), nl.attribute(2, struct.pack("!Q", 35)),
    )  # fmt: skip
    padded = usual[:4] + nl.attribute(5, b"") + usual[4:]
    padded = struct.pack("=H", len(padded)) + padded[2:]
    assert usual in CARRIED

    assert read_entry(CARRIED) == read_entry(CARRIED.replace(usual, padded))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x0a" + CARRIED[1:],
        CARRIED[:4],
        CARRIED[: 4 + 52],
        UNKEYED,
    ],
    ids=["nothing", "IPv6", "no tuple", "no reply", "no keys"],
)
def test_what_has_no_two_keyed_tuples_is_no_entry(body: bytes) -> None:
    assert read_entry(body) is None


@given(
    st.sampled_from([CONTROL, CARRIED]),
    st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=4)), max_size=4),
    st.integers(0, 300),
)
def test_spoilt_answers_raise_nothing_but_adapter_error(
    sample: bytes, changes: list[tuple[int, bytes]], length: int
) -> None:
    """The kernel is trusted to be ours, not to be without surprises."""
    spoilt = bytearray(sample)
    for at, octets in changes:
        spoilt[at : at + len(octets)] = octets
    for reader in (read_entry, counts.read_count, counts.read_datagram):
        with contextlib.suppress(AdapterError):
            reader(bytes(spoilt[:length]))


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_adapter_error(octets: bytes) -> None:
    for reader in (nl.attributes, read_entry, counts.read_count, lambda data: list(nl.walk(data))):
        with contextlib.suppress(AdapterError):
            reader(octets)


addresses = st.binary(min_size=4, max_size=4)
keys = st.integers(0, 0xFFFF)


@given(st.builds(Tuple, st.sampled_from([GRE, TCP]), addresses, keys, addresses, keys))
def test_a_tuple_is_read_as_it_was_written(value: Tuple) -> None:
    octets = wire.tuple_attribute(wire.CTA_TUPLE_ORIG, value)
    body = wire.FAMILY + octets + wire.tuple_attribute(wire.CTA_TUPLE_REPLY, value)
    entry = read_entry(body)

    assert entry is not None
    assert (value, value) == (entry.original, entry.reply)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=9)), unique_by=lambda a: a[0]))
def test_attributes_are_read_as_they_were_written(values: list[tuple[int, bytes]]) -> None:
    octets = b"".join(nl.attribute(kind, payload) for kind, payload in values)

    assert dict(values) == nl.attributes(octets)
    assert {1: octets} == nl.attributes(nl.nested(1, octets))


# Writing.


def test_an_inbound_leg_is_asked_for_like_this() -> None:
    """The reply's addresses go in untranslated, its keys translated (nf_nat_core.c)."""
    message = wire.new_message(INBOUND, 0x20000003, 0, 2_000_000)

    expected = hexadecimal("""
        02000000
        34000180 14000180 08000100cb007109 08000200cb007101
                 1c000280 050001002f000000 0600020000000000 0600030003e80000
        34000280 14000180 08000100cb007101 08000200cb007109
                 1c000280 050001002f000000 0600020000070000 0600030000000000
        080003000000040e 08000700001e8480 0800080020000003
        0c000d80 080001000a090002
    """)
    assert Message(wire.CT_NEW, nl.F_CREATE | nl.F_EXCL, expected) == message


def test_an_outbound_leg_is_asked_for_like_this() -> None:
    """With a key, or the kernel borrows one from another call of this client."""
    message = wire.new_message(OUTBOUND, 0x20000000, 9, 2_000_000)

    expected = hexadecimal("""
        02000000
        34000180 14000180 080001000a090002 08000200cb007109
                 1c000280 050001002f000000 0600020000000000 0600030001f40000
        34000280 14000180 08000100cb007109 080002000a090002
                 1c000280 050001002f000000 0600020001f40000 0600030000090000
        080003000000040e 08000700001e8480 0800080020000000
        18000680 08000100cb007101 0c000380 0600010000090000
    """)
    assert expected == message.body


@pytest.mark.parametrize(
    ("leg", "expected"),
    [
        (INBOUND, {wire.CTA_NAT_DST}),
        (OUTBOUND, {wire.CTA_NAT_SRC}),
        (Leg(CLIENT, EXTERNAL, 1, EXTERNAL, SERVER, 2), {wire.CTA_NAT_DST, wire.CTA_NAT_SRC}),
        (Leg(CLIENT, SERVER, 1, CLIENT, SERVER, 1), set()),
    ],
    ids=["inbound", "outbound", "hairpin", "routed"],
)
def test_only_what_changes_is_translated(leg: Leg, expected: set[int]) -> None:
    parts = nl.attributes(wire.new_message(leg, 0, 0, 1).body[4:])

    assert expected == set(parts) & {wire.CTA_NAT_DST, wire.CTA_NAT_SRC}


@given(st.builds(Leg, addresses, addresses, keys, addresses, addresses, keys))
def test_spare_keys_differ_and_begin_with_zero(leg: Leg) -> None:
    """0 is what makes ICMP errors recognizable; a key tried twice would be tried in vain."""
    spare = wire.spare_keys(leg)

    assert spare[0] == 0
    assert len(spare) == len(set(spare)) > 20


# Talking to the kernel.


class Script:
    """A socket that answers what it is told, to the sequence numbers it was asked with."""

    def __init__(self, *answers: Callable[[int], bytes] | OSError) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []

    def send(self, octets: bytes) -> int:
        self.sent.append(octets)
        return len(octets)

    def recv(self, _: int) -> bytes:
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer(self.first)

    @property
    def first(self) -> int:
        """The sequence number of the first message in the last datagram."""
        sequence: int = nl.HEADER.unpack_from(self.sent[-1])[3]
        return sequence


def scripted(*answers: Callable[[int], bytes] | OSError) -> tuple[Netlink, Script]:
    netlink = Netlink.__new__(Netlink)
    script = Script(*answers)
    netlink._socket = script
    netlink._sequence = 0
    netlink.portid = 77
    return netlink, script


def ack(code: int, at: int = 0, flags: int = 0) -> Callable[[int], bytes]:
    """Return an acknowledgement of the message *at* places behind the first."""
    body = struct.pack("=i", -code) + bytes(16)
    return lambda first: nl.HEADER.pack(36, nl.NLMSG_ERROR, flags, first + at, 77) + body


def answer(body: bytes, at: int = 0, flags: int = 0) -> Callable[[int], bytes]:
    size = 16 + len(body)
    return lambda first: nl.HEADER.pack(size, wire.CT_NEW, flags, first + at, 77) + body


def done(flags: int = 0) -> Callable[[int], bytes]:
    return lambda first: nl.HEADER.pack(20, nl.NLMSG_DONE, flags, first, 77) + bytes(4)


LOST = OSError(errno.ENOBUFS, "lost")
ASK = Message(wire.CT_GET, 0, wire.FAMILY)


def test_errors_are_matched_to_requests_by_number() -> None:
    """One datagram, one acknowledgement at its end, and an error for whoever failed."""
    netlink, script = scripted(ack(17, 1), ack(2, 2), ack(0, 3))

    assert [0, 17, 2, 0] == netlink.request([ASK] * 4)
    assert 1 == len(script.sent)


def test_stale_answers_are_skipped() -> None:
    """What was left of an earlier request must not count for this one."""
    netlink, _ = scripted(ack(1, -3), answer(CARRIED, -1), ack(0))
    netlink._sequence = 10

    assert ([0], []) == netlink.exchange([ASK])


def test_an_answer_survives_that_others_were_lost() -> None:
    netlink, _ = scripted(LOST, ack(0))

    assert [0] == netlink.request([ASK])


def test_a_lost_answer_is_an_error_and_no_endless_wait() -> None:
    netlink, _ = scripted()

    with pytest.raises(AdapterError, match="answer"):
        netlink.request([ASK])
    with pytest.raises(AdapterError, match="answer"):
        netlink.get(ASK)
    with pytest.raises(AdapterError, match="answer"):
        netlink.dump(ASK)


def test_without_the_capability_one_refusal_is_for_all() -> None:
    """nfnetlink_rcv() answers the first message only and drops the rest."""
    netlink, _ = scripted(ack(errno.EPERM))

    assert [errno.EPERM] * 3 == netlink.request([ASK] * 3)


def test_an_echo_without_a_number_is_handed_on() -> None:
    """The event of an entry's end comes without the number of the deletion."""
    netlink, _ = scripted(lambda _: event(CARRIED, portid=77), ack(0))

    _, received = netlink.exchange([ASK])

    assert [(-1, wire.CT_DELETE, CARRIED)] == [(r.asked, r.kind, r.body) for r in received]


def test_a_get_has_an_errno_or_a_body() -> None:
    netlink, _ = scripted(answer(CARRIED), ack(errno.ENOENT))

    assert (0, CARRIED) == netlink.get(ASK)
    assert (errno.ENOENT, b"") == netlink.get(ASK)


def test_an_interrupted_dump_is_asked_for_again() -> None:
    """A table that changed while it was read may show an entry twice or not at all."""
    netlink, script = scripted(
        answer(CARRIED, flags=nl.F_DUMP_INTR), done(), answer(CONTROL), answer(CARRIED), done()
    )

    assert [CONTROL, CARRIED] == netlink.dump(ASK)
    assert 2 == len(script.sent)


def test_a_dump_that_is_interrupted_for_ever_is_an_error() -> None:
    netlink, _ = scripted(*[done(nl.F_DUMP_INTR)] * nl.DUMP_ATTEMPTS)

    with pytest.raises(AdapterError) as raised:
        netlink.dump(ASK)
    assert errno.EINTR == raised.value.errno


def test_a_refused_dump_is_an_error_at_once() -> None:
    netlink, script = scripted(ack(errno.EPERM))

    with pytest.raises(AdapterError) as raised:
        netlink.dump(ASK)
    assert (errno.EPERM, 1) == (raised.value.errno, len(script.sent))


def test_sequence_numbers_start_again_before_they_are_too_large() -> None:
    netlink, script = scripted(ack(0), ack(0))
    netlink._sequence = (1 << 31) - 2

    netlink.request([ASK])
    assert (1 << 31) - 1 == script.first
    netlink.request([ASK])
    assert 1 == script.first


def scripted_conntrack(*answers: Callable[[int], bytes] | OSError) -> Conntrack:
    conntrack = Conntrack.__new__(Conntrack)
    conntrack._netlink, _ = scripted(*answers)
    conntrack.entry_mark, conntrack.lifetime, conntrack._next_search = 0x20000000, 2_000_000, 0.0
    return conntrack


@pytest.mark.parametrize(
    ("code", "mend"),
    [
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.EINVAL, "nf_conntrack_netlink"),
        (errno.EOPNOTSUPP, "nf_nat"),
        (errno.ENOMEM, "nf_conntrack_max"),
        (errno.ENOSPC, "nf_conntrack_buckets"),
    ],
)
def test_a_refused_insertion_says_what_to_do(code: int, mend: str) -> None:
    conntrack = scripted_conntrack(ack(code))

    ((_, error),) = conntrack.insert([LegOrder(INBOUND, 0)]).refused

    assert re.search(f"203.0.113.9 to 203.0.113.1 .* ID 1000: .*{mend}", str(error))


def test_an_entry_in_the_way_that_never_goes_away_is_an_error() -> None:
    """Bounded, whatever the kernel answers."""
    rounds = [answer(CARRIED.replace(b"\x0a\x09\x00\x02", b"\x0a\x09\x00\x03")), ack(17, 1)] * 1000
    conntrack = scripted_conntrack(ack(17), *rounds)

    ((_, error),) = conntrack.insert([LegOrder(INBOUND, 0)]).refused

    assert errno.EEXIST == error.errno


def test_a_garbled_answer_to_a_look_up_is_an_error() -> None:
    spoilt = CONTROL[:4] + b"\xff" + CONTROL[5:]
    conntrack = scripted_conntrack(answer(spoilt))

    with pytest.raises(AdapterError):
        conntrack.locate(Flow(CLIENT, 57249, SERVER, 1723))


# Events.


def scripted_events(*answers: Callable[[int], bytes] | OSError) -> Events:
    events = Events.__new__(Events)
    events._netlink, script = scripted(*answers)
    script.sent.append(nl.HEADER.pack(16, 0, 0, 0, 0))
    events._ports, events._entry_mark, events._own = frozenset([1723]), 0x20000000, 77
    events._part = WHOLE
    return events


#: GRE with a call ID whose entry has no mark of ours
STRAY = CARRIED.replace(b"\x20\x00\x00\x03", b"\x00\x00\x00\x03")


def test_the_end_of_a_strays_entry_says_how_much_it_was() -> None:
    (ended,) = scripted_events(lambda _: event(STRAY)).read()

    assert (Change.DESTROY, None, None, Tally(1, 35)) == (
        ended.change, ended.placement, ended.leg, ended.tally
    )  # fmt: skip
    assert ended.is_stray


def test_events_say_what_ended_and_with_which_counts() -> None:
    events = scripted_events(lambda _: event(CARRIED), lambda _: event(CONTROL))
    control = read_entry(CONTROL)
    assert control is not None

    expected = [
        CtEvent(Change.DESTROY, leg=INBOUND, mark=0x20000003, tally=Tally(1, 35)),
        CtEvent(Change.DESTROY, placement=control.placement, mark=0x42),
    ]
    assert expected == events.read()


@pytest.mark.parametrize(
    "octets",
    [
        event(CARRIED, portid=77),
        event(STRAY, kind=wire.CT_NEW, flags=nl.F_CREATE),
        event(CONTROL.replace(b"\x06\xbb", b"\x00\x50")),
        event(b"\x0a" + CARRIED[1:]),
        event(CARRIED, kind=0x0203),
        nl.HEADER.pack(20, nl.NLMSG_DONE, 0, 0, 0) + bytes(4),
    ],
    ids=["our own doing", "a stray begins", "another port", "IPv6", "not conntrack", "no event"],
)
def test_what_is_no_business_of_ours_is_no_event(octets: bytes) -> None:
    assert [] == scripted_events(lambda _: octets).read()


@pytest.mark.parametrize(
    ("flags", "change"), [(nl.F_CREATE | nl.F_EXCL, Change.NEW), (0, Change.UPDATE)]
)
def test_new_entries_and_changed_ones_are_told_apart(flags: int, change: Change) -> None:
    octets = event(CONTROL, kind=wire.CT_NEW, flags=flags)

    assert [change] == [e.change for e in scripted_events(lambda _: octets).read()]


def test_lost_events_come_as_an_overrun_before_the_others() -> None:
    events = scripted_events(LOST, lambda _: event(CARRIED))

    assert [Change.OVERRUN, Change.DESTROY] == [e.change for e in events.read()]


def filtered(program: Sequence[Instruction], octets: bytes) -> int:
    """Run a classic BPF program: loads from fixed places, jumps if equal, returns."""
    accumulator = at = 0
    while True:
        code, jump_true, jump_false, k = program[at]
        at += 1
        match code:
            case 0x30 | 0x28 | 0x20:
                size = {0x30: 1, 0x28: 2, 0x20: 4}[code]
                if k + size > len(octets):
                    return 0
                accumulator = int.from_bytes(octets[k : k + size])
            case 0x15:
                at += jump_true if accumulator == k else jump_false
            case 0x06:
                return k
            case _:
                raise AssertionError(code)


PLAIN_TCP = CONTROL.replace(b"\x06\xbb", b"\x00\x50")
ICMP = CONTROL.replace(b"\x05\x00\x01\x00\x06", b"\x05\x00\x01\x00\x01")


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        (CARRIED, True),
        (CONTROL, True),
        (CONTROL.replace(b"\x03\x00\x06\xbb", b"\x03\x00\x00\x50"), True),
        (CONTROL.replace(b"\x02\x00\x06\xbb", b"\x02\x00\x00\x50"), True),
        (PLAIN_TCP, False),
        (ICMP, False),
        (b"\x0a" + CONTROL[1:], False),
        (PLAIN_TCP[:4] + b"\x3c" + PLAIN_TCP[5:], True),
        (PLAIN_TCP[:56] + b"\x3c" + PLAIN_TCP[57:], True),
        (CONTROL[:8], False),
    ],
    ids=[
        "GRE", "a control connection", "forwarded from another port", "forwarded to another port",
        "another port", "ICMP", "IPv6", "an original of another layout",
        "a reply of another layout", "too short",
    ],
)  # fmt: skip
def test_the_filter_passes_what_may_be_ours(body: bytes, passes: bool) -> None:  # noqa: FBT001
    """In doubt it passes; the reader looks again."""
    assert passes == bool(filtered(event_filter([1799, 1723]), event(body)))


def test_the_filter_takes_no_more_of_a_message_than_there_is() -> None:
    """What passes, passes whole."""
    assert ACCEPT == filtered(event_filter([1723]), event(CARRIED))
