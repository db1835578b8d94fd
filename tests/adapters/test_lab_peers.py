"""The laboratory's peers are oracles; here they are held against others' work and each other.

No root: TCP over the loopback, and GRE only as octets that are handed over.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core import messages as core
from pptp_nat.lab import wire
from pptp_nat.lab.hdlc import Deframer, checksum, frame
from pptp_nat.lab.peers import Call, Connection, Loop, Station
from pptp_nat.lab.real_peers import Outcome, Report
from pptp_nat.lab.wire import Gre, decode, decode_gre, encode, encode_gre

HOME = "127.0.0.1"

SCAPY = {
    "SCCRQ": "PPTPStartControlConnectionRequest",
    "SCCRP": "PPTPStartControlConnectionReply",
    "StopCCRQ": "PPTPStopControlConnectionRequest",
    "StopCCRP": "PPTPStopControlConnectionReply",
    "EchoRQ": "PPTPEchoRequest",
    "EchoRP": "PPTPEchoReply",
    "OCRQ": "PPTPOutgoingCallRequest",
    "OCRP": "PPTPOutgoingCallReply",
    "ICRQ": "PPTPIncomingCallRequest",
    "ICRP": "PPTPIncomingCallReply",
    "ICCN": "PPTPIncomingCallConnected",
    "CCRQ": "PPTPCallClearRequest",
    "CDN": "PPTPCallDisconnectNotify",
    "WEN": "PPTPWANErrorNotify",
    "SLI": "PPTPSetLinkInfo",
}


def _without_gre(kind: socket.SocketKind, protocol: int) -> socket.socket:
    if kind == socket.SOCK_RAW:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return socket.socket(socket.AF_INET, kind, protocol)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair(loop: Loop, request: pytest.FixtureRequest) -> Iterator[tuple[Station, Station, int]]:
    """Give a caller, a listener and its port; parametrise with arguments for the listener."""
    arguments: dict[str, Any] = getattr(request, "param", {})
    alice = Station("alice", loop, _without_gre)
    server = Station("server", loop, _without_gre, call_ids=range(0x0101, 0xFFFF, 7), **arguments)
    yield alice, server, server.listen(HOME)
    alice.close()
    server.close()


def _connected(loop: Loop, pair: tuple[Station, Station, int], **how: Any) -> Connection:
    alice, server, port = pair
    connection = alice.dial(HOME, port, **how)
    assert loop.run_until(lambda: connection.established)
    assert ("server", "alice") == (connection.peer_name, server.connections[-1].peer_name)
    return connection


def _up(loop: Loop, call: Call) -> Call:
    assert loop.run_until(lambda: call.up)
    return call


@pytest.mark.parametrize("name", wire.LAYOUTS)
def test_an_independent_author_agrees_on_every_message(name: str) -> None:
    """Scapy's layers were written by others; a wrong oracle would hide a wrong translator."""
    layers = pytest.importorskip("scapy.layers.pptp")
    layout = wire.LAYOUTS[name]
    octets = encode(name, **dict.fromkeys(_numbers(name), 1))
    parsed = layers.PPTP(octets)

    assert SCAPY[name] == type(parsed).__name__
    assert len(octets) == parsed.len == len(bytes(getattr(layers, SCAPY[name])()))
    assert layout.number == parsed.ctrl_msg_type
    for field, theirs in (("call", "call_id"), ("peer", "peer_call_id"), ("result", "result_code")):
        if field in layout.names:
            assert 1 == getattr(parsed, theirs), field


def _numbers(name: str) -> list[str]:
    empty = wire.LAYOUTS[name].body.unpack(bytes(wire.LAYOUTS[name].body.size))
    return [
        field
        for field, value in zip(wire.LAYOUTS[name].names, empty, strict=True)
        if isinstance(value, int)
    ]


@pytest.mark.parametrize("name", wire.LAYOUTS)
def test_the_two_tables_of_this_project_agree_on_call_ids(name: str) -> None:
    """They were written apart, so a slip in either shows here first."""
    number, body, names = wire.LAYOUTS[name]
    layout = core.LAYOUTS[core.MessageType(number)]
    octets = encode(name, **{key: mark for key, mark in _MARKS.items() if key in names})

    assert layout.length == len(octets) == 12 + body.size
    assert [
        None if at is None else octets[at : at + 2] for at in (layout.call_id, layout.peer_call_id)
    ] == [_MARKS[key].to_bytes(2, "big") if key in names else None for key in ("call", "peer")]


