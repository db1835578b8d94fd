"""The doctor on routers that were broken on purpose, one thing at a time."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pptp_nat import api
from pptp_nat.doctor.checks import examine
from pptp_nat.doctor.model import Outcome
from pptp_nat.doctor.router import Router
from pptp_nat.errors import UsageError
from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.peers import Loop
from pptp_nat.lab.real_peers import absent, start_server
from pptp_nat.lab.router import daemon, kernel_helper
from pptp_nat.linux.ruleset import RuleSettings
from tests.paths import every_path

from .conftest import By, World

pytestmark = pytest.mark.peers
PROGRAM = [sys.executable, "-m", "pptp_nat", "doctor", "-o", "json"]
SERVER = "198.18.7.2"
Found = dict[str, tuple[str, str]]


def examined(
    world: World, *argv: str, mounts: dict[str, Path] | None = None
) -> tuple[int, Found]:
    """Return the exit code and, of each check that did not pass, outcome and words."""
    where = world.daemon.socket if world.daemon else world.lab.directory / "none.sock"
    command = [*PROGRAM, "--socket", str(where), "--config", "/dev/null", *argv]
    process = world.lab.popen(
        world.lab.router, command, mounts=mounts, stdout=subprocess.PIPE,
        log=world.lab.directory / "doctor.log",
    )  # fmt: skip
    assert process.stdout is not None
    assert world.loop.run_until(lambda: process.poll() is not None, 60, every=0.05)
    said = json.loads(process.stdout.read())
    found: Found = {}
    for each in said["checks"]:
        if each["outcome"] != "pass":
            assert each["mend"], "what is wrong has a mend"
            found.setdefault(each["check"], (each["outcome"], each["text"]))
    order = ["pass", "warn", "fail"]
    worst = max((outcome for outcome, _ in found.values()), key=order.index, default="pass")
    assert worst == said["outcome"]
    assert process.returncode == {"pass": 0, "warn": 3, "fail": 1}[worst]
    return process.returncode, found


def looked(world: World) -> Found:
    """Return what `examined` finds, in this very process: a second less each time."""
    status, complaint = None, "no daemon"
    if world.daemon is not None:
        status = api.ask(world.daemon.socket, {"do": "status"})
    with world.lab.entered(world.lab.router):
        judged = list(examine(Router(RuleSettings(), status=status, complaint=complaint)))
    found: Found = {}
    for check, outcome, text, mend in judged:
        if outcome is not Outcome.PASS:
            assert mend, "what is wrong has a mend"
            found.setdefault(check, (outcome.value, text))
    return found


def outcomes(found: Found) -> dict[str, str]:
    return {check: outcome for check, (outcome, _) in found.items()}


class Broken:
    """A healthy router; each test breaks it, and `mended` puts it right again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lab = world.lab
        self._rules = self.run("iptables-save")
        self._switches: dict[str, str] = {}

    def run(self, words: str, *, check: bool = True, text: str | None = None) -> str:
        return self.lab.run(self.lab.router, shlex.split(words), check=check, text=text).stdout

    def rules(self, words: str) -> None:
        self.run(f"iptables -w {words}")

    def switch(self, name: str, value: str) -> None:
        self._switches.setdefault(name, self.run(f"sysctl -n {name}").strip())
        self.lab.sysctl(self.lab.router, name, value)

    def default_route(self) -> None:
        """Say which side is the world."""
        self.run(f"ip route add default via {SERVER}")

    def mend(self) -> None:
        self.run("nft delete table inet fw", check=False)
        for table in ("raw", "mangle"):  # what is restored says nothing of them
            self.rules(f"-t {table} -F")
        self.run("iptables-restore -w", text=self._rules)
        for name, value in self._switches.items():
            self.lab.sysctl(self.lab.router, name, value)
        self._switches.clear()
        self.run("ip route del default", check=False)
        self.run(f"ip route del {SERVER}/32 dev lan", check=False)
        self.run("conntrack -F", check=False)


