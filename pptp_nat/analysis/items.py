"""An analysis as plain objects, for JSON (docs/analysis.schema.json).

Times are Unix seconds, durations seconds, addresses dotted; what was not seen is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp_words import protocol_name
from pptp_nat.core.messages import Role
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pptp_nat.analysis.gre_quality import GreQuality
    from pptp_nat.analysis.model import (
        Analysis,
        Call,
        CallEnd,
        CaptureFile,
        ControlConnection,
        Diagnosis,
        GreFlow,
        IcmpReport,
        LadderEntry,
        Outcome,
        Socket,
    )
    from pptp_nat.analysis.ppp import Ppp
    from pptp_nat.core.tuples import Address

Item = dict[str, Any]


def dotted(address: Address) -> str:
    """Return an address as people write it."""
    return ".".join(map(str, address))


def analysis_item(analysis: Analysis) -> Item:
    """Return everything."""
    return {
        "files": [file_item(each) for each in analysis.files],
        "interrupted": analysis.interrupted,
        "counts": dict(sorted(analysis.counts.items())),
        "control_connections": [connection_item(c) for c in analysis.control_connections],
        "calls": [call_item(call, analysis) for call in analysis.calls],
        "strays": [flow_item(flow) for flow in analysis.strays],
        "icmp": [icmp_item(each) for each in analysis.icmp],
        "diagnoses": [diagnosis_item(each) for each in analysis.diagnoses],
        "left_out": {"calls": analysis.left_out, "stray_packets": analysis.strays_left_out},
    }


def file_item(file: CaptureFile) -> Item:
    """Return a file."""
    damage = file.damage
    return {
        "name": shown(file.name),
        "kind": file.kind,
        "links": file.links,
        "vantage": file.vantage,
        "packets": file.packets,
        "octets": file.octets,
        "cut": file.cut,
        "repeated": file.repeated,
        "first": file.first,
        "last": file.last,
        "damage": damage
        and {"offset": damage.offset, "packets_before": damage.number, "what": damage.what},
    }


def shown(text: str) -> str:
    """Return text that is fit to be written in any encoding."""
    return text.encode("utf-8", "replace").decode("utf-8")


def evidence_item(evidence: Evidence | None) -> Item | None:
    """Return where something is to be seen."""
    return evidence and {"file": evidence.file, "packet": evidence.number, "time": evidence.time}


def connection_item(connection: ControlConnection) -> Item:
    """Return a control connection."""
    end = connection.end
    return {
        "id": connection.id,
        "file": connection.file,
        "state": connection.state.value,
        "under_way": connection.under_way,
        "opener": _party_item(connection, Party.ORIGINATOR),
        "responder": _party_item(connection, Party.RESPONDER),
        "first": evidence_item(connection.first),
        "last": evidence_item(connection.last),
        "established": evidence_item(connection.established),
        "start": outcome_item(connection.start),
        "end": end and {
            "by": _PARTIES[end.by], "how": end.how, "evidence": evidence_item(end.evidence)
        },
        "calls": [call.id for call in connection.calls],
        "oddities": [
            {"by": _PARTIES[party], "oddity": slug, "count": n, "first": evidence_item(first)}
            for (party, slug), (n, first) in sorted(connection.oddities.items())
        ],
        "ladder": [ladder_item(entry) for entry in connection.ladder],
        "ladder_left_out": connection.ladder_left_out,
    }  # fmt: skip


_PARTIES = {Party.ORIGINATOR: "opener", Party.RESPONDER: "responder"}


def _party_item(connection: ControlConnection, party: Party) -> Item:
    introduction, trouble = connection.introductions[party], connection.trouble[party]
    echoes = connection.echoes[party]
    trips = sorted(echoes.round_trips)
    return {
        **socket_item(connection.ends[party]),
        "introduction": introduction and {
            "host": introduction.host, "vendor": introduction.vendor,
            "version": introduction.version, "firmware": introduction.firmware,
            "framing": introduction.framing, "bearer": introduction.bearer,
            "channels": introduction.channels,
        },
        "messages": {
            "unknown" if kind is None else kind.title: count
            for (sender, kind), count in connection.messages.items()
            if sender is party
        },
        "tcp": {
            "segments": trouble.segments, "octets": trouble.octets,
            "retransmissions": trouble.retransmissions, "reordered": trouble.reordered,
            "missing": trouble.missing, "repeated": trouble.repeated,
            "conflicts": trouble.conflicts, "resets": trouble.resets, "cut": trouble.cut,
            "split": trouble.split, "joined": trouble.joined,
            "zero_windows": trouble.zero_windows, "longest_silence": trouble.longest_silence,
        },
        "echoes": {
            "requests": echoes.requests, "replies": echoes.replies,
            "pending": evidence_item(echoes.pending),
            "shortest": trips[0] if trips else None,
            "median": trips[len(trips) // 2] if trips else None,
            "longest": trips[-1] if trips else None,
        },
    }  # fmt: skip


def socket_item(socket: Socket) -> Item:
    """Return an end of a control connection."""
    return {"address": dotted(socket.address), "port": socket.port}


def outcome_item(outcome: Outcome | None) -> Item | None:
    """Return the codes of a message."""
    if outcome is None:
        return None
    return {
        "message": outcome.kind.title, "result": outcome.result, "error": outcome.error,
        "cause": outcome.cause, "words": outcome.words,
    }  # fmt: skip


def ladder_item(entry: LadderEntry) -> Item:
    """Return a rung."""
    return {
        "evidence": evidence_item(entry.evidence),
        "sender": _PARTIES[entry.sender],
        "step": entry.step.value,
        "title": entry.title,
        "fields": dict(entry.fields),
        "packets": list(entry.packets),
        "notes": list(entry.notes),
    }


def call_item(call: Call, analysis: Analysis) -> Item:
    """Return a call."""
    translation = analysis.translation_of(call)
    other = hidden = None
    if translation is not None:
        other = translation.outside if call is translation.inside else translation.inside
        hidden = translation.hidden
    errors = call.wan_errors
    return {
        "id": call.id,
        "file": call.file,
        "control_connection": call.connection and call.connection.id,
        "direction": _DIRECTIONS[call.incoming],
        "state": call.state.value,
        "roles_guessed": call.roles_guessed,
        "pns": end_item(call.pns),
        "pac": end_item(call.pac),
        "serial": call.serial,
        "phone": call.phone,
        "dialing": call.dialing,
        "subaddress": call.subaddress,
        "speed": call.speed,
        "requests": call.requests,
        "requested": evidence_item(call.requested),
        "replied": evidence_item(call.replied),
        "connected": evidence_item(call.connected),
        "setup_seconds": call.setup,
        "reply": outcome_item(call.reply),
        "cleared": evidence_item(call.cleared),
        "disconnected": evidence_item(call.disconnected),
        "disconnect": outcome_item(call.notify),
        "statistics": call.statistics,
        "ended": evidence_item(call.ended),
        "end": call.end and call.end.value,
        "duration_seconds": call.duration,
        "link_infos": [
            {"evidence": evidence_item(each.evidence), "sender": each.sender.value,
             "number": each.number, "exact": each.exact,
             "send_accm": each.send_accm, "receive_accm": each.receive_accm}
            for each in call.link_infos
        ],
        "wan_errors": errors and {
            "evidence": evidence_item(errors.evidence), "notifies": call.wan_notifies,
            "crc": errors.crc, "framing": errors.framing,
            "hardware_overruns": errors.hardware_overruns,
            "buffer_overruns": errors.buffer_overruns,
            "time_outs": errors.time_outs, "alignment": errors.alignment,
        },
        "gre": {role.value.lower(): _gre_item(call, role) for role in Role},
        "ppp": call.ppp and ppp_item(call.ppp),
        "other_side": translation and other and {
            "call": other.id, "hidden": hidden and hidden.value,
            "inside": call is translation.inside, "reasons": list(translation.reasons),
            "delay_seconds": translation.delay,
        },
    }  # fmt: skip


_DIRECTIONS = {True: "incoming", False: "outgoing", None: None}


def end_item(end: CallEnd) -> Item:
    """Return a party of a call."""
    return {
        "address": dotted(end.address), "call_id": end.call_id, "window": end.window,
        "processing_delay": end.processing_delay,
    }  # fmt: skip


def _gre_item(call: Call, sender: Role) -> Item | None:
    flow = call.gre.get(sender)
    if flow is None:
        return None
    item = flow_item(flow)
    if flow.quality is not None:
        item["quality"] = quality_item(flow.quality)
    return item


def flow_item(flow: GreFlow) -> Item:
    """Return one direction of GRE."""
    return {
        "source": dotted(flow.source), "destination": dotted(flow.destination), "key": flow.key,
        "packets": flow.packets, "octets": flow.octets,
        "first": evidence_item(flow.first), "last": evidence_item(flow.last),
    }  # fmt: skip


def quality_item(quality: GreQuality) -> Item:
    """Return the measures of one direction."""
    delays, silence, timeline = quality.delays, quality.silence, quality.timeline
    return {
        "payload_octets": quality.octets,
        "with_sequence_number": quality.data,
        "with_acknowledgement": quality.acknowledging,
        "lost": quality.lost, "duplicates": quality.duplicates,
        "reordered": quality.reordered, "reordering_depth": quality.depth,
        "restarts": quality.restarts,
        "losses": [evidence_item(each) for each in quality.losses],
        "acknowledgement_delay": {
            "count": delays.count, "median": delays.percentile(0.5),
            "p95": delays.percentile(0.95), "p99": delays.percentile(0.99),
            "longest": delays.longest if delays.count else None,
        },
        "outstanding": quality.outstanding, "outstanding_time": quality.outstanding_time,
        "acknowledgements_of_unseen": quality.acks_of_unseen,
        "stalled_seconds": quality.stalled,
        "stalls": [
            {"evidence": evidence_item(each.evidence), "seconds": each.seconds,
             "outstanding": each.outstanding}
            for each in quality.stalls
        ],
        "silence": silence and {
            "since": evidence_item(silence.since), "begin": silence.begin,
            "seconds": silence.seconds, "heard": silence.heard,
        },
        "longest_gap": quality.longest_gap,
        "fragmented": quality.fragmented, "lies": quality.lies,
        "oddities": {
            slug: {"count": count, "first": evidence_item(first)}
            for slug, (count, first) in sorted(quality.oddities.items())
        },
        "timeline": {
            "begin": timeline.base * timeline.width, "width": timeline.width,
            "bins": [
                {"packets": each.packets, "octets": each.octets, "lost": each.lost,
                 "outstanding": each.outstanding, "mean_delay": each.mean_delay}
                for each in timeline.bins
            ],
        },
    }  # fmt: skip


def ppp_item(ppp: Ppp) -> Item:
    """Return the PPP of a call; secrets never get as far as here."""
    return {
        "state": ppp.state.value,
        "phases": [
            {"state": phase.state.value, "begin": evidence_item(phase.begin)}
            for phase in ppp.phases
        ],
        "layers": {layer.name: _layer_item(layer.sides) for layer in ppp.layers.values()},
        "authentications": [
            {
                "authenticator": role.value, "protocol": each.protocol, "name": each.name,
                "authenticator_name": each.authenticator_name,
                "outcome": each.outcome and each.outcome.value, "error": each.error,
                "message": each.message, "evidence": evidence_item(each.outcome_at or each.last),
            }
            for role, each in ppp.authentications.items()
            if each.first is not None
        ],
        "encryption": ppp.encryption,
        "addresses": {role.value.lower(): ppp.address(role) for role in Role},
        "encrypted": {role.value.lower(): ppp.data[role].sealed for role in Role},
        "rejected": {
            protocol_name(protocol): {"by": role.value, "evidence": evidence_item(at)}
            for protocol, (role, at) in sorted(ppp.rejected.items())
        },
        "ladder": [
            {"evidence": evidence_item(rung.evidence), "sender": rung.sender.value,
             "said": rung.said}
            for rung in ppp.log
        ],
        "ladder_left_out": ppp.log_left_out,
    }  # fmt: skip


def _layer_item(sides: Mapping[Role, Any]) -> Item:
    return {
        role.value.lower(): {
            "requests": side.requests, "asked": side.asked, "agreed": side.agreed,
            "rejected": side.rejected,
        }
        for role, side in sides.items()
    }  # fmt: skip


def icmp_item(report: IcmpReport) -> Item:
    """Return an ICMP error."""
    return {
        "evidence": evidence_item(report.evidence), "reporter": dotted(report.reporter),
        "type": report.type, "code": report.code, "words": report.words,
        "protocol": report.protocol, "source": dotted(report.source),
        "destination": dotted(report.destination),
        "ports": None if report.ports is None else list(report.ports),
        "key": report.key, "mtu": report.mtu,
    }  # fmt: skip


def diagnosis_item(diagnosis: Diagnosis) -> Item:
    """Return a diagnosis."""
    return {
        "rule": diagnosis.rule, "severity": diagnosis.severity.value,
        "summary": diagnosis.summary, "remedy": diagnosis.remedy,
        "control_connection": diagnosis.connection, "call": diagnosis.call,
        "evidence": [evidence_item(each) for each in diagnosis.evidence],
    }  # fmt: skip
