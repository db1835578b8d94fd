"""Who floods the control ports is held back by a rule, ahead of the queue, and nobody else."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from pptp_nat.linux import ruleset, ruleset_nftables
from pptp_nat.linux.ruleset import Backend, Pace, RuleSettings

from . import rules_lab
from .rules_lab import (
    ALICE,
    BOB,
    EXTERNAL,
    SERVER,
    Listener,
    RulesLab,
    again,
    command,
    enhanced,
    marker,
    octets,
    rewritten,
)
from .rules_segments import ACK, OPENER, PSH, SYN, segment, sent_to

pytestmark = pytest.mark.kernel
MANY = 200
PACE = Pace(openers_per_client=2, openers=40, segments_per_client=3, gre_per_host=5)
PACED = RuleSettings(pace=PACE)
QUEUED = RuleSettings(pace=PACE, datapath="queue")

network = pytest.fixture(scope="module")(rules_lab.network)
lab = pytest.fixture(rules_lab.router)
swapped = pytest.fixture(rules_lab.swapped)
both = pytest.mark.parametrize("lab", rules_lab.VARIANTS, indirect=True)


@pytest.fixture
def raw(lab: RulesLab) -> Iterator[socket.socket]:
    with lab.socket(lab.alice, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
        yield opened


@pytest.fixture
def queue(lab: RulesLab) -> Iterator[Listener]:
    ruleset.apply(PACED, Backend.IPTABLES)
    with Listener(lab, 1723, again) as listener:
        yield listener


def most(rate: int, since: float) -> int:
    """Return how many packets a bucket has let pass since it was full, at most."""
    return int(rate * (2 + time.monotonic() - since)) + 2


def openers(queue: Listener, source: str = "") -> int:
    """Return how many packets of clients, or of one, have come; each is answered with an RST."""
    sources = [packet[12:16] for packet in queue.seen if packet[12:16] != octets(SERVER)]
    return sources.count(octets(source)) if source else len(sources)


def heard(queue: Listener, words: bytes) -> int:
    """Return how many packets with these *words* have come, whatever their TTL is by then."""
    return sum(packet.endswith(words) for packet in list(queue.seen))


def until(queue: Listener, count: int, source: str = "") -> None:
    deadline = time.monotonic() + rules_lab.PATIENCE
    while openers(queue, source) < count:
        assert time.monotonic() < deadline, f"{openers(queue, source)} of {count} have come"
        time.sleep(0.01)


def from_everywhere() -> list[bytes]:
    """Return openers of all neighbours of alice's, two of each: within their own bounds."""
    everybody = [f"10.71.1.{n}" for n in range(3, 3 + MANY)]
    return [rewritten(segment(SYN, payload=OPENER), source=source) for source in everybody * 2]


def opening(count: int) -> list[bytes]:
    """Return so many openers of alice's."""
    return [segment(SYN, payload=OPENER, source_port=5000 + n) for n in range(count)]


def flood(lab: RulesLab, raw: socket.socket, packets: list[bytes]) -> float:
    """Send *packets* and wait until the router has seen them all; return when that began."""
    began = time.monotonic()
    for packet in packets:
        raw.sendto(packet, (SERVER, 0))
    marker(lab)
    return began


@both
@pytest.mark.parametrize("flags", [SYN, ACK | PSH], ids=["SYNs with octets", "made-up data"])
def test_one_client_s_flood_is_dropped_and_another_s_opener_is_not(
    lab: RulesLab, raw: socket.socket, queue: Listener, flags: int
) -> None:
    """The queue is shared: a flood in it would keep everybody's messages out."""
    payload = OPENER if flags == SYN else b"made up"
    began = flood(lab, raw, [
        segment(flags, source_port=5000 + n, payload=payload) for n in range(MANY)
    ])  # fmt: skip
    with lab.socket(lab.bob, socket.SOCK_RAW, socket.IPPROTO_RAW) as bob:
        opener = segment(SYN, payload=OPENER, source_port=4999)
        bob.sendto(rewritten(opener, source=BOB), (SERVER, 0))
        until(queue, 1, BOB)
    assert 4 <= openers(queue, ALICE) <= most(PACE.openers_per_client, began) < MANY


def test_syns_that_are_not_queued_keep_to_the_pace_as_well(
    lab: RulesLab, raw: socket.socket, queue: Listener
) -> None:
    """A server is spared what the daemon is spared."""
    began = time.monotonic()
    with lab.socket(lab.server, socket.SOCK_RAW, socket.IPPROTO_TCP) as there:
        flood(lab, raw, [segment(SYN, source_port=5000 + n) for n in range(MANY)])
        there.setblocking(False)
        come = 0
        with contextlib.suppress(BlockingIOError):
            while there.recv(100):
                come += 1
    assert 4 <= come <= most(PACE.openers_per_client, began) < MANY


def test_a_flood_from_many_addresses_leaves_room_in_the_queue(
    lab: RulesLab, raw: socket.socket, queue: Listener
) -> None:
    """Each of its senders stays within its bound; there are just very many of them."""
    began = flood(lab, raw, from_everywhere())
    until(queue, 80)

    assert 80 <= openers(queue) <= most(PACE.openers, began) < 2 * MANY


