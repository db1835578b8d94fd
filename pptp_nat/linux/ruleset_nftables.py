"""The rules in nftables' words: one table of our own, ``ip pptp_nat``.

Its chains hook in after the firewall's, at filter + 20 (firewalld is at
filter + 10, everybody else at filter): what the firewall drops never comes
here, and what it accepts still does.  The other
way round does not work: an accept in this table cannot overrule a drop in
another one, so the data path "queue" needs a line in the firewall itself
(`FIREWALL_LINE`).

Loading is one transaction that replaces the table, and removing is deleting it.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pptp_nat.linux import ruleset_pace
from pptp_nat.linux.ruleset_facts import Facts, facts
from pptp_nat.linux.ruleset_settings import APPLY, UNPACED, RuleSettings, must, run

TABLE: Final = "pptp_nat"
PACE: Final = "pace"  #: the chains that hold the bounds of control packets and of GRE
GRE_PACE: Final = "gre_pace"
QUEUED: Final = re.compile(r"\bqueue num \d+$", re.MULTILINE)
DELETE: Final = f"table ip {TABLE}\ndelete table ip {TABLE}\n"
#: RFC 2637 section 4.1: version 1, protocol 0x880B.  ``gre`` has no field names in old nft.
ENHANCED: Final = "ip protocol gre @th,13,3 1 @th,16,16 0x880b"
FIREWALL_LINE: Final = f"ct state untracked {ENHANCED} accept"
FW4_FILE: Final = "/usr/share/nftables.d/chain-pre/forward/pptp-nat.nft"
IP_OCTETS: Final = 20  # a header without options
DATA_OFFSETS: Final = (8, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15)  # words; with timestamps it is 8

def firewall_line(settings: RuleSettings) -> str:
    """Return what the firewall's own forward chain needs, for data paths past conntrack."""
    if settings.datapath == "bpf":
        return f"ct state untracked meta mark & {settings.repeat_mark:#x} != 0 accept"
    return FIREWALL_LINE


class Statement(NamedTuple):
    """A rule, and what of it nft prints alike in all of its versions."""

    text: str
    facts: Facts
    why: tuple[str, ...] = ()


class Chain(NamedTuple):
    """A chain; the hook's name is "" for one that others jump to."""

    name: str
    hook: str
    priority: str
    number: int  #: what the priority's name stands for (linux/netfilter_ipv4.h)
    rules: tuple[Statement, ...]
    why: tuple[str, ...] = ()


def queue_verdict(number: int) -> tuple[str, str]:
    """Return the words that queue a packet, and the fact that they make."""
    return f"queue num {number}", f"queue {number}"


def _ports(settings: RuleSettings) -> tuple[str, str]:
    """Return the ports as nft takes them, and as they are told in a fact."""
    ports = sorted(set(settings.ports))
    listed = ",".join(str(port) for port in ports)
    return (f"{{ {listed.replace(',', ', ')} }}" if len(ports) > 1 else listed), listed


HOOKS_WHY: Final = {
    "forward": ("Control connections of the hosts behind this router, both directions.",),
    "input": ("Control connections of this router itself: the numbers of its own calls are taken,",
              "so the daemon must know them."),
    "output": (),
}  # fmt: skip


def _hooks(settings: RuleSettings) -> Iterator[Chain]:
    # goto: a packet from 1723 to 1723 would come back unmarked to the second rule, without end.
    ports, listed = _ports(settings)
    stray: tuple[Statement, ...] = ()
    if settings.datapath == "bpf":
        stray = (
            Statement(f"ct state != untracked {ENHANCED} jump stray", frozenset({"jump stray"}),
                ("The programs at the devices mark the GRE of a call, and conntrack is told to",
                 "ignore it.  Plain GRE (version 0) is none of our business."),
            ),
        )  # fmt: skip
    elif settings.datapath == "conntrack":
        stray = (
            Statement(f"ct state new {ENHANCED} jump stray", frozenset({"jump stray"}),
                ("The GRE of a call matches the conntrack entries that the daemon made for it: it",
                 "is ESTABLISHED.  Plain GRE (version 0) is none of our business."),
            ),
        )  # fmt: skip
    sides = {"forward": "", "input": 'iifname != "lo" ', "output": 'oifname != "lo" '}
    for hook, interface in sides.items():
        yield Chain(
            hook, hook, "filter + 20", 20,
            tuple(
                Statement(f"{interface}tcp {end} {ports} goto control",
                    frozenset({"goto control", f"{end} {listed}"}))
                for end in ("dport", "sport")
            ) + (stray if hook == "forward" else ()),
            HOOKS_WHY[hook],
        )  # fmt: skip


