"""Whether anything is measured: only where somebody may ask for it, and can be answered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pptp_nat import log

if TYPE_CHECKING:
    from pptp_nat.daemon import Daemon
    from pptp_nat.scrape.exporter import Exporter

_log: Final = logging.getLogger(__name__)


def exporter_for(daemon: Daemon) -> Exporter | None:
    """Return what serves the metrics of *daemon*; None where nobody wants them.

    Raises:
        ConfigError: a certificate, key or token cannot be used.
    """
    config = daemon.config.metrics
    if config.listen is None and config.textfile is None:
        return None
    try:
        # Who wants no metrics need not have the memory for them, nor the package.
        from pptp_nat.scrape.exporter import Exporter  # noqa: PLC0415  see above
    except ModuleNotFoundError as error:
        log.event(
            _log, logging.ERROR, "metrics-trouble",
            problem=f"metrics: {error}; calls are carried all the same; install "
            'prometheus-client, or write metrics.listen = "off" and no metrics.textfile',
        )  # fmt: skip
        return None
    return Exporter(daemon, config)
