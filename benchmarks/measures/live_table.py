"""A live conntrack table of many calls, made entry by entry over ctnetlink.

Each call has a control connection and two legs of pptp-nat's, as in `listing`.  Run as a
program inside a network namespace, it fills that one's table.
"""

from __future__ import annotations

import socket
import sys

from pptp_nat.core.tuples import Leg
from pptp_nat.linux.conntrack_layout import (
    CTA_PROTOINFO,
    CTA_PROTOINFO_TCP,
    CTA_PROTOINFO_TCP_STATE,
)
from pptp_nat.linux.conntrack_wire import (
    CT_NEW,
    CTA_MARK,
    CTA_STATUS,
    CTA_TIMEOUT,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    FAMILY,
    TCP,
    Status,
    Tuple,
    new_message,
    tuple_attribute,
)
from pptp_nat.linux.netlink import (
    F_CREATE,
    F_EXCL,
    MOST_PER_SEND,
    Message,
    Netlink,
    attribute,
    nested,
)

EXTERNAL = socket.inet_aton("203.0.113.1")
ESTABLISHED = 3  # net/netfilter/nf_conntrack_proto_tcp.c
ENTRY_MARK = 0x20000000
LIFETIME = 2_000_000
_STATUS = int(Status.CONFIRMED | Status.ASSURED | Status.SEEN_REPLY)


def fill(calls: int, others: int = 0) -> None:
    """Make the entries of *calls*, three each, and of *others*, connections to a web server.

    Raises:
        SystemExit: the kernel refuses one.
    """
    messages = [message for number in range(calls) for message in _call(number)]
    messages += [_connection(_client(n), n % 200, 443, n) for n in range(others)]
    with Netlink() as netlink:
        for start in range(0, len(messages), MOST_PER_SEND):
            refused = {*netlink.request(messages[start : start + MOST_PER_SEND])} - {0}
            if refused:
                sys.exit(f"making conntrack entries: errno {min(refused)}")


def _call(number: int) -> list[Message]:
    client, server = _client(number), _server(number % 200)
    key = number % 65_535 + 1
    # Each client's keys are another's too: their addresses tell them apart, outside the servers'.
    seen = number // 200 % 65_535 + 1
    out = Leg(client, server, key, EXTERNAL, server, number % 60_000 + 1)
    into = Leg(server, EXTERNAL, seen, server, client, key)
    return [
        _connection(client, number % 200, 1723, number),
        new_message(out, ENTRY_MARK, number // 200 % 65_535 + 1, LIFETIME),
        new_message(into, ENTRY_MARK, 0, LIFETIME),
    ]


def _connection(client: bytes, server: int, port: int, number: int) -> Message:
    there = _server(server)
    source, seen = 1024 + number % 60_000, 1024 + number // 200 % 60_000
    state = nested(CTA_PROTOINFO_TCP, attribute(CTA_PROTOINFO_TCP_STATE, bytes((ESTABLISHED,))))
    body = (
        FAMILY
        + tuple_attribute(CTA_TUPLE_ORIG, Tuple(TCP, client, source, there, port))
        + tuple_attribute(CTA_TUPLE_REPLY, Tuple(TCP, there, port, EXTERNAL, seen))
        + attribute(CTA_STATUS, _STATUS.to_bytes(4, "big"))
        + attribute(CTA_TIMEOUT, (431_990).to_bytes(4, "big"))
        + nested(CTA_PROTOINFO, state)
        + attribute(CTA_MARK, bytes(4))
    )
    return Message(CT_NEW, F_CREATE | F_EXCL, body)


def _client(number: int) -> bytes:
    return bytes((10, number >> 16 & 255, number >> 8 & 255, number & 255))


def _server(number: int) -> bytes:
    return bytes((198, 51, 100, number + 1))


if __name__ == "__main__":
    fill(*map(int, sys.argv[1:]))