def _control(settings: RuleSettings) -> Chain:
    queue, queue_fact = queue_verdict(settings.control_queue)
    mark = settings.repeat_mark
    paced = Statement(
        f"meta mark & {mark:#x} == 0 jump {PACE}", frozenset({f"jump {PACE}"}),
        ("2. A flood is dropped here, before it fills the queue for everybody.",),
    )
    empty = frozenset({"jump empty"})
    return Chain("control", "", "", 0, (
        Statement("ip hdrlength 5 tcp flags & (fin | rst | ack) == ack jump empty", empty,
            ("1. Acknowledgements without payload carry nothing that we read: let them pass.",)),
        *((paced,) if any(ruleset_pace.bounds(settings.pace)) else ()),
        Statement("ct state new tcp flags & (fin | syn | rst | ack) == syn jump empty", empty,
            ("3. The SYN of a connection new to conntrack: its first message says all of it.",)),
        Statement(
            f"meta mark & {mark:#x} == 0 {queue}", frozenset({queue_fact}),
            ("4. Everything else goes to the daemon once.  There is no bypass flag: while nobody",
             "   listens these packets are dropped, and TCP sends them again when somebody does."),
        ),
        _unmark(mark,
            ("5. The daemon has rewritten it, set the mark and sent it through this chain again",
             "   (NF_REPEAT).  Take the mark off.")),
    ))  # fmt: skip


def _paces(settings: RuleSettings) -> Iterator[Chain]:
    """Yield the chains that hold bounds."""
    chains = {
        PACE: ruleset_pace.bounds(settings.pace),
        GRE_PACE: ruleset_pace.gre_bounds(settings.pace, settings.datapath),
    }
    for name, bounds in chains.items():
        rules = tuple(
            Statement(f"{bound.nftables} counter drop", bound.facts, bound.why) for bound in bounds
        )
        if rules:
            yield Chain(name, "", "", 0, rules)


def _unmark(mark: int, why: tuple[str, ...]) -> Statement:
    kept = ~mark & 0xFFFFFFFF
    return Statement(f"meta mark set meta mark & {kept:#010x}", frozenset({"set mark"}), why)


def _empty() -> Chain:
    passes = frozenset({"accept"})
    rules = (
        Statement(f"ip length {IP_OCTETS + 4 * words} tcp doff {words} accept", passes)
        for words in DATA_OFFSETS
    )
    return Chain("empty", "", "", 0, tuple(rules), (
        "The packet is as long as its two headers: no payload.  One rule per length of the TCP",
        "header, and not one set of pairs: nft 1.0.6 cannot list such a set and ends itself.",
    ))  # fmt: skip


def _stray() -> Chain:
    return Chain("stray", "", "", 0, (Statement("counter drop", frozenset({"drop"})),), (
        "Enhanced GRE of no call.  Were it let pass, it would leave untranslated and its",
        "conntrack entry would stand in a call's way.",
    ))  # fmt: skip


