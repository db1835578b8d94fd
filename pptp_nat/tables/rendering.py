"""Rows as text, JSON and XML for people and scripts.

Text follows ``conntrack -L``: both tuples as they arrive at this router, keys in
hex; the key is always the receiver's call ID, ``-`` while it is not known.  What
peers say of themselves stands in quotes and is printable ASCII.
"""

from __future__ import annotations

import json
from socket import inet_aton
from typing import TYPE_CHECKING

from pptp_nat.tables.table import in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pptp_nat.tables.table import (
        CallRow,
        ConnectionRow,
        ControlEnds,
        Count,
        End,
        Side,
        StatusRow,
    )


def extended(rows: Iterable[CallRow], now: float) -> Iterator[str]:
    """Yield lines as ``conntrack -L -p gre`` shows them, with all else that is known."""
    for row in in_order(rows):
        words = {
            "connection": str(row.connection),
            "role": row.role,
            "direction": row.direction,
            "inside": _pair(row.inside),
            "external": _pair(row.external),
            "remote": _pair(row.remote),
            "control": "{}:{}-{}:{}".format(*row.control),
            "created": f"{row.created:.3f}",
            "up": _seconds(row.up_since),
            "setup": _seconds(row.setup_seconds),
            "seen": _seconds(row.last_seen),
            **_outcome(row),
        }
        yield f"ipv4     2 {call_line(row, now)} {assigned(words)}"


def ended(row: CallRow) -> str:
    """Return what the answer to a call, or its end, said; nothing while there is neither."""
    return assigned(_outcome(row))


def _outcome(row: CallRow) -> dict[str, str]:
    result = row.result
    return {
        "result": "-" if result.code is None else str(result.code),
        "text": word(result.text),
        "error": "-" if result.error is None else str(result.error.code),
        "error_text": word(result.error and result.error.text),
        "cause_code": "-" if result.cause is None else str(result.cause.code),
        "cause_text": word(result.cause and result.cause.text),
        "cause": word(row.cause),
    }


def assigned(words: Mapping[str, str]) -> str:
    """Return ``name=word`` of all words but those that are not known, a ``-``."""
    return " ".join(f"{name}={each}" for name, each in words.items() if each != "-")


def call_line(row: CallRow, now: float, *, counted: bool = True) -> str:
    """Return the line of a call; *counted*: with its counters."""
    since = row.created if row.up_since is None else row.up_since
    inside, external, remote = row.inside, row.external, row.remote
    there, here = (
        f"packets={count.packets} bytes={count.octets} " if counted else ""
        for count in (row.to_remote, row.to_inside)
    )
    return (
        f"gre      47 {max(0, int(now - since))} {row.state.upper()} "
        f"src={inside.address} dst={remote.address} srckey=0x0 dstkey={_key(remote)} {there}"
        f"src={remote.address} dst={external.address} srckey=0x0 dstkey={_key(external)} {here}"
        f"mark={row.mark} id={row.id}"
    )


def connections_text(rows: Iterable[ConnectionRow]) -> Iterator[str]:
    """Yield a line per control connection, by the originator's address and port."""
    for row in sorted(rows, key=lambda row: (inet_aton(row.originator.address), row.originator)):
        opener, other = row.originator, row.responder
        words = {
            "src": opener.address,
            "dst": other.address,
            "sport": str(opener.port),
            "dport": str(other.port),
            "inside": row.inside,
            "calls": str(row.calls),
            **introduced("src", opener),
            **introduced("dst", other),
            "echo_age": "-" if row.echo_age is None else str(max(0, int(row.echo_age))),
            "echo_seconds": "-" if row.echo_seconds is None else f"{row.echo_seconds:.6f}",
            "echo_by": row.echo_by or "-",
            "passive": row.passive or "-",
            "id": str(row.id),
        }
        flag = " [OPAQUE]" if row.opaque else ""
        yield f"tcp      6 {max(0, int(row.age))} {row.state.upper()} {assigned(words)}{flag}"


def introduced(end: str, said: End) -> dict[str, str]:
    """Return what an end has said of itself."""
    return {
        f"{end}_host": word(said.host),
        f"{end}_vendor": word(said.vendor),
        f"{end}_version": said.version or "-",
        f"{end}_framing": _bits(said.framing, ("async", "sync")),
        f"{end}_bearer": _bits(said.bearer, ("analog", "digital")),
        f"{end}_channels": "-" if said.channels is None else str(said.channels),
        f"{end}_firmware": "-" if said.firmware is None else str(said.firmware),
    }


def _bits(value: int | None, names: tuple[str, ...]) -> str:
    """Return the names of the bits that are set, and the others as one number."""
    if value is None:
        return "-"
    words = [name for at, name in enumerate(names) if value >> at & 1]
    rest = value >> len(names) << len(names)
    return ",".join([*words, *([f"{rest:#x}"] if rest else [])]) or "none"


