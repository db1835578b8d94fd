"""What the design takes for granted about Linux, one fact per test.

When a kernel fails one of these, the daemon's data path is wrong there, whatever
its own tests say.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

import netfilterqueue
import pytest

from pptp_nat.linux import conntrack_wire as wire
from pptp_nat.linux.conntrack import ENTRY_MARK, LIFETIME, Conntrack
from pptp_nat.linux.conntrack_wire import CARRYING, Status, Tuple
from pptp_nat.linux.datapath import LegOrder, Match
from pptp_nat.linux.netlink import Message, attribute

from .conntrack_lab import (
    CLIENT,
    EXTERNAL,
    OTHER,
    SERVER,
    ConntrackLab,
    Gre,
    Host,
    checksum,
    inbound,
    ip_header,
    leg,
    octets,
    outbound,
    ready,
)

pytestmark = pytest.mark.kernel

STATUS = attribute(wire.CTA_STATUS, struct.pack("!I", CARRYING))
LONG = bytes(range(256)) * 12  # octets of a payload that needs three fragments


def new(order: wire.Leg, *, spare: int = 0, status: int = CARRYING) -> Message:
    """Return the request for an entry, with a status of our choice."""
    message = wire.new_message(order, ENTRY_MARK, spare, LIFETIME)
    other = attribute(wire.CTA_STATUS, struct.pack("!I", status))
    return message._replace(body=message.body.replace(STATUS, other))


def insert(conntrack: Conntrack, *legs: wire.Leg) -> None:
    conntrack.insert([LegOrder(one, 0) for one in legs])


def errnos(conntrack: Conntrack, *messages: Message) -> list[int]:
    return conntrack._netlink.request(messages)


def match(one: wire.Leg) -> Match:
    return Match(*one[:3])


# Two entries per call.


def test_two_entries_translate_both_ways(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """The whole conntrack data path rests on this."""
    insert(conntrack, inbound(1000, 7), outbound(500))

    assert [Gre(EXTERNAL, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))
    assert [Gre(SERVER, CLIENT, 7)] == lab.back(Gre(SERVER, EXTERNAL, 1000))


def test_packets_of_an_entry_are_established(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """No firewall needs a rule for GRE; without an entry this router's forwards none."""
    assert [] == lab.out(Gre(CLIENT, SERVER, 500))
    lab.router.run("conntrack", "-F")

    insert(conntrack, inbound(1000, 7), outbound(500))

    assert [Gre(EXTERNAL, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))
    assert [Gre(SERVER, CLIENT, 7)] == lab.back(Gre(SERVER, EXTERNAL, 1000))


