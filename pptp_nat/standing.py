"""What a daemon does as the only one of its router; a worker does less (`pptp_nat.workers`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pptp_nat.control.answers import Answers
from pptp_nat.core.parts import WHOLE, Elsewhere, Part
from pptp_nat.router.footing import (
    Chosen,
    arrange_rules,
    check_router,
    choose_path,
    let_go_of_privileges,
    rule_problems,
)  # fmt: skip
from pptp_nat.scrape.measuring import exporter_for
from pptp_nat.workers import estate

if TYPE_CHECKING:
    from collections.abc import Callable

    from pptp_nat.daemon import Daemon
    from pptp_nat.scrape.exporter import Exporter, Source
    from pptp_nat.scrape.meter import Meter
    from pptp_nat.state.store import Found


def daemon_source(daemon: Daemon, meter: Meter) -> Source:
    """Return what scrapes show of *daemon*; only where `prometheus-client` is there."""
    from pptp_nat.scrape.readings import Readings  # noqa: PLC0415  see `exporter_for`

    top = daemon.config.metrics.top_clients
    daemon.carrier.totals.by_client = top > 0
    return Readings(daemon, meter, top)


class Alone:
    """A daemon that has the router for itself."""

    part: Part = WHOLE

    def __init__(self) -> None:
        self._former: list[estate.Place] = []  # of workers of an earlier run

    def choose(self, daemon: Daemon) -> Chosen:
        """Return the data path.  Raises what `choose_path` raises."""
        return choose_path(daemon.config, daemon.conntrack)

    def check(self, daemon: Daemon) -> None:
        """Look whether the router is fit.  Raises what `check_router` raises."""
        check_router(daemon.config, daemon.rule_settings, daemon.kept_queues.given)

    def elsewhere(self, daemon: Daemon) -> Elsewhere | None:
        """Return what other workers hold."""
        del daemon
        return None

    def exporter(self, daemon: Daemon) -> Exporter | None:
        """Return what measures *daemon*.  Raises what `exporter_for` raises."""
        return exporter_for(daemon, daemon_source)

    def earlier(self, daemon: Daemon) -> Found | None:
        """Return what an earlier run has left, be it one with workers.

        Raises:
            UsageError: its workers still run.
        """
        found = daemon.store.read()
        self._former = estate.workers_places(daemon.config)
        if self._former:
            others = estate.read(daemon.config, self._former)
            found = estate.together([each for each in (found, others) if each is not None])
        return found

    def settled(self, daemon: Daemon) -> None:
        """Know that what an earlier run has left is in *daemon*'s own records."""
        estate.clear(daemon.config, self._former)

    def answers(self, daemon: Daemon) -> Answers:
        """Return what answers requests."""
        return Answers(daemon)

    def arrange(self, daemon: Daemon, problems: list[str] | None) -> Callable[[], None] | None:
        """See to the firewall's rules, whose *problems* may be known; return what undoes that.

        Raises:
            AdapterError: they are ours to put in place, and the kernel refuses.
        """
        if problems is None:
            problems = rule_problems(daemon.config, daemon.rule_settings)
        return arrange_rules(daemon.config, daemon.rule_settings, problems)

    def let_go(self, daemon: Daemon) -> None:
        """Let go of privileges that are not needed any more."""
        let_go_of_privileges(daemon.config, daemon.carrier.path.name)
