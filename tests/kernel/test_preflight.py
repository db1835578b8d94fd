"""The start-up checks in routers that are broken for real."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pptp_nat.linux import preflight
from pptp_nat.linux.preflight import Finding, Severity
from pptp_nat.linux.ruleset import RuleSettings

from . import rules_lab
from .rules_lab import ALICE, SERVER, Listener, RulesLab, command, iptables

pytestmark = pytest.mark.kernel
SETTINGS = RuleSettings()

network = pytest.fixture(scope="module")(rules_lab.network)
plain_router = pytest.fixture(rules_lab.router)


@pytest.fixture
def lab(plain_router: RulesLab) -> Iterator[RulesLab]:
    """Yield a router with nothing to find, which stays in this state afterwards."""
    switches = {
        Path("/proc/sys/net/ipv4/ip_forward"): "1",
        Path("/proc/sys/net/netfilter/nf_conntrack_acct"): "1",
    }
    for switch, value in switches.items():
        switch.write_text(value)
    assert [] == preflight.checks(SETTINGS)
    yield plain_router
    for switch, value in switches.items():
        switch.write_text(value)


both = pytest.mark.parametrize("plain_router", rules_lab.VARIANTS, indirect=True)


def only(findings: list[Finding], severity: Severity) -> str:
    """Return the text of the only finding, after a look at its severity."""
    assert [severity] == [finding.severity for finding in findings]
    return findings[0].text


def test_ip_forward_off_is_warned_of(lab: RulesLab) -> None:
    """Control messages would be translated and go nowhere."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")

    assert "ip_forward" in only(preflight.checks(SETTINGS), Severity.WARN)


def test_conntrack_without_counters_is_noted(lab: RulesLab) -> None:
    """The table would show no packets."""
    Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("0")

    assert "nf_conntrack_acct" in only(preflight.checks(SETTINGS), Severity.NOTE)


def test_a_queue_that_another_program_holds_is_refused(lab: RulesLab) -> None:
    """Two daemons on one router; the GRE queue matters to the data path queue only."""
    with Listener(lab, 1723, lambda packet: packet.drop()):
        text = only(preflight.checks(SETTINGS), Severity.REFUSE)
        assert text.startswith("queue 1723 is bound already")
        assert "control.queue" in text
        assert [] == preflight.checks(SETTINGS, running=True)
    with Listener(lab, 1724, lambda packet: packet.drop()):
        assert [] == preflight.checks(SETTINGS)
        text = only(preflight.checks(RuleSettings(datapath="queue")), Severity.REFUSE)
        assert "gre.queue" in text


def test_queue_counters_tell_what_waits(lab: RulesLab) -> None:
    """From these a full queue is told from a daemon that hangs."""
    assert preflight.queue_counters(1723) is None
    iptables("-I FORWARD -p udp -j NFQUEUE --queue-num 1723")
    with Listener(lab, 1723, rules_lab.again):
        counters = preflight.queue_counters(1723)
        assert counters is not None
        assert (0, 0, 0) == counters[1:4]


@both
def test_an_iptables_rule_that_attaches_the_kernels_helper_is_refused(lab: RulesLab) -> None:
    """The helper and we would both rewrite the same call ID."""
    iptables("-t raw -A PREROUTING -p tcp --dport 1723 -j CT --helper pptp")
    try:
        text = only(preflight.checks(SETTINGS), Severity.REFUSE)
        assert "raw PREROUTING" in text
        assert "1723" in text
        assert [] == preflight.checks(RuleSettings(ports=(4321,)))
    finally:
        iptables("-t raw -F PREROUTING")


def test_an_nftables_rule_that_attaches_the_kernels_helper_is_refused(lab: RulesLab) -> None:
    """As firewalld and fw4 attach it."""
    command("nft", "-f", "-", text=NFT_HELPER)

    text = only(preflight.checks(SETTINGS), Severity.REFUSE)

    assert "table inet firewall, chain helpers" in text
    assert [] == preflight.checks(RuleSettings(ports=(4321,)))


NFT_HELPER = """
table inet firewall {
    ct helper pptp-std {
        type "pptp" protocol tcp
    }
    chain helpers {
        type filter hook prerouting priority filter
        tcp dport { 21, 1700-1800 } ct helper set "pptp-std"
    }
}
"""


def test_a_connection_that_the_kernels_helper_still_holds_is_refused(lab: RulesLab) -> None:
    """The rule may be gone; the connection keeps its helper to the end."""
    iptables("-t raw -A PREROUTING -p tcp --dport 1723 -j CT --helper pptp")
    with lab.socket(lab.server) as listening, lab.socket(lab.alice) as client:
        listening.bind(("0.0.0.0", 1723))
        listening.listen()
        client.connect((SERVER, 1723))
        iptables("-t raw -F PREROUTING")

        text = only(preflight.checks(SETTINGS), Severity.REFUSE)

    assert f"{ALICE}:" in text
    assert f"-> {SERVER}:1723" in text


def test_rules_that_cannot_be_read_are_warned_of(
    lab: RulesLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old nft ends itself over some sets; then nobody knows what is in there."""
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho 'Assertion failed' >&2; exit 134\n")
    broken.chmod(0o755)

    text = only(preflight.checks(SETTINGS), Severity.WARN)

    assert "nft: Assertion failed" in text


# --- privileges: checks in another process ------------------------------------------------------

PROGRAM = """
import sys
from pptp_nat.linux import preflight
from pptp_nat.linux.ruleset import RuleSettings
for finding in preflight.checks(RuleSettings(), receive_buffer=int(sys.argv[1])):
    print(finding.severity.value, finding.text)
"""


def checked_by(*prefix: str, receive_buffer: int = 0) -> list[str]:
    if shutil.which(prefix[0]) is None:
        pytest.skip(f"{prefix[0]} not installed")
    words = (*prefix, sys.executable, "-c", PROGRAM, str(receive_buffer))
    root = Path(__file__).parents[2]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root, timeout=60)
    if "unshare failed" in ran.stderr:
        pytest.skip(ran.stderr.strip())
    assert not ran.returncode, ran.stderr
    return ran.stdout.splitlines()


def test_root_without_cap_net_admin_is_refused(lab: RulesLab) -> None:
    """A container's root; then the other checks, which would all fail, are left out."""
    lines = checked_by("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")

    assert 1 == len(lines)
    assert lines[0].startswith("refuse CAP_NET_ADMIN is missing")


def test_a_user_namespace_is_told_and_its_small_buffers_too(lab: RulesLab) -> None:
    """There, net.core.rmem_max is the end; in the initial one CAP_NET_ADMIN passes it."""
    asked = 1 << 28
    assert [] == checked_by("env", receive_buffer=asked)

    lines = checked_by("unshare", "--user", "--map-root-user", "--net", receive_buffer=asked)

    kinds = [line.split()[0] for line in lines]
    assert sorted(kinds, key=["refuse", "warn", "note"].index) == kinds
    assert 1 == sum("this is a user namespace of its own" in line for line in lines)
    assert 1 == sum(f"rmem_max={asked}" in line for line in lines)
