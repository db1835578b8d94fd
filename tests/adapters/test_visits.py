"""When the next scrape comes: learned from those that came, and not made up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pptp_nat.scrape.visits import MOST_SCRAPERS, SHORTEST, Visits


def told(moments):
    """Return what is foretold after each of *moments*."""
    visits = Visits()
    return [visits.next_after(moment) for moment in moments]


@settings(deadline=None, max_examples=50)
@given(
    interval=st.floats(10.0, 900.0),
    places=st.lists(st.integers(0, 9), min_size=1, max_size=MOST_SCRAPERS, unique=True),
    trembling=st.lists(st.floats(-0.01, 0.01), min_size=30, max_size=30),
)
def test_scrapers_that_keep_their_interval_are_expected(interval, places, trembling) -> None:
    """One, or several of a kind that come at different moments of it."""
    moments = [
        100.0 + turn * interval + place * interval / 10
        for turn in range(10) for place in sorted(places)
    ]  # fmt: skip
    seen = [moment + off for moment, off in zip(moments, trembling, strict=False)]
    foretold = told(seen)
    for found, came in zip(foretold[2 * MOST_SCRAPERS : -1], seen[2 * MOST_SCRAPERS + 1 :],
                           strict=True):  # fmt: skip
        assert came == pytest.approx(found, abs=0.1)


def test_the_second_visit_foretells_the_third() -> None:
    assert [None, 130.0, 145.0] == told([100.0, 115.0, 130.0])


def test_visits_without_a_pattern_foretell_nothing() -> None:
    """People with curl, and a scraper that was down."""
    assert told([100.0, 101.0, 140.0, 200.0, 207.0])[2:] == [None, None, None]


def test_a_new_interval_is_learned() -> None:
    """The configuration of Prometheus was changed."""
    moments = [100.0, 115.0, 130.0, 190.0, 250.0, 310.0]
    assert told(moments)[-1] == 370.0


def test_visits_at_one_moment_are_one() -> None:
    """Two scrapers of the same phase, or text and file."""
    moments = [100.0, 100.1, 115.0, 115.0, 115.0 + SHORTEST / 2, 130.0]
    assert told(moments)[-1] == 145.0
