"""Messages that RFC 2637 does not have: what passes, what is counted, what stays up."""

from __future__ import annotations

import struct

import pytest

from pptp_nat.core.messages import HEADER, LAYOUTS, LONGEST, MAGIC, pack, unpack
from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.states import CallState, ControlState

from .conversation import Control
from .hosts import ALICE, PAC, Host
from .ladder import Ladder

REQUEST = pack(M.OUTGOING_CALL_REQUEST, call_id=2)


@pytest.fixture
def control(nat: Ladder) -> Control:
    """Open a control connection that carries a call."""
    return nat.call(ALICE, call_id=1).to(PAC, answers=100).control


def strange(length: int, *, kind: int = 1, magic: int = MAGIC, control: int = 7) -> bytes:
    """Return *length* octets of a message whose number would be 1."""
    octets = HEADER.pack(length, kind, magic, control, 0) + b"\0\x01" + bytes(length)
    return octets[: max(length, HEADER.size)]


@pytest.mark.parametrize("version", [0, 0x0001, 0x0101, 0x0200, 0xFFFF])
def test_the_protocol_version_does_not_matter(nat: Ladder, version: int) -> None:
    """The two ends agree on it or they do not (case 62)."""
    control = nat.connect(ALICE, PAC)
    control.tell(ALICE, M.START_CONTROL_CONNECTION_REQUEST, version=version)
    control.tell(PAC, M.START_CONTROL_CONNECTION_REPLY, version=version, result=1)

    assert control.ask(ALICE, 1).answer(100).carries


@pytest.mark.parametrize("result", [2, 3, 4, 5])
def test_a_control_connection_is_refused(nat: Ladder, result: int) -> None:
    """No call can follow; the connection is forgotten when it closes."""
    control = nat.connect(ALICE, PAC)
    control.tell(ALICE, M.START_CONTROL_CONNECTION_REQUEST)
    control.tell(PAC, M.START_CONTROL_CONNECTION_REPLY, result=result)
    (followed,) = nat.translator.book.connections.values()
    assert ControlState.OPENING is followed.state

    control.fin(PAC)
    nat.wait(6)
    assert {} == nat.translator.book.connections


@pytest.mark.parametrize("kind", M, ids=lambda kind: kind.title)
def test_reserved_fields_that_are_not_zero(nat: Ladder, kind: M) -> None:
    """A public capture has 0xa196 there; it passes, and is counted (case 60)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    layout = LAYOUTS[kind]
    for place in layout.reserved:
        octets = bytearray(pack(kind, **{
            name: 77 for name in ("call_id", "peer_call_id") if name in layout.names
        }))  # fmt: skip
        octets[place] = b"\xa1\x96"[: place.stop - place.start]
        before = nat.counted("reserved_not_zero")
        heard = call.control.say(ALICE, bytes(octets))
        assert bytes(octets)[place] == heard[place]
        assert before + 1 == nat.counted("reserved_not_zero")


def test_a_request_with_reserved_fields_is_translated(nat: Ladder, control: Control) -> None:
    """It is a request all the same (case 60)."""
    heard = control.say(ALICE, REQUEST[:10] + b"\xa1\x96" + REQUEST[12:])

    assert b"\xa1\x96" == heard[10:12]
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=2)


@pytest.mark.parametrize("extra", [1, 4, 52, LONGEST - 168])
def test_a_message_longer_than_its_type(nat: Ladder, control: Control, extra: int) -> None:
    """Some append to theirs: it is translated, what follows is as it came (case 58)."""
    tail = bytes(range(7)) * 200
    octets = struct.pack("!H", 168 + extra) + REQUEST[2:] + tail[:extra]
    heard = control.say(ALICE, octets, pack(M.CALL_CLEAR_REQUEST, call_id=1), cuts=[170])

    assert octets[14:] == heard[14 : 168 + extra]
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=2)
    assert 1 == nat.counted("long_message")
    assert 16 == len(heard[168 + extra :])
    assert heard[168 + extra + 12 :][:2] != b"\0\x01"  # the next message is read as well


@pytest.mark.parametrize("length", [12, 13, 14, 20, 167])
def test_a_message_shorter_than_its_type(nat: Ladder, control: Control, length: int) -> None:
    """Nobody knows what it means, so it passes; the next begins where it ends (case 58)."""
    short = strange(length)
    heard = control.say(ALICE, short, REQUEST)

    assert short == heard[:length]
    assert 1 == nat.counted("short_message")
    assert nat.gre(PAC, key=int.from_bytes(heard[length + 12 : length + 14])).reaches(ALICE, key=2)
    assert 2 == nat.live


@pytest.mark.parametrize(
    ("kind", "control_type", "slug"),
    [(2, 7, "not_a_control_message"), (0, 7, "not_a_control_message"),
     (1, 0, "unknown_control_type"), (1, 16, "unknown_control_type"),
     (1, 65535, "unknown_control_type")],
)  # fmt: skip
@pytest.mark.parametrize("length", [12, 40, 168, LONGEST])
def test_messages_of_another_kind_pass(
    nat: Ladder, control: Control, kind: int, control_type: int, slug: str, length: int
) -> None:
    """Management messages and types to come are framed like all others (case 61)."""
    other = strange(length, kind=kind, control=control_type)
    heard = control.say(ALICE, other, REQUEST)

    assert other == heard[:length]
    assert 1 == nat.counted(slug)
    assert nat.gre(PAC, key=int.from_bytes(heard[length + 12 : length + 14])).reaches(ALICE, key=2)


@pytest.mark.parametrize("length", [0, 1, 11, LONGEST + 1, 65535])
@pytest.mark.parametrize("who", [ALICE, PAC], ids=["PNS", "PAC"])
def test_an_impossible_length_is_survived(
    nat: Ladder, control: Control, who: Host, length: int
) -> None:
    """No loop and no waiting for 65,535 octets: it passes, and then numbers are right (57, 58)."""
    header = HEADER.pack(length, 1, MAGIC, 7, 0) + b"\0\x01"
    assert header == control.say(who, header)
    slug = "length_below_header" if length < HEADER.size else "length_beyond_bound"
    assert 1 == nat.counted(slug)

    call = control.ask(who, 2, incoming=who is PAC).answer(3)
    if who is PAC:
        call.connect()
    assert call.carries
    assert nat.gre(PAC, key=nat.external_id(ALICE)).destination == ALICE.address


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.0\r\n\r\n", bytes(300), b"\x1a\x2b\x3c\x4d" * 9],
    ids=["HTTP", "zeros", "magic numbers"],
)  # fmt: skip
def test_a_connection_that_begins_otherwise_passes(nat: Ladder, garbage: bytes) -> None:
    """Whatever listens on the port; should it speak PPTP after all, it is read (case 59)."""
    control = nat.connect(ALICE, PAC)
    assert garbage == control.say(ALICE, garbage)
    assert garbage == control.say(PAC, garbage)
    assert 0 == nat.counted("rewritten")

    assert control.start().ask(ALICE, 1).answer(100).carries


@pytest.mark.parametrize("cut", [1, 4, 8, 11, 12, 13, 30])
def test_bad_magic_after_good_messages(nat: Ladder, control: Control, cut: int) -> None:
    """From there on it is opaque until a boundary is certain; calls stay up (case 59)."""
    bad = strange(168, magic=0x1A2B3C4E)
    assert bad == control.say(ALICE, bad, cuts=[cut])
    assert 1 == nat.counted("bad_magic")
    assert nat.gre(PAC, key=nat.external_id(ALICE)).reaches(ALICE, key=1)

    heard = control.say(ALICE, REQUEST, cuts=[cut])
    assert b"\0\x02" != heard[12:14]
    assert nat.gre(PAC, key=int.from_bytes(heard[12:14])).reaches(ALICE, key=2)
    assert 2 == nat.live


def test_a_boundary_that_is_not_certain_is_not_believed(nat: Ladder, control: Control) -> None:
    """Magic number alone may be anything's; type and length must agree (case 59)."""
    control.say(ALICE, strange(168, magic=0))
    almost = strange(100) + strange(168, control=16) + strange(16, kind=2)
    assert almost == control.say(ALICE, almost)

    assert 1 == nat.live
    assert 1 == nat.counted("bad_magic")
    slugs = ("short_message", "unknown_control_type", "not_a_control_message")
    assert [0, 0, 0] == [nat.counted(slug) for slug in slugs]


