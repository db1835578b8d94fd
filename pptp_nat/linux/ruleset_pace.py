"""Pacing ahead of the queues: a flood is dropped by a rule, before it costs the daemon.

A queue is shared, so whoever fills it keeps everybody's messages out.  Each bound here is
a token bucket that holds two seconds of its rate, but `MOST_AT_ONCE` at most.  What opens
a connection is told from what belongs to one by conntrack: a made-up packet of no
connection (NEW, INVALID) can come from anybody, one of a connection only from who had the
handshake answered.

A client is who opened the connection: the source of what it sends, the destination of
what comes back.  A server's address stands for all of its clients, and is never paced.

GRE that comes to a queue has one bound, by its source, where it comes in: whose call it is
nobody knows there.  A server sends what all of its clients are sent, so that bound is high.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pptp_nat.linux.datapath import Carrying
from pptp_nat.linux.ruleset_settings import Pace

BURST_SECONDS: Final = 2
MOST_AT_ONCE: Final = 4_000  # fewer than control.queue_length has room for, by default
#: Clients that are told apart.  More of them, and nftables keeps the bound of all alone, and
#: xt_hashlimit drops (dsthash_alloc_init): for openers it decides by the machine's memory, since
#: anybody can make addresses up; for connections this holds, since somebody must have answered.
CLIENTS: Final = 65_535
FORGET_SECONDS: Final = 10  # a bucket that nobody draws from is full again long before


class Bound(NamedTuple):
    """One bound, in the words of both backends, each without the verdict."""

    key: str  #: of the configuration, [limits]
    iptables: str
    nftables: str
    set_name: str  #: nftables' set of clients; "" where all share one bucket
    facts: frozenset[str]  #: what nft prints alike in all of its versions
    why: tuple[str, ...]


class _Kind(NamedTuple):
    key: str
    name: str
    iptables: str
    mode: str  #: hashlimit's
    nftables: str
    element: str  #: nftables' key of the set
    why: tuple[str, ...]


_OPENER: Final = ("-m conntrack ! --ctstate RELATED,ESTABLISHED", "ct state new,invalid,untracked")
_SENT: Final = (
    "-m conntrack --ctstate RELATED,ESTABLISHED --ctdir ORIGINAL",
    "ct state established,related ct direction original",
)
_HEARD: Final = (
    "-m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY",
    "ct state established,related ct direction reply",
)
_KINDS: Final = (
    _Kind("openers_per_client", "openers", _OPENER[0], "srcip", _OPENER[1], "ip saddr",
          ("Openers (of no connection that conntrack knows: SYNs, and made-up segments), of one",
           "client, limits.openers_per_client a second.")),
    _Kind("openers", "opening", _OPENER[0], "", _OPENER[1], "",
          ("Openers of all clients together, limits.openers: however many addresses a flood",
           "has, what belongs to a connection finds room in the queue.")),
    _Kind("segments_per_client", "sent", _SENT[0], "srcip", _SENT[1], "ip saddr",
          ("Segments of a client's connections, limits.segments_per_client a second each way.",)),
    _Kind("segments_per_client", "heard", _HEARD[0], "dstip", _HEARD[1], "ip daddr", ()),
)  # fmt: skip
_GRE: Final = (
    _Kind("gre_per_host", "gre", "", "srcip", "", "ip saddr",
          ("GRE of one source, inside or outside, limits.gre_per_host a second.",)),
)  # fmt: skip


def bounds(pace: Pace) -> Iterator[Bound]:
    """Yield the bounds of control packets, in the order in which a packet meets them."""
    return _bounds(pace, _KINDS)


def gre_bounds(pace: Pace, datapath: Carrying) -> Iterator[Bound]:
    """Yield the bounds of GRE, which has a queue on one data path only."""
    return _bounds(pace, _GRE if datapath == "queue" else ())


def _bounds(pace: Pace, kinds: Iterable[_Kind]) -> Iterator[Bound]:
    for kind in kinds:
        rate: int = getattr(pace, kind.key)
        if not rate:
            continue
        burst = min(BURST_SECONDS * rate, MOST_AT_ONCE)
        mode = f"--hashlimit-mode {kind.mode} " if kind.mode else ""
        if kind.iptables != _OPENER[0]:
            mode += f"--hashlimit-htable-max {CLIENTS} "
        # A table of a known name is taken over with the rate that it was made with
        # (xt_hashlimit.c, htable_find_get): another rate needs another name.
        hashlimit = (
            f"-m hashlimit --hashlimit-above {rate}/second --hashlimit-burst {burst} {mode}"
            f"--hashlimit-name pptp_nat_{kind.name}_{rate}"
        )
        limit = f"limit rate over {rate}/second burst {burst} packets"
        fact = f"over {rate} burst {burst}"
        if kind.element:
            limit, fact = f"update @{kind.name} {{ {kind.element} {limit} }}", f"{kind.name} {fact}"
        yield Bound(
            kind.key, f"{kind.iptables} {hashlimit}".lstrip(), f"{kind.nftables} {limit}".lstrip(),
            kind.name if kind.element else "", frozenset({"drop", fact}), kind.why,
        )  # fmt: skip
