"""What goes wrong inside a call, in PPP, as a table."""

from __future__ import annotations

from typing import Final

from pptp_nat.analysis import ppp_wire as wire
from pptp_nat.analysis.ppp import Authentication, PppState
from pptp_nat.analysis.ppp_auth import Kind
from pptp_nat.analysis.ppp_words import MS_ERRORS
from pptp_nat.analysis.rule import CallCase, Finding, Rule, dotted, evidence, packed, seconds
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_PNS, _PAC = Role.PNS, Role.PAC
_WAIT: Final = 6.0  #: seconds; PPP asks again every three
_REPEATS: Final = 3  #: requests without an answer
_ROUNDS: Final = 6  #: requests answered with other wishes
_RESETS: Final = 3
_AUTHENTICATION: Final = "authentication"
_ENCRYPTION: Final = "encryption"
#: What terminate reasons and Windows' numbers say when encryption is the matter.
_ABOUT_MPPE: Final = ("mppe", "encrypt", "error 741", "error 742", "error 743")

#: What to do about MS-CHAP's numbers.
_MS_REMEDIES: Final = {
    646: "The account may log on at certain hours only: ask whoever keeps the accounts.",
    647: "The account is disabled: ask whoever keeps the accounts.",
    648: "The password has expired: change it where the account lives; few clients can do so here.",
    649: "Give the account the right to dial in (in Windows: Dial-in, Network Access Permission).",
    709: "The new password was not taken: too short, too old or too simple for the domain's rules.",
}


def _failed(case: CallCase) -> Finding | None:
    """Somebody was told that he is not who he says."""
    for role, proof in case.ppp.authentications.items():
        may_follow = proof.may_retry and case.scene.analysis.live and not case.ended
        if may_follow and case.after(proof.outcome_at) < _WAIT:
            continue
        if proof.outcome is Kind.FAILURE:
            words = "" if proof.error is None else MS_ERRORS.get(proof.error, "unknown error")
            code = "" if proof.error is None else f" (E={proof.error})"
            said = f", it says “{proof.message}”" if proof.message else ""
            who = f"“{proof.name}”" if proof.name else "without a name"
            return Finding(
                f"{case.name(role)} refuses {who} by {proof.protocol}: "
                f"{words or 'authentication failed'}{code}{said}",
                evidence(proof.first, proof.outcome_at),
                _MS_REMEDIES.get(proof.error or 0),
            )
    return None


def _open_proof(case: CallCase) -> tuple[Role, Authentication] | None:
    """Find an authentication that began and came to no verdict."""
    for role, proof in case.ppp.authentications.items():
        if proof.first and proof.outcome is None and case.ppp.state is not PppState.OPENED:
            ended = case.ended
            last = proof.last or proof.first
            waited = ended.time - last.time if ended else case.after(last)
            if waited >= _WAIT or case.ppp.lcp.terminations or proof.challenges > _REPEATS:
                return role, proof
    return None


def _no_response(case: CallCase) -> Finding | None:
    """Challenges, and nobody responds."""
    found = _open_proof(case)
    if found is None or found[1].responses:
        return None
    role, proof = found
    return Finding(
        f"{case.name(role.other)} does not respond to {proof.challenges} challenges "
        f"({proof.protocol})",
        evidence(proof.first, proof.last),
    )


def _no_verdict(case: CallCase) -> Finding | None:
    """A response, and no verdict: "verifying user name and password...", for ever."""
    found = _open_proof(case)
    if found is None or not found[1].responses or case.ppp.state is PppState.NETWORK:
        return None
    role, proof = found
    return Finding(
        f"{case.name(role)} gives no verdict on “{proof.name}” ({proof.protocol})",
        evidence(proof.first, proof.last),
    )


def _authentication_mismatch(case: CallCase) -> Finding | None:
    """One wants a proof that the other does not give."""
    for role in Role:
        side = case.ppp.lcp.sides[role]
        wanted = side.asked.get(_AUTHENTICATION)
        rather = side.suggested.get(_AUTHENTICATION)
        if side.agreed is not None or (rather is None and _AUTHENTICATION not in side.rejected):
            continue
        if wanted is None or (side.requests < 2 and not case.ppp.lcp.terminations):
            continue
        other = f"would rather give {rather}" if rather else "gives none at all"
        return Finding(
            f"{case.name(role)} wants {wanted}, {case.name(role.other)} {other}",
            evidence(side.first, side.last),
        )
    proofs = case.ppp.authentications.values()
    unwilling = [proof for proof in proofs if proof.wants and proof.outcome is not Kind.SUCCESS]
    if unwilling and case.ppp.state is not PppState.OPENED:
        proof = unwilling[0]
        return Finding(
            f"{case.name(proof.authenticator)} wants another EAP method than "
            f"{case.name(proof.authenticator.other)}, which has {', '.join(proof.wants)}",
            evidence(proof.first, proof.last),
        )
    return None


