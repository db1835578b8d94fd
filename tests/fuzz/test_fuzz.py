"""The harness, fired for a short while; ``python -m tests.fuzz`` fires for longer."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pptp_nat.core.messages import HEADER, LONGEST, MAGIC, Frame, MessageType, frame, pack, unpack
from pptp_nat.core.packet import enhanced_gre, segment
from pptp_nat.core.stream import FirstOctet, Progress, Stream
from pptp_nat.errors import ExhaustedError, WireError
from tests.core.effort import effort
from tests.core.wire import tcp_packet

from .harness import HISTORY, HOSTS, SHOTS, TALK, Range, Shot, mutated, pieces

M = MessageType


@given(st.binary(max_size=300) | mutated() | TALK)
@effort(300)
@example(HEADER.pack(0, 1, MAGIC, 7, 0))
def test_reading_a_message(octets: bytes) -> None:
    """A header keeps the framing within bounds, or loses it by `WireError`."""
    with contextlib.suppress(WireError):
        unpack(octets)
    for at in range(max(len(octets) - 11, 0)):
        with contextlib.suppress(WireError):
            head = frame(octets, at)
            assert 12 <= head.length <= LONGEST


@given(st.binary(max_size=120), st.integers(0, 119), st.integers(0, 255))
@effort(300)
def test_reading_a_packet(octets: bytes, place: int, value: int) -> None:
    """Random octets, and a good packet with a wrong one: a view within bounds, or none."""
    good = bytearray(tcp_packet(HOSTS[0], 4711, HOSTS[2], 1723, sequence=1, payload=octets))
    good[place % len(good)] = value
    for tried in (octets, bytes(good), bytes(good[: place % len(good)])):
        view = segment(tried)
        assert view is None or view.tcp_at < view.payload_at <= view.end <= len(tried)
        with contextlib.suppress(WireError):
            enhanced_gre(tried, place % (len(tried) + 1))
            enhanced_gre(b"\x30\x81\x88\x0b" + tried)


class Teller:
    """A reader that writes down what it is told, and refuses some numbers."""

    def __init__(self, *, refused: int | None = None) -> None:
        self.refused = refused
        self.story: list[object] = []

    def number(self, kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:
        if own and value == self.refused:
            raise ExhaustedError("refused")
        return value ^ 0x0F0F

    def result(self, value: int) -> int:
        return value

    def first_octet(self, kind: MessageType, high: int, *, own: bool) -> FirstOctet:
        return FirstOctet(high ^ 0x0F, certain=True)

    def message(self, head: Frame, octets: bytes) -> None:
        self.story.append((head, octets))

    def release(self, octet: int) -> None:
        raise AssertionError("nothing is held")

    def abandon(self) -> None:
        self.story.append("abandoned")

    def oddity(self, slug: str) -> None:
        self.story.append(slug)


@given(TALK, st.booleans())
@effort(300)
def test_a_stream_tells_the_same_story_whole_and_octet_by_octet(
    octets: bytes, from_start: bool  # noqa: FBT001 (drawn)
) -> None:
    """Good messages, bad ones, good ones again: same messages, same octets, same oddities."""
    stories = []
    for size in (max(len(octets), 1), 1):
        stream, teller = Stream(), Teller()
        if from_start:
            stream.start(7)
        out = b""
        for at, piece in pieces(octets, size):
            progress, edits = stream.push(7 + at, piece, teller, limit=HISTORY)
            assert Progress.PASS is progress
            changed = bytearray(piece)
            for place, new in edits:
                changed[place : place + len(new)] = new
            assert len(piece) == len(changed)
            out += changed
        stories.append((teller.story, out, stream.head, stream.synced, stream.next))

    assert stories[0] == stories[1]


@given(TALK, st.sampled_from((0, 1, 0x1234)), st.data())
@effort(200)
def test_a_refusal_moves_the_stream_to_the_refused_message_at_most(
    octets: bytes, refused: int, data: st.DataObject
) -> None:
    """However often it is sent again; once it is not refused, all goes on as if nothing was."""
    calm, tried = Teller(), Teller(refused=refused)
    streams = Stream(), Stream()
    at = 0
    while at < len(octets):
        end = data.draw(st.integers(at + 1, len(octets)))
        streams[0].push(at, octets[at:end], calm, limit=HISTORY)
        try:
            streams[1].push(at, octets[at:end], tried, limit=HISTORY)
        except ExhaustedError:
            assert streams[1].next is not None
            assert at <= streams[1].next < end
            tried.refused = None
            streams[1].push(at, octets[at:end], tried, limit=HISTORY)
            tried.refused = refused
        at = end

    assert calm.story == tried.story
    assert streams[0].head == streams[1].head


@given(SHOTS, st.integers(0, 7), st.sampled_from((0, 0, 3)), st.booleans(), st.booleans())
@effort(120)
@example([Shot(0, 2, (4711, 1723), 0, 0x18, 0, pack(M.OUTGOING_CALL_REQUEST, call_id=1)[:13],
               False, 0.0)], 1, 0, False, False)  # fmt: skip
def test_a_translator_under_fire(
    shots: list[Shot], insiders: int, deaf_every: int, preserve: bool, octetwise: bool  # noqa: FBT001
) -> None:
    """Any packets at any time: only declared exceptions, bounded memory, nothing left at last."""
    fire = Range(insiders, deaf_every=deaf_every, preserve=preserve)
    for shot in shots:
        if octetwise:
            shot = shot._replace(octets=shot.octets[:300])  # noqa: PLW2901 (shorter)
        fire.fire(shot, 1 if octetwise else 65_000)
    fire.end()


@given(TALK, st.integers(0, 7))
@effort(100)
def test_one_sided_talk_is_one_story_whole_and_octet_by_octet(octets: bytes, insiders: int) -> None:
    """The translator's view of the same octets does not depend on how they came."""
    stories = []
    for size in (65_000, 1):
        fire = Range(insiders, deaf_every=0, preserve=False)
        fire.fire(Shot(0, 2, (4711, 1723), 0, 0x02, 0, b"", False, 0.0), 1)
        fire.fire(Shot(0, 2, (4711, 1723), 0, 0x18, 0, octets, False, 0.0), size)
        stories.append(fire.story)
        fire.end()

    whole, octetwise = stories
    # A refusal drops a whole segment: what comes behind the refused message is sent again.
    assert whole == octetwise[: len(whole)]


@pytest.mark.parametrize("insiders", range(8))
def test_random_packets_of_random_octets(insiders: int) -> None:
    """No structure at all."""
    import random

    drawn = random.Random(insiders)
    fire = Range(insiders, deaf_every=0, preserve=False)
    for _ in range(300):
        fire.put(drawn.randbytes(drawn.randrange(80)))
        fire.put(b"\x45" + drawn.randbytes(8) + b"\x06" + drawn.randbytes(drawn.randrange(90)))
    fire.end()
