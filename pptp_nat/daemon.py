"""The daemon: where the core, the kernel's interfaces and people meet.

One thread, one loop.  A turn of it (`pptp_nat.router.turns`) serves the control queue
first, then a bounded number of GRE packets, then conntrack's events and people: so a
flood of data never starves a control message, and a reader never delays one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pptp_nat import __version__, log
from pptp_nat.config import Config
from pptp_nat.control.server import ControlServer
from pptp_nat.control.sockets import Access
from pptp_nat.core.calls import Call
from pptp_nat.core.events import Outcome
from pptp_nat.core.translator import Translator
from pptp_nat.linux.addresses import Addresses
from pptp_nat.linux.batch import ROOMS
from pptp_nat.linux.conntrack import Conntrack, turn_on_accounting
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.gre_queue import GreQueue
from pptp_nat.linux.nfqueue import Queue
from pptp_nat.router.clockwork import HasFileno
from pptp_nat.router.effects import Effects
from pptp_nat.router.firewall import rule_settings
from pptp_nat.router.footing import rule_problems
from pptp_nat.router.judge import Judge
from pptp_nat.router.kept_queues import KeptQueues
from pptp_nat.router.listening import Listening
from pptp_nat.router.moves import Moves
from pptp_nat.router.news import News
from pptp_nat.router.overflow import Overflow
from pptp_nat.router.pauses import Pauses
from pptp_nat.router.process import Process
from pptp_nat.router.programs import follow_devices, replace_programs
from pptp_nat.router.settings import draws, open_store, settings_of
from pptp_nat.router.turns import Turns
from pptp_nat.router.upkeep import Upkeep
from pptp_nat.standing import Alone
from pptp_nat.state.adoption import Adopted, Adoption
from pptp_nat.state.recorder import Recorder
from pptp_nat.state.takeover import Heritage, Request, terms_of
from pptp_nat.tables.views import headline

if TYPE_CHECKING:
    from pptp_nat.scrape.meter import Meter

_log: Final = logging.getLogger(__name__)
_CONTROL_BUDGET: Final = 64  #: packets judged before anything else is looked at


class Daemon(Process):
    """One router's PPTP helper."""

    def __init__(
        self,
        config: Config,
        path: Path | None = None,
        overrides: Mapping[str, object] | None = None,
        *,
        takes_over: bool = False,
        standing: Alone | None = None,
    ) -> None:
        super().__init__(config, path, overrides)
        self._standing = standing or Alone()
        self._takes_over = takes_over
        self._news = News(lambda _about, _make: None, lambda: False, self._handler.admits)
        self.api: ControlServer | None = None
        self._meter: Meter | None = None  #: the exporter's

    # Build and run.

    def build(self) -> None:
        """Open everything, in an order in which nothing passes untranslated.

        Raises:
            PptpNatError: the first thing that cannot be had, with what to do.
        """
        config = self.config
        turn_on_accounting()
        self.conntrack = Conntrack(config.gre.entry_mark, part=self._standing.part)
        self._closers.append(self.conntrack.close)
        self.carrier, self.queue_path, self.datapath_reason = self._standing.choose(self)
        self._closers.append(self.carrier.path.close)
        self.rule_settings = rule_settings(config, self.carrier.path.name)
        self.kept_queues = KeptQueues(
            self.service, config.control.queue, config.gre.queue if self.queue_path else None
        )
        if not self._takes_over:  # whom it takes over from was content
            self._standing.check(self)
        self.translator = Translator(
            self.conntrack.locate, draws(), settings_of(config),
            preserve=config.call_ids.allocation == "preserve",
            part=self._standing.part, elsewhere=self._standing.elsewhere(self),
        )  # fmt: skip
        self._measure()
        with contextlib.ExitStack() as stack:
            heritage, problems = None, None
            if self._takes_over:
                problems = rule_problems(config, self.rule_settings)  # there is time for it now
                asking = Request(config.api.socket, terms_of(self))
                heritage = stack.enter_context(asking).answer()
            self._bind_queues(heritage)  # before anything of another run is touched: it may run
            self._follow()
            self._take_up(heritage)
        self._listen(heritage)
        undo = self._standing.arrange(self, problems)
        if undo is not None:
            self._closers.append(undo)
        self.kept_queues.resume(self.control_queue, self.gre_queue)  # with the rules in place
        self._standing.let_go(self)
        self.store.keep_copying()
        # What is here now stays; and a full collection over the objects of 100,000
        # calls would stall every verdict for its length.
        gc.freeze()
        gc.set_threshold(20_000, 50, 1_000)
        log.event(
            _log, logging.INFO, "ready", version=__version__, datapath=self.carrier.path.name,
            reason=self.datapath_reason, ipv6="passes untouched",
        )  # fmt: skip
        self.service.ready()
        self._clockwork.append(self.service)
        # Now, since a long start is no pause.
        self.pauses = Pauses((self.control_queue, self.gre_queue), self.listening)

    def _take_up(self, heritage: Heritage | None) -> None:
        """Go on where an earlier run was, and have a later one go on where this one is."""
        now = time.monotonic()
        adoption = Adoption(self.translator, self.carrier)
        adopted = Adopted([], [])
        if heritage is None:
            self._open_store()
            live = self.conntrack.control_connections(self.config.control.ports)
            adopted = adoption.begin(self._standing.earlier(self), live, now)
        else:
            adoption.inherit(heritage.found, now)
            heritage.confirm()  # from here on there is one daemon again, and the store is free
            replace_programs(self.carrier.path)
            self._open_store()
        if heritage is not None or adopted.trusted is not None:
            self.upkeep.look_around(self.config.control.ports, now)
        self.recorder = Recorder(self.translator, self.store, self.carrier.kept)
        self.recorder.begin(now, adopted.trusted)
        self.judge.effects = effects = Effects(
            self.recorder, self.carrier, self.translator.look_at_mark, self._news.tell,
            self._on_fault,
        )  # fmt: skip
        self.control_queue.attend(effects.before, effects.after)
        self._clockwork.append(effects)
        self._standing.settled(self)
        self._closers.append(self.recorder.note_carried)
        self._clockwork.append(self.recorder)
        self.upkeep.unseen(adopted.unseen, now)
        for outcome in adopted.outcomes:
            self.carry_out(outcome, now)
        self.taken_up_seconds = time.monotonic() - now

    def _open_store(self) -> None:
        self.store = open_store(self.config)
        astray = self.config.rules.manage == "apply"
        self._closers.append(lambda: self.store.close(astray=astray))

    def _follow(self) -> None:
        self.upkeep = Upkeep(
            self.translator, self.carrier, self.conntrack, self.carry_out,
            self._handler.tell_suppressed,
        )  # fmt: skip
        path, to_ends = self.carrier.path, False
        if isinstance(path, ConntrackPath):
            path.catch_up, to_ends = self.upkeep.catch_up, True
        follow_devices(self.carrier.path, self.watch, self._clockwork)
        for ends in self.upkeep.listen(self.config.control.ports, to_ends=to_ends):
            self._closers.append(ends.close)
            self.watch(ends, self.upkeep.on_ends)
        self.watch(self.conntrack, self.upkeep.on_events)
        addresses = Addresses()
        self._closers.append(addresses.close)
        moves = Moves(self.translator, self.carry_out)
        self.watch(addresses, lambda _mask: moves.look(addresses, time.monotonic()))
        self._clockwork.append(moves)
        self.listening = Listening(self.translator, self.carrier)
        self._clockwork += [self.carrier, self.upkeep, self.listening]

    def _bind_queues(self, heritage: Heritage | None) -> None:
        control, gre = self.config.control, self.config.gre
        left = self.kept_queues.given
        self.judge = Judge(self.translator, self._meter)
        self.control_queue = Queue(
            control.queue, self.judge.judge, self._on_fault, length=control.queue_length,
            buffer=control.socket_buffer, repeat_mark=control.repeat_mark,
            inherited=left.get(control.queue) if heritage is None else heritage.control,
        )  # fmt: skip
        self._closers.append(self.control_queue.close)
        self._queues = {self.control_queue.fileno(): self._serve_control}
        self.gre_queue: Queue | None = None
        if self.queue_path is not None:
            self.gre_queue = GreQueue(
                gre.queue, self.queue_path, self._on_fault, length=gre.queue_length,
                buffer=gre.socket_buffer, repeat_mark=control.repeat_mark,
                inherited=left.get(gre.queue) if heritage is None else heritage.gre,
                ahead=lambda: self.control_queue.serve(_CONTROL_BUDGET),
            )  # fmt: skip
            self._closers.append(self.gre_queue.close)
            self._queues[self.gre_queue.fileno()] = self._serve_gre
        self.kept_queues.keep(("control", self.control_queue), ("gre", self.gre_queue))
        if self.config.rules.manage == "apply":  # without its rules a queue is for nobody
            self._closers.append(self.kept_queues.let_go)
        queues = [each for each in (self.control_queue, self.gre_queue) if each is not None]
        self._clockwork.append(Overflow(queues, self.rule_settings, strays=self.strays))

    def _listen(self, heritage: Heritage | None) -> None:
        api = self.config.api
        self.server = server = ControlServer(
            api.socket, Access(api.mode, api.owner, api.group), self._standing.answers(self),
            self.selector,
            listener=None if heritage is None else socket.socket(fileno=heritage.listener),
        )  # fmt: skip
        self._closers.append(server.close)
        self.api = server
        self._clockwork.append(server)
        server.on_subscribers = lambda: self.translator.observe(wanted=server.hears("message"))
        self._news = News(server.publish, lambda: bool(server.subscribers), self._handler.admits)
        self.judge.effects.tell = self._news.tell
        if self.exporter is not None:
            self.exporter.begin()

    def _measure(self) -> None:
        """Count what happens, if anybody may ask for it: before anything happens."""
        self.exporter = self._standing.exporter(self)
        if self.exporter is None:
            return
        self._meter = self.exporter.meter
        self._clockwork.append(self.exporter)
        self._closers.append(self.exporter.close)

    def watch(self, source: HasFileno, work: Callable[[int], None]) -> None:
        """Have the loop do *work* when *source* has something to read."""
        self.selector.register(source, selectors.EVENT_READ, work)

    def run(self) -> None:
        """Serve until `stop`."""
        turns = Turns(self._queues, self.selector, self._next_due, self._tick, self._guarded)
        self._closers.append(turns.close)
        while not self._stopping:
            began = turns.turn()
            if self._meter is not None:
                self._meter.turn_seconds.add(time.monotonic() - began)

    def _next_due(self) -> float | None:
        dues = [self.translator.next_timer(), *(each.next_timer() for each in self._clockwork)]
        return min((due for due in dues if due is not None), default=None)

    def _tick(self, planned: float) -> None:
        now = time.monotonic()
        self.pauses.look(planned, now)
        due = self.translator.next_timer()
        if due is not None and due <= now:
            self._guarded(self._translators_tick, now)
        for each in self._clockwork:
            try:  # one that fails again and again keeps none of the others from its work
                each.tick(now)
            except Exception as error:  # noqa: BLE001 - as `_guarded`, which costs a call each
                self._on_fault(error)

    def _translators_tick(self, now: float) -> None:
        self.carry_out(self.translator.tick(now), now)

    # Packets.

    def _serve_control(self, _mask: int) -> None:
        self.control_queue.serve(_CONTROL_BUDGET)

    def _serve_gre(self, _mask: int) -> None:
        assert self.gre_queue is not None
        self.gre_queue.serve(ROOMS)

    def carry_out(self, outcome: Outcome, now: float) -> None:
        """Carry out what no packet in hand has caused."""
        self.judge.carry_out(self.control_queue, outcome, now)

    # People and time.

    def clear(self, calls: list[Call]) -> None:
        """End *calls* because the operator says so."""
        now = time.monotonic()
        self.carry_out(self.translator.clear(calls, now), now)

    def strays(self) -> Mapping[str, int]:
        """Return how many GRE packets of no call came by here, by where they went."""
        if self.queue_path is None:  # what would leave is dropped by a rule, and not seen
            return {"to_inside": self.upkeep.strays}
        counts = self.queue_path.counts
        return {"to_remote": counts["stray_outbound"], "to_inside": counts["stray_inbound"]}

    @property
    def wall(self) -> float:
        """What to add to monotonic seconds to get Unix seconds."""
        return time.time() - time.monotonic()

    def _headline(self) -> str:
        return headline(self.translator.book, self.carrier.path.name)

    def _applied(self) -> None:
        self.translator.configure(
            settings_of(self.config), preserve=self.config.call_ids.allocation == "preserve"
        )


def run_daemon(
    config: Config,
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    takes_over: bool = False,
) -> int:
    """Run the daemon in the foreground until a signal; return the exit code.

    *takes_over*: the one that runs already hands over to it and ends.
    """
    daemon = Daemon(config, path, overrides, takes_over=takes_over)
    try:
        daemon.heed_signals()
        gc.disable()  # nothing of what is made now is garbage, and 100,000 calls are many
        daemon.build()
        gc.enable()
        daemon.run()
    finally:
        daemon.close()
    return 0
