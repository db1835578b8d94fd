"""The rules in iptables' words.

Every rule of ours in one of the administrator's chains is a jump to a chain
named ``PPTP_NAT_...``, so that ours are known from theirs without a record.
The text makes its chains with ``-N``: loaded a second time it is refused as a
whole.  Two jumps in a row would queue a packet for ever, since the second one
meets it without the repeat mark, which the chain behind the first has cleared.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from pptp_nat.errors import AdapterError
from pptp_nat.linux import ruleset_bpf as bpf
from pptp_nat.linux import ruleset_pace
from pptp_nat.linux.ruleset_settings import UNPACED, Features, RuleSettings

PREFIX: Final = "PPTP_NAT_"
CONTROL: Final = "PPTP_NAT_CONTROL"
PORTS: Final = "PPTP_NAT_PORTS"
PACE: Final = "PPTP_NAT_PACE"
GRE_PACE: Final = "PPTP_NAT_GRE_PACE"
STRAY: Final = "PPTP_NAT_STRAY"
JUDGED: Final = "PPTP_NAT_JUDGED"
INBOUND: Final = "PPTP_NAT_GRE_IN"
OUTBOUND: Final = "PPTP_NAT_GRE_OUT"
KNOWN: Final = "PPTP_NAT_KNOWN"
PORTS_PER_MATCH: Final = 15  # linux/netfilter/xt_multiport.h, XT_MULTI_PORTS


class Rule(NamedTuple):
    """One rule and why it is there."""

    table: str
    chain: str
    match: str  #: everything between the chain's name and the target; may be empty
    target: str
    why: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rule without the command and the chain."""
        return f"{self.match} {self.target}".lstrip()

    @property
    def own(self) -> bool:
        """Whether it stands in a chain of ours."""
        return self.chain.startswith(PREFIX)


# fmt: off
JUMPS: Final = {
    "FORWARD": ("Control connections of the hosts behind this router, both directions.  Ahead of",
                "the usual ESTABLISHED rule, which would let them pass untranslated."),
    "INPUT": ("Control connections of this router itself: the numbers of its own calls are taken,",
              "so the daemon must know them."),
    "OUTPUT": (),
}
# fmt: on


def _program(name: str, program: bpf.Program) -> tuple[str, ...]:
    return (f"{name}, instruction by instruction:", *bpf.explained(program))


def _enhanced(features: Features) -> str | None:
    """Return the match of enhanced GRE, which is PPTP's; plain GRE is none of our business."""
    if features.bpf:
        return f'-m bpf --bytecode "{bpf.bytecode(bpf.ENHANCED_GRE)}"'
    if features.u32:
        return f'-m u32 --u32 "{bpf.ENHANCED_GRE_U32}"'
    return None


def _pace(settings: RuleSettings, features: Features) -> Iterator[Rule]:
    for bound in ruleset_pace.bounds(settings.pace) if features.hashlimit else ():
        yield Rule("filter", PACE, bound.iptables, "-j DROP", bound.why)


def _gre_pace(settings: RuleSettings, features: Features) -> Iterator[Rule]:
    wanted = ruleset_pace.gre_bounds(settings.pace, settings.datapath)
    for bound in wanted if features.hashlimit else ():
        yield Rule("raw", GRE_PACE, bound.iptables, "-j DROP", bound.why)


def _control(settings: RuleSettings, features: Features) -> Iterator[Rule]:
    mark = f"{settings.repeat_mark:#x}"
    paced = list(_pace(settings, features))
    yield from paced  # ahead of the jump to it
    if features.bpf:
        yield Rule(
            "filter", CONTROL,
            f'-m bpf --bytecode "{bpf.bytecode(bpf.PURE_ACKNOWLEDGEMENT)}"', "-j RETURN",
            ("1. Acknowledgements without payload carry nothing that we read: let them pass.",
             *_program("The program", bpf.PURE_ACKNOWLEDGEMENT)),
        )  # fmt: skip
    if paced:
        yield Rule(
            "filter", CONTROL, f"-m mark ! --mark {mark}/{mark}", f"-j {PACE}",
            ("2. A flood is dropped here, before it fills the queue for everybody.",),
        )  # fmt: skip
    if features.bpf:
        yield Rule(
            "filter", CONTROL,
            f'-m conntrack --ctstate NEW -m bpf --bytecode "{bpf.bytecode(bpf.EMPTY_SYN)}"',
            "-j RETURN",
            ("3. The SYN of a connection new to conntrack: its first message says all of it.",
             *_program("The program", bpf.EMPTY_SYN)),
        )  # fmt: skip
    yield from _workers(settings, features)
    yield Rule(
        "filter", CONTROL,
        f"-m mark ! --mark {mark}/{mark}", f"-j NFQUEUE --queue-num {settings.control_queue}",
        ("4. Everything else goes to the daemon once.  There is no --queue-bypass: while nobody",
         "   listens these packets are dropped, and TCP sends them again when somebody does."),
    )  # fmt: skip
    yield Rule(
        "filter", CONTROL, "", f"-j MARK --set-xmark 0x0/{mark}",
        ("5. The daemon has rewritten it, set the mark and sent it through this chain again",
         "   (NF_REPEAT).  Take the mark off and fall back to your rules: they judge it."),
    )  # fmt: skip
    lists = [
        ",".join(str(port) for port in settings.ports[start : start + PORTS_PER_MATCH])
        for start in range(0, len(settings.ports), PORTS_PER_MATCH)
    ]
    match, first = f"-p tcp -m multiport --ports {lists[0]}", CONTROL
    if len(lists) > 1:
        match, first = "-p tcp", PORTS
        for index, ports in enumerate(lists):
            yield Rule(
                "filter", PORTS, f"-p tcp -m multiport --ports {ports}", f"-g {CONTROL}",
                () if index else
                ("A match takes 15 ports.  Go, not jump: a packet with a port of one list at one",
                 "end and of another list at the other must not come back to the second rule."),
            )  # fmt: skip
    for chain, interface in (("FORWARD", ""), ("INPUT", "! -i lo "), ("OUTPUT", "! -o lo ")):
        yield Rule("filter", chain, f"{interface}{match}", f"-j {first}", JUMPS[chain])


