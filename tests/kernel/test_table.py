"""The live table of anybody's entries, beside conntrack's own listing of it."""

from __future__ import annotations

import operator
import socket

import pytest

from benchmarks.measures.live_table import fill
from pptp_nat.analysis.conntrack_text import Listing
from pptp_nat.commands.conntrack_live import live
from pptp_nat.linux import conntrack_wire as wire
from pptp_nat.linux.netlink import F_CREATE, F_EXCL, Message, Netlink, attribute, nested

from .conntrack_lab import ConntrackLab

pytestmark = pytest.mark.kernel
INSIDE, OUTSIDE, EXTERNAL = map(socket.inet_aton, ("10.9.0.2", "192.0.2.7", "203.0.113.1"))


def connection(port: int, *more: bytes, key: int = 40_000) -> Message:
    """Return the order for a connection from outside to *port*."""
    return Message(wire.CT_NEW, F_CREATE | F_EXCL, wire.FAMILY + b"".join((
        wire.tuple_attribute(
            wire.CTA_TUPLE_ORIG, wire.Tuple(wire.TCP, OUTSIDE, key, EXTERNAL, port)
        ),
        wire.tuple_attribute(
            wire.CTA_TUPLE_REPLY, wire.Tuple(wire.TCP, EXTERNAL, port, OUTSIDE, key)
        ),
        attribute(wire.CTA_STATUS, int(wire.Status.CONFIRMED).to_bytes(4, "big")),
        attribute(wire.CTA_TIMEOUT, (600).to_bytes(4, "big")),
        *more,
    )))  # fmt: skip


def to_port(port: int) -> bytes:
    """Return the translation of a port forward to *port* of the inside host."""
    proto = attribute(wire.CTA_PROTONAT_PORT_MIN, port.to_bytes(2, "big"))
    return nested(
        wire.CTA_NAT_DST, attribute(wire.CTA_NAT_V4_MINIP, INSIDE),
        nested(wire.CTA_NAT_PROTO, proto),
    )  # fmt: skip


@pytest.mark.parametrize("counting", ["0", "1"])
def test_the_table_read_at_once_is_what_conntrack_lists(lab: ConntrackLab, counting: str) -> None:
    """Legs, connections, those of others, a port forward, marks and an entry without answer."""
    lab.router.sysctl("net.netfilter.nf_conntrack_acct", counting)
    with lab.router.entered():
        fill(300, others=100)
        with Netlink() as netlink:
            odd = [
                connection(21_723, to_port(1723)),
                connection(1723, to_port(4_723)),
                connection(21_724, to_port(4_724)),
                connection(1723, attribute(wire.CTA_MARK, (66).to_bytes(4, "big")), key=40_001),
            ]
            assert [0] * len(odd) == netlink.request(odd)
        found = list(live((1723,)))
    listing = Listing((1723,))
    listing.read([lab.router.run("conntrack", "-L", "-o", "id")])

    def essence(entries):
        return sorted(
            (e._replace(line=0, seconds_left=None) for e in entries), key=operator.itemgetter(20)
        )

    assert (101, None) == (listing.others, listing.complaint)
    assert essence(listing.entries) == essence(found)
    assert 903 == len(found)
    assert {21_723} == {e.destination_key for e in found if e.source == "192.0.2.7"} - {1723}
