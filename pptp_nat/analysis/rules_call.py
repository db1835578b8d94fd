"""What goes wrong with a call before and besides its data, as a table."""

from __future__ import annotations

from typing import Final

from pptp_nat.analysis.ppp import PppState
from pptp_nat.analysis.rule import CallCase, Finding, Rule, dotted, evidence, seconds
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role
from pptp_nat.core.tuples import Party

_PNS, _PAC = Role.PNS, Role.PAC
_REPLY_TIME: Final = 10.0  #: seconds for the reply to a call request
_FIRST_GRE: Final = 3.0  #: seconds in which a PPP that is well has sent its first request
_FEW: Final = 3  #: packets into silence that make it one
_PROMPTLY: Final = 30.0  #: seconds after set-up in which an end is a failure to begin
_SLOW: Final = 5.0  #: seconds of set-up that a person notices
_IDLE: Final = 25.0  #: seconds after which the shortest usual GRE time-out (30 s) may strike
_DEAF: Final = 3  #: requests repeated after their Ack went past
_DEAD: Final = 10.0  #: seconds of one-way traffic


def _refused(case: CallCase) -> Finding | None:
    """The reply to the call's request says no."""
    reply = case.call.reply
    if reply is None or reply.agrees:
        return None
    asker = _PAC if case.call.incoming else _PNS
    cause = f", cause {reply.cause}" if reply.cause else ""
    return Finding(f"{case.name(asker.other)} refuses the call: {reply.words}{cause}",
                   evidence(case.call.requested, case.call.replied))  # fmt: skip


def _unanswered(case: CallCase) -> Finding | None:
    """A request without reply."""
    call = case.call
    if call.requested is None or call.replied is not None:
        return None
    ended = case.ended
    waited = ended.time - call.requested.time if ended else case.after(call.requested)
    if waited < _REPLY_TIME and ended is None:
        return None
    asker = _PAC if call.incoming else _PNS
    return Finding(
        f"{case.name(asker.other)} does not answer the call request ({seconds(waited)})",
        evidence(call.requested, ended),
    )


def _slow(case: CallCase) -> Finding | None:
    """Set-up that takes long, but comes."""
    setup = case.call.setup
    if setup is None or setup < _SLOW:
        return None
    return Finding(f"setting up the call took {seconds(setup)}",
                   evidence(case.call.requested, case.call.connected))  # fmt: skip


def _lived(case: CallCase) -> float:
    """Seconds from being connected to the end, as far as it was captured."""
    connected, ended = case.call.connected, case.ended
    if connected is None:
        return 0.0
    return ended.time - connected.time if ended else case.after(connected)


def _no_gre(case: CallCase) -> Finding | None:
    """The call is up, no GRE at all."""
    if case.call.connected is None or case.call.gre or _lived(case) < _FIRST_GRE:
        return None
    return Finding(f"the call is up for {seconds(_lived(case))} and no GRE passes either way",
                   evidence(case.call.connected, case.ended))  # fmt: skip


def _one_way(case: CallCase, silent: Role) -> Finding | None:
    """GRE from one side only."""
    other = case.sent(silent.other)
    flow = case.flow(silent.other)
    if case.sent(silent) or flow is None or other < _FEW:
        return None
    span = flow.last.time - flow.first.time
    if max(span, case.after(flow.first)) < _FIRST_GRE:
        return None
    return Finding(
        f"{case.name(silent.other)} sends GRE ({other} packets in {seconds(span)}), "
        f"none comes from {case.name(silent)}",
        evidence(case.call.connected, flow.first, flow.last),
    )


def _no_gre_from_server(case: CallCase) -> Finding | None:
    """The client sends GRE, the server none."""
    return _one_way(case, _PAC)


def _no_gre_from_client(case: CallCase) -> Finding | None:
    """The server sends GRE, the client none."""
    return _one_way(case, _PNS)


def _lost_in_nat(case: CallCase) -> Finding | None:
    """GRE arrives on one side of the NAT and does not leave on the other."""
    translation, twin = case.translation, case.twin
    if translation is None or twin is None:
        return None
    for role in Role:
        there = twin.flow(role)
        if case.sent(role) == 0 and there is not None and there.packets >= _FEW:
            at = "outside" if case.call is translation.inside else "inside"
            return Finding(
                f"GRE from {twin.name(role)} reaches the NAT {at} ({there.packets} packets) "
                "and does not come out on the other side",
                evidence(there.first, case.call.connected),
            )
    return None