@pytest.fixture(scope="module")
def healthy() -> Iterator[Broken]:
    """Build a router that the doctor finds nothing wrong with, and see that it does not."""
    if why := missing(["iptables", "iptables-restore", "unshare", "conntrack", "nft"]):
        pytest.skip(why)
    with Lab(inside=1) as lab, contextlib.closing(Loop()) as loop, daemon(lab) as running:
        made = Broken(World(lab, loop, running))
        assert (0, {}) == examined(made.world)
        yield made


@pytest.fixture
def router(healthy: Broken) -> Iterator[Broken]:
    yield healthy
    healthy.mend()


def test_mending_mends(router: Broken) -> None:
    """Else every test would find what the one before it has broken."""
    router.rules("-P FORWARD DROP")
    router.switch("net.ipv4.ip_forward", "0")
    assert {"forwarding", "firewall_gre", "firewall_control"} == set(looked(router.world))
    router.mend()
    assert {} == looked(router.world)


@every_path
def test_a_healthy_router_with_a_firewall_passes_everything(
    world: Callable[..., World], by: By
) -> None:
    """FORWARD drops all that is not known; a default route says which side is the world."""
    made = Broken(world(by, inside=1, firewall="established"))
    made.default_route()
    assert (0, {}) == examined(made.world)


def test_no_forwarding(router: Broken) -> None:
    router.switch("net.ipv4.ip_forward", "0")
    assert {"forwarding": "fail"} == outcomes(looked(router.world))


def test_no_nat(router: Broken) -> None:
    router.rules("-t nat -F POSTROUTING")
    assert {"nat": "fail"} == outcomes(looked(router.world))


def test_rules_that_are_missing(router: Broken) -> None:
    """All of them, and one that somebody has deleted."""
    router.rules("-D FORWARD 1")
    found = looked(router.world)
    assert {"rules": "fail"} == outcomes(found)
    assert "misses -p tcp" in found["rules"][1]
    router.run(f"{sys.executable} -m pptp_nat rules remove --config /dev/null")
    found = looked(router.world)
    assert {"rules": "fail"} == outcomes(found)
    assert found["rules"][1].startswith("none of ours are in place")


def test_rules_in_the_wrong_place(router: Broken) -> None:
    """Somebody's accept stands first: messages pass untranslated."""
    router.rules("-I FORWARD 1 -m conntrack --ctstate ESTABLISHED -j ACCEPT")
    found = looked(router.world)
    assert {"rules": "fail"} == outcomes(found)
    assert "our rules must come first" in found["rules"][1]