_MARKS = {"call": 0xA1B2, "peer": 0xC3D4}


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_waited_for(octets: bytes) -> None:
    """A peer that a broken translator talks to must say so, not fall over."""
    with contextlib.suppress(ValueError):
        assert decode(octets) is None


@given(
    st.builds(
        Gre,
        st.integers(0, 0xFFFF),
        st.binary(max_size=40),
        st.none() | st.integers(0, 0xFFFFFFFF),
        st.none() | st.integers(0, 0xFFFFFFFF),
    )
)
def test_gre_is_read_as_it_was_written(packet: Gre) -> None:
    assert packet == decode_gre(encode_gre(packet))


def test_other_sorts_of_gre_are_not_taken_for_calls() -> None:
    """Plain GRE (version 0), and enhanced GRE without a key or cut short."""
    assert [decode_gre(octets) for octets in _OTHERS] == [None] * len(_OTHERS)


_OTHERS = [
    b"",
    b"\x30\x01\x88",
    bytes.fromhex("20000800 0000002a"),
    bytes.fromhex("1001880b 00000000"),
    encode_gre(Gre(7, b"hello", 0))[:-1],
]


@pytest.mark.parametrize("how", [{}, {"cut": 1}, {"cut": 1, "nodelay": False}, {"cut": 7}], ids=str)
def test_a_call_comes_up_however_the_messages_are_cut(
    loop: Loop, pair: tuple[Station, Station, int], how: dict[str, Any]
) -> None:
    connection = _connected(loop, pair, **how)
    first, second = (_up(loop, connection.call(7777 + n)) for n in range(2))
    theirs = [pair[1].named(each.label) for each in (first, second)]

    assert [first.own_id, second.own_id] == [each.peer_id for each in theirs]
    assert [first.peer_id, second.peer_id] == [each.own_id for each in theirs]
    assert [("PNS", "PAC")] * 2 == [
        (ours.role, other.role) for ours, other in zip((first, second), theirs, strict=True)
    ]


def test_an_offered_call_comes_up_with_the_roles_the_other_way_round(
    loop: Loop, pair: tuple[Station, Station, int]
) -> None:
    connection = _connected(loop, pair)
    call = _up(loop, connection.offer(5))
    theirs = pair[1].named(call.label)
    _up(loop, theirs)

    assert ("PAC", "PNS", 5) == (call.role, theirs.role, theirs.peer_id)


@pytest.mark.parametrize("pair", [{"refuses": True}], indirect=True, ids=["refuses"])
def test_a_refused_call_is_refused_at_both_ends(
    loop: Loop, pair: tuple[Station, Station, int]
) -> None:
    connection = _connected(loop, pair)
    calls = [connection.call(), connection.offer()]

    assert loop.run_until(lambda: all(each.state == "refused" for each in calls))


@pytest.mark.parametrize(
    ("pair", "number"),
    [({}, 0x0101), ({"quirk": "peers"}, 0x1234), ({"quirk": "peers-swapped"}, 0x3412)],
    indirect=["pair"],
    ids=str,
)
def test_a_disconnect_notify_is_understood_whichever_number_it_carries(
    loop: Loop, pair: tuple[Station, Station, int], number: int
) -> None:
    connection = _connected(loop, pair)
    call = _up(loop, connection.call(0x1234))
    connection.clear(call)

    assert loop.run_until(lambda: call.state == "gone")
    assert number == connection.received[-1].number("call")
    assert [] == connection.unknown


def test_echo_link_info_and_stop_are_answered(
    loop: Loop, pair: tuple[Station, Station, int]
) -> None:
    connection = _connected(loop, pair)
    call = _up(loop, connection.call())
    assert call.peer_id is not None
    connection.send("EchoRQ", identifier=42)
    connection.send("SLI", peer=call.peer_id, send_accm=1, receive_accm=2)
    connection.stop()

    assert loop.run_until(lambda: connection.closed and pair[1].connections[0].closed)
    assert 42 == next(m for m in connection.received if m.name == "EchoRP").number("identifier")
    assert ["SLI"] == [each.name for each in pair[1].named(call.label).heard]
    assert ("gone", "") == (call.state, connection.error)


