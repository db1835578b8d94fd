"""Ladders in the text report: of one place of capture, or of two, each packet once.

Where two captures saw one call, the ladder stands with the view from the inside: a rung has
the packet's number in both captures, fields that the NAT has changed in both forms, and the
time by the clock of the capture inside.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.two_views import offset, paired
from pptp_nat.core.messages import Role
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pptp_nat.analysis.model import Analysis, Call, ControlConnection, LadderEntry
    from pptp_nat.analysis.packets import Evidence
    from pptp_nat.analysis.ppp import Ppp, Rung

_PPP_RUNGS: Final = 40  #: shown of each call
_ARROWS: Final = {Party.ORIGINATOR: "-->", Party.RESPONDER: "<--"}
_NOT_SEEN: Final = "-"


class Ladders:
    """The ladders of an analysis, as lines."""

    def __init__(self, analysis: Analysis) -> None:
        self._start = analysis.start or 0.0
        self._calls: dict[int, tuple[Call, Call]] = {}
        self._connections: dict[int, tuple[ControlConnection, ControlConnection, float]] = {}
        for inner, outer in ((each.inside, each.outside) for each in analysis.translations):
            self._calls[inner.id] = self._calls[outer.id] = inner, outer
            one, other = inner.connection, outer.connection
            if (
                one is not None and other is not None and one is not other
                and not {one.id, other.id} & self._connections.keys()
            ):  # fmt: skip
                views = one, other, offset(inner, outer)
                self._connections[one.id] = self._connections[other.id] = views

    def of_connection(self, connection: ControlConnection) -> Iterator[str]:
        """Yield what the ends of a control connection said."""
        inner, outer, ahead = self._connections.get(connection.id, (connection, None, 0.0))
        if outer is None:
            for entry in connection.ladder:
                number = _number(entry.evidence, connection.file)
                yield f"{number:>7} {self._at(entry.evidence):>10} {_control(entry, None)}"
            yield from _more(connection.ladder_left_out)
            return
        if connection is outer:
            yield f"its ladder stands with that of control connection {inner.id}"
            return
        yield f"packets as numbered here, and where this is control connection {outer.id}:"
        pairs = paired(inner.ladder, outer.ladder, ahead, _control_name)
        for one, other in pairs:
            shown = one or other
            assert shown is not None
            numbers = _numbers(one, inner.file, other, outer.file)
            at = self._at(shown.evidence, 0.0 if one else ahead)
            yield f"{numbers:>13} {at:>10} {_control(shown, other)}"
        yield from _more(max(inner.ladder_left_out, outer.ladder_left_out))

    def of_ppp(self, call: Call) -> Iterator[str]:
        """Yield what the ends of a call said in PPP."""
        ppp = call.ppp
        assert ppp is not None
        inner, outer = self._calls.get(call.id, (call, None))
        if outer is None or not (inner.ppp and outer.ppp and inner.ppp.phases):
            for rung in ppp.log[:_PPP_RUNGS]:
                number = _number(rung.evidence, call.file)
                yield f"{number:>7} {self._at(rung.evidence):>10} {_said(rung)}"
            yield from _more(_hidden(ppp))
            return
        if call is outer:
            yield f"its ladder stands with that of call {inner.id}"
            return
        ahead = offset(inner, outer)
        pairs = paired(inner.ppp.log, outer.ppp.log, ahead, _ppp_name)
        for one, other in pairs[:_PPP_RUNGS]:
            found = one or other
            assert found is not None
            numbers = _numbers(one, inner.file, other, outer.file)
            at = self._at(found.evidence, 0.0 if one else ahead)
            yield f"{numbers:>13} {at:>10} {_said(found)}"
        left_out = max(inner.ppp.log_left_out, outer.ppp.log_left_out)
        yield from _more(max(len(pairs) - _PPP_RUNGS, 0) + left_out)

    def _at(self, evidence: Evidence, ahead: float = 0.0) -> str:
        return f"{evidence.time - ahead - self._start:.3f}"


def _number(evidence: Evidence, file: int) -> str:
    """Return a packet's number; with its file, if that is another than where all began."""
    at = f"{evidence.file + 1}:" if evidence.file != file else ""
    return f"{at}{evidence.number}"


def _numbers(
    one: LadderEntry | Rung | None, file: int, other: LadderEntry | Rung | None, other_file: int
) -> str:
    left = _NOT_SEEN if one is None else _number(one.evidence, file)
    right = _NOT_SEEN if other is None else _number(other.evidence, other_file)
    return f"{left} | {right}"


def _control_name(entry: LadderEntry) -> tuple[Party, str]:
    return entry.sender, entry.title


def _ppp_name(rung: Rung) -> tuple[Role, str]:
    return rung.sender, rung.said


def _control(entry: LadderEntry, other: LadderEntry | None) -> str:
    """Return a rung; *other* is the same packet at the other place."""
    fields = " ".join(
        f"{name}={_field(name, value)}{_changed(name, value, other)}"
        for name, value in entry.fields.items()
    )
    notes = f" ({', '.join(entry.notes)})" if entry.notes else ""
    return f"{_ARROWS[entry.sender]} {entry.title} {fields}".rstrip() + notes


def _changed(name: str, value: int | str, other: LadderEntry | None) -> str:
    if other is None or other.fields.get(name, value) == value:
        return ""
    return f" | {_field(name, other.fields[name])}"


def _said(rung: Rung) -> str:
    return f"{'-->' if rung.sender is Role.PNS else '<--'} {rung.said}"


def _hidden(ppp: Ppp) -> int:
    return max(len(ppp.log) - _PPP_RUNGS, 0) + ppp.log_left_out


def _more(count: int) -> Iterator[str]:
    if count:
        yield f"and {count} more"


def _field(name: str, value: int | str) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return f"{value:#010x}" if name.endswith("accm") else str(value)