def _workers(settings: RuleSettings, features: Features) -> Iterator[Rule]:
    """Yield the rules that bring every worker but the first its control connections."""
    if settings.workers > 1 and not features.bpf:
        raise AdapterError(
            "dividing control connections among workers in iptables", errno.EOPNOTSUPP,
            mend="load xt_bpf, or write control.workers = 1",
        )  # fmt: skip
    mark = f"{settings.repeat_mark:#x}"
    for index in range(1, settings.workers):
        program = bpf.share(index, settings.workers)
        yield Rule(
            "filter", CONTROL,
            f'-m mark ! --mark {mark}/{mark} -m bpf --bytecode "{bpf.bytecode(program)}"',
            f"-j NFQUEUE --queue-num {settings.control_queue + index}",
            () if index > 1 else
            ("Several workers: all packets between two hosts go to the same one, in both",
             "directions.  What is nobody else's is the first one's, in rule 4.",
             *_program("The program", program)),
        )  # fmt: skip


def _conntrack(features: Features) -> Iterator[Rule]:
    match = _enhanced(features)
    if match is None:
        return
    yield Rule(
        "filter", STRAY, match, "-j DROP",
        ("Enhanced GRE (version 1, protocol 0x880B) that belongs to no call.  Were it let pass,",
         "it would leave untranslated and its conntrack entry would stand in a call's way.",
         *(_program("The program", bpf.ENHANCED_GRE) if features.bpf else ())),
    )  # fmt: skip
    yield Rule(
        "filter", "FORWARD", "-p gre -m conntrack --ctstate NEW", f"-j {STRAY}",
        ("The GRE of a call matches the conntrack entries that the daemon made for it: it is",
         "ESTABLISHED and never comes here.  Plain GRE (version 0) goes on to your rules."),
    )  # fmt: skip


def _bpf(settings: RuleSettings, features: Features) -> Iterator[Rule]:
    marked = f"-m mark --mark {settings.repeat_mark:#x}/{settings.repeat_mark:#x}"
    yield Rule(
        "raw", KNOWN, "", "-j CT --notrack",
        ("What a call's GRE becomes, and ICMP errors about it, the programs at the devices write.",
         "Conntrack would translate the address once more, and the call ID never."),
    )  # fmt: skip
    yield Rule("raw", "PREROUTING", marked, f"-j {KNOWN}")
    yield Rule(
        "filter", JUDGED, "-m conntrack --ctstate UNTRACKED", "-j ACCEPT",
        ("GRE of a call, and ICMP errors about it: known to the programs at the devices, which",
         "mark it where it arrives and translate it."),
    )  # fmt: skip
    yield Rule("filter", "FORWARD", marked, f"-j {JUDGED}")
    match = _enhanced(features)
    if match is not None:
        yield Rule(
            "filter", STRAY, match, "-j DROP",
            ("Enhanced GRE (version 1, protocol 0x880B) that belongs to no call: it would leave",
             "untranslated.  Plain GRE (version 0) goes on to your rules.",
             *(_program("The program", bpf.ENHANCED_GRE) if features.bpf else ())),
        )  # fmt: skip
        yield Rule("filter", "FORWARD", "-p gre", f"-j {STRAY}")


