"""What the configuration means to others: limits and times, a source of numbers, a store."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterator

from pptp_nat.config import Config
from pptp_nat.core.book import Settings
from pptp_nat.state.store import Journal, Store


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


def open_store(config: Config) -> Store:
    """Return where state is kept.

    Raises:
        UsageError: another daemon keeps its state there.
    """
    state = config.state
    journal = state.journal or config.api.socket.with_suffix(".journal")
    return Journal(journal, state.directory if state.sync else None, sync=state.sync)


def settings_of(config: Config) -> Settings:
    """Return the core's limits and times."""
    limits, timers = config.limits, config.timers
    return Settings(
        connections=limits.connections,
        calls=limits.calls,
        calls_per_connection=limits.calls_per_connection,
        calls_per_client=limits.calls_per_client,
        setups_per_client=limits.setups_per_client,
        half_open=limits.half_open,
        buffered=limits.buffered,
        history=limits.history,
        request=timers.request,
        clearing=timers.clearing,
        closing_grace=timers.closing_grace,
        gre_idle=timers.gre_idle,
        connection_idle=timers.connection_idle,
        quarantine=config.call_ids.quarantine,
    )
