"""Rows of many calls, as the daemon sends them to those who ask for ``packed``.

One line holds some dozens of calls, each an array of plain values in the order of
`COLUMNS`: a third of the octets of objects with names, and a fraction of the work at
both ends.  What a call's answer or end said, nearly always nothing, is one value.

`text_line` and `json_line` write what `pptp_nat.tables.rendering` would of the row
that `unpack` returns, at a third of the cost.
"""

from __future__ import annotations

import json
import time
from socket import inet_aton
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pptp_nat import api
from pptp_nat.tables.rendering import or_null
from pptp_nat.tables.table import (
    CallRow,
    Code,
    ControlEnds,
    Count,
    Result,
    Side,
    call_json,
    result_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: names of the values, for whoever reads them without this module
COLUMNS: Final = (
    "id", "state", "role", "direction", "inside.address", "inside.call_id",
    "external.address", "external.call_id", "remote.address", "remote.call_id",
    "control.src", "control.sport", "control.dst", "control.dport",
    "created", "up_since", "last_seen",
    "to_remote.packets", "to_remote.bytes", "to_inside.packets", "to_inside.bytes",
    "mark", "connection", "cause", "result", "gaps",
)  # fmt: skip
_NO_GAPS: Final = (None, None, None, None)
_NOTHING: Final = Result(None, None)
_NO_RESULT: Final = json.dumps(result_json(_NOTHING))
Values = list[Any]


class Told(NamedTuple):
    """What is said of a list."""

    counted: float  #: when, Unix seconds; of several workers the one who did it first
    missing: str  #: why some calls are not in it; "" where all are


def told(path: Path, arguments: Mapping[str, object]) -> tuple[list[Values], Told]:
    """Ask the daemon at *path* for calls; return those that it has, and what it says of them.

    Raises:
        UsageError: nobody answers there, or the answer is no; says why.
        KeyError, TypeError, ValueError: the answer is laid out otherwise.
    """
    rows: list[Values] = []
    return rows, each_piece(path, {"do": "list", **arguments}, COLUMNS, rows.extend)


def lines(
    path: Path, arguments: Mapping[str, object], line: Callable[[Values], str]
) -> tuple[list[str], Told]:
    """Ask as `told` does; return a *line* for each call, as `table.in_order` would have them.

    Lines are written while the daemon goes on, so that two cores share the work.
    """
    found: list[tuple[tuple[bytes, int, int], str]] = []

    def write(rows: list[Values]) -> None:
        found.extend(zip(map(_place, rows), map(line, rows), strict=True))

    about = each_piece(path, {"do": "list", **arguments}, COLUMNS, write)
    found.sort()  # no two calls have one place
    return [text for _, text in found], about


def each_piece(
    path: Path, asked: Mapping[str, object], columns: tuple[str, ...],
    take: Callable[[list[Values]], None],
) -> Told:  # fmt: skip
    """Ask the daemon at *path* for what is *asked*, packed; have *take* take rows as they come.

    Raises:
        UsageError: nobody answers there, or the answer is no; says why.
        KeyError, TypeError, ValueError: the answer is laid out otherwise than in *columns*.
    """
    counted, some = time.time(), False
    try:
        for item in api.stream(path, {**asked, "packed": True}):
            if "rows" in item:
                take(item["rows"])
                some = True
            elif tuple(item["columns"]) != columns:
                raise ValueError("other columns")
            else:
                counted = min(counted, item["counted"])  # each worker says when
    except api.Refused as error:
        if not some:
            raise
        return Told(counted, str(error))
    return Told(counted, "")


def unpack(values: Values) -> CallRow:
    """Return the row that was packed.

    Raises:
        TypeError, ValueError, IndexError: it is laid out otherwise.
    """
    (
        number, state, role, direction, inside, inside_id, external, external_id, remote,
        remote_id, src, sport, dst, dport, created, up_since, last_seen,
        out_packets, out_octets, in_packets, in_octets, mark, connection, cause, result, gaps,
    ) = values  # fmt: skip
    out_missing, out_late, in_missing, in_late = gaps or _NO_GAPS
    return CallRow(
        number, state, role, direction,
        Side(inside, inside_id), Side(external, external_id), Side(remote, remote_id),
        ControlEnds(src, sport, dst, dport), created, up_since,
        None if up_since is None else round(up_since - created, 6), last_seen,
        Count(out_packets, out_octets, out_missing, out_late),
        Count(in_packets, in_octets, in_missing, in_late), mark,
        _NOTHING if result is None else _result(result), connection, cause,
    )  # fmt: skip


def _result(values: Sequence[Any]) -> Result:
    code, text, error, cause = values
    return Result(code, text, error and Code(*error), cause and Code(*cause))


def text_line(values: Values, now: float) -> str:
    """Return what `rendering.call_line` shows of the row; *now* is Unix time."""
    (
        number, state, _, _, inside, _, external, external_id, remote, remote_id, _, _, _, _,
        created, up_since, _, out_packets, out_octets, in_packets, in_octets, mark, _, _, _, _,
    ) = values  # fmt: skip
    seconds = int(now - (created if up_since is None else up_since))
    return (
        f"gre      47 {max(0, seconds)} {state.upper()} "
        f"src={inside} dst={remote} srckey=0x0 "
        f"dstkey={'-' if remote_id is None else hex(remote_id)} "
        f"packets={out_packets} bytes={out_octets} src={remote} dst={external} srckey=0x0 "
        f"dstkey={'-' if external_id is None else hex(external_id)} "
        f"packets={in_packets} bytes={in_octets} mark={mark} id={number}"
    )


def json_line(values: Values) -> str:
    """Return what ``json.dumps`` makes of `table.call_json` of the row."""
    (
        number, state, role, direction, inside, inside_id, external, external_id, remote,
        remote_id, src, sport, dst, dport, created, up_since, last_seen,
        out_packets, out_octets, in_packets, in_octets, mark, _, _, result, gaps,
    ) = values  # fmt: skip
    if gaps is not None:
        return json.dumps(call_json(unpack(values)))
    setup = None if up_since is None else round(up_since - created, 6)
    said = _NO_RESULT if result is None else json.dumps(result_json(_result(result)))
    return (
        f'{{"id": {number}, "state": "{state}", "role": "{role}", "direction": "{direction}", '
        f'"inside": {{"address": "{inside}", "call_id": {or_null(inside_id)}}}, '
        f'"external": {{"address": "{external}", "call_id": {or_null(external_id)}}}, '
        f'"remote": {{"address": "{remote}", "call_id": {or_null(remote_id)}}}, '
        f'"control": {{"src": "{src}", "sport": {sport}, "dst": "{dst}", "dport": {dport}}}, '
        f'"created": {created}, "up_since": {or_null(up_since)}, '
        f'"setup_seconds": {or_null(setup)}, "last_seen": {or_null(last_seen)}, '
        f'"counters": {{"to_remote": {{"packets": {out_packets}, "bytes": {out_octets}}}, '
        f'"to_inside": {{"packets": {in_packets}, "bytes": {in_octets}}}}}, '
        f'"mark": {mark}, "result": {said}}}'
    )


def _place(values: Values) -> tuple[bytes, int, int]:
    number = values[5]
    return inet_aton(values[4]), -1 if number is None else number, values[0]
