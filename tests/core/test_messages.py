"""The message table: what RFC 2637 says, and what is made of what it does not say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.messages import (
    CONTROL,
    GENERAL_ERRORS,
    HEADER,
    LAYOUTS,
    LONGEST,
    MAGIC,
    MAGIC_OCTETS,
    REPLIES,
    RESULTS,
    Frame,
    MessageType,
    Role,
    find_boundary,
    form_codes,
    frame,
    is_boundary,
    pack,
    says_yes,
    text,
    unpack,
)
from pptp_nat.errors import BadLength, BadMagic, WireError

from .effort import effort

M = MessageType
# RFC 2637 sections 2.1 to 2.15 by hand: Length, then the offsets of Call ID, Peer's, result.
RFC = {
    1: (156, None, None, None), 2: (156, None, None, 14), 3: (16, None, None, 12),
    4: (16, None, None, 12), 5: (16, None, None, None), 6: (20, None, None, 16),
    7: (168, 12, None, None), 8: (32, 12, 14, 16), 9: (220, 12, None, None),
    10: (24, 12, 14, 16), 11: (28, None, 12, None), 12: (16, 12, None, None),
    13: (148, 12, None, 14), 14: (40, None, 12, None), 15: (24, None, 12, None),
}  # fmt: skip
KINDS = st.sampled_from(M)


def test_every_message_type_has_a_layout() -> None:
    """A type without a row would pass untranslated."""
    assert set(MessageType) == set(LAYOUTS)
    assert {int(kind) for kind in MessageType} == set(range(1, 16))


@pytest.mark.parametrize("kind", MessageType)
def test_the_layout_is_what_the_rfc_draws(kind: MessageType) -> None:
    """The offsets decide which octets NAT changes."""
    layout = LAYOUTS[kind]

    assert RFC[kind] == (layout.length, layout.call_id, layout.peer_call_id, layout.result)
    assert layout.length == HEADER.size + layout.body.size
    assert f"2.{int(kind)}" == layout.section


def test_clear_request_is_sixteen_octets() -> None:
    """NPF asks for 32 octets of every message and so never sees a Call-Clear-Request."""
    assert len(pack(M.CALL_CLEAR_REQUEST, call_id=1)) == 16


def test_length_is_checked_in_host_order() -> None:
    """NPF compares lengths in network order, where 0x9C00 is not less than 0x0010."""
    assert Frame(M.CALL_CLEAR_REQUEST, 16) == frame(pack(M.CALL_CLEAR_REQUEST))
    with pytest.raises(BadLength):
        frame(HEADER.pack(0x1000, CONTROL, MAGIC, 12, 0))


def test_call_ids_are_host_order_ints() -> None:
    """An older accel-ppp keeps a call ID in wire order and swaps it once more to send it."""
    octets = pack(M.OUTGOING_CALL_REPLY, call_id=0x0102, peer_call_id=0xFFFE)

    assert octets[12:16] == b"\x01\x02\xff\xfe"
    fields = unpack(octets)[1]
    assert (0x0102, 0xFFFE) == (fields["call_id"], fields["peer_call_id"])


@given(KINDS, st.data())
@effort(300)
def test_what_is_packed_is_unpacked(kind: MessageType, data: st.DataObject) -> None:
    """Every field of every message, there and back."""
    layout = LAYOUTS[kind]
    fields: dict[str, int | bytes] = {}
    for name, code in zip(layout.names, form_codes(layout.body.format[1:]), strict=True):
        if code.endswith("s"):
            size = int(code[:-1])
            fields[name] = data.draw(st.binary(min_size=size, max_size=size))
        else:
            fields[name] = data.draw(st.integers(0, {"B": 0xFF, "H": 0xFFFF}.get(code, 2**32 - 1)))

    octets = pack(kind, **fields)

    assert (kind, fields) == unpack(octets)
    assert (kind, fields) == unpack(b"\x01\x00" + octets[2:] + bytes(256 - len(octets)))
    assert Frame(kind, layout.length) == frame(octets)
    assert is_boundary(octets)
    for part in (octets[:-1], octets[:11], b""):
        with pytest.raises(BadLength):
            unpack(part)


def test_an_unknown_field_is_our_own_mistake() -> None:
    """It would be a message that says nothing of what was meant."""
    with pytest.raises(AssertionError):
        pack(M.ECHO_REQUEST, identifer=1)


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ((16, 2, MAGIC, 12, 0), Frame(None, 16, "not_a_control_message")),
        ((16, 1, MAGIC, 0, 0), Frame(None, 16, "unknown_control_type")),
        ((12, 1, MAGIC, 16, 0), Frame(None, 12, "unknown_control_type")),
        ((1024, 1, MAGIC, 0xFFFF, 0), Frame(None, 1024, "unknown_control_type")),
        ((15, 1, MAGIC, 12, 0), Frame(None, 15, "short_message")),
        ((220, 1, MAGIC, 7, 0), Frame(M.OUTGOING_CALL_REQUEST, 220, "long_message")),
        ((LONGEST, 1, MAGIC, 7, 0), Frame(M.OUTGOING_CALL_REQUEST, LONGEST, "long_message")),
        ((168, 1, MAGIC, 7, 0xA196), Frame(M.OUTGOING_CALL_REQUEST, 168)),
    ],
)
def test_a_tolerable_header_keeps_the_framing(
    header: tuple[int, ...], expected: Frame, at: int
) -> None:
    """The next message begins where Length says, whatever this one is."""
    assert expected == frame(bytes(at) + HEADER.pack(*header), at)


@pytest.mark.parametrize(
    ("header", "error", "reason"),
    [
        ((16, 1, MAGIC ^ 1, 12, 0), BadMagic, "bad_magic"),
        ((0, 1, MAGIC, 12, 0), BadLength, "length_below_header"),
        ((1, 1, MAGIC, 12, 0), BadLength, "length_below_header"),
        ((11, 1, MAGIC, 12, 0), BadLength, "length_below_header"),
        ((LONGEST + 1, 1, MAGIC, 12, 0), BadLength, "length_beyond_bound"),
        ((0xFFFF, 1, MAGIC, 12, 0), BadLength, "length_beyond_bound"),
        ((0xFFFF, 2, MAGIC, 12, 0), BadLength, "length_beyond_bound"),
    ],
)
def test_an_impossible_header_loses_the_framing(
    header: tuple[int, ...], error: type[WireError], reason: str
) -> None:
    """Length below the header must not make a reader go round in circles (accel-ppp did)."""
    with pytest.raises(error) as raised:
        frame(HEADER.pack(*header))

    assert reason == raised.value.reason


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (HEADER.pack(16, 2, MAGIC, 12, 0) + bytes(4), "not_a_control_message"),
        (HEADER.pack(16, 1, MAGIC, 16, 0) + bytes(4), "unknown_control_type"),
        (HEADER.pack(14, 1, MAGIC, 12, 0) + bytes(4), "short_message"),
        (HEADER.pack(16, 1, 0, 12, 0) + bytes(4), "bad_magic"),
    ],
)
def test_unpack_says_what_is_wrong(octets: bytes, reason: str) -> None:
    """The reason is a slug for a metric's label."""
    with pytest.raises(WireError) as raised:
        unpack(octets)

    assert reason == raised.value.reason
    assert reason in str(raised.value)