def test_lost_framing_closes_the_connection_with_a_reason(
    loop: Loop, pair: tuple[Station, Station, int]
) -> None:
    connection = _connected(loop, pair)
    connection.send_raw(b"GET / HTTP/1.0\r\n\r\n")

    assert loop.run_until(lambda: connection.closed)
    assert "not a PPTP control message" in pair[1].connections[0].error


def test_gre_counts_only_where_it_belongs(loop: Loop, pair: tuple[Station, Station, int]) -> None:
    """Every test of the translator rests on this count."""
    connection = _connected(loop, pair)
    call = _up(loop, connection.call(9))
    other = _up(loop, connection.call(10))
    alice = pair[0]

    def arrives(label: str, key: int, *, number: int = 0, sender: str = "server") -> None:
        text = f"{sender}>alice call={label} n={number}".encode()
        alice.hear(HOME, encode_gre(Gre(key, text, number)))

    arrives(call.label, 9)
    arrives(call.label, 9, number=1)
    assert (2, 0) == (call.right, len(call.wrong))

    arrives(call.label, 9, number=1)  # again
    arrives(other.label, 9, number=2)
    arrives(call.label, 9, number=3, sender="mallory")
    assert (2, 3) == (call.right, len(call.wrong))

    arrives(call.label, 11)
    alice.hear(HOME, _OTHERS[2])
    assert (2, 2, 0) == (call.right, len(alice.strays), other.right)


def test_the_frame_checksum_is_the_one_of_the_standard() -> None:
    """The check value of CRC-16/X-25 over the nine digits."""
    assert 0x906E == checksum(b"123456789") ^ 0xFFFF


@given(st.lists(st.binary(max_size=30), max_size=4), st.integers(1, 9))
def test_frames_come_out_of_octets_in_pieces(bodies: list[bytes], size: int) -> None:
    octets = b"".join(frame(body) for body in bodies)
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    frames = Deframer()

    assert bodies == [body for piece in pieces for body in frames.feed(piece)]


def test_a_damaged_frame_is_left_out() -> None:
    octets = frame(b"hello").replace(b"hello", b"hullo")

    assert [b"there"] == Deframer().feed(octets + frame(b"there"))


def test_the_stand_in_for_pppd_answers_with_its_name() -> None:
    """It is a program of its own, run by pptpd, where nobody sees it fail."""
    done = subprocess.run(
        [sys.executable, "-m", "pptp_nat.lab.ppp_echo", "local", "file", "options"],
        input=frame(b"one") + frame(b"two"),
        capture_output=True,
        check=True,
    )
    greeting, *answers = (body.partition(b" from ") for body in Deframer().feed(done.stdout))

    assert b"hello" == greeting[0]
    assert [(b"one", greeting[2]), (b"two", greeting[2])] == [(a, name) for a, _, name in answers]


GOOD = Outcome("a", sent=5, right=5, wrong=0, foreign=0, partner="1.aa", dialled=1)


@pytest.mark.parametrize(
    ("other", "good"),
    [
        (GOOD._replace(client="b", partner="2.bb"), True),
        (GOOD._replace(client="b"), False),
        (GOOD._replace(client="b", partner="2.bb", right=4), False),
        (GOOD._replace(client="b", partner="2.bb", wrong=1), False),
        (GOOD._replace(client="b", partner="2.bb", foreign=1), False),
    ],
    ids=["all well", "same server process", "an answer missing", "a wrong one", "another's"],
)
def test_a_report_is_good_only_if_everybody_got_their_own(other: Outcome, *, good: bool) -> None:
    assert good is Report(((GOOD, 5), (other, 5))).good


def test_numbers_begin_anew_and_leave_out_those_that_calls_have(loop: Loop) -> None:
    """An hour of calls has more of them than there are numbers."""
    server = Station("server", loop, _without_gre)
    connection = SimpleNamespace(remote=HOME)
    first = [server.next_id() for _ in range(0xFFFF)]
    server.remember(cast("Call", SimpleNamespace(connection=connection, own_id=2)))

    assert list(range(1, 1 << 16)) == first
    assert [1, 3, 4] == [server.next_id() for _ in range(3)]
    server.close()
