"""A session that goes on: packets in, news out.

News is what changed since it was last asked for: calls that come, move on and end, PPP
that enters another phase, diagnoses that appear.  What ended a while ago is forgotten, so
that a monitor may run for months.

What calls and connections do is news at once.  Conclusions from all of it, translations and
diagnoses, cost more the more calls there are; they are drawn so seldom that they take a
tenth of the time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pptp_nat.analysis.diagnosis import conclude
from pptp_nat.analysis.follower import Follower
from pptp_nat.analysis.formats import Interface, Record
from pptp_nat.analysis.items import call_item, connection_item, diagnosis_item, dotted
from pptp_nat.analysis.links import RAW
from pptp_nat.analysis.model import Analysis, Call, CaptureFile, Diagnosis
from pptp_nat.analysis.report import party
from pptp_nat.analysis.sorting import Sorter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pptp_nat.analysis.model import ControlConnection

FORGOTTEN_AFTER: Final = 300.0  #: seconds behind the end of a connection and its calls
RESTS: Final = 9  #: times as long as drawing conclusions takes, until that is done again
_PACKET: Final = Interface(RAW, 1e9)


class News(NamedTuple):
    """Something that happened."""

    time: float  #: Unix seconds
    kind: str  #: ``connection``, ``call``, ``translation``, ``ppp``, ``diagnosis``
    subject: ControlConnection | Call | Diagnosis

    text: str

    def item(self, analysis: Analysis) -> dict[str, Any]:
        """Return this as a plain object (docs/analysis.schema.json has the subjects)."""
        return {"time": self.time, "event": self.kind, "text": self.text, **self._about(analysis)}

    def _about(self, analysis: Analysis) -> dict[str, Any]:
        if isinstance(self.subject, Diagnosis):
            return {"diagnosis": diagnosis_item(self.subject)}
        if isinstance(self.subject, Call):
            return {"call": call_item(self.subject, analysis)}
        return {"control_connection": connection_item(self.subject)}


class LiveSession:
    """What passes by, followed from now on."""

    def __init__(
        self, ports: frozenset[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*clock* tells seconds, by which conclusions are spared."""
        self._clock = clock
        self._conclusions_due = clock()
        self.analysis = Analysis(files=[CaptureFile("live", "live")], live=True)
        self._follower = Follower(self.analysis, ports)
        self._sorter = Sorter(ports)
        self._packets = 0
        self._known: dict[tuple[str, int], tuple[object, ...]] = {}
        self._diagnosed: set[tuple[str, int | None, int | None]] = set()

    def take(self, time: float, interface: int, octets: bytes, length: int) -> None:
        """Take a packet, from its IP header on, of an interface or a direction of one."""
        self._packets += 1
        self._sorter.take(self._packets, Record(time, interface, octets, length), _PACKET)

    def turn(self, now: float, *, last: bool = False) -> list[News]:
        """Return what happened since the turn before; *now* is Unix time, as packets have it.

        The last turn draws conclusions in any case.
        """
        window = self._sorter.finish()
        self._follower.take(window)
        file = self.analysis.files[0]
        file.first = now if file.first is None else file.first
        file.last = max(now, file.last or now)
        begun = self._clock()
        is_due = last or begun >= self._conclusions_due
        if is_due:
            conclude(self.analysis)
            ended = self._clock()
            self._conclusions_due = ended + RESTS * (ended - begun)
        news = [*self._connections(now), *self._calls(now)]
        if is_due:
            news += self._diagnoses(now)
        self._forget(now - FORGOTTEN_AFTER)
        return news

    def _changed(self, kind: str, number: int, *facts: object) -> bool:
        known = self._known.get((kind, number))
        self._known[kind, number] = facts
        return known != facts

    def _connections(self, now: float) -> Iterator[News]:
        for each in self.analysis.control_connections:
            if not self._changed("connection", each.id, each.state, each.end):
                continue
            ends = " to ".join(f"{dotted(end.address)}:{end.port}" for end in each.ends)
            how = f", {each.end.how}" if each.end is not None else ""
            text = f"control connection {each.id} {each.state.value}: {ends}{how}"
            yield News(min(each.last.time, now), "connection", each, text)

    def _calls(self, now: float) -> Iterator[News]:
        for call in self.analysis.calls:
            ends = f"PNS {party(call.pns)}, PAC {party(call.pac)}"
            if self._changed("call", call.id, call.state, ends):
                text = f"call {call.id} {call.state.value}: {ends}"
                if call.end is not None:
                    text += f", {call.end.value}"
                elif call.setup is not None:
                    text += f", set up in {call.setup * 1000:.1f} ms"
                yield News(min(call.last.time, now), "call", call, text)
            translation = self.analysis.translation_of(call)
            if (
                translation is not None
                and call is translation.outside
                and self._changed("translation", call.id, translation.inside.id)
            ):
                inside = translation.inside.id
                text = f"call {call.id} is call {inside} outside the NAT: {ends} there"
                yield News(min(call.last.time, now), "translation", call, text)
            phases = [] if call.ppp is None else call.ppp.phases
            seen = self._known.get(("ppp", call.id), (0,))[0]
            assert isinstance(seen, int)
            for phase in phases[seen:]:
                text = f"call {call.id} PPP {phase.state.value}"
                yield News(phase.begin.time, "ppp", call, text)
            if len(phases) > seen:
                self._known["ppp", call.id] = (len(phases),)

    def _diagnoses(self, now: float) -> Iterator[News]:
        found = {(each.rule, each.connection, each.call): each for each in self.analysis.diagnoses}
        for key, each in found.items():
            if key not in self._diagnosed:
                text = f"{each.severity.value.upper()} {each.summary} [{each.rule}]"
                if each.remedy:
                    text += f"; do: {each.remedy}"
                yield News(now, "diagnosis", each, text)
        self._diagnosed = set(found)

    def _forget(self, before: float) -> None:
        """Let go of what ended before a time."""
        connections, calls = self._follower.forget(before)
        for number in connections:
            self._known.pop(("connection", number), None)
        for number in calls:
            for kind in ("call", "translation", "ppp"):
                self._known.pop((kind, number), None)
