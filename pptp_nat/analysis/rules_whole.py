"""What only several calls, stray GRE or the capture itself can tell, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from pptp_nat.analysis.model import Call
from pptp_nat.analysis.rule import CallCase, Finding, Rule, Scene, dotted, evidence
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_FEW: Final = 3
_PAIRS: Final = 32  #: calls with one number that are compared with each other
_MIXED: Final = 3  #: restarts or repeats in a direction that carries two calls' packets


def _wrong_call_id(scene: Scene) -> Iterator[Finding]:
    """GRE between the ends of a call, with a number that neither has announced."""
    for stray in scene.analysis.strays:
        way = stray.file, stray.source, stray.destination
        for call, role in scene.calls_between.get(way, ()):
            case = CallCase(scene, call)
            known = call.end_of(role).call_id
            if stray.packets < _FEW or known is None or case.sent(role.other):
                continue
            twin = case.twin
            inner = twin.call.end_of(role).call_id if twin else None
            why = (
                "which is its number on the other side of the NAT" if inner == stray.key
                else "a number that nobody has announced"
            )  # fmt: skip
            yield Finding(
                f"GRE to {dotted(stray.destination)} carries call ID {stray.key}, {why}; the "
                f"call's is {known} ({stray.packets} packets)",
                evidence(call.connected, stray.first, stray.last),
                connection=call.connection.id if call.connection else None,
                call=call.id,
            )
            break


def _wrong_source(scene: Scene) -> Iterator[Finding]:
    """GRE with the number of a call, from an address that is not its party's."""
    for stray in scene.analysis.strays:
        if stray.packets < _FEW:
            continue
        for call, role in scene.calls_at.get((stray.file, stray.destination, stray.key), ()):
            to, origin = call.end_of(role), call.end_of(role.other)
            case = CallCase(scene, call)
            if (
                stray.source != origin.address
                and dotted(stray.source) != case.ppp.address(role.other)
                and not case.sent(role.other)
            ):
                yield Finding(
                    f"GRE of the call to {dotted(to.address)} comes from {dotted(stray.source)}, "
                    f"its control connection from {dotted(origin.address)}",
                    evidence(call.connected, stray.first),
                    connection=call.connection.id if call.connection else None,
                    call=call.id,
                )


def _overlap(one: Call, two: Call) -> bool:
    """Whether both were up at some moment."""
    if one.connected is None or two.connected is None:
        return False
    ends = [(call.ended or call.last).time for call in (one, two)]
    return max(one.connected.time, two.connected.time) < min(ends)


def _same_number(scene: Scene) -> Iterator[tuple[Call, Call]]:
    """Yield pairs of calls of one file that overlap, to one PAC, with one number of the PNS."""
    groups: dict[tuple[int, bytes, int], list[Call]] = {}
    for call in scene.analysis.calls:
        if call.pns.call_id is not None:
            key = call.file, call.pac.address, call.pns.call_id
            groups.setdefault(key, []).append(call)
    for calls in groups.values():
        for one, two in combinations(calls[:_PAIRS], 2):
            if one.connection is not two.connection and _overlap(one, two):
                yield one, two


def _collision(scene: Scene) -> Iterator[Finding]:
    """Two calls that look the same to the server: one address, one number."""
    for one, two in _same_number(scene):
        if one.pns.address == two.pns.address:
            yield Finding(
                f"two calls from {dotted(one.pns.address)} to {dotted(one.pac.address)} have the "
                f"call ID {one.pns.call_id} at the same time: their GRE cannot be told apart",
                evidence(one.connected, two.connected),
                connection=two.connection.id if two.connection else None,
                call=two.id,
                also=one.id,
            )


