"""The storm, for a few seconds; ``make fuzz`` has it last."""

from __future__ import annotations

from .storm import storm


def test_nothing_that_is_spoiled_makes_a_reader_fail() -> None:
    assert sum(storm(10_000).values()) >= 9_900