@given(st.binary(max_size=60), KINDS, st.binary(max_size=20), st.integers(0, 70))
@effort(300)
def test_the_first_certain_boundary_is_found(
    before: bytes, kind: MessageType, after: bytes, start: int
) -> None:
    """Octet by octet would find the same."""
    octets = before + pack(kind) + after
    wanted = (at for at in range(start, len(octets)) if is_boundary(octets, at))

    assert next(wanted, None) == find_boundary(octets, start)


def test_a_boundary_needs_more_than_the_magic_cookie() -> None:
    """A host name may hold the cookie; type and Length must fit as well."""
    assert not is_boundary(pack(M.ECHO_REQUEST)[:11])
    assert find_boundary(MAGIC_OCTETS * 9) is None
    assert find_boundary(HEADER.pack(17, 1, MAGIC, 12, 0) + bytes(9)) is None
    assert find_boundary(HEADER.pack(16, 2, MAGIC, 12, 0) + bytes(9)) is None
    assert find_boundary(MAGIC_OCTETS + pack(M.ECHO_REQUEST)) == 4


@pytest.mark.parametrize("kind", MessageType)
@pytest.mark.parametrize("result", [0, 1, 2, 7])
def test_only_a_reply_can_say_no(kind: MessageType, result: int) -> None:
    """Result Code 1 of a reply is yes; of a Call-Disconnect-Notify it is a reason."""
    fields = {"result": result} if "result" in LAYOUTS[kind].names else {}

    assert (kind not in REPLIES or result == 1) == says_yes(kind, pack(kind, **fields))


def test_every_result_code_has_words() -> None:
    """People read words; the analysis and the table take them from here."""
    with_result = {kind for kind, layout in LAYOUTS.items() if layout.result is not None}
    assert with_result == set(RESULTS)
    assert len(GENERAL_ERRORS) == 7
    codes = {kind: sorted(words) for kind, words in RESULTS.items()}
    assert codes == {
        M.START_CONTROL_CONNECTION_REPLY: [1, 2, 3, 4, 5],
        M.STOP_CONTROL_CONNECTION_REQUEST: [1, 2, 3],
        M.STOP_CONTROL_CONNECTION_REPLY: [1, 2],
        M.ECHO_REPLY: [1, 2],
        M.OUTGOING_CALL_REPLY: [1, 2, 3, 4, 5, 6, 7],
        M.INCOMING_CALL_REPLY: [1, 2, 3],
        M.CALL_DISCONNECT_NOTIFY: [1, 2, 3, 4],
    }
    assert M.OUTGOING_CALL_REPLY.title == "Outgoing-Call-Reply"
    assert (Role.PAC, Role.PNS) == (Role.PNS.other, Role.PAC.other)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"vpn" + bytes(61), "vpn"),
        (bytes(64), ""),
        (b"x" * 64, "x" * 64),
        (b"caf\xc3\xa9\0junk", "caf\u00e9"),
        (b"\xff\0", "\ufffd"),
    ],
)
def test_text_ends_at_the_first_nul(field: bytes, expected: str) -> None:
    """What is behind it is what the sender's memory happened to hold."""
    assert expected == text(field)
