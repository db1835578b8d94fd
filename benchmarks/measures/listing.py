"""A conntrack table of many calls as ``conntrack -L`` prints it.

Each call has a control connection and two legs of pptp-nat's, in no order.  Run as a
program, it writes one, and whoever starts others afterwards stays small: a process
begins with the memory of who has started it.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Final

_CONTROL: Final = (
    "tcp      6 431990 ESTABLISHED src={client} dst={server} sport={port} dport=1723 "
    "packets=20 bytes=1500 src={server} dst=203.0.113.1 sport=1723 dport={port} "
    "packets=18 bytes=1400 [ASSURED] mark=0 use=1\n"
)
_LEG: Final = (
    "gre      47 400000 src={source} dst={destination} srckey=0x0 dstkey={key:#x} "
    "packets={packets} bytes={octets} src={back_source} dst={back_destination} "
    "srckey={other:#x} dstkey=0x0 packets=0 bytes=0 mark=536870912 use=1\n"
)


def write_listing(path: Path, entries: int) -> None:
    """Write a listing of *entries* entries, or up to two more."""
    chance = random.Random(1723)
    lines = []
    for n in range(-(-entries // 3)):
        client, server = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", f"198.51.100.{n % 200 + 1}"
        lines.append(_CONTROL.format(client=client, server=server, port=1024 + n % 60_000))
        ways = (
            (client, server, server, "203.0.113.1"),
            (server, "203.0.113.1", client, server),
        )
        for source, destination, back_source, back_destination in ways:
            lines.append(_LEG.format(
                source=source, destination=destination, back_source=back_source,
                back_destination=back_destination, key=n % 65_535 + 1,
                other=chance.randrange(1, 65_536), packets=chance.randrange(1, 10**6),
                octets=chance.randrange(1, 10**9),
            ))  # fmt: skip
    chance.shuffle(lines)
    path.write_text("".join(lines))


if __name__ == "__main__":
    write_listing(Path(sys.argv[1]), int(sys.argv[2]))
