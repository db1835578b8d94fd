"""What an analysis knows: files, control connections, calls, GRE, and what is wrong with them.

Values are frozen.  `ControlConnection`, `Call`, `GreFlow` and `Analysis` grow while packets
are read, and only the follower writes them; a rule or a report may read them at any time.

One vantage point is one file (or one live session).  The two sides of a NAT are two control
connections and two calls, each as it was seen there; a `Translation` says that they are one.

Strings that peers chose are here as they were sent: whoever shows them cleans them.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import GENERAL_ERRORS, RESULTS, MessageType, Role
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.core.tuples import Party

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pptp_nat.analysis.gre_quality import GreQuality
    from pptp_nat.analysis.packets import Evidence, GrePacket
    from pptp_nat.analysis.ppp import Ppp
    from pptp_nat.core.states import End
    from pptp_nat.core.tuples import Address


_ICMP: Final = {
    (3, 0): "network unreachable", (3, 1): "host unreachable", (3, 2): "protocol unreachable",
    (3, 3): "port unreachable", (3, 4): "fragmentation needed", (3, 9): "network prohibited",
    (3, 10): "host prohibited", (3, 13): "communication prohibited",
    (11, 0): "time to live exceeded", (11, 1): "fragment reassembly time exceeded",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a file stops making sense; what comes before it was read."""

    offset: int  #: in octets from the start of the file, uncompressed
    number: int  #: packets that were read before it
    what: str  #: one line


@dataclass(slots=True)
class CaptureFile:
    """One file that was read, or one live session."""

    name: str
    kind: str = ""  #: ``pcap``, ``pcapng``, ``live``; with ``.gz`` where compressed
    links: list[str] = field(default_factory=list)  #: link types met, in words
    packets: int = 0  #: records, of whatever protocol
    octets: int = 0  #: as they were on the wire
    cut: int = 0  #: packets that the snap length has shortened
    repeated: int = 0  #: packets left out since the capture holds them twice
    first: float | None = None
    last: float | None = None
    damage: Damage | None = None
    vantage: int = 0  #: files with the same number were captured at the same place


@dataclass(frozen=True, slots=True)
class Socket:
    """One end of a control connection."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a party says of itself in its Start-Control-Connection message."""

    host: str
    vendor: str
    version: int  #: 0x0100 is 1.0
    firmware: int
    framing: int
    bearer: int
    channels: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The codes of a message, with their words (RFC 2637 sections 2.2 to 2.16)."""

    kind: MessageType
    result: int
    error: int | None = None
    cause: int | None = None  #: Q.931 cause, 0 if there is none

    @property
    def agrees(self) -> bool:
        """Whether the Result Code says yes."""
        return self.result == 1

    @property
    def words(self) -> str:
        """The result, and where it is a general error, which."""
        text = RESULTS.get(self.kind, {}).get(self.result, f"unknown result {self.result}")
        if self.error:
            known = self.error < len(GENERAL_ERRORS)
            text += f" ({GENERAL_ERRORS[self.error] if known else f'error {self.error}'})"
        return text


class Step(enum.Enum):
    """What a `LadderEntry` is."""

    MESSAGE = "message"  #: a control message
    TCP = "tcp"  #: SYN, FIN, RST and the like
    NOTE = "note"  #: what was noticed: framing lost, octets missing


@dataclass(frozen=True, slots=True)
class LadderEntry:
    """One rung of the ladder between the two ends of a control connection."""

    evidence: Evidence  #: the packet with which it was complete
    sender: Party
    step: Step
    title: str  #: ``Outgoing-Call-Request``, ``SYN``
    kind: MessageType | None = None
    fields: Mapping[str, int | str] = field(default_factory=dict)  #: those worth showing
    packets: tuple[int, ...] = ()  #: numbers of the packets that carried it, if several
    notes: tuple[str, ...] = ()  #: ``split over 3 segments``, ``reserved_not_zero``


@dataclass(slots=True)
class TcpTrouble:
    """What one party's segments went through."""

    segments: int = 0
    octets: int = 0  #: of new payload
    retransmissions: int = 0  #: octets that had been seen, or a SYN or FIN once more
    reordered: int = 0  #: segments that came ahead of a gap which was closed later
    missing: int = 0  #: octets that the capture never saw, although they were acknowledged
    repeated: int = 0  #: the same packet captured twice, no fault of the network
    conflicts: int = 0  #: retransmissions with other octets
    resets: int = 0
    cut: int = 0  #: segments shortened by the snap length
    split: int = 0  #: messages that came in more than one segment
    joined: int = 0  #: segments that held more than one message, or parts of two
    zero_windows: int = 0
    longest_silence: float = 0.0  #: seconds that it left the other's octets unacknowledged