@both
def test_a_connection_is_not_hurt_by_openers_and_has_a_pace_of_its_own(
    lab: RulesLab, raw: socket.socket, queue: Listener
) -> None:
    """A flood of what belongs to a connection is that client's own loss as well."""
    with lab.socket(lab.server, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, 1723))
        listener.listen()
        with lab.socket(lab.alice, socket.SOCK_STREAM) as client:
            client.connect((SERVER, 1723))
            served, _ = listener.accept()
            for each in (client, served):  # a FIN that nobody lets pass comes again in other tests
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            flood(lab, raw, opening(MANY))
            client.sendall(b"one message")
            queue.wait(2)
            assert b"one message" == served.recv(100)
            (said,) = [p for p in queue.seen if p.endswith(b"one message")]
            began = flood(lab, raw, [said] * MANY)  # the very octets: in its window, and answered
            served.sendall(b"and back")
            assert b"and back" == client.recv(100)
            served.close()
    # Some of its bucket went to the resets of what the flood has opened.
    assert 1 < heard(queue, b"one message") <= most(PACE.segments_per_client, began) < MANY


@contextmanager
def two_connections(lab: RulesLab) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Yield the ends of alice's connection and of bob's: the clients', and the server's."""
    with ExitStack() as stack:
        listener = stack.enter_context(lab.socket(lab.server, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, 1723))
        listener.listen()
        clients, served = [], []
        for host in (lab.alice, lab.bob):
            clients.append(stack.enter_context(lab.socket(host, socket.SOCK_STREAM)))
            clients[-1].connect((SERVER, 1723))
            served.append(stack.enter_context(listener.accept()[0]))
        for each in (*clients, *served):  # a FIN that nobody lets pass comes again in other tests
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield clients, served


@both
@pytest.mark.parametrize("way", ["of a client", "to a client"])
def test_what_comes_back_to_a_client_has_a_pace_too_and_the_server_has_none(
    lab: RulesLab, queue: Listener, way: str
) -> None:
    """A server's address stands for all of its clients: one's flood is not the others' loss.

    Copies are sent of what was said: TCP would say again what is lost.
    """
    back = way == "to a client"
    few = 2 * PACE.segments_per_client - 2  # that is left in bob's bucket
    with two_connections(lab) as (clients, served), ExitStack() as stack:
        said = []
        for sender, hearer in zip(*((served, clients) if back else (clients, served)), strict=True):
            words = b"message %d" % len(said)
            sender.sendall(words)
            assert words == hearer.recv(100)
            (packet,) = [seen for seen in queue.seen if seen.endswith(words)]
            said.append(packet)
        hosts = (lab.server, lab.server) if back else (lab.alice, lab.bob)
        flooding, quiet = (
            stack.enter_context(lab.socket(host, socket.SOCK_RAW, socket.IPPROTO_RAW))
            for host in hosts
        )
        # A packet that comes back is sent as it came, ahead of its translation.
        to = EXTERNAL if back else SERVER
        sent = [sent_to(packet, to) for packet in said]
        began = time.monotonic()
        for _ in range(MANY):
            flooding.sendto(sent[0], (to, 0))
        for _ in range(few):
            quiet.sendto(sent[1], (to, 0))
        queue.wait_for(lambda: heard(queue, b"message 1") == 1 + few)
        least, count = 2 * PACE.segments_per_client, heard(queue, b"message 0")
        assert least <= count <= most(PACE.segments_per_client, began) < MANY


@both
@pytest.mark.parametrize("inbound", [False, True], ids=["of a client", "from outside"])
def test_gre_of_one_host_is_held_back_ahead_of_its_queue_and_another_s_is_not(
    lab: RulesLab, *, inbound: bool
) -> None:
    """Whose call it is nobody knows there: who sends it is all that there is to go by."""
    ruleset.apply(QUEUED, Backend.IPTABLES)
    to, sender, source = (EXTERNAL, lab.server, SERVER) if inbound else (SERVER, lab.alice, ALICE)
    other = (SERVER, lab.bob, BOB)
    flooding, quiet = lab.gre(sender), lab.gre(other[1])
    with Listener(lab, 1724, lambda packet: packet.drop()) as queue:
        began = time.monotonic()
        for _ in range(MANY):
            flooding.send(to, enhanced(7))
        quiet.send(other[0], enhanced(8))
        queue.wait_for(lambda: any(p[12:16] == octets(other[2]) for p in queue.seen))
        marker(lab)
        come = sum(p[12:16] == octets(source) for p in queue.seen)
    flooding.close()
    quiet.close()

    assert 2 * PACE.gre_per_host <= come <= most(PACE.gre_per_host, began) < MANY
    drops = ruleset.paced_drops(QUEUED)
    if drops is not None:  # iptables-legacy does not tell
        assert MANY - come == drops["gre_per_host"]


def test_what_is_dropped_is_counted_by_its_bound(lab: RulesLab, raw: socket.socket) -> None:
    """Nobody sees such packets but these counters."""
    assert ruleset.paced_drops(PACED) is None
    ruleset.apply(PACED, Backend.IPTABLES)
    assert {"openers_per_client": 0, "openers": 0, "segments_per_client": 0} == (
        ruleset.paced_drops(PACED)
    )
    began = flood(lab, raw, opening(MANY))
    drops = ruleset.paced_drops(PACED)

    assert drops is not None
    assert (0, 0) == (drops["openers"], drops["segments_per_client"])
    assert MANY - most(PACE.openers_per_client, began) <= drops["openers_per_client"] <= MANY - 4
    assert ruleset.paced_drops(RuleSettings(pace=Pace(1, 0, 0))) is None, "rules of other settings"


def test_nftables_paces_alike(lab: RulesLab, swapped: None, raw: socket.socket) -> None:
    """With the queue statement swapped for a drop: only this backend's own counters tell."""
    ruleset.apply(PACED, Backend.NFTABLES)
    assert [] == ruleset.check(PACED, Backend.NFTABLES)
    began = flood(lab, raw, opening(MANY))
    drops = ruleset.paced_drops(PACED)
    assert drops is not None
    assert MANY - most(PACE.openers_per_client, began) <= drops["openers_per_client"] <= MANY - 4

    began = flood(lab, raw, from_everywhere())
    drops = ruleset.paced_drops(PACED)
    assert drops is not None
    assert "gre_per_host" not in drops
    assert 2 * MANY - most(PACE.openers, began) <= drops["openers"] <= 2 * MANY - 40


