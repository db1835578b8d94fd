"""What the core is given: limits and times of the configuration, and a source of numbers."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterator

from pptp_nat.config import Config
from pptp_nat.core.book import Settings


def draws() -> Callable[[], int]:
    """Return a source of random ints below 65,536 that asks the kernel for many at a time."""
    source: Iterator[int] = iter(())

    def draw() -> int:
        nonlocal source
        for number in source:
            return number
        source = iter(struct.unpack("=512H", secrets.token_bytes(1024)))
        return next(source)

    return draw


def settings_of(config: Config) -> Settings:
    """Return the core's limits and times."""
    limits, timers = config.limits, config.timers
    return Settings(
        connections=limits.connections,
        calls=limits.calls,
        calls_per_connection=limits.calls_per_connection,
        history=limits.history,
        request=timers.request,
        clearing=timers.clearing,
        closing_grace=timers.closing_grace,
        gre_idle=timers.gre_idle,
        connection_idle=timers.connection_idle,
        quarantine=config.call_ids.quarantine,
    )
