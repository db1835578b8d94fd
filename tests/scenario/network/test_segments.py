"""What TCP does to control messages on their way, and what it must not do to numbers."""

from __future__ import annotations

import pytest

from pptp_nat.core.events import Verdict
from pptp_nat.core.messages import LAYOUTS, pack
from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.states import CallState

from .conversation import Control
from .hosts import ALICE, BOB, PAC
from .ladder import Ladder, MakeLadder

REQUEST = pack(M.OUTGOING_CALL_REQUEST, call_id=0x0101, phone=b"0123456789")
FIN, PSH, URG, ECE, CWR, ACK = 0x01, 0x08, 0x20, 0x40, 0x80, 0x10


@pytest.fixture
def control(nat: Ladder) -> Control:
    """Open a control connection of Alice's."""
    return nat.connect(ALICE, PAC).start()


def test_one_octet_per_segment(nat: Ladder) -> None:
    """Nobody sends so, but the field is then cut for certain, in both directions (case 4)."""
    nat.call(ALICE, call_id=0x0101).to(PAC, answers=99)
    control = nat.between(ALICE, PAC)
    for number in (0x0102, 0x0201, 0xFF00):
        call = control.ask(ALICE, number, cuts=range(1, 168)).answer(number, cuts=range(1, 32))
        assert call.carries
    assert 0 == nat.counted("cut_call_id")


@pytest.mark.parametrize("cut", range(1, 168))
def test_a_request_is_cut_anywhere(control: Control, cut: int) -> None:
    """The helpers of Linux and NPF want it whole (case 1)."""
    call = control.ask(ALICE, 0x0101, cuts=[cut]).answer(100)

    assert call.heard[PAC] != 0x0101
    assert call.carries


@pytest.mark.parametrize("cut", range(1, 32))
def test_a_reply_is_cut_anywhere(control: Control, cut: int) -> None:
    """FreeBSD wants its first 18 octets together (case 2)."""
    assert control.ask(ALICE, 0x0101).answer(100, cuts=[cut]).carries


def test_the_first_octet_of_a_new_number_goes_on_at_once(nat: Ladder, control: Control) -> None:
    """A sender that follows Nagle's algorithm waits for its acknowledgement (case 3)."""
    outcome = control.segment(ALICE, 156, REQUEST[:13])
    assert Verdict.ACCEPT is outcome.verdict
    control.segment(ALICE, 156 + 13, REQUEST[13:])

    heard = control.heard_by(PAC)[156:]
    assert (REQUEST[:12], REQUEST[14:]) == (heard[:12], heard[14:])
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=0x0101)


def test_a_cut_number_waits_for_its_second_octet(nat: Ladder, control: Control) -> None:
    """A restored number cannot be told from its first octet; the rest brings both on (case 3)."""
    call = control.ask(ALICE, 0x0101)
    reply = pack(M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=call.heard[PAC], result=1)
    assert Verdict.HOLD is control.segment(PAC, 156, reply[:15]).verdict
    assert control.heard_by(ALICE)[156:] == b""
    assert Verdict.ACCEPT is control.segment(PAC, 171, reply[15:]).verdict

    assert reply[:14] + b"\x01\x01" + reply[16:] == control.heard_by(ALICE)[156:]
    assert CallState.UP is call.state


def test_a_cut_number_waits_no_longer_than_the_hold_time(nat: Ladder, control: Control) -> None:
    """With Nagle the rest comes only after this part is acknowledged (case 3)."""
    call = control.ask(ALICE, 0x0101)
    reply = pack(M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=call.heard[PAC], result=1)
    assert Verdict.HOLD is control.segment(PAC, 156, reply[:15]).verdict
    nat.wait(0.039)
    assert control.heard_by(ALICE)[156:] == b""
    nat.wait(0.002)
    assert reply[:14] + b"\x01" == control.heard_by(ALICE)[156:]

    control.segment(PAC, 171, reply[15:])
    assert reply[:14] + b"\x01\x01" + reply[16:] == control.heard_by(ALICE)[156:]
    assert CallState.UP is call.state


def test_two_messages_share_a_segment(nat: Ladder, control: Control) -> None:
    """Call-Clear-Request and a new request: the second is as good as the first (case 5)."""
    first = control.ask(ALICE, 1).answer(100)
    heard = control.say(ALICE, pack(M.CALL_CLEAR_REQUEST, call_id=1),
                        pack(M.OUTGOING_CALL_REQUEST, call_id=2))  # fmt: skip

    assert first.heard[PAC] == int.from_bytes(heard[12:14])
    assert nat.gre(PAC, key=int.from_bytes(heard[28:30])).reaches(ALICE, key=2)


