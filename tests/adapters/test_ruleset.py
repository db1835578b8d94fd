"""The rules as text: what is rendered, and how what is in the kernel is read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.parts import worker_of
from pptp_nat.errors import AdapterError
from pptp_nat.linux import (
    ruleset,
    ruleset_bpf,
    ruleset_facts,
    ruleset_iptables_kernel,
    ruleset_nftables,
)
from pptp_nat.linux.ruleset import Backend, Features, Pace, RuleSettings
from pptp_nat.linux.ruleset_settings import Ran, must, run

RULES = Path(__file__).parents[2] / "rules"


@pytest.mark.parametrize(
    ("name", "backend"),
    [("pptp-nat.iptables", Backend.IPTABLES), ("pptp-nat.nft", Backend.NFTABLES)],
)
def test_the_files_for_administrators_are_what_the_daemon_loads(
    name: str, backend: Backend
) -> None:
    """Who uses the file instead of the daemon must get the same router.

    After a change of the rules: ``pptp-nat rules show --backend ... > rules/...``.
    """
    assert (RULES / name).read_text() == ruleset.render(RuleSettings(), backend)


def test_the_readme_has_the_line_that_the_firewall_needs() -> None:
    """With nftables no GRE passes untracked without it: data paths queue and bpf."""
    readme = (RULES / "README.md").read_text()

    for datapath in ("bpf", "queue"):
        line = ruleset_nftables.firewall_line(RuleSettings(datapath=datapath))
        assert f"\n{line}\n" in readme
    assert ruleset_nftables.FW4_FILE in readme


# --- classic BPF: the programs against a plain reading of the headers -----------------------------


def answer(program: ruleset_bpf.Program, packet: bytes) -> int:  # noqa: PLR0912 - a table of codes
    """Run *program* as the kernel does (net/core/filter.c): a load past the end answers 0."""
    a = x = at = 0
    while True:
        step = program[at]
        at += 1
        try:
            match step.code:
                case ruleset_bpf.LOAD_HALF:
                    (a,) = struct.unpack_from("!H", packet, step.k)
                case ruleset_bpf.LOAD_WORD:
                    (a,) = struct.unpack_from("!I", packet, step.k)
                case ruleset_bpf.MULTIPLY:
                    a = a * step.k & 0xFFFFFFFF
                case ruleset_bpf.REMAINDER:
                    a %= step.k
                case ruleset_bpf.EXCLUSIVE_OR:
                    a ^= x
                case ruleset_bpf.LOAD_WORD_AT_X:
                    (a,) = struct.unpack_from("!I", packet, x + step.k)
                case ruleset_bpf.LOAD_OCTET_AT_X:
                    a = packet[x + step.k]
                case ruleset_bpf.LOAD_HEADER:
                    x = 4 * (packet[step.k] & 15)
                case ruleset_bpf.AND:
                    a &= step.k
                case ruleset_bpf.SHIFT_RIGHT:
                    a >>= step.k
                case ruleset_bpf.ADD_X:
                    a += x
                case ruleset_bpf.TO_X:
                    x = a
                case ruleset_bpf.IF_EQUAL:
                    at += step.jump_true if a == step.k else step.jump_false
                case ruleset_bpf.IF_EQUAL_X:
                    at += step.jump_true if a == x else step.jump_false
                case ruleset_bpf.IF_ANY_BIT:
                    at += step.jump_true if a & step.k else step.jump_false
                case ruleset_bpf.ANSWER:
                    return step.k
                case _:
                    raise AssertionError(step)
        except (IndexError, struct.error):
            return 0


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Draw IPv4 packets that are likely to be near what the programs look for."""
    ip_words = draw(st.integers(5, 15))
    fragment = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 1, 0x1FFF]))
    words = draw(st.integers(5, 15))
    flags = draw(st.integers(0, 255))
    payload = draw(st.sampled_from([b"", b"", b"x", b"four"]))
    tcp = struct.pack("!HHIIBBHHH", 1, 1723, 1, 1, words << 4 | draw(st.integers(0, 15)), flags,
                      1, 0, 0) + bytes(4 * words - 20)  # fmt: skip
    gre = struct.pack("!HH", draw(st.sampled_from([0x3001, 0x3081, 0x2000, 1, 0x3002])),
                      draw(st.sampled_from([0x880B, 0x880A, 0x0800])))  # fmt: skip
    body = draw(st.sampled_from([tcp, gre])) + payload
    total = 4 * ip_words + len(body)
    ip = struct.pack("!BBHHHBBHII", 0x40 | ip_words, 0, total, 1, fragment, 64, 6, 0, 1, 2)
    packet = ip + bytes(4 * ip_words - 20) + body
    return packet[: draw(st.sampled_from([len(packet), len(packet), 4 * ip_words + 3, 20]))]


