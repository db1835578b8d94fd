"""The rules in the kernel, by way of iptables: loaded, looked for and taken away.

What is there is read with ``iptables-save`` and changed with one
``iptables-restore --noflush``, each table as a whole or not at all.  Whether a
rule is there is a question to ``iptables -C``: versions print rules differently.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pptp_nat.errors import AdapterError
from pptp_nat.linux import ruleset_bpf as bpf
from pptp_nat.linux.ruleset_iptables import INBOUND, PREFIX, STRAY, Rule, body, grouped, plan
from pptp_nat.linux.ruleset_settings import APPLY, Features, RuleSettings, must, run

PROBE: Final = "PPTP_NAT_PROBE"
PACE_PROBE: Final = (
    "-m hashlimit --hashlimit-above 1/second --hashlimit-mode srcip --hashlimit-name pptp_probe "
    "-j RETURN"
)
QUOTED: Final = re.compile(r'"(?:\\.|[^"\\])*"')
QUEUED: Final = re.compile(r"-j NFQUEUE .*")
TARGET: Final = re.compile(r"(?:^| )-[jg] (\S+)")
COUNTS: Final = re.compile(r"\[(\d+):\d+\] -A (\S+) (.*)")
LEGACY_TABLES: Final = Path("/proc/self/net/ip_tables_names")

Saved = Mapping[str, Mapping[str, list[str]]]  #: table -> chain -> rules, as iptables prints them


def parse(saved: str) -> Saved:
    """Return what ``iptables-save`` printed."""
    tables: dict[str, dict[str, list[str]]] = {}
    chains: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            chains.setdefault(line[1:].split(" ", 1)[0], [])
        elif line.startswith("-A "):
            _, chain, *rest = line.split(" ", 2)
            chains.setdefault(chain, []).append(rest[0] if rest else "")
    return tables


def load(command: str = "iptables") -> Saved:
    """Return the rules that are in the kernel now; tables that nobody uses are left asleep.

    Raises:
        AdapterError: the command is not installed or refuses.
    """
    return parse(must("reading the iptables rules", f"{command}-save"))


def target_of(rule: str) -> str:
    """Return where *rule*, as iptables prints it, sends a packet; "" where it only counts."""
    found = TARGET.search(QUOTED.sub("", rule))  # a comment may hold anything
    return found[1] if found else ""


def jumps(saved: Saved) -> Iterator[tuple[str, str, str]]:
    """Yield table, chain and rule of every jump from a chain that is not ours to one of ours."""
    for table, chains in saved.items():
        for chain, rules in chains.items():
            if chain.startswith(PREFIX):
                continue
            yield from ((table, chain, r) for r in rules if target_of(r).startswith(PREFIX))


def _removal(saved: Saved) -> dict[str, list[str]]:
    """Return by table the lines that take away what is ours in *saved*."""
    lines: dict[str, list[str]] = {}
    for table, chain, rule in jumps(saved):
        lines.setdefault(table, []).append(f"-D {chain} {rule}")
    for table, chains in saved.items():
        ours = [chain for chain in chains if chain.startswith(PREFIX)]
        if ours:
            lines.setdefault(table, []).extend(f"-F {chain}" for chain in ours)
            lines[table].extend(f"-X {chain}" for chain in ours)
    return lines


def _return(saved: Saved) -> dict[str, list[str]]:
    """Return by table the lines that bring back what is ours in *saved*, where it stood."""
    lines: dict[str, list[str]] = {}
    for table, chains in saved.items():
        ours = [chain for chain in chains if chain.startswith(PREFIX)]
        made = [f"-N {chain}" for chain in ours]
        made += (f"-A {chain} {rule}" for chain in ours for rule in chains[chain])
        made += (
            f"-I {chain} {place} {rule}"
            for chain, rules in chains.items() if chain not in ours
            for place, rule in enumerate(rules, 1) if target_of(rule).startswith(PREFIX)
        )  # fmt: skip
        if made:
            lines[table] = made
    return lines


def _restore(doing: str, tables: Mapping[str, list[str]], command: str) -> None:
    """Have each table changed as a whole or not at all."""
    text = "".join("\n".join([f"*{t}", *lines, "COMMIT", ""]) for t, lines in tables.items())
    must(doing, f"{command}-restore", "-w", "--noflush", text=text)


def _joined(*changes: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return *changes* as one, in their order within each table."""
    tables: dict[str, list[str]] = {}
    for change in changes:
        for table, lines in change.items():
            tables.setdefault(table, []).extend(lines)
    return tables


def apply(settings: RuleSettings, features: Features, *, hold: bool = False) -> None:
    """Put the rules in place and first in their chains, whatever of ours was there before.

    *hold*: what they are to queue they drop.

    Raises:
        AdapterError: refused; then what of ours was there before is there still.
    """
    made = {
        table: [QUEUED.sub("-j DROP", line) if hold else line for line in body(chains)]
        for table, chains in grouped(plan(settings, features)).items()
    }
    before = load()
    try:
        _restore("loading the iptables rules", _joined(_removal(before), made), "iptables")
    except AdapterError:  # tables are loaded one by one: half of them would be worse than none
        back = _joined(_removal(load()), _return(before))
        _restore("bringing the former iptables rules back", back, "iptables")
        raise


def remove(commands: Sequence[str] | None = None) -> None:
    """Take away whatever is ours, with *commands* or every iptables that this router has rules of.

    Raises:
        AdapterError: refused.
    """
    for command in variants() if commands is None else commands:
        if lines := _removal(load(command)):
            _restore("removing the iptables rules", lines, command)


