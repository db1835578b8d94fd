"""The rules in a real router: in place, first in their chains, and away again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.linux import ruleset, ruleset_nftables
from pptp_nat.linux.ruleset import Backend, RuleSettings

from . import rules_lab
from .rules_lab import (
    RulesLab,
    command,
    iptables,
)

pytestmark = pytest.mark.kernel
README = Path(__file__).parents[2] / "rules" / "README.md"
CONNTRACK = RuleSettings()
QUEUE = RuleSettings(datapath="queue")
BPF = RuleSettings(datapath="bpf")

network = pytest.fixture(scope="module")(rules_lab.network)
lab = pytest.fixture(rules_lab.router)
swapped = pytest.fixture(rules_lab.swapped)
both = pytest.mark.parametrize("lab", rules_lab.VARIANTS, indirect=True)


STRAY_JUMP = "-p gre -m conntrack --ctstate NEW -j PPTP_NAT_STRAY"


def saved() -> list[str]:
    """Return the rules in place and the chains that somebody made; tables stay once used."""
    lines = command("iptables-save").splitlines()
    return [line for line in lines if line.startswith("-A") or " - [" in line]


@both
@pytest.mark.parametrize("settings", [CONNTRACK, BPF, QUEUE], ids=lambda each: each.datapath)
def test_rules_come_and_go_and_leave_the_administrators_alone(
    lab: RulesLab, settings: RuleSettings
) -> None:
    """Applied twice is applied once; removed is as if never there."""
    before = saved()

    ruleset.apply(settings, Backend.IPTABLES)
    once = saved()
    ruleset.apply(settings, Backend.IPTABLES)

    assert once == saved()
    assert set(before) <= set(once)
    assert [] == ruleset.check(settings, Backend.IPTABLES)
    ruleset.remove()
    assert before == saved()


@both
def test_leftovers_of_other_settings_go(lab: RulesLab) -> None:
    """Who changes the ports or the data path must not queue a packet twice."""
    apply, check = ruleset.apply, ruleset.check
    for settings in (
        RuleSettings(ports=(1723, 4321), control_queue=9, datapath="queue"),
        RuleSettings(ports=(4321,), repeat_mark=1),
        RuleSettings(ports=tuple(range(4300, 4331))),
        CONNTRACK,
    ):
        apply(settings, Backend.IPTABLES)
        assert [] == check(settings, Backend.IPTABLES)

    assert not [line for line in saved() if "4321" in line or "queue-num 9" in line]


@both
def test_text_for_administrators_loads_once_and_is_refused_twice(lab: RulesLab) -> None:
    """Two jumps in a row would queue a packet for ever, so the second load must fail whole."""
    text = ruleset.render(CONNTRACK, Backend.IPTABLES)

    command("iptables-restore", "--noflush", text=text)
    once = saved()
    with pytest.raises(AssertionError, match="restore"):
        command("iptables-restore", "--noflush", text=text)

    assert once == saved()
    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)


@both
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("-I FORWARD 1 -p icmp -j ACCEPT", "filter FORWARD: our rules must come first"),
        ("-I INPUT 1 -j PPTP_NAT_CONTROL", "filter INPUT: leads 2 times"),
        ("-D OUTPUT 1", "filter OUTPUT: misses ! -o lo -p tcp"),
        ("-D PPTP_NAT_CONTROL 2", "filter PPTP_NAT_CONTROL: does not hold the rules"),
        ("-F PPTP_NAT_STRAY", "filter PPTP_NAT_STRAY: is not there"),
        ("-A FORWARD -s 10.0.0.1 -j PPTP_NAT_STRAY", "filter FORWARD: leads 3 times"),
    ],
)
def test_whatever_disturbs_the_rules_is_named(lab: RulesLab, spoil: str, complaint: str) -> None:
    """Another tool that reloads the firewall is how control messages pass untranslated."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)

    iptables(spoil)

    problems = ruleset.check(CONNTRACK, Backend.IPTABLES)
    assert 1 == len(problems)
    assert problems[0].startswith(complaint)
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)


def test_rules_of_the_other_data_path_are_a_problem(lab: RulesLab) -> None:
    """The mark and the queues differ; a mixture judges a packet twice or never."""
    ruleset.apply(QUEUE, Backend.IPTABLES)

    problems = ruleset.check(CONNTRACK, Backend.IPTABLES)

    assert [
        "filter PPTP_NAT_STRAY: is not there; run `pptp-nat rules apply`",
        f"filter FORWARD: misses {STRAY_JUMP}; run `pptp-nat rules apply`",
    ] == problems[:2]
    assert {"raw PREROUTING", "mangle POSTROUTING"} == {p.split(":")[0] for p in problems[2:]}


def test_both_backends_at_once_are_a_problem(lab: RulesLab, swapped: None) -> None:
    """Either would queue the packet: it would be translated twice."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    ruleset_nftables.apply(CONNTRACK)

    assert "queued twice" in ruleset.check(CONNTRACK, Backend.IPTABLES)[0]
    assert "queued twice" in ruleset.check(CONNTRACK, Backend.NFTABLES)[0]
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)
    ruleset.apply(CONNTRACK, Backend.NFTABLES)
    assert [] == ruleset.check(CONNTRACK, Backend.NFTABLES)
    assert not [line for line in saved() if "PPTP" in line]


def test_legacy_rules_are_removed_where_iptables_is_the_new_one(lab: RulesLab) -> None:
    """Routers were upgraded from one to the other, and both are in force at once."""
    if shutil.which("iptables-legacy") is None:
        pytest.skip("iptables-legacy not installed")
    text = ruleset.render(CONNTRACK, Backend.IPTABLES)
    command("iptables-legacy-restore", "--noflush", text=text)

    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    ruleset.remove()

    assert "PPTP_NAT" not in command("iptables-legacy-save") + command("iptables-save")


def test_a_refused_load_leaves_nothing(
    lab: RulesLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are loaded one by one; half of the rules would be worse than none."""
    text = ruleset.render(QUEUE, Backend.IPTABLES)
    bad = text.replace("--notrack", "--helper no-such-helper")
    monkeypatch.setattr(
        "pptp_nat.linux.ruleset_iptables_kernel.body",
        lambda chains: bad.split("*raw")[1].split("COMMIT")[0].splitlines()
        if "PREROUTING" in chains
        else text.split("*filter")[1].split("COMMIT")[0].splitlines(),
    )

    with pytest.raises(AdapterError, match="loading the iptables rules"):
        ruleset.apply(QUEUE, Backend.IPTABLES)

    assert not [line for line in saved() if "PPTP_NAT" in line]


@both
def test_the_readme_says_how_to_take_them_away_by_hand(lab: RulesLab) -> None:
    """Who loads the file without the daemon has no `pptp-nat rules remove`."""
    before = saved()
    readme = README.read_text()
    block = next(b for b in readme.split("```") if "iptables -D FORWARD" in b)
    text = ruleset.render(CONNTRACK, Backend.IPTABLES)

    command("iptables-restore", "--noflush", text=text)
    command("sh", "-e", "-c", block.partition("\n")[2])

    assert before == saved()


def test_backend_is_one_that_can_queue(lab: RulesLab) -> None:
    """A kernel may lack nft's queue statement; the reason is shown to people."""
    backend, reason = ruleset.backend_choice()

    assert backend is ruleset.choose_backend()
    assert reason.startswith(backend.value)
    features = ruleset.probe_features()
    assert features.nft_queue == (backend is Backend.NFTABLES)
    assert not [line for line in saved() if "PROBE" in line]
