"""What the core says: verdicts for packets, orders for the data path, news for people.

Events carry the call or connection itself, not a copy: read them at once, keep
`record_of` what is to be kept.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.messages import MessageType
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.core.tuples import Leg, Party


class Verdict(enum.Enum):
    """What becomes of a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    HOLD = "hold"  #: decided later, within the hold time


class LegUp(NamedTuple):
    """Carry GRE along *leg*, before the packet in hand goes on (make before break)."""

    call: Call
    party: Party  #: whom the leg leads to
    leg: Leg
    mark: int  #: connmark of the control connection


def legs_up(calls: Iterable[Call]) -> Iterator[LegUp]:
    """Yield what has the legs of *calls* carried, as far as there are any."""
    for call in calls:
        for party in Party:
            if (leg := call.leg(party)) is not None:
                yield LegUp(call, party, leg, call.connection.mark)


class LegDown(NamedTuple):
    """Stop carrying GRE along *leg*, after the packet in hand has gone on."""

    call: Call
    party: Party
    leg: Leg


class LegMarked(NamedTuple):
    """Give the GRE on an installed *leg* another mark."""

    call: Call
    leg: Leg
    mark: int


class CallChanged(NamedTuple):
    """A call has another state than *was*."""

    call: Call
    was: CallState


class ConnectionChanged(NamedTuple):
    """A control connection has another state than *was*; None: it is new."""

    connection: Connection
    was: ControlState | None


class MessageSeen(NamedTuple):
    """A whole control message went by; *octets* are its sender's."""

    connection: Connection
    sender: Party
    kind: MessageType | None
    octets: bytes


class OddityMet(NamedTuple):
    """A departure from the RFC, tolerated and counted under *slug*."""

    connection: Connection
    sender: Party
    slug: str


class CallRefused(NamedTuple):
    """A new call was refused: no number or no room for it.  Live calls are untouched."""

    connection: Connection
    sender: Party
    reason: str  #: stable slug, safe as a metric label


class Released(NamedTuple):
    """A packet that was held: let it go, as *packet*."""

    packet_id: int
    packet: bytes


Event = (
    LegUp
    | LegDown
    | LegMarked
    | CallChanged
    | ConnectionChanged
    | MessageSeen
    | OddityMet
    | CallRefused
)


class Outcome:
    """What `Translator.handle` and `Translator.tick` decided.

    Carry out every `LegUp`, then give the verdicts (held packets first), then
    carry out every `LegDown`, and look at the mark of a connection that has echoed.
    """

    # No dataclass: one is made for every packet, and a dataclass is none of the compiler's.
    __slots__ = ("connection", "echoed", "events", "packet", "released", "verdict")

    def __init__(
        self,
        verdict: Verdict = Verdict.ACCEPT,
        packet: bytes | None = None,
        events: list[Event] | None = None,
        released: list[Released] | None = None,
        connection: Connection | None = None,
        *,
        echoed: bool = False,
    ) -> None:
        self.verdict = verdict
        self.packet = packet  #: the packet as it must travel on; None: as it came
        self.events = [] if events is None else events
        self.released = [] if released is None else released
        self.connection = connection  #: whose packet it was, if its octets were read
        #: an Echo-Request of it has gone by: time for `Translator.look_at_mark`, which nobody
        #: waits for
        self.echoed = echoed
