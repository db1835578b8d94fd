"""The data path `bpf` around a whole stack: routing, MASQUERADE, a firewall, and our rules.

The router's two sides are tun or tap devices, which the test holds at the other end: what it
writes arrives at the router, what it reads has left it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import GRE, GRE_PPTP
from scapy.packet import Raw

from pptp_nat.core.tuples import Leg
from pptp_nat.lab import namespaces
from pptp_nat.linux import bpf_path, ruleset, xdp
from pptp_nat.linux.bpf_object import LIBRARY
from pptp_nat.linux.bpf_path import BpfPath, Forwarding
from pptp_nat.linux.datapath import LegOrder, Match, Tally
from pptp_nat.linux.rtnetlink import Asking
from pptp_nat.linux.ruleset import Backend, RuleSettings
from tests.paths import NO_BPF

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(NO_BPF is not None, reason=f"bpf: {NO_BPF}"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun: modprobe tun"),
    pytest.mark.skipif(shutil.which("iptables") is None, reason="apt install iptables"),
]

CLIENT, OTHER, LAN = "10.0.0.2", "10.0.0.3", "10.0.0.1"
ROUTER, SERVER, HOP = "198.51.100.1", "192.0.2.1", "198.51.100.2"
BIT = 0x40000000
PATIENCE = 10.0
TUNSETIFF, IFF_TUN, IFF_TAP, IFF_NO_PI = 0x400454CA, 1, 2, 0x1000
MAC = bytes.fromhex("020000000001")  # of whoever is at the other end

FIREWALL = """
*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan -o wan -p udp -j ACCEPT
-A FORWARD -i lan -o wan -p gre -j ACCEPT
COMMIT
"""


def octets(address: str) -> bytes:
    return socket.inet_aton(address)


INWARD = Leg(octets(SERVER), octets(ROUTER), 4711, octets(SERVER), octets(CLIENT), 7)
OUTWARD = Leg(octets(CLIENT), octets(SERVER), 100, octets(ROUTER), octets(SERVER), 100)


def gre(source: str, destination: str, key: int, *, size: int = 40, **ip: Any) -> bytes:
    layer = GRE_PPTP(call_id=key, payload_len=size, seqnum_present=1, sequence_number=key)
    return bytes(IP(src=source, dst=destination, proto=47, **ip) / layer / Raw(b"x" * size))


def in_pieces(packet: bytes, at: int) -> list[bytes]:
    """Return *packet* as two fragments, the first with *at* octets behind its IP header."""
    ip, rest = IP(packet), packet[20:]
    first = IP(src=ip.src, dst=ip.dst, proto=47, id=ip.id, flags="MF") / Raw(rest[:at])
    second = IP(src=ip.src, dst=ip.dst, proto=47, id=ip.id, frag=at // 8) / Raw(rest[at:])
    return [bytes(first), bytes(second)]


class Side:
    """A device of the router, seen from the other end of its cable."""

    def __init__(self, name: str, kind: str, address: str) -> None:
        self.ether = kind == "tap"
        self._file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = (IFF_TAP if self.ether else IFF_TUN) | IFF_NO_PI
        fcntl.ioctl(self._file, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        command("ip", "addr", "add", f"{address}/24", "dev", name)
        command("ip", "link", "set", name, "up")
        shown = command("ip", "-br", "link", "show", name).split()
        self.mac = bytes.fromhex(shown[2].replace(":", "")) if self.ether else b""
        self._mac = self.mac  #: that frames are sent to

    def send(self, *packets: bytes) -> None:
        for packet in packets:
            head = self._mac + MAC + b"\x08\x00" if self.ether else b""
            os.write(self._file, head + packet)

    def received(self, marker: bytes) -> list[bytes]:
        """Return the IPv4 packets that have left here, up to one that ends with *marker*."""
        seen: list[bytes] = []
        while select.select([self._file], [], [], PATIENCE)[0]:
            packet = os.read(self._file, 65536)
            if self.ether:
                if packet[12:14] != b"\x08\x00":
                    continue
                packet = packet[14:]
            if packet[0] >> 4 == 4:
                if packet.endswith(marker):
                    return seen
                seen.append(packet)
        raise AssertionError(f"the packet behind which nothing more comes has not come: {seen}")

    def close(self) -> None:
        os.close(self._file)


def command(*words: str, text: str | None = None) -> str:
    return subprocess.run(
        words, input=text, check=True, capture_output=True, text=True
    ).stdout


class Router:
    """The namespace that this thread is in."""

    def __init__(self, kind: str, forwarding: Forwarding) -> None:
        self.lan = Side("lan", kind, LAN)
        self.wan = Side("wan", kind, ROUTER)
        command("ip", "route", "add", "default", "via", HOP)
        if kind == "tap":
            for address, device in ((CLIENT, "lan"), (OTHER, "lan"), (HOP, "wan")):
                mac = ":".join(f"{octet:02x}" for octet in MAC)
                command("ip", "neigh", "add", address, "lladdr", mac, "dev", device)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # A redirect counts against the errors that the same host may hear in a second.
        Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
        command("iptables-restore", text=FIREWALL)
        ruleset.apply(RuleSettings(datapath="bpf"), Backend.IPTABLES)
        self.path = BpfPath(1000, BIT, stays=False, forwarding=forwarding)
        self.path.take_over([])
        self.path.install([LegOrder(INWARD, 0), LegOrder(OUTWARD, 0)])

    def out(self, *packets: bytes) -> list[bytes]:
        """Send from the inside; return what leaves to the world."""
        self.lan.send(*packets, bytes(IP(src=CLIENT, dst=SERVER) / UDP() / Raw(b"that is all")))
        return self.wan.received(b"that is all")

    def into(self, *packets: bytes) -> list[bytes]:
        """Send from the world; return what leaves to the inside."""
        self.wan.send(*packets)
        # What belongs to a conversation from the inside passes the firewall.
        self.lan.send(bytes(IP(src=CLIENT, dst=SERVER) / UDP(sport=7, dport=7) / Raw(b"ask")))
        asked = self.wan.received(b"ask")
        self.wan.send(bytes(IP(src=SERVER, dst=ROUTER) / UDP(sport=7, dport=7) / Raw(b"answer")))
        self.sent_back = asked
        return self.lan.received(b"answer")

    def close(self) -> None:
        self.path.close()
        self.lan.close()
        self.wan.close()


@contextlib.contextmanager
def router_in_a_namespace(kind: str, forwarding: Forwarding = "stack") -> Iterator[Router]:
    name = f"bpf-{os.getpid()}"
    namespaces.create(name)
    try:
        with namespaces.entered(name), contextlib.closing(Router(kind, forwarding)) as made:
            yield made
    finally:
        namespaces.remove(name)


@pytest.fixture(params=["tun", "tap"])
def router(request: pytest.FixtureRequest) -> Iterator[Router]:
    with router_in_a_namespace(request.param) as made:
        yield made


@pytest.fixture(params=["redirect", "xdp"])
def past_the_stack(request: pytest.FixtureRequest) -> Iterator[Router]:
    """Give a router that redirects, whose firewall would let no call through."""
    with router_in_a_namespace("tap", request.param) as made:
        assert not made.path.late, made.path.late
        command("iptables", "-I", "FORWARD", "-p", "gre", "-j", "DROP")
        yield made


def fields(packet: bytes) -> tuple[str, str, int]:
    ip = IP(packet)
    assert ip.chksum == IP(bytes(_fresh(ip))).chksum
    return ip.src, ip.dst, int.from_bytes(packet[ip.ihl * 4 + 6 : ip.ihl * 4 + 8], "big")


def _fresh(ip: IP) -> IP:
    again = ip.copy()
    del again.chksum
    return again


def test_a_call_passes_masquerade_and_a_firewall_that_knows_nothing_of_it(router: Router) -> None:
    """Both ways, the shortest packet and one with IP options; devices with and without Ethernet."""
    plain = gre(CLIENT, SERVER, 100)
    optioned = gre(CLIENT, SERVER, 100, options=b"\x01\x01\x01\x00")

    assert [(ROUTER, SERVER, 100)] * 2 == [fields(each) for each in router.out(plain, optioned)]
    arriving = gre(SERVER, ROUTER, 4711), gre(SERVER, ROUTER, 4711, options=b"\x01\x01\x01\x00")
    assert [(SERVER, CLIENT, 7)] * 2 == [fields(each) for each in router.into(*arriving)]
    assert {
        Match(*INWARD[:3]): Tally(2, sum(map(len, arriving))),
        Match(*OUTWARD[:3]): Tally(2, len(plain) + len(optioned)),
    } == dict(router.path.tallies())
    assert "gre" not in command("conntrack", "-L") if shutil.which("conntrack") else True


def test_gre_of_no_call_goes_nowhere(router: Router) -> None:
    """Not out with an inside address, not in by any number, not in to an inside address."""
    out = gre(CLIENT, SERVER, 101), gre(OTHER, SERVER, 100), gre(CLIENT, HOP, 100)
    into = gre(SERVER, ROUTER, 4712), gre(HOP, ROUTER, 4711), gre(SERVER, CLIENT, 7)

    assert [] == router.out(*out)
    assert [] == router.into(*into)
    assert [] == [each for each in router.sent_back if IP(each).proto == 47]
    assert 4 == ruleset.stray_drops(Backend.IPTABLES)


def test_a_leg_that_is_removed_carries_nothing_any_more(router: Router) -> None:
    router.path.remove([INWARD, OUTWARD])

    assert [] == router.out(gre(CLIENT, SERVER, 100))
    assert [] == router.into(gre(SERVER, ROUTER, 4711))


def test_plain_gre_is_none_of_our_business(router: Router) -> None:
    """Version 0 meets the administrator's rules and MASQUERADE, with or without a key."""
    plain = bytes(IP(src=CLIENT, dst=SERVER) / GRE(proto=0x0800) / Raw(b"y" * 30))
    keyed = bytes(IP(src=CLIENT, dst=SERVER) / GRE(key_present=1, key=100) / Raw(b"y" * 30))

    seen = router.out(plain, keyed)

    assert [(ROUTER, SERVER)] * 2 == [(IP(each).src, IP(each).dst) for each in seen]
    assert [plain[20:], keyed[20:]] == [each[20:] for each in seen]


