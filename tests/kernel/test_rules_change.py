"""From one holder of the rules to another: no moment without them, and none with both."""

from __future__ import annotations

import itertools
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.linux import ruleset, ruleset_iptables_kernel, ruleset_nftables
from pptp_nat.linux.ruleset import Backend, RuleSettings
from pptp_nat.linux.ruleset_iptables import Rule, body

from . import rules_lab
from .rules_lab import SERVER, Listener, RulesLab, again, command, marker
from .rules_segments import ACK, segment, source_ports

pytestmark = pytest.mark.kernel
CONNTRACK = RuleSettings()
QUEUE = RuleSettings(datapath="queue")

network = pytest.fixture(scope="module")(rules_lab.network)
lab = pytest.fixture(rules_lab.router)
swapped = pytest.fixture(rules_lab.swapped)
both = pytest.mark.parametrize("lab", rules_lab.VARIANTS, indirect=True)


def other() -> str:
    """Return the iptables of the other kind than the one that is called iptables here."""
    nf_tables = "nf_tables" in command("iptables", "--version")
    name = rules_lab.VARIANTS[nf_tables]
    if shutil.which(name) is None:
        pytest.skip(f"{name} not installed")
    return name


def load_with(iptables: str, settings: RuleSettings = CONNTRACK) -> None:
    text = ruleset.render(settings, Backend.IPTABLES)
    command(f"{iptables}-restore", "--noflush", text=text)


def in_force() -> str:
    """Return all that is ours, whoever holds it."""
    saved = [command(f"{name}-save") for name in (*rules_lab.VARIANTS, "iptables")]
    saved.append(command("nft", "-s", "list", "tables"))
    return "\n".join(
        line for text in saved for line in text.splitlines()
        if "PPTP_NAT" in line or "table ip pptp_nat" in line
    )  # fmt: skip


def after_each_step(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have *do* called after each command that may change a rule."""
    real = ruleset_nftables.must

    def must(*arguments: str, **options: str) -> str:
        output = real(*arguments, **options)
        do()
        return output

    monkeypatch.setattr(ruleset_nftables, "must", must)
    monkeypatch.setattr(ruleset_iptables_kernel, "must", must)


@both
@pytest.mark.parametrize("former", ["nftables", "iptables of the other kind"])
@pytest.mark.parametrize("to", list(Backend), ids=lambda each: each.value)
def test_no_control_message_passes_unseen_or_is_seen_twice_while_rules_change(
    lab: RulesLab, swapped: None, monkeypatch: pytest.MonkeyPatch, former: str, to: Backend
) -> None:
    """After every step one is sent; what arrives has been in the queue, and once."""
    if former == "nftables":
        ruleset.apply(CONNTRACK, Backend.NFTABLES)
    else:
        load_with(other())
    numbers = itertools.count(4001)
    with (
        lab.socket(lab.alice, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
        lab.socket(lab.server, socket.SOCK_RAW, socket.IPPROTO_TCP) as there,
        Listener(lab, CONNTRACK.control_queue, again) as queue,
    ):

        def send() -> None:
            raw.sendto(segment(ACK, payload=b"x", source_port=next(numbers)), (SERVER, 0))

        after_each_step(monkeypatch, send)
        ruleset.apply(CONNTRACK, to)
        monkeypatch.undo()

        if to is Backend.IPTABLES:  # whose queue this kernel has for sure
            last = next(numbers)
            raw.sendto(segment(ACK, payload=b"x", source_port=last), (SERVER, 0))
            queue.wait_for(lambda: last in source_ports(queue.seen))
        marker(lab)
        there.setblocking(False)
        arrived = set()
        while True:
            try:
                arrived |= source_ports([there.recv(200)])
            except BlockingIOError:
                break

    assert next(numbers) > 4003, "no step was looked at"
    seen = Counter(port for packet in queue.seen for port in source_ports([packet]))
    del seen[CONNTRACK.ports[0]]  # the server resets what it knows nothing of
    assert arrived <= set(seen)
    assert set(seen.values()) <= {1}


def test_what_nft_refuses_leaves_the_rules_of_iptables_in_force(
    lab: RulesLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without nft's queue is found out before anything is taken away."""
    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    before = in_force()
    monkeypatch.setattr(ruleset_nftables, "queue_verdict", lambda _: ("no such verdict", ""))

    with pytest.raises(AdapterError, match="nft says"):
        ruleset.apply(CONNTRACK, Backend.NFTABLES)

    assert before == in_force()
    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)


@both
def test_what_iptables_refuses_leaves_the_former_rules_in_force(
    lab: RulesLab, swapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of nftables, and its own of other settings, each where it stood."""
    ruleset.apply(CONNTRACK, Backend.NFTABLES)
    refused(monkeypatch)
    assert [] == ruleset.check(CONNTRACK, Backend.NFTABLES)

    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    command("iptables", "-I", "FORWARD", "2", "-s", "10.0.0.1", "-j", "ACCEPT")
    before = command("iptables-save")
    refused(monkeypatch)
    assert rules_of(before) == rules_of(command("iptables-save"))


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for rules of which iptables takes one table and refuses another."""
    with monkeypatch.context() as patched:
        patched.setattr(ruleset_iptables_kernel, "body", half_wrong)
        with pytest.raises(AdapterError, match="loading the iptables rules"):
            ruleset.apply(QUEUE, Backend.IPTABLES)


def half_wrong(chains: Mapping[str, list[Rule]]) -> list[str]:
    """Return the lines of a table: those of filter are right, those of raw are not."""
    lines = body(chains)
    return [line.replace("--notrack", "--helper no-such-helper") for line in lines]


def rules_of(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith(("-A", "*"))]


@both
def test_rules_that_the_other_iptables_holds_are_told_and_go(lab: RulesLab) -> None:
    """update-alternatives changes who is called iptables, and leaves the rules where they are."""
    load_with(other())

    text = f"{other()} holds rules of ours as well, and both are in force"
    told = [p for p in ruleset.check(CONNTRACK, Backend.IPTABLES) if p.startswith(text)]
    assert 1 == len(told)
    assert told[0].endswith("run `pptp-nat rules apply`")

    ruleset.apply(CONNTRACK, Backend.IPTABLES)
    assert [] == ruleset.check(CONNTRACK, Backend.IPTABLES)
    load_with(other())
    ruleset.remove()
    assert "" == in_force()
