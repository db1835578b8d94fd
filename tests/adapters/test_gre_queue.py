"""GRE judged in batches, where it lies, is judged as one by one; scapy sees what it became.

A pair of unix sockets stands between the queue and a kernel that is played
here, so the system calls are the true ones and nobody has to be root.
"""

import ctypes
import importlib.util
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import GRE_PPTP

from deploy.packages.tree import rewriting
from pptp_nat.core.tuples import Leg
from pptp_nat.linux import gre_queue
from pptp_nat.linux.batch import PIECE_SIZE, ROOM
from pptp_nat.linux.datapath import LegOrder, Match
from pptp_nat.linux.gre_queue import GreQueue
from pptp_nat.linux.leg_table import PLACE_BITS, name_of
from pptp_nat.linux.nfqueue import COPIED, POSTROUTING, PREROUTING, Queue
from pptp_nat.linux.queue_path import QueuePath

IN_C = "in C"
EITHER_FORM = pytest.mark.usefixtures("form")
SAME_FOR_ALL = [HealthCheck.function_scoped_fixture]  # it is the same form for all examples
MARK = 0x40000000
CLIENT, OTHER, EXTERNAL, PAC = (
    socket.inet_aton(a) for a in ("192.168.7.2", "192.168.7.3", "198.51.100.1", "203.0.113.9")
)
ORDERS = [
    LegOrder(Leg(PAC, EXTERNAL, 4711, PAC, CLIENT, 1), 0),
    LegOrder(Leg(CLIENT, PAC, 1, EXTERNAL, PAC, 100), 0),
    LegOrder(Leg(PAC, EXTERNAL, 4712, PAC, OTHER, 0xFFFF), 0x17),
    LegOrder(Leg(CLIENT, EXTERNAL, 8, EXTERNAL, OTHER, 9), 0),  # a hairpin: two stages
]
SECOND_STAGE = (CLIENT, OTHER, 9)
STRAY = (PAC, EXTERNAL, 2)
MATCHES = [*(order.leg[:3] for order in ORDERS), SECOND_STAGE, STRAY]
FORMS = ["3001880b", "2081880b", "3081880b", "2001880b", "3001880c", "b001880b", "30000800"]


def message(name: int, hook: int, octets: bytes, *, mark: int = 0, more: bytes = b"") -> bytes:
    """Return what net/netfilter/nfnetlink_queue.c makes of a packet, attributes in its order."""
    attributes = struct.pack("=HHIHBx", 11, 1, socket.htonl(name), 8, hook)
    device = 5 if hook == PREROUTING else 6  # NFQA_IFINDEX_INDEV, NFQA_IFINDEX_OUTDEV
    attributes += struct.pack("=HHI", 8, device, 3)
    if mark:
        attributes += struct.pack("=HHI", 8, 3, socket.htonl(mark))
    attributes += more + struct.pack("=HH", 4 + len(octets), 10) + octets
    return struct.pack("=IHHIIBBH", 20 + len(attributes), 3 << 8, 0, 0, 0, 2, 0, 0) + attributes


HARDWARE = struct.pack("=HHHxx8s", 16, 9, 6, b"\2\0\0\0\0\1")  # NFQA_HWADDR
STAMP = struct.pack("=HHQQ", 20, 4, 1, 2)  # NFQA_TIMESTAMP
COMPLAINT = struct.pack("=IHHIIiIHHII", 36, 2, 0, 0, 0, -2, 32, 0x301, 1, 0, 0)  # NLMSG_ERROR


def packet(
    match: tuple[bytes, bytes, int], form: str, payload: bytes, options: bytes = b""
) -> bytes:
    """Return GRE in IPv4 with a right checksum, by scapy."""
    source, destination, key = match
    gre = bytes.fromhex(form) + struct.pack("!HH", len(payload), key) + bytes(8) + payload
    ip = IP(src=socket.inet_ntoa(source), dst=socket.inet_ntoa(destination), proto=47, ttl=63)
    made = bytes(ip / gre)
    if options:
        ip = IP(made[:20])
        ip.ihl, ip.len, ip.chksum = 5 + len(options) // 4, len(made) + len(options), 0
        whole = bytes(ip)[:20] + options
        summed = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
        check = ~(summed % 0xFFFF) & 0xFFFF
        made = whole[:10] + struct.pack("!H", check) + whole[12:] + gre
    return made


class Verdict(NamedTuple):
    """One verdict as the kernel reads it."""

    verdict: int
    name: int
    mark: int
    octets: bytes