def test_fragments_of_a_call_arrive_and_leave(router: Router) -> None:
    """In order, which is how nearly all come; each piece is put where the first one goes."""
    for through, packet, ends in (
        (router.out, gre(CLIENT, SERVER, 100, size=1800, id=5), (ROUTER, SERVER, 100)),
        (router.into, gre(SERVER, ROUTER, 4711, size=1800, id=6), (SERVER, CLIENT, 7)),
    ):
        first, second = through(*in_pieces(packet, 1200))
        assert ends == fields(first)
        assert ends[:2] == (IP(second).src, IP(second).dst)
        assert packet[28:] == (first[20:] + second[20:])[8:]


def test_an_error_about_outbound_gre_is_heard_inside(router: Router) -> None:
    quoted = gre(ROUTER, SERVER, 100)[:28]
    error = bytes(IP(src=HOP, dst=ROUTER) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(quoted))

    (heard,) = router.into(error)

    assert (HOP, CLIENT) == (IP(heard).src, IP(heard).dst)
    assert fields(heard[28:] + bytes(20)) == (CLIENT, SERVER, 100)


@pytest.mark.parametrize("sender", [CLIENT, OTHER])
def test_an_error_about_inbound_gre_is_heard_outside(router: Router, sender: str) -> None:
    """From the host itself, or from one before it; nothing inside is shown."""
    quoted = gre(SERVER, CLIENT, 7)[:28]

    (heard,) = router.out(bytes(IP(src=sender, dst=SERVER) / ICMP(type=3, code=2) / Raw(quoted)))

    assert (ROUTER, SERVER) == (IP(heard).src, IP(heard).dst)
    assert fields(heard[28:] + bytes(20)) == (SERVER, ROUTER, 4711)


