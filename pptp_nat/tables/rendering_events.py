"""Events as lines in the idiom of ``conntrack -E``: what happened, right-aligned, then to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pptp_nat.tables.rendering import assigned, call_line, connections_text, ended, word
from pptp_nat.tables.table import call_row, connection_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNCOUNTED = {
    name: {"packets": 0, "bytes": 0} for name in ("to_remote", "to_inside")
}


def event_text(event: Mapping[str, Any]) -> str:
    """Return the line of an event, as the API has it."""
    kind = event["type"]
    shown = _SHOWN.get(kind, _other)
    return f"{f'[{kind.upper()}]':>9} {shown(event)}"


def stamped(event: Mapping[str, Any]) -> str:
    """Return the line with its time in front, as ``conntrack -o timestamp``."""
    return f"[{event.get('time', 0.0):.6f}]\t{event_text(event)}"


def _call(event: Mapping[str, Any]) -> str:
    item = event["call"]
    counted = item.get("counters") is not None
    row = call_row(item if counted else {**item, "counters": _UNCOUNTED})
    line = call_line(row, event["time"], counted=counted)
    return f"{line} {ended(row)}".rstrip()


def _connection(event: Mapping[str, Any]) -> str:
    return next(iter(connections_text([connection_row(event["connection"])])))


def _control(event: Mapping[str, Any]) -> str:
    """Return the way of a message, from its sender."""
    ends = event["control"]
    names = ("src", "dst", "sport", "dport")
    if event["sender"] == "responder":
        ends = dict(zip(names, (ends[n] for n in ("dst", "src", "dport", "sport")), strict=True))
    return "tcp      6 " + " ".join(f"{name}={ends[name]}" for name in names)


def _refused(event: Mapping[str, Any]) -> str:
    words = {"reason": event["reason"], "text": word(event["text"])}
    return f"{_control(event)} {assigned(words)} connection={event['connection']}"


def _oddity(event: Mapping[str, Any]) -> str:
    return f"{_control(event)} kind={event['kind']} connection={event['connection']}"


def _message(event: Mapping[str, Any]) -> str:
    fields, forwarded, words = event["fields"], event["forwarded"], event["words"]
    shown = []
    for name, value in fields.items():
        if value == "":
            continue
        text = word(value) if isinstance(value, str) else str(value)
        if name in forwarded:
            text += f"->{forwarded[name]}"
        if name in words:
            text += f"({words[name]})"
        shown.append(f"{name}={text}")
    call = [] if event["call"] is None else [f"id={event['call']}"]
    title = event["message"] or "unknown"
    ids = [*call, f"connection={event['connection']}"]
    return " ".join([_control(event), title, f"octets={event['octets']}", *shown, *ids])


def _gre(event: Mapping[str, Any]) -> str:
    """Return a packet's way and its header."""
    return _packet(event, "seq", "ack", "payload", "problem", "bytes")


def _seq(event: Mapping[str, Any]) -> str:
    return _packet(event, "seq", "order", "expected", "by")


def _data(event: Mapping[str, Any]) -> str:
    line = _packet(event, "seq", "protocol", "information")
    return line if event["information"] is not None else f"{line} information=(withheld)"


def _packet(event: Mapping[str, Any], *names: str) -> str:
    words = {
        name: word(event[name]) if isinstance(event[name], str) else str(event[name])
        for name in names if event.get(name) is not None
    }  # fmt: skip
    return (
        f"gre      47 src={event['src']} dst={event['dst']} "
        f"dstkey={event['key']:#x}->{event['forwarded']:#x} to={event['to']} "
        f"{assigned(words)} dev={event['interface']} id={event['call']}"
    )


def _counts(event: Mapping[str, Any]) -> str:
    words = {
        f"{way}_{unit}": f"{event[way][unit]} (+{event['grown'][way][unit]})"
        for way in ("to_remote", "to_inside") for unit in ("packets", "bytes")
    }  # fmt: skip
    return f"gre      47 {assigned(words)} id={event['call']}"


def _suppressed(event: Mapping[str, Any]) -> str:
    return f"{event['count']} debug events more than wanted per second are not shown"


def _other(event: Mapping[str, Any]) -> str:
    """Show an event of a type that a later daemon has as well as we can."""
    words = {name: word(str(value)) for name, value in event.items() if name not in _COMMON}
    return assigned(words)


_COMMON = frozenset(("type", "time"))
_SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "new": _call,
    "update": _call,
    "destroy": _call,
    "connection": _connection,
    "refused": _refused,
    "oddity": _oddity,
    "message": _message,
    "suppressed": _suppressed,
    # what `pptp-nat debug` sees by itself
    "gre": _gre,
    "seq": _seq,
    "data": _data,
    "counts": _counts,
}