@pytest.mark.parametrize(
    ("program", "kept", "flags"),
    [(ruleset_bpf.PURE_ACKNOWLEDGEMENT, 0x15, 0x10), (ruleset_bpf.EMPTY_SYN, 0x17, 0x02)],
    ids=["acknowledgements", "SYNs"],
)
@given(packet=packets())
def test_what_is_empty_is_told_from_the_rest(
    program: ruleset_bpf.Program, kept: int, flags: int, packet: bytes
) -> None:
    """A message taken for an acknowledgement, or for a SYN, would pass untranslated."""
    header = 4 * (packet[0] & 15)
    expected = False
    if len(packet) >= header + 14 and not int.from_bytes(packet[6:8], "big") & 0x1FFF:
        both = header + 4 * (packet[header + 12] >> 4)
        empty = both == int.from_bytes(packet[2:4], "big")
        expected = empty and packet[header + 13] & kept == flags

    assert expected == bool(answer(program, packet))


@given(packets())
def test_enhanced_gre_is_told_from_plain(packet: bytes) -> None:
    """Other tunnels must be neither dropped nor taken off conntrack."""
    header = 4 * (packet[0] & 15)
    expected = False
    if len(packet) >= header + 4 and not int.from_bytes(packet[6:8], "big") & 0x1FFF:
        flags, protocol = struct.unpack_from("!HH", packet, header)
        expected = flags & 7 == 1 and protocol == 0x880B

    assert expected == bool(answer(ruleset_bpf.ENHANCED_GRE, packet))


@given(packets(), st.binary(min_size=8, max_size=8), st.integers(2, 64))
def test_each_packet_is_of_one_worker_whoever_of_the_two_sends(
    packet: bytes, hosts: bytes, count: int
) -> None:
    """Python and the rules must agree, or a connection is judged by who does not know it."""
    there = packet[:12] + hosts + packet[20:]
    back = packet[:12] + hosts[4:] + hosts[:4] + packet[20:]

    for each in (there, back):
        matched = [i for i in range(count) if answer(ruleset_bpf.share(i, count), each)]
        assert [worker_of(hosts[:4], hosts[4:], count)] == matched


@pytest.mark.parametrize("backend", list(Backend))
def test_only_iptables_divides_among_workers(backend: Backend) -> None:
    settings = RuleSettings(workers=3)
    if backend is Backend.NFTABLES:
        with pytest.raises(AdapterError, match=r'rules.backend = "iptables"'):
            ruleset.render(settings, backend)
        return
    lines = [line for line in ruleset.render(settings, backend).splitlines() if "NFQUEUE" in line]

    assert ["1724", "1725", "1723"] == [
        line.rpartition(" ")[2] for line in lines if line.startswith("-A")
    ]
    with pytest.raises(AdapterError, match="load xt_bpf"):
        ruleset.render(settings, backend, Features(bpf=False))


@pytest.mark.parametrize(
    "program",
    [
        ruleset_bpf.PURE_ACKNOWLEDGEMENT, ruleset_bpf.EMPTY_SYN, ruleset_bpf.ENHANCED_GRE,
        ruleset_bpf.share(1, 2),
    ],
)
def test_programs_are_what_the_kernel_takes(program: ruleset_bpf.Program) -> None:
    """xt_bpf takes 64 instructions and no jump past the end."""
    assert len(program) <= 64
    for at, step in enumerate(program):
        assert at + 1 + max(step.jump_true, step.jump_false) < len(program) + (
            step.code == ruleset_bpf.ANSWER
        )
    assert ruleset_bpf.bytecode(program).count(",") == len(program)


# --- rendering ----------------------------------------------------------------------------------


def rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] == "-"]


ALL = [Features(bpf=bpf, u32=u32) for bpf in (True, False) for u32 in (True, False)]


@pytest.mark.parametrize("features", ALL)
def test_control_messages_are_queued_whatever_is_missing(features: Features) -> None:
    """Nothing but the savings may depend on a module."""
    text = ruleset.render(RuleSettings(), Backend.IPTABLES, features)

    assert "NFQUEUE --queue-num 1723\n" in text
    assert "--queue-bypass" not in "\n".join(rules(text))
    assert features.bpf == ("15,40 0 0 6" in text)
    assert (features.bpf or features.u32) == ("PPTP_NAT_STRAY" in text)
    assert features.bpf != ("no xt_bpf" in text)


def test_the_data_path_queue_refuses_a_kernel_that_cannot_tell_gre_apart() -> None:
    """To queue all GRE, or to let all of it pass, would break other tunnels."""
    settings = RuleSettings(datapath="queue")

    with pytest.raises(AdapterError, match=r"enhanced GRE.*xt_bpf or xt_u32"):
        ruleset.render(settings, Backend.IPTABLES, Features(bpf=False, u32=False))
    with pytest.raises(AdapterError, match=r"own addresses.*external_addresses"):
        ruleset.render(settings, Backend.IPTABLES, Features(addrtype=False))