def _queued_gre(settings: RuleSettings) -> Iterator[Chain]:
    queue, queue_fact = queue_verdict(settings.gre_queue)
    mark = settings.repeat_mark
    unmarked = f"meta mark & {mark:#x} == 0"
    addresses = sorted(socket.inet_ntoa(address) for address in settings.external_addresses)
    paced = (Statement(
        f"{unmarked} jump {GRE_PACE}", frozenset({f"jump {GRE_PACE}"}),
        ("A flood is dropped here, before it fills the queue for everybody.",),
    ),)  # fmt: skip
    rules = [
        *(paced if any(ruleset_pace.gre_bounds(settings.pace, "queue")) else ()),
        Statement(
            f"{unmarked} fib daddr type local {queue}", frozenset({queue_fact, "fib type local"}),
            ("1. Inbound: to an address of ours.  The daemon writes the inside host's address and",
             "   call ID, sets the mark and repeats the chain.  The mark stays on until",
             "   postrouting, where it says that this packet is judged.  GRE of no call it accepts",
             "   without the mark: that stays tracked and meets your input rules."),
        ),
        *(
            Statement(f"{unmarked} ip daddr {address} {queue}",
                      frozenset({queue_fact, f"daddr {address}"}))
            for address in addresses
        ),
        Statement(
            "notrack", frozenset({"notrack"}),
            ("2. The rest passes this router: no conntrack, which would translate the address",
             "   alone.  So does a packet between two inside hosts, repeated without the mark once",
             "   it has its new destination; its source is rewritten on the way out."),
        ),
    ]  # fmt: skip
    yield Chain("gre_in", "", "", 0, tuple(rules))
    yield Chain("gre_out", "", "", 0, (
        Statement(
            f"{unmarked} {queue}", frozenset({queue_fact}),
            ("1. Outbound: the daemon writes the external address, sets the mark and repeats.",),
        ),
        _unmark(mark, ("2. Judged, in either direction: take the mark off.",)),
    ))  # fmt: skip
    yield Chain("prerouting", "prerouting", "raw", -300, (
        Statement(f"{ENHANCED} jump gre_in", frozenset({"jump gre_in"})),
    ))  # fmt: skip
    yield Chain("postrouting", "postrouting", "mangle", -150, (
        Statement(f"ct state untracked {ENHANCED} jump gre_out", frozenset({"jump gre_out"})),
    ))  # fmt: skip


def _known(settings: RuleSettings) -> Chain:
    mark = f"meta mark & {settings.repeat_mark:#x} != 0"
    return Chain("prerouting", "prerouting", "raw", -300, (
        Statement(f"ip protocol {{ icmp, gre }} {mark} notrack", frozenset({"notrack"})),
    ), (
        "What a call's GRE becomes, and ICMP errors about it, the programs at the devices write.",
        "Conntrack would translate the address once more, and the call ID never.",
    ))  # fmt: skip


def plan(settings: RuleSettings) -> list[Chain]:
    """Return the chains of the table; those that others jump to come first."""
    chains = [_empty(), *_paces(settings), _control(settings)]
    if settings.datapath == "queue":
        chains += _queued_gre(settings)
    else:
        chains.append(_stray())
    if settings.datapath == "bpf":
        chains.append(_known(settings))
    return [*chains, *_hooks(settings)]


def _sets(settings: RuleSettings) -> Iterator[str]:
    gre = ruleset_pace.gre_bounds(settings.pace, settings.datapath)
    for bound in (*ruleset_pace.bounds(settings.pace), *gre):
        if bound.set_name:
            yield from (
                f"    set {bound.set_name} {{", "        type ipv4_addr",
                f"        size {ruleset_pace.CLIENTS}", "        flags dynamic,timeout",
                f"        timeout {ruleset_pace.FORGET_SECONDS}s", "    }", "",
            )  # fmt: skip


def render(settings: RuleSettings) -> str:
    """Return the text for ``nft -f``."""
    lines = [
        f"# pptp-nat: rules for nftables, data path {settings.datapath}.",
        "# Load with:    nft -f THIS FILE      (as often as you like: it replaces its table)",
        f"# Remove with:  nft delete table ip {TABLE}",
        "# rules/README.md says why each rule stands where it stands.",
    ]
    if settings.datapath != "conntrack":
        lines += [
            "#",
            "# An accept in this table cannot overrule a drop in another one, and GRE that",
            "# conntrack ignores is not ESTABLISHED.  So your firewall's forward chain needs this",
            "# line, ahead of its drops; it lets nothing out that is not judged:",
            f"#     {firewall_line(settings)}",
            f"# OpenWrt's fw4 takes it from the file {FW4_FILE}.",
        ]
    lines += ["", *DELETE.splitlines(), "", f"table ip {TABLE} {{", *_sets(settings)]
    for chain in plan(settings):
        lines += [f"    # {line}" for line in chain.why]
        lines.append(f"    chain {chain.name} {{")
        if chain.hook:
            lines.append(
                f"        type filter hook {chain.hook} priority {chain.priority}; policy accept;"
            )
        for rule in chain.rules:
            lines += [f"        # {line}" for line in rule.why]
            lines.append(f"        {rule.text}")
        lines += ["    }", ""]
    lines[-1] = "}"
    return "\n".join(lines) + "\n"