def holders(other_than: str = "") -> list[str]:
    """Return the kinds of iptables that hold rules of ours, each by one command.

    *other_than*: a command whose own kind is left out.

    Raises:
        AdapterError: the rules cannot be read.
    """
    kinds = {_kind(command): command for command in reversed(variants())}
    left_out = _kind(other_than) if other_than else None
    return [
        command for kind, command in kinds.items() if kind != left_out and _removal(load(command))
    ]


def _kind(command: str) -> str:
    """Return which part of the kernel *command* speaks to, as it says: nf_tables or legacy."""
    ran = run(f"{command}-restore", "--version")
    # Before version 1.8 there was only one kind, and it said nothing.
    return "nf_tables" if ran is not None and "nf_tables" in ran.output else "legacy"


def variants() -> list[str]:
    """Return the iptables commands whose rules are worth a look; often one is an alias.

    The legacy one is asked only where it has tables already: asking makes them.
    """
    try:
        legacy = LEGACY_TABLES.read_text().split()
    except OSError:
        legacy = []
    names = ["iptables", "iptables-nft", *(["iptables-legacy"] if legacy else [])]
    return [name for name in names if run(f"{name}-restore", "--version") is not None]


def _seen_features(saved: Saved) -> Features:
    """Return the features that the rules in place were rendered with."""
    ours = "\n".join(
        rule for chains in saved.values() for chain, rules in chains.items() for rule in rules
        if chain.startswith(PREFIX) or target_of(rule).startswith(PREFIX)
    )  # fmt: skip
    return Features(
        hashlimit="-m hashlimit" in ours or _accepts(PACE_PROBE),
        bpf="-m bpf" in ours or "-m u32" not in ours,
        addrtype="-m addrtype" in ours or INBOUND not in ours,
    )


def check(settings: RuleSettings) -> list[str]:
    """Return what is wrong with the rules in place, one line each.

    Raises:
        AdapterError: they cannot be read.
    """
    saved = load()
    planned = grouped(plan(settings, _seen_features(saved)))
    problems: list[str] = []
    for table, chains in planned.items():
        for chain, rules in chains.items():
            there = saved.get(table, {}).get(chain, [])
            judge = _check_own if rules[0].own else _check_jumps
            problems += judge(rules, there)
    for table, chain, rule in jumps(saved):
        if chain not in planned.get(table, {}):
            problems.append(f"{table} {chain}: left from other settings: {rule}; {APPLY}")
    return problems


def _missing(rule: Rule) -> bool:
    """Ask iptables itself: what it prints differs from version to version."""
    ran = run("iptables", "-w", "-t", rule.table, "-C", rule.chain, *shlex.split(rule.text))
    return ran is None or ran.code != 0


def _check_own(rules: list[Rule], there: list[str]) -> list[str]:
    where = f"{rules[0].table} {rules[0].chain}"
    if not there:
        return [f"{where}: is not there; {APPLY}"]
    expected = [rule.target.split()[1] for rule in rules]
    if expected != [target_of(rule) for rule in there] or any(map(_missing, rules)):
        return [f"{where}: does not hold the rules of these settings; {APPLY}"]
    return []


def _check_jumps(rules: list[Rule], there: list[str]) -> list[str]:
    where = f"{rules[0].table} {rules[0].chain}"
    problems = [f"{where}: misses {rule.text}; {APPLY}" for rule in rules if _missing(rule)]
    ours = sum(target_of(rule).startswith(PREFIX) for rule in there)
    if ours > len(rules):
        problems.append(
            f"{where}: leads {ours} times to our chains and should {len(rules)} times: packets "
            f"would be queued without end; {APPLY}"
        )
    expected = [rule.target.split()[1] for rule in rules]
    first = [target_of(rule) for rule in there[: len(rules)]]
    if not problems and first != expected:
        ahead = next(r for r in there if not target_of(r).startswith(PREFIX))
        problems.append(f"{where}: our rules must come first, but ahead stands {ahead}; {APPLY}")
    return problems


def stray_drops() -> int | None:
    """Return how many packets of no call were dropped; None where no rule counts them.

    Raises:
        AdapterError: the rules cannot be read.
    """
    for line in must("reading the iptables counters", "iptables-save", "-c").splitlines():
        found = COUNTS.fullmatch(line)
        if found and found[2] == STRAY and target_of(found[3]) == "DROP":
            return int(found[1])
    return None


def probe() -> Features:
    """Return what iptables can do here, by loading rules into a chain that no packet enters."""
    gre = bpf.bytecode(bpf.ENHANCED_GRE)
    return Features(
        nfqueue=_accepts("-j NFQUEUE --queue-num 0"),
        bpf=_accepts(f'-m bpf --bytecode "{gre}" -j RETURN'),
        u32=_accepts(f'-m u32 --u32 "{bpf.ENHANCED_GRE_U32}" -j RETURN'),
        addrtype=_accepts("-m addrtype --dst-type LOCAL -j RETURN"),
        hashlimit=_accepts(PACE_PROBE),
    )


def _accepts(rule: str) -> bool:
    """Whether the kernel takes *rule*.  Two transactions: it never sees what one of them undoes."""
    chain = f"-F {PROBE}\n-X {PROBE}\nCOMMIT\n"
    restore = ("iptables-restore", "-w", "--noflush")
    there = run(*restore, text=f"*filter\n:{PROBE} - [0:0]\n-A {PROBE} {rule}\nCOMMIT\n")
    if there is None or there.code:
        return False
    run(*restore, text=f"*filter\n{chain}")
    return True
