"""The picture over all: clients, the NAT, servers, and what passes between them."""

from __future__ import annotations

from typing import Final, NamedTuple

from pptp_nat.analysis.html_elements import (
    Markup,
    joined,
    label,
    line,
    picture,
    rectangle,
    shortened,
    tag,
)
from pptp_nat.analysis.html_plots import amount
from pptp_nat.analysis.model import Analysis, Call, ControlConnection
from pptp_nat.analysis.ppp import Ppp, PppState
from pptp_nat.analysis.rule import dotted
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_WIDTH: Final = 360
_COLUMNS: Final = ((4, 104), (142, 80), (256, 100))  #: x and width: clients, NAT, servers
_HEAD: Final = 32
_ROW: Final = 56
_GAP: Final = 12
_MOST: Final = 8  #: paths that are drawn, the troubled first
#: What says that TCP itself does not work.
_NO_TCP: Final = ("port_closed", "port_filtered", "server_silent", "not_pptp", "echo_timeout",
                  "control_reset")  # fmt: skip


class Path(NamedTuple):
    """A call, or a connection without calls, from client to server."""

    connection: ControlConnection | None
    inner: Call | None  #: as seen nearest to the client
    outer: Call | None  #: as seen behind the NAT, if it was
    is_bad: bool
    has_tcp: bool

    @property
    def client(self) -> str:
        """Its address as people write it."""
        if self.inner is not None:
            return dotted(self.inner.pns.address)
        assert self.connection is not None
        return dotted(self.connection.ends[0].address)

    @property
    def server(self) -> str:
        """Its address as people write it."""
        call = self.outer or self.inner
        if call is not None:
            return dotted(call.pac.address)
        assert self.connection is not None
        return dotted(self.connection.ends[1].address)


def views(analysis: Analysis, call: Call) -> tuple[Call, Call | None]:
    """Return *call* as seen nearer to the client, and behind a NAT if it was seen there."""
    translation = analysis.translation_of(call)
    if translation is None or translation.hidden is None:
        return call, None
    if translation.hidden is Role.PNS:
        return translation.inside, translation.outside
    return translation.outside, translation.inside


def paths(analysis: Analysis) -> list[Path]:
    """Return what there is to draw, the troubled first."""
    errors = [each for each in analysis.diagnoses if each.severity is Severity.ERROR]
    bad_calls = {each.call for each in errors if each.call is not None}
    without_tcp = {each.connection for each in errors if each.rule in _NO_TCP}
    bad_connections = {each.connection for each in errors if each.call is None}
    outer_ids = {each.outside.id for each in analysis.translations}
    found = []
    for call in analysis.calls:
        if call.id in outer_ids:
            continue
        inner, outer = views(analysis, call)
        ids = {inner.id, outer.id if outer else None}
        own = {each.connection.id for each in (inner, outer) if each and each.connection}
        is_bad = bool(ids & bad_calls or own & bad_connections)
        found.append(Path(inner.connection, inner, outer, is_bad, not own & without_tcp))
    for connection in analysis.control_connections:
        if not connection.calls:
            is_bad = connection.id in bad_connections
            has_tcp = connection.id not in without_tcp
            found.append(Path(connection, None, None, is_bad, has_tcp))
    return sorted(found, key=lambda path: not path.is_bad)


def topology(analysis: Analysis) -> Markup:
    """Draw clients, NAT and servers; what is broken is in red."""
    every = paths(analysis)
    drawn = every[:_MOST]
    if not drawn:
        return Markup("")
    clients = list(dict.fromkeys(path.client for path in drawn))
    drawn.sort(key=lambda path: (clients.index(path.client), path.server))
    rows: list[tuple[Path, float]] = []
    boxes: list[Markup] = []
    y = 4.0
    for client in clients:
        top, y = y, y + _HEAD
        mine = [path for path in drawn if path.client == client]
        for before, path in zip((None, *mine), mine, strict=False):
            if before is not None and before.server != path.server:
                y += _GAP + _HEAD  # room for the other server's head
            rows.append((path, y))
            y += _ROW
        boxes.append(_host(0, top, y - top, "client", client))
        y += _GAP
    bottom = y - _GAP
    boxes += _servers(rows)
    if any(path.outer for path, _ in rows):
        boxes.append(_nat(rows, bottom))
    parts = [_row(path, at) for path, at in rows]
    if len(every) > len(drawn):
        y += 8
        more = f"{len(every) - len(drawn)} more are not drawn"
        parts.append(label(_WIDTH / 2, y, more, "tick", text_anchor="middle"))
    return picture(_WIDTH, y + 4, "Clients, NAT and servers, and what passes between them",
                   *boxes, *parts, class_="topology")  # fmt: skip


def _host(column: int, y: float, height: float, role: str, name: str) -> Markup:
    x, width = _COLUMNS[column]
    return joined(
        rectangle(x, y, width, height, "host", 6),
        label(x + 8, y + 13, role, "role"),
        label(x + 8, y + 25, shortened(name, 17), "name"),
    )


def _servers(rows: list[tuple[Path, float]]) -> list[Markup]:
    """Draw a box for each run of rows to the same server."""
    boxes = []
    begin = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at][0].server != rows[begin][0].server:
            top = rows[begin][1] - _HEAD
            bottom = rows[at - 1][1] + _ROW
            boxes.append(_host(2, top, bottom - top, "server", rows[begin][0].server))
            begin = at
    return boxes


