"""What goes wrong on the control connection, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pptp_nat.analysis.model import IcmpReport
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.rule import ConnectionCase, Finding, Rule, evidence, seconds
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import MessageType
from pptp_nat.core.packet import TCP
from pptp_nat.core.tuples import Party

M = MessageType
_OPENER, _SERVER = Party.ORIGINATOR, Party.RESPONDER
_PATIENCE: Final = 3.0  #: seconds; a SYN is sent again after one
_REPLY_TIME: Final = 10.0  #: seconds; the RFC allows 60, nobody who dials waits that long
_ECHO_TIME: Final = 30.0  #: seconds without Echo-Reply; RFC 2637 section 3.1.4 closes after 60
_AGAIN: Final = 64  #: octets sent again on a connection that hardly says anything
_AGAIN_SHARE: Final = 0.1


def _closed(case: ConnectionCase) -> Finding | None:
    """The server answers SYN with RST, or a router says that nobody listens."""
    connection, end = case.connection, case.connection.end
    report = _icmp(case, {(3, 3)})
    if connection.syn_ack is None and end and end.how == "RST" and end.by is _SERVER:
        place = evidence(connection.syn, end.evidence)
        return Finding(f"{case.server} refuses the TCP connection", place)
    if report is not None and connection.syn_ack is None:
        return Finding(
            f"nobody listens at {case.server}", evidence(connection.syn, report.evidence)
        )
    return None


def _filtered(case: ConnectionCase) -> Finding | None:
    """No answer to SYN, whatever the reason that ICMP may give."""
    connection = case.connection
    if connection.syn is None or connection.syn_ack is not None or connection.under_way:
        return None
    report = _icmp(case, {(3, 0), (3, 1), (3, 2), (3, 9), (3, 10), (3, 13), (11, 0)})
    if report is not None:
        return Finding(
            f"{case.server} cannot be reached: {report.words}",
            evidence(connection.syn, report.evidence),
        )
    if case.said(_SERVER) or connection.ends_seen or case.after(connection.syn) < _PATIENCE:
        return None
    return Finding(f"{case.server} does not answer", evidence(connection.syn, connection.last))


def _icmp(case: ConnectionCase, kinds: set[tuple[int, int]]) -> IcmpReport | None:
    """Return the first ICMP error of *kinds* about the opener's segments."""
    opener, server = case.connection.ends
    for report in case.scene.icmp_between.get(frozenset((opener.address, server.address)), ()):
        if (
            report.protocol == TCP
            and (report.type, report.code) in kinds
            and (report.source, report.destination) == (opener.address, server.address)
            and report.ports in (None, (opener.port, server.port))
        ):
            return report
    return None


def _silent(case: ConnectionCase) -> Finding | None:
    """TCP is up, the request is said, and nothing comes back."""
    requests = case.entries(M.START_CONTROL_CONNECTION_REQUEST)
    if not requests or requests[0].sender is not _OPENER or case.said(_SERVER):
        return None
    asked = requests[0].evidence
    end = case.connection.end
    if end is None and case.after(asked) < _REPLY_TIME:
        return None
    how = f"it ends with {end.how}" if end else f"{seconds(case.after(asked))} go by"
    return Finding(
        f"{case.server} accepts the connection but does not speak PPTP: no reply to "
        f"Start-Control-Connection-Request, {how}",
        evidence(asked, end.evidence if end else None),
    )


def _refused(case: ConnectionCase) -> Finding | None:
    """The reply to Start-Control-Connection-Request says no."""
    start = case.connection.start
    if start is None or start.agrees:
        return None
    places = [entry.evidence for entry in case.entries(M.START_CONTROL_CONNECTION_REPLY)]
    return Finding(f"{case.server} refuses: {start.words}", evidence(*places[:1]))


def _not_pptp(case: ConnectionCase) -> Finding | None:
    """Octets without the magic cookie 0x1A2B3C4D."""
    for (party, slug), (count, first) in case.connection.oddities.items():
        if slug in ("bad_magic", "length_below_header", "length_beyond_bound"):
            return Finding(
                f"{case.name(party)} sends what is no PPTP ({slug}, {count} times)", evidence(first)
            )
    return None


def _echo_unanswered(case: ConnectionCase) -> Iterator[Finding]:
    """An Echo-Request waits for its reply until the end or until somebody gives up."""
    for party in Party:
        asked = case.connection.echoes[party].pending
        if asked is None:
            continue
        end = case.connection.end
        waited = end.evidence.time - asked.time if end else case.after(asked)
        if waited >= _ECHO_TIME:
            yield Finding(
                f"{case.name(party.other)} leaves the Echo-Request of {case.name(party)} "
                f"unanswered for {seconds(waited)}",
                evidence(asked, end.evidence if end else None),
            )


