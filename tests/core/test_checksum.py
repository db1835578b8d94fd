"""The Internet checksum, patched or computed, against a slow and plain one."""

from hypothesis import assume, given
from hypothesis import strategies as st

from pptp_nat.core.checksum import checksum, patch

from .effort import effort
from .wire import reference_checksum


@given(st.binary(max_size=400))
@effort(200)
def test_the_checksum_is_that_of_rfc_1071(octets: bytes) -> None:
    """The modulo is quick; adding words and carries is what the RFC draws."""
    assert reference_checksum(octets) == checksum(octets)


def test_the_two_zeros_are_told_apart() -> None:
    """Nothing but zero octets sums to 0, a sum that comes out even folds to 0xFFFF."""
    assert checksum(bytes(20)) == 0xFFFF
    assert checksum(b"\xff\xff" * 3) == 0
    assert checksum(b"\x80\x00\x7f\xff") == 0


@given(st.binary(min_size=1, max_size=300), st.binary(min_size=1, max_size=5), st.data())
@effort(500)
def test_a_patch_is_a_recomputation(octets: bytes, new: bytes, data: st.DataObject) -> None:
    """At any offset, odd ones too: a call ID sits wherever TCP has cut the stream."""
    new = new[: len(octets)]
    at = data.draw(st.integers(0, len(octets) - len(new)))
    after = octets[:at] + new + octets[at + len(new) :]
    assume(any(octets) and any(after))  # no TCP segment is all zero octets

    patched = patch(reference_checksum(octets), octets[at : at + len(new)], new, at=at)

    assert reference_checksum(after) == patched


@given(st.integers(0, 0xFFFF), st.binary(min_size=2, max_size=2), st.integers(0, 9))
@effort(200)
def test_a_patch_undone_is_none(check: int, new: bytes, at: int) -> None:
    """A wrong checksum stays as wrong as it was; only 0xFFFF may come back as the other zero."""
    old = b"\x12\x34"

    there_and_back = patch(patch(check, old, new, at=at), new, old, at=at)

    assert check % 0xFFFF == there_and_back % 0xFFFF
