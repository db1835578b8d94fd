"""The PPP of one call: what the two sides agree on, how far they get, and why it ends.

`Ppp` reads the control packets of both directions in the order of capture and keeps the
phases of RFC 1661 section 3.2 as somebody beside the wire can tell them.  It answers for
a call from its first packet, and makes do with one that was under way.  Memory is bounded:
one layer for each of the protocols that it reads, and 256 lines of ladder.

Passwords, challenges, responses and keys are not kept.
"""

from __future__ import annotations

import enum
import sys
from array import array
from collections import Counter
from typing import Any, Final, NamedTuple

from pptp_nat.analysis import ppp_wire as wire
from pptp_nat.analysis.packets import (
    OCTETS_OF_U32,
    U32,
    Columns,
    Evidence,
    GrePacket,
    column,
)
from pptp_nat.analysis.ppp_auth import AuthenticationPacket, Kind, authentication_packet
from pptp_nat.analysis.ppp_layers import Layer
from pptp_nat.analysis.ppp_words import address, protocol_name
from pptp_nat.core.messages import PORT, Role

_LOG_KEPT: Final = 256
_INNER_KEPT: Final = 16  #: destinations of tunnels within the tunnel
_PROTOCOLS_KEPT: Final = 64
_COHERENCY: Final = 0x0FFF
_IS_FF: Final = bytes(octet == 0xFF for octet in range(256))
_IS_3: Final = bytes(octet == 3 for octet in range(256))
_IS_ZERO: Final = b"\1" + bytes(255)
_IS_FD: Final = bytes(octet == wire.COMPRESSED for octet in range(256))
#: MPPE's bit A (RFC 3078 section 3.1)
_IS_FLUSHED: Final = bytes(octet >> 7 for octet in range(256))
_TCP, _GRE = 6, 47

#: Protocols with the code, identifier, length packets of RFC 1661 that are followed.
LAYERS: Final = (wire.LCP, wire.IPCP, wire.IPV6CP, wire.CCP)
_AUTHENTICATIONS: Final = (wire.PAP, wire.CHAP, wire.EAP)


class PppState(enum.Enum):
    """How far a link has come."""

    SILENT = "silent"  #: no PPP was seen
    ESTABLISH = "establish"  #: LCP has not agreed
    AUTHENTICATE = "authenticate"  #: LCP has, somebody has to prove who he is
    NETWORK = "network"  #: nobody has to, or has done so; no address yet
    OPENED = "opened"  #: IP can flow
    TERMINATED = "terminated"  #: LCP was ended


class Rung(NamedTuple):
    """One line of the PPP ladder."""

    evidence: Evidence
    sender: Role
    protocol: int
    said: str


class Phase(NamedTuple):
    """A state and when it was entered; the next one's time ends it."""

    state: PppState
    begin: Evidence


class Authentication:
    """What one side did to prove who it is to the other."""

    def __init__(self, authenticator: Role) -> None:
        self.authenticator = authenticator
        self.protocol = ""  #: ``MS-CHAP v2`` and the like, as LCP has agreed; else the packets'
        self.name = ""  #: who the other says he is
        self.authenticator_name = ""
        self.challenges = 0
        self.responses = 0
        self.first: Evidence | None = None
        self.last: Evidence | None = None
        self.outcome: Kind | None = None  #: `Kind.SUCCESS`, `Kind.FAILURE`, None: none came
        self.outcome_at: Evidence | None = None
        self.failures = 0
        self.error: int | None = None  #: MS-CHAP's E=
        self.may_retry: bool | None = None
        self.message = ""
        self.wants: tuple[str, ...] = ()  #: EAP methods that the other would rather have

    def feed(self, packet: AuthenticationPacket, evidence: Evidence) -> None:
        """Take in a packet of it."""
        self.first = self.first or evidence
        self.last = evidence
        self.protocol = self.protocol or packet.protocol
        match packet.kind:
            case Kind.CHALLENGE:
                self.challenges += 1
                self.authenticator_name = packet.name or self.authenticator_name
            case Kind.RESPONSE | Kind.REQUEST:
                self.responses += 1
                self.name = packet.name or self.name
                self.wants = packet.wants or self.wants
            case Kind.SUCCESS | Kind.FAILURE:
                self.failures += packet.kind is Kind.FAILURE
                self.outcome, self.outcome_at = packet.kind, evidence
                self.message = packet.message or self.message
                if packet.error is not None or packet.kind is Kind.SUCCESS:
                    self.error, self.may_retry = packet.error, packet.may_retry