def test_a_reply_and_a_set_link_info_share_a_segment(nat: Ladder, control: Control) -> None:
    """What the second message means depends on the first (case 5)."""
    call = control.ask(ALICE, 0x0101)
    number = call.heard[PAC]
    heard = control.say(
        PAC, pack(M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=number, result=1),
        pack(M.WAN_ERROR_NOTIFY, peer_call_id=number),
    )  # fmt: skip

    assert [b"\x01\x01"] * 2 == [heard[14:16], heard[32 + 12 : 32 + 14]]
    assert CallState.UP is call.state


@pytest.mark.parametrize("extra", [1, 4, 11, 12, 13, 14, 100])
def test_a_message_and_the_beginning_of_the_next(control: Control, extra: int) -> None:
    """The next one's field may begin in this segment and end in the other (case 6)."""
    second = pack(M.OUTGOING_CALL_REQUEST, call_id=0x0202)
    heard = control.say(ALICE, REQUEST, second, cuts=[168 + extra])

    assert b"\x01\x01" != heard[12:14]
    assert b"\x02\x02" != heard[180:182]
    assert REQUEST[14:] + second[:12] == heard[14:180]
    assert second[14:] == heard[182:]


@pytest.mark.parametrize("lost", ["before the router", "behind the router"])
def test_a_request_is_sent_again(nat: Ladder, control: Control, lost: str) -> None:
    """The server may get either copy, so both must have the same number (case 8)."""
    if lost == "behind the router":
        control.say(ALICE, REQUEST, arrives=False)
        heard = control.repeat(ALICE)
    else:
        heard = control.say(ALICE, REQUEST)
    for _ in range(3):
        control.repeat(ALICE)  # the ladder looks that no octet changes

    assert 168 == len(heard)
    assert 1 == nat.live
    assert 1 == len(nat.legs.carried)


@pytest.mark.parametrize("cut", [5, 12, 13, 14, 100])
def test_a_request_is_sent_again_cut_otherwise(nat: Ladder, control: Control, cut: int) -> None:
    """Its first copy had other boundaries, or none (case 9)."""
    control.say(ALICE, REQUEST, cuts=[20], arrives=False)
    heard = control.repeat(ALICE, cuts=[cut])

    number = int.from_bytes(heard[12:14])
    assert nat.gre(PAC, key=number).reaches(ALICE, key=0x0101)
    assert 1 == nat.live


def test_a_request_is_sent_again_together_with_fin(nat: Ladder, control: Control) -> None:
    """As a public capture has it (case 9)."""
    control.say(ALICE, REQUEST, arrives=False)
    heard = control.repeat(ALICE, flags=FIN | ACK)

    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=0x0101)


@pytest.mark.parametrize("last", [1, 100, 154, 155, 156, 160])
def test_a_message_is_sent_again_from_its_middle(
    nat: Ladder, control: Control, last: int
) -> None:
    """What was sent before is found by its place in the stream, not by its message (case 10)."""
    first = control.say(ALICE, REQUEST)
    control.repeat(ALICE, last=last)
    second = control.say(ALICE, pack(M.OUTGOING_CALL_REQUEST, call_id=2))
    control.repeat(ALICE, last=last + 168)

    assert first + second == control.heard_by(PAC)[156:]
    assert 2 == nat.live


def test_segments_change_their_order(nat: Ladder, control: Control) -> None:
    """What is ahead of a gap could not be read, so TCP has to send it again (case 11)."""
    early = control.segment(ALICE, 156 + 10, REQUEST[10:])
    assert Verdict.DROP is early.verdict
    assert 1 == nat.counted("gap")
    control.segment(ALICE, 156, REQUEST[:10])
    control.segment(ALICE, 156 + 10, REQUEST[10:])

    heard = control.heard_by(PAC)[156:]
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=0x0101)


def test_other_octets_with_the_same_sequence_numbers(nat: Ladder, control: Control) -> None:
    """Which copy arrives must not matter, or what is read is not what is heard (case 12)."""
    control.segment(ALICE, 156, REQUEST, arrives=False)
    other = pack(M.OUTGOING_CALL_REQUEST, call_id=0x0909, phone=b"9876543210")
    control.segment(ALICE, 156, other)

    heard = control.heard_by(PAC)[156:]
    assert REQUEST[14:] == heard[14:]
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=0x0101)
    assert 1 == nat.counted("conflicting_overlap")
    assert 1 == nat.live


@pytest.mark.parametrize("octets", [b"", b"\0", b"\xff"])
@pytest.mark.parametrize("who", [ALICE, PAC], ids=["PNS", "PAC"])
def test_a_keep_alive_is_no_data(
    nat: Ladder, control: Control, who: object, octets: bytes
) -> None:
    """One octet before the next, of no meaning, or none at all (case 13)."""
    call = control.ask(ALICE, 0x0101).answer(100)
    host = ALICE if who is ALICE else PAC
    for _ in range(3):
        outcome = control.segment(host, control.written_by(host) - 1, octets, arrives=False)
        assert Verdict.ACCEPT is outcome.verdict

    assert 0 == nat.counted("conflicting_overlap")
    assert 0 == nat.counted("gap")
    call.clear()
    assert 100 == call.disconnect()


