"""Diagnoses: the rules, applied to an analysis.

The tables are in `rules_control`, `rules_call`, `rules_ppp`, `rules_gre` and
`rules_whole`; what a rule may ask is in `rule`.  `diagnose` may be called at any time:
over a file that has been read, or over a live session that goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.model import Analysis, Diagnosis
from pptp_nat.analysis.rule import (
    CallCase,
    CaseT,
    ConnectionCase,
    Finding,
    Rule,
    Scene,
    evidence,
    seconds,
)
from pptp_nat.analysis.rules_call import CALL_RULES
from pptp_nat.analysis.rules_control import CONNECTION_RULES
from pptp_nat.analysis.rules_gre import GRE_RULES
from pptp_nat.analysis.rules_ppp import PPP_RULES
from pptp_nat.analysis.rules_whole import WHOLE_RULES
from pptp_nat.analysis.severity import Severity
from pptp_nat.analysis.translations import translations
from pptp_nat.core.messages import Role

_ORDER: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK)
_BAD: Final = (Severity.ERROR, Severity.WARNING)


def _healthy(case: CallCase) -> Finding | None:
    """IP flows both ways, and no rule had to complain."""
    if not case.reached_opened or not all(case.sent(role) for role in Role):
        return None
    ppp = case.ppp
    words = [f"the call of {case.name(Role.PNS)} to {case.name(Role.PAC)} is well"]
    if address := ppp.address(Role.PNS):
        words.append(f"address {address}")
    words += [ppp.encryption] if ppp.encryption else []
    if case.call.setup is not None:
        words.append(f"set up in {seconds(case.call.setup)}")
    return Finding(", ".join(words), evidence(case.call.connected))


HEALTHY: Final[Rule[CallCase]] = Rule("healthy_call", Severity.OK, "", _healthy)

#: Every slug there is, with its severity and remedy.
ALL_RULES: Final[tuple[Rule[ConnectionCase] | Rule[CallCase] | Rule[Scene], ...]] = (
    *CONNECTION_RULES, *CALL_RULES, *PPP_RULES, *GRE_RULES, *WHOLE_RULES, HEALTHY,
)  # fmt: skip

_UNLESS: Final = {rule.slug: rule.unless for rule in ALL_RULES}
_BAD_SLUGS: Final = {rule.slug for rule in ALL_RULES if rule.severity in _BAD}


def conclude(analysis: Analysis) -> None:
    """Say what follows from all that was read; may be done again when there is more."""
    analysis.translations = translations(analysis)
    analysis.diagnoses = diagnose(analysis)


def diagnose(analysis: Analysis) -> list[Diagnosis]:
    """Return what is wrong, the worst first, and what is well."""
    for call in analysis.calls:
        for flow in call.gre.values():
            if isinstance(flow.quality, GreQuality):
                flow.quality.settle()
    scene = Scene(analysis)
    found: list[Diagnosis] = []
    known: dict[tuple[str, int | None], set[str]] = {}  # slugs by what they are about
    for rule in WHOLE_RULES:
        for finding in _findings(rule, scene):
            for about in (("call", finding.call), ("call", finding.also)):
                known.setdefault(about, set()).add(rule.slug)
            found.append(_diagnosis(rule, finding, None, None))
    for connection in analysis.control_connections:
        slugs = known.setdefault(("connection", connection.id), set())
        case = ConnectionCase(scene, connection)
        for each in CONNECTION_RULES:
            found += _apply(each, case, slugs, connection.id, None)
    for call in analysis.calls:
        of = call.connection.id if call.connection else None
        slugs = known.get(("call", call.id), set()) | known.get(("connection", of), set())
        found += _of_call(CallCase(scene, call), slugs, of)
    found = list(_merged(analysis, found))
    found.sort(key=lambda each: (_ORDER.index(each.severity), _when(each)))
    return found


def _of_call(case: CallCase, slugs: set[str], connection: int | None) -> list[Diagnosis]:
    """Apply the rules about one call; *slugs* are known of it or of its connection by then."""
    is_well = slugs.isdisjoint(_BAD_SLUGS)
    found: list[Diagnosis] = []
    for rule in (*CALL_RULES, *PPP_RULES, *GRE_RULES):
        found += _apply(rule, case, slugs, connection, case.call.id)
    if is_well and not any(each.severity in _BAD for each in found):
        found += _apply(HEALTHY, case, slugs, connection, case.call.id)
    return found


def _apply(
    rule: Rule[CaseT], case: CaseT, slugs: set[str], connection: int | None, call: int | None
) -> list[Diagnosis]:
    """Return what *rule* finds, and add its slug to *slugs* if it finds anything."""
    if not slugs.isdisjoint(rule.unless):
        return []
    found = [_diagnosis(rule, finding, connection, call) for finding in _findings(rule, case)]
    if found:
        slugs.add(rule.slug)
    return found


def _findings(rule: Rule[CaseT], case: CaseT) -> Iterable[Finding]:
    found = rule.find(case)
    if found is None:
        return ()
    return (found,) if isinstance(found, Finding) else found


def _diagnosis(
    rule: Rule[CaseT], finding: Finding, connection: int | None, call: int | None
) -> Diagnosis:
    return Diagnosis(
        rule.slug,
        finding.severity or rule.severity,
        finding.summary,
        finding.evidence,
        rule.remedy if finding.remedy is None else finding.remedy,
        connection if finding.connection is None else finding.connection,
        call if finding.call is None else finding.call,
    )


def _merged(analysis: Analysis, found: list[Diagnosis]) -> Iterator[Diagnosis]:
    """Tell once what both sides of a NAT show, with the evidence of both.

    What one side says better, by a rule's `Rule.unless`, the other does not say at all.
    """
    twins: dict[int | None, int] = {}
    for each in analysis.translations:
        twins |= {each.inside.id: each.outside.id, each.outside.id: each.inside.id}
    outer = {each.outside.id for each in analysis.translations}
    told = {(each.rule, each.call): each for each in found if each.call in twins}
    ill = {call for (_, call), each in told.items() if each.severity in _BAD}
    for diagnosis in found:
        twin = twins.get(diagnosis.call)
        same = told.get((diagnosis.rule, twin))
        is_told_better = any((slug, twin) in told for slug in _UNLESS[diagnosis.rule])
        if twin is None:
            yield diagnosis
        elif is_told_better or (diagnosis.severity is Severity.OK and twin in ill):
            continue
        elif same is None:
            yield diagnosis
        elif diagnosis.call not in outer:
            yield replace(diagnosis, evidence=evidence(*diagnosis.evidence, *same.evidence))


def _when(diagnosis: Diagnosis) -> float:
    return min((place.time for place in diagnosis.evidence), default=0.0)
