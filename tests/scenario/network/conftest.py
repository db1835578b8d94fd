"""Ladders for scenarios; each must leave nothing behind once every time has run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pptp_nat.core.book import Settings
from tests.core.legs import assert_empty, run_out

from .ladder import Ladder


@pytest.fixture
def ladder() -> Iterator[Callable[..., Ladder]]:
    """Make ladders with settings of one's own; look afterwards that they are empty."""
    made: list[Ladder] = []

    def make(
        settings: Settings | None = None, draw: Callable[[], int] | None = None, *,
        preserve: bool = False,
    ) -> Ladder:  # fmt: skip
        made.append(Ladder(settings, draw, preserve=preserve))
        return made[-1]

    yield make
    for nat in made:
        run_out(nat.translator, nat.legs, nat.now)
        assert_empty(nat.translator, nat.legs)


@pytest.fixture
def nat(ladder: Callable[..., Ladder]) -> Ladder:
    """Give the usual ladder."""
    return ladder()
