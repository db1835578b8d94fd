"""What becomes of GRE in both data paths, with iptables."""

# ruff: noqa: FBT001 - pytest gives a switch by position
from __future__ import annotations

import socket

import netfilterqueue
import pytest

from pptp_nat.linux import ruleset
from pptp_nat.linux.ruleset import Backend, Features, RuleSettings

from . import rules_lab
from .rules_lab import (
    ALICE,
    BOB,
    ELSEWHERE,
    EXTERNAL,
    PLAIN,
    PRE_ROUTING,
    SERVER,
    Gre,
    Listener,
    RulesLab,
    again,
    command,
    enhanced,
    flows,
    install_call,
    iptables,
    marker,
    octets,
    rewritten,
)

pytestmark = pytest.mark.kernel
CONNTRACK = RuleSettings()
QUEUE = RuleSettings(datapath="queue")

network = pytest.fixture(scope="module")(rules_lab.network)
lab = pytest.fixture(rules_lab.router)
ends = pytest.fixture(rules_lab.ends)
both = pytest.mark.parametrize("lab", rules_lab.VARIANTS, indirect=True)


def saved() -> list[str]:
    """Return the rules in place and the chains that somebody made; tables stay once used."""
    lines = command("iptables-save").splitlines()
    return [line for line in lines if line.startswith("-A") or " - [" in line]


@both
@pytest.mark.parametrize("bpf", [True, False], ids=["bpf", "u32"])
def test_gre_of_calls_and_plain_gre_pass_and_strays_are_dropped_and_counted(
    lab: RulesLab, bpf: bool
) -> None:
    """A stray packet's entry would stand in the way of the call that comes a moment later."""
    if not bpf and not ruleset.probe_features().u32:
        pytest.skip("this kernel has no xt_u32")
    ruleset.apply(CONNTRACK, Backend.IPTABLES, Features(bpf=bpf))
    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)
    assert 0 == ruleset.stray_drops(Backend.IPTABLES)
    alice, server = lab.gre(lab.alice), lab.gre(lab.server)

    alice.send(SERVER, enhanced(5))
    alice.send(SERVER, PLAIN)
    assert (EXTERNAL, PLAIN) == server.receive()
    install_call(900, 77)
    server.send(EXTERNAL, enhanced(900))
    assert (SERVER, enhanced(77)) == alice.receive()

    assert 1 == ruleset.stray_drops(Backend.IPTABLES)
    alice.close()
    server.close()


