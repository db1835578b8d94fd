"""The Internet checksum (RFC 1071) and its patch (RFC 1624)."""

from __future__ import annotations


def patch(checksum: int, old: bytes, new: bytes, *, at: int) -> int:
    """Return *checksum* after *old* became *new* in the data that it covers.

    RFC 1624 section 3, equation 3: ``HC' = ~(~HC + ~m + m')``.  The ``HC - m +
    m'`` of RFC 1141 can land on the wrong zero.  A patch, not a recomputation:
    that would hide what went wrong upstream.

    Args:
        checksum: 16 bits, host order, as read from the header.
        old: the octets before.
        new: the octets after, as many.
        at: where they start, in octets from the start of the covered data.  May
            be odd: a call ID sits wherever TCP happened to cut the stream.
    """
    assert len(old) == len(new), "NAT never changes a length"
    total = ~checksum & 0xFFFF
    if len(old) == 2:  # a whole call ID, nearly always; swapped at an odd place
        was, now = old[at & 1] << 8 | old[~at & 1], new[at & 1] << 8 | new[~at & 1]
        total += 0xFFFF - was + now
        total = (total & 0xFFFF) + (total >> 16)
        return 0xFFFF - (total & 0xFFFF) - (total >> 16)
    for place, (was, now) in enumerate(zip(old, new, strict=True), start=at):
        shift = 0 if place & 1 else 8
        total += (~(was << shift) & 0xFFFF) + (now << shift)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def checksum(octets: bytes) -> int:
    """Return the checksum of *octets* (RFC 1071), 16 bits in host order."""
    if len(octets) & 1:
        octets += b"\0"
    # The octets as one big number modulo 0xFFFF are their end-around-carry sum,
    # but for the two zeros: a sum that is not all zero octets folds to 0xFFFF.
    number = int.from_bytes(octets, "big")
    total = number % 0xFFFF or (0xFFFF if number else 0)
    return ~total & 0xFFFF
