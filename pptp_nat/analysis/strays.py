"""GRE of no call, and the calls that it turns out to be.

Two strays in opposite directions are a call that was up before the capture began, if each
acknowledges what the other has sent and no others do, or if there are no others.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pptp_nat.analysis.model import GreFlow
from pptp_nat.analysis.packets import Evidence, GrePacket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pptp_nat.analysis.model import Analysis
    from pptp_nat.analysis.packets import Columns

_MOST: Final = 1000  #: flows
_KEPT: Final = 32  #: packets of each that are kept whole
_COMPARED: Final = 64  #: flows between two hosts that are compared with each other
_BEHIND: Final = 64  #: packets by which an acknowledgement may precede what was captured

Name = tuple[bytes, int]  #: of one direction: source and destination, key


class Introducer(Protocol):
    """Who makes calls of strays."""

    def introduce(self, one: GreFlow, other: GreFlow | None) -> None:
        """Make a call of *one* and *other*, or *one* the missing half of a call, if it fits."""


class Span(NamedTuple):
    """The lowest and the highest of some numbers."""

    low: int
    high: int

    def with_(self, other: Span | None) -> Span:
        """Return the span of both."""
        if other is None:
            return self
        return Span(min(self.low, other.low), max(self.high, other.high))


class Strays:
    """The strays of one vantage point."""

    def __init__(self, analysis: Analysis, introducer: Introducer) -> None:
        self._analysis = analysis
        self._introducer = introducer
        self._flows: dict[Name, GreFlow] = {}
        self._sent: dict[Name, Span | None] = {}  # sequence numbers
        self._acknowledged: dict[Name, Span | None] = {}

    def keep(self, name: Name, packet: GrePacket, *, count: bool) -> None:
        """Keep a packet for the day when its call is known."""
        flow = self._flow(name, packet.evidence)
        if flow is None:
            self._analysis.strays_left_out += count
            return
        if len(flow.kept) < _KEPT:
            flow.kept.append(packet)
        if count:
            flow.packets += 1
            flow.octets += packet.ip_length
            flow.last = packet.evidence

    def explained(self, name: Name, earliest: float) -> GreFlow | None:
        """Return a stray that a call now explains, if it began late enough, and let go of it."""
        flow = self._flows.get(name)
        if flow is None or flow.first.time < earliest:
            return None
        del self._flows[name], self._sent[name], self._acknowledged[name]
        self._analysis.strays = [each for each in self._analysis.strays if each is not flow]
        return flow

    def forget(self, before: float) -> None:
        """Let go of strays that have been silent since a time."""
        old = [name for name, flow in self._flows.items() if flow.last.time < before]
        for name in old:
            del self._flows[name], self._sent[name], self._acknowledged[name]
        if old:
            self._analysis.strays = list(self._flows.values())

    def take(self, unknown: dict[Name, Columns], file: int) -> Iterator[tuple[Name, Columns]]:
        """Take in the strays of a window; yield those that are none by now, or too many."""
        for name, columns in unknown.items():
            flow = self._flow(name, Evidence(file, *columns.first))
            if flow is not None:
                rows = columns.listed()
                self._sent[name] = _span(rows.sequences, rows.sequenced, self._sent[name])
                self._acknowledged[name] = _span(
                    rows.acknowledgements, rows.acknowledged, self._acknowledged[name]
                )
        for name in unknown:
            if name in self._flows:
                self._pair(name)
        for name, columns in unknown.items():
            flow = self._flows.get(name)
            if flow is None:
                yield name, columns
            else:
                flow.packets += len(columns)
                flow.octets += columns.octets
                flow.last = Evidence(file, *columns.last)

    def _flow(self, name: Name, evidence: Evidence) -> GreFlow | None:
        flow = self._flows.get(name)
        if flow is None:
            if len(self._analysis.strays) >= _MOST:
                return None
            flow = self._flows[name] = GreFlow(
                evidence.file, name[0][:4], name[0][4:], name[1], evidence, evidence
            )
            self._sent[name] = self._acknowledged[name] = None
            self._analysis.strays.append(flow)
        return flow

    def _pair(self, name: Name) -> None:
        """Have a call made of a stray and its opposite, if it is clear which that is."""
        pair = name[0]
        opposite = self._between(pair[4:] + pair[:4])
        same = self._between(pair)
        if len(opposite) > _COMPARED or len(same) > _COMPARED:
            return
        other = self._partner(name, opposite)
        if other is not None and self._partner(other, same) == name:
            self._introducer.introduce(self._flows[name], self._flows[other])
        elif not opposite and len(same) == 1:
            self._introducer.introduce(self._flows[name], None)

    def _between(self, pair: bytes) -> list[Name]:
        return [name for name in self._flows if name[0] == pair]

    def _partner(self, name: Name, candidates: list[Name]) -> Name | None:
        """Return the only one that fits, or the only one that certainly does."""
        fits = {each: self._fits(name, each) for each in candidates}
        certain = [each for each, fit in fits.items() if fit]
        possible = [each for each, fit in fits.items() if fit is not False]
        if len(certain) == 1:
            return certain[0]
        return possible[0] if len(possible) == 1 and not certain else None

    def _fits(self, one: Name, other: Name) -> bool | None:
        """Whether each acknowledges what the other has sent; None: neither acknowledges."""
        found = [
            None if said is None or sent is None
            else sent.low - _BEHIND <= said.low and sent.low - 1 <= said.high <= sent.high
            for said, sent in (
                (self._acknowledged[one], self._sent[other]),
                (self._acknowledged[other], self._sent[one]),
            )
        ]  # fmt: skip
        if False in found:
            return False
        return True if True in found else None


def _span(numbers: Sequence[int], which: bytes, known: Span | None) -> Span | None:
    chosen = list(compress(numbers, which))
    return Span(min(chosen), max(chosen)).with_(known) if chosen else known
