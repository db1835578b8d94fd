"""The ladder of one call: control messages, PPP, and where data flowed, by time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

from pptp_nat.analysis.html_elements import Markup, label, line, picture, shortened, tag
from pptp_nat.analysis.model import Analysis, Call, LadderEntry, Severity, Step
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp import Ppp, PppState
from pptp_nat.analysis.rule import dotted, seconds
from pptp_nat.core.messages import Role
from pptp_nat.core.tuples import Party

_WIDTH: Final = 360
_LEFT, _RIGHT = 50, 350  #: the two lifelines
_STEP: Final = 24
_TOP: Final = 34
_PAUSE: Final = 1.0  #: seconds without a rung that get a gap of their own
_HEAD, _TAIL = 44, 20  #: rungs that are drawn of a long ladder
_CHARACTERS: Final = 48
_RUN: Final = 4  #: rungs with the same words that are told in short
_TO_SAY: Final = ("result", "error", "cause", "reason", "call_id", "peer_call_id")


class Row(NamedTuple):
    """One rung, or with *sender* None a remark between the lines."""

    evidence: Evidence
    sender: Role | None
    words: str
    class_: str


def ladder(analysis: Analysis, call: Call) -> Markup:
    """Draw the ladder of *call*; packets that prove something bad are in red."""
    bad = {
        (place.file, place.number)
        for diagnosis in analysis.diagnoses
        if diagnosis.severity in (Severity.ERROR, Severity.WARNING)
        and (diagnosis.call == call.id or diagnosis.connection == _connection(call))
        for place in diagnosis.evidence
        if place != call.connected or call.reply is None or not call.reply.agrees
    }
    rows = sorted(rows_of(call), key=lambda row: (row.evidence.time, row.evidence.number))
    rows = list(_without_repeats(rows))
    left_out = max(len(rows) - _HEAD - _TAIL, 0)
    if left_out:
        note = Row(rows[_HEAD].evidence, None, f"{left_out} more are not drawn", "remark")
        rows = [*rows[:_HEAD], note, *rows[-_TAIL:]]
    if not rows:
        return Markup("")
    start, before, y = rows[0].evidence.time, rows[0].evidence.time, _TOP
    parts: list[Markup] = []
    for row in rows:
        pause = row.evidence.time - before
        if pause >= _PAUSE:
            parts.append(label(_LEFT - 4, y + 12, "⋮", "tick", text_anchor="end"))
            parts.append(label(_LEFT + 6, y + 12, f"{seconds(pause)} later", "pause"))
            y += 18
        y += _STEP
        before = row.evidence.time
        is_bad = (row.evidence.file, row.evidence.number) in bad
        parts.append(_rung(row, y, row.evidence.time - start, is_bad=is_bad))
    height = y + 14
    heads = [
        label(2, 12, f"client {dotted(call.pns.address)}", "head"),
        label(_WIDTH - 4, 12, f"server {dotted(call.pac.address)}", "head", text_anchor="end"),
        line(_LEFT, 20, _LEFT, height, "life"),
        line(_RIGHT, 20, _RIGHT, height, "life"),
    ]
    return picture(_WIDTH, height, "Ladder of control messages and PPP", *heads, *parts,
                   class_="ladder")  # fmt: skip


def _without_repeats(rows: list[Row]) -> Iterator[Row]:
    """Yield *rows*, of a run of the same words only the first, the last and how many between."""
    for _, group in groupby(rows, key=lambda row: (row.sender, row.words)):
        run = list(group)
        if len(run) < _RUN:
            yield from run
        else:
            note = f"{len(run) - 2} more of these"
            yield from (run[0], Row(run[1].evidence, None, note, "remark"), run[-1])


def _connection(call: Call) -> int | None:
    return call.connection.id if call.connection else None


def rows_of(call: Call) -> list[Row]:
    """Return all rungs of a call, in no order."""
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
                rows.append(Row(entry.evidence, sender, _said(entry), entry.step.value))
    ppp = call.ppp if isinstance(call.ppp, Ppp) else Ppp()
    rows += [Row(rung.evidence, rung.sender, rung.said, "ppp") for rung in ppp.log]
    logged = {rung.evidence for rung in ppp.log}
    for role, flow in call.gre.items():
        if flow.first not in logged:
            rows.append(Row(flow.first, role, "first GRE", "data"))
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


def _rung(row: Row, y: float, at: float, *, is_bad: bool) -> Markup:
    """Draw one rung with its base at *y*; *at* is its time in seconds."""
    words = shortened(row.words, _CHARACTERS)
    if row.sender is None:
        return label(_LEFT + 6, y - 3, words, "remark")
    time = label(_LEFT - 6, y + 3, f"{at:.2f}" if at < 1000 else f"{at:.0f}", "tick",
                 text_anchor="end")  # fmt: skip
    begin, end, tip, anchor, text_at = (
        (_LEFT, _RIGHT, -6, "start", _LEFT + 6)
        if row.sender is Role.PNS
        else (_RIGHT, _LEFT, 6, "end", _RIGHT - 6)
    )
    arrow = tag("path", d=f"M{begin} {y}H{end}m{tip} -3.5L{end} {y}L{end + tip} {y + 3.5}")
    said = label(text_at, y - 4, words, text_anchor=anchor)
    number = tag("title", f"packet {row.evidence.number}: {row.words}")
    class_ = f"rung {row.class_}{' bad' if is_bad else ''}"
    return tag("g", number, arrow, said, time, class_=class_)