class Data:
    """Datagrams of one side, as far as they were told apart."""

    def __init__(self) -> None:
        self.plain = 0  #: IP packets that anybody can read; the first 32 at most are looked at
        self.first_plain: Evidence | None = None
        self.sealed = 0  #: compressed or encrypted, protocol 0x00FD
        self.flushed = 0  #: of those, with MPPE's bit A: the tables begin anew
        self.coherency_lost = 0  #: coherency counts passed over
        self.coherency: int | None = None  #: the latest

    def feed(self, packets: Columns) -> None:
        """Take in the encrypted ones among ordinary packets, by their first four octets."""
        heads: Any = packets.heads
        octets = (array(U32, heads) if isinstance(heads, (list, tuple)) else heads).tobytes()
        first, second, third, fourth = (octets[at::4] for at in OCTETS_OF_U32)
        sealed, upper, lower = column(first, _IS_ZERO) & column(second, _IS_FD), third, fourth
        if not sealed:
            sealed, upper, lower = column(first, _IS_FD), second, third
            if b"\xff" in first:  # where address and control stand, the header is not here
                framed = column(first, _IS_FF) & column(second, _IS_3)
                whole = column(third, _IS_ZERO) & column(fourth, _IS_FD)
                self.sealed += (framed & (whole | column(third, _IS_FD))).bit_count()
        count = sealed.bit_count()
        if not count:
            return
        self.sealed += count
        self.flushed += (sealed & column(upper, _IS_FLUSHED)).bit_count()
        marks = sealed.to_bytes(len(first), sys.byteorder)
        begin, end = (
            (upper[at] << 8 | lower[at]) & _COHERENCY for at in (marks.find(1), marks.rfind(1))
        )
        before = (begin - 1 if self.coherency is None else self.coherency) & _COHERENCY
        self.coherency_lost += (end - before - count) & _COHERENCY
        self.coherency = end


