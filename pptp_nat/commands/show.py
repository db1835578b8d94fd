"""Commands that talk to the daemon: status, list, connections, clear."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from pptp_nat import __version__, api
from pptp_nat.errors import UsageError
from pptp_nat.tables import packed, packed_connections, rendering, table

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

_OLD = 3  #: seconds after which it is said that counts are old
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
    if row.silent:
        raise UsageError(
            f"worker {', '.join(map(str, row.silent))} does not answer: its calls are not in "
            "these figures; one that hangs is started again within a minute"
        )
    return 0


def calls(options: Namespace) -> int:
    """Show the calls, once or again and again."""
    fresh = ""
    while True:
        with _without_collecting():
            count, lines, counted, missing = _calls(options)
            if options.watch is None:
                _write(lines)
                if missing:
                    raise UsageError(missing)
                if options.output in ("text", "extended"):
                    _trail(count, "call", counted)
                return 0
            if sys.stdout.isatty():
                fresh = CLEAR_SCREEN + time.strftime("%H:%M:%S") + "\n"
            sys.stdout.write(fresh)
            _write(lines)
        sys.stdout.flush()
        if missing:
            sys.stderr.write(f"pptp-nat: {missing}\n")
        fresh = "\n"
        time.sleep(options.watch)


def connections(options: Namespace) -> int:
    """Show the control connections."""
    is_json = options.output == "json"
    line = packed_connections.json_line if is_json else packed_connections.text_line
    with _without_collecting(), _expecting(options.socket):
        lines, missing = packed_connections.lines(options.socket, line)
    _write(rendering.array(lines) if is_json else lines)
    if missing:
        raise UsageError(missing)
    if not is_json:
        _trail(len(lines), "control connection")
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


def _calls(options: Namespace) -> tuple[int, Iterable[str], float, str]:
    """Return how many calls are meant, their lines, when they were counted, and what is missing.

    The time is in Unix seconds.
    """
    which = table.Filter(
        state=options.state, client=options.client, server=options.server, call_id=options.call_id
    )
    with _expecting(options.socket):
        arguments = which.arguments() | ({"fresh": True} if options.fresh else {})
        now = time.time()
        if options.output in _BY_ROW:
            line, whole = _BY_ROW[options.output]
            lines, told = packed.lines(options.socket, arguments, lambda row: line(row, now))
            return len(lines), whole(lines), *told
        rows, told = packed.told(options.socket, arguments)
        rendered = _BY_TABLE[options.output](map(packed.unpack, rows), now)
        return len(rows), rendered, *told


def _made(make: Callable[[Mapping[str, Any]], Row], item: Mapping[str, Any], path: Path) -> Row:
    with _expecting(path):
        return make(item)


@contextlib.contextmanager
def _expecting(path: Path) -> Iterator[None]:
    """Say that the daemon speaks another language where its answer is not understood."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the daemon on {path} answers otherwise than this pptp-nat {__version__} expects "
            f"({error}); use the pptp-nat of the daemon's own version"
        ) from error


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Have no look for garbage among 100,000 rows, of which none is: it takes half of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


#: of a row, and of all lines
_BY_ROW: dict[str, tuple[Callable[[packed.Values, float], str], Callable[..., Iterable[str]]]] = {
    "text": (packed.text_line, iter),
    "json": (lambda row, _now: packed.json_line(row), rendering.array),
}
_BY_TABLE: dict[str, Callable[[Iterable[table.CallRow], float], Iterator[str]]] = {
    "extended": rendering.extended, "xml": rendering.xml,
}  # fmt: skip
CALL_OUTPUTS = ("text", "extended", "json", "xml")


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _trail(count: int, thing: str, counted: float | None = None) -> None:
    """Say how many there were, beside the output and not in it, as conntrack does.

    *counted*: Unix seconds; where that was long ago, that is said too.
    """
    sys.stdout.flush()
    have = "has" if count == 1 else "have"
    age = 0 if counted is None else int(time.time() - counted)
    old = f" Their GRE was counted {age} s ago; --fresh counts anew." if age >= _OLD else ""
    sys.stderr.write(f"pptp-nat {__version__}: {_counted(count, thing)} {have} been shown.{old}\n")


def _write(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
