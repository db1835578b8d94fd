"""A conntrack table's tunnels, calls and diagnoses as text for people and as JSON.

The shape of the JSON is told in ``docs/conntrack.schema.json``.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from pptp_nat.analysis.conntrack_entries import GRE, Host
from pptp_nat.analysis.conntrack_tunnels import PlainTunnel
from pptp_nat.analysis.severity import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pptp_nat.analysis.conntrack_entries import Count, ListedEntry, Way
    from pptp_nat.analysis.conntrack_rules import TableDiagnosis
    from pptp_nat.analysis.conntrack_tunnels import Leg, PptpTable, TableCall, Tunnel

MOST_TOLD: Final = 5  #: cases of one rule that text shows; JSON has all
MOST_EVIDENCE: Final = 6  #: entries under one diagnosis in text


def table_text(
    table: PptpTable, diagnoses: Sequence[TableDiagnosis], *, others: int = 0
) -> Iterator[str]:
    """Yield lines, some together: the tunnels with their calls, then what is wrong with them.

    Args:
        table: what was found.
        diagnoses: about it.
        others: entries that have nothing to do with PPTP.
    """
    for tunnel in table.tunnels:
        if isinstance(tunnel, PlainTunnel):
            yield _plain(tunnel)
        else:
            yield from _tunnel(tunnel, f"tunnel {tunnel}")
    for tunnel in table.orphans:
        yield from _tunnel(tunnel, f"GRE without control connection: {tunnel}")
    for stranger in table.strangers:
        way = "arrives for nobody" if stranger.arrives else "leaves otherwise than its tunnel"
        yield f"GRE that {way}"
        yield f"  {entry_line(stranger.entry)}"
    if table.tunnels or table.orphans or table.strangers:
        yield ""
    yield from _diagnoses(diagnoses)
    yield _summary(table, others)


def _tunnel(tunnel: Tunnel, title: str) -> Iterator[str]:
    yield title
    yield from map(_control, tunnel.controls)
    for call in tunnel.calls:
        yield f"  call {_numbers(call)} by {call.by}: {_traffic(call)}"


def _plain(tunnel: PlainTunnel) -> str:
    """Return what `_tunnel` yields of the same tunnel."""
    control, gre = tunnel
    [call] = tunnel.calls
    _, _, forth, back = call
    assert forth is not None
    assert back is not None
    one, other = gre[0].seconds_left, gre[-1].seconds_left
    lefts = _left(one) if one == other else f"{_left(one)}, {_left(other)}"
    own, seen = control.source, control.back_destination
    peer, peer_seen = control.back_source, control.destination
    return (
        f"tunnel {own if own == seen else Host(own, seen)} - "
        f"{peer if peer == peer_seen else Host(peer, peer_seen)}\n{_control(control)}\n"
        f"  call {_number(back)} - {_number(forth)} by {call[0]}: "
        f"> {_count(forth)}, < {_count(back)}, {lefts}"
    )


def _control(entry: ListedEntry) -> str:
    facts = _left(entry.seconds_left)
    if entry.mark or entry.unreplied or entry.offloaded or entry.helper:
        facts = " ".join(_facts(entry))
    return (
        f"  control {entry.source}:{entry.source_key} > "
        f"{entry.destination}:{entry.destination_key} {entry.state or '?'} {facts}"
    )


def _numbers(call: TableCall) -> str:
    """Return the call IDs: the originator's, as it is seen, and the responder's likewise."""
    originator, responder = call.to_originator, call.to_responder
    return f"{_number(originator)} - {_number(responder)}"


def _number(leg: Leg | None) -> str:
    """Return the number of the leg's receiver; with how its peer knows it, where that differs."""
    if leg is None:
        return "?"
    own = leg.arriving_key if leg.leaving_key is None else leg.leaving_key
    if own is None:
        return "-"
    return str(own) if own == leg.arriving_key else f"{own} (seen as {leg.arriving_key})"


def _traffic(call: TableCall) -> str:
    words = []
    for arrow, leg in ((">", call.to_responder), ("<", call.to_originator)):
        if leg is None:
            words.append(f"{arrow} {'another entry' if call.by == 'pptp-nat' else 'nothing'}")
        else:
            words.append(f"{arrow} {_count(leg)}")
    words += dict.fromkeys(_left(entry.seconds_left) for entry in call.entries)
    words += ["UNREPLIED"] * any(entry.unreplied for entry in call.entries)
    return ", ".join(words)


def _count(leg: Leg) -> str:
    return "not counted" if leg.packets is None else f"{leg.packets} packets {leg.octets} octets"


def _left(seconds: int | None) -> str:
    return "? s left" if seconds is None else f"{seconds} s left"


