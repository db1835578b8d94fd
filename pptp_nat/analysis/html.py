"""The HTML report: one page that needs nothing else, with pictures drawn here.

Whatever peers have chosen is escaped by `pptp_nat.analysis.html_elements`, and the page
forbids itself scripts and everything from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from datetime import UTC, datetime
from typing import Final

from pptp_nat import __version__
from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.html_elements import Child, Markup, joined, tag
from pptp_nat.analysis.html_ladder import ladder
from pptp_nat.analysis.html_plots import plots
from pptp_nat.analysis.html_stack import stack
from pptp_nat.analysis.html_style import STYLE
from pptp_nat.analysis.html_topology import topology
from pptp_nat.analysis.model import Analysis, Call, ControlConnection, Diagnosis
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp import Ppp
from pptp_nat.analysis.rule import dotted, seconds
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_CALLS: Final = 40  #: calls that get a card of their own, the troubled first
_TOLD, _WELL = 100, 6  #: findings with a card, and calls that are well
_CONNECTIONS: Final = 200  #: rows of the table of control connections
_WORDS: Final = {
    Severity.ERROR: ("error", "errors"), Severity.WARNING: ("warning", "warnings"),
    Severity.NOTE: ("note", "notes"), Severity.OK: ("call is well", "calls are well"),
}  # fmt: skip


def report(analysis: Analysis, *, whole: bool = True) -> str:
    """Return the page, in ASCII alone; without *whole* no calls, only what was found."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"PPTP: {_verdict(analysis)}"),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("main", _header(analysis), _overview(analysis), *(_calls(analysis) if whole else ()),
            _connections(analysis) if whole else "", _files(analysis), _footer()),
    )  # fmt: skip
    page = f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}"
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _when(time: float | None) -> str:
    if time is None:
        return "—"
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _verdict(analysis: Analysis) -> str:
    for severity in (Severity.ERROR, Severity.WARNING):
        told = [each for each in analysis.diagnoses if each.severity is severity]
        if told:
            return told[0].summary
    if any(each.severity is Severity.OK for each in analysis.diagnoses):
        return "all calls are well"
    return "nothing wrong was found"


def _header(analysis: Analysis) -> Markup:
    counts = Counter(each.severity for each in analysis.diagnoses)
    chips = [
        tag("li", f"{counts[severity]} {words[counts[severity] != 1]}", class_=severity.value)
        for severity, words in _WORDS.items()
        if counts[severity]
    ]
    packets = sum(file.packets for file in analysis.files)
    span = ""
    if analysis.start is not None and analysis.stop is not None:
        span = f", {seconds(analysis.stop - analysis.start)} from {_when(analysis.start)}"
    names = ", ".join(file.name.rsplit("/", 1)[-1] for file in analysis.files)
    calls = len(analysis.calls) - len(analysis.translations)
    return tag(
        "header",
        tag("h1", _sentence(_verdict(analysis))),
        tag("p", f"{names}: {packets:,} packets{span}; {_many(calls, 'call')}", class_="soft"),
        tag("p", "Reading was interrupted; this is what had been read.") if analysis.interrupted
        else "",
        tag("ul", *chips, class_="verdict") if chips else "",
    )  # fmt: skip


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _overview(analysis: Analysis) -> Markup:
    drawing = topology(analysis)
    well = [each for each in analysis.diagnoses if each.severity is Severity.OK]
    told = [each for each in analysis.diagnoses if each.severity is not Severity.OK]
    cards = [_diagnosis(analysis, each) for each in (*told[:_TOLD], *well[:_WELL])]
    for kind, left in (("findings", len(told) - _TOLD), ("calls are well", len(well) - _WELL)):
        if left > 0:
            cards.append(tag("p", f"{left} more {kind}; -o json has them all.", class_="soft"))
    if not cards:
        cards = [tag("p", "No rule has found anything to tell.", class_="card")]
    found = tag("section", tag("h2", "What was found"), *cards)
    if not drawing:
        return found
    picture = tag("section", tag("h2", "Who talks to whom"), tag("div", drawing, class_="card"))
    return tag("div", picture, found, class_="over")


