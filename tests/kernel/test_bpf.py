"""The BPF programs, run on packets that nobody sends, against others who rewrite or read them."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from pptp_nat.linux import bpf_maps
from pptp_nat.linux.bpf_path import OBJECTS, BpfPath
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.queue_path import QueuePath
from tests.paths import NO_BPF

from .bpf_frames import (
    BIT,
    CLIENT,
    INWARD,
    ON_THE_WAY,
    OUTWARD,
    ROUTER,
    SERVER,
    Programs,
    Queue,
    gre,
    legs,
    octets,
    packets,
    with_fresh_sum,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}"),
]

@pytest.fixture(scope="module")
def loaded() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def programs(loaded: Programs) -> Iterator[Programs]:
    slots = {leg: loaded.put(leg) for leg in (INWARD, OUTWARD)}
    yield loaded
    for leg, slot in slots.items():
        loaded.take_out(leg, slot)


@given(st.data())
def test_a_program_makes_of_a_packet_what_the_queue_makes_of_it(
    loaded: Programs, data: st.DataObject
) -> None:
    """Two who rewrite, one in C before the stack and one in Python: octet for octet the same."""
    leg = data.draw(legs())
    packet = data.draw(packets(leg))
    path, queue = QueuePath(), Queue()
    path.install([LegOrder(leg, 0)])
    path.judge(queue, SimpleNamespace(octets=packet, hook=0, mark=0))  # type: ignore[arg-type]
    slot = loaded.put(leg)
    try:
        where = bpf_maps.rows(leg, 0, slot).legs[0].value[10]
        arrived = loaded.run("arriving", packet)
        made = arrived.frame
        if where == bpf_maps.LEAVING:
            assert packet == made
            made = loaded.run("leaving", packet, came_in_at=1).frame
        tally = loaded.counts.tally(slot)
    finally:
        loaded.take_out(leg, slot)

    assert queue.made == made
    assert path.tallies()[Match(*leg[:3])] == tally
    assert bool(arrived.mark & BIT) is (tally.packets == 1), "the rules let pass what is a call's"
    assert with_fresh_sum(made) == made


def test_the_mark_of_a_call_is_put_on_its_packets(loaded: Programs) -> None:
    """Shaping and policy routing look at it; a call without one leaves the packet's own."""
    slot = loaded.put(INWARD, 5)
    try:
        assert 5 | BIT == loaded.run("arriving", gre(SERVER, ROUTER, 4711), mark=9).mark
    finally:
        loaded.take_out(INWARD, slot)
    slot = loaded.put(INWARD)
    try:
        assert 9 | BIT == loaded.run("arriving", gre(SERVER, ROUTER, 4711), mark=9).mark
    finally:
        loaded.take_out(INWARD, slot)


def test_nobody_smuggles_the_mark_past_the_rules(programs: Programs) -> None:
    """GRE of no call that comes with our bit, from wherever, goes on without it."""
    assert 9 == programs.run("arriving", gre(SERVER, ROUTER, 4712), mark=9 | BIT).mark
    assert 0 == programs.run("leaving", gre(CLIENT, SERVER, 101), mark=BIT).mark


def test_sequence_numbers_tell_what_is_missing_and_what_is_late(loaded: Programs) -> None:
    """Beyond 4,096 it is another beginning."""
    slot = loaded.put(INWARD)
    try:
        for number in (5, 6, 9, 8, 10, 2_000_000, 2_000_001, 2_000_003):
            loaded.run("arriving", gre(SERVER, ROUTER, 4711, seq=number))
        seen = loaded.counts.watched(slot)
    finally:
        loaded.take_out(INWARD, slot)

    assert 8 == seen.tally.packets
    assert (2 + 1, 1) == (seen.missing, seen.late)
    assert seen.last is not None


def test_a_sequence_may_wrap(loaded: Programs) -> None:
    slot = loaded.put(INWARD)
    try:
        for number in (0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 3):
            loaded.run("arriving", gre(SERVER, ROUTER, 4711, seq=number))
        seen = loaded.counts.watched(slot)
    finally:
        loaded.take_out(INWARD, slot)

    assert (1, 0) == (seen.missing, seen.late)


def test_fragments_go_where_the_first_one_goes(programs: Programs) -> None:
    """Only the first has the key; the others are known by their identification."""
    before = bpf_maps.told(programs.told)["fragment_unknown"]
    first = gre(SERVER, ROUTER, 4711, id=77, flags="MF")
    rest = bytes(IP(src=SERVER, dst=ROUTER, proto=47, id=77, frag=60) / Raw(bytes(99)))
    other = bytes(IP(src=SERVER, dst=ROUTER, proto=47, id=78, frag=60) / Raw(bytes(99)))

    made = [programs.run("arriving", each) for each in (first, rest, other)]

    assert [CLIENT, CLIENT, ROUTER] == [IP(ran.frame).dst for ran in made]
    assert [True, True, False] == [bool(ran.mark & BIT) for ran in made]
    assert all(with_fresh_sum(ran.frame) == ran.frame for ran in made)
    assert before + 1 == bpf_maps.told(programs.told)["fragment_unknown"]
    first = gre(CLIENT, SERVER, 100, id=77, flags="MF")
    rest = bytes(IP(src=CLIENT, dst=SERVER, proto=47, id=77, frag=60) / Raw(bytes(99)))
    made = [programs.run("leaving", each, came_in_at=1) for each in (first, rest)]
    assert [ROUTER, ROUTER] == [IP(ran.frame).src for ran in made]