def test_the_routers_own_error_shows_the_server_what_it_sent(router: Router) -> None:
    """The path to the inside host is narrower than the server thinks."""
    command("ip", "link", "set", "lan", "mtu", "576")

    assert [] == router.into(gre(SERVER, ROUTER, 4711, size=900, flags="DF"))

    (heard,) = (each for each in router.sent_back if IP(each).proto == 1)
    assert (3, 4) == (IP(heard)[ICMP].type, IP(heard)[ICMP].code)
    assert (ROUTER, SERVER) == (IP(heard).src, IP(heard).dst)
    assert fields(heard[28:]) == (SERVER, ROUTER, 4711)


def test_the_router_tells_an_inside_host_of_its_own_packet(router: Router) -> None:
    """It has not been translated yet when it turns out to be too long, or too old."""
    router.lan.send(gre(CLIENT, SERVER, 100, ttl=1))
    (heard,) = router.into()

    assert (11, CLIENT) == (IP(heard)[ICMP].type, IP(heard).dst)
    assert fields(heard[28:]) == (CLIENT, SERVER, 100)


def test_two_inside_hosts_meet_at_the_external_address(router: Router) -> None:
    """A hairpin: destination and source both change, in two steps."""
    there = Leg(octets(CLIENT), octets(ROUTER), 50, octets(ROUTER), octets(OTHER), 60)
    router.path.install([LegOrder(there, 0)])

    router.lan.send(gre(CLIENT, ROUTER, 50))
    (seen,) = router.into()  # and no redirect, which would show the inside address

    assert (ROUTER, OTHER, 60) == fields(seen)
    router.lan.send(gre(CLIENT, ROUTER, 50, ttl=1))
    (heard,) = router.into()
    assert (11, CLIENT) == (IP(heard)[ICMP].type, IP(heard).dst)
    assert fields(heard[28:]) == (CLIENT, ROUTER, 50)