def verdicts(datagram: bytes) -> Iterator[Verdict]:
    """Read verdicts as nfqnl_recv_verdict would."""
    while datagram:
        size, kind, flags, _, _, _, _, number = struct.unpack_from("=IHHIIBBH", datagram)
        assert (0x301, 1, socket.htons(17)) == (kind, flags, number)
        found: dict[int, bytes] = {}
        at = 20
        while at < size:
            length, attribute = struct.unpack_from("=HH", datagram, at)
            found[attribute] = datagram[at + 4 : at + length]
            at += length + 3 & ~3
        judged, name = struct.unpack("!II", found[2])
        yield Verdict(judged, name, int.from_bytes(found[3], "big"), found.get(10, b""))
        datagram = datagram[size + 3 & ~3 :]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the rewriting in C as setup.py makes it for packages."""
    folder = tmp_path_factory.mktemp("in-c")
    try:
        (built,) = rewriting("x")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"it does not compile here: {error.stderr.strip().splitlines()[-1]}")
    place = folder / Path(built.path).name
    place.write_bytes(built.octets)
    spec = importlib.util.spec_from_file_location("gre_rewriting", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["in Python", IN_C])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have batches judged in Python, or in C where that can be compiled."""
    in_c = request.param == IN_C
    module = request.getfixturevalue("compiled") if in_c else None
    monkeypatch.setattr(gre_queue, "gre_rewriting", module)
    return str(request.param)


class World:
    """A queue of either kind and the kernel's end of its socket."""

    def __init__(self, *, batches: bool, orders: list[LegOrder] = ORDERS) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.kernel, ours):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.kernel.setblocking(False)
        self.path = QueuePath()
        self.path.install(orders)
        # What is kept of calls lies above the places, also of one that nothing carries.
        for name in (*self.path.legs.names(), name_of(Match(*STRAY))):
            self.path.notes[name] = self.path.notes.get(name, 0) | 0x1234 << 80 | 7 << PLACE_BITS
        self.faults: list[BaseException] = []
        judge = self.path if batches else self.path.judge
        kind = GreQueue if batches else Queue
        self.queue = kind(
            17, judge, self.faults.append,
            length=1, buffer=1, repeat_mark=MARK, inherited=ours.detach(),
        )  # fmt: skip
        asked = self.kernel.recv(1 << 10)  # for its length, whatever its predecessor had
        assert struct.unpack_from("=H", asked, 4) == (0x302,)  # NFQNL_MSG_CONFIG

    def put(self, messages: list[bytes]) -> list[Verdict]:
        """Have the messages judged, a few at a time; return the verdicts in their order."""
        given: list[Verdict] = []
        for begin in range(0, len(messages), 7):  # a unix socket holds some ten datagrams
            for each in messages[begin : begin + 7]:
                self.kernel.send(each)
            self.queue.serve(64)
            while True:
                try:
                    given += verdicts(self.kernel.recv(1 << 20))
                except BlockingIOError:
                    break
        return given

    def close(self) -> None:
        self.queue.close()
        self.kernel.close()


PACKETS = st.builds(
    packet,
    st.sampled_from(MATCHES), st.sampled_from(FORMS[:2] * 3 + FORMS),
    st.one_of(st.binary(max_size=9), st.sampled_from([1400, 60_000]).map(bytes)),
    st.sampled_from([b"", b"", b"\x01" * 8]),
)  # fmt: skip
#: As long as what the kernel hands over at most, and longer, which is then cut.
LONGEST = st.builds(
    packet,
    st.sampled_from(MATCHES), st.sampled_from(FORMS), st.sampled_from([65_495, 65_499]).map(bytes),
).map(lambda octets: octets[:COPIED])  # fmt: skip
MESSAGES = st.lists(
    st.one_of(
        st.builds(
            message, st.integers(1, 2**32 - 1), st.sampled_from([PREROUTING, POSTROUTING]),
            st.one_of(PACKETS, PACKETS.map(lambda octets: octets[:27]), LONGEST),
            mark=st.sampled_from([0, 0, 5]), more=st.sampled_from([b"", HARDWARE, STAMP]),
        ),
        st.just(COMPLAINT),
    ),
    max_size=20,
)  # fmt: skip


@given(MESSAGES)
@EITHER_FORM
@settings(max_examples=150, deadline=None, suppress_health_check=SAME_FOR_ALL)
def test_a_batch_gets_the_verdicts_that_its_packets_get_one_by_one(messages: list[bytes]) -> None:
    """The order too: GRE that overtakes GRE of its call is thrown away by PPP."""
    batches, single = World(batches=True), World(batches=False)
    try:
        assert single.put(messages) == batches.put(messages)
        assert single.path.tallies() == batches.path.tallies()
        assert single.path.counts == batches.path.counts
        assert single.queue.refusals == batches.queue.refusals
        assert single.queue.too_long == batches.queue.too_long
        assert [] == batches.faults
    finally:
        batches.close()
        single.close()


@given(
    st.sampled_from(ORDERS[:3]), st.sampled_from(FORMS[:4]), st.binary(max_size=50),
    st.sampled_from([b"", HARDWARE, STAMP]), st.sampled_from([0, 3]),
)  # fmt: skip
@EITHER_FORM
@settings(max_examples=100, deadline=None, suppress_health_check=SAME_FOR_ALL)
def test_scapy_reads_the_new_addresses_the_new_number_and_a_right_checksum(
    order: LegOrder, form: str, payload: bytes, more: bytes, mark: int
) -> None:
    world = World(batches=True)
    octets = packet(order.leg[:3], form, payload)
    try:
        (verdict,) = world.put([message(9, PREROUTING, octets, mark=mark, more=more)])
    finally:
        world.close()
    expected = IP(octets)
    expected.src = socket.inet_ntoa(order.leg.new_source)
    expected.dst = socket.inet_ntoa(order.leg.new_destination)
    del expected.chksum
    assert isinstance(expected[GRE_PPTP], GRE_PPTP)
    expected[GRE_PPTP].call_id = order.leg.new_key

    assert bytes(expected) == verdict.octets
    assert (4, 9, (order.mark or mark) | MARK) == verdict[:3]