@dataclass(slots=True)
class Echoes:
    """Echo-Request and Echo-Reply as sent and answered."""

    requests: int = 0
    replies: int = 0
    last_request: Evidence | None = None
    last_reply: Evidence | None = None
    pending: Evidence | None = None  #: a request without reply so far
    #: seconds, the latest 256 of them
    round_trips: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ControlEnd:
    """How a control connection ended."""

    evidence: Evidence
    by: Party
    how: str  #: ``Stop-Control-Connection-Request``, ``FIN``, ``RST``, ``replaced``


@dataclass(slots=True, eq=False)
class ControlConnection:
    """The story of one control connection, as one vantage point saw it."""

    id: int  #: from 1, in order of appearance
    file: int
    ends: tuple[Socket, Socket]  #: by `Party`: who opened it, who answered
    first: Evidence
    last: Evidence
    under_way: bool  #: its SYN was not seen
    state: ControlState = ControlState.OPENING
    syn: Evidence | None = None
    syn_ack: Evidence | None = None
    established: Evidence | None = None  #: the opener's first ACK
    introductions: list[Introduction | None] = field(default_factory=lambda: [None, None])
    start: Outcome | None = None  #: of Start-Control-Connection-Reply
    ladder: list[LadderEntry] = field(default_factory=list)
    ladder_left_out: int = 0  #: entries beyond the bound
    messages: Counter[tuple[Party, MessageType | None]] = field(default_factory=Counter)
    trouble: tuple[TcpTrouble, TcpTrouble] = field(
        default_factory=lambda: (TcpTrouble(), TcpTrouble())
    )
    #: initial sequence numbers, which a NAT leaves as they are; by `Party`
    initial: list[int | None] = field(default_factory=lambda: [None, None])
    echoes: tuple[Echoes, Echoes] = field(default_factory=lambda: (Echoes(), Echoes()))
    oddities: dict[tuple[Party, str], tuple[int, Evidence]] = field(default_factory=dict)
    ends_seen: list[ControlEnd] = field(default_factory=list)  #: in order; the first is why
    calls: list[Call] = field(default_factory=list)

    @property
    def end(self) -> ControlEnd | None:
        """What ended it, if anything did."""
        return self.ends_seen[0] if self.ends_seen else None


@dataclass(slots=True)
class CallEnd:
    """One party of a call, as seen at this vantage point."""

    address: Address
    call_id: int | None = None  #: None: not seen
    window: int | None = None  #: packets it announced to receive (Packet Recv. Window Size)
    processing_delay: int | None = None  #: tenths of a second


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A Set-Link-Info."""

    evidence: Evidence
    sender: Role
    number: int  #: its Peer's Call ID
    send_accm: int
    receive_accm: int
    #: whether `number` is the receiver's in this call; if not, it is nobody's, and this
    #: is the connection's only call
    exact: bool


@dataclass(frozen=True, slots=True)
class WanErrors:
    """The latest WAN-Error-Notify; the PAC's counters since the call began."""

    evidence: Evidence
    crc: int
    framing: int
    hardware_overruns: int
    buffer_overruns: int
    time_outs: int
    alignment: int