def test_a_call_between_hosts_that_nobody_hides_is_routed_and_counted(router: Router) -> None:
    plain = Leg(octets(OTHER), octets(SERVER), 9, octets(OTHER), octets(SERVER), 9)
    router.path.install([LegOrder(plain, 0)])
    packet = gre(OTHER, SERVER, 9)

    (seen,) = router.out(packet)

    assert (OTHER, SERVER, 9) == fields(seen)
    assert Tally(1, len(packet)) == router.path.tallies()[Match(*plain[:3])]


def clsact() -> list[str]:
    return [line for line in command("tc", "qdisc", "show").splitlines() if "clsact" in line]


def test_nothing_is_left_behind(router: Router) -> None:
    """Neither programs nor the queueing disciplines that they hang on."""
    assert 2 == len(clsact())

    router.path.close()

    assert [] == clsact()
    for device in ("lan", "wan"):
        assert "" == command("tc", "filter", "show", "dev", device, "ingress")


def test_what_others_hang_on_a_device_stays(router: Router) -> None:
    """A queueing discipline that was there before, and one that others use by now."""
    match = ("protocol", "ip", "pref", "9", "u32", "match", "u32", "0", "0")
    command("tc", "filter", "add", "dev", "wan", "ingress", *match)

    router.path.close()

    assert 1 == len(clsact())
    assert "u32" in command("tc", "filter", "show", "dev", "wan", "ingress")


def test_programs_that_others_have_taken_away_come_back(router: Router) -> None:
    """Within a minute: `renew` is what the daemon does that often."""
    command("tc", "qdisc", "del", "dev", "wan", "clsact")
    assert [] == router.out(gre(CLIENT, SERVER, 101)), "a program that is missing lets nothing out"

    for _ in router.path.renew(0.0):
        pass

    (seen,) = router.out(gre(CLIENT, SERVER, 100))
    assert (ROUTER, SERVER, 100) == fields(seen)


def test_a_device_that_comes_later_runs_the_programs_too(router: Router) -> None:
    """A dialled line, another network; the kernel tells, and nobody has to ask."""
    other = Side("lan2", "tun", "10.9.9.1")
    try:
        assert select.select([router.path], [], [], PATIENCE)[0], "the kernel tells"
        router.path.on_devices()
        leg = OUTWARD._replace(source=octets("10.9.9.9"))
        router.path.install([LegOrder(leg, 0)])
        other.send(gre("10.9.9.9", SERVER, 100))
        assert [(ROUTER, SERVER, 100)] == [fields(each) for each in router.out()]
    finally:
        other.close()


def test_the_next_run_takes_the_place_of_the_last_one(router: Router) -> None:
    """Also one that does not carry by programs: then they go."""
    successor = BpfPath(1000, BIT)
    try:
        successor.take_over([LegOrder(OUTWARD, 0)])
        assert [(ROUTER, SERVER, 100)] == [
            fields(each) for each in router.out(gre(CLIENT, SERVER, 100))
        ]
        assert 1 == successor.tallies()[Match(*OUTWARD[:3])].packets
        assert 2 == len(clsact())
    finally:
        successor.close()
    assert {"lan", "wan"} == set(bpf_path.detach_all())
    assert [] == clsact()


def firewall_drops() -> int:
    """Return how many packets the rule has dropped that stands before all others."""
    rule = command("iptables", "-v", "-x", "-n", "-L", "FORWARD", "1").split()
    return int(rule[0])