def test_without_fixed_timeout_translation_ends_after_one_packet(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """Why our entries have a fixed timeout: else the first packet sets it to zero."""
    entry = new(inbound(1000, 7), status=CARRYING & ~Status.FIXED_TIMEOUT)
    assert [0] == errnos(conntrack, entry)

    packet = Gre(SERVER, EXTERNAL, 1000)

    assert [Gre(SERVER, CLIENT, 7)] == lab.back(packet)
    assert [] == lab.back(packet, packet)


def test_an_entry_that_is_not_confirmed_is_refused(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """Why CONFIRMED is among the status bits although the kernel sets it by itself."""
    entry = new(inbound(1000, 7), status=CARRYING & ~Status.CONFIRMED)

    assert [errno.EBUSY] == errnos(conntrack, entry)


def test_a_fixed_timeout_cannot_be_prolonged(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """Why entries are made for weeks, and renewed by deleting and making them anew."""
    insert(conntrack, inbound(1000, 7))
    arriving = wire.tuple_attribute(wire.CTA_TUPLE_ORIG, Tuple.of_match(inbound(1000, 7)))
    longer = attribute(wire.CTA_TIMEOUT, struct.pack("!I", LIFETIME))

    message = Message(wire.CT_NEW, 0, wire.FAMILY + arriving + longer)

    assert [errno.EPERM] == errnos(conntrack, message)


def test_the_kernel_grants_the_whole_lifetime(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """Half of it is the moment of renewal, so it must not be cut."""
    insert(conntrack, inbound(1000, 7))

    (entry,) = conntrack.entries()

    assert LIFETIME - 60 <= entry.seconds_left <= LIFETIME


def test_an_early_packet_leaves_a_track_that_is_deleted_and_replaced(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """The server may send GRE before the daemon has read its reply."""
    packet = Gre(SERVER, EXTERNAL, 1000)
    assert [] == lab.back(packet)
    track = conntrack.entry(match(inbound(1000, 7)))
    assert track is not None

    assert [errno.EEXIST] == errnos(conntrack, new(inbound(1000, 7)))
    assert [0, 0] == errnos(conntrack, wire.delete_message(track), new(inbound(1000, 7)))

    assert [Gre(SERVER, CLIENT, 7)] == lab.back(packet)


def test_another_reply_key_lets_two_calls_share_a_real_number(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """A client that rebooted dials with the same number while its old call is half open."""
    old, again = inbound(1000, 7), inbound(1001, 7)

    assert [0, errno.EEXIST] == errnos(conntrack, new(old), new(again))
    assert [0] == errnos(conntrack, new(again, spare=1001))

    expected = [Gre(SERVER, CLIENT, 7, b"old"), Gre(SERVER, CLIENT, 7, b"again")]
    sent = [Gre(SERVER, EXTERNAL, 1000, b"old"), Gre(SERVER, EXTERNAL, 1001, b"again")]
    assert expected == lab.back(*sent)


def test_fragments_are_translated(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """Conntrack puts them together before it looks, and takes them apart afterwards."""
    insert(conntrack, inbound(1000, 7), outbound(500))

    assert [Gre(EXTERNAL, SERVER, 500, LONG)] == lab.out(Gre(CLIENT, SERVER, 500, LONG))
    assert [Gre(SERVER, CLIENT, 7, LONG)] == lab.back(Gre(SERVER, EXTERNAL, 1000, LONG))


def test_a_deletion_with_keys_ends_only_the_one(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """`conntrack -D` takes no notice of keys and would end all calls to a server."""
    insert(conntrack, inbound(1000, 7), inbound(1001, 8), inbound(1002, 9))
    doomed = conntrack.entry(match(inbound(1001, 8)))
    assert doomed is not None

    assert [0] == errnos(conntrack, wire.delete_message(doomed))

    assert {1000, 1002} == {entry.leg.key for entry in conntrack.entries()}


def test_the_destroy_event_that_a_deletion_asks_for_has_the_last_counts(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """A look before the deletion would miss what comes between the two."""
    lab.router.sysctl("net.netfilter.nf_conntrack_events", "1")
    insert(conntrack, inbound(1000, 7))
    lab.back(Gre(SERVER, EXTERNAL, 1000))
    entry = conntrack.entry(match(inbound(1000, 7)))
    assert entry is not None

    _, received = conntrack._netlink.exchange([wire.delete_message(entry)])
    ended = wire.read_entry(received[0].body)

    assert ended is not None
    assert (1, 20 + 12 + 3) == ended.carried


def test_a_hairpin_is_rewritten_at_both_ends(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """Both hosts are inside and see each other as the external address."""
    insert(
        conntrack,
        leg(CLIENT, EXTERNAL, 1000, EXTERNAL, OTHER, 7),
        leg(OTHER, EXTERNAL, 1001, EXTERNAL, CLIENT, 8),
    )

    expected = [Gre(EXTERNAL, OTHER, 7), Gre(EXTERNAL, CLIENT, 8)]
    assert expected == lab.around(Gre(CLIENT, EXTERNAL, 1000), Gre(OTHER, EXTERNAL, 1001))


def test_a_leg_that_changes_nothing_makes_packets_established(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """Plain routing needs entries too, or the firewall drops GRE."""
    insert(
        conntrack,
        leg(CLIENT, SERVER, 500, CLIENT, SERVER, 500),
        leg(SERVER, CLIENT, 7, SERVER, CLIENT, 7),
    )

    assert [Gre(CLIENT, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))
    assert [Gre(SERVER, CLIENT, 7)] == lab.back(Gre(SERVER, CLIENT, 7))


def test_entries_count_packets_and_octets(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """With net.netfilter.nf_conntrack_acct; the octets are those of the IP packets."""
    insert(conntrack, inbound(1000, 7))
    lab.back(Gre(SERVER, EXTERNAL, 1000, b"12345"), Gre(SERVER, EXTERNAL, 1000, b"1234567"))

    (entry,) = conntrack.entries()

    assert (2, 2 * (20 + 12) + 5 + 7) == entry.carried
    assert (0, 0) == entry.returned


def test_the_kernel_lists_by_mark(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """Our entries are found among all others without reading those."""
    insert(conntrack, inbound(1000, 7))
    lab.back(Gre(SERVER, EXTERNAL, 4000))  # a track of no call
    criteria = wire.by_mark(ENTRY_MARK)

    bodies = conntrack._netlink.dump(wire.dump_message(criteria))

    assert [inbound(1000, 7)] == [e.leg for e in map(wire.read_entry, bodies) if e]


def test_rules_see_the_mark_of_an_entry(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """So administrators can match the GRE of calls, and by the mark of their own too."""
    words = ("-I", "FORWARD", "-m", "connmark", "--mark", f"{ENTRY_MARK | 5:#x}")
    lab.rule(*words, "-m", "comment", "--comment", "ours")
    conntrack.insert([LegOrder(inbound(1000, 7), 5)])

    lab.back(Gre(SERVER, EXTERNAL, 1000))

    assert 1 == lab.matched("filter", "ours")


def test_without_a_nat_chain_in_the_namespace_nothing_is_translated(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """An entry is accepted all the same; so a router without any nat rule needs one chain."""
    if "nf_tables" not in lab.router.run("iptables", "--version"):
        pytest.skip("iptables-legacy keeps its nat hooks until the namespace is gone")
    lab.router.run("nft", "delete", "table", "ip", "nat")
    insert(conntrack, inbound(1000, 7), outbound(500))

    assert [Gre(CLIENT, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))
    assert [] == lab.back(Gre(SERVER, EXTERNAL, 1000))


# ICMP errors about GRE.


def too_big(source: str, destination: str, quoted: bytes) -> bytes:
    """Return an ICMP "fragmentation needed" about the packet that begins with *quoted*."""
    message = struct.pack("!BBHHH", 3, 4, 0, 0, 1300) + quoted
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return ip_header(source, destination, 1, len(message)) + message


def quoted(packet: Gre) -> bytes:
    """Return what an ICMP error quotes of *packet*: the IP header and 8 octets."""
    return ip_header(packet.source, packet.destination, 47, 1400) + packet.header[:8]


def complained(messages: list[bytes]) -> list[Gre]:
    """Return what the "fragmentation needed" among *messages* are about."""
    return [
        Gre(
            socket.inet_ntoa(message[40:44]),
            socket.inet_ntoa(message[44:48]),
            int.from_bytes(message[54:56]),
            b"",
        )
        for message in messages
        if message[20:22] == b"\x03\x04"
    ]


def test_an_icmp_error_about_outbound_gre_reaches_the_client(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """Path MTU discovery of the client's tunnel; needs reply key 0."""
    insert(conntrack, outbound(500))
    seen = Gre(EXTERNAL, SERVER, 500)

    lab.server.send_ip(too_big(SERVER, EXTERNAL, quoted(seen)))
    lab.inside.settle(CLIENT, lab.server, SERVER)

    assert [Gre(CLIENT, SERVER, 500, b"")] == complained(lab.inside.icmp())


def test_an_icmp_error_about_inbound_gre_reaches_the_server(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """A narrow link inside: the server is told of the packet as it sent it, key and all."""
    insert(conntrack, inbound(1000, 7))
    seen = Gre(SERVER, CLIENT, 7)

    lab.inside.send_ip(too_big(CLIENT, SERVER, quoted(seen)))
    lab.server.settle(SERVER, lab.inside, CLIENT)

    assert [Gre(SERVER, EXTERNAL, 1000, b"")] == complained(lab.server.icmp())


def test_the_routers_own_icmp_error_about_inbound_gre_is_translated(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """The router itself is the one that finds a packet too long for the LAN."""
    insert(conntrack, inbound(1000, 7))
    packet = Gre(SERVER, EXTERNAL, 1000, bytes(1300))
    whole = ip_header(SERVER, EXTERNAL, 47, 1312, dont_fragment=True)
    lab.router.run("ip", "link", "set", "lan", "mtu", "1000")
    try:
        lab.server.send_ip(whole + packet.header + packet.payload)
        lab.inside.settle(CLIENT, lab.server, SERVER)
        lab.server.settle(SERVER, lab.inside, CLIENT)
    finally:
        lab.router.run("ip", "link", "set", "lan", "mtu", "1500")

    assert [Gre(SERVER, EXTERNAL, 1000, b"")] == complained(lab.server.icmp())


def test_an_icmp_error_is_not_recognized_with_another_reply_key(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """Why 0 is tried first."""
    assert [0, 0] == errnos(conntrack, new(outbound(500), spare=9), new(inbound(1000, 7), spare=9))

    lab.server.send_ip(too_big(SERVER, EXTERNAL, quoted(Gre(EXTERNAL, SERVER, 500))))
    lab.inside.settle(CLIENT, lab.server, SERVER)
    lab.inside.send_ip(too_big(CLIENT, SERVER, quoted(Gre(SERVER, CLIENT, 7))))
    lab.server.settle(SERVER, lab.inside, CLIENT)

    assert [] == complained(lab.inside.icmp())
    assert [] == complained(lab.server.icmp())


# Queues.

QUEUE = 1723
REPEAT_MARK = 0x40000000
Judge = Callable[[netfilterqueue.Packet], None]


class Listener:
    """A bound queue of the router; each packet is judged by a function."""

    def __init__(self, host: Host, judge: Judge) -> None:
        self.seen: list[bytes] = []
        self._judge = judge
        with host.entered():
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(QUEUE, self._receive)

    def _receive(self, packet: netfilterqueue.Packet) -> None:
        self.seen.append(packet.get_payload())
        self._judge(packet)

    def judge(self, packets: int) -> None:
        """Wait for so many packets in all."""
        while len(self.seen) < packets:
            assert ready(self._queue.get_fd()), f"only {len(self.seen)} packets were queued"
            self._queue.run(block=False)

    def close(self) -> None:
        self._queue.unbind()


@pytest.fixture
def listen(lab: ConntrackLab) -> Iterator[Callable[[Judge], Listener]]:
    """Return what binds the router's queue until the test is over."""
    bound: list[Listener] = []

    def bind(judge: Judge) -> Listener:
        bound.append(Listener(lab.router, judge))
        return bound[-1]

    yield bind
    for listener in bound:
        listener.close()


def repeat_marked(packet: netfilterqueue.Packet) -> None:
    packet.set_mark(REPEAT_MARK)
    packet.repeat()


def queue_rule(*words: str) -> tuple[str, ...]:
    unmarked = ("-m", "mark", "!", "--mark", f"{REPEAT_MARK:#x}/{REPEAT_MARK:#x}")
    return (*words, *unmarked, "-j", "NFQUEUE", "--queue-num", str(QUEUE))


@pytest.mark.parametrize(
    ("target", "expected"),
    [("ACCEPT", [Gre(CLIENT, SERVER, 500)]), ("DROP", [])],
    ids=["accepted by the next rule", "dropped by the next rule"],
)
def test_a_repeated_packet_is_judged_by_the_rules_behind_the_queue(
    lab: ConntrackLab,
    listen: Callable[[Judge], Listener],
    target: str,
    expected: list[Gre],
) -> None:
    """NF_ACCEPT would end the chain and open the firewall; NF_REPEAT with a mark does not."""
    lab.rule("-t", "nat", "-F")
    lab.rule("-I", "FORWARD", "-p", "gre", "-m", "comment", "--comment", "behind", "-j", target)
    lab.rule(*queue_rule("-I", "FORWARD", "-p", "gre"))
    listener = listen(repeat_marked)

    lab.inside.send(Gre(CLIENT, SERVER, 500))
    listener.judge(1)

    assert expected == lab.out()
    assert 1 == lab.matched("filter", "behind")
    assert 1 == len(listener.seen)


def test_a_queue_that_nobody_listens_to_drops(lab: ConntrackLab) -> None:
    """While the daemon is away, control connections stall and TCP sends again."""
    lab.rule("-t", "nat", "-F")
    lab.rule("-I", "FORWARD", "-p", "gre", "-j", "ACCEPT")
    lab.rule(*queue_rule("-I", "FORWARD", "-p", "gre"))

    assert [] == lab.out(Gre(CLIENT, SERVER, 500))


def test_a_queue_with_bypass_lets_pass_while_nobody_listens(lab: ConntrackLab) -> None:
    """What the rules offer to those who prefer untranslated packets to none."""
    lab.rule("-t", "nat", "-F")
    lab.rule("-I", "FORWARD", "-p", "gre", "-j", "ACCEPT")
    lab.rule(*queue_rule("-I", "FORWARD", "-p", "gre"), "--queue-bypass")

    assert [Gre(CLIENT, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))


def tcp_checksum(packet: bytes) -> int:
    """Return 0 for a TCP segment whose checksum is right."""
    header = (packet[0] & 15) * 4
    segment = packet[header:]
    return checksum(packet[12:20] + struct.pack("!HH", 6, len(segment)) + segment)


@pytest.mark.parametrize(
    ("hook", "opener", "address"),
    [("FORWARD", "inside", CLIENT), ("OUTPUT", "router", EXTERNAL)],
    ids=["forwarded", "of the router itself"],
)
def test_a_queued_segment_has_a_complete_checksum(
    lab: ConntrackLab,
    listen: Callable[[Judge], Listener],
    hook: str,
    opener: str,
    address: str,
) -> None:
    """A checksum is patched for what we change, so it must be right when we get it.

    A network card computes it later otherwise, and hands on segments too large.
    """
    lab.rule(*queue_rule("-I", hook, "-p", "tcp", "--dport", "1723"))
    listener = listen(repeat_marked)
    host: Host = getattr(lab, opener)
    server = lab.server.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((SERVER, 1723))
    server.listen()
    client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.bind((address, 0))
    client.setblocking(False)
    client.connect_ex((SERVER, 1723))
    listener.judge(2)  # SYN, ACK
    accepted, _ = server.accept()

    client.send(LONG)
    received = b""
    while len(received) < len(LONG):
        listener.judge(len(listener.seen) + 1)
        while ready_now(accepted):
            received += accepted.recv(65536)

    for opened in (accepted, client, server):
        opened.close()
    assert LONG == received
    assert [0] * len(listener.seen) == [tcp_checksum(packet) for packet in listener.seen]


def ready_now(opened: socket.socket) -> bool:
    opened.setblocking(False)
    try:
        return bool(opened.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


# Matches of xt_bpf: what iptables cannot say otherwise.

# Octets 6 and 7 without a fragment offset; then, behind the IP header, version 1 and 0x880B.
ENHANCED_GRE = (
    "8,40 0 0 6,69 5 0 8191,177 0 0 0,64 0 0 0,84 0 0 524287,21 0 1 100363,6 0 0 1,6 0 0 0"
)
# ACK of ACK, FIN and RST, and no octet behind the TCP header.
PURE_ACK = (
    "13,177 0 0 0,80 0 0 13,84 0 0 21,21 0 8 16,80 0 0 12,116 0 0 2,84 0 0 60,12 0 0 0,7 0 0 0,"
    "40 0 0 2,29 0 1 0,6 0 0 1,6 0 0 0"
)


def count_rule(name: str, protocol: str, program: str) -> tuple[str, ...]:
    bytecode = ("-m", "bpf", "--bytecode", program)
    return ("-I", "FORWARD", "-p", protocol, *bytecode, "-m", "comment", "--comment", name)


def test_xt_bpf_tells_enhanced_gre_from_other_gre(lab: ConntrackLab) -> None:
    """Only PPTP's GRE goes to our queue, other tunnels are none of our business."""
    lab.rule(*count_rule("enhanced", "gre", ENHANCED_GRE))
    plain = struct.pack("!HH", 0, 0x0800) + bytes(20)

    lab.out(Gre(CLIENT, SERVER, 500), Gre(CLIENT, SERVER, 501, b""))
    lab.inside.send_ip(ip_header(CLIENT, SERVER, 47, len(plain)) + plain)
    lab.server.settle(SERVER, lab.inside, CLIENT)

    assert 2 == lab.matched("filter", "enhanced")


def test_xt_bpf_tells_pure_acknowledgements_from_data(lab: ConntrackLab) -> None:
    """Half of a control connection's packets say nothing and need not be queued."""
    lab.rule(*count_rule("ack", "tcp", PURE_ACK), "-i", "lan")
    lab.rule("-I", "FORWARD", "-p", "tcp", "-i", "lan", "-m", "comment", "--comment", "all")

    for flags, payload in ((0x10, b""), (0x10, b"data"), (0x18, b"data"), (0x02, b""), (0x11, b"")):
        segment = struct.pack("!HHIIBBHHH", 1025, 1723, 1, 1, 0x50, flags, 512, 0, 0) + payload
        pseudo = octets(CLIENT) + octets(SERVER) + struct.pack("!HH", 6, len(segment))
        right = struct.pack("!H", checksum(pseudo + segment))
        segment = segment[:16] + right + segment[18:]
        lab.inside.send_ip(ip_header(CLIENT, SERVER, 6, len(segment)) + segment)
    lab.server.settle(SERVER, lab.inside, CLIENT)

    assert (1, 5) == (lab.matched("filter", "ack"), lab.matched("filter", "all"))
