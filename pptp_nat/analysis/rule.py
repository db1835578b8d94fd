"""What a rule is, and what it may ask about the call or connection that it judges.

A rule is one row: a stable slug, a severity, the remedy in plain words, and one short
function that looks at a `CallCase`, a `ConnectionCase` or the whole `Scene` and returns
what it found.  Silence is judged against the end of the capture, so that a rule says the
same of a file and of a live session that has come as far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.model import (
    Analysis,
    Call,
    ControlConnection,
    GreFlow,
    IcmpReport,
    LadderEntry,
    Step,
    Translation,
)
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp import Ppp, PppState
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import MessageType, Role
from pptp_nat.core.packet import GRE
from pptp_nat.core.tuples import Address, Party

_NOTHING: Final = Ppp()
CaseT = TypeVar("CaseT")


class Finding(NamedTuple):
    """What a rule has found."""

    summary: str  #: one line
    evidence: tuple[Evidence, ...] = ()
    remedy: str | None = None  #: where the rule's own does not fit
    severity: Severity | None = None  #: likewise
    connection: int | None = None  #: rules over everything say whom it is about
    call: int | None = None
    also: int | None = None  #: another call that is hit, and need not be told the same


@dataclass(frozen=True, slots=True)
class Rule(Generic[CaseT]):
    """One row of a table of rules."""

    slug: str
    severity: Severity
    remedy: str
    find: Callable[[CaseT], Iterable[Finding] | Finding | None]
    #: slugs that say it better: with one of them found, this rule keeps silent
    unless: tuple[str, ...] = ()


def dotted(address: Address) -> str:
    """Write an address as people do."""
    return ".".join(map(str, address))


def packed(words: str) -> Address:
    """Return the address that `dotted` has written."""
    return bytes(map(int, words.split(".")))


def seconds(duration: float) -> str:
    """Write a duration: ``3 s``, ``250 ms``, ``4 min``."""
    if duration >= 180:
        return f"{duration / 60:.0f} min"
    return f"{duration:.3g} s" if duration >= 1 else f"{duration * 1000:.3g} ms"


def evidence(*places: Evidence | None) -> tuple[Evidence, ...]:
    """Return those of *places* that are there, each once, by time."""
    return tuple(sorted({each for each in places if each is not None}, key=lambda each: each.time))


class Scene:
    """An analysis, and what is where in it: made once for all rules."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.translations: dict[int, Translation] = {}  #: by the ids of both calls
        self.strays_from: dict[Address, list[GreFlow]] = {}
        self.icmp_between: dict[frozenset[Address], list[IcmpReport]] = {}
        #: calls by file, source and destination of their GRE, with the role it leads to
        self.calls_between: dict[tuple[int, Address, Address], list[tuple[Call, Role]]] = {}
        #: calls by file, address and number of a party, with its role
        self.calls_at: dict[tuple[int, Address, int], list[tuple[Call, Role]]] = {}
        for translation in analysis.translations:
            self.translations[translation.inside.id] = translation
            self.translations[translation.outside.id] = translation
        for stray in analysis.strays:
            self.strays_from.setdefault(stray.source, []).append(stray)
        for report in analysis.icmp:
            ends = frozenset((report.source, report.destination))
            self.icmp_between.setdefault(ends, []).append(report)
        for call in analysis.calls:
            for role in Role:
                to, origin = call.end_of(role), call.end_of(role.other)
                way = call.file, origin.address, to.address
                self.calls_between.setdefault(way, []).append((call, role))
                if to.call_id is not None:
                    at = call.file, to.address, to.call_id
                    self.calls_at.setdefault(at, []).append((call, role))


@dataclass(frozen=True, slots=True)
class ConnectionCase:
    """A control connection with its surroundings."""

    scene: Scene
    connection: ControlConnection

    @property
    def opener(self) -> str:
        """Who opened it, in words."""
        return f"the client {dotted(self.connection.ends[Party.ORIGINATOR].address)}"

    @property
    def server(self) -> str:
        """Who was to answer, in words."""
        end = self.connection.ends[Party.RESPONDER]
        return f"the server {dotted(end.address)} port {end.port}"

    def name(self, party: Party) -> str:
        """Return one of them."""
        return self.server if party is Party.RESPONDER else self.opener

    def said(self, party: Party, kind: MessageType | None = None) -> int:
        """Count the messages of *party*, of all kinds or of one."""
        return sum(
            count
            for (sender, each), count in self.connection.messages.items()
            if sender is party and kind in (None, each)
        )

    def entries(self, kind: MessageType) -> list[LadderEntry]:
        """Return the messages of one kind that the ladder has."""
        return [
            entry
            for entry in self.connection.ladder
            if entry.step is Step.MESSAGE and entry.kind is kind
        ]

    def after(self, place: Evidence | None) -> float:
        """Return for how many seconds *place*'s file goes on behind it; 0 without a place."""
        return _after(self.scene.analysis, place)


def _after(analysis: Analysis, place: Evidence | None) -> float:
    if place is None or place.file >= len(analysis.files):
        return 0.0
    last = analysis.files[place.file].last
    return max(last - place.time, 0.0) if last is not None else 0.0


@dataclass(frozen=True, slots=True)
class CallCase:
    """A call with its surroundings."""

    scene: Scene
    call: Call

    @property
    def ppp(self) -> Ppp:
        """The PPP of the call; one that has heard nothing if there is none."""
        return self.call.ppp if isinstance(self.call.ppp, Ppp) else _NOTHING

    def flow(self, role: Role) -> GreFlow | None:
        """Return the GRE that *role* sends."""
        return self.call.gre.get(role)

    def sent(self, role: Role) -> int:
        """Count the GRE packets that *role* has sent."""
        flow = self.call.gre.get(role)
        return flow.packets if flow else 0

    def quality(self, role: Role) -> GreQuality | None:
        """Return the measures of what *role* sends."""
        flow = self.call.gre.get(role)
        return flow.quality if flow and isinstance(flow.quality, GreQuality) else None

    def qualities(self) -> list[tuple[Role, GreQuality]]:
        """Return the measures of both directions, as far as there are any."""
        return [(role, each) for role in Role if (each := self.quality(role)) is not None]

    def name(self, role: Role) -> str:
        """Return who *role* is, in words."""
        word = "the client" if role is Role.PNS else "the server"
        return f"{word} {dotted(self.call.end_of(role).address)}"

    def after(self, place: Evidence | None) -> float:
        """Return for how many seconds *place*'s file goes on behind it; 0 without a place."""
        return _after(self.scene.analysis, place)

    @property
    def icmp(self) -> list[IcmpReport]:
        """The ICMP errors about GRE between the two."""
        ends = frozenset((self.call.pns.address, self.call.pac.address))
        return [each for each in self.scene.icmp_between.get(ends, ()) if each.protocol == GRE]

    @property
    def reached_opened(self) -> bool:
        """Whether IP could flow at some time."""
        return self.ppp.reached(PppState.OPENED) is not None

    @property
    def translation(self) -> Translation | None:
        """What links the call to its twin at the other side of a NAT."""
        return self.scene.translations.get(self.call.id)

    @property
    def twin(self) -> CallCase | None:
        """The same call at the other side of a NAT, if that was captured."""
        found = self.translation
        if found is None:
            return None
        other = found.outside if self.call is found.inside else found.inside
        return CallCase(self.scene, other)

    @property
    def ended(self) -> Evidence | None:
        """Where the call's end was seen, by whatever sign."""
        call = self.call
        closed = call.connection.end if call.connection else None
        seen = call.cleared or call.disconnected or call.ended
        return seen or (closed.evidence if closed else None)