def _encryption_mismatch(case: CallCase) -> Finding | None:
    """MPPE was wanted and did not come about, and the link ended over it."""
    ppp, ccp = case.ppp, case.ppp.ccp
    reasons = [*ppp.lcp.terminations, *ccp.terminations]
    about = [each for each in reasons if any(word in each[2].lower() for word in _ABOUT_MPPE)]
    if about:
        role, where, reason = about[0]
        return Finding(f"{case.name(role)} ends the link over encryption: {reason}",
                       evidence(where))  # fmt: skip
    wanted = [role for role in Role if _ENCRYPTION in ccp.sides[role].asked]
    if not wanted or ccp.opened or not (ppp.lcp.terminations or ccp.terminations):
        return None
    place = ccp.sides[wanted[0]].last
    if ccp.rejected and ccp.rejected_by:
        words, place = f"{case.name(ccp.rejected_by)} does no CCP at all", ccp.rejected
    elif refused := [role for role in Role if _ENCRYPTION in ccp.sides[role].rejected]:
        words = f"{case.name(refused[0].other)} refuses MPPE"
        place = ccp.sides[refused[0]].last
    else:
        asked = {ccp.sides[role].asked.get(_ENCRYPTION, "none") for role in Role}
        words = f"no agreement ({' against '.join(sorted(asked))})"
    return Finding(f"encryption (MPPE) does not come about: {words}", evidence(place))


def _not_encrypted(case: CallCase) -> Finding | None:
    """IP flows, and in the clear."""
    for role, data in case.ppp.data.items():
        if data.plain and not case.ppp.encryption:
            return Finding(
                f"what {case.name(role)} sends through the tunnel is not encrypted",
                evidence(data.first_plain),
            )
    return None


def _lcp_timeout(case: CallCase) -> Finding | None:
    """LCP requests without an agreement."""
    lcp = case.ppp.lcp
    if lcp.opened or case.reached_opened or case.ppp.under_way:
        return None
    sides = [(role, side) for role, side in lcp.sides.items() if side.requests >= _REPEATS]
    if not sides:
        return None
    role, side = max(sides, key=lambda each: each[1].requests)
    last = case.ppp.last_heard.get(role.other)
    said = f"the last heard of it is {last.said}" if last else "nothing is heard of it"
    return Finding(
        f"LCP does not come up: {case.name(role)} asks {side.requests} times, "
        f"{case.name(role.other)}: {said}",
        evidence(side.first, side.last, last.evidence if last else None),
    )


def _not_converging(case: CallCase) -> Finding | None:
    """Requests are answered with other wishes for ever."""
    for layer in case.ppp.layers.values():
        for role, side in layer.sides.items():
            if (
                side.agreed is None and side.requests >= _ROUNDS and side.unanswered <= 1
                and (side.suggested or side.rejected)
            ):  # fmt: skip
                wishes = ", ".join([*side.suggested, *side.rejected])
                return Finding(
                    f"{layer.name} does not converge: {case.name(role)} asks {side.requests} "
                    f"times, the other side wants otherwise ({wishes})",
                    evidence(side.first, side.last),
                )
    return None


def _loopback(case: CallCase) -> Finding | None:
    """Both sides with one magic number: somebody hears himself."""
    magics = [case.ppp.lcp.sides[role].asked.get("magic") for role in Role]
    if None in magics or magics[0] != magics[1] or magics[0] == "0x00000000":
        return None
    return Finding(
        f"both sides have the magic number {magics[0]}: one of them hears itself",
        evidence(*(side.first for side in case.ppp.lcp.sides.values())),
    )


def _no_address(case: CallCase) -> Finding | None:
    """The network phase is reached, and IP gets no address."""
    ppp, ipcp = case.ppp, case.ppp.ipcp
    began = ppp.reached(PppState.NETWORK)
    if began is None or ipcp.opened or ppp.under_way or any(d.sealed for d in ppp.data.values()):
        return None
    if ipcp.rejected and ipcp.rejected_by:
        return Finding(f"{case.name(ipcp.rejected_by)} does no IPCP", evidence(ipcp.rejected))
    if ipcp.terminations:
        role, place, reason = ipcp.terminations[0]
        words = f": {reason}" if reason else ""
        return Finding(f"{case.name(role)} ends IPCP{words}", evidence(place))
    ended = case.ended
    last = ppp.lcp.terminations[0][1] if ppp.lcp.terminations else ended
    waited = last.time - began.time if last else case.after(began)
    sides = ipcp.sides.values()
    requests = sum(side.requests for side in sides)
    if not requests and ppp.layers[wire.IPV6CP].opened:
        return None
    if waited < _WAIT or (not requests and ppp.ccp.sides[_PNS].requests):
        return None
    asked = ipcp.sides[_PNS].asked.get("address", "none")
    words = f"{case.name(_PNS)} asks for {asked}" if requests else "nobody asks for one"
    return Finding(
        f"no IP address is agreed on in {seconds(waited)}: {words}",
        evidence(began, *(side.last for side in sides)),
    )


