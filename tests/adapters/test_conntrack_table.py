"""Entries of anybody, as ctnetlink writes them: the quick reader against the careful one."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.commands import conntrack_live
from pptp_nat.errors import AdapterError
from pptp_nat.linux import conntrack_wire as wire
from pptp_nat.linux import netlink as nl
from pptp_nat.linux.conntrack_layout import Layout, TableRow
from pptp_nat.linux.conntrack_rows import Reader, read_row
from pptp_nat.linux.conntrack_table import is_wanted
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
PORTS = (1723,)
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


def message(body: bytes, flags: int = nl.F_MULTI | nl.F_DUMP_FILTERED) -> bytes:
    return nl.HEADER.pack(nl.HEADER.size + len(body), wire.CT_NEW, flags, 7, 9) + body


def entries_at_once(read: Reader, datagram: bytes):
    piece = read.read_datagram(datagram)
    if piece is None:
        return None
    found = [entry for rows in piece.flat for entry in conntrack_live.entries(rows, PORTS, ())]
    return found + [conntrack_live.entry_of(row) for row in piece.rows if is_wanted(row, PORTS)]


def entries_one_by_one(datagram: bytes):
    rows = (read_row(body) for _, _, _, _, body in nl.walk(datagram))
    wanted = (row for row in rows if row is not None and is_wanted(row, PORTS))
    return list(map(conntrack_live.entry_of, wanted))


@effort(300)
@given(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=9), st.data())
def test_a_datagram_read_at_once_says_what_its_entries_say_one_by_one(some, data) -> None:
    """All alike or in two minds, with octets changed and places exchanged."""
    bodies = list(map(bytearray, some))
    for _ in range(data.draw(st.integers(0, 3))):
        body = data.draw(st.sampled_from(bodies))
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    read = Reader()
    for _ in range(2):
        datagram = b"".join(message(bytes(body)) for body in bodies)
        at_once = outcome(lambda it: entries_at_once(read, it), datagram)
        one_by_one = outcome(entries_one_by_one, datagram)
        if isinstance(one_by_one, list):
            assert sorted(map(repr, one_by_one)) == sorted(map(repr, at_once))
        else:
            assert one_by_one == at_once
        bodies.reverse()  # another model


@pytest.mark.parametrize("sample", [CONTROL, CARRIED, CARRIED + STARTED])
def test_a_datagram_of_entries_that_are_alike_is_read_at_once(sample: bytes) -> None:
    """A hundred thousand come in a thousand datagrams."""
    read = Reader()
    for count in (1, 100, 3):
        piece = read.read_datagram(message(sample) * count)
        assert piece is not None
        assert ([], 1, count) == (piece.rows, len(piece.flat), len(list(piece.flat[0])))


def test_what_is_no_entry_is_left_to_who_reads_messages() -> None:
    """The end of a dump, an error, and a dump that the table's changes have interrupted."""
    done = nl.HEADER.pack(20, nl.NLMSG_DONE, nl.F_MULTI, 7, 9) + bytes(4)
    for datagram in (
        done, message(CARRIED) + done, b"", b"\1", bytes(64),
        message(CARRIED, nl.F_MULTI | nl.F_DUMP_INTR), message(CARRIED)[:-8],
    ):  # fmt: skip
        assert Reader().read_datagram(datagram) is None