def _facts(entry: ListedEntry) -> list[str]:
    """Return the time that is left, and what is unusual."""
    facts = [_left(entry.seconds_left)]
    facts += ["UNREPLIED"] * (entry.unreplied and entry.protocol != GRE)
    facts += ["OFFLOADED"] * entry.offloaded
    facts += [f"helper={_clean(entry.helper)}"] * bool(entry.helper)
    facts += [f"mark={entry.mark:#x}"] * bool(entry.mark)
    return facts


def entry_line(entry: ListedEntry) -> str:
    """Return one entry as ``conntrack -L`` shows it, as far as it matters here."""
    gre = entry.protocol == GRE
    words = ["gre" if gre else "tcp"]
    words += [] if entry.seconds_left is None else [str(entry.seconds_left)]
    words += [entry.state] * bool(entry.state)
    words += _way(entry.original, entry.carried, gre=gre)
    words += ["[UNREPLIED]"] * entry.unreplied
    words += _way(entry.reply, entry.returned, gre=gre)
    words += ["[ASSURED]"] * entry.assured + ["[OFFLOAD]"] * entry.offloaded
    words += [f"mark={entry.mark}"] * bool(entry.mark)
    words += [f"helper={_clean(entry.helper)}"] * bool(entry.helper)
    line = " ".join(words)
    return f"{line}  (line {entry.line})" if entry.line else line


def _way(way: Way, count: Count | None, *, gre: bool) -> list[str]:
    words = [f"src={way.source}", f"dst={way.destination}"]
    if way.destination_key is not None and way.source_key is not None:
        if gre:
            words += [f"srckey={way.source_key:#x}", f"dstkey={way.destination_key:#x}"]
        else:
            words += [f"sport={way.source_key}", f"dport={way.destination_key}"]
    if count is not None:
        words += [f"packets={count.packets}", f"bytes={count.octets}"]
    return words


def _diagnoses(diagnoses: Sequence[TableDiagnosis]) -> Iterator[str]:
    counts = Counter(each.rule for each in diagnoses)
    told: Counter[str] = Counter()
    for each in diagnoses:
        told[each.rule] += 1
        if told[each.rule] > MOST_TOLD:
            continue
        yield f"{each.severity.value.upper()} {each.rule}: {each.summary}"
        if each.severity in (Severity.ERROR, Severity.WARNING):
            yield from (f"    {entry_line(entry)}" for entry in each.evidence[:MOST_EVIDENCE])
            if (more := len(each.evidence) - MOST_EVIDENCE) > 0:
                yield f"    and {more} more"
        if told[each.rule] == min(counts[each.rule], MOST_TOLD):
            if (more := counts[each.rule] - MOST_TOLD) > 0:
                yield f"  and {more} more of {each.rule}"
            if each.remedy:
                yield f"  mend: {each.remedy}"


def _summary(table: PptpTable, others: int) -> str:
    plain = len(table.tunnels) - len(table.examined)
    controls = plain + sum(len(tunnel.controls) for tunnel in table.examined)
    calls = plain + sum(len(tunnel.calls) for tunnel in table.examined)
    gre = sum(len(tunnel.gre) for tunnel in (*table.tunnels, *table.orphans))
    gre += len(table.strangers)
    others += table.other_gre
    return ", ".join(
        f"{count} {one if count == 1 else many}"
        for count, one, many in (
            (controls, "control connection", "control connections"),
            (gre, "GRE entry", "GRE entries"),
            (calls, "call or half of one", "calls or halves"),
            (others, "entry of other traffic", "entries of other traffic"),
        )
    )


def _clean(text: str) -> str:
    """Return *text* so that it does no harm to a terminal: a listing may hold anything."""
    return "".join(each if each.isprintable() else "?" for each in text[:32])


# --- JSON ---------------------------------------------------------------------------------------


def table_json(
    table: PptpTable,
    diagnoses: Iterable[TableDiagnosis],
    *,
    others: int = 0,
    garbage: int = 0,
) -> Iterator[str]:
    """Yield the pieces of one JSON object."""
    yield '{"tunnels": ['
    yield from _separated(map(_tunnel_json, table.tunnels))
    yield '], "orphans": ['
    yield from _separated(map(_tunnel_json, table.orphans))
    yield '], "strangers": ['
    yield from _separated(
        f'{{"arrives": {_quoted(each.arrives)}, "entry": {_entry_json(each.entry)}}}'
        for each in table.strangers
    )
    yield '], "diagnoses": ['
    yield from _separated(map(_diagnosis_json, diagnoses))
    rest = json.dumps({"others": others + table.other_gre, "garbage": garbage})
    yield f"], {rest[1:]}\n"