def test_without_bpf_and_u32_strays_are_left_to_the_firewall(lab: RulesLab) -> None:
    """Dropping every new GRE flow would break tunnels that are none of our business."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES, Features(bpf=False, u32=False))

    assert ruleset.stray_drops(Backend.IPTABLES) is None
    assert not [line for line in saved() if "STRAY" in line]


STRICT = ("-t mangle -A POSTROUTING -p gre -m mark --mark 0x40000000/0x40000000 -j DROP",
          "-D FORWARD -p gre -j ACCEPT")  # fmt: skip


class Translator:
    """Does with GRE what the daemon does: destination at PREROUTING, source at POSTROUTING."""

    def __init__(
        self,
        inbound: dict[tuple[str, str, int], tuple[str, int]],
        outbound: dict[tuple[str, str, int], str],
    ) -> None:
        self.inbound, self.outbound = inbound, outbound
        self.marks: list[int] = []

    def __call__(self, packet: netfilterqueue.Packet) -> None:
        octets_now = packet.get_payload()
        self.marks.append(packet.get_mark())
        source, destination = (socket.inet_ntoa(octets_now[at : at + 4]) for at in (12, 16))
        header = 4 * (octets_now[0] & 15)
        key = int.from_bytes(octets_now[header + 6 : header + 8], "big")
        if packet.hook == PRE_ROUTING:
            self._arriving(packet, octets_now, (source, destination, key))
        elif (source, destination, key) in self.outbound:
            external = self.outbound[source, destination, key]
            again(packet, rewritten(octets_now, source=external))
        else:
            packet.drop()

    def _arriving(
        self, packet: netfilterqueue.Packet, octets_now: bytes, match: tuple[str, str, int]
    ) -> None:
        if match not in self.inbound:
            packet.accept()
            return
        inside_host, key = self.inbound[match]
        changed = rewritten(octets_now, destination=inside_host, key=key)
        if (match[0], inside_host, key) in self.outbound:
            packet.set_payload(changed)  # a hairpin: the source is still to be written
            packet.repeat()
        else:
            again(packet, changed)


CALLS = Translator(
    {(SERVER, EXTERNAL, 900): (ALICE, 77), (SERVER, ELSEWHERE, 901): (BOB, 78),
     (ALICE, EXTERNAL, 910): (BOB, 70), (BOB, EXTERNAL, 911): (ALICE, 71)},
    {(ALICE, SERVER, 5): EXTERNAL, (BOB, SERVER, 6): ELSEWHERE,
     (ALICE, BOB, 70): EXTERNAL, (BOB, ALICE, 71): EXTERNAL},
)  # fmt: skip


@both
@pytest.mark.parametrize("bpf", [True, False], ids=["bpf", "u32"])
def test_gre_is_translated_in_both_directions_past_a_firewall_that_drops(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre], bpf: bool
) -> None:
    """GRE that conntrack ignores is not ESTABLISHED: only our rule can let it pass.

    The administrator's last rule drops whatever still carries the repeat mark.
    """
    ruleset.apply(QUEUE, Backend.IPTABLES, Features(bpf=bpf))
    assert [] == ruleset.check(QUEUE, Backend.IPTABLES)
    for rule in STRICT:
        iptables(rule)
    alice, _, server = ends

    with Listener(lab, 1724, CALLS) as queue:
        for _ in range(3):
            alice.send(SERVER, enhanced(5))
            assert (EXTERNAL, enhanced(5)) == server.receive()
            server.send(EXTERNAL, enhanced(900))
            assert (SERVER, enhanced(77)) == alice.receive()
        assert 6 == len(queue.seen)

    assert not [line for line in flows() if " gre " in line]


def test_fragments_are_whole_where_the_queue_sees_them(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre]
) -> None:
    """Only the first fragment has the key; conntrack puts them together before raw PREROUTING."""
    ruleset.apply(QUEUE, Backend.IPTABLES)
    alice, _, server = ends
    payload = bytes(range(256)) * 8

    with Listener(lab, 1724, CALLS) as queue:
        alice.send(SERVER, enhanced(5, payload))
        assert (EXTERNAL, enhanced(5, payload)) == server.receive()
        server.send(EXTERNAL, enhanced(900, payload))
        assert (SERVER, enhanced(77, payload)) == alice.receive()

    assert 2 == len(queue.seen)


def test_gre_of_no_call_never_leaves(lab: RulesLab, ends: tuple[Gre, Gre, Gre]) -> None:
    """The FORWARD rule accepts all of it: what keeps strays in is the queue in POSTROUTING."""
    ruleset.apply(QUEUE, Backend.IPTABLES)
    alice, _, server = ends

    with Listener(lab, 1724, CALLS) as queue:
        alice.send(SERVER, enhanced(1234))
        alice.send(SERVER, enhanced(5))
        assert (EXTERNAL, enhanced(5)) == server.receive()
    assert 2 == len(queue.seen)


def test_plain_gre_is_tracked_and_translated_by_the_kernel_as_ever(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre]
) -> None:
    """Other tunnels are none of our business."""
    ruleset.apply(QUEUE, Backend.IPTABLES)
    alice, _, server = ends

    with Listener(lab, 1724, CALLS) as queue:
        alice.send(SERVER, PLAIN)
        assert (EXTERNAL, PLAIN) == server.receive()

    assert [] == queue.seen


def test_without_a_daemon_gre_stops(lab: RulesLab, ends: tuple[Gre, Gre, Gre]) -> None:
    """Untranslated packets would reach the wrong client, so none may pass."""
    ruleset.apply(QUEUE, Backend.IPTABLES)
    alice, _, server = ends

    alice.send(SERVER, enhanced(5))
    server.send(EXTERNAL, enhanced(900))
    marker(lab)
    with Listener(lab, 1724, CALLS):
        alice.send(SERVER, enhanced(5, b"later"))
        assert (EXTERNAL, enhanced(5, b"later")) == server.receive()
        server.send(EXTERNAL, enhanced(900, b"later"))
        assert (SERVER, enhanced(77, b"later")) == alice.receive()


def test_the_routers_own_tunnel_stays_tracked(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre]
) -> None:
    """The router may be a PPTP client itself; its firewall knows replies by ESTABLISHED.

    Outbound it passes no queue.  Inbound the daemon knows no such call of an
    inside host and accepts without the mark, so conntrack sees the packet.
    """
    ruleset.apply(QUEUE, Backend.IPTABLES)
    iptables("-A INPUT -p gre -m conntrack ! --ctstate ESTABLISHED -j DROP")
    _, _, server = ends
    router = lab.gre(lab.router)

    with Listener(lab, 1724, CALLS) as queue:
        router.send(SERVER, PLAIN)  # makes an entry whose reply has no key
        assert (EXTERNAL, PLAIN) == server.receive()
        command(
            "conntrack", "-I", "-p", "gre", "-s", EXTERNAL, "-d", SERVER,
            "--srckey", "3000", "--dstkey", "0", "-r", SERVER, "-q", EXTERNAL,
            "--reply-key-src", "0", "--reply-key-dst", "3000", "-t", "100", "-u", "SEEN_REPLY",
        )  # fmt: skip
        server.send(EXTERNAL, enhanced(3000))
        assert (SERVER, enhanced(3000)) == router.receive()

    assert 1 == len(queue.seen)
    router.close()


def test_a_hairpin_is_judged_on_the_way_in_and_on_the_way_out(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre]
) -> None:
    """A packet whose source is the router's own address would be a martian before routing.

    So its destination is written first and it is repeated without the mark: it is
    no longer for an address of ours and goes on to be queued on the way out.
    """
    ruleset.apply(QUEUE, Backend.IPTABLES)
    alice, bob, _ = ends

    with Listener(lab, 1724, CALLS) as queue:
        alice.send(EXTERNAL, enhanced(910))
        assert (EXTERNAL, enhanced(70)) == bob.receive()
        bob.send(EXTERNAL, enhanced(911))
        assert (EXTERNAL, enhanced(71)) == alice.receive()

    assert 4 == len(queue.seen)


def test_a_hairpin_written_whole_before_routing_is_a_martian(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre]
) -> None:
    """What the design of the hairpin leans on; where this fails, one queue would do."""
    ruleset.apply(QUEUE, Backend.IPTABLES)
    alice, bob, server = ends

    def judge(packet: netfilterqueue.Packet) -> None:
        whole = packet.get_payload()
        if packet.hook == PRE_ROUTING and whole[12:16] == octets(ALICE):
            again(packet, rewritten(whole, source=EXTERNAL, destination=BOB, key=70))
        else:
            CALLS(packet)

    translator = Translator({**CALLS.inbound, (SERVER, EXTERNAL, 902): (BOB, 72)}, CALLS.outbound)
    with Listener(lab, 1724, judge):
        alice.send(EXTERNAL, enhanced(910))
        marker(lab)
    with Listener(lab, 1724, translator):
        server.send(EXTERNAL, enhanced(902))
        assert (SERVER, enhanced(72)) == bob.receive()


def test_external_addresses_that_are_not_the_routers_own_are_queued_when_listed(
    lab: RulesLab, ends: tuple[Gre, Gre, Gre]
) -> None:
    """A provider may route addresses to a router that has none of them on an interface."""
    settings = RuleSettings(datapath="queue", external_addresses=(octets(ELSEWHERE),))
    ruleset.apply(settings, Backend.IPTABLES)
    assert [] == ruleset.check(settings, Backend.IPTABLES)
    command("ip", "-n", lab.server, "route", "replace", ELSEWHERE, "via", EXTERNAL)
    _, bob, server = ends

    with Listener(lab, 1724, CALLS):
        server.send(ELSEWHERE, enhanced(901))
        assert (SERVER, enhanced(78)) == bob.receive()
        bob.send(SERVER, enhanced(6))
        assert (ELSEWHERE, enhanced(6)) == server.receive()