def test_what_is_easy_goes_past_the_stack(past_the_stack: Router) -> None:
    """Both ways, with one hop less, to the neighbour that routing says, and counted."""
    (out,) = past_the_stack.out(gre(CLIENT, SERVER, 100, ttl=9))
    (into,) = past_the_stack.into(gre(SERVER, ROUTER, 4711, ttl=2))

    assert ((ROUTER, SERVER, 100), 8) == (fields(out), IP(out).ttl)
    assert ((SERVER, CLIENT, 7), 1) == (fields(into), IP(into).ttl)
    assert {1} == {tally.packets for tally in past_the_stack.path.tallies().values()}
    assert 0 == firewall_drops()


def test_what_is_not_easy_goes_through_the_firewall(past_the_stack: Router) -> None:
    """Which would let it pass if it were the administrator's will."""
    hard = [
        gre(CLIENT, SERVER, 100, options=b"\x01\x01\x01\x00"),
        *in_pieces(gre(CLIENT, SERVER, 100, size=1800, id=5), 1200),  # one again, when it is judged
    ]

    assert [] == past_the_stack.out(*hard)
    assert 2 == firewall_drops()
    command("iptables", "-D", "FORWARD", "1")
    assert 3 == len(past_the_stack.out(*hard))


def test_a_neighbour_that_is_not_known_is_the_stacks_to_find(past_the_stack: Router) -> None:
    command("ip", "neigh", "del", HOP, "dev", "wan")

    past_the_stack.lan.send(gre(CLIENT, SERVER, 100))

    assert 1 == firewall_drops()


def test_a_packet_that_is_too_long_or_too_old_is_told_to_its_sender(past_the_stack: Router) -> None:
    command("ip", "link", "set", "wan", "mtu", "576")
    past_the_stack.lan.send(gre(CLIENT, SERVER, 100, size=900, flags="DF"))
    past_the_stack.lan.send(gre(CLIENT, SERVER, 100, ttl=1))

    errors = [IP(each) for each in past_the_stack.into()]

    assert [(3, 4, CLIENT), (11, 0, CLIENT)] == [
        (each[ICMP].type, each[ICMP].code, each.dst) for each in errors
    ]


def test_gre_of_no_call_is_never_redirected(past_the_stack: Router) -> None:
    assert [] == past_the_stack.out(gre(CLIENT, SERVER, 101), gre(OTHER, SERVER, 100))
    assert [] == past_the_stack.into(gre(SERVER, ROUTER, 4712), gre(SERVER, CLIENT, 7))
    assert 3 == firewall_drops()


def test_a_frame_for_another_host_is_not_redirected(past_the_stack: Router) -> None:
    """A device that hears everything, as one does that somebody looks into with tcpdump."""
    command("ip", "link", "set", "lan", "promisc", "on")
    past_the_stack.lan._mac = bytes.fromhex("020000000099")
    past_the_stack.lan.send(gre(CLIENT, SERVER, 100))
    past_the_stack.lan._mac = past_the_stack.lan.mac

    assert [] == past_the_stack.out()


class Uplink(Side):
    """A third side, where packets leave that a rule of routing is about."""

    def __init__(self, router: Router, *rule: str) -> None:
        super().__init__("wan2", "tap", "203.0.113.1")
        self._lan, hop = router.lan, "203.0.113.2"
        command("ip", "neigh", "add", hop, "lladdr", MAC.hex(":"), "dev", "wan2")
        command("ip", "route", "add", "default", "via", hop, "table", "100")
        command("ip", "rule", "add", *rule, "lookup", "100")
        command("iptables", "-A", "FORWARD", "-o", "wan2", "-j", "ACCEPT")
        hear(router)

    def seen(self, *packets: bytes) -> list[bytes]:
        """Send from the inside; return what leaves here."""
        last = bytes(IP(src=CLIENT, dst=SERVER) / UDP(dport=9) / Raw(b"no more"))
        self._lan.send(*packets, last)
        return self.received(b"no more")


def hear(router: Router) -> None:
    """Do what the daemon does when the kernel tells of a change."""
    assert select.select([router.path], [], [], PATIENCE)[0], "the kernel tells"
    router.path.on_devices()


def test_a_rule_about_the_inside_host_holds_past_the_stack(past_the_stack: Router) -> None:
    """Routing by source sees what the host sent, and what leaves has the call's own source."""
    with contextlib.closing(Uplink(past_the_stack, "from", CLIENT)) as uplink:
        (there,) = uplink.seen(gre(CLIENT, SERVER, 100, ttl=9))

    assert ((ROUTER, SERVER, 100), 8) == (fields(there), IP(there).ttl)
    assert 0 == firewall_drops()
    assert not past_the_stack.path.by_stack


