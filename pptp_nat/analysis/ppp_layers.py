"""What LCP and the network control protocols agree on, side by side (RFC 1661 section 4)."""

from __future__ import annotations

from typing import Final

from pptp_nat.analysis import ppp_wire as wire
from pptp_nat.analysis.packets import Evidence
from pptp_nat.analysis.ppp_words import (
    RAS_ERRORS,
    code_name,
    option_text,
    protocol_name,
    text,
)
from pptp_nat.core.messages import Role

_REASON_KEPT: Final = 80  # octets of a Terminate-Request
_TERMINATIONS_KEPT: Final = 8
#: What stands in a Terminate-Request of Windows between its magic number and an error number.
_MICROSOFT_REASON: Final = b"\x00<\xcdt"


class Negotiation:
    """What one side wants for itself, and what the other makes of it."""

    def __init__(self) -> None:
        self.requests = 0
        self.first: Evidence | None = None
        self.last: Evidence | None = None
        self.asked: dict[str, str] = {}  #: options of the latest request, name: value in words
        self.agreed: dict[str, str] | None = None  #: what the other has acknowledged
        self.agreed_at: Evidence | None = None
        self.suggested: dict[str, str] = {}  #: by Configure-Nak: what the other would rather have
        self.rejected: list[str] = []  #: by Configure-Reject: what the other will not have at all
        self.unanswered = 0  #: requests since the other last answered one
        self.repeated_after_ack = 0  #: requests that came again although their Ack has gone past
        self._agreed_request: tuple[int, bytes] | None = None

    def request(self, protocol: int, packet: wire.ControlPacket, evidence: Evidence) -> None:
        """Take in a Configure-Request of this side."""
        self.requests += 1
        self.unanswered += 1
        self.first = self.first or evidence
        self.last = evidence
        self.asked = _options(protocol, packet.data)
        if self.agreed is not None:
            # The identifier of a repeat may be a new one (section 5.1).
            if self._agreed_request is not None and self._agreed_request[1] == packet.data:
                self.repeated_after_ack += 1
            else:
                self.agreed = self.agreed_at = None

    def has_agreed_to(self, packet: wire.ControlPacket) -> bool:
        """Whether the other side has acknowledged just this request."""
        return self._agreed_request == (packet.identifier, packet.data)

    def answer(self, protocol: int, packet: wire.ControlPacket, evidence: Evidence) -> None:
        """Take in the other side's Ack, Nak or Reject."""
        self.unanswered = 0
        said = _options(protocol, packet.data)
        if packet.code == wire.CONFIGURE_ACK:
            self.agreed, self.agreed_at = said, self.agreed_at or evidence
            self._agreed_request = packet.identifier, packet.data
        elif packet.code == wire.CONFIGURE_NAK:
            self.suggested.update(said)
        else:
            self.rejected += [name for name in said if name not in self.rejected]


class Layer:
    """One control protocol of a call, both sides."""

    def __init__(self, protocol: int) -> None:
        self.protocol = protocol
        self.sides = {Role.PNS: Negotiation(), Role.PAC: Negotiation()}
        self.opened: Evidence | None = None  #: when both had agreed
        self.rejected: Evidence | None = None  #: by Protocol-Reject
        self.rejected_by: Role | None = None
        #: Terminate-Requests: who, where, and the reason as far as one is given
        self.terminations: list[tuple[Role, Evidence, str]] = []
        self.terminated: Evidence | None = None  #: by Terminate-Ack
        self.echoes = {Role.PNS: 0, Role.PAC: 0}  #: Echo-Requests by sender
        self.echo_replies = {Role.PNS: 0, Role.PAC: 0}
        self.resets = {Role.PNS: 0, Role.PAC: 0}  #: Reset-Requests of CCP
        self.code_rejects = 0
        self.identification = {Role.PNS: "", Role.PAC: ""}  #: RFC 1570, as peers say it

    @property
    def name(self) -> str:
        """The protocol's usual name."""
        return protocol_name(self.protocol)

    @property
    def is_open(self) -> bool:
        """Whether both sides have agreed and none has ended it."""
        return self.opened is not None and not self.terminations

    def feed(self, sender: Role, packet: wire.ControlPacket, evidence: Evidence) -> str:
        """Take in a packet; return what a ladder says of it."""
        mine, others = self.sides[sender], self.sides[sender.other]
        words = ""
        match packet.code:
            case wire.CONFIGURE_REQUEST:
                if self._begins_anew(mine, packet):
                    self._begin_anew()
                    mine, others = self.sides[sender], self.sides[sender.other]
                mine.request(self.protocol, packet, evidence)
                words = options_text(mine.asked)
            case wire.CONFIGURE_ACK | wire.CONFIGURE_NAK | wire.CONFIGURE_REJECT:
                others.answer(self.protocol, packet, evidence)
                words = options_text(_options(self.protocol, packet.data))
                if mine.agreed is not None and others.agreed is not None:
                    self.opened = self.opened or evidence
            case wire.TERMINATE_REQUEST:
                words = terminate_reason(packet.data)
                if len(self.terminations) < _TERMINATIONS_KEPT:
                    self.terminations.append((sender, evidence, words))
            case wire.TERMINATE_ACK if self.terminations:
                self.terminated = evidence
            case wire.CODE_REJECT:
                self.code_rejects += 1
                words = code_name(packet.data[0]) if packet.data else ""
            case wire.ECHO_REQUEST:
                self.echoes[sender] += 1
            case wire.ECHO_REPLY:
                self.echo_replies[sender] += 1
            case wire.IDENTIFICATION:
                words = self.identification[sender] = text(packet.data[4:])
            case wire.RESET_REQUEST if self.protocol == wire.CCP:
                self.resets[sender] += 1
        return f"{self.name} {code_name(packet.code)}" + (f": {words}" if words else "")

    def _begins_anew(self, mine: Negotiation, packet: wire.ControlPacket) -> bool:
        """Whether a request is no repeat of one that was agreed to before the layer opened."""
        if self.opened is None:
            return bool(self.terminations)
        return bool(self.terminations) or not mine.has_agreed_to(packet)

    def _begin_anew(self) -> None:
        self.sides = {Role.PNS: Negotiation(), Role.PAC: Negotiation()}
        self.terminations = []
        self.opened = self.terminated = None


def _options(protocol: int, data: bytes) -> dict[str, str]:
    return dict(option_text(protocol, option) for option in wire.options(data))


def options_text(options: dict[str, str]) -> str:
    """Say options in one line: ``MRU 1400, PFC, magic 0x12345678``."""
    return ", ".join(f"{name} {value}".rstrip() for name, value in options.items())


def terminate_reason(data: bytes) -> str:
    """Return the reason in a Terminate-Request in words; empty if it gives none.

    Windows sends its magic number, 0x003CCD74 and a number of its own (raserror.h).
    """
    if data[4:8] == _MICROSOFT_REASON and len(data) >= 12:
        number = int.from_bytes(data[8:12], "big")
        words = RAS_ERRORS.get(number)
        return f"Windows error {number}" + (f" ({words})" if words else "")
    return text(data.rstrip(b"\0"), _REASON_KEPT)
