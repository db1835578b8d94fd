"""GRE of calls before there is a stack: the XDP program, on frames that nobody sends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP

from pptp_nat.core.tuples import Leg
from pptp_nat.lab import namespaces
from pptp_nat.linux.bpf_object import Ran
from pptp_nat.linux.datapath import LegOrder, Tally
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.linux.traffic_control import EARLY_NAME
from tests.paths import NO_EARLY

from .bpf_frames import (
    CLIENT,
    INWARD,
    OUTWARD,
    ROUTER,
    SERVER,
    Programs,
    Queue,
    gre,
    legs,
    packets,
    with_fresh_sum,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(NO_EARLY is not None, reason=f"XDP: {NO_EARLY}"),
]

PASS, REDIRECT = 2, 4  # linux/bpf.h, enum xdp_action
OURS, NEXT, OUT = (bytes.fromhex(f"0200000000{n:02x}") for n in (1, 2, 3))
IPV4 = b"\x08\x00"
HEAD = OURS + NEXT + IPV4
MTU = 1400


def number_of(device: str) -> bytes:
    return socket.if_nametoindex(device).to_bytes(4, sys.byteorder)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


class Early(Programs):
    """The XDP program in a namespace where whatever comes in at the loopback leaves at `out`."""

    def __init__(self) -> None:
        super().__init__("xdp")
        for line in (
            "link set lo up",
            f"link add out address {OUT.hex(':')} mtu {MTU} type veth peer name end",
            "link set end up",
            "link set out up",
            "addr add 203.0.113.1/24 dev out",
            "route add default via 203.0.113.2",
            f"neigh add 203.0.113.2 lladdr {NEXT.hex(':')} dev out",
        ):
            ip(line)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.ports, self.exits = self.object.map_fd("ports"), self.object.map_fd("exits")
        self.lo, self.out = number_of("lo"), number_of("out")
        assert 0 == self.object.update(self.ports, self.lo, OURS + bytes(2))
        self.open()

    def open(self) -> None:
        assert 0 == self.object.update(self.exits, self.out, self.out)

    def see(self, frame: bytes) -> Ran:
        return self.object.test_run_early(EARLY_NAME, frame)

    def passes(self, frame: bytes) -> bool:
        ran = self.see(frame)
        assert ran.verdict in (PASS, REDIRECT)
        assert ran.verdict == REDIRECT or ran.frame == frame, "the stack sees it as it came"
        return ran.verdict == PASS


@pytest.fixture(scope="module")
def early() -> Iterator[Early]:
    name = f"early-{os.getpid()}"
    namespaces.create(name)
    try:
        with namespaces.entered(name), contextlib.closing(Early()) as made:
            yield made
    finally:
        namespaces.remove(name)


def by_the_queue(leg: Leg, packet: bytes) -> bytes:
    """Return what the data path `queue` makes of a packet, one hop further."""
    path, queue = QueuePath(), Queue()
    path.install([LegOrder(leg, 0)])
    path.judge(queue, SimpleNamespace(octets=packet, hook=0, mark=0))  # type: ignore[arg-type]
    made = bytearray(queue.made or b"")
    made[8] -= 1
    return with_fresh_sum(bytes(made))


def is_easy(leg: Leg, packet: bytes) -> bool:
    """Whether a packet may go before the stack, as scapy reads it."""
    ip, match = IP(packet), (leg.source, leg.destination, leg.key)
    octets = bytes(ip.payload)
    return (
        ip.ihl == 5 and ip.ttl > 1 and len(octets) >= 12
        and octets[2:4] == b"\x88\x0b" and octets[0] in (0x20, 0x30) and octets[1] in (0x01, 0x81)
        and match == (packet[12:16], packet[16:20], int.from_bytes(octets[6:8], "big"))
        and not (leg.source != leg.new_source and leg.destination != leg.new_destination)
    )  # fmt: skip


@given(st.data())
def test_what_is_easy_goes_on_as_the_queue_would_send_it(
    early: Early, data: st.DataObject
) -> None:
    """One hop further, to the next one's MAC address, and counted; all else as it came."""
    leg = data.draw(legs())
    packet = data.draw(packets(leg))
    slot = early.put(leg)
    try:
        ran = early.see(HEAD + packet)
        tally = early.counts.tally(slot)
    finally:
        early.take_out(leg, slot)

    if is_easy(leg, packet) and 1 <= leg.new_destination[0] < 224 and leg.new_destination[0] != 127:
        assert REDIRECT == ran.verdict
    if ran.verdict == REDIRECT:
        assert is_easy(leg, packet)
        assert NEXT + OUT + IPV4 == ran.frame[:14]
        assert by_the_queue(leg, packet) == ran.frame[14:]
        assert Tally(1, len(packet)) == tally
    else:
        assert (PASS, HEAD + packet, Tally(0, 0)) == (ran.verdict, ran.frame, tally)