def _queue(settings: RuleSettings, features: Features) -> Iterator[Rule]:
    match = _enhanced(features)
    if match is None:
        raise AdapterError(
            "matching enhanced GRE in iptables", errno.EOPNOTSUPP,
            mend="load xt_bpf or xt_u32, or use the data path conntrack",
        )  # fmt: skip
    if not features.addrtype and not settings.external_addresses:
        raise AdapterError(
            "matching this router's own addresses in iptables", errno.EOPNOTSUPP,
            mend="load xt_addrtype, or list your addresses in gre.external_addresses",
        )  # fmt: skip
    mark = f"{settings.repeat_mark:#x}"
    unmarked = f"-m mark ! --mark {mark}/{mark}"
    queue = f"-j NFQUEUE --queue-num {settings.gre_queue}"
    yield Rule(
        "filter", JUDGED, match, "-j ACCEPT",
        ("Enhanced GRE that conntrack is told to ignore.  The daemon judges each such packet,",
         "inbound before routing and outbound after it: only that of a call leaves this router."),
    )  # fmt: skip
    yield Rule("filter", "FORWARD", "-p gre -m conntrack --ctstate UNTRACKED", f"-j {JUDGED}")
    destinations = [socket.inet_ntoa(address) for address in settings.external_addresses]
    matches = ["-m addrtype --dst-type LOCAL"] if features.addrtype else []
    matches += [f"-d {destination}/32" for destination in destinations]
    paced = list(_gre_pace(settings, features))
    yield from paced  # ahead of the jump to it
    if paced:
        yield Rule(
            "raw", INBOUND, unmarked, f"-j {GRE_PACE}",
            ("A flood is dropped here, before it fills the queue for everybody.  What goes out",
             "comes past here too."),
        )  # fmt: skip
    for index, to_us in enumerate(matches):
        address_first = f"{to_us} {unmarked}" if to_us.startswith("-d") else f"{unmarked} {to_us}"
        yield Rule(
            "raw", INBOUND, address_first, queue,
            () if index else
            ("1. Inbound: to an address of ours.  The daemon writes the inside host's address and",
             "   call ID, sets the mark and repeats the chain.  The mark stays on until mangle",
             "   POSTROUTING, where it says that this packet is judged.  GRE of no call it accepts",
             "   without the mark: that stays tracked and meets your INPUT rules."),
        )  # fmt: skip
    yield Rule(
        "raw", INBOUND, "", "-j CT --notrack",
        ("2. The rest passes this router: no conntrack, which would translate the address alone.",
         "   So does a packet between two inside hosts, repeated without the mark once it has its",
         "   new destination; its source is rewritten on the way out."),
    )  # fmt: skip
    yield Rule("raw", "PREROUTING", f"-p gre {match}", f"-j {INBOUND}")
    yield Rule(
        "mangle", OUTBOUND, unmarked, queue,
        ("1. Outbound: the daemon writes the external address, sets the mark and repeats.",),
    )  # fmt: skip
    yield Rule(
        "mangle", OUTBOUND, "", f"-j MARK --set-xmark 0x0/{mark}",
        ("2. Judged, in either direction: take the mark off and fall back to your rules.",),
    )  # fmt: skip
    yield Rule(
        "mangle", "POSTROUTING", f"-p gre -m conntrack --ctstate UNTRACKED {match}",
        f"-j {OUTBOUND}",
    )  # fmt: skip


def plan(settings: RuleSettings, features: Features) -> list[Rule]:
    """Return the rules, table by table; jumps in the order in which they stand first.

    Raises:
        AdapterError: something that the data path cannot do without is missing.
    """
    rules = list(_control(settings, features))
    if settings.datapath == "queue":
        rules += _queue(settings, features)
    elif settings.datapath == "bpf":
        rules += _bpf(settings, features)
    else:
        rules += _conntrack(features)
    return rules


def grouped(rules: list[Rule]) -> dict[str, dict[str, list[Rule]]]:
    """Return *rules* by table and chain, our chains first: a jump needs its end."""
    tables: dict[str, dict[str, list[Rule]]] = {}
    for rule in sorted(rules, key=lambda rule: not rule.own):
        tables.setdefault(rule.table, {}).setdefault(rule.chain, []).append(rule)
    return tables


def body(chains: Mapping[str, list[Rule]]) -> Iterator[str]:
    """Yield the lines that make *chains* of one table, with comments."""
    for chain, rules in chains.items():
        yield ""
        if rules[0].own:
            yield f"-N {chain}"
        for place, rule in enumerate(rules, 1):
            yield from (f"# {line}" for line in rule.why)
            verb = f"-A {chain}" if rule.own else f"-I {chain} {place}"
            yield f"{verb} {rule.text}"


def render(settings: RuleSettings, features: Features) -> str:
    """Return the text for ``iptables-restore --noflush``.

    Raises:
        AdapterError: something that the data path cannot do without is missing.
    """
    lines = [
        f"# pptp-nat: rules for iptables, data path {settings.datapath}.",
        "# Load with:  iptables-restore --noflush < THIS FILE",
        "# Load it once, after your own rules: its jumps must stand first in their chains.  A",
        '# second time is refused ("Chain already exists").  rules/README.md says why each rule',
        "# stands where it stands, and how to take them away.",
    ]
    if not features.bpf:
        lines.append("# This kernel has no xt_bpf: what is empty is queued as well.")
        if _enhanced(features) is None:
            lines.append("# It has no xt_u32 either: GRE of no call is left to your rules.")
    if not features.hashlimit and settings.pace != UNPACED:
        lines.append("# It has no xt_hashlimit: a flood is not held back.")
    for table, chains in grouped(plan(settings, features)).items():
        lines += ["", f"*{table}", *body(chains), "", "COMMIT"]
    return "\n".join(lines) + "\n"
