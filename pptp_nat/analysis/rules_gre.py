"""What the measures of a call's GRE say, as a table."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.model import IcmpReport
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.rule import CallCase, Finding, Rule, evidence, seconds
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role

_LEAST: Final = 5  #: packets that make a share worth a word
_LOSS: Final = 0.02  #: TCP inside the tunnel gets half as fast
_LOSS_BAD: Final = 0.10
_DISORDER: Final = 0.01  #: most receivers drop what comes late, so it counts as lost
_REPEATED: Final = 0.01
_FRAGMENTED: Final = 0.01
_STALLS: Final = 3
_STALLED: Final = 2.0  #: seconds in all
_DATA: Final = 50  #: packets without any acknowledgement
_SILENCE: Final = 10.0  #: seconds
_LARGE: Final = 1000  #: octets; smaller packets fit everywhere
_REPEATS: Final = 3
_GAPS: Final = 4  #: pauses, each about twice the one before
_SEVERAL: Final = 64  #: packets of one size; more than that, and they flow


def _share(share: float) -> str:
    return f"{share * 100:.2g} %"


def _loss(case: CallCase) -> Finding | None:
    """Numbers that never came past."""
    worst = max(case.qualities(), key=lambda each: each[1].loss, default=None)
    if worst is None:
        return None
    role, quality = worst
    if quality.loss < _LOSS or quality.lost < _LEAST:
        return None
    return Finding(
        f"{_share(quality.loss)} of the packets of {case.name(role)} are lost before this place "
        f"({quality.lost} of {quality.lost + quality.data})",
        evidence(*quality.losses[:4]),
        severity=Severity.ERROR if quality.loss >= _LOSS_BAD else None,
    )


def _reordering(case: CallCase) -> Finding | None:
    """Packets behind others that were sent later."""
    for role, quality in case.qualities():
        if quality.disorder >= _DISORDER and quality.reordered >= _LEAST:
            return Finding(
                f"{_share(quality.disorder)} of the packets of {case.name(role)} come behind later "
                f"ones, by up to {quality.depth}",
                evidence(*quality.losses[:4]),
            )
    return None


def _duplicates(case: CallCase) -> Finding | None:
    """Packets that come twice."""
    for role, quality in case.qualities():
        if quality.duplicates >= _LEAST and quality.duplicates >= _REPEATED * quality.data:
            return Finding(
                f"{quality.duplicates} of {quality.data} packets of {case.name(role)} come twice",
                evidence(quality.first),
            )
    return None


def _window(case: CallCase, role: Role) -> int | None:
    """Return the packets that the receiver of *role*'s GRE has announced to take."""
    return case.call.end_of(role.other).window


def _stall(case: CallCase) -> Finding | None:
    """A sender that waits with a full window."""
    for role, quality in case.qualities():
        window = _window(case, role)
        full = [each for each in quality.stalls if window and each.outstanding >= window]
        waited = sum(each.seconds for each in full)
        if len(full) >= _STALLS or waited >= _STALLED:
            return Finding(
                f"{case.name(role)} waits {seconds(waited)} in all for acknowledgements with the "
                f"receiver's window of {window} packets full",
                evidence(*(each.evidence for each in full[:4])),
            )
    return None


def _overrun(case: CallCase) -> Finding | None:
    """More on its way than the receiver has announced to take."""
    for role, quality in case.qualities():
        window = _window(case, role)
        if window and quality.outstanding > window:
            return Finding(
                f"{case.name(role)} has {quality.outstanding} packets on their way, the receiver "
                f"announced a window of {window}",
                evidence(quality.first),
            )
    return None


def _never_acknowledges(case: CallCase) -> Finding | None:
    """A receiver that lives and acknowledges nothing."""
    for role, quality in case.qualities():
        other = case.quality(role.other)
        if (
            other is not None
            and other.data >= _DATA
            and quality.packets
            and not quality.acknowledging
        ):
            return Finding(
                f"{case.name(role)} acknowledges none of {other.data} packets",
                evidence(other.first, other.last),
            )
    return None


def _silence(case: CallCase) -> Finding | None:
    """One-way traffic that has come to an end."""
    for role, quality in case.qualities():
        silence = quality.silence
        if silence is None or silence.heard < _LEAST or silence.since is None:
            continue
        if not quality.acknowledging:
            continue
        if silence.until - silence.began >= _SILENCE:
            return Finding(
                f"{case.name(role)} says nothing for {seconds(silence.until - silence.began)} "
                f"while {silence.heard} packets come from the other side",
                evidence(silence.since),
            )
    return None


def _fragmented(case: CallCase) -> Finding | None:
    """GRE in IP fragments."""
    for role, quality in case.qualities():
        if quality.fragmented >= _LEAST and quality.fragmented >= _FRAGMENTED * quality.packets:
            return Finding(
                f"{quality.fragmented} of {quality.packets} packets of {case.name(role)} come in "
                "IP fragments",
                evidence(quality.first),
            )
    return None


def _too_large(case: CallCase) -> IcmpReport | None:
    """Return an ICMP "fragmentation needed" about the call's GRE."""
    for report in case.icmp:
        if (report.type, report.code) in ((3, 4), (11, 1)):
            return report
    return None