EASY = HEAD + gre(SERVER, ROUTER, 4711, seq=1)


@pytest.mark.parametrize(
    "frame",
    [
        EASY + bytes(6),
        OUT + EASY[6:],
        bytes(6 * [0xFF]) + EASY[6:],
        HEAD + gre(SERVER, ROUTER, 4712, seq=1),
        HEAD + gre(SERVER, ROUTER, 4711, seq=1, ttl=1),
        HEAD + gre(SERVER, ROUTER, 4711, seq=1, options=b"\x01" * 4),
        HEAD + gre(SERVER, ROUTER, 4711, seq=1, flags="MF"),
        HEAD + gre(SERVER, ROUTER, 4711, seq=1, frag=60),
        OURS + NEXT + b"\x81\x00\x00\x05" + EASY[12:],
        HEAD + gre(SERVER, ROUTER, 4711, seq=1)[:-1],
        *[EASY[:octets] for octets in range(14, 46)],
    ],
)  # fmt: skip
def test_what_is_not_easy_is_the_stacks(early: Early, frame: bytes) -> None:
    """Another's MAC address, no call, TTL, options, fragments, a VLAN's tag, cut off."""
    slot = early.put(INWARD)
    try:
        assert not early.passes(EASY)
        counted = early.counts.tally(slot)
        padded = frame.startswith(EASY)
        assert early.passes(frame) is not padded, "padding behind a packet is none of it"
        assert padded or early.counts.tally(slot) == counted
    finally:
        early.take_out(INWARD, slot)


def test_a_way_that_is_not_easy_is_the_stacks_to_find(early: Early) -> None:
    """Longer than the MTU, a neighbour not known, a device that takes no frames."""
    slot = early.put(OUTWARD)
    frame = HEAD + gre(CLIENT, SERVER, 100, seq=1)
    try:
        assert not early.passes(frame)
        early.object.delete(early.exits, early.out)
        assert early.passes(frame)
        early.open()
        ip("route add 192.0.2.1 via 203.0.113.9 dev out")
        assert early.passes(frame)
        ip("route del 192.0.2.1")
        ip("link set out mtu 68")
        assert early.passes(frame)
        subprocess.run(f"ip link set out mtu {MTU}".split(), check=True)
        assert not early.passes(frame), "the way is found for each packet anew"
    finally:
        early.take_out(OUTWARD, slot)


def test_a_call_with_a_mark_is_left_to_those_who_can_mark(early: Early) -> None:
    """A mark is for shaping, or for routing by policy, and a bare frame has none."""
    slot = early.put(INWARD, 5)
    try:
        assert early.passes(EASY)
    finally:
        early.take_out(INWARD, slot)


def test_sequence_numbers_are_watched_before_the_stack_too(early: Early) -> None:
    slot = early.put(INWARD)
    try:
        for number in (5, 6, 9, 8, 10):
            assert not early.passes(HEAD + gre(SERVER, ROUTER, 4711, seq=number))
        seen = early.counts.watched(slot)
    finally:
        early.take_out(INWARD, slot)

    assert (5, 2, 1) == (seen.tally.packets, seen.missing, seen.late)
