"""One worker: a daemon for its part of the control connections, and who asks it is the supervisor.

It has a queue, records and a book of its own, and nothing to do with the firewall,
the service manager or people.
"""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat import config as configuration
from pptp_nat import log
from pptp_nat.config import Api, Config, Metrics
from pptp_nat.control.answers import Answers
from pptp_nat.core.parts import Elsewhere, Part
from pptp_nat.daemon import Daemon
from pptp_nat.errors import AdapterError, UsageError
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.datapath import Match
from pptp_nat.linux.ruleset_settings import UNPACED
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.footing import Chosen, let_go_of_privileges
from pptp_nat.router.signals import Signals
from pptp_nat.scrape.measuring import exporter_for
from pptp_nat.standing import Alone, daemon_source
from pptp_nat.workers import estate
from pptp_nat.workers.board import Board, Seat

if TYPE_CHECKING:
    from pptp_nat.api import Request
    from pptp_nat.control.answers import Answer
    from pptp_nat.scrape.exporter import Exporter
    from pptp_nat.state.store import Found

READY: Final = b"r"
GO: Final = b"g"
QUESTION: Final = b"?"  #: are you there
ANSWER: Final = b"!"


def config_of(config: Config, part: Part) -> Config:
    """Return what worker *part* is told: its queue, its places, its share of what is limited.

    A limit of one client or one control connection is not divided: a client's
    connections to one server are all at one worker.
    """
    limits, place = config.limits, estate.place_of(config, part.index)
    shares = {
        name: -(-getattr(limits, name) // part.count)
        for name in ("connections", "calls", "half_open", "buffered")
    }
    return dataclasses.replace(
        config,
        control=dataclasses.replace(config.control, queue=config.control.queue + part.index),
        limits=dataclasses.replace(limits, **shares),
        api=Api(socket=socket_of(config, part.index), mode=0o600),
        metrics=Metrics(listen=None, top_clients=config.metrics.top_clients),
        state=dataclasses.replace(
            config.state, directory=place.copies, journal=place.journal
        ),
    )  # fmt: skip


def socket_of(config: Config, index: int) -> Path:
    """Return where worker *index* listens to its supervisor."""
    return config.api.socket.with_suffix(f".worker-{index}")


class Post(NamedTuple):
    """What a worker is given."""

    part: Part
    config: Config  #: of the whole router
    board: Board
    reason: str  #: why the data path is what it is
    lifeline: socket.socket  #: to the supervisor; its end is ours
    inheritance: Found | None
    is_first: bool  #: since the supervisor started; a later one has its own records
    measures: bool


class Working(Alone):
    """A daemon that is one of several; see `Alone` for what the methods do."""

    def __init__(self, post: Post) -> None:
        super().__init__()
        self.part = post.part
        self._post = post
        self._seat: Seat | None = None

    def choose(self, daemon: Daemon) -> Chosen:
        """Return the path that the supervisor has probed."""
        return Chosen(Carrier(ConntrackPath(daemon.conntrack)), None, self._post.reason)

    def check(self, daemon: Daemon) -> None:
        """Trust the supervisor, who has looked; what the pace drops is told by one of us."""
        if self.part.index:
            daemon.rule_settings = dataclasses.replace(daemon.rule_settings, pace=UNPACED)

    def elsewhere(self, daemon: Daemon) -> Elsewhere | None:
        """Return this worker's seat at the board."""

        def carries(external: bytes, remote: bytes, number: int) -> bool:
            try:
                entry = daemon.conntrack.entry(Match(remote, external, number))
            except AdapterError:
                return False  # then both may have it; this router's client dials again
            return entry is not None and bool(entry.mark & daemon.conntrack.entry_mark)

        self._seat = Seat(self._post.board, self.part, carries)
        return self._seat

    def exporter(self, daemon: Daemon) -> Exporter | None:
        """Return what measures, if the supervisor may be asked for it."""
        return exporter_for(daemon, daemon_source, always=True) if self._post.measures else None

    def earlier(self, daemon: Daemon) -> Found | None:
        """Return what the supervisor has found for this worker; a restarted one has its own."""
        own = daemon.store.read()
        return self._post.inheritance if self._post.is_first else own

    def settled(self, daemon: Daemon) -> None:
        """Show the others which of their numbers are held here."""
        del daemon
        assert self._seat is not None
        self._seat.show()

    def answers(self, daemon: Daemon) -> Answers:
        """Return what answers the supervisor."""
        return _Answers(daemon, self._post)

    def arrange(self, daemon: Daemon, problems: list[str] | None) -> Callable[[], None] | None:
        """Leave the rules to the supervisor."""
        del daemon, problems
        return None

    def let_go(self, daemon: Daemon) -> None:
        """Let go of all privileges but CAP_NET_ADMIN."""
        rules = dataclasses.replace(daemon.config.rules, manage="keep")
        let_go_of_privileges(
            dataclasses.replace(daemon.config, rules=rules), daemon.carrier.path.name
        )


class _Answers(Answers):
    """Answers the supervisor, who asks for more than people do."""

    def __init__(self, daemon: Daemon, post: Post) -> None:
        super().__init__(daemon)
        self._post = post

    def __call__(self, request: Request) -> Answer:
        """Answer *request*; see `Answers`."""
        if request.do == "figures":
            return self._figures()
        if request.do == "configure":
            return self._configure(request.arguments)
        if request.do == "takeover":
            raise UsageError("takeover: a worker hands nothing over")
        return super().__call__(request)

    def _figures(self) -> Iterator[Mapping[str, object] | None]:
        """Yield the families of a scrape, None between two pieces of work."""
        exporter = self._daemon.exporter
        assert exporter is not None, "the supervisor asks only if it measures"
        # With metrics off their package need not be there.
        from pptp_nat.scrape.metrics import Sample  # noqa: PLC0415

        reading, longest = exporter.readings.take(), 0.0
        while True:
            began = time.thread_time()
            try:
                next(reading)
            except StopIteration as ended:
                found = ended.value
                break
            longest = max(longest, time.thread_time() - began)
            yield None
        found["scrape_longest_step_seconds"] = [Sample((), exporter.readings.longest(longest))]
        for family, samples in found.items():
            values = [
                [labels, value if isinstance(value, (int, float)) else value._asdict()]
                for labels, value in samples
            ]
            yield {"family": family, "samples": values}

    def _configure(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Take over what a reload changes, which the supervisor has checked."""
        fresh = configuration.load(None, arguments)
        self._daemon.apply(
            config_of(configuration.with_live(self._post.config, fresh), self._post.part)
        )
        return {}


def work(post: Post) -> int:
    """Be the worker of *post* until the supervisor lets go of the lifeline.

    Raises:
        PptpNatError: it cannot begin.
    """
    log.ALWAYS["worker"] = post.part.index
    daemon = Daemon(config_of(post.config, post.part), standing=Working(post))
    try:
        # All processes of a service get its signals; who heeds them is the supervisor.
        deaf = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), _nothing)
        Signals(daemon.selector, deaf)
        daemon.build()
        post.lifeline.sendall(READY)
        # No number is given before all have shown what they hold.
        if post.lifeline.recv(1) == GO:
            daemon.watch(post.lifeline, lambda _mask: _heed(post.lifeline, daemon.stop))
            daemon.run()
    finally:
        daemon.close()
    return 0


def _heed(lifeline: socket.socket, stop: Callable[[], None]) -> None:
    """Tell the supervisor that this worker's loop turns, or stop where he has let go."""
    try:
        if not lifeline.recv(64):
            stop()
        else:
            lifeline.send(ANSWER, socket.MSG_DONTWAIT)
    except OSError:  # he is gone
        stop()


def _nothing() -> None:
    """Do nothing."""
