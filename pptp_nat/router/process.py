"""A process with one loop: its signals, its configuration read again, its end.

The daemon is one, and so is the supervisor of several workers; what their loops turn
is their own.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pptp_nat import config as configuration
from pptp_nat import log
from pptp_nat.config import Config
from pptp_nat.errors import ConfigError, PptpNatError
from pptp_nat.router.clockwork import Clockwork
from pptp_nat.router.signals import Signals
from pptp_nat.service import Service

if TYPE_CHECKING:
    from pptp_nat.scrape.exporter import Exporter

_T = TypeVar("_T")
_log: Final = logging.getLogger(__name__)


class Process(abc.ABC):
    """What a process that serves until it is stopped begins with, and how it ends.

    Args:
        config: what holds until it is read again.
        path: of the file that it is read from; None: the usual one, if it is there.
        overrides: of the command line.
    """

    def __init__(
        self, config: Config, path: Path | None, overrides: Mapping[str, object] | None
    ) -> None:
        self.config = config
        self._config_path = path
        self._overrides = dict(overrides or {})
        self.started = time.time()  #: Unix seconds
        self.selector = selectors.DefaultSelector()
        self._stopping = False
        self._clockwork: list[Clockwork] = []
        self._closers: list[Callable[[], None]] = []
        self._handler = log.configure(config.log.level, config.log.rate)
        self.exporter: Exporter | None = None
        self.service = Service(os.environ, self._headline)
        self._closers.append(self.service.close)

    @abc.abstractmethod
    def _headline(self) -> str:
        """Return what the service manager shows of us."""

    def _guarded(self, work: Callable[[_T], None], argument: _T) -> None:
        """Do *work*; what it raises ends that work, never the process."""
        try:
            work(argument)
        except Exception as error:  # noqa: BLE001 - other calls must not notice
            self._on_fault(error)

    def _on_fault(self, error: BaseException) -> None:
        if isinstance(error, PptpNatError):
            log.event(_log, logging.WARNING, "refused", reason=str(error))
        else:
            _log.error("fault", exc_info=error)

    def heed_signals(self) -> None:
        """Stop on SIGTERM and SIGINT, reload on SIGHUP; all inside the loop."""
        effects = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        self._closers.append(Signals(self.selector, effects).close)

    def stop(self) -> None:
        """Have the loop end after this turn."""
        self._stopping = True
        self.service.stopping()

    def close(self) -> None:
        """Let go of everything, last opened first, whatever fails.  Entries in the kernel stay."""
        while self._closers:
            try:
                self._closers.pop()()
            except PptpNatError as error:
                log.event(_log, logging.ERROR, "stop", problem=str(error))
            except Exception as error:  # noqa: BLE001 - rules and records are let go of all the same
                self._on_fault(error)
        self.selector.close()

    def reload(self) -> None:
        """Read the configuration again; all of what can change is applied, or nothing."""
        self.service.reloading()
        try:
            with contextlib.suppress(ConfigError):
                self._read_again()
        finally:  # or the service manager would wait for ever
            self.service.ready()

    def _read_again(self) -> None:
        try:
            fresh = configuration.load(self._config_path, self._overrides)
            if self.exporter is not None:
                self.exporter.reload()
        except ConfigError as error:
            self._note_reload(good=False)
            log.event(_log, logging.ERROR, "reload-refused", reason=str(error))
            raise
        self.apply(fresh)

    def apply(self, fresh: Config) -> None:
        """Take over what of a *fresh* configuration can change."""
        self._note_reload(good=True)
        live, later = configuration.changes(self.config, fresh)
        self.config = configuration.with_live(self.config, fresh)
        log.set_level(self.config.log.level)
        self._handler.rate = self.config.log.rate
        self._applied()
        log.event(
            _log, logging.INFO, "reloaded", applied=",".join(live) or None,
            needs_restart=",".join(later) or None,
        )  # fmt: skip

    @abc.abstractmethod
    def _applied(self) -> None:
        """Tell the parts what holds now."""

    def _note_reload(self, *, good: bool) -> None:
        if self.exporter is not None:
            self.exporter.meter.reloading(good=good)
