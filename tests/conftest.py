"""How all tests are run: no timing decides one, since machines are shared; Ctrl-C is heard."""

import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.turns import turn

settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("patient")

# A shell's background job ignores SIGINT, and so would all that is started here and interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let each test have its turn, if there are others beside us (pytest-xdist's workers)."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)