def _diagnosis(analysis: Analysis, diagnosis: Diagnosis) -> Markup:
    severity = diagnosis.severity.value
    places = [tag("li", _place(analysis, place)) for place in diagnosis.evidence]
    return tag(
        "article",
        tag("span", severity, class_="badge"),
        tag("code", diagnosis.rule, class_="slug"),
        tag("p", _sentence(diagnosis.summary), class_="what"),
        tag("p", diagnosis.remedy) if diagnosis.remedy else "",
        tag("ul", *places, class_="evidence") if places else "",
        class_=f"card diagnosis {severity}",
    )


def _place(analysis: Analysis, place: Evidence) -> str:
    words = f"packet {place.number}, {place.time - (analysis.start or 0.0):.3f} s"
    if len(analysis.files) > 1 and place.file < len(analysis.files):
        words += f", {analysis.files[place.file].name.rsplit('/', 1)[-1]}"
    return words


def _calls(analysis: Analysis) -> list[Markup]:
    outer = {each.outside.id for each in analysis.translations}
    bad = {each.call for each in analysis.diagnoses if each.severity is Severity.ERROR}
    calls = [call for call in analysis.calls if call.id not in outer]
    calls.sort(key=lambda call: call.id not in bad)
    if not calls:
        return []
    cards: list[Markup] = [tag("h2", "Calls")]
    cards += [_call(analysis, call) for call in calls[:_CALLS]]
    if len(calls) > _CALLS:
        left = len(calls) - _CALLS
        cards.append(tag("p", f"{left} more calls are not shown; -o json has them all.",
                         class_="soft"))  # fmt: skip
    return cards


def _call(analysis: Analysis, call: Call) -> Markup:
    numbers = " / ".join("?" if end.call_id is None else str(end.call_id)
                         for end in (call.pns, call.pac))  # fmt: skip
    flows = call.gre.items()
    measures = {role: got for role, flow in flows if isinstance(got := flow.quality, GreQuality)}
    windows = {role: call.end_of(role.other).window for role in Role}
    drawn = plots(measures, windows) if measures else []
    legend = tag("p", tag("span", "from the client", class_="pns"),
                 tag("span", "from the server", class_="pac"), class_="legend")  # fmt: skip
    return tag(
        "article",
        tag("h3", f"{dotted(call.pns.address)} → {dotted(call.pac.address)}, call IDs {numbers}"),
        _facts(_call_facts(analysis, call)),
        tag("div",
            tag("div", tag("h4", "The way of the data"), stack(analysis, call)),
            tag("div", tag("h4", "Ladder"), ladder(analysis, call)),
            class_="columns"),
        joined(tag("h4", "GRE over time"), legend, tag("div", *drawn, class_="plots"),
               _quality(measures)) if drawn else "",
        class_="card call",
    )  # fmt: skip


def _facts(facts: list[tuple[str, Child]]) -> Markup:
    rows = [joined(tag("dt", name), tag("dd", value)) for name, value in facts if value]
    return tag("dl", *rows, class_="facts")


def _call_facts(analysis: Analysis, call: Call) -> list[tuple[str, Child]]:
    ppp = call.ppp if isinstance(call.ppp, Ppp) else Ppp()
    phases = [
        tag("li", f"{phase.state.value} {phase.begin.time - call.first.time:.2f} s")
        for phase in ppp.phases[:12]
    ]
    facts: list[tuple[str, Child]] = [
        ("state", call.state.value + (f", {call.end.value}" if call.end else "")),
        ("set up in", seconds(call.setup) if call.setup is not None else ""),
        ("duration", seconds(call.duration) if call.duration is not None else ""),
        ("reply", call.reply.words if call.reply and not call.reply.agrees else ""),
        ("PPP", tag("ul", *phases, class_="phases") if phases else "nothing was seen"),
    ]
    for role, word in ((Role.PAC, "client"), (Role.PNS, "server")):
        proof = ppp.authentications[role]
        wanted = proof.protocol or ppp.wanted_authentication(role)
        if wanted:
            outcome = proof.outcome.value if proof.outcome else "no verdict"
            who = f" “{proof.name}”" if proof.name else ""
            facts.append((f"{word} proves", f"{wanted}{who}: {outcome}"))
    facts += [
        ("encryption", ppp.encryption),
        ("addresses", " ⇄ ".join(filter(None, map(ppp.address, (Role.PNS, Role.PAC))))),
        ("ends with", "; ".join(reason for _, _, reason in ppp.lcp.terminations if reason)),
        ("disconnected", call.notify.words if call.notify else ""),
    ]
    translation = analysis.translation_of(call)
    if translation is not None:
        facts.append(("seen twice", ", ".join(translation.reasons)))
    return facts