def test_where_marks_choose_the_route_calls_take_the_stack(past_the_stack: Router) -> None:
    """A rule in PREROUTING sets the mark, which no program knows that runs ahead of it."""
    for what in ("gre",), ("udp", "--dport", "9"):
        mark = ("-s", CLIENT, "-p", *what, "-j", "MARK", "--set-xmark", "0x7/0xff")
        command("iptables", "-t", "mangle", "-A", "PREROUTING", *mark)
    with contextlib.closing(Uplink(past_the_stack, "fwmark", "0x7/0xff")) as uplink:
        assert "fwmark" in past_the_stack.path.by_stack
        assert [] == uplink.seen(gre(CLIENT, SERVER, 100))
        assert [] == past_the_stack.into(gre(SERVER, ROUTER, 4711))
        assert 2 == firewall_drops(), "the firewall has seen both"
        command("iptables", "-D", "FORWARD", "1")
        (there,) = uplink.seen(gre(CLIENT, SERVER, 100))
        assert (ROUTER, SERVER, 100) == fields(there)

        command("iptables", "-I", "FORWARD", "-p", "gre", "-j", "DROP")
        command("ip", "rule", "del", "fwmark", "0x7/0xff")
        hear(past_the_stack)
        assert not past_the_stack.path.by_stack
        (back,) = past_the_stack.out(gre(CLIENT, SERVER, 100))
        assert (ROUTER, SERVER, 100) == fields(back)
        assert 0 == firewall_drops()


def test_a_run_that_begins_where_marks_choose_the_route_takes_the_stack(
    past_the_stack: Router,
) -> None:
    command("ip", "rule", "add", "fwmark", "0x7", "lookup", "main")
    with contextlib.closing(BpfPath(1000, BIT, forwarding="redirect")) as successor:
        successor.take_over([LegOrder(OUTWARD, 0)])

        assert [] == past_the_stack.out(gre(CLIENT, SERVER, 100))
        assert 1 == firewall_drops()


@pytest.fixture
def before_the_stack() -> Iterator[Router]:
    """Give a router whose devices run the XDP program."""
    with router_in_a_namespace("tap", "xdp") as made:
        assert ["lan", "wan"] == made.path.early_at
        yield made


@pytest.mark.parametrize("bare", [["wan"], ["lan", "wan"]])
def test_the_next_run_knows_the_early_program_though_filters_were_deleted(
    before_the_stack: Router, monkeypatch: pytest.MonkeyPatch, bare: list[str]
) -> None:
    """By another device's filters; where there are none, by its name, if the kernel tells."""
    if bare == ["wan"]:
        monkeypatch.setattr("pptp_nat.linux.traffic_control.program_name", lambda _number: "")
    for device in bare:
        command("tc", "qdisc", "del", "dev", device, "clsact")
    with contextlib.closing(BpfPath(1000, BIT, stays=False, forwarding="xdp")) as successor:
        successor.take_over([LegOrder(INWARD, 0), LegOrder(OUTWARD, 0)])
        assert ["lan", "wan"] == successor.early_at
        (out,) = before_the_stack.out(gre(CLIENT, SERVER, 100))
        assert (ROUTER, SERVER, 100) == fields(out)
        assert 1 == successor.tallies()[Match(*OUTWARD[:3])].packets
    assert "xdp" not in command("ip", "link", "show")


def test_a_program_of_somebody_else_stays_where_it_is(before_the_stack: Router) -> None:
    """Under any name; and nothing of ours says that it is ours."""
    before_the_stack.path.close()
    library = ctypes.CDLL(LIBRARY, use_errno=True)
    lets_pass = struct.pack("<QQ", 0x2000000B7, 0x95)  # r0 = XDP_PASS; exit
    theirs = library.bpf_prog_load(6, b"theirs", b"GPL", lets_pass, 2, None)  # of type XDP
    assert theirs >= 0
    with contextlib.closing(Asking()) as asking:
        xdp.attach(asking, socket.if_nametoindex("wan"), theirs, replacing=False)
    os.close(theirs)

    with contextlib.closing(BpfPath(1000, BIT, stays=False, forwarding="xdp")) as path:
        path.take_over([LegOrder(OUTWARD, 0)])
        assert ["lan"] == path.early_at
        assert "another XDP program runs there" in path.late["wan"]
    assert "xdp" in command("ip", "link", "show", "wan")
    assert "xdp" not in command("ip", "link", "show", "lan")
