"""A conntrack table's tunnels, calls and diagnoses as text for people and as JSON.

The shape of the JSON is told in ``docs/conntrack.schema.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from pptp_nat.analysis.conntrack_entries import GRE
from pptp_nat.analysis.model import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pptp_nat.analysis.conntrack_entries import Count, Host, ListedEntry, Way
    from pptp_nat.analysis.conntrack_rules import TableDiagnosis
    from pptp_nat.analysis.conntrack_tunnels import Leg, PptpTable, TableCall, Tunnel

MOST_TOLD: Final = 5  #: cases of one rule that text shows; JSON has all
MOST_EVIDENCE: Final = 6  #: entries under one diagnosis in text


def table_text(
    table: PptpTable, diagnoses: Sequence[TableDiagnosis], *, others: int = 0
) -> Iterator[str]:
    """Yield lines: the tunnels with their calls, then what is wrong with them.

    Args:
        table: what was found.
        diagnoses: about it.
        others: entries that have nothing to do with PPTP.
    """
    for tunnel in table.tunnels:
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
    for entry in tunnel.controls:
        words = [f"control {entry.original.source}:{entry.original.source_key}"]
        words.append(f"> {entry.original.destination}:{entry.original.destination_key}")
        words.append(entry.state or "?")
        words += _facts(entry)
        yield f"  {' '.join(words)}"
    for call in tunnel.calls:
        yield f"  call {_numbers(call)} by {call.by}: {_traffic(call)}"


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
        elif leg.packets is None:
            words.append(f"{arrow} not counted")
        else:
            words.append(f"{arrow} {leg.packets} packets {leg.octets} octets")
    words += dict.fromkeys(_facts(entry)[0] for entry in call.entries)
    words += ["UNREPLIED"] * any(entry.unreplied for entry in call.entries)
    return ", ".join(words)


def _facts(entry: ListedEntry) -> list[str]:
    """Return the time that is left, and what is unusual."""
    facts = ["? s left" if entry.seconds_left is None else f"{entry.seconds_left} s left"]
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
    controls = sum(len(tunnel.controls) for tunnel in table.tunnels)
    calls = sum(len(tunnel.calls) for tunnel in table.tunnels)
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
    yield from _separated(_tunnel_item(tunnel) for tunnel in table.tunnels)
    yield '], "orphans": ['
    yield from _separated(_tunnel_item(tunnel) for tunnel in table.orphans)
    yield '], "strangers": ['
    yield from _separated(
        {"arrives": each.arrives, "entry": entry_item(each.entry)} for each in table.strangers
    )
    yield '], "diagnoses": ['
    yield from _separated(map(_diagnosis_item, diagnoses))
    rest = json.dumps({"others": others + table.other_gre, "garbage": garbage})
    yield f"], {rest[1:]}\n"


def _separated(items: Iterable[dict[str, Any]]) -> Iterator[str]:
    before = ""
    for item in items:
        yield f"{before}\n{json.dumps(item)}"
        before = ","


def entry_item(entry: ListedEntry) -> dict[str, Any]:
    """Return *entry* as JSON has it."""
    return {
        "protocol": "gre" if entry.protocol == GRE else "tcp",
        "state": entry.state or None,
        "seconds_left": entry.seconds_left,
        "original": _way_item(entry.original, entry.carried),
        "reply": _way_item(entry.reply, entry.returned),
        "unreplied": entry.unreplied,
        "assured": entry.assured,
        "offloaded": entry.offloaded,
        "mark": entry.mark,
        "helper": entry.helper or None,
        "id": entry.identity,
        "started": entry.started,
        "line": entry.line or None,
    }


def _way_item(way: Way, count: Count | None) -> dict[str, Any]:
    packets, octets = (None, None) if count is None else count
    return {
        "src": way.source,
        "dst": way.destination,
        "srckey": way.source_key,
        "dstkey": way.destination_key,
        "packets": packets,
        "bytes": octets,
    }


def _tunnel_item(tunnel: Tunnel) -> dict[str, Any]:
    return {
        "originator": _host_item(tunnel.originator),
        "responder": _host_item(tunnel.responder),
        "control_connections": [entry_item(entry) for entry in tunnel.controls],
        "calls": [_call_item(tunnel, call) for call in tunnel.calls],
    }


def _host_item(host: Host) -> dict[str, Any]:
    return {"address": host.own, "seen_as": host.seen_as}


def _call_item(tunnel: Tunnel, call: TableCall) -> dict[str, Any]:
    ends = {
        name: {**_host_item(host), **_leg_item(leg)}
        for name, host, leg in (
            ("originator", tunnel.originator, call.to_originator),
            ("responder", tunnel.responder, call.to_responder),
        )
    }
    return {
        **ends,
        "by": call.by,
        "both_ways": call.both_ways,
        "entries": [entry_item(entry) for entry in call.entries],
    }


def _leg_item(leg: Leg | None) -> dict[str, Any]:
    if leg is None:
        return {"call_id": None, "seen_call_id": None, "received": None}
    received = None if leg.packets is None else {"packets": leg.packets, "bytes": leg.octets}
    return {"call_id": leg.leaving_key, "seen_call_id": leg.arriving_key, "received": received}


def _diagnosis_item(each: TableDiagnosis) -> dict[str, Any]:
    return {
        "rule": each.rule,
        "severity": each.severity.value,
        "summary": each.summary,
        "evidence": [entry_item(entry) for entry in each.evidence],
        "remedy": each.remedy or None,
    }
