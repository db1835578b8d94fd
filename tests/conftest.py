"""How all tests are run: no timing decides one, since machines are shared; Ctrl-C is heard."""

import logging
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from pptp_nat import log
from tests.turns import turn

settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("patient")

# A shell's background job ignores SIGINT, and so would all that is started here and interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _the_log_is_the_next_test_s_again() -> Generator[None, None, None]:
    """Undo `log.configure`: who comes next would see no record, or none below a level."""
    package = logging.getLogger(log.ROOT)
    before = package.handlers[:], package.level, package.propagate
    yield
    package.handlers[:], package.propagate = before[0], before[2]
    package.setLevel(before[1])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let each test have its turn, if there are others beside us (pytest-xdist's workers)."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)