@dataclass(slots=True, eq=False)
class GreFlow:
    """One direction of GRE between two addresses with one key."""

    file: int
    source: Address
    destination: Address
    key: int  #: the receiver's call ID
    first: Evidence
    last: Evidence
    packets: int = 0
    octets: int = 0  #: of IP packets
    call: Call | None = None  #: None: nobody's that we know
    sender: Role | None = None  #: in `call`
    quality: GreQuality | None = None
    #: the first packets of one that has no call yet, bounded
    kept: list[GrePacket] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Call:
    """The story of one call, as one vantage point saw it."""

    id: int  #: from 1, in order of appearance
    file: int
    connection: ControlConnection | None  #: None: only its GRE was captured
    pns: CallEnd
    pac: CallEnd
    first: Evidence
    last: Evidence  #: the latest control message or GRE of it
    incoming: bool | None = None  #: whether the PAC asked for it; None: not seen
    state: CallState = CallState.IDLE
    serial: int | None = None
    phone: str = ""  #: number dialed, as sent
    dialing: str = ""  #: of an incoming call: who calls, as sent
    subaddress: str = ""
    speed: int | None = None  #: bits per second, as the PAC claims
    requests: int = 0  #: how often it was asked for
    requested: Evidence | None = None
    replied: Evidence | None = None
    connected: Evidence | None = None  #: GRE may flow from here on
    reply: Outcome | None = None  #: of the reply to the request
    cleared: Evidence | None = None  #: Call-Clear-Request
    disconnected: Evidence | None = None  #: Call-Disconnect-Notify
    notify: Outcome | None = None  #: of that
    statistics: str = ""  #: of that, as sent
    #: number in a Call-Disconnect-Notify that was the PNS's (or that swapped), if it was
    wrong_notify: int | None = None
    ended: Evidence | None = None
    end: End | None = None
    link_infos: list[LinkInfo] = field(default_factory=list)  #: the first 16
    wan_errors: WanErrors | None = None
    wan_notifies: int = 0
    #: by sender; absent: none was seen
    gre: dict[Role, GreFlow] = field(default_factory=dict)
    ppp: Ppp | None = None
    roles_guessed: bool = False  #: with `connection` None nobody said who is PNS

    def end_of(self, role: Role) -> CallEnd:
        """Return the party with *role*."""
        return self.pns if role is Role.PNS else self.pac

    @property
    def setup(self) -> float | None:
        """Seconds from the first request to the answer that lets GRE flow."""
        if self.requested is None or self.connected is None:
            return None
        return self.connected.time - self.requested.time

    @property
    def duration(self) -> float | None:
        """Seconds from being connected to the end, or to the last that was seen."""
        if self.connected is None:
            return None
        return max((self.ended or self.last).time - self.connected.time, 0.0)


@dataclass(frozen=True, slots=True)
class Translation:
    """A call seen at two vantage points, or twice at one: on both sides of a NAT."""

    inside: Call  #: where the hidden party shows its own address
    outside: Call
    #: whose address and call ID the NAT changes; None: neither's, the way is only routed
    hidden: Role | None
    reasons: tuple[str, ...]  #: what the two have in common, in words
    delay: float | None = None  #: seconds from one side to the other, median, if clocks agree


@dataclass(frozen=True, slots=True)
class IcmpReport:
    """An ICMP error about a control connection or a call's GRE."""

    evidence: Evidence
    reporter: Address
    type: int
    code: int
    protocol: int  #: 6 or 47
    source: Address  #: of the packet that could not go on
    destination: Address
    ports: tuple[int, int] | None  #: of TCP
    key: int | None  #: of GRE
    mtu: int | None  #: of "fragmentation needed"

    @property
    def words(self) -> str:
        """What it says, as RFC 792 and RFC 1812 name it."""
        words = _ICMP.get((self.type, self.code), f"ICMP type {self.type} code {self.code}")
        return f"{words} (MTU {self.mtu})" if self.mtu else words


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a named rule found."""

    rule: str  #: stable slug
    severity: Severity
    summary: str  #: one line, for people
    evidence: tuple[Evidence, ...]
    remedy: str  #: what to do; empty where nothing is to be done
    connection: int | None = None  #: id of the control connection it is about
    call: int | None = None  #: id of the call it is about


@dataclass(slots=True)
class Analysis:
    """All that was found."""

    files: list[CaptureFile] = field(default_factory=list)
    control_connections: list[ControlConnection] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    strays: list[GreFlow] = field(default_factory=list)  #: GRE of no call, bounded
    strays_left_out: int = 0  #: packets of further flows
    left_out: int = 0  #: control connections and calls beyond the bound
    icmp: list[IcmpReport] = field(default_factory=list)  #: bounded
    translations: list[Translation] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    #: packets by what they were: ``tcp``, ``gre``, ``fragments``, ``other_gre``, ``icmp``
    counts: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False  #: not everything was read, by the user's wish
    connection_ids: Iterator[int] = field(default_factory=lambda: count(1))
    call_ids: Iterator[int] = field(default_factory=lambda: count(1))
    live: bool = False  #: still growing: what has not come yet may come
    _indexed: list[Translation] | None = field(default=None, repr=False, compare=False)
    _views: dict[int, Translation] = field(default_factory=dict, repr=False, compare=False)

    @property
    def start(self) -> float | None:
        """When the first packet was captured."""
        return min((f.first for f in self.files if f.first is not None), default=None)

    @property
    def stop(self) -> float | None:
        """When the last packet was captured: up to here silence means something."""
        return max((f.last for f in self.files if f.last is not None), default=None)

    def translation_of(self, call: Call) -> Translation | None:
        """Return the translation that *call* is one side of."""
        if self._indexed is not self.translations:
            self._indexed = self.translations
            self._views = {each.inside.id: each for each in self.translations}
            self._views |= {each.outside.id: each for each in self.translations}
        return self._views.get(call.id)