def test_listed_addresses_do_instead_of_addrtype() -> None:
    """A router with one fixed address needs no module to know it."""
    settings = RuleSettings(datapath="queue", external_addresses=(b"\xc6\x33\x64\x01",))

    text = ruleset.render(settings, Backend.IPTABLES, Features(addrtype=False))

    assert "addrtype" not in text
    assert "-d 198.51.100.1/32" in text


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("datapath", ["conntrack", "bpf", "queue"])
def test_every_number_of_the_settings_is_in_the_rules(backend: Backend, datapath: Any) -> None:
    """A default left in the text would collide with whoever uses that number already."""
    settings = RuleSettings(
        ports=(1799, 1800), control_queue=11, gre_queue=12, repeat_mark=0x80, datapath=datapath
    )

    text = "\n".join(
        line for line in ruleset.render(settings, backend).splitlines()
        if not line.lstrip().startswith("#")
    )  # fmt: skip

    for default in ("1723", "1724", "0x40000000", "0xbfffffff"):
        assert default not in text
    assert "0x80" in text
    assert ("12\n" in text) == (datapath == "queue")


def test_a_packet_between_two_long_lists_of_ports_is_queued_once() -> None:
    """A match takes 15 ports; a second jump would meet the packet unmarked, without end."""
    settings = RuleSettings(ports=tuple(range(4000, 4031)))

    lines = rules(ruleset.render(settings, Backend.IPTABLES))

    assert 3 == sum("-g PPTP_NAT_CONTROL" in line for line in lines)
    assert not [line for line in lines if "-j PPTP_NAT_CONTROL" in line]
    assert 3 == sum(line.endswith("-p tcp -j PPTP_NAT_PORTS") for line in lines)


@pytest.mark.parametrize("datapath", ["bpf", "queue"])
def test_nftables_shows_the_line_that_the_firewall_needs(datapath: Any) -> None:
    """An accept in our table cannot overrule a drop in another."""
    settings = RuleSettings(datapath=datapath)
    text = ruleset.render(settings, Backend.NFTABLES)

    assert f"#     {ruleset_nftables.firewall_line(settings)}\n" in text
    assert ruleset_nftables.FW4_FILE in text
    assert "fw4" not in ruleset.render(RuleSettings(), Backend.NFTABLES)


# --- reading what is in place -------------------------------------------------------------------

SAVED = r"""# Generated by iptables-save v1.8.9 on Sat Nov 21 04:18:19 2026
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [12:3456]
:PPTP_NAT_CONTROL - [0:0]
[0:0] -A FORWARD is never printed like this without -c
-A FORWARD -p tcp -m multiport --ports 1723 -j PPTP_NAT_CONTROL
-A FORWARD -s 10.0.0.0/8 -m comment --comment "say \"-j PPTP_NAT\" twice" -j ACCEPT
-A FORWARD -i br-lan -g my_chain
-A PPTP_NAT_CONTROL -j NFQUEUE --queue-num 1723
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING
COMMIT
"""


def test_saved_rules_are_read_by_table_and_chain() -> None:
    """Only jumps to our chains are ours; a chain may be empty and a rule too."""
    saved = ruleset_iptables_kernel.parse(SAVED)

    assert {"filter", "raw"} == set(saved)
    assert [] == saved["filter"]["INPUT"]
    assert [""] == saved["raw"]["PREROUTING"]
    assert ["PPTP_NAT_CONTROL", "ACCEPT", "my_chain"] == [
        ruleset_iptables_kernel.target_of(rule) for rule in saved["filter"]["FORWARD"]
    ]
    assert [("filter", "FORWARD", "-p tcp -m multiport --ports 1723 -j PPTP_NAT_CONTROL")] == list(
        ruleset_iptables_kernel.jumps(saved)
    )


@pytest.mark.parametrize(
    ("expression", "facts"),
    [
        ([{"queue": {"num": 1723}}], {"queue 1723"}),
        ([{"queue": {"num": 1723, "flags": "bypass"}}], {"queue 1723"}),
        ([{"counter": {"packets": 1, "bytes": 2}}, {"drop": None}], {"drop"}),
        ([{"goto": {"target": "control"}}], {"goto control"}),
        (
            [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                        "right": {"set": [1724, 1723]}}}],
            {"dport 1723,1724"},
        ),
        (
            [{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}},
                        "right": "local"}}],
            {"fib type local"},
        ),
        (
            [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"&": [1, 2]}}}],
            {"set mark"},
        ),
        ([{"match": {"op": "==", "left": {"payload": {"protocol": "th", "field": "dport"}},
                     "right": 34827}}], set()),
    ],
)  # fmt: skip
def test_facts_of_a_listed_rule(expression: list[dict[str, Any]], facts: set[str]) -> None:
    """Versions of nft print one rule differently; these parts of it they print alike."""
    assert facts == ruleset_facts.facts(expression)