def _ip_loop(case: CallCase) -> Finding | None:
    """The tunnel's own packets travel inside the tunnel, or leave with its inner address."""
    ppp, call = case.ppp, case.call
    ends = {dotted(end.address): role for role, end in ((_PNS, call.pns), (_PAC, call.pac))}
    for (role, destination), (count, first) in ppp.inner_tunnels.items():
        if destination in ends and ends[destination] is not role:
            return Finding(
                f"{case.name(role)} sends PPTP to {destination} through the tunnel to "
                f"{destination} ({count} packets seen): an IP loop",
                evidence(first),
            )
    for role in Role:
        address = ppp.address(role)
        for stray in case.scene.strays_from.get(packed(address), ()) if address else ():
            if stray.destination == call.end_of(role.other).address:
                return Finding(
                    f"GRE to {dotted(stray.destination)} leaves with the tunnel's inner address "
                    f"{dotted(stray.source)}: an IP loop",
                    evidence(stray.first),
                )
    return None


def _resets(case: CallCase) -> Finding | None:
    """Stateful MPPE stumbles over loss again and again."""
    resets = case.ppp.ccp.resets
    worst = max(Role, key=lambda role: resets[role])
    if resets[worst] < _RESETS:
        return None
    return Finding(
        f"{case.name(worst)} asks {resets[worst]} times to begin encryption anew (CCP "
        "Reset-Request): each lost packet takes others with it",
        evidence(case.ppp.ccp.opened),
    )


def _escaped(case: CallCase) -> Finding | None:
    """Octet stuffing where RFC 2637 wants none."""
    for role, first in case.ppp.escaped.items():
        return Finding(
            f"{case.name(role)} sends PPP with flags and escapes of serial lines", evidence(first)
        )
    return None


def _plain_password(case: CallCase) -> Finding | None:
    """PAP, readable by anybody on the way."""
    for proof in case.ppp.authentications.values():
        if proof.protocol == "PAP" and proof.responses:
            return Finding(
                f"the password of “{proof.name}” crosses the network in clear text (PAP)",
                evidence(proof.first),
            )
    return None


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_ONE_WAY: Final = ("no_gre_from_server", "no_gre_from_client", "gre_lost_in_nat", "wrong_call_id",
                   "gre_lost_behind", "server_hung_up", "gre_unreachable", "loopback",
                   "mixed_up_calls", "wrong_source", "authentication_mismatch",
                   "not_converging")  # fmt: skip

#: Rules about PPP, in the order of its phases.
PPP_RULES: Final[tuple[Rule[CallCase], ...]] = (
    Rule("loopback", _E, "Something sends GRE back to where it came from: look for a routing loop "
         "or a NAT rule that matches the wrong packets.", _loopback),
    Rule("authentication_mismatch", _E, "Allow the same protocol on both sides; MS-CHAP v2 is what "
         "nearly everybody has (pppd: require-mschap-v2 there, no refuse-mschap-v2 here).",
         _authentication_mismatch, ("loopback",)),
    Rule("not_converging", _E, "Give one of the two what it asks for; pppd's option 'debug' shows "
         "which option it is.", _not_converging, ("authentication_mismatch",)),
    Rule("lcp_timeout", _E, "GRE passes here both ways, so look at the silent side: its log, its "
         "firewall, and whether its GRE has the call ID that the other has announced.",
         _lcp_timeout, _ONE_WAY),
    Rule("authentication_failed", _E, "Check name and password, and whether the server wants a "
         "domain before the name (DOMAIN\\name).", _failed),
    Rule("authentication_no_response", _E, "The client has no secret for this server or was not "
         "asked to authenticate: enter name and password there.", _no_response),
    Rule("authentication_no_verdict", _E, "The server waits for something itself, mostly its "
         "RADIUS server or domain controller: look in its log.", _no_verdict,
         ("authentication_mismatch",)),
    Rule("encryption_mismatch", _E, "Allow MPPE with 128 bits on both sides (pppd: "
         "require-mppe-128 and the module ppp_mppe); it needs MS-CHAP, so allow that as well.",
         _encryption_mismatch),
    Rule("no_address", _E, "The server has no address to give, or wants one that the client does "
         "not take: look at its address pool (remoteip) and at fixed addresses of the account.",
         _no_address, ("encryption_mismatch", "authentication_failed")),
    Rule("ip_loop", _E, "Keep a host route to the server by the old gateway (ip route add SERVER "
         "via GATEWAY) before the tunnel gets the default route.", _ip_loop),
    Rule("mppe_resets", _W, "Use stateless MPPE (pppd: no mppe-stateful), or mend the loss.",
         _resets),
    Rule("not_encrypted", _W, "Require MPPE with 128 bits on both sides if that was not meant so.",
         _not_encrypted),
    Rule("plain_password", _W, "Refuse PAP on both sides (pppd: refuse-pap), and change this "
         "password.", _plain_password),
    Rule("escaped_frames", _W, "That side's PPTP program leaves serial framing on; update it. Each "
         "packet is larger than need be, and strict peers drop it.", _escaped),
)  # fmt: skip
