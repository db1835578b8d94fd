"""One verdict for each packet, on every path: the queue adapter on a real queue."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.lab import namespaces
from pptp_nat.linux.nfqueue import LOCAL_OUT, Packet, Queue, is_cut, queue_counters

pytestmark = pytest.mark.kernel

NUMBER = 17
REPEAT = 0x40000000
OTHER = 0x5
PORT = 9999
RULES = (
    f"-A OUTPUT -p udp --dport {PORT} -m mark ! --mark {REPEAT}/{REPEAT} -j NFQUEUE --queue-num 17",
    f"-A OUTPUT -p udp --dport {PORT} -m mark --mark {REPEAT | OTHER}",
)


class World:
    """A namespace with a queue on its loopback, a sender and a receiver."""

    def __init__(self, name: str) -> None:
        self.name = name
        with namespaces.entered(name):
            self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", PORT))
        self.receiver.setblocking(False)
        self.sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OTHER)
        self.faults: list[BaseException] = []
        self.queues: list[Queue] = []

    def queue(self, judge: Callable[[Queue, Packet], None], **settings: int) -> Queue:
        with namespaces.entered(self.name):
            queue = Queue(
                NUMBER, judge, self.faults.append,
                **{"length": 100, "buffer": 1 << 20, "repeat_mark": REPEAT, **settings},
            )  # fmt: skip
        self.queues.append(queue)
        return queue

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.sender.sendto(payload, ("127.0.0.1", PORT))

    def received(self) -> list[bytes]:
        arrived = []
        while True:
            try:
                arrived.append(self.receiver.recv(1 << 16))
            except BlockingIOError:
                return arrived

    def waiting(self) -> int | None:
        with namespaces.entered(self.name):
            table = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
            counters = queue_counters(NUMBER, table)
        return None if counters is None else counters.waiting


@pytest.fixture
def world() -> Iterator[World]:
    if os.geteuid():
        pytest.skip("needs root: it makes network namespaces")
    name = f"nfq-{os.getpid()}"
    namespaces.create(name)
    try:
        inside = ["ip", "netns", "exec", name]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        for rule in RULES:
            subprocess.run([*inside, "iptables", *rule.split()], check=True)
        world = World(name)
        yield world
        for queue in world.queues:
            queue.close()
        world.receiver.close()
        world.sender.close()
    finally:
        namespaces.remove(name)


def changed(octets: bytes) -> bytes:
    """Return a UDP packet with its first payload octet turned, without a checksum (RFC 768)."""
    return octets[:26] + bytes(2) + bytes((octets[28] ^ 0xFF,)) + octets[29:]


def test_a_packet_goes_on_as_it_came_or_changed(world: World) -> None:
    def judge(queue: Queue, packet: Packet) -> None:
        assert packet.hook == LOCAL_OUT
        queue.let_pass(packet, changed(packet.octets) if packet.octets[28:] == b"b" else None)

    queue = world.queue(judge)
    world.send(b"a", b"b", b"c")
    queue.serve(10)

    assert [b"a", bytes((ord("b") ^ 0xFF,)), b"c"] == world.received()
    assert world.waiting() == 0


def test_the_administrators_mark_bits_survive(world: World) -> None:
    """Policy routing and QoS hang on them; only one bit is ours."""
    queue = world.queue(lambda queue, packet: queue.let_pass(packet))
    world.send(b"a")
    queue.serve(10)
    listing = subprocess.run(
        ["ip", "netns", "exec", world.name, "iptables", "-nvxL", "OUTPUT"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    marked = next(line for line in listing.splitlines() if f"{REPEAT | OTHER:#x}" in line)

    assert marked.split()[0] == "1"


def test_what_a_judge_forgets_or_breaks_on_is_dropped_and_counted(world: World) -> None:
    """A packet without a verdict would block the queue; one let through would be untranslated."""

    def judge(queue: Queue, packet: Packet) -> None:
        if packet.octets[28:] == b"break":
            raise ValueError("broken")
        if packet.octets[28:] != b"forget":
            queue.let_pass(packet)

    queue = world.queue(judge)
    world.send(b"forget", b"break", b"fine")
    queue.serve(10)

    assert [b"fine"] == world.received()
    assert ["broken"] == [str(fault) for fault in world.faults]
    assert (queue.faults, world.waiting()) == (1, 0)


def test_a_held_packet_goes_on_later_and_the_next_ones_before_it(world: World) -> None:
    held: list[int] = []

    def judge(queue: Queue, packet: Packet) -> None:
        if packet.octets[28:] == b"hold":
            expected = queue.next_id()
            held.append(queue.hold(packet))
            assert expected == held[-1]
        else:
            queue.let_pass(packet)

    queue = world.queue(judge)
    world.send(b"hold", b"next")
    queue.serve(10)
    assert [b"next"] == world.received()
    assert world.waiting() == 1

    queue.release(held[0], changed(queue._held[held[0]].octets))
    queue.flush()

    assert [bytes((ord("h") ^ 0xFF,)) + b"old"] == world.received()
    assert world.waiting() == 0


def test_verdicts_travel_together_in_the_order_of_the_packets(world: World) -> None:
    queue = world.queue(lambda queue, packet: queue.let_pass(packet), batch=7)
    sent = [str(number).encode() for number in range(50)]
    world.send(*sent)
    queue.serve(30)
    first = world.received()
    queue.serve(30)

    assert sent[:30] == first
    assert sent[30:] == world.received()


def test_what_must_be_before_verdicts_is_done_before_any_of_them_travels(world: World) -> None:
    """Once for each send, and what comes after it when those packets have gone on."""
    order: list[object] = []

    def judge(queue: Queue, packet: Packet) -> None:
        order.append(packet.octets[-1:].decode())
        queue.let_pass(packet)

    queue = world.queue(judge, batch=3)
    queue.attend(
        lambda: order.append(["before", *world.received()]),
        lambda: order.append(["after", *world.received()]),
    )
    world.send(b"1", b"2", b"3", b"4")
    queue.serve(10)

    assert ["1", "2", "3", ["before"], ["after", b"1", b"2", b"3"]] == order[:5]
    assert ["4", ["before"], ["after", b"4"]] == order[5:]


def test_a_packet_of_the_greatest_length_is_whole(world: World) -> None:
    """GRE that was put together from fragments is as long as IP allows."""
    queue = world.queue(lambda queue, packet: queue.let_pass(packet, changed(packet.octets)))
    payload = b"x" * 60_000
    world.send(payload, b"short")
    queue.serve(10)

    assert [60_000, 5] == [len(each) for each in world.received()]


def test_a_packet_that_is_longer_than_what_was_handed_over_is_known() -> None:
    whole = b"\x45\x00" + (0xFFFB).to_bytes(2, "big") + bytes(0xFFFB - 4)

    assert not is_cut(whole)
    assert is_cut(b"\x45\x00\xff\xff" + whole[4:])


def test_a_full_queue_drops_and_says_so(world: World) -> None:
    queue = world.queue(lambda queue, packet: queue.let_pass(packet), length=5)
    world.send(*[b"x"] * 9)
    queue.serve(100)

    assert len(world.received()) == 5
    with namespaces.entered(world.name):
        counters = queue_counters(NUMBER, Path("/proc/thread-self/net/netfilter/nfnetlink_queue"))
    assert counters is not None
    assert counters.dropped == 4


def test_a_full_socket_is_counted_and_survived(world: World) -> None:
    """ENOBUFS: the kernel could not hand packets over; those that follow are judged."""
    queue = world.queue(
        lambda queue, packet: queue.let_pass(packet), length=10_000, buffer=8_000
    )
    world.send(*[b"y" * 1000] * 400)
    queue.serve(1_000)
    queue.serve(1_000)
    world.received()
    world.send(b"after")
    queue.serve(10)

    assert queue.overruns >= 1
    assert [b"after"] == world.received()


def test_a_verdict_for_a_packet_that_is_not_there_is_refused_and_counted(world: World) -> None:
    """So a kernel that forbids changes (in a user namespace) does not do so in silence."""

    def judge(queue: Queue, packet: Packet) -> None:
        packet.id = b"\xff\xff\xff\xfe"
        queue.let_pass(packet)

    queue = world.queue(judge)
    world.send(b"a")
    queue.serve(10)
    queue.serve(10)

    assert queue.refusals == 1


def test_a_refused_verdict_takes_none_of_its_datagram_with_it(world: World) -> None:
    """Several verdicts travel in one send: the kernel obeys those before and behind a bad one."""

    def judge(queue: Queue, packet: Packet) -> None:
        if packet.octets[28:] == b"b":
            queue.accept(packet)  # the right one, and then one for a packet that is not there
            packet.id = b"\xff\xff\xff\xfe"
        queue.let_pass(packet, changed(packet.octets) if packet.octets[28:] == b"c" else None)

    queue = world.queue(judge)
    world.send(b"a", b"b", b"c")
    queue.serve(3)
    queue.serve(1)

    assert [b"a", b"b", bytes((ord("c") ^ 0xFF,))] == world.received()
    assert (1, 0) == (queue.refusals, world.waiting())


def test_a_queue_that_somebody_else_holds_is_one_clear_line(world: World) -> None:
    world.queue(lambda queue, packet: queue.let_pass(packet))

    with pytest.raises(AdapterError, match=f"binding queue {NUMBER}: .*taken by another program"):
        world.queue(lambda queue, packet: queue.let_pass(packet))


def test_closing_lets_nothing_through(world: World) -> None:
    queue = world.queue(lambda queue, packet: queue.hold(packet))
    world.send(b"held", b"waiting")
    queue.serve(1)
    queue.close()
    world.queues.clear()

    assert [] == world.received()
    assert world.waiting() is None
