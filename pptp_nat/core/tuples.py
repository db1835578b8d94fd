"""Who talks to whom: addresses, flows, parties and legs.

Addresses are 4 octets in network order (`Address`); ports, call IDs and GRE
keys are ints in host order.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

Address = bytes  #: an IPv4 address, 4 octets, network order


class Party(enum.IntEnum):
    """The two ends of a control connection, by who opened the TCP connection.

    Which of them is PNS and which PAC is another matter: a call's first message
    says so, and one connection may carry calls of both roles.
    """

    ORIGINATOR = 0
    RESPONDER = 1

    @property
    def other(self) -> Party:
        """The other end."""
        return _OTHER[self]


_OTHER: Final = (Party.RESPONDER, Party.ORIGINATOR)


class Flow(NamedTuple):
    """One direction of a TCP connection, as seen where we look at packets.

    In the FORWARD hook both addresses are those of the hosts themselves:
    destination translation is done already, source translation still to come.
    """

    source: Address
    source_port: int
    destination: Address
    destination_port: int

    def reversed(self) -> Flow:
        """Return the other direction."""
        return Flow(self.destination, self.destination_port, self.source, self.source_port)


def flow_key(flow: Flow) -> bytes:
    """Return the 12 octets that name one direction of a TCP connection."""
    return (
        flow.source + flow.destination
        + flow.source_port.to_bytes(2, "big") + flow.destination_port.to_bytes(2, "big")
    )  # fmt: skip


def reverse_key(key: bytes) -> bytes:
    """Return the name of the other direction."""
    return key[4:8] + key[:4] + key[10:] + key[8:10]


class Seat(NamedTuple):
    """Where one party sits: its own address and the one that the other party sees."""

    own: Address
    seen_as: Address

    @property
    def inside(self) -> bool:
        """Whether this router hides the party's address, and so its call IDs too."""
        return self.own != self.seen_as


class Placement(NamedTuple):
    """What conntrack knows about a control connection: who is inside, and as whom.

    ``flow`` is the direction of the opener, with both hosts' own addresses.
    Neither party inside means plain routing; both mean a hairpin.
    """

    flow: Flow
    originator: Seat
    responder: Seat
    mark: int  #: connmark of the control connection
    helper: str | None = None  #: a kernel helper that is attached to this connection

    def seat(self, party: Party) -> Seat:
        """Return the seat of *party*."""
        return self.responder if party else self.originator


class Leg(NamedTuple):
    """One direction of a call's GRE: what arrives at this router, and what leaves it.

    ``key`` is the call ID in the GRE key: always the receiver's number.  A leg
    towards an inside host changes destination and key; one towards an outside
    host changes the source; in a hairpin one leg does both; in plain routing a
    leg changes nothing.
    """

    source: Address
    destination: Address
    key: int
    new_source: Address
    new_destination: Address
    new_key: int

    @property
    def translates(self) -> bool:
        """Whether a packet leaves otherwise than it came."""
        return self[:3] != self[3:]
