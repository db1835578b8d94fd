"""What iptables' rules queue of the control connections, and who judges it afterwards."""

from __future__ import annotations

import socket
import struct

import pytest

from pptp_nat.linux import ruleset
from pptp_nat.linux.ruleset import Backend, Features, RuleSettings

from . import rules_lab
from .rules_lab import (
    ALICE,
    EXTERNAL,
    SERVER,
    Listener,
    RulesLab,
    again,
    iptables,
    marker,
    octets,
)
from .rules_segments import (
    ACK,
    FIN,
    OPENER,
    OPTIONS_IN_IP,
    PSH,
    SEGMENTS,
    SYN,
    segment,
    source_ports,
)

pytestmark = pytest.mark.kernel
CONNTRACK = RuleSettings()
QUEUE = RuleSettings(datapath="queue")

network = pytest.fixture(scope="module")(rules_lab.network)
lab = pytest.fixture(rules_lab.router)
both = pytest.mark.parametrize("lab", rules_lab.VARIANTS, indirect=True)


def tcp_flags(packet: bytes) -> int:
    return packet[4 * (packet[0] & 15) + 13]


def tcp_payload(packet: bytes) -> bytes:
    header = 4 * (packet[0] & 15)
    return packet[header + 4 * (packet[header + 12] >> 4) :]


def serve(lab: RulesLab, host: str, port: int = 1723) -> socket.socket:
    listening = lab.socket(host, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("0.0.0.0", port))
    listening.listen()
    return listening


def converse(lab: RulesLab, opener: str, address: str, listening: socket.socket) -> None:
    """Connect, say a word in each direction and close in good order."""
    with lab.socket(opener, socket.SOCK_STREAM) as client, listening:
        client.connect((address, listening.getsockname()[1]))
        server, _ = listening.accept()
        with server:
            server.settimeout(rules_lab.PATIENCE)
            client.sendall(b"request")
            assert b"request" == server.recv(100)
            server.sendall(b"reply")
            assert b"reply" == client.recv(100)
            client.shutdown(socket.SHUT_WR)
            assert b"" == server.recv(100)
            server.shutdown(socket.SHUT_WR)
            assert b"" == client.recv(100)


@both
def test_control_messages_are_queued_and_meet_the_administrators_rules_unmarked(
    lab: RulesLab,
) -> None:
    """The mark must not leak, and the marks of others must survive."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    iptables("-t mangle -A PREROUTING -i lan1 -j MARK --set-mark 0x5")
    strict = "-p tcp --dport 1723 -m mark ! --mark 0x5 -j DROP"
    iptables(f"-I FORWARD 3 {strict}")
    iptables(f"-t mangle -A POSTROUTING {strict}")

    with Listener(lab, 1723, again) as queue:
        converse(lab, lab.alice, SERVER, serve(lab, lab.server))

    flags = [tcp_flags(packet) & ~PSH for packet in queue.seen]
    payloads = [tcp_payload(packet) for packet in queue.seen if tcp_payload(packet)]
    assert [ACK, ACK, FIN | ACK, FIN | ACK] == flags
    assert [b"request", b"reply"] == payloads


def test_the_administrators_drop_after_our_rule_still_drops(lab: RulesLab) -> None:
    """An ACCEPT verdict would skip it: that is why the daemon says REPEAT."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    iptables("-I FORWARD 3 -p tcp --dport 1723 -j DROP")

    with (
        Listener(lab, 1723, again) as queue,
        lab.socket(lab.alice, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
        lab.socket(lab.server, socket.SOCK_RAW, socket.IPPROTO_TCP) as there,
    ):
        raw.sendto(segment(SYN, source_port=4001), (SERVER, 0))
        raw.sendto(segment(SYN, payload=OPENER, source_port=4002), (SERVER, 0))
        queue.wait(1)
        marker(lab)
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(100)


def test_without_a_daemon_control_messages_wait_and_never_pass(lab: RulesLab) -> None:
    """TCP sends again what was dropped, so a daemon that restarts costs a second and no call."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)

    with (
        serve(lab, lab.server) as listening,
        lab.socket(lab.alice, socket.SOCK_STREAM) as client,
    ):
        client.connect((SERVER, 1723))
        served, source = listening.accept()
        assert EXTERNAL == source[0]
        with served:
            client.sendall(b"message")
            marker(lab)
            served.setblocking(False)
            with pytest.raises(BlockingIOError):
                served.recv(100)
            with Listener(lab, 1723, again):
                served.settimeout(rules_lab.PATIENCE)
                assert b"message" == served.recv(100)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()


def test_ports_are_those_of_the_settings(lab: RulesLab) -> None:
    """Servers on other ports exist; other traffic pays nothing."""
    settings = RuleSettings(ports=(1723, 1799))
    ruleset.apply(settings, Backend.IPTABLES)
    with Listener(lab, 1723, again) as queue:
        converse(lab, lab.alice, SERVER, serve(lab, lab.server, 1799))
    assert 4 == len(queue.seen)

    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    with Listener(lab, 1723, again) as queue:
        converse(lab, lab.alice, SERVER, serve(lab, lab.server, 1799))
    assert [] == queue.seen


def test_a_packet_with_our_port_at_both_ends_is_queued_once(lab: RulesLab) -> None:
    """Two rules that both match it would send it round for ever."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    with (
        Listener(lab, 1723, again) as queue,
        lab.socket(lab.alice, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
        lab.socket(lab.server, socket.SOCK_RAW, socket.IPPROTO_TCP) as there,
    ):
        raw.sendto(segment(SYN, payload=OPENER, source_port=1723), (SERVER, 0))
        assert there.recv(100)[12:16] == octets(EXTERNAL)
        marker(lab)
        assert 1 == sum(tcp_flags(packet) == SYN for packet in queue.seen)


def test_the_routers_own_control_connections_are_queued(lab: RulesLab) -> None:
    """Its own calls take numbers that no client may be given; loopback is not a tunnel."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    with Listener(lab, 1723, again) as queue:
        converse(lab, lab.router, SERVER, serve(lab, lab.server))
        assert [ACK, ACK, FIN | ACK, FIN | ACK] == [tcp_flags(p) & ~PSH for p in queue.seen]
        queue.seen.clear()
        converse(lab, lab.server, EXTERNAL, serve(lab, lab.router))
        assert 4 == len(queue.seen)
        queue.seen.clear()
        converse(lab, lab.router, "127.0.0.1", serve(lab, lab.router))
        assert [] == queue.seen


@both
def test_only_what_the_daemon_reads_is_queued(lab: RulesLab) -> None:
    """Half of the packets of a control connection are empty acknowledgements."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    cases = [*SEGMENTS, (OPTIONS_IN_IP, False)]
    read = source_ports([packet for packet, queued in cases if queued])
    with (
        Listener(lab, 1723, lambda packet: packet.drop()) as queue,
        lab.socket(lab.alice, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        for packet, _ in cases:
            raw.sendto(packet, (SERVER, 0))
        queue.wait_for(lambda: read <= source_ports(queue.seen))
        marker(lab)
        mine = [p for p in queue.seen if p[12:16] == octets(ALICE)]  # the server's resets come too

    assert read == source_ports(mine)


def test_without_bpf_everything_is_queued_and_still_right(lab: RulesLab) -> None:
    """xt_bpf is a module that a small router may lack."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES, Features(bpf=False))

    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)
    with Listener(lab, 1723, again) as queue:
        converse(lab, lab.alice, SERVER, serve(lab, lab.server))
    assert 5 < len(queue.seen)
