"""What is wrong in a conntrack table: named rules, each with its evidence and its mend."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis.conntrack_entries import is_ours
from pptp_nat.analysis.conntrack_tunnels import EXPIRING, RENEWING, PlainTunnel
from pptp_nat.analysis.severity import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pptp_nat.analysis.conntrack_entries import Host, ListedEntry
    from pptp_nat.analysis.conntrack_tunnels import PptpTable, TableCall, Tunnel



class TableDiagnosis(NamedTuple):
    """What a rule found in a table."""

    rule: str  #: stable slug
    severity: Severity
    summary: str  #: one line, for people
    evidence: tuple[ListedEntry, ...]
    remedy: str


class Case(NamedTuple):
    """What a rule found, in words, and the entries that show it."""

    summary: str
    evidence: tuple[ListedEntry, ...]


class Rule(NamedTuple):
    """A named rule: what it looks for, how bad that is, and what to do."""

    slug: str
    severity: Severity
    find: Callable[[PptpTable], Iterable[Case]]
    remedy: str



def table_diagnoses(table: PptpTable) -> list[TableDiagnosis]:
    """Return what is wrong, the worst first; of a healthy table, that it is."""
    found = [
        TableDiagnosis(rule.slug, rule.severity, case.summary, case.evidence, rule.remedy)
        for rule in RULES
        for case in rule.find(table)
    ]
    order = [Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK]
    return sorted(found, key=lambda each: order.index(each.severity))


# --- the rules ----------------------------------------------------------------------------------


def _keys_untracked(table: PptpTable) -> Iterator[Case]:
    if table.unkeyed:
        yield Case(
            f"this kernel tracks GRE without its call IDs ({len(table.unkeyed)} entries): to it, "
            "all calls between two addresses are one",
            tuple(table.unkeyed),
        )


def _translated_twice(table: PptpTable) -> Iterator[Case]:
    for tunnel in table.suspects:
        helped = [entry for entry in tunnel.controls if entry.helper == "pptp"]
        ours = [entry for entry in tunnel.gre if is_ours(entry, table.entry_mark)]
        whole = [entry for entry in tunnel.gre if entry.both_ways]
        if ours and helped:
            yield Case(
                f"{tunnel}: the kernel's pptp helper is attached to a control connection that "
                "pptp-nat translates too: each call ID is changed twice",
                (*helped, *ours),
            )
        elif ours and whole:
            summary = f"{tunnel}: some GRE goes by pptp-nat, some by the kernel's helper"
            yield Case(summary, (*ours, *whole))


def _strangers(table: PptpTable) -> Iterator[tuple[Tunnel, ListedEntry, list[ListedEntry]]]:
    """Yield tunnels whose GRE goes out, and the packets from their peer that lead nowhere."""
    arriving: defaultdict[int, list[ListedEntry]] = defaultdict(list)
    for stranger in table.strangers:
        if stranger.arrives:
            for tunnel in stranger.tunnels:
                arriving[id(tunnel)].append(stranger.entry)
    for tunnel in table.suspects:
        if came := arriving.get(id(tunnel)):
            for call in tunnel.calls:
                if call.by == "nobody" and call.entries[0].unreplied and tunnel.open:
                    yield tunnel, call.entries[0], came


def _no_helper(table: PptpTable) -> Iterator[Case]:
    for tunnel, left, came in _strangers(table):
        keys = _keys(came)
        yield Case(
            f"{tunnel}: GRE goes both ways and nobody pairs it: what comes back with {keys} "
            f"ends at {came[0].destination}",
            (*tunnel.open, left, *came),
        )


def _keys_collide(table: PptpTable) -> Iterator[Case]:
    # Entries that translate: what arrives at an external address with one key is of one host.
    owners: defaultdict[tuple[str, str, int], dict[str, ListedEntry]] = defaultdict(dict)
    for tunnel in _perhaps_helped(table):
        for call in tunnel.calls:
            if call.by == "helper":  # conntrack itself sees to it for entries of one way
                _note_owner(tunnel, call, owners)
    for (sender, external, key), hosts in owners.items():
        if len(hosts) > 1:
            yield Case(
                f"GRE from {sender} to {external} with call ID {key} is for "
                f"{' and '.join(sorted(hosts))} at once",
                tuple(hosts.values()),
            )
    # Strangers: several hosts are answered, and all answers have the same key.
    answered: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    proof: defaultdict[tuple[str, str], dict[ListedEntry, None]] = defaultdict(dict)
    for _, left, came in _strangers(table):
        pair = came[0].source, came[0].destination
        answered[pair].add(left.sender.own)
        proof[pair].update(dict.fromkeys((left, *came)))
    for (sender, external), inside in answered.items():
        entries = proof[sender, external]
        keys = {e.destination_key for e in entries if e.source == sender}
        if len(inside) > len(keys):
            yield Case(
                f"{len(inside)} hosts ({', '.join(sorted(inside))}) send GRE to {sender} as "
                f"{external}, and all that comes back carries "
                f"{_keys(e for e in entries if e.source == sender)}: they have chosen "
                "the same call ID, or not all are answered",
                tuple(entries),
            )


def _perhaps_helped(table: PptpTable) -> Iterator[Tunnel]:
    """Yield all tunnels but those that are plainly carried by pptp-nat."""
    for tunnel in table.tunnels:
        if not isinstance(tunnel, PlainTunnel):
            yield tunnel
        elif tunnel.control.helper:
            yield tunnel.whole(table.entry_mark)
    yield from table.orphans


def _note_owner(
    tunnel: Tunnel,
    call: TableCall,
    owners: defaultdict[tuple[str, str, int], dict[str, ListedEntry]],
) -> None:
    for leg, host, peer in (
        (call.to_originator, tunnel.originator, tunnel.responder),
        (call.to_responder, tunnel.responder, tunnel.originator),
    ):
        if leg is not None and host.hidden and leg.arriving_key is not None:
            owners[peer.seen_as, host.seen_as, leg.arriving_key][host.own] = leg.entry


def _translation_missing(table: PptpTable) -> Iterator[Case]:
    paired = {id(entry) for _, _, came in _strangers(table) for entry in came}
    for entry, tunnels, arrives in table.strangers:
        live = [tunnel for tunnel in tunnels if tunnel.open]
        if not live or id(entry) in paired:
            continue
        key = entry.destination_key
        controls = tuple(control for tunnel in live for control in tunnel.open)
        if arrives:
            yield Case(
                f"GRE from {entry.source} to {entry.destination} with call ID "
                f"{key} is nobody's: it should go on to "
                f"{' or '.join(sorted({_hidden(tunnel).own for tunnel in live}))}",
                (entry, *controls),
            )
        else:
            yield Case(
                f"GRE from {entry.sender.own} to {entry.receiver.own} leaves as "
                f"{entry.sender.seen_as}, its control connection as {_hidden(live[0]).seen_as}",
                (entry, *controls),
            )


def _offloaded(table: PptpTable) -> Iterator[Case]:
    for tunnel in table.suspects:
        if past := tuple(entry for entry in tunnel.open if entry.offloaded):
            yield Case(f"{tunnel}: a flow table carries it past all rules", past)


def _unanswered(table: PptpTable) -> Iterator[Case]:
    for tunnel in table.suspects:
        for entry in tunnel.controls:
            if entry.state.startswith("SYN_SENT") and entry.unreplied:
                yield Case(
                    f"{tunnel}: nothing answers on {entry.destination} port "
                    f"{entry.destination_key}",
                    (entry,),
                )


def _one_way(table: PptpTable) -> Iterator[Case]:
    answered = {id(left) for _, left, _ in _strangers(table)}
    for tunnel in table.suspects:
        if not tunnel.open:
            continue
        for call in tunnel.calls:
            if id(call.entries[0]) in answered or call.both_ways:
                continue
            if (way := _only_way(tunnel, call)) is not None:
                yield Case(f"{tunnel}: GRE goes from {way[0]} to {way[1]} only", call.entries)


def _only_way(tunnel: Tunnel, call: TableCall) -> tuple[str, str] | None:
    """Return who sends and who is silent; None where that cannot be told."""
    forth, back = call.to_responder, call.to_originator
    hosts = tunnel.originator.own, tunnel.responder.own
    if forth is not None and back is not None:
        if forth.packets and back.packets == 0:
            return hosts
        return (hosts[1], hosts[0]) if back.packets and forth.packets == 0 else None
    if not any(entry.unreplied for entry in call.entries):
        return None  # a half of pptp-nat's, whose other half is there
    return hosts if forth is not None else (hosts[1], hosts[0])


def _expiring(table: PptpTable) -> Iterator[Case]:
    for tunnel in table.examined:
        if not tunnel.open:
            continue
        for call in tunnel.calls:
            for entry in call.entries:
                left = entry.seconds_left
                if left is None or entry.unreplied:
                    continue
                if call.by == "pptp-nat" and left < RENEWING:
                    yield Case(f"{tunnel}: an entry of pptp-nat ends in {left} s", (entry,))
                elif call.by != "pptp-nat" and entry.assured and left < EXPIRING:
                    yield Case(
                        f"{tunnel}: the GRE entry ends in {left} s if no packet comes, its "
                        "control connection goes on",
                        (entry, *tunnel.open),
                    )


def _helped_without_gre(table: PptpTable) -> Iterator[Case]:
    for tunnel in table.suspects:
        helped = tuple(e for e in tunnel.open if e.helper == "pptp" and e.state == "ESTABLISHED")
        if helped and not tunnel.gre:
            yield Case(f"{tunnel}: the control connection is up and has no GRE entry", helped)


def _control_gone(table: PptpTable) -> Iterator[Case]:
    closed = [tunnel for tunnel in table.suspects if not tunnel.open and tunnel.gre]
    for tunnel in (*table.orphans, *closed):
        by = "pptp-nat" if any(call.by == "pptp-nat" for call in tunnel.calls) else "GRE"
        count = "1 entry" if len(tunnel.gre) == 1 else f"{len(tunnel.gre)} entries"
        yield Case(f"{tunnel}: {count} of {by}, no open control connection", tuple(tunnel.gre))


def _healthy(table: PptpTable) -> Iterator[Case]:
    good = sum(tunnel.carried for tunnel in table.examined if tunnel.open)
    good += len(table.tunnels) - len(table.examined)  # a plain tunnel has one call, and that is
    if good:
        yield Case(f"{good} {'call has' if good == 1 else 'calls have'} GRE both ways", ())


def _keys(entries: Iterable[ListedEntry]) -> str:
    keys = sorted({entry.destination_key or 0 for entry in entries})
    return f"call ID {', '.join(map(str, keys))}"


def _hidden(tunnel: Tunnel) -> Host:
    """Return the host behind the NAT; the responder where nobody is."""
    return tunnel.originator if tunnel.originator.hidden else tunnel.responder


_ERROR, _WARNING = Severity.ERROR, Severity.WARNING
RULES: Final = (
    Rule("keys_untracked", _ERROR, _keys_untracked,
         "the kernel lacks CONFIG_NF_CT_PROTO_GRE: run pptp-nat with the data path queue, or take "
         "a kernel that has it"),
    Rule("translated_twice", _ERROR, _translated_twice,
         "take the kernel's helper away (pptp-nat doctor says where it is assigned), then end the "
         "connection so that it starts anew: conntrack -D -p tcp --dport 1723"),
    Rule("no_helper", _ERROR, _no_helper,
         "nothing on this router follows the control connection: run pptp-nat"),
    Rule("keys_collide", _ERROR, _keys_collide,
         "only a translator of call IDs can tell them apart: run pptp-nat; with it running, end "
         "both calls and dial again"),
    Rule("translation_missing", _ERROR, _translation_missing,
         "run pptp-nat; if it runs, look at its log and delete the entry, which stands in the "
         "call's way"),
    Rule("control_offloaded", _ERROR, _offloaded,
         "exclude TCP port 1723 from flow offloading, or turn it off (OpenWrt: option "
         "flow_offloading 0 in /etc/config/firewall)"),
    Rule("control_unanswered", _WARNING, _unanswered,
         "pptp-nat doctor --server ADDRESS tries it from here and says where it stops"),
    Rule("gre_one_way", _WARNING, _one_way,
         "look on the silent side: a firewall or provider that drops IP protocol 47, or a host "
         "that has given up"),
    Rule("gre_expiring", _WARNING, _expiring,
         "the kernel's helper never makes an entry a second time, the call would be dead: raise "
         "net.netfilter.nf_conntrack_gre_timeout and _gre_timeout_stream above the keep-alive of "
         "PPP; an entry of pptp-nat is renewed while it runs"),
    Rule("gre_absent", _WARNING, _helped_without_gre,
         "either no call was placed yet, or its entry has expired (idle for "
         "nf_conntrack_gre_timeout_stream): the kernel's helper makes none again, dial anew"),
    Rule("control_gone", Severity.NOTE, _control_gone,
         "the calls are over: pptp-nat removes its entries after timers.closing_grace, others "
         "expire by themselves"),
    Rule("calls_healthy", Severity.OK, _healthy, ""),
)  # fmt: skip