def _key(side: Side) -> str:
    return "-" if side.call_id is None else f"{side.call_id:#x}"


def _pair(side: Side) -> str:
    return f"{side.address}/{'-' if side.call_id is None else side.call_id}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def word(value: str | None) -> str:
    """Return a peer's word so that it neither breaks the line nor the terminal."""
    return "-" if not value else json.dumps(value)


def or_null(value: float | None) -> object:
    """Return *value* as JSON shows it."""
    return "null" if value is None else value


def status_text(row: StatusRow, now: float) -> Iterator[str]:
    """Yield the daemon's state in a few lines."""
    yield f"pptp-nat {row.version}, pid {row.pid}, up {max(0, int(now - row.started))} s"
    yield f"data path {row.datapath}: {row.datapath_reason}"
    for queue in row.queues:
        yield (
            f"queue {queue.queue} ({queue.purpose}) {'bound' if queue.bound else 'NOT BOUND'} "
            f"waiting={queue.waiting} dropped={queue.dropped} user_dropped={queue.user_dropped}"
        )
    if row.paced is not None:
        yield "paced " + " ".join(f"{name}={count}" for name, count in row.paced.items())
    yield f"calls {_by_state(row.calls)}"
    yield f"control connections {_by_state(row.connections)} opaque={row.opaque}"
    if row.silent:
        yield "workers that do not answer " + " ".join(map(str, row.silent))
    yield "socket " + " ".join(
        f"{name}={number}" for name, number in zip(row.api._fields, row.api, strict=True)
    )


def _by_state(counts: Mapping[str, int]) -> str:
    return " ".join([str(sum(counts.values())), *(f"{s}={n}" for s, n in counts.items() if n)])


def array(lines: Iterable[str]) -> Iterator[str]:
    """Yield a JSON array of what is written already, one line each."""
    before = "["
    for each in lines:
        yield before + each
        before = ","
    yield "[]" if before == "[" else "]"


def xml(rows: Iterable[CallRow], now: float) -> Iterator[str]:
    """Yield the lines of a document shaped like ``conntrack -o xml``."""
    yield '<?xml version="1.0" encoding="utf-8"?>'
    yield "<conntrack>"
    for row in in_order(rows):
        yield _flow(row, now)
    yield "</conntrack>"


def _flow(row: CallRow, now: float) -> str:
    since = row.created if row.up_since is None else row.up_since
    facts = {
        "state": row.state.upper(),
        "age": max(0, int(now - since)),
        "mark": row.mark,
        "id": row.id,
        "connection": row.connection,
        "role": row.role,
        "direction": row.direction,
        "created": row.created,
        "up-since": row.up_since,
        "setup-seconds": row.setup_seconds,
        "last-seen": row.last_seen,
        "result-code": row.result.code,
        "result-text": row.result.text,
        "error-code": row.result.error and row.result.error.code,
        "error-text": row.result.error and row.result.error.text,
        "cause-code": row.result.cause and row.result.cause.code,
        "cause-text": row.result.cause and row.result.cause.text,
        "cause": row.cause,
    }
    elements = [
        *(f"<{name}>{_content(fact)}</{name}>" for name, fact in facts.items() if fact is not None),
        *(
            f"<{name}><address>{side.address}</address>{_number('call-id', side.call_id)}</{name}>"
            for name, side in zip(
                ("inside", "external", "remote"),
                (row.inside, row.external, row.remote),
                strict=True,
            )
        ),
        _control(row.control),
    ]
    return (
        "<flow>"
        + _meta("original", row.inside.address, row.remote, row.to_remote)
        + _meta("reply", row.remote.address, row.external, row.to_inside)
        + f'<meta direction="independent">{"".join(elements)}</meta></flow>'
    )


def _meta(direction: str, source: str, to: Side, count: Count) -> str:
    key = "" if to.call_id is None else f"<dstkey>{to.call_id:#x}</dstkey>"
    return (
        f'<meta direction="{direction}">'
        f'<layer3 protonum="2" protoname="ipv4"><src>{source}</src><dst>{to.address}</dst></layer3>'
        f'<layer4 protonum="47" protoname="gre"><srckey>0x0</srckey>{key}</layer4>'
        f"<counters><packets>{count.packets}</packets><bytes>{count.octets}</bytes></counters>"
        "</meta>"
    )


def _control(ends: ControlEnds) -> str:
    inner = "".join(
        f"<{name}>{value}</{name}>" for name, value in zip(ends._fields, ends, strict=True)
    )
    return f"<control>{inner}</control>"


def _number(name: str, value: int | None) -> str:
    return "" if value is None else f"<{name}>{value}</{name}>"


def _content(value: object) -> str:
    """Return *value* as element content; what XML 1.0 cannot hold becomes U+FFFD."""
    text = "".join(each if each.isprintable() else "\ufffd" for each in str(value))
    # As xml.sax.saxutils.escape does, whose package takes 40 ms to be had.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
