"""What the daemon does when nobody sends it a packet: conntrack's events and chores.

Entries that others delete are put back.  A control connection whose entry is
gone is given until its next echo to show that it lives; then its calls end.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

from pptp_nat import log
from pptp_nat.core.calls import Connection
from pptp_nat.core.events import Outcome
from pptp_nat.core.states import ControlState
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Party, Placement, flow_key
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_ends import Ends
from pptp_nat.linux.conntrack_events import Change
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.router import comparison
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.restoration import Restoration

_log: Final = logging.getLogger(__name__)
_RENEW_SECONDS: Final = 60.0
_SUPPRESSED_SECONDS: Final = 10.0
_RECONCILE_SECONDS: Final = 0.2  #: after the kernel did not say, or not make, what was asked
_QUIET_SECONDS: Final = 0.5  #: without an entry put back, until it is told how many were
_AGAIN_SECONDS: Final = 1.0  #: between two looks for entries that are gone
_LOOK_SECONDS: Final = 1.0  #: after a start, until what was trusted is compared
_LOOKED_AT: Final = 256  #: connections in one step
_BEHIND: Final = 256  #: entries that are to be put back, as long as which no more ends are read
_CHECKED: Final = 8  #: of those without an entry, each of which is looked up
_STEP_SECONDS: Final = 0.001  #: of one turn of the loop, so that packets wait no longer
_LOST_SECONDS: Final = 90.0  #: the entry of a live connection is back by its next echo, 60 s


class Upkeep:
    """Keeps the book and the kernel in step.

    Args:
        carry_out: does what an outcome without a packet says.
        tell_suppressed: writes how many log lines a storm has cost.
    """

    def __init__(
        self,
        translator: Translator,
        carrier: Carrier,
        conntrack: Conntrack,
        carry_out: Callable[[Outcome, float], None],
        tell_suppressed: Callable[[], None],
    ) -> None:
        self._translator = translator
        self._carrier = carrier
        self._conntrack = conntrack
        self._carry_out = carry_out
        self._tell = tell_suppressed
        self.restored = 0  #: entries that others had deleted
        self.strays = 0  #: packets to this router of GRE of no call that conntrack followed
        self._ports: Collection[int] = ()  # of control connections
        self._ends: Ends | None = None
        self._restoration = Restoration(translator.book.calls, carrier)
        self._put_back = self._put_back_before = 0  # entries, since it was told; by the last look
        self._work: deque[Iterator[None]] = deque()  # under way, one after the other
        self._lost: dict[bytes, tuple[Flow, float]] = {}  # connections without entry, until when
        self._due: dict[Callable[[float], None], float] = {
            self._renew: 0.0, self._tell_suppressed: 0.0,
        }  # fmt: skip

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return 0.0 if self._work or self._restoration else min(self._due.values(), default=None)

    def tick(self, now: float) -> None:
        """Do the chores that are due."""
        for chore in [chore for chore, due in self._due.items() if due <= now]:
            del self._due[chore]
            chore(now)
        self._proceed()

    def _proceed(self) -> None:
        """Take steps of what is under way for about a millisecond, restoring before all."""
        until = time.monotonic() + _STEP_SECONDS
        self._restore(until)
        while self._work:
            try:
                next(self._work[0])
            except StopIteration:
                self._work.popleft()
            except BaseException:
                self._work.popleft()  # else it would be tried for ever
                raise
            if time.monotonic() >= until:
                return

    def on_events(self, _mask: int) -> None:
        """Read what happened to conntrack's entries.

        Not while entries of ours are to be put back, for want of which GRE is lost: a
        connection has a minute and more, and what finds no room is told by an overrun.
        """
        if self._restoration:
            return
        now = time.monotonic()
        for event in self._conntrack.read_events():
            if event.placement is not None:
                flow = event.placement.flow
                if flow_key(flow) in self._translator.book.connections:
                    self.unseen([flow], now)
            elif event.is_stray:
                self.strays += event.tally.packets
            elif event.change is Change.OVERRUN:  # ends of connections were not told
                self._due.setdefault(self._look_for_lost, now + _RECONCILE_SECONDS)

    def listen(self, ports: Collection[int], *, to_ends: bool) -> list[Ends]:
        """Listen to control connections on *ports*, and if *to_ends* to the ends of our entries.

        Returns:
            What is to be watched, for `on_ends`, and closed in the end.
        """
        self._ports = ports
        self._conntrack.follow(ports, (Change.DESTROY,), but_ours=True)
        self._ends = self._conntrack.ends() if to_ends else None
        return [] if self._ends is None else [self._ends]

    def on_ends(self, _mask: int) -> None:
        """Read about a hundred ends of entries of ours, and have these put back.

        While as many wait to be put back, the kernel keeps the rest: it has it in less room.
        """
        if len(self._restoration) < _BEHIND:
            self.catch_up()

    def catch_up(self) -> bool:
        """Read the same, and put nothing back yet; return whether there was anything."""
        ended = [] if self._ends is None else self._ends.read()
        self._restoration.hear(ended)
        return bool(ended)

    def _restore(self, until: float) -> None:
        """Put back what is missing, until then."""
        while self._restoration:
            now = time.monotonic()
            if now >= until:
                return
            put_back = self._restoration.step(now)
            self.restored += put_back
            self._put_back += put_back
            self._due.setdefault(self._tell_put_back, now + _QUIET_SECONDS)

    def _tell_put_back(self, now: float) -> None:
        """Say how many entries were put back, once there are no more of them."""
        if self._put_back > self._put_back_before:
            self._put_back_before = self._put_back
            self._due[self._tell_put_back] = now + _QUIET_SECONDS
            return
        if self._put_back:
            log.event(_log, logging.WARNING, "entries-restored", count=self._put_back)
        self._put_back = self._put_back_before = 0

    def look_around(self, ports: Collection[int], now: float) -> None:
        """Compare all there is with the kernel, soon: until now somebody else watched it, or none.

        What an earlier run has left is no call's then, be it carried or not.
        """
        path = self._carrier.path
        if isinstance(path, ConntrackPath):
            comparison.doubt(self._translator, self._conntrack)
            self._due[self._renew] = now + _RENEW_SECONDS  # this look is one for lifetimes, too

        def look(_now: float) -> None:
            self._work.append(self._look(ports))

        self._due[look] = now + _LOOK_SECONDS

    def _look(self, ports: Collection[int]) -> Iterator[None]:
        try:
            yield from self._look_at_connections(ports)
            path = self._carrier.path
            if not isinstance(path, ConntrackPath):
                yield from self._compare()
                return
            compared = yield from comparison.Comparison(
                self._translator, self._carrier, path, self._carry_out
            ).steps()
        except AdapterError:
            self.look_around(ports, time.monotonic())
            return
        comparison.sure(self._translator)
        self.restored += compared.put_back
        log.event(_log, logging.INFO, "compared", **compared._asdict())

    def _look_for_lost(self, _now: float) -> None:
        def look() -> Iterator[None]:
            try:
                yield from self._look_at_connections(self._ports)
            except AdapterError:
                self._due.setdefault(self._look_for_lost, time.monotonic() + _AGAIN_SECONDS)

        self._work.append(look())

    def _look_at_connections(self, ports: Collection[int]) -> Iterator[None]:
        """Notice what has become of control connections while nobody listened."""
        connections = self._translator.book.connections
        absent = set(connections)
        for piece in self._conntrack.control_pieces(ports):
            moved = []
            for placement in piece:
                key = flow_key(placement.flow)
                absent.discard(key)
                connection = connections.get(key)
                if connection is not None and _has_moved(connection, placement):
                    moved.append(connection.flow)
            if moved:  # looked at once more, since what was read may be old
                now = time.monotonic()
                self.unseen(moved, now - _LOST_SECONDS)
                self._due[self._check_lost] = now
            yield
        while absent:
            some = [absent.pop() for _ in range(min(_LOOKED_AT, len(absent)))]
            known = [connections[key] for key in some if key in connections]
            self.unseen([
                each.flow for each in known if any(each.seat(party).inside for party in Party)
            ], time.monotonic())  # fmt: skip
            yield

    def unseen(self, flows: Iterable[Flow], now: float) -> None:
        """Give connections that conntrack does not know the time to show that they live."""
        for flow in flows:
            self._lost[flow_key(flow)] = flow, now + _LOST_SECONDS
            self._due.setdefault(self._check_lost, now + _LOST_SECONDS)

    def _check_lost(self, now: float) -> None:
        """Begin to end connections whose entry is gone and did not come back."""
        ripe = [key for key, (_, due) in self._lost.items() if due <= now]
        later = min((due for _, due in self._lost.values() if due > now), default=None)
        if later is not None:  # after a flush there are very many of them: not one look for each
            self._due.setdefault(self._check_lost, max(later, now + _AGAIN_SECONDS))
        if ripe:
            self._work.append(self._checking(ripe, now))

    def _checking(self, keys: Sequence[bytes], now: float) -> Iterator[None]:
        for number, key in enumerate(keys, 1):
            flow, due = self._lost.get(key, (None, now))
            if flow is not None and due <= now:
                del self._lost[key]
                self._check(key, flow, now)
            if not number % _CHECKED:
                yield

    def _check(self, key: bytes, flow: Flow, now: float) -> None:
        connection = self._translator.book.connections.get(key)
        if connection is None or connection.state is ControlState.CLOSING:
            return
        # Only a hairpin's entry must be sought in the whole table, which the kernel
        # interface does not do twice in a row: then it is asked again.
        hairpin = all(connection.seat(party).inside for party in Party)
        try:
            placement = self._conntrack.locate(flow, search=hairpin)
        except AdapterError:
            self._lost[key] = flow, now + _AGAIN_SECONDS
            self._due.setdefault(self._check_lost, now + _AGAIN_SECONDS)
            return
        if placement is None:
            self._carry_out(self._translator.connection_lost(flow, now), now)
        elif _has_moved(connection, placement):
            self._carry_out(self._translator.moved([connection], now), now)

    def _reconcile(self, now: float) -> None:
        """Begin to put back the legs of live calls that others have deleted."""
        del now
        self._work.append(self._compare())

    def _compare(self) -> Iterator[None]:
        restored = yield from self._carrier.compare(self._translator.book.calls, time.monotonic)
        if restored is None:
            self._due.setdefault(self._reconcile, time.monotonic() + _RECONCILE_SECONDS)
            return
        self.restored += restored
        if restored:
            log.event(_log, logging.WARNING, "entries-restored", count=restored)

    def _tell_suppressed(self, now: float) -> None:
        self._due[self._tell_suppressed] = now + _SUPPRESSED_SECONDS
        self._tell()

    def _renew(self, now: float) -> None:
        self._due[self._renew] = now + _RENEW_SECONDS
        self._work.append(self._renewal(now))

    def _renewal(self, now: float) -> Iterator[None]:
        if not (yield from self._carrier.renew(now)):
            self._due.setdefault(self._reconcile, time.monotonic() + _RECONCILE_SECONDS)


def _has_moved(connection: Connection, placement: Placement) -> bool:
    """Whether a party is seen as somebody else than it was."""
    return any(placement.seat(party) != connection.seat(party) for party in Party)
