"""The rules in nftables' words, with the verdict swapped where the kernel cannot queue."""

from __future__ import annotations

import socket

import pytest

from pptp_nat.linux import ruleset, ruleset_nftables
from pptp_nat.linux.ruleset import Backend, RuleSettings

from . import rules_lab
from .rules_lab import (
    ALICE,
    ELSEWHERE,
    EXTERNAL,
    MARK,
    PLAIN,
    SERVER,
    Gre,
    RulesLab,
    command,
    enhanced,
    flows,
    install_call,
    iptables,
    marker,
    octets,
)
from .rules_segments import OPTIONS_IN_IP, SEGMENTS, source_ports

pytestmark = pytest.mark.kernel
CONNTRACK = RuleSettings()
QUEUE = RuleSettings(datapath="queue")
BPF = RuleSettings(datapath="bpf")

network = pytest.fixture(scope="module")(rules_lab.network)
lab = pytest.fixture(rules_lab.router)
ends = pytest.fixture(rules_lab.ends)
swapped = pytest.fixture(rules_lab.swapped)


STRICT = ("-t mangle -A POSTROUTING -p gre -m mark --mark 0x40000000/0x40000000 -j DROP",
          "-D FORWARD -p gre -j ACCEPT")  # fmt: skip




@pytest.mark.parametrize("settings", [CONNTRACK, BPF, QUEUE], ids=lambda each: each.datapath)
def test_nftables_takes_the_rules_as_they_are(lab: RulesLab, settings: RuleSettings) -> None:
    """The one test of the queue statements themselves."""
    if complaint := ruleset_nftables.probe_queue():
        pytest.skip(f"nftables cannot queue packets here: {complaint}")
    ruleset.apply(settings, Backend.NFTABLES)

    assert [] == ruleset.check(settings, Backend.NFTABLES)


NFT_SETTINGS = [
    CONNTRACK,
    BPF,
    QUEUE,
    RuleSettings(ports=(1799, 1723)),
    RuleSettings(datapath="queue", external_addresses=(octets(ELSEWHERE), octets("10.9.9.9"))),
]


@pytest.mark.parametrize("settings", NFT_SETTINGS)
def test_nftables_rules_come_and_go(lab: RulesLab, swapped: None, settings: RuleSettings) -> None:
    """All but the queue statements, in the kernel."""
    ruleset.apply(NFT_SETTINGS[0], Backend.NFTABLES)
    ruleset.apply(settings, Backend.NFTABLES)
    listed = command("nft", "-s", "list", "ruleset")
    ruleset.apply(settings, Backend.NFTABLES)

    assert listed == command("nft", "-s", "list", "ruleset")
    assert [] == ruleset.check(settings, Backend.NFTABLES)
    ruleset.remove()
    assert "pptp_nat" not in command("nft", "-s", "list", "ruleset")
    assert "is not there" in ruleset.check(settings, Backend.NFTABLES)[0]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("flush chain ip pptp_nat control", "chain control: does not hold"),
        ("delete chain ip pptp_nat input", "chain input: is not there"),
        ("add rule ip pptp_nat forward accept", "chain forward: does not hold"),
        ("add chain ip pptp_nat gre_in", "chain gre_in is left from other settings"),
    ],
)
def test_whatever_disturbs_the_table_is_named(
    lab: RulesLab, swapped: None, spoil: str, complaint: str
) -> None:
    """As for iptables."""
    ruleset.apply(CONNTRACK, Backend.NFTABLES)

    command("nft", spoil)

    problems = ruleset.check(CONNTRACK, Backend.NFTABLES)
    assert 1 == len(problems)
    assert complaint in problems[0]


def test_other_settings_are_not_mistaken_for_ours(lab: RulesLab, swapped: None) -> None:
    """`rules check` must notice that the file was changed and the rules were not."""
    for loaded in NFT_SETTINGS:
        ruleset.apply(loaded, Backend.NFTABLES)
        for asked in NFT_SETTINGS:
            problems = ruleset.check(asked, Backend.NFTABLES)
            assert (asked == loaded) == (not problems)


def test_nftables_queues_only_what_the_daemon_reads(lab: RulesLab, swapped: None) -> None:
    """As for iptables, but for packets with IP options, which are queued: rare, and right."""
    ruleset.apply(CONNTRACK, Backend.NFTABLES)
    cases = [*SEGMENTS, (OPTIONS_IN_IP, True)]
    passed = [p for p, queued in cases if not queued]
    with (
        lab.socket(lab.alice, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
        lab.socket(lab.server, socket.SOCK_RAW, socket.IPPROTO_TCP) as there,
    ):
        for packet, _ in cases:
            raw.sendto(packet, (SERVER, 0))
        arrived = [there.recv(200) for _ in passed]
        marker(lab)
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(200)

    assert source_ports(passed) == source_ports(arrived)


def test_nftables_drops_and_counts_strays_only(lab: RulesLab, swapped: None) -> None:
    """As for iptables."""
    ruleset.apply(CONNTRACK, Backend.NFTABLES)
    assert 0 == ruleset.stray_drops(Backend.NFTABLES)
    alice, server = lab.gre(lab.alice), lab.gre(lab.server)

    alice.send(SERVER, enhanced(5))
    alice.send(SERVER, PLAIN)
    assert (EXTERNAL, PLAIN) == server.receive()
    install_call(900, 77)
    server.send(EXTERNAL, enhanced(900))
    assert (SERVER, enhanced(77)) == alice.receive()

    assert 1 == ruleset.stray_drops(Backend.NFTABLES)
    alice.close()
    server.close()


def test_nftables_queue_path_catches_gre_where_the_daemon_expects_it(
    lab: RulesLab, monkeypatch: pytest.MonkeyPatch, ends: tuple[Gre, Gre, Gre]
) -> None:
    """With the verdict swapped for a mark: which packets come by, and that they are not tracked."""
    monkeypatch.setattr(ruleset_nftables, "queue_verdict", lambda _: ("counter accept", "accept"))
    ruleset.apply(QUEUE, Backend.NFTABLES)
    firewall = f"insert rule ip filter FORWARD {ruleset_nftables.FIREWALL_LINE}"
    iptables(STRICT[1])
    alice, _, server = ends

    alice.send(SERVER, enhanced(5))
    alice.send(SERVER, PLAIN)
    marker(lab)
    command("nft", firewall)
    alice.send(SERVER, enhanced(5, b"with the firewall's line"))

    source, packet = server.receive()
    assert (ALICE, enhanced(5, b"with the firewall's line")) == (source, packet)
    assert not [line for line in flows() if " gre " in line]


LAST_RULE = """
table ip administrator {
    chain last {
        type filter hook postrouting priority srcnat + 10
        ip protocol gre meta mark != 5 drop
    }
}
"""


def test_the_repeat_mark_keeps_judged_packets_from_the_queue_in_nftables(
    lab: RulesLab, swapped: None, ends: tuple[Gre, Gre, Gre]
) -> None:
    """What the daemon has judged carries the mark: it passes, and leaves without it."""
    ruleset.apply(QUEUE, Backend.NFTABLES)
    iptables("-I FORWARD -p gre -j ACCEPT")
    iptables(f"-t raw -A PREROUTING -i lan1 -j MARK --set-mark {MARK | 5}")
    command("nft", "-f", "-", text=LAST_RULE)
    alice, bob, server = ends

    bob.send(SERVER, enhanced(6))
    alice.send(SERVER, enhanced(5))

    assert (ALICE, enhanced(5)) == server.receive()
