"""One call from application to application: processes, interfaces, sockets, wire.

In the manner in which the PPTP Client project draws its routing and packet-flow diagrams:
hosts as boxes, in them processes and interfaces, between them what carries the data, and
in red where it breaks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pptp_nat.analysis.html_elements import (
    Markup,
    joined,
    label,
    picture,
    rectangle,
    shortened,
    tag,
)
from pptp_nat.analysis.html_plots import amount
from pptp_nat.analysis.html_topology import views
from pptp_nat.analysis.model import Analysis, Call
from pptp_nat.analysis.ppp import Ppp
from pptp_nat.analysis.rule import dotted
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_WIDTH: Final = 360
_LEFT, _MIDDLE, _RIGHT = 96, 236, 306  #: x of TCP, of GRE outward, of GRE back
_HOST: Final = 142  #: height of a host
_WIRE: Final = 42  #: height of a stretch of wire
_NAT: Final = 44

#: What breaks where, by the rules' slugs: parts of the picture.
_BREAKS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(("port_closed", "port_filtered", "server_silent", "not_pptp", "server_refused",
                     "echo_timeout", "control_reset", "call_refused", "call_unanswered"),
                    frozenset({"tcp"})),
    **dict.fromkeys(("no_gre_from_server", "gre_lost_behind", "wrong_call_id"),
                    frozenset({"back"})),
    "no_gre_from_client": frozenset({"out"}),
    **dict.fromkeys(("no_gre", "gre_unreachable", "call_id_collision", "mixed_up_calls",
                     "wrong_source", "mtu_black_hole"), frozenset({"out", "back"})),
    **dict.fromkeys(("idle_death", "gone_silent"), frozenset({"out", "back"})),
    **dict.fromkeys(("ip_loop", "gone_into_tunnel"), frozenset({"loop"})),
    **dict.fromkeys(("lcp_timeout", "loopback", "not_converging", "authentication_failed",
                     "authentication_mismatch", "authentication_no_response",
                     "authentication_no_verdict", "encryption_mismatch"),
                    frozenset({"ppp"})),
    "no_address": frozenset({"ppp", "interface"}),
    "server_hung_up": frozenset({"server"}),
}  # fmt: skip


class Broken(NamedTuple):
    """Which parts of the picture are red."""

    parts: frozenset[str]

    def class_of(self, part: str, base: str) -> str:
        """Return *base*, marked if *part* is broken."""
        return f"{base} broken" if part in self.parts else base


def stack(analysis: Analysis, call: Call) -> Markup:
    """Draw *call*, which is not the outer one of a translation."""
    call, behind = views(analysis, call)
    outer = behind or call
    ids = {call.id, outer.id}
    connections = {each.connection.id for each in (call, outer) if each.connection}
    slugs = {
        each.rule
        for each in analysis.diagnoses
        if each.severity is Severity.ERROR
        and (each.call in ids or (each.call is None and each.connection in connections))
    }
    broken = Broken(frozenset[str]().union(*(_BREAKS.get(slug, ()) for slug in slugs)))
    parts = [_client(call, broken, 4)]
    y = 4.0 + _HOST
    if behind is not None:
        parts += [_wire(call, y, broken), _nat(call, outer, y + _WIRE)]
        y += _WIRE + _NAT
    parts += [_wire(outer, y, broken), _server(outer, broken, y + _WIRE)]
    if "loop" in broken.parts:
        parts.append(_loop())
    return picture(_WIDTH, y + _WIRE + _HOST + 4, "The call from application to application",
                   *parts, class_="stack")  # fmt: skip


def _box(
    x: float, y: float, width: float, kind: str, first: str, second: str = "", class_: str = ""
) -> Markup:
    """Draw a process (square), an interface (round) or a socket."""
    most = int(width / 5.3)
    words = [label(x + width / 2, y + (14 if second else 19), shortened(first, most), "strong",
                   text_anchor="middle")]  # fmt: skip
    if second:
        words.append(label(x + width / 2, y + 25, shortened(second, most), "tiny",
                           text_anchor="middle"))  # fmt: skip
    radius = {"interface": 15, "socket": 2}.get(kind, 4)
    return tag("g", rectangle(x, y, width, 31, "box", radius), *words,
               class_=f"{kind} {class_}".strip())  # fmt: skip


def _ppp(call: Call) -> Ppp:
    return call.ppp if isinstance(call.ppp, Ppp) else Ppp()


def _flow(d: str, class_: str) -> Markup:
    return tag("path", d=d, class_=f"data {class_}".strip())


def _client(call: Call, broken: Broken, y: float) -> Markup:
    ppp = _ppp(call)
    address = ppp.address(Role.PNS) or "no address"
    number = call.pns.call_id
    port = call.connection.ends[0].port if call.connection else None
    proof = ppp.authentications[Role.PAC].protocol or ppp.wanted_authentication(Role.PAC)
    return joined(
        rectangle(4, y, _WIDTH - 8, _HOST, "host", 8),
        label(14, y + 16, f"client {dotted(call.pns.address)}", "name"),
        _flow(f"M110 {y + 41}H132", broken.class_of("interface", "")),
        _flow(f"M250 {y + 41}H272V{y + 62}", broken.class_of("interface", "")),
        _flow(f"M252 {y + 93}V{y + 107}M290 {y + 107}V{y + 93}", broken.class_of("ppp", "")),
        _flow(f"M{_LEFT} {y + 93}V{y + 107}", broken.class_of("tcp", "")),
        _box(14, y + 25, 96, "process", "applications"),
        _box(132, y + 25, 118, "interface", "interface ppp", address,
             broken.class_of("interface", "")),
        _box(226, y + 62, 114, "process", f"PPP {ppp.state.value}", ppp.encryption or proof,
             broken.class_of("ppp", "")),
        _box(42, y + 62, 108, "process", "PPTP", _said_state(call), broken.class_of("tcp", "")),
        _box(42, y + 107, 108, "socket", f"TCP {port or '?'}", "", broken.class_of("tcp", "")),
        _box(208, y + 107, 132, "socket", f"GRE, call ID {'?' if number is None else number}"),
    )  # fmt: skip


def _said_state(call: Call) -> str:
    return f"call {call.state.value}" if call.end is None else call.end.value


def _server(call: Call, broken: Broken, y: float) -> Markup:
    ppp = _ppp(call)
    address = ppp.address(Role.PAC) or "no address"
    number = call.pac.call_id
    port = call.connection.ends[1].port if call.connection else None
    name = ppp.authentications[Role.PAC].authenticator_name
    is_down = broken.class_of("server", "")
    return joined(
        rectangle(4, y, _WIDTH - 8, _HOST, "host", 8),
        label(14, y + _HOST - 9, f"server {dotted(call.pac.address)}", "name"),
        _flow(f"M252 {y + 35}V{y + 49}M290 {y + 49}V{y + 35}", broken.class_of("ppp", "")),
        _flow(f"M{_LEFT} {y + 35}V{y + 49}", broken.class_of("tcp", "")),
        _flow(f"M250 {y + 102}H272V{y + 80}", broken.class_of("interface", "")),
        _flow(f"M110 {y + 102}H132", broken.class_of("interface", "")),
        _box(42, y + 4, 108, "socket", f"TCP {port or '?'}", "", broken.class_of("tcp", "")),
        _box(208, y + 4, 132, "socket", f"GRE, call ID {'?' if number is None else number}"),
        _box(42, y + 49, 108, "process", "PPTP", "", broken.class_of("tcp", is_down)),
        _box(226, y + 49, 114, "process", "PPP", name, broken.class_of("ppp", is_down)),
        _box(132, y + 86, 118, "interface", "interface ppp", address,
             broken.class_of("interface", "")),
        _box(14, y + 86, 96, "process", "its network"),
    )  # fmt: skip


def _nat(inner: Call, outer: Call, y: float) -> Markup:
    names = " ⇄ ".join(dotted(each.pns.address) for each in (inner, outer))
    if inner.pns.address == outer.pns.address:
        names = " ⇄ ".join(dotted(each.pac.address) for each in (inner, outer))
    numbers = [
        f"{inner.end_of(role).call_id} ⇄ {outer.end_of(role).call_id}"
        for role in Role
        if inner.end_of(role).call_id != outer.end_of(role).call_id
    ]
    return joined(
        rectangle(4, y, _WIDTH - 8, _NAT, "host", 8),
        label(14, y + 18, "NAT", "name"),
        label(14, y + 34, names, "tiny"),
        label(_WIDTH - 14, y + 34, f"call ID {numbers[0] if numbers else 'unchanged'}",
              "tiny strong", text_anchor="end"),
    )  # fmt: skip


def _wire(call: Call, y: float, broken: Broken) -> Markup:
    """Draw what passes over one stretch of wire, with how much of it was seen there."""
    end = y + _WIRE
    parts = [
        tag("g", _arrow(_LEFT, y, end, both=True),
            label(_LEFT + 6, y + 18, "control", "tiny"),
            class_=broken.class_of("tcp", "flow control")),
    ]  # fmt: skip
    for role, x, part in ((Role.PNS, _MIDDLE, "out"), (Role.PAC, _RIGHT, "back")):
        flow = call.gre.get(role)
        begin, tip = (y, end) if role is Role.PNS else (end, y)
        count = f"{amount(flow.packets)} packets" if flow else "none"
        class_ = broken.class_of(part, "flow gre") if flow else "flow gre missing"
        middle = (y + end) / 2
        parts.append(tag(
            "g",
            _arrow(x, begin, tip),
            label(x - (5 if flow else 9), middle + 3, count, "tiny", text_anchor="end"),
            "" if flow else tag("path", d=f"M{x - 4} {middle - 4}l8 8m0 -8l-8 8", class_="cross"),
            class_=class_,
        ))  # fmt: skip
    return joined(*parts)


def _arrow(x: float, begin: float, end: float, *, both: bool = False) -> Markup:
    tip = -5 if end > begin else 5
    d = f"M{x} {begin}V{end}M{x - 3} {end + tip}L{x} {end}L{x + 3} {end + tip}"
    if both:
        d += f"M{x - 3} {begin - tip}L{x} {begin}L{x + 3} {begin - tip}"
    return tag("path", d=d, class_="shaft")


def _loop() -> Markup:
    """Draw the way of packets that go round: from the GRE socket back into the interface."""
    return joined(
        tag("path", d="M208 126H188V61M184 68L188 61L192 68", class_="data broken loop"),
        label(184, 107, "IP loop", "broken-word", text_anchor="end"),
    )
