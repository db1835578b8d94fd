"""The ladder as a fixture."""

import pytest

from .ladder import Ladder


@pytest.fixture
def nat() -> Ladder:
    """Return a router between the LAN and the world."""
    return Ladder()
