"""The ladder of one call: control messages, PPP, and where data flowed, by time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from pptp_nat.analysis.html_elements import Markup, label, line, picture, shortened, tag
from pptp_nat.analysis.html_rungs import Reach, Row, rungs_of
from pptp_nat.analysis.html_topology import views
from pptp_nat.analysis.model import Analysis, Call
from pptp_nat.analysis.rule import dotted, seconds
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_WIDTH: Final = 360
_LEFT, _NAT, _RIGHT = 50, 200, 350  #: the lifelines
_STEP: Final = 24
_TOP: Final = 34
_PAUSE: Final = 1.0  #: seconds without a rung that get a gap of their own
_HEAD, _TAIL = 44, 20  #: rungs that are drawn of a long ladder
_CHARACTERS: Final = 48
_RUN: Final = 4  #: rungs with the same words that are told in short


def ladder(analysis: Analysis, call: Call) -> Markup:
    """Draw the ladder of *call*; packets that prove something bad are in red."""
    bad = _bad_places(analysis, call)
    call, behind = views(analysis, call)
    rows = list(_without_repeats(rungs_of(analysis, call, behind)))
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
    if behind is not None:
        heads += [
            label(_NAT, 12, "NAT", "head", text_anchor="middle"),
            line(_NAT, 20, _NAT, height, "life nat"),
        ]
    return picture(_WIDTH, height, "Ladder of control messages and PPP", *heads, *parts,
                   class_="ladder")  # fmt: skip


def _without_repeats(rows: list[Row]) -> Iterator[Row]:
    """Yield *rows*, of a run of the same words only the first, the last and how many between."""
    for _, group in groupby(rows, key=lambda row: (row.sender, row.words, row.reach)):
        run = list(group)
        if len(run) < _RUN:
            yield from run
        else:
            note = f"{len(run) - 2} more of these"
            yield from (run[0], Row(run[1].evidence, None, note, "remark"), run[-1])


def _bad_places(analysis: Analysis, call: Call) -> set[tuple[int, int]]:
    """Return the packets that prove an error or a warning about *call*."""
    return {
        (place.file, place.number)
        for diagnosis in analysis.diagnoses
        if diagnosis.severity in (Severity.ERROR, Severity.WARNING)
        and (diagnosis.call == call.id or diagnosis.connection == _connection(call))
        for place in diagnosis.evidence
        if place != call.connected or call.reply is None or not call.reply.agrees
    }


def _connection(call: Call) -> int | None:
    return call.connection.id if call.connection else None


def _rung(row: Row, y: float, at: float, *, is_bad: bool) -> Markup:
    """Draw one rung with its base at *y*; *at* is its time in seconds."""
    words = shortened(row.words, _CHARACTERS)
    if row.sender is None:
        return label(_LEFT + 6, y - 3, words, "remark")
    time = label(_LEFT - 6, y + 3, f"{at:.2f}" if at < 1000 else f"{at:.0f}", "tick",
                 text_anchor="end")  # fmt: skip
    ends = [_LEFT, _RIGHT] if row.sender is Role.PNS else [_RIGHT, _LEFT]
    tip = -6 if row.sender is Role.PNS else 6
    anchor, text_at = ("start", _LEFT + 6) if row.sender is Role.PNS else ("end", _RIGHT - 6)
    if row.reach is Reach.TO_NAT:
        ends[1] = _NAT
    elif row.reach is Reach.FROM_NAT:
        ends[0] = _NAT
        text_at = _NAT + 6 if row.sender is Role.PNS else _NAT - 6
    begin, end = ends
    d = f"M{begin} {y}H{end}m{tip} -3.5L{end} {y}L{end + tip} {y + 3.5}"
    if row.reach is Reach.TO_NAT:
        d += f"M{end - 5} {y - 5}l10 10m0 -10l-10 10"
        words = shortened(words, _CHARACTERS // 2 - 3)
    arrow = tag("path", d=d)
    said = label(text_at, y - 4, words, text_anchor=anchor)
    number = tag("title", f"packet {row.evidence.number}: {row.words}")
    is_bad = is_bad or row.reach is Reach.TO_NAT
    class_ = f"rung {row.class_}{' bad' if is_bad else ''}"
    return tag("g", number, arrow, said, time, class_=class_)
