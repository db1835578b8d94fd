"""Entries of a conntrack table, wherever they were listed, as far as PPTP is concerned.

Two protocols matter: TCP to or from a PPTP server's port, and GRE.  An entry's
two ways are what arrives at the router: the original way from whoever sent the
first packet, the reply way what the router expects in return.  Where they
differ by more than their direction, the router translates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

TCP: Final = 6
GRE: Final = 47
ENTRY_MARK: Final = 0x20000000  #: the bit by which our own entries are known, ``gre.entry_mark``
#: TCP states (net/netfilter/nf_conntrack_proto_tcp.c) in which messages still flow
FLOWING: Final = frozenset({"SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT"})


class Way(NamedTuple):
    """One way of an entry.  Keys are ports or call IDs; None: conntrack does not look at them."""

    source: str  #: dotted
    destination: str
    source_key: int | None
    destination_key: int | None


class Count(NamedTuple):
    """What one way has carried; octets are those of the IP packets."""

    packets: int
    octets: int


class Host(NamedTuple):
    """One of the two hosts of an entry."""

    own: str  #: its own address, dotted
    seen_as: str  #: the address that the other host knows

    @property
    def hidden(self) -> bool:
        """Whether the router shows another address in place of this host's own."""
        return self.own != self.seen_as

    def __str__(self) -> str:
        return f"{self.own} (seen as {self.seen_as})" if self.hidden else self.own


class ListedEntry(NamedTuple):
    """One entry.  Flat, for there may be a hundred thousand; `original` and `reply` are its ways.

    Counts are None where the kernel does not count.
    """

    protocol: int
    source: str  #: of the original way, dotted
    destination: str
    source_key: int | None
    destination_key: int | None
    back_source: str  #: of the reply way
    back_destination: str
    back_source_key: int | None
    back_destination_key: int | None
    state: str = ""  #: of TCP, as conntrack writes it; "" for GRE
    seconds_left: int | None = None  #: None where the listing does not say
    unreplied: bool = False
    assured: bool = False
    offloaded: bool = False  #: a flow table carries it past the rules
    packets: int | None = None  #: that the original way has carried
    octets: int | None = None
    back_packets: int | None = None
    back_octets: int | None = None
    mark: int = 0
    helper: str = ""
    identity: int | None = None
    started: float | None = None  #: Unix seconds, with net.netfilter.nf_conntrack_timestamp
    line: int = 0  #: of the listing; 0 where there is none

    @property
    def original(self) -> Way:
        """The way of the first packet."""
        return Way(*self[1:5])

    @property
    def reply(self) -> Way:
        """The way that the router expects in return."""
        return Way(*self[5:9])

    @property
    def carried(self) -> Count | None:
        """What the original way has carried; None where the kernel does not count."""
        packets, octets = self[14:16]
        return None if packets is None or octets is None else Count(packets, octets)

    @property
    def returned(self) -> Count | None:
        """What the reply way has carried."""
        packets, octets = self[16:18]
        return None if packets is None or octets is None else Count(packets, octets)

    @property
    def sender(self) -> Host:
        """The host that sent the first packet."""
        return Host(self.source, self.back_destination)

    @property
    def receiver(self) -> Host:
        """The host that the first packet was for."""
        return Host(self.back_source, self.destination)

    @property
    def flowing(self) -> bool:
        """Whether a control connection is open, or at least not closed by both sides."""
        return self.state in FLOWING

    @property
    def both_ways(self) -> bool:
        """Whether one entry carries a whole GRE call, as the kernel's helper has it.

        Where nobody knows the call, its packets arrive with source key 0.
        """
        return bool(self.source_key)


def listed(
    protocol: int,
    original: Way,
    reply: Way,
    counts: tuple[Count | None, Count | None] = (None, None),
    **more: Any,  # noqa: ANN401 - whatever else a `ListedEntry` has
) -> ListedEntry:
    """Return the entry of these ways and what they have carried; *more* as in `ListedEntry`."""
    packets, octets = counts[0] or (None, None)
    back_packets, back_octets = counts[1] or (None, None)
    return ListedEntry(
        protocol, *original, *reply, packets=packets, octets=octets,
        back_packets=back_packets, back_octets=back_octets, **more,
    )  # fmt: skip


def is_control(entry: ListedEntry, ports: Collection[int]) -> bool:
    """Whether *entry* is TCP to one of *ports*, dialled so or forwarded there."""
    return entry.protocol == TCP and (
        entry.destination_key in ports or entry.back_source_key in ports
    )


def is_ours(entry: ListedEntry, entry_mark: int) -> bool:
    """Whether *entry* is a leg that pptp-nat made: its mark, and no packet had to come first."""
    return (
        entry.protocol == GRE
        and bool(entry.mark & entry_mark)
        and not entry.unreplied
        and not entry.both_ways
    )
