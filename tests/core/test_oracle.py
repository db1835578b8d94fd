"""An independent author's PPTP and GRE layers must agree with ours: scapy as the oracle.

Known bugs of scapy 2.8 that are left out of the comparison: the Length of an
Incoming-Call-Reply defaults to 148, and lengths are never computed.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.messages import HEADER, LAYOUTS, MessageType, pack, unpack
from pptp_nat.core.packet import enhanced_gre, pack_enhanced_gre

from .effort import effort

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
pptp = pytest.importorskip("scapy.layers.pptp", reason="scapy is not installed")

M = MessageType
WRONG_LENGTH = {M.INCOMING_CALL_REPLY: 148}


@cache
def layer_of(kind: MessageType) -> Any:
    """Return scapy's class for *kind*."""
    return getattr(pptp, "PPTP" + kind.title.replace("-", "").replace("Wan", "WAN"))


def offsets_of(layer: Any) -> list[tuple[int, int, str]]:
    """Return (offset, size, name) of each field of a scapy layer."""
    fields, at = [], 0
    for field in layer.fields_desc:
        fields.append((at, int(field.sz), field.name))
        at += int(field.sz)
    return fields


def our_offsets(kind: MessageType) -> list[tuple[int, int]]:
    """Return (offset, size) of each field of ours, found by packing one field at a time."""
    layout, found = LAYOUTS[kind], []
    for name in layout.names:
        text = isinstance(unpack(pack(kind))[1][name], bytes)
        for size in (1, 2, 4, 64, 128):
            full: int | bytes = b"\xff" * size if text else (1 << 8 * size) - 1
            try:
                octets = pack(kind, **{name: full})[HEADER.size :]
            except Exception:  # noqa: BLE001 (struct.error: the field is smaller)
                break
            marked = [at for at, octet in enumerate(octets, HEADER.size) if octet]
        found.append((marked[0], len(marked)))
    return found


@pytest.mark.parametrize("kind", MessageType)
def test_scapy_places_every_field_where_we_do(kind: MessageType) -> None:
    """Offsets and sizes from two readings of one RFC."""
    fields = offsets_of(layer_of(kind))
    ours = our_offsets(kind)
    # scapy draws some pairs of reserved fields as one; every boundary of ours must be theirs.
    boundaries = {at for at, _, _ in fields}

    assert {at for at, _ in ours} <= boundaries
    layout = LAYOUTS[kind]
    for name, at in {
        "call_id": layout.call_id, "peer_call_id": layout.peer_call_id,
        "error_code": layout.error, "cause_code": layout.cause,
    }.items():  # fmt: skip
        assert at == next((offset for offset, _, theirs in fields if theirs == name), None), name
    results = {offset for offset, _, theirs in fields if theirs in ("result_code", "reason")}
    assert {LAYOUTS[kind].result} - {None} == results


@pytest.mark.parametrize("kind", MessageType)
def test_scapy_gives_every_message_our_length(kind: MessageType) -> None:
    """Length decides where the next message begins."""
    octets = bytes(layer_of(kind)())

    assert LAYOUTS[kind].length == len(octets)
    written = int.from_bytes(octets[:2], "big")
    assert WRONG_LENGTH.get(kind, LAYOUTS[kind].length) == written


@given(st.sampled_from(M), st.data())
@effort(150)
def test_scapy_and_we_read_each_others_messages(kind: MessageType, data: st.DataObject) -> None:
    """Any octets behind the header: the same values, and the same octets again."""
    size = LAYOUTS[kind].length
    body = data.draw(st.binary(min_size=size - HEADER.size, max_size=size - HEADER.size))
    octets = pack(kind)[: HEADER.size] + body

    _, fields = unpack(octets)
    theirs = layer_of(kind)(octets)

    assert octets == pack(kind, **fields)
    values = {offset: theirs.getfieldval(name) for offset, _, name in offsets_of(layer_of(kind))}
    for (at, _), (name, value) in zip(our_offsets(kind), fields.items(), strict=True):
        if isinstance(value, int):
            assert value == int(values[at]), name
        else:  # scapy strips the NULs
            assert value.strip(b"\0") == bytes(values[at]).strip(b"\0"), name
    theirs.raw_packet_cache = None  # have it built from the fields
    assert octets == bytes(theirs)


@given(
    st.integers(0, 0xFFFF), st.binary(max_size=30),
    st.none() | st.integers(0, 0xFFFFFFFF), st.none() | st.integers(0, 0xFFFFFFFF),
)  # fmt: skip
@effort(150)
def test_scapy_and_we_read_each_others_gre(
    key: int, payload: bytes, sequence: int | None, acknowledgement: int | None
) -> None:
    """S and A in every combination."""
    from scapy.layers.l2 import GRE_PPTP
    from scapy.packet import Raw

    octets = pack_enhanced_gre(key, payload, sequence=sequence, acknowledgement=acknowledgement)
    theirs = GRE_PPTP(octets)
    assert (key, len(payload)) == (theirs.call_id, theirs.payload_len)
    assert (sequence is not None, acknowledgement is not None) == (
        bool(theirs.seqnum_present), bool(theirs.acknum_present)
    )  # fmt: skip
    assert sequence == (theirs.sequence_number if theirs.seqnum_present else None)
    assert acknowledgement == (theirs.ack_number if theirs.acknum_present else None)

    built = bytes(GRE_PPTP(
        call_id=key, seqnum_present=sequence is not None, sequence_number=sequence,
        acknum_present=acknowledgement is not None, ack_number=acknowledgement,
        payload_len=len(payload),
    ) / Raw(payload))  # fmt: skip
    assert octets == built
    view = enhanced_gre(built)
    assert view is not None
    assert (key, sequence, acknowledgement) == (view.key, view.sequence, view.acknowledgement)