def _deaf(case: CallCase) -> Finding | None:
    """GRE passes here, but its receiver acts as if it had got none."""
    for role in Role:
        side = case.ppp.lcp.sides[role]
        heard = case.ppp.lcp.sides[role.other]
        if side.repeated_after_ack >= _DEAF and heard.agreed is None and heard.requests:
            return Finding(
                f"GRE towards {case.name(role)} passes here but is lost behind: it repeats its LCP "
                f"request {side.repeated_after_ack} times although the Ack went past, and answers "
                "none of the other side",
                evidence(side.agreed_at, side.last),
            )
    return None


def _hung_up(case: CallCase) -> Finding | None:
    """The server ends the call before PPP has come anywhere, and nobody asked it to."""
    call = case.call
    closed = call.connection.end if call.connection else None
    if call.connected is None or call.cleared or case.reached_opened or case.ppp.lcp.terminations:
        return None
    if call.disconnected:
        place, how = call.disconnected, f"with {call.notify.words}" if call.notify else ""
    elif closed and closed.by is Party.RESPONDER and not call.incoming:
        place, how = closed.evidence, f"with {closed.how}"
    else:
        return None
    lived = place.time - call.connected.time
    if lived > _PROMPTLY or case.ppp.lcp.opened is not None:
        return None
    return Finding(
        f"{case.name(_PAC)} accepts the call and hangs up {seconds(lived)} later {how}".rstrip(),
        evidence(call.connected, place),
    )


def _disconnected(case: CallCase) -> Finding | None:
    """The PAC ends a call that had worked, and says why."""
    call = case.call
    if call.disconnected is None or call.cleared or call.notify is None:
        return None
    if not case.reached_opened or call.notify.result == 4 or case.ppp.lcp.terminations:
        return None
    cause = f", cause {call.notify.cause}" if call.notify.cause else ""
    return Finding(f"{case.name(_PAC)} ends the call: {call.notify.words}{cause}",
                   evidence(call.disconnected))  # fmt: skip


def _wrong_number(case: CallCase) -> Finding | None:
    """Call-Disconnect-Notify with the PNS's number (accel-ppp)."""
    if case.call.wrong_notify is None:
        return None
    return Finding(
        f"{case.name(_PAC)} puts the client's call ID {case.call.wrong_notify} into "
        "Call-Disconnect-Notify, which should carry its own",
        evidence(case.call.disconnected),
    )


def _one_way_death(case: CallCase) -> tuple[Role, float, Finding] | None:
    """Find a direction that worked and went silent while the other goes on."""
    for role, quality in case.qualities():
        silence = quality.unanswered
        if silence is None or silence.since is None or silence.heard < _FEW:
            continue
        if not quality.acknowledging:
            continue  # who never acknowledges may well be silent while the other speaks
        ended = case.ended
        until = min(silence.until, ended.time) if ended else silence.until
        if until - (silence.began if silence.rest >= _IDLE else silence.begin) < _DEAD:
            continue
        other = case.quality(role.other)
        if other is None or case.ppp.lcp.terminations or until <= silence.began:
            continue
        return (
            role,
            silence.rest,
            Finding(
                f"GRE from {case.name(role)} has stopped: {silence.heard} packets of the other "
                f"side in {seconds(until - silence.began)} have no answer, "
                f"after {seconds(silence.rest)} of rest",
                evidence(silence.since, other.last),
            ),
        )
    return None


def _idle_death(case: CallCase) -> Finding | None:
    """One direction is dead after a rest: its NAT entry has gone, the control lives."""
    found = _one_way_death(case)
    return found[2] if found and found[1] >= _IDLE else None


def _gone_silent(case: CallCase) -> Finding | None:
    """One direction is dead without a rest before."""
    found = _one_way_death(case)
    return found[2] if found and found[1] < _IDLE else None


def _gone_into_tunnel(case: CallCase) -> Finding | None:
    """The client falls silent as soon as it has its address, with GRE and with TCP."""
    opened = case.ppp.reached(PppState.OPENED)
    found = _one_way_death(case)
    connection = case.call.connection
    if opened is None or found is None or found[0] is not _PNS or connection is None:
        return None
    quality = case.quality(_PNS)
    last = quality.last if quality else None
    if last is None or not opened.time <= last.time <= opened.time + _FIRST_GRE:
        return None
    said = [entry.evidence.time for entry in connection.ladder if entry.sender is Party.ORIGINATOR]
    if max(said, default=0.0) > last.time + _FIRST_GRE:
        return None
    return Finding(
        f"{case.name(_PNS)} falls silent {seconds(last.time - opened.time)} after it has got its "
        "address, with GRE and on the control connection, while the server goes on",
        evidence(opened, last),
    )


