"""One direction of a connection: what is kept, for how long, and how little of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.messages import HEADER, LONGEST, MAGIC, Frame, MessageType, pack
from pptp_nat.core.packet import Edit
from pptp_nat.core.stream import FirstOctet, Progress, Stream
from pptp_nat.errors import ExhaustedError

from .effort import effort

M = MessageType
LIMIT = 600  # octets of history
OVERLAY_LIMIT = 4096 * 6  # octets
HELLO = pack(M.START_CONTROL_CONNECTION_REQUEST, host=b"host")
REQUEST = pack(M.OUTGOING_CALL_REQUEST, call_id=0x1234)
CLEAR = pack(M.CALL_CLEAR_REQUEST, call_id=0x1234)
ECHO = pack(M.ECHO_REQUEST, identifier=9)


class Inverting:
    """A reader to whom every number is its complement, unless told otherwise."""

    def __init__(self, *, certain: bool = True) -> None:
        self.certain = certain
        self.messages: list[bytes] = []
        self.oddities: list[str] = []
        self.released: list[int] = []
        self.abandoned = 0
        self.refuses = False
        self.stream: Stream | None = None

    def number(self, kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:
        if self.refuses:
            raise ExhaustedError("none left")
        return value ^ 0xFFFF

    def result(self, value: int) -> int:
        return value

    def first_octet(self, kind: MessageType, high: int, *, own: bool) -> FirstOctet:
        return FirstOctet(high ^ 0xFF, self.certain)

    def message(self, head: Frame, octets: bytes) -> None:
        self.messages.append(octets)

    def release(self, octet: int) -> None:
        assert self.stream is not None
        self.stream.held = None
        self.released.append(octet)

    def abandon(self) -> None:
        self.abandoned += 1

    def oddity(self, slug: str) -> None:
        self.oddities.append(slug)


class Talk:
    """A stream with its reader; `say` returns what travels on."""

    def __init__(self, *, start: int | None = 0, certain: bool = True, limit: int = LIMIT) -> None:
        self.stream = Stream()
        self.reader = Inverting(certain=certain)
        self.reader.stream = self.stream
        self.limit = limit
        if start is not None:
            self.stream.start(start)

    def say(self, sequence: int, octets: bytes) -> bytes | Progress:
        """Push a segment; return its octets if it passes, else what becomes of it."""
        progress, edits = self.stream.push(
            sequence & 0xFFFFFFFF, octets, self.reader, limit=self.limit
        )
        self.check_bounds()
        if progress is Progress.HOLD:
            self.stream.held = object()
        return progress if progress is not Progress.PASS else apply(octets, edits)

    def check_bounds(self) -> None:
        """Whatever came, no more than this is kept."""
        assert len(self.stream.head) < LONGEST
        assert len(self.stream.history) <= self.limit
        assert len(self.stream.overlays) <= OVERLAY_LIMIT


def apply(octets: bytes, edits: list[Edit]) -> bytes:
    out = bytearray(octets)
    for at, new in edits:
        assert 0 <= at <= at + len(new) <= len(octets), "an edit lies within its segment"
        out[at : at + len(new)] = new
    return bytes(out)


def inverted(message: bytes) -> bytes:
    """Return the message with its Call ID complemented."""
    return message[:12] + bytes(octet ^ 0xFF for octet in message[12:14]) + message[14:]


@given(st.lists(st.sampled_from((HELLO, REQUEST, CLEAR, ECHO)), min_size=1, max_size=6), st.data())
@effort(150)
def test_framing_ignores_segment_boundaries(
    conversation: list[bytes], data: st.DataObject
) -> None:
    """However TCP cuts the stream, the same messages come out in the same order."""
    octets = b"".join(conversation)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=12)))
    talk = Talk()
    for begin, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
        if begin < end:
            talk.say(begin, octets[begin:end])

    assert conversation == talk.reader.messages


@given(st.data(), st.sampled_from((None, 0, 0xFFFFFF80)), st.booleans())
@effort(200)
def test_whatever_comes_no_more_is_kept_than_the_limits(
    data: st.DataObject, start: int | None, certain: bool  # noqa: FBT001 (drawn)
) -> None:
    """Messages, garbage, gaps and acknowledgements from anywhere: memory is bounded."""
    talk = Talk(start=start, certain=certain)
    pieces = st.sampled_from((HELLO, REQUEST, CLEAR, HEADER.pack(LONGEST, 1, MAGIC, 7, 0)))
    octets = st.one_of(st.binary(min_size=1, max_size=1500), st.tuples(
        st.binary(max_size=3), st.lists(pieces, min_size=1, max_size=20).map(b"".join),
    ).map(b"".join))  # fmt: skip
    offsets = st.one_of(st.just(0), st.integers(-500, 500), st.integers(0, 0xFFFFFFFF))
    for _ in range(data.draw(st.integers(1, 12))):
        expected = talk.stream.next or 0
        talk.reader.refuses = data.draw(st.integers(0, 9)) == 9
        try:
            talk.say(expected + data.draw(offsets), data.draw(octets))
        except ExhaustedError:
            assert talk.reader.refuses
        talk.check_bounds()
        if data.draw(st.booleans()):
            talk.stream.acknowledge((expected + data.draw(offsets)) & 0xFFFFFFFF)
        if data.draw(st.integers(0, 9)) == 9:
            talk.stream.settle()
        talk.check_bounds()


def test_an_acknowledged_segment_sent_again_stays_what_it_was() -> None:
    """Nobody needs it, but it must not carry octets of the unacknowledged rest."""
    talk = Talk()
    talk.say(0, HELLO)
    talk.say(156, ECHO)
    talk.stream.acknowledge(172)
    talk.say(172, REQUEST)

    assert HELLO == talk.say(0, HELLO)
    assert [] == talk.reader.oddities


def test_the_last_octet_sent_again_alone_is_translated_again() -> None:
    """One octet before the next one looks like a keep-alive, and may be the only lost one."""
    talk = Talk()
    for at in range(14):
        talk.say(at, CLEAR[at : at + 1])

    assert inverted(CLEAR)[13:14] == talk.say(13, CLEAR[13:14])
    assert [] == talk.reader.oddities


def test_a_keep_alive_is_no_data() -> None:
    """Its octet is garbage: neither a conflict nor part of the stream (RFC 9293, 3.8.4)."""
    talk = Talk()
    talk.say(0, ECHO)
    talk.say(15, b"\xaa")
    talk.stream.acknowledge(16)
    talk.say(15, b"\xbb")
    talk.say(16, CLEAR)

    assert [] == talk.reader.oddities
    assert [ECHO, CLEAR] == talk.reader.messages
    talk.say(30, b"\xaa\xbb")  # two octets are no keep-alive
    assert ["conflicting_overlap"] == talk.reader.oddities


@pytest.mark.parametrize("acknowledged", [17, 0x7FFFFFFF])
def test_an_acknowledgement_alone_moves_nothing(acknowledged: int) -> None:
    """A FIN is acknowledged like an octet; an old connection's segment acknowledges anything."""
    talk = Talk()
    talk.say(0, ECHO)
    talk.stream.acknowledge(acknowledged)

    assert inverted(CLEAR) == talk.say(16, CLEAR)


