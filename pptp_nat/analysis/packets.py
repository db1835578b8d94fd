"""What passes between whoever reads packets and whoever judges them.

A packet of enhanced GRE becomes one of two things:

`Row`        the ordinary one, as a plain tuple, by the thousand
`GrePacket`  one by one, where something about it is worth a closer look: it may be
             PPP control, or it is cut, in fragments, or not as RFC 2637 section 4.1 has it

Times are Unix seconds, lengths octets, numbers host order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pptp_nat.core.messages import Role

ABSENT: Final = -1  #: stands in a `Row` where the packet has no such field


class Evidence(NamedTuple):
    """Where something is to be seen: a packet of a capture."""

    file: int  #: index into `pptp_nat.analysis.model.Analysis.files`
    number: int  #: of the packet in its file, from 1, as Wireshark counts
    time: float


#: An ordinary packet: (time, packet number, payload length, sequence number,
#: acknowledgement number, the first 4 octets of the payload).  Ordinary is: not a
#: fragment, no IP options, K set, C, R, s, Recur and reserved flags clear, the header
#: captured whole, the payload length no more than IP carries.  `ABSENT` stands for a
#: sequence or acknowledgement number that the packet does not carry, and for the first
#: 4 octets where there are fewer or the capture has cut them off.
Row = tuple[float, int, int, int, int, int]


class GrePacket(NamedTuple):
    """One packet of enhanced GRE, with its PPP octets as far as they were captured."""

    evidence: Evidence
    sender: Role  #: who sent it, in its call
    key: int  #: the receiver's call ID
    flags: int  #: the first two octets of the GRE header
    payload_length: int  #: as the GRE header claims
    carried: int  #: octets behind the GRE header, by IP's total length (all fragments)
    sequence: int | None
    acknowledgement: int | None
    payload: bytes  #: what was captured of `carried`, no more than `payload_length` octets
    ip_length: int  #: of the whole IP packet, put together if it came in fragments
    fragments: int  #: how many fragments it came in; 0: not fragmented

    @property
    def cut(self) -> bool:
        """Whether the capture's snap length has cut octets off the payload."""
        return len(self.payload) < min(self.payload_length, self.carried)


class PppReader(Protocol):
    """Follows the PPP of one call, both directions."""

    def feed(self, packet: GrePacket) -> None:
        """Read a packet that may be PPP control, in the order of capture.

        Every packet comes here but those whose payload certainly is data: protocol
        0x00FD (compressed or encrypted), and 0x0021 and 0x0057 (IP, IPv6) beyond the
        first 32 of each sender.
        """

    def feed_data(self, sender: Role, rows: Sequence[Row]) -> None:
        """Read ordinary packets of *sender*, control among them, in the order of capture.

        They come late and in batches, so control packets that `feed` has seen stand
        in them too.
        """


class QualityReader(Protocol):
    """Measures one direction of one call."""

    def feed(self, packet: GrePacket) -> None:
        """Measure a packet that is no ordinary one."""

    def feed_many(self, sent: Sequence[Row], heard: Sequence[Row]) -> None:
        """Measure the ordinary packets of this direction, *sent*.

        *heard* are those of the opposite direction, for their acknowledgements.  Both are
        in the order of capture and cover the same span of time; either may be empty.
        Each ordinary packet comes once.
        """
