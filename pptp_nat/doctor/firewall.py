"""What the firewall's own rules make of a packet: walked through, without sending one.

A rule matches a packet surely, surely not, or maybe (it asks for an address, a
mark, a rate: things that a call may have).  A walk notes every end that the
packet may come to.  Where all of them are drops, no packet like this can pass.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pptp_nat.doctor.router import Router, Saved
from pptp_nat.linux.ruleset_iptables import JUDGED, PREFIX

MOST_STEPS: Final = 20_000  #: rules looked at in one walk; chains may call each other in rings
DEEPEST: Final = 16  #: jumps within jumps, as in the kernel (NFT_JUMP_STACK_SIZE)
PROTOCOLS: Final = {"gre": 47, "tcp": 6, "udp": 17, "icmp": 1, "ipv6-icmp": 58, "esp": 50,
                    "ah": 51, "sctp": 132, "udplite": 136}  # fmt: skip
OUR_TABLE: Final = "pptp_nat"


class Packet(NamedTuple):
    """A forwarded packet, as far as rules in general ask."""

    name: str  #: for people
    protocol: int
    state: str  #: conntrack's, lower case
    port: int = 0  #: TCP destination
    mark: int = 0  #: bits of the packet mark that are on; of others nothing is known
    arrives: frozenset[str] = frozenset()  #: one of these interfaces; empty: unknown
    leaves: frozenset[str] = frozenset()


class Match(enum.IntEnum):
    """Whether a rule matches."""

    NO = 0
    MAYBE = 1
    YES = 2


class Rule(NamedTuple):
    """One rule, judged for one packet."""

    match: Match
    verdict: str  #: accept, drop, return, go (to *target* and back), goto, or "" for none
    target: str
    named: bool  #: it names the packet's own protocol
    text: str


class Fate(NamedTuple):
    """One possible end of a packet."""

    drop: bool
    named: bool  #: by a rule that names the packet's protocol
    where: str  #: chain and rule


class Chain(NamedTuple):
    """A hook's first chain."""

    name: str  #: where: command and table, for people
    rules: Mapping[str, Sequence[Rule]]  #: by chain of the same table
    start: str
    policy: str  #: accept or drop


def fates(chain: Chain) -> list[Fate]:
    """Return all that may become of the packet, in the order of the rules; never nothing."""
    found: list[Fate] = []
    steps = iter(range(MOST_STEPS))

    def walk(name: str, depth: int) -> bool:
        """Return whether the packet may come back from the chain *name*."""
        back = False
        for rule in chain.rules.get(name, ()):
            if rule.match is Match.NO or next(steps, None) is None or depth > DEEPEST:
                continue
            ends = rule.match is Match.YES
            if rule.verdict in ("accept", "drop"):
                where = f"{chain.name} {name}: {rule.text}"
                found.append(Fate(rule.verdict == "drop", rule.named, where))
            elif rule.verdict == "go":
                ends &= not walk(rule.target, depth + 1)
            elif rule.verdict == "goto":
                back |= walk(rule.target, depth + 1)
            elif rule.verdict == "return":
                back = True
            else:
                ends = False
            if ends:
                return back
        return True

    if walk(chain.start, 0) or not found:
        where = f"{chain.name} {chain.start}: policy {chain.policy}"
        found.append(Fate(chain.policy == "drop", False, where))
    return found


def chains(router: Router, packet: Packet) -> Iterator[Chain]:
    """Yield every hook's chain that a forwarded *packet* crosses, whoever made it."""
    for saved in router.saved:
        yield from _iptables(saved, packet)
    yield from _nftables(router.nftables, packet)


# --- iptables -----------------------------------------------------------------------------------

_CROSSED: Final = {
    "raw": ("PREROUTING",),
    "mangle": ("PREROUTING", "FORWARD", "POSTROUTING"),
    "filter": ("FORWARD",),
}


def _iptables(saved: Saved, packet: Packet) -> Iterator[Chain]:
    for table, hooks in _CROSSED.items():
        tables = saved.tables.get(table)
        if tables is None:
            continue
        judged = {
            name: [_iptables_rule(rule, packet) for rule in rules]
            for name, rules in tables.items()
            if not name.startswith(PREFIX)
        }
        if JUDGED in tables:  # the one chain of ours that accepts: enhanced GRE, by its octets
            judged[JUDGED] = [Rule(Match.YES, "accept", "", True, "GRE of calls")]
        for hook in hooks:
            policy = saved.policies.get((table, hook), "ACCEPT").lower()
            yield Chain(f"{saved.command} {table}", judged, hook, policy)


