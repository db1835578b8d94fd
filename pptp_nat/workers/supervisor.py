"""Several workers as one daemon: who starts and watches them, and speaks for them.

The supervisor has no queue.  It checks the router, divides what an earlier run has
left, starts the workers, puts the rules in place, and from then on answers people,
Prometheus and the service manager.  Control messages never pass through it: when it
is busy, calls come up all the same.

A worker that dies is started again and goes on where its records end; meanwhile its
calls go on in the kernel, and its control messages wait for TCP to send them again.
When the supervisor dies the workers end too, as they do at its clean stop.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pptp_nat import __version__, log
from pptp_nat import config as configuration
from pptp_nat.config import Config
from pptp_nat.control.server import ControlServer
from pptp_nat.control.sockets import Access
from pptp_nat.core.parts import Part
from pptp_nat.errors import PptpNatError, UsageError
from pptp_nat.router.firewall import rule_settings
from pptp_nat.router.footing import (
    arrange_rules,
    check_router,
    let_go_of_privileges,
    let_go_of_programs,
    rule_problems,
    working_path,
)  # fmt: skip
from pptp_nat.router.kept_queues import let_go_of_all
from pptp_nat.router.process import Process
from pptp_nat.scrape.measuring import exporter_for
from pptp_nat.tables.table import ApiRow
from pptp_nat.workers import estate
from pptp_nat.workers.asking import PATIENCE, Round
from pptp_nat.workers.board import Board
from pptp_nat.workers.crew import Crew, Member
from pptp_nat.workers.merged import Ears, Merged, wanted_types
from pptp_nat.workers.worker import Post, socket_of

if TYPE_CHECKING:
    import socket

    from pptp_nat.scrape.exporter import Source
    from pptp_nat.scrape.meter import Meter
    from pptp_nat.state.store import Found

_log: Final = logging.getLogger(__name__)


class Supervisor(Process):
    """All of one router's workers."""

    def __init__(
        self, config: Config, path: Path | None, overrides: Mapping[str, object] | None
    ) -> None:
        super().__init__(config, path, overrides)
        self.server: ControlServer | None = None
        self._inheritance: Found | None = None
        self.datapath = self.datapath_reason = ""

    def build(self) -> None:
        """Start everything.

        Raises:
            PptpNatError: the first thing that cannot be had, with what to do.
        """
        config, count = self.config, self.config.control.workers
        self.datapath, self.datapath_reason = working_path(config.gre.datapath)
        if self.datapath != "conntrack":
            raise PptpNatError(
                f"control.workers: {count} cannot share the data path {self.datapath} "
                f"({self.datapath_reason}); write control.workers = 1"
            )
        let_go_of_programs()
        settings = rule_settings(config, self.datapath)
        let_go_of_all(self.service)  # a worker's queue is bound by itself
        check_router(config, settings)
        self.exporter = exporter_for(self, _source)
        places = [*estate.workers_places(config), estate.base(config)]
        self._inheritance = estate.read(config, places)
        self._board = Board(count, config.limits.calls // count)
        self.crew = Crew(count, self.selector, self._post, self._back)
        self._closers.append(self.crew.close)
        self.crew.begin()
        self._inheritance = None
        estate.clear(config, estate.leftovers(config, count))
        self._clockwork.append(self.crew)
        self._listen()
        undo = arrange_rules(config, settings, rule_problems(config, settings))
        if undo is not None:
            self._closers.append(undo)
        let_go_of_privileges(config, self.datapath)
        gc.collect()
        log.event(
            _log, logging.INFO, "ready", version=__version__, datapath=self.datapath,
            reason=self.datapath_reason, workers=count, ipv6="passes untouched",
        )  # fmt: skip
        self.service.ready()
        self._clockwork.append(self.service)

    def _post(self, index: int, lifeline: socket.socket, is_first: bool) -> Post:  # noqa: FBT001
        part = Part(index, self.config.control.workers)
        return Post(
            part, self.config, self._board, self.datapath_reason, lifeline,
            estate.divided(self._inheritance, part), is_first, self.exporter is not None,
        )  # fmt: skip

    def _listen(self) -> None:
        place = self.config.api
        server = self.server = ControlServer(
            place.socket, Access(place.mode, place.owner, place.group), Merged(self), self.selector
        )
        self._closers.append(server.close)
        self._clockwork.append(server)
        self._ears = Ears(self.selector, server.publish, self._hear)
        self._closers.append(self._ears.close)
        self._clockwork.append(self._ears)
        server.on_subscribers = self._hear
        if self.exporter is not None:
            self._clockwork.append(self.exporter)
            self._closers.append(self.exporter.close)
            self.exporter.begin()

    def _hear(self) -> None:
        """Hear of the workers what our subscribers want to hear of us."""
        assert self.server is not None
        missing = self.missing()
        paths = [path for index, path in enumerate(self.sockets()) if index not in missing]
        try:
            self._ears.want(wanted_types(self.server.hears), paths)
        except UsageError as error:  # it has died this moment; it is heard when it is back
            log.event(_log, logging.WARNING, "refused", reason=str(error))

    def _back(self, member: Member) -> None:
        """Hear again of a worker that was started again."""
        del member
        self._hear()

    # What there is.

    def sockets(self) -> list[Path]:
        """Return where the workers listen."""
        return [socket_of(self.config, member.index) for member in self.crew.members]

    def missing(self) -> list[int]:
        """Return the workers that do not serve now."""
        return [member.index for member in self.crew.members if not member.is_ready]

    def places(self) -> dict[int, Path]:
        """Return where those workers listen that are worth asking: that serve, and do not hang."""
        now = time.monotonic()
        return {
            member.index: socket_of(self.config, member.index)
            for member in self.crew.members
            if member.is_ready and not member.owes(now, PATIENCE)
        }

    def generations(self) -> list[int]:
        """Return of each place how many of its workers have died."""
        return [member.restarts for member in self.crew.members]

    @property
    def restarts(self) -> int:
        """How many workers were started again."""
        return sum(member.restarts for member in self.crew.members)

    def api_row(self) -> ApiRow:
        """Return how it stands with our own socket."""
        server = self.server
        assert server is not None
        return ApiRow(
            len(server.clients), len(server.subscribers), server.refused, server.dropped,
            server.garbled,
        )  # fmt: skip

    def _headline(self) -> str:
        up = len(self.crew.members) - len(self.missing())
        return f"{up} of {len(self.crew.members)} workers, data path {self.datapath}"

    # The loop.

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            dues = (each.next_timer() for each in self._clockwork)
            due = min((due for due in dues if due is not None), default=None)
            patience = None if due is None else max(0.0, due - time.monotonic())
            for key, mask in self.selector.select(patience):
                self._guarded(key.data, mask)
            for each in self._clockwork:
                self._guarded(each.tick, time.monotonic())

    def _applied(self) -> None:
        """Tell the workers; one that is started again meanwhile begins with what holds by then."""
        values = configuration.live_values(self.config)
        missing = self.missing()
        # Also who owes an answer: he reads it once he goes on.
        places = {i: path for i, path in enumerate(self.sockets()) if i not in missing}
        asking = Round(places, {"do": "configure", **values})
        asking.finish()
        for index, reason in {**asking.silent, **asking.refused}.items():
            log.event(_log, logging.ERROR, "worker-not-reloaded", worker=index, reason=reason)


def _source(supervisor: Supervisor, meter: Meter) -> Source:
    """Return what scrapes show; only where `prometheus-client` is there."""
    from pptp_nat.workers.figures import Figures  # noqa: PLC0415  see `exporter_for`

    del meter  # each worker has its own
    return Figures(supervisor, supervisor.config.metrics.top_clients)


def run_supervisor(
    config: Config, path: Path | None = None, overrides: Mapping[str, object] | None = None
) -> int:
    """Run workers and their supervisor until a signal; return the exit code."""
    supervisor = Supervisor(config, path, overrides)
    try:
        supervisor.heed_signals()
        supervisor.build()
        supervisor.run()
    finally:
        supervisor.close()
    return 0