@pytest.mark.parametrize("flags", [0, PSH, URG, PSH | ECE, CWR | ECE])
@pytest.mark.parametrize("tcp_options", [
    b"", b"\x01\x01\x08\x0a" + b"\x12\x34\x56\x78" * 2,  # timestamps
    b"\x01\x01\x05\x0a" + b"\x00\x0f\x42\x40" * 2,  # SACK
], ids=["none", "timestamps", "SACK"])  # fmt: skip
def test_tcp_options_and_flags_stay(
    nat: Ladder, control: Control, flags: int, tcp_options: bytes
) -> None:
    """The ladder looks that nothing but octets and checksum changes (case 14)."""
    control.tcp_options = tcp_options
    outcome = control.segment(ALICE, 156, REQUEST, flags=flags | ACK)

    assert outcome.packet is not None
    heard = control.heard_by(PAC)[156:]
    assert [12, 13] == [at for at in range(168) if heard[at] != REQUEST[at]]


@pytest.mark.parametrize("words", range(1, 11))
def test_ip_options_stay(nat: Ladder, control: Control, words: int) -> None:
    """The TCP header is where the IP header ends, not at octet 20 (case 15)."""
    control.ip_options = b"\x01" * 4 * words

    assert control.ask(ALICE, 0x0101).answer(100).carries


@pytest.mark.parametrize("place", [0, 1, 4, 11, 12, 13, 14, 100, 168])
def test_sequence_numbers_wrap_inside_a_message(nat: Ladder, place: int) -> None:
    """After 2^32 - 1 comes 0, as likely there as anywhere (case 17)."""
    starts = ((1 << 32) - 156 - place, (1 << 32) - 156 - place)
    control = nat.connect(ALICE, PAC, starts=starts).start()
    control.say(ALICE, REQUEST, arrives=False)
    control.repeat(ALICE, cuts=[13])
    call = control.ask(ALICE, 2, cuts=[13]).answer(100, cuts=[15])

    assert call.carries
    assert 2 == nat.live
    assert 0 == nat.counted("gap")


@pytest.mark.parametrize("kind", [k for k, each in LAYOUTS.items() if each.fields])
def test_a_number_cut_in_two_is_that_of_the_call(nat: Ladder, kind: M) -> None:
    """Every message with a number, cut in each of its fields (case 3)."""
    call = nat.call(ALICE, call_id=0x0101).to(PAC, answers=0x0303)
    other = nat.call(ALICE, call_id=0x0102).to(PAC, answers=0x0304)
    host = ALICE if kind in (M.OUTGOING_CALL_REQUEST, M.CALL_CLEAR_REQUEST, M.SET_LINK_INFO,
                             M.INCOMING_CALL_REPLY) else PAC  # fmt: skip
    fields = {"call_id": call.own[host], "peer_call_id": call.heard[host]}
    for place, _ in LAYOUTS[kind].fields:
        names = LAYOUTS[kind].names
        heard = call.control.tell(
            host, kind, cuts=[place + 1], **{n: v for n, v in fields.items() if n in names}
        )
        assert heard.get("peer_call_id", call.own[call.control.other(host)]) == (
            call.own[call.control.other(host)]
        )
        assert heard.get("call_id", call.heard[call.control.other(host)]) == (
            call.heard[call.control.other(host)]
        )
    assert other.carries


def test_a_half_message_at_the_end_disturbs_nobody(nat: Ladder, control: Control) -> None:
    """A connection that ends inside a message is that connection's matter alone."""
    call = nat.call(BOB, call_id=1).to(PAC, answers=100)
    control.say(ALICE, REQUEST[:50])
    control.rst(ALICE)
    nat.wait(6)

    assert call.carries
    assert 1 == nat.live


def test_octets_beyond_the_history_are_dropped_if_they_come_again(ladder: MakeLadder) -> None:
    """Nothing is sent on that might carry a number that is not the one sent before."""
    nat = ladder()
    control = nat.connect(ALICE, PAC).start()
    requests = pack(M.CALL_CLEAR_REQUEST, call_id=1)
    control.ask(ALICE, 1).answer(100)
    for _ in range(5):
        control.say(ALICE, requests * 1024, arrives=False)
    begin = control.written_by(ALICE) - 5 * 1024 * 16
    outcome = control.segment(ALICE, begin, requests)

    assert Verdict.DROP is outcome.verdict
    assert 1 == nat.counted("retransmission_too_old")
