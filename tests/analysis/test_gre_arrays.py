"""Measured by the column or packet by packet: the figures are the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.analysis import gre_arrays
from pptp_nat.analysis.arrays import packed, unpacked
from pptp_nat.analysis.gre_arrays import ArrayQuality
from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.packets import ABSENT, NO_COLUMNS, Columns, Row, columns_of

FLOW = b"", bytes(8), 7


@pytest.fixture(autouse=True)
def _arrays_are_always_worth_it() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gre_arrays, "_FEWEST", 1)
        yield


def arrays_of(columns: Columns, base: int = 0) -> Columns:
    """Return the same columns, as they come from another process."""
    return unpacked(packed({FLOW: columns}), base)[FLOW] if len(columns) else NO_COLUMNS


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[bool, Row]]:
    """Both directions of a call in the order of their packets; who is measured is True.

    Times do not go back, numbers rise mostly, with gaps, and what is acknowledged rises, too.
    """
    first = draw(st.sampled_from([0, 1, 17, 2**31 - 6, 2**32 - 20]))
    sent, acked, time, rows = first - 1, first - 1, 1000.0, []
    steps = draw(st.lists(st.tuples(
        st.booleans(), st.sampled_from([0.0, 0.001, 0.02, 0.4, 3.0]), st.integers(-1, 12),
        st.integers(0, 19),
    ), max_size=60))  # fmt: skip
    for number, (mine, step, much, kind) in enumerate(steps, 1):
        time += step
        if mine and kind:
            sent += 1 if much < 9 else much - 7
            if kind == 1 and much == 0:
                sent -= 3  # late, or once more
            rows.append((True, (time, number, 40 + much, sent & 0xFFFFFFFF, ABSENT, 0)))
        elif mine:
            rows.append((True, (time, number, 0, ABSENT, 5, 0)))
        elif kind:
            acked = max(acked, sent - much) if kind > 2 else sent + much
            rows.append((False, (time, number, 0, ABSENT, acked & 0xFFFFFFFF, 0)))
        else:
            rows.append((False, (time, number, 9, 4, ABSENT, 0)))
    return rows


def figures(quality: GreQuality) -> dict[str, Any]:
    """Return all that a measure has to tell."""
    told = {
        name: value for name, value in vars(quality).items()
        if name not in {"delays", "timeline", "_pauses", "_sent", "largest_at"}
    }  # fmt: skip
    told["delays"] = [quality.delays.percentile(share) for share in (0.5, 0.95, 0.99, 1.0)]
    told["bins"] = [
        (time, each.packets, each.octets, each.outstanding, pytest.approx(each.delay),
         each.delayed, each.longest)
        for time, each in quality.timeline.items()
    ]  # fmt: skip
    told["largest_at"] = [tuple(each) for each in quality.largest_at]
    told["silence"] = quality.silence
    told["unanswered"] = quality.unanswered
    return told


@given(conversations(), st.integers(1, 70))
def test_arrays_tell_what_a_walk_from_packet_to_packet_tells(
    rows: list[tuple[bool, Row]], batch: int
) -> None:
    by_column, one_by_one = ArrayQuality(), GreQuality()
    for at in range(0, len(rows), batch):
        part = rows[at : at + batch]
        sent, heard = (columns_of([row for mine, row in part if mine is which])
                       for which in (True, False))  # fmt: skip
        one_by_one.feed_many(sent, heard)
        by_column.feed_many(arrays_of(sent), arrays_of(heard))

    assert figures(by_column) == figures(one_by_one)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_what_is_told_of_many_flows_at_once_is_so(kinds: list[tuple[int, bool]]) -> None:
    """Octets, first and last packet, repeats: known ahead, or counted when asked for."""
    flows: dict[Any, Columns] = {}
    for number, (which, sequenced) in enumerate(kinds, 1):
        row = (float(number), number, which, which, 3 if number % 2 else ABSENT, 0)
        row = row if sequenced else (*row[:2], 0, ABSENT, 3, 0)
        before = list(flows[which].rows()) if which in flows else []
        flows[which] = columns_of([*before, row])
    found = unpacked(packed(flows), 100)

    assert list(found) == list(flows)
    for key, columns in flows.items():
        columns.shift(100)
        arrays = found[key]
        bare = arrays.part(0, len(arrays))
        for each in (arrays, bare):
            assert list(each.rows()) == list(columns.rows())
            assert each.octets == columns.octets
            assert (each.first, each.last) == (columns.first, columns.last)
            assert each.repeats == columns.repeats


