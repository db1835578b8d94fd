"""Counts that are kept packed are what a dictionary of tallies would hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.linux.earlier import Earlier
from pptp_nat.linux.leg_table import name_of, name_once

HOSTS = st.sampled_from([bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), bytes(4), b"\xff" * 4])
MATCHES = st.builds(Match, HOSTS, HOSTS, st.sampled_from([0, 1, 256, 65535]))
#: what 64-bit counters hold, twice over
TALLIES = st.builds(Tally, st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 64) - 1))


@given(st.lists(st.tuples(MATCHES, st.none() | TALLIES), max_size=30))
def test_whatever_is_added_and_forgotten(steps: list[tuple[Match, Tally | None]]) -> None:
    """None stands for a match that is forgotten; of one, two entries may have counted that much."""
    earlier, model = Earlier(), dict[Match, list[Tally]]()
    for match, tally in steps:
        if tally is None:
            assert (match in model) == earlier.forget(name_once(match))
            model.pop(match, None)
        elif len(model.get(match, ())) < 2:
            earlier.add(match, tally)
            model.setdefault(match, []).append(tally)
        total = [sum(column) for column in zip(*model.get(match, ()), strict=True)]
        assert (Tally(*total) if total else None) == earlier.get(match)
        assert (match in model) == (match in earlier)
    assert {match: earlier.get(match) for match in model} == dict(earlier.items())
    assert len(model) == len(earlier)
    assert set(map(name_of, model)) == set(earlier.names())
