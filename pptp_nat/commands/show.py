"""Commands that talk to the daemon: status, list, connections, clear."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from pptp_nat import __version__, api
from pptp_nat.errors import UsageError
from pptp_nat.tables import rendering, table

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

CLEAR_SCREEN = "\x1b[H\x1b[2J"

Row = TypeVar("Row")


def status(options: Namespace) -> int:
    """Show the daemon's state; 0 only if its queues are bound."""
    item = api.ask(options.socket, {"do": "status"})
    row = _made(table.status_row, item, options.socket)
    if options.output == "json":
        _write([json.dumps(item, indent=2)])
    else:
        _write(rendering.status_text(row, time.time()))
    loose = [str(queue.queue) for queue in row.queues if not queue.bound]
    if loose or not row.queues:
        raise UsageError(
            f"the daemon is not bound to queue {', '.join(loose) or 'any'}: "
            "look at its log, and for another program on that queue"
        )
    return 0


def calls(options: Namespace) -> int:
    """Show the calls, once or again and again."""
    fresh = ""
    while True:
        rows = _calls(options)
        if options.watch is None:
            _write(_RENDERINGS[options.output](rows))
            if options.output in ("text", "extended"):
                _trail(len(rows), "call")
            return 0
        if sys.stdout.isatty():
            fresh = CLEAR_SCREEN + time.strftime("%H:%M:%S") + "\n"
        sys.stdout.write(fresh)
        _write(_RENDERINGS[options.output](rows))
        sys.stdout.flush()
        fresh = "\n"
        time.sleep(options.watch)


def connections(options: Namespace) -> int:
    """Show the control connections."""
    items = api.stream(options.socket, {"do": "connections"})
    rows = [_made(table.connection_row, item, options.socket) for item in items]
    if options.output == "json":
        _write(rendering.json_lines(map(table.connection_item, rows)))
    else:
        _write(rendering.connections_text(rows))
        _trail(len(rows), "control connection")
    return 0


def clear(options: Namespace) -> int:
    """End calls."""
    which = table.Filter(call=options.call, client=options.client, server=options.server)
    answer = api.ask(options.socket, {"do": "clear", **which.arguments()})
    count = answer.get("cleared")
    if not count:
        raise UsageError("no call matches; `pptp-nat list` shows those that there are")
    _write([f"{_counted(count, 'call')} cleared"])
    return 0


def _calls(options: Namespace) -> list[table.CallRow]:
    which = table.Filter(
        state=options.state, client=options.client, server=options.server, call_id=options.call_id
    )
    items = api.stream(options.socket, {"do": "list", **which.arguments()})
    return [_made(table.call_row, item, options.socket) for item in items]


def _made(make: Callable[[Mapping[str, Any]], Row], item: Mapping[str, Any], path: Path) -> Row:
    try:
        return make(item)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"the daemon on {path} answers otherwise than this pptp-nat {__version__} expects "
            f"({error}); use the pptp-nat of the daemon's own version"
        ) from error


def _json(rows: Iterable[table.CallRow]) -> Iterator[str]:
    return rendering.json_lines(map(table.call_json, table.in_order(rows)))


_RENDERINGS: dict[str, Callable[[list[table.CallRow]], Iterator[str]]] = {
    "text": lambda rows: rendering.text(rows, time.time()),
    "extended": lambda rows: rendering.extended(rows, time.time()),
    "json": _json,
    "xml": lambda rows: rendering.xml(rows, time.time()),
}
CALL_OUTPUTS = tuple(_RENDERINGS)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _trail(count: int, thing: str) -> None:
    """Say how many there were, beside the output and not in it, as conntrack does."""
    sys.stdout.flush()
    have = "has" if count == 1 else "have"
    sys.stderr.write(f"pptp-nat {__version__}: {_counted(count, thing)} {have} been shown.\n")


def _write(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
