"""An analysis as text for people: the summary first, then each connection and its calls.

Times of ladders are seconds since the first packet of all files.  What peers say of
themselves stands in quotes; no line holds anything that a terminal would obey.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.items import dotted
from pptp_nat.analysis.report_ladders import Ladders
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role
from pptp_nat.core.states import CallState
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pptp_nat.analysis.gre_quality import GreQuality
    from pptp_nat.analysis.model import (
        Analysis,
        Call,
        CallEnd,
        CaptureFile,
        ControlConnection,
        Diagnosis,
        GreFlow,
        Translation,
    )
    from pptp_nat.analysis.packets import Evidence
    from pptp_nat.analysis.ppp import Ppp

_PACKETS: Final = 6  #: shown of each diagnosis
_STRAYS: Final = 20
_LATEST: Final = 253402300799.0  #: the last second that has a date


def clean(line: str) -> str:
    """Return a line of which a terminal shows all and obeys nothing."""
    return "".join(each if each.isprintable() else "\ufffd" for each in line)


def text(analysis: Analysis, *, whole: bool = True) -> Iterator[str]:
    """Yield lines; the summary alone unless *whole*."""
    report = _Report(analysis)
    lines = report.summary()
    yield from map(clean, lines)
    if whole:
        yield from map(clean, report.stories())


class _Report:
    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._start = analysis.start or 0.0
        self._several = len(analysis.files) > 1
        self._ladders = Ladders(analysis)

    # The summary.

    def summary(self) -> Iterator[str]:
        analysis = self._analysis
        for index, file in enumerate(analysis.files):
            yield from self._file(index, file)
        if analysis.interrupted:
            yield "interrupted: what follows is about what was read so far"
        calls = len(analysis.calls)
        views = len(analysis.translations)
        line = f"{_counted(len(analysis.control_connections), 'control connection')}, "
        line += _counted(calls, "call")
        if views:
            line += f", {views} of them seen at two places"
        if analysis.strays:
            line += f", {_counted(len(analysis.strays), 'flow')} of GRE that belong to no call"
        yield line
        if analysis.left_out:
            yield f"{_counted(analysis.left_out, 'connection or call')} too many: not shown"
        if not analysis.counts["tcp"] + analysis.counts["gre"] and not analysis.interrupted:
            yield "no PPTP in here: neither TCP port 1723 nor enhanced GRE"
        if analysis.diagnoses:
            yield ""
        for diagnosis in analysis.diagnoses:
            yield from self._diagnosis(diagnosis)

    def _file(self, index: int, file: CaptureFile) -> Iterator[str]:
        line = f"{file.name}: {file.kind}, {', '.join(file.links) or 'no packets'}"
        if file.first is not None and file.last is not None:
            packets, seconds = _counted(file.packets, "packet"), file.last - file.first
            line += f", {packets} in {seconds:.1f} s from {_date(file.first)}"
        yield f"file {index + 1}: {line}" if self._several else line
        if file.cut:
            yield f"  {_counted(file.cut, 'packet')} cut by the snap length"
        if file.repeated:
            yield f"  {_counted(file.repeated, 'packet')} captured twice and counted once"
        if file.damage is not None:
            yield (
                f"  damaged at octet {file.damage.offset}, behind packet {file.damage.number}: "
                f"{file.damage.what}; what comes before is reported"
            )

    def _diagnosis(self, diagnosis: Diagnosis) -> Iterator[str]:
        yield f"{diagnosis.severity.value.upper():8}{diagnosis.summary} [{diagnosis.rule}]"
        where = [self._place(each) for each in diagnosis.evidence[:_PACKETS]]
        more = len(diagnosis.evidence) - len(where)
        if where and diagnosis.severity is not Severity.OK:
            yield f"        see {', '.join(where)}" + (f" and {more} more" if more else "")
        if diagnosis.remedy:
            yield f"        do: {diagnosis.remedy}"

    def _place(self, evidence: Evidence) -> str:
        file = f"file {evidence.file + 1} " if self._several else ""
        return f"{file}packet {evidence.number} at {self._at(evidence)} s"

    def _at(self, evidence: Evidence) -> str:
        return f"{evidence.time - self._start:.3f}"

    # The stories.

    def stories(self) -> Iterator[str]:
        for connection in self._analysis.control_connections:
            yield ""
            yield from self._connection(connection)
        for call in self._analysis.calls:
            if call.connection is None:
                yield ""
                yield from self._call(call)
        strays = self._analysis.strays
        if strays:
            yield ""
            yield "GRE that belongs to no call"
            for flow in strays[:_STRAYS]:
                yield f"  {_flow(flow)}, first {self._place(flow.first)}"
            if len(strays) > _STRAYS:
                yield f"  and {len(strays) - _STRAYS} more flows"
        for report in self._analysis.icmp:
            yield (
                f"ICMP from {dotted(report.reporter)}: {report.words}, about "
                f"{'TCP' if report.ports else 'GRE'} from {dotted(report.source)} to "
                f"{dotted(report.destination)} ({self._place(report.evidence)})"
            )

    def _connection(self, connection: ControlConnection) -> Iterator[str]:
        opener, responder = (f"{dotted(e.address)}:{e.port}" for e in connection.ends)
        where = f", file {connection.file + 1}" if self._several else ""
        yield f"control connection {connection.id}: {opener} to {responder}{where}"
        for party, word in ((Party.ORIGINATOR, "opener"), (Party.RESPONDER, "responder")):
            introduction = connection.introductions[party]
            if introduction is not None:
                yield (
                    f"  {word} calls itself {_quoted(introduction.host)}, "
                    f"{_quoted(introduction.vendor)}, version {introduction.version >> 8}."
                    f"{introduction.version & 0xFF}, firmware {introduction.firmware}"
                )
        if connection.under_way:
            yield "  it was under way when the capture began"
        if connection.start is not None and not connection.start.agrees:
            yield f"  refused: {connection.start.words}"
        for party, word in ((Party.ORIGINATOR, "opener"), (Party.RESPONDER, "responder")):
            yield from _trouble(connection, party, word)
        if connection.end is not None:
            end = connection.end
            by = dotted(connection.ends[end.by].address)
            yield f"  ended by {end.how} of {by} ({self._place(end.evidence)})"
        elif connection.state.value in ("opening", "open"):
            yield f"  still {connection.state.value} at the end of the capture"
        yield from (f"  {line}" for line in self._ladders.of_connection(connection))
        for call in connection.calls:
            yield from (f"  {line}" for line in self._call(call))

    def _call(self, call: Call) -> Iterator[str]:
        direction = {True: "incoming ", False: "outgoing ", None: ""}[call.incoming]
        yield f"{direction}call {call.id}: PNS {party(call.pns)}, PAC {party(call.pac)}"
        yield from (f"  {line}" for line in self._call_lines(call))

    def _call_lines(self, call: Call) -> Iterator[str]:
        if call.connection is None:
            guessed = ", who is PNS is a guess" if call.roles_guessed else ""
            yield f"known by its GRE alone{guessed}"
        translation = self._analysis.translation_of(call)
        if translation is not None:
            yield _other_side(call, translation)
        if call.reply is not None and not call.reply.agrees:
            yield f"refused: {call.reply.words}" + _cause(call.reply.cause)
        elif call.setup is not None:
            again = f", asked {call.requests} times" if call.requests > 1 else ""
            yield f"set up in {_short(call.setup)}{again}"
        elif call.state is CallState.REQUESTED:
            yield f"asked for {_counted(call.requests, 'time')}, no answer"
        if call.wan_errors is not None:
            errors = call.wan_errors
            yield (
                f"WAN errors, as the PAC says: crc {errors.crc}, framing {errors.framing}, "
                f"hardware overruns {errors.hardware_overruns}, buffer overruns "
                f"{errors.buffer_overruns}, time-outs {errors.time_outs}, "
                f"alignment {errors.alignment}"
            )
        for role in Role:
            yield from self._direction(call, role)
        if call.ppp is not None and call.ppp.phases:
            yield from self._ppp(call, call.ppp)
        yield self._ending(call)

    def _direction(self, call: Call, sender: Role) -> Iterator[str]:
        flow = call.gre.get(sender)
        if flow is None:
            if call.connected is not None:
                yield f"no GRE from the {sender.value} was seen"
            return
        yield f"GRE from the {sender.value}: {_flow(flow)}, first {self._place(flow.first)}"
        if flow.quality is not None:
            window = call.end_of(sender.other).window
            yield from (f"  {line}" for line in _quality(flow.quality, window))

    def _ppp(self, call: Call, ppp: Ppp) -> Iterator[str]:
        phases = ", ".join(
            f"{phase.state.value} at {self._at(phase.begin)}" for phase in ppp.phases[:12]
        )
        yield f"PPP: {phases}"
        for role, proof in ppp.authentications.items():
            if proof.first is None:
                continue
            how = "no outcome seen" if proof.outcome is None else proof.outcome.value
            error = f" E={proof.error}" if proof.error is not None else ""
            message = f" {_quoted(proof.message)}" if proof.message else ""
            yield (
                f"  {_quoted(proof.name)} proves itself to the {role.value} with "
                f"{proof.protocol}: {how}{error}{message}"
            )
        if ppp.encryption:
            yield f"  encryption: {ppp.encryption}"
        addresses = [f"{role.value} {ppp.address(role)}" for role in Role if ppp.address(role)]
        if addresses:
            yield f"  addresses inside: {', '.join(addresses)}"
        yield from (f"  {line}" for line in self._ladders.of_ppp(call))

    def _ending(self, call: Call) -> str:
        lasted = "" if call.duration is None else f", up for {_short(call.duration)}"
        if call.end is None or call.ended is None:
            return f"still {call.state.value} at the end of the capture{lasted}"
        words = call.end.value
        if call.notify is not None:
            words += f": {call.notify.words}{_cause(call.notify.cause)}"
        if call.statistics:
            words += f" {_quoted(call.statistics)}"
        return f"ended: {words} ({self._place(call.ended)}){lasted}"


def _trouble(connection: ControlConnection, party: Party, word: str) -> Iterator[str]:
    trouble, echoes = connection.trouble[party], connection.echoes[party]
    found = {
        "retransmitted": trouble.retransmissions, "reordered": trouble.reordered,
        "octets never captured": trouble.missing, "conflicting": trouble.conflicts,
        "resets": trouble.resets, "messages split between segments": trouble.split,
        "segments with several messages": trouble.joined, "zero windows": trouble.zero_windows,
    }  # fmt: skip
    words = [f"{name} {count}" for name, count in found.items() if count]
    words += [
        f"{slug} {count}"
        for (who, slug), (count, _) in connection.oddities.items()
        if who is party
    ]
    if trouble.longest_silence > 1.0:
        words.append(f"acknowledged nothing for {_short(trouble.longest_silence)}")
    if words:
        yield f"  {word}'s TCP: {', '.join(words)}"
    if echoes.requests:
        trips = sorted(echoes.round_trips)
        trip = f", median round trip {_short(trips[len(trips) // 2])}" if trips else ""
        yield f"  {word}'s echoes: {echoes.requests} asked, {echoes.replies} answered{trip}"


def _quality(quality: GreQuality, window: int | None) -> Iterator[str]:
    found = {
        "lost": quality.lost, "duplicates": quality.duplicates, "fragmented": quality.fragmented,
        "false payload lengths": quality.lies,
    }  # fmt: skip
    words = [f"{name} {count}" for name, count in found.items() if count]
    if quality.reordered:
        words.append(f"reordered {quality.reordered} (by {quality.depth} at most)")
    words += [f"{slug} {count}" for slug, (count, _) in sorted(quality.oddities.items())]
    if words:
        yield ", ".join(words)
    delays = quality.delays
    if delays.count:
        median, most = delays.percentile(0.5), delays.percentile(0.99)
        assert median is not None
        assert most is not None
        yield f"acknowledged after {_short(median)} (median), {_short(most)} (99 of 100)"
    if quality.outstanding:
        of = "" if window is None else f", the receiver's window is {window}"
        yield f"{quality.outstanding} packets without acknowledgement at most{of}"
    if quality.stalled:
        yield f"stood still for {_short(quality.stalled)} waiting for acknowledgements"


def _other_side(call: Call, translation: Translation) -> str:
    is_inside = call is translation.inside
    other = translation.outside if is_inside else translation.inside
    delay = "" if translation.delay is None else f"; {_short(translation.delay)} on the way"
    why = ", ".join(translation.reasons)
    if translation.hidden is None:
        return f"the same as call {other.id}, at another place ({why}{delay})"
    side = "outside" if is_inside else "inside"
    end = other.end_of(translation.hidden)
    return (
        f"{side} the NAT it is call {other.id}: its {translation.hidden.value} is "
        f"{party(end)} there ({why}{delay})"
    )


def _flow(flow: GreFlow) -> str:
    return (
        f"{dotted(flow.source)} to {dotted(flow.destination)} key {flow.key}, "
        f"{_counted(flow.packets, 'packet')}, {_counted(flow.octets, 'octet')}"
    )


def party(end: CallEnd) -> str:
    """Return a party of a call as address and call ID."""
    return f"{dotted(end.address)}/{'?' if end.call_id is None else end.call_id}"


def _cause(cause: int | None) -> str:
    return f", cause {cause}" if cause else ""


def _quoted(word: str) -> str:
    return json.dumps(word)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _short(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds >= 100:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _date(time: float) -> str:
    """Return a moment as people write it; a time that is none (a damaged file's) as a number."""
    if not 0 <= time <= _LATEST:
        return f"{time:.0f} s"
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