def test_octets_that_went_another_way_are_left_behind() -> None:
    """While the rules were away, messages went by: a later boundary is where to go on."""
    talk = Talk(certain=False)
    talk.say(0, ECHO)
    assert Progress.HOLD is talk.say(16, CLEAR[:13])
    assert Progress.DROP is talk.say(100, CLEAR)
    assert Progress.DROP is talk.say(16, CLEAR[:13])  # its first copy will be let go
    talk.stream.acknowledge(64)
    assert Progress.DROP is talk.say(100, CLEAR)
    talk.stream.acknowledge(100)

    assert inverted(CLEAR) == talk.say(100, CLEAR)
    assert [CLEAR[12] ^ 0xFF] == talk.reader.released  # the packet that was held
    assert talk.reader.abandoned == 1
    assert talk.stream.cut is None
    assert ["gap", "gap"] == talk.reader.oddities
    assert talk.say(116, b"12345") == b"12345"


def test_a_stream_met_in_the_middle_waits_for_what_is_missing_like_any_other() -> None:
    """A crash before the first octets are on record, and segments that come out of order.

    Octets that are let pass unread may be a message: then its numbers stay as they are.
    """
    talk = Talk(start=None)
    assert HELLO[140:] == talk.say(140, HELLO[140:]), "its end alone came so far"
    assert HELLO == talk.say(0, HELLO)
    assert Progress.DROP is talk.say(175, REQUEST[19:])
    assert inverted(REQUEST) == talk.say(156, REQUEST)
    assert [REQUEST] == talk.reader.messages
    assert ["gap"] == talk.reader.oddities

    begin = 156 + len(REQUEST)
    assert Progress.DROP is talk.say(begin + 16, CLEAR)
    talk.stream.acknowledge(begin + 16)
    assert inverted(CLEAR) == talk.say(begin + 16, CLEAR), "it went another way"