def test_a_fragment_of_other_gre_is_not_taken_for_one_of_a_call(programs: Programs) -> None:
    """An identification is used again sooner or later."""
    programs.run("arriving", gre(SERVER, ROUTER, 4711, id=79, flags="MF"))
    plain = IP(src=SERVER, dst=ROUTER, proto=47, id=79, flags="MF") / Raw(bytes(48))
    programs.run("arriving", bytes(plain))
    rest = bytes(IP(src=SERVER, dst=ROUTER, proto=47, id=79, frag=60) / Raw(bytes(99)))

    assert rest == programs.run("arriving", rest).frame


def icmp_error(source: str, destination: str, about: bytes, *, octets_of_it: int = 28) -> bytes:
    error = ICMP(type=3, code=4, nexthopmtu=1400)
    return bytes(IP(src=source, dst=destination) / error / Raw(about[:octets_of_it]))


def assert_sums_are_right(packet: bytes) -> None:
    ip = IP(packet)
    del ip.chksum, ip[ICMP].chksum
    assert bytes(ip) == packet


@pytest.mark.parametrize("octets_of_it", [28, 60])
def test_an_error_about_outbound_gre_reaches_the_host_that_sent_it(
    programs: Programs, octets_of_it: int
) -> None:
    """Path MTU discovery of what runs in the tunnel's outside depends on it."""
    sent = gre(ROUTER, SERVER, 100)
    error = icmp_error(ON_THE_WAY, ROUTER, sent, octets_of_it=octets_of_it)

    ran = programs.run("arriving", error)

    assert ran.mark & BIT
    assert (ON_THE_WAY, CLIENT) == (IP(ran.frame).src, IP(ran.frame).dst)
    quoted = ran.frame[28:]
    assert (octets(CLIENT), octets(SERVER)) == (quoted[12:16], quoted[16:20])
    assert gre(CLIENT, SERVER, 100)[:octets_of_it] == quoted
    assert_sums_are_right(ran.frame)


@pytest.mark.parametrize(("sender", "came_in_at"), [(CLIENT, 1), (ROUTER, 0)])
def test_an_error_about_inbound_gre_quotes_what_the_server_sent(
    programs: Programs, sender: str, came_in_at: int
) -> None:
    """From an inside host, or from this router itself."""
    error = icmp_error(sender, SERVER, gre(SERVER, CLIENT, 7))
    if came_in_at:
        arrived = programs.run("arriving", error, came_in_at=1)
        assert (error, BIT) == (arrived.frame, arrived.mark & BIT)

    ran = programs.run("leaving", error, came_in_at=came_in_at)

    assert (ROUTER, SERVER) == (IP(ran.frame).src, IP(ran.frame).dst)
    assert gre(SERVER, ROUTER, 4711)[:28] == ran.frame[28:]
    assert_sums_are_right(ran.frame)


def test_an_error_about_other_traffic_is_left_alone(programs: Programs) -> None:
    about_udp = bytes(IP(src=ROUTER, dst=SERVER, proto=17) / Raw(bytes(20)))
    for about in (about_udp, gre(ROUTER, SERVER, 101)):
        error = icmp_error(ON_THE_WAY, ROUTER, about)
        ran = programs.run("arriving", error)
        assert (error, 0) == (ran.frame, ran.mark)


@given(st.binary(max_size=80))
def test_no_octets_stop_a_program(loaded: Programs, garbage: bytes) -> None:
    """A frame has at least an Ethernet header here; the rest may be anything."""
    for name in ("arriving", "leaving"):
        packet = b"\x45" + garbage + bytes(20)
        assert packet == loaded.run(name, packet).frame


def test_counts_go_on_when_a_leg_is_replaced_and_start_anew_when_it_is_gone() -> None:
    """A client dials again while its old connection is half open: two calls, one leg."""
    path = BpfPath(8, BIT)
    try:
        again = OUTWARD._replace(new_key=200)
        assert not path.install([LegOrder(OUTWARD, 0)]).shared
        path._object.test_run(
            "ether_leaving", bytes(12) + b"\x08\x00" + gre(CLIENT, SERVER, 100), came_in_at=1
        )
        done = path.install([LegOrder(again, 3)])
        one = Tally(1, len(gre(CLIENT, SERVER, 100)))
        assert {Match(*OUTWARD[:3]): one} == dict(done.shared)
        assert {Match(*OUTWARD[:3]): one} == dict(path.remove([again]))
        assert {Match(*OUTWARD[:3]): one} == dict(path.remove([OUTWARD]))
        path.install([LegOrder(OUTWARD, 0)])
        assert {Match(*OUTWARD[:3]): Tally(0, 0)} == dict(path.tallies())
    finally:
        path.close()


