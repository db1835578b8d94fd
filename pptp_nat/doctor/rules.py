"""What the doctor looks at in the firewall's own rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pptp_nat.doctor.firewall import Fate, Packet, chains, fates
from pptp_nat.doctor.model import Judged, Judgement, Outcome, or_pass
from pptp_nat.doctor.openwrt import FIREWALL, offload_options
from pptp_nat.doctor.router import Router
from pptp_nat.linux import preflight_helper
from pptp_nat.linux import ruleset_iptables_kernel as iptables

TRANSLATING: Final = frozenset({"MASQUERADE", "SNAT", "NETMAP", "FULLCONENAT"})


def nat(router: Router) -> Judged:
    """Look for a rule that translates addresses."""
    for saved in router.saved:
        for chain, rules in saved.tables.get("nat", {}).items():
            for rule in rules:
                if iptables.target_of(rule) in TRANSLATING:
                    text = f"{saved.command} nat {chain}: {rule}"
                    yield Judgement("nat", Outcome.PASS, text)
                    return
    for each in router.nftables:
        rule = each.get("rule", {})
        if any(part.keys() & {"masquerade", "snat", "fullcone"} for part in rule.get("expr", ())):
            text = f"nftables {rule['family']} {rule['table']} {rule['chain']}"
            yield Judgement("nat", Outcome.PASS, text)
            return
    yield Judgement(
        "nat",
        Outcome.FAIL,
        "no rule translates addresses: inside hosts leave with their own",
        "masquerade what leaves for the world (iptables -t nat -A POSTROUTING -o WAN -j "
        "MASQUERADE); where the inside addresses are routed, there is nothing for pptp-nat to do",
    )


def flow_offload(router: Router) -> Judged:
    """Look for flow tables that take control connections."""
    ports = ", ".join(map(str, router.settings.ports))
    mend = f"exclude TCP port {ports} from it, or turn it off"
    places = [
        f"{command}, {where}"
        for command, tables, _ in router.saved
        for where in preflight_helper.offloaded_by_iptables(tables)
    ]
    found_by_nft = preflight_helper.offloaded_by_nftables(router.nftables)
    places += [f"nftables, {where}" for where in found_by_nft]
    found = [
        Judgement("flow_offload", Outcome.FAIL,
                  f"{where} hands TCP to a flow table: control messages go past our rules", mend)
        for where in places
    ]  # fmt: skip
    if not places:
        found = [
            Judgement("flow_offload", Outcome.WARN, f"/{FIREWALL}: {option}", mend)
            for option in offload_options(router.text(FIREWALL) or "")
        ]
    yield from or_pass(found, "flow_offload", "no flow table takes TCP past our rules")


def firewall_gre(router: Router) -> Judged:
    """Find out what the firewall makes of the GRE of a call."""
    state = "established" if router.settings.datapath == "conntrack" else "untracked"
    mend = (
        "take that rule away, or accept what conntrack knows before it, below our own rules: "
        "-p gre -m conntrack --ctstate ESTABLISHED -j ACCEPT"
        if state == "established"
        else "accept GRE that is untracked before that rule: rules/README.md says how"
    )
    mark = router.settings.repeat_mark if router.settings.datapath == "bpf" else 0
    packets = [
        each._replace(protocol=47, state=state, mark=mark) for each in _directions(router, "GRE")
    ]
    yield from or_pass(
        _filtered(router, packets, "firewall_gre", mend), "firewall_gre", "GRE of calls may pass"
    )


def firewall_control(router: Router) -> Judged:
    """Find out what the firewall makes of a control connection."""
    out, back = _directions(router, "a control connection")
    port = router.settings.ports[0]
    packets = [
        out._replace(protocol=6, port=port, state="new"),
        back._replace(protocol=6, state="established"),
    ]
    found = _filtered(
        router, packets, "firewall_control", f"accept TCP to port {port} before that rule"
    )
    yield from or_pass(found, "firewall_control", "control connections may pass")


def _directions(router: Router, what: str) -> tuple[Packet, Packet]:
    """Return a packet from the inside to the world, and its answer."""
    world = frozenset(router.wan)
    others = frozenset(router.interfaces) - world if world else world
    outward = Packet(f"{what} to the world", 0, "", arrives=others, leaves=world)
    inward = Packet(f"{what} from the world", 0, "", arrives=world, leaves=others)
    return outward, inward


def _filtered(router: Router, packets: Iterable[Packet], check: str, mend: str) -> Judged:
    told = set()
    for packet in packets:
        for chain in chains(router, packet):
            for outcome, fate in _suspects(fates(chain), known=packet.state != "new"):
                if fate.where not in told:
                    told.add(fate.where)
                    word = "drops" if outcome is Outcome.FAIL else "may drop"
                    yield Judgement(check, outcome, f"{fate.where} {word} {packet.name}", mend)


def _suspects(ends: list[Fate], *, known: bool) -> Iterator[tuple[Outcome, Fate]]:
    """Yield the ends that drop a packet: because all do, or by a rule that has it in mind.

    Where it is accepted under some condition and dropped otherwise, the condition
    may well hold for a new connection; a *known* one should not depend on any.
    """
    drops = [fate for fate in ends if fate.drop]
    if len(drops) == len(ends):
        yield Outcome.FAIL, next((fate for fate in drops if fate.named), drops[-1])
        return
    for fate in drops:
        if fate.named or (known and fate is ends[-1]):
            yield Outcome.WARN, fate