def _iptables_rule(rule: str, packet: Packet) -> Rule:
    match, named = Match.YES, False
    try:
        words = shlex.split(rule)
    except ValueError:
        words, match = rule.split(), Match.MAYBE
    verdict, target = "", ""
    at = 0
    while at < len(words):
        denied = words[at] == "!"
        at += denied
        option, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if option in ("-j", "-g"):
            verdict, target = _iptables_verdict(option, value)
            break  # what follows are the target's own options
        if not option.startswith("-"):  # the second value of one such as --tcp-flags
            at += 1
            continue
        if option in {"-m", "--comment"}:
            at += 2
            continue
        at += 1 + (value[:1] not in ("-", "!"))  # some have no value
        fits = _iptables_fits(option, value, packet)
        if option in ("-p", "--protocol"):
            named = fits is Match.YES and not denied
        if denied:
            fits = Match(2 - fits)
        match = min(match, fits)
    return Rule(match, verdict, target, named, rule)


def _iptables_verdict(option: str, target: str) -> tuple[str, str]:
    if target == "ACCEPT" or target in ("NFQUEUE", "QUEUE"):
        return "accept", ""
    if target in ("DROP", "REJECT"):
        return "drop", ""
    if target == "RETURN":
        return "return", ""
    # A chain, or a target that lets packets go on: then there is no chain of that name.
    return ("goto" if option == "-g" else "go"), target


def _iptables_fits(option: str, value: str, packet: Packet) -> Match:
    match option:
        case "-p" | "--protocol":
            return _protocol(value, packet)
        case "--ctstate" | "--state":
            return _state(value.lower().split(","), packet)
        case "--dport" | "--destination-port" | "--dports" | "--destination-ports" | "--ports":
            return _port(value, packet)
        case "--mark":
            return _mark(value, packet)
        case "-i" | "--in-interface":
            return _interface(value, "+", packet.arrives)
        case "-o" | "--out-interface":
            return _interface(value, "+", packet.leaves)
        case _:
            return Match.MAYBE


def _mark(value: str, packet: Packet) -> Match:
    wanted, _, mask = value.partition("/")
    bits = int(mask or "0xffffffff", 0)
    return Match.YES if bits & packet.mark == bits == int(wanted, 0) else Match.MAYBE


def _protocol(value: object, packet: Packet) -> Match:
    text = str(value).lower()
    if text in ("all", "0"):
        return Match.YES
    number = PROTOCOLS.get(text, int(text) if text.isdigit() else None)
    if number is None:
        return Match.MAYBE
    return Match.YES if number == packet.protocol else Match.NO


def _state(states: Sequence[str], packet: Packet) -> Match:
    if packet.state in states:
        return Match.YES
    return Match.MAYBE if {"dnat", "snat"} & set(states) else Match.NO


def _port(listed: str, packet: Packet) -> Match:
    if packet.protocol != PROTOCOLS["tcp"]:
        return Match.NO
    for each in listed.split(","):
        first, _, last = each.replace("-", ":").partition(":")
        if not first.isdigit() or not (last or first).isdigit():
            return Match.MAYBE
        if int(first) <= packet.port <= int(last or first):
            return Match.YES
    return Match.NO


def _interface(name: str, wildcard: str, may_be: frozenset[str]) -> Match:
    if not may_be:
        return Match.MAYBE
    begins = name.removesuffix(wildcard)
    fit = [each == name or (begins != name and each.startswith(begins)) for each in may_be]
    if all(fit):
        return Match.YES
    return Match.MAYBE if any(fit) else Match.NO


# --- nftables -----------------------------------------------------------------------------------

_HOOKS: Final = ("prerouting", "forward", "postrouting")


def _nftables(objects: Sequence[Mapping[str, Any]], packet: Packet) -> Iterator[Chain]:
    tables: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    for each in objects:
        if "rule" in each:
            rule = each["rule"]
            of_table = tables.setdefault((rule["family"], rule["table"]), {})
            of_table.setdefault(rule["chain"], []).append(_nftables_rule(rule, packet))
    for each in objects:
        chain = each.get("chain", {})
        family, table = chain.get("family"), chain.get("table")
        if family not in ("ip", "inet") or table == OUR_TABLE:
            continue
        if chain.get("type") == "filter" and chain.get("hook") in _HOOKS:
            judged = tables.get((family, table), {})
            name = f"nftables {family} {table}"
            yield Chain(name, judged, chain["name"], chain.get("policy", "accept"))


