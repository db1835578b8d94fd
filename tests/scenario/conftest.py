"""The ladder as a fixture; it must leave nothing behind once every time has run out."""

from collections.abc import Iterator

import pytest

from tests.core.legs import assert_empty, run_out

from .ladder import Ladder


@pytest.fixture
def nat() -> Iterator[Ladder]:
    """Give a router between the LAN and the world; look afterwards that it is empty."""
    nat = Ladder()
    yield nat
    run_out(nat.translator, nat.legs, nat.now)
    assert_empty(nat.translator, nat.legs)