def _quality(measures: dict[Role, GreQuality]) -> Markup:
    names = {Role.PNS: "from the client", Role.PAC: "from the server"}
    head = tag("tr", *(tag("th", each) for each in (
        "", "packets", "octets", "lost", "late", "twice", "delay 50/95/99 %", "most outstanding",
    )))  # fmt: skip
    rows = [
        tag("tr", *(tag("td", each) for each in (
            names[role], f"{quality.packets:,}", f"{quality.octets:,}",
            f"{quality.lost:,} ({quality.loss * 100:.2g} %)", f"{quality.reordered:,}",
            f"{quality.duplicates:,}", _percentiles(quality), str(quality.outstanding),
        )))
        for role, quality in measures.items()
    ]  # fmt: skip
    return tag("div", tag("table", head, *rows), class_="wide")


def _percentiles(quality: GreQuality) -> str:
    found = [quality.delays.percentile(share) for share in (0.5, 0.95, 0.99)]
    words = [f"{each * 1000:.3g}" for each in found if each is not None]
    return " / ".join(words) + " ms" if words else "—"


def _connections(analysis: Analysis) -> Markup:
    shown = analysis.control_connections[:_CONNECTIONS]
    if not shown:
        return Markup("")
    head = tag("tr", *(tag("th", each) for each in (
        "opened by", "answered by", "they call themselves", "calls", "echo", "sent again", "end",
    )))  # fmt: skip
    rows = [tag("tr", *(tag("td", each) for each in _connection_row(each))) for each in shown]
    left = len(analysis.control_connections) - len(shown)
    return tag(
        "section", tag("h2", "Control connections"),
        tag("div", tag("table", head, *rows), class_="card wide"),
        tag("p", f"{left} more are not shown.", class_="soft") if left else "",
    )  # fmt: skip


def _connection_row(connection: ControlConnection) -> tuple[str, ...]:
    trips = [trip for each in connection.echoes for trip in each.round_trips]
    names = [f"{each.host} ({each.vendor})" if each.vendor else each.host
             for each in connection.introductions if each]  # fmt: skip
    ends = [f"{dotted(end.address)}:{end.port}" for end in connection.ends]
    again = sum(each.retransmissions for each in connection.trouble)
    return (
        *ends, " / ".join(names) or "—", str(len(connection.calls)),
        f"{sum(trips) / len(trips) * 1000:.3g} ms" if trips else "—", _many(again, "octet"),
        f"{connection.end.how}, {_by(connection)}" if connection.end else connection.state.value,
    )  # fmt: skip


def _by(connection: ControlConnection) -> str:
    assert connection.end is not None
    return "server" if connection.end.by else "client"


def _files(analysis: Analysis) -> Markup:
    head = tag("tr", *(tag("th", each) for each in ("file", "kind", "packets", "from", "to", "")))
    rows = [
        tag("tr", *(tag("td", each) for each in (
            file.name.rsplit("/", 1)[-1], f"{file.kind} {', '.join(file.links)}",
            f"{file.packets:,}", _when(file.first), _when(file.last),
            f"damaged: {file.damage.what}" if file.damage else "",
        )))
        for file in analysis.files
    ]  # fmt: skip
    return tag("section", tag("h2", "Captures"),
               tag("div", tag("table", head, *rows), class_="card wide"))  # fmt: skip


def _footer() -> Markup:
    return tag("footer", f"pptp-nat {__version__}. Times in evidence count from the first packet; "
               "packet numbers are those of Wireshark.")  # fmt: skip