@EITHER_FORM
def test_strays_end_on_their_way_out_and_are_the_routers_own_on_their_way_in() -> None:
    world = World(batches=True)
    octets = packet(STRAY, FORMS[0], b"ppp")
    try:
        given = world.put([message(1, PREROUTING, octets), message(2, POSTROUTING, octets, mark=6)])
    finally:
        world.close()

    assert [Verdict(1, 1, 0, b""), Verdict(0, 2, 6, b"")] == given
    assert {"stray_inbound": 1, "stray_outbound": 1} == world.path.counts


@EITHER_FORM
def test_data_right_behind_the_answer_that_opens_their_call_reach_it() -> None:
    """The answer waits in the control queue; packets came out of this one before it was read."""
    world = World(batches=True, orders=[])
    world.queue._ahead = lambda: world.path.install(ORDERS)
    octets = packet(ORDERS[0].leg[:3], FORMS[0], b"ppp")
    try:
        (verdict,) = world.put([message(1, PREROUTING, octets)])
    finally:
        world.close()

    assert CLIENT == verdict.octets[16:20]


@EITHER_FORM
def test_verdicts_that_could_not_be_sent_are_sent_again_and_once() -> None:
    world = World(batches=True)
    octets = packet(ORDERS[0].leg[:3], FORMS[0], b"ppp")
    world.queue._received.send = _refuse
    try:
        given = world.put([message(n, PREROUTING, octets) for n in (1, 2)])
    finally:
        world.close()
    alone = World(batches=False)
    expected = alone.put([message(n, PREROUTING, octets) for n in (1, 2)])
    alone.close()

    assert expected == given
    assert [105] == [fault.errno for fault in world.faults if isinstance(fault, OSError)]


def _refuse(first: int, count: int) -> None:
    raise OSError(105, f"no room for the {count} verdicts from {first} on")


def test_a_fault_drops_its_packet_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gre_queue, "gre_rewriting", None)
    world = World(batches=True)
    judge = world.queue._judge_in_place

    def breaks_once(start: int, given: int) -> int:
        if start == ROOM:
            raise ValueError("broken")
        return judge(start, given)

    monkeypatch.setattr(world.queue, "_judge_in_place", breaks_once)
    octets = packet(ORDERS[0].leg[:3], FORMS[0], b"ppp")
    try:
        given = world.put([message(n, PREROUTING, octets) for n in (1, 2, 3)])
    finally:
        world.close()

    assert [(4, 1), (0, 2), (4, 3)] == [each[:2] for each in given]
    assert ["broken"] == [str(fault) for fault in world.faults]


def _no_matter(hook: int) -> bool:
    return hook == POSTROUTING


@given(
    message=st.builds(message, st.just(7), st.sampled_from([PREROUTING, POSTROUTING]), PACKETS),
    spoiled=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 200),
)
@settings(max_examples=300, deadline=None)
def test_a_spoiled_message_changes_nothing_outside_its_room(
    compiled: ModuleType, message: bytes, spoiled: list[tuple[int, int]], cut: int
) -> None:
    """The kernel sends none; C must not depend on that."""
    message = message[: max(len(message) - cut, 16)][:2048]
    room, guard = 2048, b"\xa5" * 2048
    octets = bytearray(guard + bytes(room) + guard)
    octets[room : room + len(message)] = message
    for at, value in spoiled:
        octets[room + at] = value
    path = QueuePath()
    path.install(ORDERS)
    pieces = bytearray(3 * PIECE_SIZE)
    between = bytes(20)
    done, ends = compiled.rewrite(
        octets, room, pieces, 1, 2, path.notes, path.legs.rows, path.seconds, _no_matter,
        between, MARK, COPIED,
    )

    assert (done, ends) in ((1, []), (2, [1]))
    assert (guard, guard) == (octets[:room], octets[2 * room :])
    if ends:
        address, size = struct.unpack_from("@PN", pieces)
        base = ctypes.addressof(ctypes.c_char.from_buffer(octets))
        assert base + room <= address
        assert address + size <= base + 2 * room


def test_memory_that_is_too_small_is_refused(compiled: ModuleType) -> None:
    path = QueuePath()
    for first, count in ((-1, 1), (2, 1), (0, 2), (0, 1 << 60)):
        with pytest.raises(ValueError, match="not there"):
            compiled.rewrite(
                bytearray(64), 64, bytearray(PIECE_SIZE), first, count, path.notes,
                path.legs.rows, path.seconds, _no_matter, bytes(20), MARK, COPIED,
            )  # fmt: skip
