"""Entries of anybody, as ctnetlink writes them: the quick reader against the careful one."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.errors import AdapterError
from pptp_nat.linux import conntrack_wire as wire
from pptp_nat.linux.conntrack_rows import Layout, Reader, TableRow, read_row
from pptp_nat.linux.conntrack_wire import GRE, TCP, Tuple
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.netlink import attribute, nested
from tests.core.effort import effort

from .test_conntrack_wire import CARRIED, CLIENT, CONTROL, EXTERNAL, SERVER

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="samples are little-endian")
STARTED = nested(20, attribute(1, (1_795_560_888_636_109_139).to_bytes(8)))


def keyless(kind: int, source: bytes, destination: bytes) -> bytes:
    """Return the tuple of a kernel that tracks GRE like any unknown protocol."""
    addresses = nested(wire.CTA_TUPLE_IP, attribute(1, source), attribute(2, destination))
    return nested(kind, addresses, nested(wire.CTA_TUPLE_PROTO, attribute(1, bytes((GRE,)))))


KEYLESS = (
    wire.FAMILY
    + keyless(wire.CTA_TUPLE_ORIG, CLIENT, SERVER)
    + keyless(wire.CTA_TUPLE_REPLY, SERVER, EXTERNAL)
    + attribute(wire.CTA_STATUS, (8).to_bytes(4))
    + attribute(wire.CTA_TIMEOUT, (590).to_bytes(4))
)
SAMPLES = [CONTROL, CARRIED, KEYLESS, CARRIED + STARTED]


def test_a_control_connection_with_all_that_belongs_to_it() -> None:
    assert read_row(CONTROL) == TableRow(
        Tuple(TCP, CLIENT, 57249, SERVER, 1723), Tuple(TCP, SERVER, 1723, EXTERNAL, 57249),
        True, 0x219E, "ESTABLISHED", 0x69780, Tally(2, 0x70), Tally(1, 0x3C), 0x42, "pptp",
        0xC0445C63, None,
    )  # fmt: skip


def test_a_leg_and_when_it_began() -> None:
    row = read_row(CARRIED + STARTED)

    assert row is not None
    assert (GRE, 1000, "", 2_000_000) == (
        row.original.protocol, row.original.destination_key, row.state, row.seconds_left
    )  # fmt: skip
    assert row.started == pytest.approx(1_795_560_888.636, abs=0.001)


def test_gre_without_keys_is_read_by_its_addresses() -> None:
    """A kernel without CONFIG_NF_CT_PROTO_GRE."""
    row = read_row(KEYLESS)

    assert row is not None
    assert not row.keyed
    assert (CLIENT, SERVER) == (row.original.source, row.original.destination)
    assert (SERVER, EXTERNAL) == (row.reply.source, row.reply.destination)


def outcome(read, body: bytes):
    try:
        return read(body)
    except AdapterError:
        return AdapterError


@effort(300)
@given(st.sampled_from(SAMPLES), st.data())
def test_the_quick_reader_says_what_the_careful_one_says(sample: bytes, data) -> None:
    """Whatever has changed since the entry that it has learnt from, headers too."""
    read = Reader()
    assert read(sample) == read_row(sample)
    changed = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from((len(sample), len(sample), at)))
    body = bytes(changed[:cut])

    assert outcome(read, body) == outcome(read_row, body)
    assert read(sample) == read_row(sample)


@pytest.mark.parametrize("sample", [CONTROL, CARRIED, CARRIED + STARTED])
def test_an_ordinary_entry_is_read_the_quick_way(sample: bytes) -> None:
    assert Layout(sample).read(sample) == read_row(sample)