def try_out(settings: RuleSettings) -> None:
    """Find out whether the kernel takes the table, and change nothing.

    Raises:
        AdapterError: it does not.
    """
    text = render(_affordable(settings))
    must("trying out the nftables rules", "nft", "-c", "-f", "-", text=text)


def apply(settings: RuleSettings, *, hold: bool = False) -> None:
    """Put the table in place of the one that may be there, in one transaction.

    *hold*: what it is to queue it drops.

    Raises:
        AdapterError: refused; then what was there before is there still.
    """
    text = render(_affordable(settings))
    if hold:
        text = QUEUED.sub("drop", text)
    must("loading the nftables rules", "nft", "-f", "-", text=text)


def _affordable(settings: RuleSettings) -> RuleSettings:
    """Return *settings* without a pace where this kernel cannot keep one: no nft_limit."""
    if settings.pace == UNPACED:
        return settings
    text = f"""table ip {TABLE}_probe {{
    set clients {{
        type ipv4_addr
        flags dynamic,timeout
        timeout 1s
    }}
    chain probe {{
        update @clients {{ ip saddr limit rate over 1/second }} drop
    }}
}}
"""
    ran = run("nft", "-c", "-f", "-", text=text)
    return settings if ran is not None and not ran.code else replace(settings, pace=UNPACED)


def remove() -> None:
    """Delete the table, if nft is installed and the table there.

    Raises:
        AdapterError: refused.
    """
    if present():
        must("removing the nftables rules", "nft", "-f", "-", text=DELETE)


def present() -> bool:
    """Whether our table is in the kernel.

    Raises:
        AdapterError: nft is installed and refuses to say.
    """
    if run("nft", "--version") is None:
        return False
    tables = must("reading the nftables tables", "nft", "list", "tables", "ip")
    return f"table ip {TABLE}" in tables.splitlines()


def listing() -> list[dict[str, Any]]:
    """Return the objects of our table as nft lists them (libnftables-json(5)).

    Raises:
        AdapterError: nft is not installed, cannot print JSON or refuses.
    """
    text = must("reading the nftables rules", "nft", "-j", "list", "table", "ip", TABLE)
    objects: list[dict[str, Any]] = json.loads(text)["nftables"]
    return objects


def check(settings: RuleSettings) -> list[str]:
    """Return what is wrong with the table in place, one line each.

    Raises:
        AdapterError: it cannot be read.
    """
    if not present():
        return [f"table ip {TABLE}: is not there; {APPLY}"]
    objects = listing()
    chains = {o["chain"]["name"]: o["chain"] for o in objects if "chain" in o}
    rules: dict[str, list[Facts]] = {name: [] for name in chains}
    for o in objects:
        if "rule" in o:
            rules[o["rule"]["chain"]].append(facts(o["rule"]["expr"]))
    planned = plan(settings if {PACE, GRE_PACE} & chains.keys() else _affordable(settings))
    problems = [
        f"table ip {TABLE}: chain {name} is left from other settings; {APPLY}"
        for name in chains.keys() - {chain.name for chain in planned}
    ]
    for chain in planned:
        where = f"table ip {TABLE}, chain {chain.name}"
        there = chains.get(chain.name)
        if there is None:
            problems.append(f"{where}: is not there; {APPLY}")
        elif (there.get("hook", ""), there.get("prio", 0)) != (chain.hook, chain.number):
            problems.append(f"{where}: hooks in elsewhere; {APPLY}")
        elif [rule.facts for rule in chain.rules] != rules[chain.name]:
            problems.append(f"{where}: does not hold the rules of these settings; {APPLY}")
    return problems


def stray_drops() -> int | None:
    """Return how many packets of no call were dropped; None where no rule counts them.

    Raises:
        AdapterError: the rules cannot be read.
    """
    if not present():
        return None
    for o in listing():
        if o.get("rule", {}).get("chain") == "stray":
            for part in o["rule"]["expr"]:
                if "counter" in part:
                    packets: int = part["counter"]["packets"]
                    return packets
    return None


def probe_queue() -> str:
    """Return "" where nft can queue packets, else what it says; nothing is loaded."""
    text = f"table ip {TABLE}_probe {{\nchain probe {{\nqueue num 0\n}}\n}}\n"
    ran = run("nft", "-c", "-f", "-", text=text)
    if ran is None:
        return "nft is not installed"
    return ran.complaint.split(";")[0] or "refused" if ran.code else ""