def _reset(case: ConnectionCase) -> Finding | None:
    """RST while a call is up."""
    end = case.connection.end
    if end is None or end.how != "RST":
        return None
    hit = [
        call for call in case.connection.calls
        if call.connected and not call.cleared and not call.disconnected
    ]  # fmt: skip
    if not hit:
        return None
    calls = "its call" if len(hit) == 1 else f"{len(hit)} calls"
    return Finding(f"{case.name(end.by)} resets the control connection and {calls} with it",
                   evidence(end.evidence))  # fmt: skip


def _lossy(case: ConnectionCase) -> Finding | None:
    """Retransmissions; one or two are the weather."""
    worst = max(Party, key=lambda party: case.connection.trouble[party].retransmissions)
    trouble = case.connection.trouble[worst]
    again = trouble.retransmissions
    if again < _AGAIN or again < _AGAIN_SHARE * trouble.octets:
        return None
    return Finding(
        f"{case.name(worst)} had to send {again} octets again, and {trouble.octets} in all",
        evidence(case.connection.first, case.connection.last),
    )


def _split(case: ConnectionCase) -> Finding | None:
    """Messages that do not begin and end with their segments."""
    trouble = case.connection.trouble
    split = sum(each.split for each in trouble)
    joined = sum(each.joined for each in trouble)
    if not split and not joined:
        return None
    places = [entry.evidence for entry in case.connection.ladder if len(entry.packets) > 1]
    words = [f"{split} came in several segments"] * bool(split)
    words += [f"{joined} segments held more than one or parts of two"] * bool(joined)
    return Finding("control messages and segments do not match: " + ", ".join(words),
                   evidence(*places[:4]))  # fmt: skip


def _link_info(case: ConnectionCase) -> Finding | None:
    """Set-Link-Info with a number that is nobody's: a translator has damaged it."""
    inexact = [info for call in case.connection.calls for info in call.link_infos if not info.exact]
    places: list[Evidence] = [info.evidence for info in inexact]
    for entry in case.entries(M.SET_LINK_INFO):
        number = entry.fields.get("peer_call_id")
        known = {
            end.call_id for call in case.connection.calls for end in (call.pns, call.pac)
        }  # fmt: skip
        if case.connection.calls and number is not None and number not in known:
            places.append(entry.evidence)
    if not places:
        return None
    return Finding("Set-Link-Info names a call that there is not", evidence(*places[:4]))


def _stopped(case: ConnectionCase) -> Finding | None:
    """The server stops a connection with calls that nobody has cleared."""
    end = case.connection.end
    if end is None or end.by is not _SERVER or not end.how.startswith("Stop"):
        return None
    if all(call.cleared or call.disconnected for call in case.connection.calls):
        return None
    return Finding(f"{case.server} stops the control connection", evidence(end.evidence))


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

#: Rules about control connections, the most telling first.
CONNECTION_RULES: Final[tuple[Rule[ConnectionCase], ...]] = (
    Rule("port_closed", _E, "Start the PPTP server there, or correct address and port; a port "
         "forward to it may lead to the wrong host.", _closed),
    Rule("port_filtered", _E, "Allow TCP port 1723 to the server on every firewall on the way; "
         "the server's own may want a rule too, and the provider may block it.", _filtered,
         ("port_closed",)),
    Rule("server_refused", _E, "Ask whoever runs the server: it lets only so many connections or "
         "only certain clients in, or wants another protocol version.", _refused),
    Rule("server_silent", _E, "Look whether really a PPTP server listens on this port, and not a "
         "proxy, a forward into nowhere or a firewall that reads the connection.", _silent),
    Rule("not_pptp", _E, "What speaks on this port is no PPTP, or a middlebox changes the octets; "
         "compare with a capture at the other end.", _not_pptp),
    Rule("echo_timeout", _E, "The peer is gone, or something between has forgotten the TCP "
         "connection: raise its time-out for established connections above two minutes.",
         _echo_unanswered),
    Rule("control_reset", _W, "Look in the log of the side that reset: its server process ended, "
         "or a firewall cuts connections that it has forgotten.", _reset),
    Rule("server_stopped", _W, "Look in the server's log: it was shut down, restarted, or ended "
         "this connection by its own rules.", _stopped),
    Rule("control_lossy", _W, "The way to the server loses packets: test it with ping of "
         "different sizes, at different hours.", _lossy),
    Rule("set_link_info_damaged", _W, "A router on the way translates Set-Link-Info wrongly (known "
         "as error 619): turn its PPTP helper off, or update it.", _link_info),
    Rule("split_messages", _N, "Nothing to be done at the ends. A translator that reads segment by "
         "segment, as the kernel's does, misses such messages; pptp-nat does not.", _split),
)  # fmt: skip
