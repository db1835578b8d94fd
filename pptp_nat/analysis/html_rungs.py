"""The rungs of a call's ladder, from one place of capture or from both sides of a NAT."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis.model import Analysis, Call, LadderEntry, Step
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp import Ppp, PppState
from pptp_nat.analysis.two_views import APART, moment, offset, paired
from pptp_nat.core.messages import Role
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from collections.abc import Iterator

_TO_SAY: Final = ("result", "error", "cause", "reason", "call_id", "peer_call_id")


class Reach(enum.Enum):
    """How far a packet was seen to come."""

    THROUGH = "through"  #: all the way, as far as anybody can tell
    TO_NAT = "to the NAT"  #: it went in and was not seen behind it
    FROM_NAT = "from the NAT"  #: it came out and was not seen before it


class Row(NamedTuple):
    """One rung, or with *sender* None a remark between the lines."""

    evidence: Evidence
    sender: Role | None
    words: str
    class_: str
    key: str = ""  #: what of it is the same on both sides of a NAT
    reach: Reach = Reach.THROUGH


def rungs_of(analysis: Analysis, inner: Call, outer: Call | None) -> list[Row]:
    """Return the rungs by time; *outer* is the same call seen behind the NAT."""
    if outer is None:
        return sorted(_rows(inner), key=moment)
    ahead = offset(inner, outer)
    rows: list[Row] = []
    for mine, theirs in paired(_packets(inner), _packets(outer), ahead, _name):
        if mine is not None:
            is_short = theirs is None and _is_covered(
                analysis, outer.file, mine.evidence.time + ahead
            )
            short = Reach.TO_NAT if mine.sender is Role.PNS else Reach.FROM_NAT
            rows.append(mine._replace(reach=short) if is_short else mine)
        elif theirs is not None:
            evidence = theirs.evidence._replace(time=theirs.evidence.time - ahead)
            is_short = _is_covered(analysis, inner.file, evidence.time)
            short = Reach.TO_NAT if theirs.sender is Role.PAC else Reach.FROM_NAT
            rows.append(theirs._replace(
                evidence=evidence, reach=short if is_short else Reach.THROUGH
            ))  # fmt: skip
    rows += [row for row in _rows(inner) if row.sender is None]  # remarks stand behind packets
    return sorted(rows, key=lambda row: row.evidence.time)


def _packets(call: Call) -> Iterator[Row]:
    return (row for row in _rows(call) if row.sender is not None)


def _name(row: Row) -> tuple[Role | None, str]:
    return row.sender, row.key


def _is_covered(analysis: Analysis, file: int, time: float) -> bool:
    """Whether a capture was running at *time*, by its own clock, and for a little longer."""
    first, last = analysis.files[file].first, analysis.files[file].last
    return first is not None and last is not None and first <= time <= last - APART


def _rows(call: Call) -> list[Row]:
    """Return all rungs of a call as seen at one place, in no order."""
    rows: list[Row] = []
    connection = call.connection
    if connection is not None:
        others = {
            number
            for other in connection.calls
            if other is not call
            for number in (other.pns.call_id, other.pac.call_id)
        } - {call.pns.call_id, call.pac.call_id}
        opener = Role.PNS if connection.ends[0].address == call.pns.address else Role.PAC
        for entry in connection.ladder:
            if not _is_about_others(entry, others):
                sender = opener if entry.sender is Party.ORIGINATOR else opener.other
                rows.append(
                    Row(entry.evidence, sender, _said(entry), entry.step.value, entry.title)
                )
    ppp = call.ppp if isinstance(call.ppp, Ppp) else Ppp()
    rows += [Row(rung.evidence, rung.sender, rung.said, "ppp", rung.said) for rung in ppp.log]
    logged = {rung.evidence for rung in ppp.log}
    for role, flow in call.gre.items():
        if flow.first not in logged:
            rows.append(Row(flow.first, role, "first GRE", "data", "first GRE"))
    opened = ppp.reached(PppState.OPENED)
    if opened is not None and len(call.gre) == 2:
        sent, heard = (call.gre[role].packets for role in (Role.PNS, Role.PAC))
        words = f"data from here on: {sent} packets out, {heard} back"
        rows.append(Row(opened, None, words, "remark"))
    return rows


def _is_about_others(entry: LadderEntry, others: set[int | None]) -> bool:
    """Whether a message names other calls of the connection, and not this one."""
    named = {entry.fields[name] for name in ("call_id", "peer_call_id") if name in entry.fields}
    return bool(named) and named <= others


def _said(entry: LadderEntry) -> str:
    """Return a rung's words."""
    if entry.step is not Step.MESSAGE:
        return entry.title
    fields = [
        f"{name.replace('_', ' ')} {entry.fields[name]}" for name in _TO_SAY if name in entry.fields
    ]
    return entry.title + (f" ({', '.join(fields)})" if fields else "")