def resident() -> int:
    """Return the octets of memory that this process has in use (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_counts_take_memory_as_far_as_they_are_used() -> None:
    """Mapped whole, those of 60,000 calls were 7.7 MB of an idle daemon; what is mapped goes on."""
    BpfPath(64, BIT).close()  # libbpf and what else comes once
    before = resident()
    path = BpfPath(60_000, BIT)
    try:
        assert resident() - before < 3_000_000
        legs = [OUTWARD._replace(key=key, new_key=key) for key in range(5000)]
        path.install([LegOrder(legs[0], 0)])
        packet = bytes(12) + b"\x08\x00" + gre(CLIENT, SERVER, 0)
        for leg in legs[1:]:
            path._object.test_run("ether_leaving", packet)
            path.install([LegOrder(leg, 0)])
        assert 4999 == path.tallies()[Match(*legs[0][:3])].packets
        assert {0} == {path.tallies()[Match(*leg[:3])].packets for leg in legs[1::1000]}
    finally:
        path.close()


def test_a_full_table_refuses_a_leg_and_serves_the_others() -> None:
    path = BpfPath(1, BIT)  # there is always room for 32 calls
    try:
        done = path.install([LegOrder(OUTWARD._replace(key=key), 0) for key in range(65)])
        assert [64] == [order.leg.key for order in done.refused]
        assert "raise limits.calls" in str(done.error)
        path.remove([OUTWARD._replace(key=0)])
        assert not path.install(done.refused).refused
    finally:
        path.close()


def _section(file: Path, name: str) -> bytes:
    """Return a section of a 64-bit ELF file (elf(5))."""
    whole = file.read_bytes()
    order = {1: "<", 2: ">"}[whole[5]]
    start, = struct.unpack_from(f"{order}Q", whole, 40)
    size, count, names = struct.unpack_from(f"{order}HHH", whole, 58)
    header = struct.Struct(f"{order}IIQQQQ")
    headers = [header.unpack_from(whole, start + at * size) for at in range(count)]
    for at, _, _, _, offset, octets_long in headers:
        title = whole[headers[names][4] + at :].split(b"\0", 1)[0].decode()
        if title == name:
            return whole[offset : offset + octets_long]
    raise AssertionError(f"{file} has a section {name}")


def test_the_objects_that_are_shipped_are_made_of_the_source(tmp_path: Path) -> None:
    """Nobody must have to believe in 26 kB that a machine wrote."""
    if shutil.which("clang") is None:
        pytest.skip("not found: clang: apt install clang")
    told = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version (\d+)", told.stdout)
    if version is None or version[1] != "14":
        pytest.skip("the objects were made with clang 14; others make other instructions")
    makefile = OBJECTS["little"].parents[2] / "Makefile"
    subprocess.run(
        ["make", "-s", "-f", makefile, "bpf", f"BPF_OBJECTS={tmp_path}"],
        cwd=makefile.parent, check=True, capture_output=True,
    )  # fmt: skip

    for shipped in OBJECTS.values():
        for section in ("tc", "xdp.frags", ".rodata", "license", ".maps"):
            built = _section(tmp_path / shipped.name, section)
            assert built == _section(shipped, section), (shipped.name, section)


def test_an_object_of_the_other_order_of_octets_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is marked as what it is, and no kernel takes the wrong one: another path is left."""
    assert {"little": 1, "big": 2} == {order: f.read_bytes()[5] for order, f in OBJECTS.items()}
    other = {"little": "big", "big": "little"}[sys.byteorder]
    monkeypatch.setitem(OBJECTS, sys.byteorder, OBJECTS[other])

    flaw = BpfPath.probe()

    assert flaw is not None
    assert flaw.endswith("it is for processors of the other order of octets")
    assert 1 == len(flaw.splitlines())


def test_all_counts_together_are_what_each_is() -> None:
    """Read in one go, in pieces or one by one; what an earlier run has carried is among them."""
    path = BpfPath(40, BIT)
    try:
        legs = [OUTWARD._replace(key=key, new_key=key) for key in range(60)]
        path.install([LegOrder(leg, 0) for leg in legs])
        path.credit(legs[7], Tally(100, 1000))
        path.remove(legs[20:30])
        path.install([LegOrder(leg, 0) for leg in legs[25:30]])
        for key in range(0, 60, 3):
            frame = bytes(12) + b"\x08\x00" + gre(CLIENT, SERVER, key)
            path._object.test_run("ether_leaving", frame, came_in_at=1)
        there = [*legs[:20], *legs[30:], *legs[25:30]]
        size = len(gre(CLIENT, SERVER, 0))
        expected = {
            Match(*leg[:3]): Tally(leg.key % 3 == 0, size * (leg.key % 3 == 0)) for leg in there
        }
        expected[Match(*legs[7][:3])] = Tally(100, 1000)

        assert expected == dict(path.tallies())
        assert expected == dict(path.tallies_of(legs))
        assert expected == {m: t for piece in path.tally_pieces() for m, t in piece.items()}
        assert expected == dict(path.remove(legs))
        assert not path.tallies()
    finally:
        path.close()