def _mixed_up(scene: Scene) -> Iterator[Finding]:
    """Two clients chose one number, and one of them gets the packets of both."""
    for pair in _same_number(scene):
        for poor, rich in (pair, pair[::-1]):
            if poor.pns.address == rich.pns.address:
                continue
            quality = CallCase(scene, rich).quality(Role.PAC)
            if CallCase(scene, poor).sent(Role.PAC) or quality is None:
                continue
            if quality.restarts + quality.duplicates + quality.reordered >= _MIXED:
                yield Finding(
                    f"{dotted(poor.pns.address)} and {dotted(rich.pns.address)} both have call ID "
                    f"{rich.pns.call_id}, and {dotted(rich.pns.address)} gets the server's GRE of "
                    "both",
                    evidence(poor.connected, rich.connected, quality.first),
                    connection=poor.connection.id if poor.connection else None,
                    call=poor.id,
                    also=rich.id,
                )


def _twice(scene: Scene) -> Iterator[Finding]:
    """The capture holds packets twice."""
    for file in scene.analysis.files:
        if file.repeated:
            yield Finding(f"{file.name} holds {file.repeated} packets twice; they were left out")


def _cut(scene: Scene) -> Iterator[Finding]:
    """A snap length that hides what matters."""
    for file in scene.analysis.files:
        cut = [
            connection for connection in scene.analysis.control_connections
            if scene.analysis.files[connection.file] is file
            and any(each.cut for each in connection.trouble)
        ]  # fmt: skip
        if cut:
            yield Finding(
                f"{file.name} has control messages cut off by its snap length",
                evidence(cut[0].first),
            )


def _damaged(scene: Scene) -> Iterator[Finding]:
    """A file that ends in the middle."""
    for file in scene.analysis.files:
        if file.damage is not None:
            yield Finding(
                f"{file.name} is damaged at octet {file.damage.offset} "
                f"(behind packet {file.damage.number}): {file.damage.what}"
            )


def _nothing(scene: Scene) -> Iterator[Finding]:
    """No PPTP at all in what was read."""
    analysis = scene.analysis
    if analysis.live or analysis.control_connections or analysis.calls or analysis.strays:
        return
    packets = sum(file.packets for file in scene.analysis.files)
    if packets:
        yield Finding(f"no PPTP among {packets} packets")


def _gre_alone(scene: Scene) -> Iterator[Finding]:
    """GRE whose control connection is not in the capture."""
    alone = [call for call in scene.analysis.calls if call.connection is None and call.gre]
    if alone and not scene.analysis.control_connections:
        flows = [flow for call in alone for flow in call.gre.values()]
        yield Finding(
            f"GRE of {len(alone)} calls, but nothing of their control connections",
            evidence(min(flow.first for flow in flows)),
        )


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

#: Rules over everything.
WHOLE_RULES: Final[tuple[Rule[Scene], ...]] = (
    Rule("wrong_call_id", _E, "A NAT on the way does not translate GRE's call ID, or two of them "
         "do: have exactly one PPTP helper on each NAT (pptp-nat or the kernel's, never both).",
         _wrong_call_id),
    Rule("wrong_source", _E, "A router with several external addresses lets GRE leave by another "
         "one than TCP 1723: map the client to one address (in one SNAT rule for all protocols).",
         _wrong_source),
    Rule("call_id_collision", _E, "Run pptp-nat on the NAT between: it gives each call a number of "
         "its own. Without it, one client at a time can reach this server.", _collision),
    Rule("mixed_up_calls", _E, "The NAT gives one client the GRE of another: it has no PPTP "
         "helper, or one that does not translate call IDs. Run pptp-nat on it.", _mixed_up),
    Rule("damaged_file", _W, "Capture again, or write with tcpdump -U so that an interrupted "
         "capture is whole.", _damaged),
    Rule("cut_messages", _W, "Capture with a snap length of 0 (tcpdump -s 0).", _cut),
    Rule("captured_twice", _N, "Capture on one interface instead of all, or not on a bridge and "
         "its port at once.", _twice),
    Rule("no_control_connection", _N, "Begin the capture before dialling, with the filter "
         "'tcp port 1723 or proto 47', to see who calls whom.", _gre_alone),
    Rule("no_pptp", _N, "Capture where the traffic passes, with the filter 'tcp port 1723 or proto "
         "47', and dial while it runs.", _nothing),
)  # fmt: skip
