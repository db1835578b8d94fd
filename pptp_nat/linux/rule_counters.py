"""How many packets each rule of a chain has met, asked of nf_tables over netlink.

A program that prints rules takes a tenth of a second and more, and a daemon in a sandbox may
start none; this takes one request.  Rules of the newer iptables are rules of nf_tables too.
Those of iptables-legacy are elsewhere, and are not counted here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from pptp_nat.errors import AdapterError
from pptp_nat.linux.netlink import ATTRIBUTE, Message, Netlink, attribute, attributes

# Specification: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
GET_RULE: Final = 10 << 8 | 7  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE
GENERAL: Final = struct.Struct("!BBH")  # family, version, resource
RULE_TABLE: Final = 1
RULE_CHAIN: Final = 2
RULE_EXPRESSIONS: Final = 4
EXPRESSION_NAME: Final = 1
EXPRESSION_DATA: Final = 2
COUNTER_PACKETS: Final = 2
COUNTER: Final = b"counter\0"


def rule_counters(table: str, chain: str) -> list[int]:
    """Return the packets of each rule in *chain* that counts them, in order; [] without such.

    Raises:
        AdapterError: the kernel has no nf_tables, or we may not ask.
    """
    body = GENERAL.pack(socket.AF_INET, 0, 0)
    body += attribute(RULE_TABLE, table.encode() + b"\0")
    body += attribute(RULE_CHAIN, chain.encode() + b"\0")
    with Netlink() as netlink:
        rules = netlink.dump(Message(GET_RULE, 0, body))
    return [packets for rule in rules for packets in _packets(rule[GENERAL.size :])]


def _packets(rule: bytes) -> Iterator[int]:
    for expression in _listed(attributes(rule).get(RULE_EXPRESSIONS, b"")):
        parts = attributes(expression)
        if parts.get(EXPRESSION_NAME) == COUNTER:
            count = attributes(parts.get(EXPRESSION_DATA, b"")).get(COUNTER_PACKETS, b"")
            if len(count) != 8:
                raise AdapterError("reading a rule's counter", 0)
            yield int.from_bytes(count, "big")


def _listed(octets: bytes) -> Iterator[bytes]:
    """Yield the payloads of attributes that are all of one type."""
    offset = 0
    while offset + ATTRIBUTE.size <= len(octets):
        length, _ = ATTRIBUTE.unpack_from(octets, offset)
        if length < ATTRIBUTE.size:
            return
        yield octets[offset + ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