def test_a_daemon_that_has_died(world: Callable[..., World]) -> None:
    """Its rules are there, and nobody listens to the queue; then somebody else does."""
    made = world("conntrack", inside=1)
    assert made.daemon is not None
    made.daemon.kill()
    _, found = examined(made)
    assert {"daemon": "fail", "queue": "fail"} == outcomes(found)
    assert "nobody listens to queue 1723" in found["queue"][1]

    other = made.lab.popen(
        made.lab.router, [sys.executable, "-c", THIEF],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None
    assert b"bound\n" == other.stdout.readline()
    _, found = examined(made)
    assert {"daemon": "fail", "queue": "fail"} == outcomes(found)
    assert "queue 1723 is bound already" in found["queue"][1]


THIEF = """
import netfilterqueue, sys
queue = netfilterqueue.NetfilterQueue()
queue.bind(1723, lambda packet: packet.drop())
print("bound", flush=True)
sys.stdin.read()
"""


def test_the_kernels_helper_beside_us(router: Broken) -> None:
    try:
        kernel_helper(router.lab)
    except UsageError as error:
        pytest.skip(f"this kernel has no pptp helper: {error}")
    found = looked(router.world)
    assert {"kernel_helper": "fail"} == outcomes(found)
    assert "raw PREROUTING" in found["kernel_helper"][1]


def test_the_kernels_helper_instead_of_us(world: Callable[..., World]) -> None:
    """It works, so nothing fails; what it cannot do is a warning."""
    try:
        made = world("kernel helper", inside=1)
    except UsageError as error:
        pytest.skip(f"this kernel has no pptp helper: {error}")
    made.lab.sysctl(made.lab.router, "net.netfilter.nf_conntrack_acct", "1")
    server, client = made.station(made.lab.outside[0]), made.station(made.lab.inside[0])
    server.listen()
    made.dial(client, SERVER)

    code, found = examined(made)

    assert 3 == code
    assert {"daemon", "rules", "kernel_helper", "gre_timeouts"} == set(found)


def test_a_way_back_that_leads_elsewhere(router: Broken) -> None:
    """rp_filter is strict, and the server is routed to another interface than it sends on."""
    router.switch("net.ipv4.conf.wan.rp_filter", "1")
    assert {} == looked(router.world)
    with router.lab.open_socket(router.lab.outside[0], socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("198.18.7.1", 9))  # afterwards not even ARP is answered
        assert router.world.loop.run_until(
            lambda: "lladdr" in router.lab.run(
                router.lab.outside[0], ["ip", "neighbour", "show", "198.18.7.1"]).stdout,
            10, every=0.05,
        )  # fmt: skip
        router.run(f"ip route add {SERVER}/32 dev lan")
        for _ in range(100):
            sender.sendto(b"hello", ("198.18.7.1", 9))

    found = looked(router.world)

    assert {"reverse_path": "warn"} == outcomes(found)
    assert "strict on wan and has dropped" in found["reverse_path"][1]


@pytest.mark.parametrize(
    ("rules", "expected", "words"),
    [
        (["-A FORWARD -p gre -j DROP"], {"firewall_gre": "fail"}, "-p gre -j DROP drops GRE"),
        (["-A FORWARD -i wan -p 47 -j REJECT"], {"firewall_gre": "fail"}, "GRE from the world"),
        (["-A FORWARD -p gre -s 10.0.0.0/8 -j DROP"], {"firewall_gre": "warn"}, "may drop GRE"),
        (["-t mangle -A PREROUTING -p gre -j DROP"], {"firewall_gre": "fail"}, "mangle PREROUTING"),
        (["-N evil", "-A evil -j DROP", "-A FORWARD -p gre -g evil"], {"firewall_gre": "fail"},
         "evil: -j DROP drops GRE"),
        (["-P FORWARD DROP", "-A FORWARD -i lan -j ACCEPT"],
         {"firewall_gre": "fail", "firewall_control": "fail"},
         "policy drop drops GRE from the world"),
        (["-A FORWARD -p tcp --dport 1723 -j REJECT --reject-with tcp-reset"],
         {"firewall_control": "fail"}, "drops a control connection to the world"),
        (["-A FORWARD -p gre -m conntrack --ctstate INVALID -j DROP"], {}, ""),
        (["-A FORWARD -p gre -m conntrack --ctstate ESTABLISHED -j ACCEPT",
          "-A FORWARD -p gre -j DROP"], {}, ""),
        (["-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"], {}, ""),
    ],
)  # fmt: skip
def test_a_firewall_that_drops(
    router: Broken, rules: list[str], expected: dict[str, str], words: str
) -> None:
    """By name, by a chain, by its policy; or only what is no call's."""
    router.default_route()
    for rule in rules:
        router.rules(rule)

    found = looked(router.world)

    assert expected == outcomes(found)
    assert any(words in text for _, text in found.values()) or not expected


NFT = """
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        RULES
    }
}
"""


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("ct state vmap { established : accept, related : accept }; tcp dport 1723 accept", {}),
        ('ct state established,related accept; iifname "lan" oifname "wan" accept', {}),
        ('iifname "lan" oifname "wan" accept',
         {"firewall_gre": "fail", "firewall_control": "fail"}),
        ("meta l4proto gre drop; ct state established,related accept; meta l4proto tcp accept",
         {"firewall_gre": "fail"}),
        ("ip protocol gre drop; accept", {"firewall_gre": "fail"}),
        ("ip saddr 10.0.0.0/8 meta l4proto { gre, esp } drop; accept", {"firewall_gre": "warn"}),
        ("tcp dport { 22, 1700-1800 } reject; accept", {"firewall_control": "fail"}),
        ("ct state invalid drop; accept", {}),
    ],
)  # fmt: skip
def test_an_nftables_firewall_that_drops(
    router: Broken, rules: str, expected: dict[str, str]
) -> None:
    """As fw4, firewalld and people write them."""
    router.default_route()
    text = NFT.replace("RULES", rules.replace("; ", "\n        "))
    router.lab.run(router.lab.router, ["nft", "-f", "-"], text=text)

    assert expected == outcomes(looked(router.world))