def test_a_refused_message_is_dropped_and_what_was_before_it_is_not() -> None:
    """TCP sends the segment again: by then a number may be free."""
    talk = Talk()
    talk.say(0, HELLO[:20])
    talk.reader.refuses = True
    for _ in range(2):
        with pytest.raises(ExhaustedError):
            talk.say(20, HELLO[20:] + ECHO + REQUEST)
    with pytest.raises(ExhaustedError):
        talk.say(172, REQUEST)
    talk.reader.refuses = False

    again = HELLO[20:] + ECHO + REQUEST
    assert HELLO[20:] + ECHO + inverted(REQUEST) == talk.say(20, again)
    assert [HELLO, ECHO, REQUEST] == talk.reader.messages


def test_a_refused_message_after_garbage_keeps_its_boundary() -> None:
    """The octets before the boundary are not read once more as a message."""
    talk = Talk(start=None)
    talk.say(0, b"garbage" + REQUEST[:5])
    talk.reader.refuses = True
    with pytest.raises(ExhaustedError):
        talk.say(12, REQUEST[5:])
    talk.reader.refuses = False

    assert inverted(REQUEST)[5:] == talk.say(12, REQUEST[5:])
    assert [] == talk.reader.oddities


def test_a_window_full_of_the_shortest_messages_can_be_sent_again() -> None:
    """64 KiB of Call-Clear-Requests in flight, and the first segment lost."""
    talk = Talk(limit=4096)
    for at in range(0, 4096 * 16, 1600):
        assert inverted(CLEAR) * 100 == talk.say(at, CLEAR * 100)

    assert inverted(CLEAR) * 100 == talk.say(96 * 16, CLEAR * 100)
    assert Progress.DROP is talk.say(0, CLEAR)  # beyond what is kept: better late than wrong
    assert ["retransmission_too_old"] == talk.reader.oddities
    talk.stream.acknowledge(4096 * 16)
    assert CLEAR * 2 == talk.say(0, CLEAR * 2)  # acknowledged, so nobody reads it
    assert len(talk.stream.overlays) < 100


def test_first_seen_wins() -> None:
    """Whoever sends other octets in the same place changes nothing of what was sent on."""
    talk = Talk()
    talk.say(0, REQUEST)
    other = REQUEST[:12] + b"\x77\x77" + REQUEST[14:100] + b"evil" + REQUEST[104:]

    assert inverted(REQUEST) == talk.say(0, other)
    assert inverted(REQUEST)[90:] + inverted(CLEAR) == talk.say(90, other[90:] + CLEAR)
    assert ["conflicting_overlap"] * 2 == talk.reader.oddities
    assert [REQUEST, CLEAR] == talk.reader.messages


def test_a_long_silence_forgets_octets_and_not_what_they_became() -> None:
    """Overlays are small, and a retransmission may come after any silence."""
    talk = Talk()
    talk.say(0, REQUEST)
    talk.stream.settle()

    assert b"" == talk.stream.history
    assert inverted(REQUEST) == talk.say(0, REQUEST)
    talk.stream.acknowledge(168)
    assert inverted(CLEAR) == talk.say(168, CLEAR)


def test_an_acknowledgement_before_the_first_octet_means_nothing() -> None:
    """A responder's stream begins when its opener has acknowledged its start."""
    stream = Stream()
    stream.acknowledge(5)
    assert stream.next is None


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_met_in_the_middle_is_followed_from_the_next_boundary(seed: int) -> None:
    """Garbage, or the rest of a message, then a message that certainly begins."""
    drawn = random.Random(seed)
    talk = Talk(start=None)
    octets = REQUEST[60:] + ECHO + CLEAR
    at = 0
    out = b""
    while at < len(octets):
        size = drawn.randrange(1, 20)
        said = talk.say(at, octets[at : at + size])
        assert isinstance(said, bytes)
        out += said
        at += size

    assert REQUEST[60:] + ECHO + inverted(CLEAR) == out
    assert [ECHO, CLEAR] == talk.reader.messages


@pytest.mark.parametrize("jumps", [1, 2, 3])
def test_a_sender_that_jumps_about_finds_its_edits_in_its_segments(jumps: int) -> None:
    """Half the sequence space at a time: what lay behind lies ahead then."""
    talk = Talk(start=None)
    at = 0
    for _ in range(jumps):
        for place in range(at, at + 160, 16):
            talk.say(place, CLEAR)
        talk.say(at + 160, bytes(200))  # framing is lost
        at += 0x7FFFFF00

    for place in range(-400, 400, 7):
        said = talk.say(at + place, CLEAR * 3)
        assert isinstance(said, Progress) or len(said) == 48