def _nftables_rule(rule: Mapping[str, Any], packet: Packet) -> Rule:
    match, named = Match.YES, False
    verdict, target = "", ""
    for part in rule["expr"]:
        kind, value = next(iter(part.items()))
        if kind == "match":
            fits, names = _nftables_fits(value, packet)
            match, named = min(match, fits), named or names
        elif kind == "vmap":
            verdict, target, fits = _nftables_map(value, packet)
            match = min(match, fits)
        elif kind in _NFT_VERDICTS:
            verdict = _NFT_VERDICTS[kind]
            target = value["target"] if kind in ("jump", "goto") else ""
        elif kind in ("limit", "ct count", "quota", "connlimit", "xt"):
            match = min(match, Match.MAYBE)
    handle = f"handle {rule['handle']}" if "handle" in rule else "a rule"
    comment = f" ({rule['comment']})" if "comment" in rule else ""
    return Rule(match, verdict, target, named, f"{handle}{comment}")


_NFT_VERDICTS: Final = {
    "accept": "accept", "queue": "accept", "drop": "drop", "reject": "drop", "return": "return",
    "jump": "go", "goto": "goto",
}  # fmt: skip


def _nftables_fits(value: Mapping[str, Any], packet: Packet) -> tuple[Match, bool]:
    """Return whether a match fits, and whether it names the packet's protocol."""
    right, operator = value["right"], value.get("op", "==")
    denied = operator == "!="
    judge = _nftables_judge(value["left"], packet)
    if judge is None or operator not in ("==", "!=", "in"):
        return Match.MAYBE, False
    fits = max(map(judge, _elements(right)), default=Match.MAYBE)
    names = fits is Match.YES and not denied and _asks_protocol(value["left"])
    return (Match(2 - fits) if denied else fits), names


def _asks_protocol(left: object) -> bool:
    match left:
        case {"meta": {"key": "l4proto"}} | {"payload": {"protocol": "ip", "field": "protocol"}}:
            return True
        case _:
            return False


def _nftables_judge(  # noqa: PLR0911 - a table of what rules ask for
    left: object, packet: Packet
) -> Callable[[Any], Match] | None:
    if _asks_protocol(left):
        return lambda element: _protocol(element, packet)
    match left:
        case {"ct": {"key": "state"}}:
            return lambda element: _state([str(element)], packet)
        case {"payload": {"field": "dport", "protocol": "tcp" | "th"}}:
            return lambda element: _port(_range(element), packet)
        case {"payload": {"protocol": "tcp" | "udp" as protocol}}:
            return lambda _: Match(min(_protocol(protocol, packet), Match.MAYBE))
        case {"meta": {"key": "iifname" | "iif"}}:
            return lambda element: _interface(str(element), "*", packet.arrives)
        case {"meta": {"key": "oifname" | "oif"}}:
            return lambda element: _interface(str(element), "*", packet.leaves)
        case {"&": [{"meta": {"key": "mark"}}, int(bits)]} if bits & packet.mark == bits:
            return lambda element: Match(2 * (element == bits))
        case {"meta": {"key": "nfproto"}}:
            return lambda element: Match(2 * (element == "ipv4"))
        case _:
            return None


def _range(element: object) -> str:
    match element:
        case {"range": [first, last]}:
            return f"{first}:{last}"
        case _:
            return str(element)


def _elements(right: object) -> list[Any]:
    match right:
        case {"set": list(elements)}:
            return elements
        case list(elements):
            return elements
        case _:
            return [right]


def _nftables_map(value: Mapping[str, Any], packet: Packet) -> tuple[str, str, Match]:
    """Judge a verdict map: the verdict, where it leads, and whether it applies."""
    judge = _nftables_judge(value.get("key"), packet)
    data = value.get("data")
    if judge is None or not isinstance(data, dict) or not isinstance(data.get("set"), list):
        return "", "", Match.MAYBE
    for element in data["set"]:
        if isinstance(element, list) and len(element) == 2 and judge(element[0]) is Match.YES:
            kind, details = next(iter(element[1].items()))
            target = details["target"] if isinstance(details, dict) else ""
            return _NFT_VERDICTS.get(kind, ""), target, Match.YES
    return "", "", Match.NO
