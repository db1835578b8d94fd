"""Fixtures of the tests that look at the kernel through conntrack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pptp_nat.linux.conntrack import Conntrack

from . import conntrack_lab


@pytest.fixture(scope="module")
def conntrack_namespaces() -> Iterator[conntrack_lab.ConntrackLab]:
    """Build one inside, one router and one server per module: it takes half a second."""
    if why := conntrack_lab.missing():
        pytest.skip(why)
    built = conntrack_lab.ConntrackLab()
    try:
        yield built
    finally:
        built.close()


@pytest.fixture
def lab(conntrack_namespaces: conntrack_lab.ConntrackLab) -> conntrack_lab.ConntrackLab:
    """Empty the table and put the usual rules back."""
    conntrack_namespaces.reset()
    return conntrack_namespaces


@pytest.fixture
def conntrack(lab: conntrack_lab.ConntrackLab) -> Iterator[Conntrack]:
    """Open the router's conntrack table."""
    with lab.router.entered():
        opened = Conntrack()
    with opened:
        yield opened