def _nat(rows: list[tuple[Path, float]], height: float) -> Markup:
    """Draw the NAT across all rows, with the address that the world knows."""
    outer = next(path.outer for path, _ in rows if path.outer)
    name = dotted(outer.pns.address)
    inner = next(path.inner for path, _ in rows if path.outer)
    if inner is not None and inner.pns.address == outer.pns.address:
        name = dotted(inner.pac.address)
    return _host(1, 4, height - 4, "NAT", name)


def _row(path: Path, y: float) -> Markup:
    """Draw one call: its ends in the boxes, its flows between them."""
    parts = [_end(0, y, path.inner, Role.PNS, is_bad=path.is_bad)]
    outer = path.outer or path.inner
    parts.append(_end(2, y, outer, Role.PAC, is_bad=False))
    left, right = _COLUMNS[0][0] + _COLUMNS[0][1], _COLUMNS[2][0]
    if path.outer is not None and path.inner is not None:
        x, width = _COLUMNS[1]
        parts.append(_flows(left, x, y, path.inner, has_tcp=path.has_tcp))
        parts.append(_flows(x + width, right, y, path.outer, has_tcp=path.has_tcp))
        parts.append(_translation(x, y, path.inner, path.outer))
    else:
        parts.append(_flows(left, right, y, path.inner, has_tcp=path.has_tcp))
    return tag("g", *parts, class_="path bad" if path.is_bad else "path")


def _translation(x: float, y: float, inner: Call, outer: Call) -> Markup:
    numbers = [
        f"{inner.end_of(role).call_id} ⇄ {outer.end_of(role).call_id}"
        for role in Role
        if inner.end_of(role).call_id != outer.end_of(role).call_id
    ]
    words = numbers[0] if numbers else "same call ID"
    return joined(
        rectangle(x + 1.5, y + 14, 77, 24, "inner"),
        label(x + 40, y + 24, "call ID", "tiny", text_anchor="middle"),
        label(x + 40, y + 34, words, "tiny strong", text_anchor="middle"),
    )


def _end(column: int, y: float, call: Call | None, role: Role, *, is_bad: bool) -> Markup:
    """Draw what a call is inside a host: its number and its inner address."""
    x, width = _COLUMNS[column]
    parts = [rectangle(x + 6, y + 5, width - 12, _ROW - 12, "inner")]
    if call is None:
        parts.append(label(x + 12, y + 25, "no call", "tiny"))
        return joined(*parts)
    number = call.end_of(role).call_id
    ppp = call.ppp if isinstance(call.ppp, Ppp) else Ppp()
    address = ppp.address(role)
    known = "?" if number is None else number
    parts.append(label(x + 12, y + 16, f"call ID {known}", "tiny strong"))
    parts.append(label(x + 12, y + 26, f"ppp {address}" if address else "no inner address", "tiny"))
    if role is Role.PNS:
        is_bad = is_bad and ppp.state is not PppState.OPENED
        parts.append(label(x + 12, y + 36, f"PPP {ppp.state.value}", f"tiny{' bad' * is_bad}"))
    elif ppp.encryption:
        sealed = ppp.encryption.removesuffix(" stateless")
        parts.append(label(x + 12, y + 36, shortened(sealed, 17), "tiny"))
    return joined(*parts)


def _flows(x1: float, x2: float, y: float, call: Call | None, *, has_tcp: bool) -> Markup:
    """Draw TCP and both directions of GRE between two boxes."""
    parts = [_flow(x1, x2, y + 12, "TCP", "control", is_there=has_tcp, both=True)]
    if call is not None and (call.connected or call.gre):
        for role, at in ((Role.PNS, y + 27), (Role.PAC, y + 41)):
            flow = call.gre.get(role)
            begin, end = (x1, x2) if role is Role.PNS else (x2, x1)
            count = amount(flow.packets).replace(" ", "") if flow else ""
            words = (count + " GRE" if x2 - x1 > 60 else count) if flow else "GRE"
            parts.append(_flow(begin, end, at, words, "gre", is_there=flow is not None))
    return joined(*parts)


def _flow(
    x1: float, x2: float, y: float, words: str, class_: str, *, is_there: bool, both: bool = False
) -> Markup:
    """Draw an arrow with words over it; one that is not there is dashed, red and crossed out."""
    middle = (x1 + x2) / 2
    tip = -5 if x2 > x1 else 5
    heads = f"M{x2 + tip} {y - 3}L{x2} {y}L{x2 + tip} {y + 3}"
    if both:
        heads += f"M{x1 - tip} {y - 3}L{x1} {y}L{x1 - tip} {y + 3}"
    parts = [line(x1, y, x2, y, "shaft")]
    if is_there:
        parts.append(label(middle, y - 3, words, "tiny", text_anchor="middle"))
        parts.append(tag("path", d=heads, class_="tip"))
    else:
        parts.append(label(middle, y + 12, f"no {words}", "tiny", text_anchor="middle"))
        parts.append(tag("path", d=f"M{middle - 4} {y - 4}l8 8m0 -8l-8 8", class_="cross"))
    return tag("g", *parts, class_=f"flow {class_}{'' if is_there else ' missing'}")