FW4 = """
table inet fw4 {
    chain prerouting {
        type filter hook prerouting priority filter; policy accept;
        iifname "lan" jump helper_lan comment "!fw4: Handle lan IPv4/IPv6 helper assignment"
    }
    chain helper_lan {
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state vmap { established : accept, related : accept } comment "!fw4: Handle forwarded flows"
        iifname "lan" jump forward_lan comment "!fw4: Handle lan IPv4/IPv6 forward traffic"
        iifname "wan" jump forward_wan comment "!fw4: Handle wan IPv4/IPv6 forward traffic"
        jump handle_reject
    }
    chain forward_lan {
        jump accept_to_wan comment "!fw4: Accept lan to wan forwarding"
        jump accept_to_lan
    }
    chain forward_wan {
        meta l4proto esp counter jump accept_to_lan comment "!fw4: Allow-IPSec-ESP"
        udp dport 500 counter jump accept_to_lan comment "!fw4: Allow-ISAKMP"
        jump reject_to_wan
    }
    chain accept_to_lan {
        oifname "lan" counter accept comment "!fw4: accept lan IPv4/IPv6 traffic"
    }
    chain accept_to_wan {
        meta nfproto ipv4 oifname "wan" ct state invalid counter drop comment "!fw4: Prevent NAT leakage"
        oifname "wan" counter accept comment "!fw4: accept wan IPv4/IPv6 traffic"
    }
    chain reject_to_wan {
        oifname "wan" counter jump handle_reject comment "!fw4: reject wan IPv4/IPv6 traffic"
    }
    chain handle_reject {
        meta l4proto tcp reject with tcp reset comment "!fw4: Reject TCP traffic"
        reject with icmpx type port-unreachable comment "!fw4: Reject any other traffic"
    }
}
"""  # noqa: E501  as fw4 prints it


@pytest.mark.parametrize(
    ("was", "becomes", "expected"),
    [
        ("", "", {}),
        ("established : accept, ", "", {"firewall_gre": "fail", "firewall_control": "fail"}),
        ("jump accept_to_wan", "jump reject_to_wan",
         {"firewall_control": "fail"}),
        ("policy accept;", "policy accept;\n meta l4proto gre drop", {"firewall_gre": "fail"}),
    ],
)  # fmt: skip
def test_openwrts_firewall(
    router: Broken, was: str, becomes: str, expected: dict[str, str]
) -> None:
    """Its rules as they come pass; with one thing wrong that is what is found."""
    router.default_route()
    text = FW4.replace(was, becomes) if was else FW4
    try:
        router.run("nft -f -", text=text)
        assert expected == outcomes(looked(router.world))
    finally:
        router.run("nft delete table inet fw4", check=False)