@pytest.mark.parametrize("kind", [
    M.OUTGOING_CALL_REPLY, M.INCOMING_CALL_REPLY, M.INCOMING_CALL_CONNECTED,
    M.WAN_ERROR_NOTIFY, M.SET_LINK_INFO, M.CALL_CLEAR_REQUEST, M.CALL_DISCONNECT_NOTIFY,
])  # fmt: skip
@pytest.mark.parametrize("who", [ALICE, PAC], ids=["PNS", "PAC"])
def test_messages_about_no_call_pass(nat: Ladder, control: Control, kind: M, who: Host) -> None:
    """An unknown number is somebody's mistake, and nobody's call ends for it (cases 28, 34)."""
    fields = {name: 0x7777 for name in ("call_id", "peer_call_id") if name in LAYOUTS[kind].names}
    heard = control.tell(who, kind, result=1, **fields) if "result" in LAYOUTS[kind].names else (
        control.tell(who, kind, **fields)
    )

    assert 1 == nat.counted("unknown_call_id") + nat.counted("unknown_peer_call_id")
    if "peer_call_id" in fields:
        assert 0x7777 == heard["peer_call_id"]
    assert 1 == nat.live
    assert nat.gre(PAC, key=nat.external_id(ALICE)).reaches(ALICE, key=1)


def test_a_message_of_the_wrong_state_changes_nothing(nat: Ladder) -> None:
    """Connected before answered: it passes, is counted, and is no call more or less."""
    control = nat.connect(ALICE, PAC).start()
    call = control.ask(ALICE, 1).answer(100)
    call.about(PAC, M.INCOMING_CALL_CONNECTED)
    assert CallState.UP is call.state
    call.disconnect()
    call.about(PAC, M.WAN_ERROR_NOTIFY)  # late, and still the client's number

    assert CallState.GONE is call.state
    assert 1 == nat.counted("unexpected_message")


def test_length_is_checked_in_host_order(nat: Ladder, control: Control) -> None:
    """NPF compares it as it lies in memory: 0xA800 is no length of ours."""
    swapped = b"\xa8\x00" + REQUEST[2:]
    assert swapped == control.say(ALICE, swapped)
    assert 1 == nat.counted("length_beyond_bound")

    assert 1 == nat.live


def test_clear_request_is_sixteen_octets(nat: Ladder, control: Control) -> None:
    """NPF wants 32 of every message and never sees this one."""
    heard = control.say(ALICE, pack(M.CALL_CLEAR_REQUEST, call_id=1))

    assert 16 == len(heard)
    assert nat.external_id(ALICE) == unpack(heard)[1]["call_id"]