class Ppp:
    """What is known of one call's PPP."""

    def __init__(self, file: int = 0) -> None:
        self.file = file
        self.layers = {protocol: Layer(protocol) for protocol in LAYERS}
        #: by the role of who asks for proof
        self.authentications = {role: Authentication(role) for role in Role}
        self.phases: list[Phase] = []
        self.log: list[Rung] = []
        self.log_left_out = 0
        self.last_heard: dict[Role, Rung] = {}  #: the latest control packet of each side
        self.frames: Counter[tuple[Role, int]] = Counter()  #: by sender and protocol, as fed
        self.data = {role: Data() for role in Role}
        #: protocols refused with a Protocol-Reject: who refused, and where
        self.rejected: dict[int, tuple[Role, Evidence]] = {}
        self.escaped: dict[Role, Evidence] = {}  #: who sends octet-stuffed frames
        self.unreadable = 0  #: payloads that are no PPP
        self.cut = 0  #: control packets that the capture has not got whole
        #: PPTP or GRE inside the tunnel: (sender, destination): packets and the first of them
        self.inner_tunnels: dict[tuple[Role, str], tuple[int, Evidence]] = {}
        self.under_way = False  #: the first packet was none of LCP's first ones

    @property
    def state(self) -> PppState:
        """How far it has come."""
        return self.phases[-1].state if self.phases else PppState.SILENT

    @property
    def lcp(self) -> Layer:
        """The Link Control Protocol."""
        return self.layers[wire.LCP]

    @property
    def ipcp(self) -> Layer:
        """The control protocol of IPv4."""
        return self.layers[wire.IPCP]

    @property
    def ccp(self) -> Layer:
        """The Compression Control Protocol, which MPPE is agreed with."""
        return self.layers[wire.CCP]

    def address(self, role: Role) -> str | None:
        """Return the IPv4 address that *role* has agreed to have inside the tunnel."""
        return (self.ipcp.sides[role].agreed or {}).get("address")

    def reached(self, state: PppState) -> Evidence | None:
        """Return where *state* was entered for the last time."""
        return next((phase.begin for phase in reversed(self.phases) if phase.state is state), None)

    def wanted_authentication(self, authenticator: Role) -> str:
        """Name what LCP says *authenticator* wants; empty if it wants nothing."""
        side = self.lcp.sides[authenticator]
        return (side.agreed or side.asked).get("authentication", "")

    @property
    def encryption(self) -> str:
        """What CCP has agreed on, in words: ``MPPE 128 stateless``; empty if nothing."""
        for role in Role:
            agreed = self.ccp.sides[role].agreed
            if self.ccp.is_open and agreed:
                return agreed.get("encryption", ", ".join(agreed))
        return ""

    def feed(self, packet: GrePacket) -> None:
        """Read a packet: see `pptp_nat.analysis.packets.PppReader`."""
        frame = wire.frame(packet.payload) if packet.payload else None
        if frame is None:
            self.unreadable += bool(packet.payload)
            return
        sender, evidence = packet.sender, packet.evidence
        if len(self.frames) < _PROTOCOLS_KEPT or (sender, frame.protocol) in self.frames:
            self.frames[sender, frame.protocol] += 1
        if frame.is_escaped:
            self.escaped.setdefault(sender, evidence)
        if frame.protocol in (wire.IPV4, wire.IPV6):
            self._datagram(sender, frame, evidence)
        elif frame.protocol == wire.COMPRESSED:
            self._go(PppState.OPENED, evidence, begins=True)
        else:
            self.cut += packet.cut
            self._control(sender, frame, evidence)

    def feed_data(self, sender: Role, packets: Columns) -> None:
        """Read ordinary packets: see `pptp_nat.analysis.packets.PppReader`."""
        data = self.data[sender]
        sealed = data.sealed
        data.feed(packets)
        if data.sealed > sealed and not self.under_way:
            first = Evidence(self.file, *packets.first)
            if not self.phases or first.time < self.phases[0].begin.time:
                self.phases.insert(0, Phase(PppState.OPENED, first))
                self.under_way = True

    def _control(self, sender: Role, frame: wire.PppFrame, evidence: Evidence) -> None:
        layer = self.layers.get(frame.protocol)
        said = protocol_name(frame.protocol)
        if frame.protocol in _AUTHENTICATIONS:
            proof = authentication_packet(frame.protocol, frame.information)
            if proof is None:
                return
            said = proof.said
            self._prove(sender, proof, evidence)
        elif layer is not None:
            control = wire.control_packet(frame.information)
            if control is None:
                return
            if frame.protocol == wire.LCP and control.code == wire.PROTOCOL_REJECT:
                said = self._reject(sender, control, evidence)
            else:
                said = layer.feed(sender, control, evidence)
            self._advance(layer, control, evidence)
        self._note(Rung(evidence, sender, frame.protocol, said))

    def _note(self, rung: Rung) -> None:
        self.last_heard[rung.sender] = rung
        if len(self.log) < _LOG_KEPT:
            self.log.append(rung)
        else:
            self.log_left_out += 1

    def _reject(self, sender: Role, packet: wire.ControlPacket, evidence: Evidence) -> str:
        """Take in a Protocol-Reject (RFC 1661 section 5.7)."""
        protocol = int.from_bytes(packet.data[:2], "big")
        if protocol in self.layers:
            layer = self.layers[protocol]
            layer.rejected, layer.rejected_by = layer.rejected or evidence, sender
        if len(self.rejected) < _PROTOCOLS_KEPT:
            self.rejected.setdefault(protocol, (sender, evidence))
        return f"LCP Protocol-Reject: {protocol_name(protocol)}"

    def _prove(self, sender: Role, proof: AuthenticationPacket, evidence: Evidence) -> None:
        """Take in a packet of authentication; whoever challenges or judges is authenticator."""
        by_peer = proof.kind in (Kind.RESPONSE, Kind.REQUEST, Kind.CHANGE)
        authentication = self.authentications[sender.other if by_peer else sender]
        if not authentication.protocol:
            wanted = self.wanted_authentication(authentication.authenticator)
            authentication.protocol = wanted if proof.protocol in wanted else proof.protocol
        authentication.feed(proof, evidence)
        self._go(PppState.AUTHENTICATE, evidence, begins=True)
        if self.state is PppState.AUTHENTICATE and self._is_proven():
            self._go(PppState.NETWORK, evidence)

    def _is_proven(self) -> bool:
        """Whether everybody who wants proof of the other has got it."""
        return all(
            authentication.outcome is Kind.SUCCESS
            for role, authentication in self.authentications.items()
            if authentication.first or self.wanted_authentication(role)
        )

    def _advance(self, layer: Layer, packet: wire.ControlPacket, evidence: Evidence) -> None:
        """Enter the phase that a packet of *layer* leads to."""
        if layer.protocol == wire.LCP:
            if packet.code in (wire.TERMINATE_REQUEST, wire.TERMINATE_ACK):
                self._go(PppState.TERMINATED, evidence)
            elif layer.opened is None and packet.code <= wire.CONFIGURE_REJECT:
                if self.state is not PppState.ESTABLISH:
                    self.authentications = {role: Authentication(role) for role in Role}
                self._go(PppState.ESTABLISH, evidence)
            elif layer.opened is evidence:
                proven = self._is_proven()
                self._go(PppState.NETWORK if proven else PppState.AUTHENTICATE, evidence)
            else:
                self._go(PppState.OPENED, evidence, begins=True)
            return
        if self.state in (PppState.ESTABLISH, PppState.AUTHENTICATE):
            self._go(PppState.NETWORK, evidence)  # whoever speaks of addresses is through
        self._go(PppState.NETWORK, evidence, begins=True)
        if layer.protocol in (wire.IPCP, wire.IPV6CP) and layer.opened is evidence:
            self._go(PppState.OPENED, evidence)

    def _go(self, state: PppState, evidence: Evidence, *, begins: bool = False) -> None:
        """Enter *state*; with *begins* only if nothing was seen before."""
        if begins and self.phases:
            return
        self.under_way = self.under_way or begins
        if self.state is not state:
            if len(self.phases) < _LOG_KEPT:
                self.phases.append(Phase(state, evidence))
            else:
                self.phases[-1] = Phase(state, evidence)

    def _datagram(self, sender: Role, frame: wire.PppFrame, evidence: Evidence) -> None:
        """Look into an unencrypted datagram for a tunnel within the tunnel."""
        self._go(PppState.OPENED, evidence, begins=True)
        data = self.data[sender]
        data.plain += 1
        data.first_plain = data.first_plain or evidence
        octets = frame.information
        if frame.protocol != wire.IPV4 or len(octets) < 20:
            return
        behind = octets[(octets[0] & 0x0F) * 4 :]
        is_tunnel = octets[9] == _GRE or (
            octets[9] == _TCP and len(behind) >= 4 and int.from_bytes(behind[2:4], "big") == PORT
        )
        if is_tunnel:
            key = sender, address(octets[16:20])
            if key in self.inner_tunnels or len(self.inner_tunnels) < _INNER_KEPT:
                count, first = self.inner_tunnels.get(key, (0, evidence))
                self.inner_tunnels[key] = count + 1, first