def test_a_conntrack_table_that_is_nearly_full(router: Broken, tmp_path: Path) -> None:
    """The limit is the whole machine's, so this router is shown another one."""
    limit = tmp_path / "nf_conntrack_max"
    with router.lab.open_socket(router.lab.router, socket.SOCK_DGRAM) as sender:
        for port in range(10_000, 10_200):
            sender.sendto(b"hello", (SERVER, port))
    count = int(router.run("sysctl -n net.netfilter.nf_conntrack_count"))
    assert 200 <= count < 220, "there is other traffic, but not much"
    for share, outcome in ((0.5, None), (0.88, "warn"), (1.1, "fail")):
        limit.write_text(f"{int(count / share)}\n")
        mounts = {"/proc/sys/net/netfilter/nf_conntrack_max": limit}
        _, found = examined(router.world, mounts=mounts)
        assert outcomes(found) == ({} if outcome is None else {"conntrack_room": outcome})


def test_accounting_that_was_turned_off(router: Broken) -> None:
    router.switch("net.netfilter.nf_conntrack_acct", "0")
    assert {"accounting": "warn"} == outcomes(looked(router.world))


def test_no_rights(router: Broken) -> None:
    """An ordinary user learns what can be learnt, and that this is not all."""
    where = router.world.daemon.socket if router.world.daemon else Path()
    words = f"setpriv --bounding-set=-net_admin --inh-caps=-net_admin {' '.join(PROGRAM)}"
    ran = router.lab.run(
        router.lab.router, [*words.split(), "--socket", str(where)], check=False
    )
    said = json.loads(ran.stdout)

    assert 3 == ran.returncode
    assert ["privileges"] == [e["check"] for e in said["checks"] if e["outcome"] != "pass"]
    assert "rules" not in {e["check"] for e in said["checks"]}


# --- a server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Iterator[World]:
    if why := missing(["iptables", "iptables-restore", "unshare"]):
        pytest.skip(why)
    with Lab(inside=1) as lab, contextlib.closing(Loop()) as loop:
        yield World(lab, loop, None)


@pytest.fixture
def outside(plain: World) -> Iterator[World]:
    """Give a router; what is looked at is the server."""
    yield plain
    for station in plain.stations.values():
        station.close()
    plain.stations.clear()
    for host in (plain.lab.router, plain.lab.outside[0]):
        plain.lab.run(host, ["iptables", "-F"])


def consulted(world: World, *, server: str = SERVER, seconds: float = 15) -> Found:
    """Return what is wrong with the server; *seconds* are short where waiting is in vain."""
    _, found = examined(
        world, "--server", server, "--only-server", "--timeout", str(seconds)
    )
    assert len(found) <= 1, "the first failure is the last"
    return found


@pytest.mark.skipif(absent() is not None, reason=absent() or "all there")
def test_a_real_server_passes_every_step(router: Broken) -> None:
    """Debian's pptpd: pppd answers, the call is cleared, nothing of it is left behind."""
    start_server(router.lab, router.lab.outside[0])

    code, found = examined(router.world, "--server", SERVER, "--timeout", "15")

    assert (0, {}) == (code, found)
    # It is over for the daemon too, which saw it as a call of the router itself.
    def gone() -> bool:
        assert router.world.daemon is not None
        return not router.world.daemon.calls("--state", "up")

    assert router.world.loop.run_until(gone, 10, every=0.1)