def _separated(items: Iterable[str]) -> Iterator[str]:
    before = "\n"
    for item in items:
        yield before + item
        before = ",\n"


# A hundred thousand entries are filled in here: dicts and their encoding would take ten times as
# long.
_HOST: Final = '"address": "%s", "seen_as": "%s"'
_BOOLEAN: Final = ("false", "true")

_NEITHER: Final = '"id": null, "started": null'
_quoted = functools.lru_cache(1024)(json.dumps)


def entry_item(entry: ListedEntry) -> dict[str, Any]:
    """Return *entry* as JSON has it."""
    item: dict[str, Any] = json.loads(_entry_json(entry))
    return item


def _entry_json(entry: ListedEntry) -> str:
    (
        protocol, source, destination, source_key, key,
        back_source, back_destination, back_source_key, back_key,
        state, left, unreplied, assured, offloaded,
        packets, octets, back_packets, back_octets, mark, helper, identity, started, line,
    ) = entry  # fmt: skip
    if key is None or packets is None or back_key is None or back_packets is None:
        original = _way_json(entry.original, packets, octets)
        reply = _way_json(entry.reply, back_packets, back_octets)
    else:
        original = (
            f'{{"src": "{source}", "dst": "{destination}", "srckey": {source_key}, '
            f'"dstkey": {key}, "packets": {packets}, "bytes": {octets}}}'
        )
        reply = (
            f'{{"src": "{back_source}", "dst": "{back_destination}", "srckey": {back_source_key}, '
            f'"dstkey": {back_key}, "packets": {back_packets}, "bytes": {back_octets}}}'
        )
    more = _NEITHER
    if identity is not None or started is not None:
        more = f'"id": {json.dumps(identity)}, "started": {json.dumps(started)}'
    return (
        f'{{"protocol": "{"gre" if protocol == GRE else "tcp"}", '
        f'"state": {_quoted(state) if state else "null"}, '
        f'"seconds_left": {"null" if left is None else left}, '
        f'"original": {original}, "reply": {reply}, '
        f'"unreplied": {_BOOLEAN[unreplied]}, "assured": {_BOOLEAN[assured]}, '
        f'"offloaded": {_BOOLEAN[offloaded]}, "mark": {mark}, '
        f'"helper": {_quoted(helper) if helper else "null"}, {more}, "line": {line or "null"}}}'
    )


def _way_json(way: Way, packets: int | None, octets: int | None) -> str:
    """Return a way that has no keys, or whose packets are not counted."""
    keys = f'"srckey": {_or_null(way.source_key)}, "dstkey": {_or_null(way.destination_key)}'
    counts = f'"packets": {_or_null(packets)}, "bytes": {_or_null(octets)}'
    return f'{{"src": "{way.source}", "dst": "{way.destination}", {keys}, {counts}}}'


def _tunnel_json(tunnel: Tunnel | PlainTunnel) -> str:
    originator, responder = _HOST % tunnel.originator, _HOST % tunnel.responder
    plain = isinstance(tunnel, PlainTunnel)
    calls = ", ".join(
        [_call_json(call, originator, responder, plain=plain) for call in tunnel.calls]
    )
    controls = ", ".join(map(_entry_json, tunnel.controls))
    return (
        f'{{"originator": {{{originator}}}, "responder": {{{responder}}}, '
        f'"control_connections": [{controls}], "calls": [{calls}]}}'
    )


def _call_json(call: TableCall, originator: str, responder: str, *, plain: bool) -> str:
    by, entries, forth, back = call
    both_ways = "true" if plain else _BOOLEAN[call.both_ways]
    return (
        f'{{"originator": {{{originator}, {_leg_json(back)}}}, '
        f'"responder": {{{responder}, {_leg_json(forth)}}}, "by": "{by}", '
        f'"both_ways": {both_ways}, '
        f'"entries": [{", ".join(map(_entry_json, entries))}]}}'
    )


def _leg_json(leg: Leg | None) -> str:
    _, arriving, leaving, packets, octets = leg or (None, None, None, None, None)
    received = "null" if packets is None else f'{{"packets": {packets}, "bytes": {octets}}}'
    own, seen = _or_null(leaving), _or_null(arriving)
    return f'"call_id": {own}, "seen_call_id": {seen}, "received": {received}'


def _or_null(number: int | None) -> int | str:
    return "null" if number is None else number


def _diagnosis_json(each: TableDiagnosis) -> str:
    item = {
        "rule": each.rule,
        "severity": each.severity.value,
        "summary": each.summary,
        "evidence": [entry_item(entry) for entry in each.evidence],
        "remedy": each.remedy or None,
    }
    return json.dumps(item)