# --- commands that fail -------------------------------------------------------------------------


def test_a_command_that_is_not_installed_is_named() -> None:
    """People can install it."""
    assert run("no-such-command-here") is None
    with pytest.raises(AdapterError, match=r"^reading it: .*; install no-such-command-here$"):
        must("reading it", "no-such-command-here")


def test_what_a_command_complains_of_is_one_line() -> None:
    """An error is one line: what, where, what to do."""
    with pytest.raises(AdapterError) as caught:
        must("asking", "sh", "-c", "echo first >&2; echo 'Permission denied' >&2; exit 4")

    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("sh says: first; Permission denied")
    assert 1 == caught.value.errno


# --- the pace -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", Backend)
def test_every_bound_of_the_pace_is_in_the_rules_and_one_of_0_is_not(backend: Backend) -> None:
    """Zero means no limit, in the file as in the rules."""
    rates = {"openers_per_client": 71, "openers": 72, "segments_per_client": 73,
             "gre_per_host": 74}  # fmt: skip
    for left_out in (None, *rates):
        wanted = {key: rate for key, rate in rates.items() if key != left_out}
        pace = Pace(**{**dict.fromkeys(rates, 0), **wanted})
        text = ruleset.render(RuleSettings(pace=pace, datapath="queue"), backend)
        found = {key for key, rate in rates.items() if f"{rate}/second" in text}
        assert set(wanted) == found
        assert f"{2 * rates['openers']}" in text or left_out == "openers"


def test_a_burst_fits_into_the_queue() -> None:
    """Of any rate: what comes at once must find room, or the others' packets do not."""
    text = ruleset.render(RuleSettings(pace=Pace(openers=100_000)), Backend.IPTABLES)
    assert "--hashlimit-burst 4000 " in text


def test_a_kernel_without_hashlimit_gets_its_rules_without_a_pace() -> None:
    """Control messages are worth more than their pace, and the administrator is told."""
    text = ruleset.render(RuleSettings(), Backend.IPTABLES, Features(hashlimit=False))

    assert "NFQUEUE --queue-num 1723\n" in text
    assert "PPTP_NAT_PACE" not in text
    assert "no xt_hashlimit" in text


def test_an_nft_without_limits_gets_its_table_without_a_pace(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above: the probe is refused, the load is not."""
    loaded: list[str] = []
    monkeypatch.setattr(
        ruleset_nftables, "run", lambda *_, **__: Ran(1, "", "No such file or directory")
    )
    monkeypatch.setattr(
        ruleset_nftables, "must", lambda *_, text="", **__: loaded.append(text)
    )
    ruleset_nftables.apply(RuleSettings())

    (text,) = loaded
    assert "queue num 1723" in text
    assert "pace" not in "\n".join(rules_of_table(text))


def rules_of_table(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def test_a_tool_that_cannot_be_started_is_one_clear_line(tmp_path: Path) -> None:
    """Not executable, or no memory for another process: the daemon does not die of it."""
    tool = tmp_path / "iptables-save"
    tool.write_text("#!/bin/sh\n")
    with pytest.raises(AdapterError, match="it cannot be started: Permission denied") as told:
        must("reading it", str(tool))
    assert 1 == len(str(told.value).splitlines())


def test_rules_of_others_may_have_comments_in_any_encoding() -> None:
    """A comment is octets as they were typed, in a terminal of twenty years ago perhaps."""
    line = '-A FORWARD -m comment --comment "B\\374ro" -j ACCEPT'
    ran = run("printf", f"*filter\n{line}\n-A FORWARD -j PPTP_NAT_CONTROL\n")
    assert ran is not None
    (first, second) = ruleset_iptables_kernel.parse(ran.output)["filter"]["FORWARD"]

    assert "B\\xfcro" in first
    assert ["ACCEPT", "PPTP_NAT_CONTROL"] == [
        ruleset_iptables_kernel.target_of(rule) for rule in (first, second)
    ]


def test_who_may_not_ask_the_firewall_is_told_that_and_not_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user was told that iptables has no NFQUEUE, which nobody had found out."""
    said = "netlink: Error: cache initialization failed: Operation not permitted"
    monkeypatch.setattr(ruleset_nftables, "probe_queue", lambda: said)

    with pytest.raises(AdapterError, match=r"not permitted.*be root, or name the backend") as told:
        ruleset.backend_choice()

    assert "NFQUEUE" not in str(told.value)
