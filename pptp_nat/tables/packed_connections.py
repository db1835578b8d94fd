"""Rows of many control connections, packed as `pptp_nat.tables.packed` does it for calls.

What an end says of itself is one value: hardly two kinds of client are in one list, so
its words are written once for all who say the same.
"""

from __future__ import annotations

import functools
import json
from socket import inet_aton
from typing import TYPE_CHECKING, Any, Final

from pptp_nat.tables import packed, rendering
from pptp_nat.tables.table import ConnectionRow, End

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: names of the values, for whoever reads them without this module
COLUMNS: Final = (
    "id", "state", "originator.address", "originator.port", "responder.address",
    "responder.port", "inside", "opaque", "passive", "calls", "age",
    "echo_age", "echo_seconds", "echo_by", "originator.said", "responder.said",
)  # fmt: skip
_NOTHING: Final = (None,) * (len(End._fields) - 2)
Values = list[Any]


def lines(path: Path, line: Callable[[Values], str]) -> tuple[list[str], str]:
    """Ask the daemon at *path*; return a *line* for each connection, and what is missing.

    They come in the order of who opened them.

    Raises:
        UsageError: nobody answers there, or the answer is no; says why.
        KeyError, TypeError, ValueError: the answer is laid out otherwise.
    """
    found: list[tuple[tuple[bytes, int, int], str]] = []

    def write(rows: list[Values]) -> None:
        found.extend(zip(map(_place, rows), map(line, rows), strict=True))

    told = packed.each_piece(path, {"do": "connections"}, COLUMNS, write)
    found.sort()
    return [text for _, text in found], told.missing


def _place(values: Values) -> tuple[bytes, int, int]:
    return inet_aton(values[2]), values[3], values[0]


def unpack(values: Values) -> ConnectionRow:
    """Return the row that was packed.

    Raises:
        TypeError, ValueError: it is laid out otherwise.
    """
    (
        number, state, source, source_port, destination, destination_port, inside, opaque,
        passive, calls, age, echo_age, echo_seconds, echo_by, said, other_said,
    ) = values  # fmt: skip
    return ConnectionRow(
        number, state,
        End(source, source_port, *(said or ())),
        End(destination, destination_port, *(other_said or ())),
        inside, opaque, passive, calls, age, echo_age, echo_seconds, echo_by,
    )  # fmt: skip


def text_line(values: Values) -> str:
    """Return what `rendering.connections_text` shows of the row."""
    (
        number, state, source, source_port, destination, destination_port, inside, opaque,
        passive, calls, age, echo_age, echo_seconds, echo_by, said, other_said,
    ) = values  # fmt: skip
    echo = "" if echo_age is None else (
        f" echo_age={max(0, int(echo_age))} echo_seconds={echo_seconds:.6f} echo_by={echo_by}"
    )
    return (
        f"tcp      6 {max(0, int(age))} {state.upper()} "
        f"src={source} dst={destination} sport={source_port} dport={destination_port} "
        f"inside={inside} calls={calls}"
        f"{_words('src', *(said or _NOTHING))}{_words('dst', *(other_said or _NOTHING))}{echo}"
        f"{'' if passive is None else f' passive={passive}'} id={number}"
        f"{' [OPAQUE]' if opaque else ''}"
    )


def json_line(values: Values) -> str:
    """Return what ``json.dumps`` makes of `table.connection_item` of the row."""
    (
        number, state, source, source_port, destination, destination_port, inside, opaque,
        passive, calls, age, echo_age, echo_seconds, echo_by, said, other_said,
    ) = values  # fmt: skip
    said_by = "null" if echo_by is None else f'"{echo_by}"'
    return (
        f'{{"id": {number}, "state": "{state}", '
        f'"originator": {{"address": "{source}", "port": {source_port}, '
        f'{_named(*(said or _NOTHING))}}}, '
        f'"responder": {{"address": "{destination}", "port": {destination_port}, '
        f'{_named(*(other_said or _NOTHING))}}}, '
        f'"inside": "{inside}", "opaque": {"true" if opaque else "false"}, '
        f'"passive": {json.dumps(passive)}, "calls": {calls}, "age": {age}, '
        f'"echo_age": {rendering.or_null(echo_age)}, '
        f'"echo_seconds": {rendering.or_null(echo_seconds)}, '
        f'"echo_by": {said_by}}}'
    )


@functools.lru_cache(maxsize=1024)
def _words(end: str, *said: Any) -> str:  # noqa: ANN401  what JSON holds
    words = rendering.assigned(rendering.introduced(end, End("", 0, *said)))
    return f" {words}" if words else ""


@functools.lru_cache(maxsize=1024)
def _named(*said: Any) -> str:  # noqa: ANN401  as above
    return json.dumps(dict(zip(End._fields[2:], said, strict=True)))[1:-1]