def test_a_server_that_answers_with_gre(outside: World) -> None:
    """Our own peer: it says who it is, and its GRE is heard although nobody lets it in."""
    server = outside.station(outside.lab.outside[0])
    server.listen()
    outside.lab.run(outside.lab.router, ["iptables", "-A", "INPUT", "-p", "gre", "-j", "DROP"])

    def say(_events: int = 0) -> bool:
        for call in server.calls():
            if call.up:
                call.say()
        return False

    where = outside.lab.directory / "none.sock"
    command = [*PROGRAM, "--socket", str(where), "--server", SERVER, "--only-server",
               "--timeout", "15"]  # fmt: skip
    process = outside.lab.popen(outside.lab.router, command, stdout=subprocess.PIPE)
    assert outside.loop.run_until(lambda: say() or process.poll() is not None, 30, every=0.05)
    assert process.stdout is not None
    said = json.loads(process.stdout.read())

    assert ["server_route", "server_port", "server_start", "server_call", "server_gre",
            "server_end"] == [each["check"] for each in said["checks"]]  # fmt: skip
    assert "pass" == said["outcome"], said
    assert "'outside-0'" in said["checks"][2]["text"]
    assert ["gone"] == [call.state for call in server.calls()]
    assert server.connections[0].closed


def test_no_route(outside: World) -> None:
    assert {"server_route": "fail"} == outcomes(consulted(outside, server="203.0.113.9"))
    found = consulted(outside, server="no.such.name.invalid")
    assert "has no IPv4 address" in found["server_route"][1]


def test_a_closed_port(outside: World) -> None:
    assert "closed" in consulted(outside)["server_port"][1]


def test_a_filtered_port(outside: World) -> None:
    drop = ["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "1723", "-j", "DROP"]
    outside.lab.run(outside.lab.outside[0], drop)
    assert "filtered: nothing answers" in consulted(outside, seconds=1)["server_port"][1]


def test_a_server_that_refuses_the_call(outside: World) -> None:
    outside.station(outside.lab.outside[0], refuses=True).listen()
    found = consulted(outside)
    assert "Outgoing-Call-Reply says busy (4)" in found["server_call"][1]


def test_a_server_whose_gre_is_filtered(outside: World) -> None:
    """Calls are accepted, and nothing comes: the best known trouble of all."""
    server = outside.station(outside.lab.outside[0])
    server.listen()
    found = consulted(outside, seconds=2.5)
    assert re.search(r"no GRE comes back within 2\.5 s \(\d packets sent\)", found["server_gre"][1])
    assert ["gone"] == [call.state for call in server.calls()]


STRANGE = """
import socket, struct, sys
from pptp_nat.lab import wire
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("0.0.0.0", 1723)); listening.listen()
print("listening", flush=True)
peer, _ = listening.accept()
request = peer.recv(1000)
{does}
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("does", "check", "words"),
    [
        ("", "server_start", "no Start-Control-Connection-Reply within 2.5 s"),
        ("peer.close()", "server_start", "the server closes the connection"),
        ("peer.setsockopt(1, 13, struct.pack('ii', 1, 0)); peer.close()",
         "server_start", "the connection is reset"),
        ("peer.sendall(b'SSH-2.0-OpenSSH')", "server_start",
         "what answers does not speak PPTP (bad_magic): 53 53 48"),
        ("peer.sendall(wire.encode('SCCRP', version=256, result=4))", "server_start",
         "Start-Control-Connection-Reply says requester is not authorized (4)"),
        ("peer.sendall(wire.encode('SCCRP', version=256, result=1)); peer.recv(1000); "  # noqa: ISC004
         "peer.sendall(wire.encode('OCRP', call=7, peer=0xFFFF, result=1))", "server_call",
         "the reply is for call ID 65535"),
        ("peer.sendall(bytes(70000))", "server_start", "does not speak PPTP"),
    ],
    ids=["silent", "closes", "resets", "ssh", "refuses", "wrong call ID", "zeros"],
)  # fmt: skip
def test_strange_servers(outside: World, does: str, check: str, words: str) -> None:
    """Each ends at its step, in words; none in a traceback."""
    program = STRANGE.format(does=does)
    host = outside.lab.outside[0]
    other = outside.lab.popen(
        host, [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert b"listening\n" == other.stdout.readline()

    found = consulted(outside, seconds=15 if does else 2.5)

    assert {check: "fail"} == outcomes(found)
    assert words in found[check][1]
    outside.lab.end(other)