def _black_hole(case: CallCase) -> Finding | None:
    """Large packets vanish, small ones pass."""
    report = _too_large(case)
    if report is not None:
        return Finding(
            f"large GRE does not fit: {report.words}", evidence(report.evidence),
            severity=Severity.WARNING,
        )  # fmt: skip
    twin = case.twin
    for role, quality in case.qualities():
        other = twin.quality(role) if twin else None
        if other is None or not other.lengths or twin is None:
            continue
        largest = max(other.lengths)
        beyond = sum(count for length, count in quality.lengths.items() if length > largest)
        if beyond >= _REPEATS and max(quality.lengths) >= _LARGE and other.data >= _LEAST:
            return Finding(
                f"of {case.name(role)}, no payload above {largest} octets comes out at the other "
                f"side; {beyond} went in, up to {max(quality.lengths)}",
                evidence(quality.first, other.first),
            )
    for role, quality in case.qualities():
        stuck = _stuck(quality)
        if stuck:
            return Finding(
                f"{case.name(role)} sends its largest packets ({stuck[0]} octets) again and again "
                f"with growing pauses ({stuck[1]} times), while small ones are answered",
                evidence(*stuck[2]),
            )
    return None


def _stuck(quality: GreQuality) -> tuple[int, int, tuple[Evidence, ...]] | None:
    """Find a sender whose largest packet comes again with pauses that double.

    So does TCP inside the tunnel when that packet never arrives (RFC 6298 section 5.5),
    whatever encryption hides.
    """
    if quality.largest < _LARGE or quality.lengths[quality.largest] > _SEVERAL:
        return None
    places = quality.largest_at
    gaps = [after.time - before.time for before, after in pairwise(places)][-_GAPS:]
    doubling = [1.5 <= after / before <= 3 for before, after in pairwise(gaps) if before > 0]
    if len(doubling) < _GAPS - 1 or not all(doubling):
        return None
    return quality.largest, len(gaps) + 1, tuple(places[-_GAPS:])


def _malformed(case: CallCase) -> Finding | None:
    """Headers that RFC 2637 section 4.1 does not allow."""
    for role, quality in case.qualities():
        for slug, (count, first) in quality.oddities.items():
            return Finding(
                f"{case.name(role)} sends GRE against RFC 2637 section 4.1: {slug} ({count} times)",
                evidence(first),
                severity=Severity.WARNING if slug in _HARMFUL else None,
            )
    return None


def _wan_errors(case: CallCase) -> Finding | None:
    """What the PAC has counted on its own line."""
    errors = case.call.wan_errors
    if errors is None:
        return None
    words = {
        "CRC errors": errors.crc, "framing errors": errors.framing,
        "hardware overruns": errors.hardware_overruns, "buffer overruns": errors.buffer_overruns,
        "time-outs": errors.time_outs, "alignment errors": errors.alignment,
    }  # fmt: skip
    told = ", ".join(f"{count} {name}" for name, count in words.items() if count)
    if not told:
        return None
    return Finding(f"the server reports {told} on its line", evidence(errors.evidence))


#: Departures that make strict receivers drop the packet.
_HARMFUL: Final = ("payload_length_lies", "payload_without_sequence", "version_not_one",
                   "no_key_flag")  # fmt: skip

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

#: Calls whose packets get mixed up measure nothing.
_MIXED: Final = ("call_id_collision", "mixed_up_calls")

#: Rules about the data of a call.
GRE_RULES: Final[tuple[Rule[CallCase], ...]] = (
    Rule("mtu_black_hole", _E, "Give the tunnel a smaller MTU (pppd: mtu 1400 mru "
         "1400, or less), or clamp TCP's MSS to it; and let ICMP 'fragmentation needed' pass.",
         _black_hole),
    Rule("fragmented_gre", _W, "Each fragment lost loses the whole packet: set the tunnel's MTU to "
         "1400 or less, so that GRE fits into one IP packet.", _fragmented),
    Rule("loss", _W, "Find where it begins: capture nearer to the sender. Wireless links, a full "
         "uplink and a policer for GRE are the usual places. What the capture itself has dropped, "
         "tcpdump says when it ends.", _loss, _MIXED),
    Rule("reordering", _W, "Most PPTP ends drop what comes late, so it counts as lost: look for "
         "load balancing by packet, several queues or bonded links on the way.", _reordering,
         _MIXED),
    Rule("duplicates", _W, "Something sends packets twice: a bridge loop, a mirror port in the "
         "way, or two routers that both forward.", _duplicates,
         _MIXED),
    Rule("window_stall", _W, "The way back loses or delays acknowledgements, or the receiver's "
         "window is too small for delay and speed: raise it there.", _stall,
         _MIXED),
    Rule("window_overrun", _N, "The sender does not keep to RFC 2637 section 4.2, as most today; "
         "it does no harm while nothing is lost.", _overrun, ("window_stall", *_MIXED)),
    Rule("never_acknowledges", _W, "That side ignores RFC 2637 section 4.3; senders that keep to "
         "their window will stall. Update it.", _never_acknowledges),
    Rule("one_way_silence", _N, "It came to an end by itself; if it comes again, look at LCP echo "
         "and at the NAT's GRE time-outs.", _silence,
         _MIXED),
    Rule("malformed_gre", _N, "Update that side's PPTP program; strict receivers may drop such "
         "packets.", _malformed),
    Rule("wan_errors", _N, "They are of the line behind the PAC, not of this network.",
         _wan_errors),
)  # fmt: skip
