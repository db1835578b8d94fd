"""Whether anything is measured: only where somebody may ask for it, and can be answered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar

from pptp_nat import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from pptp_nat.daemon import Daemon
    from pptp_nat.scrape.exporter import Exporter, Source
    from pptp_nat.scrape.meter import Meter
    from pptp_nat.workers.supervisor import Supervisor

_Host = TypeVar("_Host", "Daemon", "Supervisor")
_log: Final = logging.getLogger(__name__)


def exporter_for(
    daemon: _Host, source: Callable[[_Host, Meter], Source], *, always: bool = False
) -> Exporter | None:
    """Return what serves the metrics of *daemon*; None where nobody wants them.

    *source* makes what scrapes show of it.
    *always*: somebody does, although there is nothing to serve them at.

    Raises:
        ConfigError: a certificate, key or token cannot be used.
    """
    config = daemon.config.metrics
    if config.listen is None and config.textfile is None and not always:
        return None
    try:
        # Who wants no metrics need not have the memory for them, nor the package.
        from pptp_nat.scrape.exporter import Exporter  # noqa: PLC0415  see above
        from pptp_nat.scrape.meter import Meter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        log.event(
            _log, logging.ERROR, "metrics-trouble",
            problem=f"metrics: {error}; calls are carried all the same; install "
            'prometheus-client, or write metrics.listen = "off" and no metrics.textfile',
        )  # fmt: skip
        return None
    meter = Meter()
    return Exporter(daemon, config, source(daemon, meter), meter)