def test_nftables_paces_gre_alike(lab: RulesLab, swapped: None) -> None:
    ruleset.apply(QUEUED, Backend.NFTABLES)
    assert [] == ruleset.check(QUEUED, Backend.NFTABLES)
    gre = lab.gre(lab.alice)
    began = time.monotonic()
    for _ in range(MANY):
        gre.send(SERVER, enhanced(7))
    marker(lab)
    gre.close()
    drops = ruleset.paced_drops(QUEUED)

    assert drops is not None
    least = MANY - most(PACE.gre_per_host, began)
    assert least <= drops["gre_per_host"] <= MANY - 2 * PACE.gre_per_host


def test_nftables_paces_what_comes_back_alike(
    lab: RulesLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the queue statement swapped for an accept: both clients speak with the server."""
    verdict = ("counter accept", "accept")
    monkeypatch.setattr(ruleset_nftables, "queue_verdict", lambda _: verdict)
    settings = RuleSettings(pace=replace(PACE, openers_per_client=0, openers=0))
    ruleset.apply(settings, Backend.NFTABLES)
    assert [] == ruleset.check(settings, Backend.NFTABLES)

    def dropped() -> int:
        drops = ruleset.paced_drops(settings)
        assert drops is not None
        return drops["segments_per_client"]

    with two_connections(lab) as (clients, served):
        for _ in range(MANY):
            served[0].sendall(b"to alice")
        deadline = time.monotonic() + rules_lab.PATIENCE
        while not dropped():
            assert time.monotonic() < deadline, "nothing is held back"
            time.sleep(0.01)
        for each in (clients[0], served[0]):
            each.close()  # or what was lost would come again
        before = dropped()
        for _ in range(2 * PACE.segments_per_client - 1):  # all at once: a full bucket of bob's own
            served[1].sendall(b"to bob")
        come = b""
        while len(come) < len(b"to bob") * (2 * PACE.segments_per_client - 1):
            come += clients[1].recv(1000)
        assert before == dropped()


@pytest.mark.parametrize("lab", rules_lab.VARIANTS, indirect=True)
def test_another_pace_takes_the_place_of_the_one_before(lab: RulesLab, raw: socket.socket) -> None:
    """xt_hashlimit goes on with the rate that a table's name was first used with."""
    for settings in (PACED, RuleSettings(pace=Pace(openers_per_client=50)), PACED):
        ruleset.apply(settings, Backend.IPTABLES)
        ruleset.apply(settings, Backend.IPTABLES)
        assert [] == ruleset.check(settings, Backend.IPTABLES)
        other = RuleSettings(pace=Pace(openers_per_client=51))
        assert ["filter PPTP_NAT_PACE"] == [
            problem.split(":")[0] for problem in ruleset.check(other, Backend.IPTABLES)
        ]
        began = time.monotonic()
        with Listener(lab, 1723, again) as listener:
            flood(lab, raw, opening(MANY))
            rate = settings.pace.openers_per_client
            until(listener, 2 * rate, ALICE)
            assert 2 * rate <= openers(listener, ALICE) <= most(rate, began)


@pytest.mark.parametrize("backend", Backend)
def test_who_wants_no_pace_gets_the_rules_without(
    lab: RulesLab, swapped: None, backend: Backend
) -> None:
    unpaced = RuleSettings(pace=Pace(0, 0, 0, 0))
    ruleset.apply(PACED, backend)
    assert [] != ruleset.check(unpaced, backend)
    ruleset.apply(unpaced, backend)

    assert [] == ruleset.check(unpaced, backend)
    listed = command("iptables-save") + command("nft", "list", "ruleset")
    assert "limit" not in listed
    assert [] != ruleset.check(PACED, backend), "an older version's rules are told from today's"
