"""How all tests are run: no timing decides one, since machines are shared; Ctrl-C is heard."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("patient")

# A shell's background job ignores SIGINT, and so would all that is started here and interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
