"""What a scrape shows of the state on record, and of the limits that are set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pptp_nat.scrape.metrics import Sample
from pptp_nat.state.store import Journal

if TYPE_CHECKING:
    from pptp_nat.core.book import Settings
    from pptp_nat.daemon import Daemon

#: Keys of [limits], which are fields of `Settings` too.
LIMITS: Final = (
    "connections", "calls", "calls_per_connection", "calls_per_client", "setups_per_client",
    "buffered", "history", "half_open",
)  # fmt: skip


def kept(daemon: Daemon) -> Iterator[tuple[str, Sample]]:
    """Yield families and samples about the journal and its copies."""
    yield "state_taken_up_seconds", Sample((), daemon.taken_up_seconds)
    store = daemon.store
    if not isinstance(store, Journal):
        return
    yield "state_journal_bytes", Sample((), store.size)
    yield "state_journal_writes_total", Sample((), store.writes)
    yield "state_journal_written_bytes_total", Sample((), store.written)
    yield "state_failures_total", Sample((), store.failures)
    if store.copied_at is not None:
        yield "state_copy_timestamp_seconds", Sample((), store.copied_at)
        yield "state_copy_bytes", Sample((), store.copy_size)


def limits(settings: Settings) -> Iterator[tuple[str, Sample]]:
    """Yield what is allowed at most, 0 for no limit."""
    for name in LIMITS:
        yield "limit", Sample((name,), getattr(settings, name))