def _unreachable(case: CallCase) -> Finding | None:
    """An ICMP error about the call's GRE."""
    for report in case.icmp:
        if report.type == 3 and report.code != 4:
            return Finding(
                f"{dotted(report.reporter)} says about GRE to {dotted(report.destination)}: "
                f"{report.words}",
                evidence(report.evidence),
            )
    return None


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_BEFORE_GRE: Final = ("call_refused", "call_unanswered", "server_hung_up", "gre_unreachable",
                      "wrong_source", "wrong_call_id")  # fmt: skip

#: Rules about how a call comes up, what way its GRE takes, and how it ends.
CALL_RULES: Final[tuple[Rule[CallCase], ...]] = (
    Rule("call_refused", _E, "The reason is the server's: no free line, no address left, or this "
         "client may not call. Its log says more.", _refused),
    Rule("call_unanswered", _E, "If the request passed here untouched, look at the server; if a "
         "router between runs a PPTP helper, it may have dropped it.", _unanswered),
    Rule("gre_unreachable", _E, "Somebody on the way refuses IP protocol 47 (GRE): allow it there. "
         "It is no port; a rule for TCP 1723 does not cover it.", _unreachable),
    Rule("gre_lost_in_nat", _E, "The NAT does not translate this GRE: run pptp-nat on it, or load "
         "and assign its PPTP helper, and allow protocol 47 in FORWARD.", _lost_in_nat),
    Rule("server_hung_up", _E, "The server's PPP did not start or gave up at once: look in its log "
         "(a missing pppd, /dev/ppp, or wrong options), and whether GRE reaches it.", _hung_up),
    Rule("gre_lost_behind", _E, "Between this place and the receiver somebody drops IP protocol "
         "47: the NAT without helper, a firewall, or the host's own. Capture there next.", _deaf,
         ("gre_lost_in_nat",)),
    Rule("no_gre_from_server", _E, "Either protocol 47 towards the server is blocked, so it has "
         "nothing to answer, or its answers are: a firewall on the way, or a NAT without PPTP "
         "helper. Capture at the server, or on the router's outer interface, and see which.",
         _no_gre_from_server, ("gre_lost_in_nat", *_BEFORE_GRE)),
    Rule("no_gre_from_client", _E, "The client's firewall or the router drops outgoing protocol "
         "47, or the client does not hear the server either. Capture at the client.",
         _no_gre_from_client, ("gre_lost_in_nat", *_BEFORE_GRE)),
    Rule("no_gre", _E, "Neither side's GRE comes past: protocol 47 is blocked on both ways, or "
         "this capture was taken with a filter that leaves GRE out ('tcp port 1723 or proto 47' "
         "shows both).", _no_gre, _BEFORE_GRE),
    Rule("gone_into_tunnel", _E, "The client's routing table sends the tunnel's own packets into "
         "the tunnel: keep a host route to the server by the old gateway before the tunnel becomes "
         "the default route.", _gone_into_tunnel, ("ip_loop",)),
    Rule("idle_death", _E, "A NAT on the way has forgotten the GRE while the call was idle: raise "
         "its GRE time-outs (net.netfilter.nf_conntrack_gre_timeout and ..._stream), or have PPP "
         "send LCP echoes every 20 s (lcp-echo-interval).", _idle_death,
         ("gone_into_tunnel", "ip_loop")),
    Rule("gone_silent", _E, "That side has crashed, lost its way, or its GRE is dropped from now "
         "on: look there, and at what changed on the way at this moment.", _gone_silent,
         ("gone_into_tunnel", "ip_loop")),
    Rule("call_disconnected", _W, "The server's log says more: its session limit, an idle limit, "
         "or an administrator.", _disconnected),
    Rule("wrong_disconnect_id", _N, "A quirk of accel-ppp; translators must look this number up in "
         "both number spaces, as pptp-nat does.", _wrong_number),
    Rule("slow_setup", _N, "The server is slow to answer, or the way to it is: compare with its "
         "echo round trips.", _slow),
)  # fmt: skip
