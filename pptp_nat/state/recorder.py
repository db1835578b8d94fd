"""What a packet has changed, on record before its verdict.

Then no crash can undo what a peer has seen: a call that a verdict lets come up
is on record, with its numbers; an octet that a verdict lets pass is behind the
position on record.  What is on record and did not happen is harmless: the
packet was not let pass, and TCP sends it again, as octets that were seen before.

A store grows with every record.  When it has grown enough it is written anew:
everything there is, a little per turn, beside the records that come meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import (
    CallChanged,
    ConnectionChanged,
    Event,
    LegDown,
    LegMarked,
    LegUp,
    Outcome,
)  # fmt: skip
from pptp_nat.core.states import CallState, ControlState
from pptp_nat.core.translator import Translator
from pptp_nat.state import records
from pptp_nat.state.contents import LegCount
from pptp_nat.state.on_record import OnRecord
from pptp_nat.state.store import Found, Store

_OF_CALLS: Final = (CallChanged, LegUp, LegDown)
_TURN: Final = 128  #: records that are written anew in one turn: less than a millisecond
_LOOK_SECONDS: Final = 30.0  #: between two looks at what was carried, at most, ...
_SOON_SECONDS: Final = 1.0  #: ... and where there is something to see at least, ...
_LOOK_SHARE: Final = 100  #: ... or so many times as long as a look takes
_PIECE: Final = 1024  #: counts of legs that are written at once
_PAUSE: Final = 0.01  #: seconds between two such turns


class Recorder:
    """Writes what *translator* does into *store*.

    Args:
        carried: what GRE has gone by that the data path's own counters do not know.
    """

    def __init__(
        self,
        translator: Translator,
        store: Store,
        carried: Callable[[], Iterable[LegCount]] = tuple,
    ) -> None:
        self._book = translator.book
        self._store = store
        self._carried = carried
        self._rest: Iterator[bytes] | None = None  # of what is written anew
        self._due: float | None = None
        self._on_record = OnRecord()
        self._parts: list[bytes] = []  # noted, and not written yet
        self._lasting = False  # whether those are worth a copy
        self._now = 0.0  # when the latest of them was noted
        self._look_at = 0.0  # when what was carried is written again
        self._look: Iterator[bytes | None] | None = None  # that is under way
        self._look_took = 0.0  # seconds of it until now
        self._book.bindings.released = []

    def begin(self, now: float, found: Found | None = None) -> None:
        """Write everything there is; what was in the store before may go.

        Args:
            now: monotonic seconds.
            found: all there is, if it is that: where the store can, it goes on with it.
        """
        if found is not None and self._store.resume(found):
            self.note_carried()
            return
        for _ in self._on_record.news(self._carried()):
            pass  # `_renew` writes them
        self._renew(now)
        self._finish()

    def note(self, outcome: Outcome, now: float) -> None:
        """Make the records of what *outcome* has changed; `write` writes them."""
        parts = self._parts
        connection, events = outcome.connection, outcome.events
        if events:
            before = len(parts)
            connection = self._note_events(events, connection, parts, now)
            if len(parts) > before:
                self._lasting = True
        if connection is not None and connection.state is not ControlState.CLOSED:
            parts.append(records.current(connection))
        released = self._book.bindings.released
        if released:
            parts += [records.kept_back(*each) for each in released]
            released.clear()
        self._now = now

    def write(self) -> None:
        """Write what was noted, that of several packets at once; before their verdicts."""
        if not self._parts:
            return
        parts, self._parts = self._parts, []
        lasting, self._lasting = self._lasting, False
        self._store.append(b"".join(parts), lasting=lasting)
        if self._rest is None and self._store.is_full:
            self._renew(self._now)

    def _note_events(
        self, events: list[Event], touched: Connection | None, parts: list[bytes], now: float
    ) -> Connection | None:
        """Add what events say; return *touched* if its position is not among it."""
        calls: dict[Call, None] = {}
        connections: dict[Connection, None] = {}
        for each in events:
            # One look at what it is: nearly every packet of a set-up has some of these.
            if isinstance(each, _OF_CALLS):
                calls[each.call] = None
            elif isinstance(each, ConnectionChanged):
                connections[each.connection] = None
            elif isinstance(each, LegMarked):
                connections[each.call.connection] = None
        for connection in connections:
            if connection.state is ControlState.CLOSED:
                parts.append(records.closed(connection.id))
            else:
                parts.append(records.connection_now(self._book, connection))
        if calls:
            gone_until = now + self._book.settings.quarantine
            parts += [records.call_now(self._book, call, gone_until) for call in calls]
        return None if touched in connections else touched

    def note_carried(self) -> None:
        """Write what has been carried that the data path's own counters do not know, at once."""
        self._look = None
        changed = filter(None, self._changes())
        while piece := b"".join(islice(changed, _PIECE)):
            self._store.append(piece, lasting=False)

    def _changes(self) -> Iterator[bytes | None]:
        """Yield the records of counts that have changed, None between two pieces of work."""
        for each in self._on_record.news(self._carried()):
            yield None if each is None else records.carried(each)

    def _look_on(self, now: float) -> None:
        """Write a piece of what `note_carried` writes; after the last one, say when the next is.

        What comes first is as old as the look is long, when it ends: no older than after a
        look that is due later.
        """
        began = time.thread_time()
        if self._look is None:
            self._look, self._look_took = self._changes(), 0.0
        piece, is_over = [], True
        for each in self._look:
            if each is None:
                is_over = False
                break
            piece.append(each)
        if piece:
            self._store.append(b"".join(piece), lasting=False)
        self._look_took += time.thread_time() - began
        if is_over:
            self._look = None
            rest = max(_SOON_SECONDS, _LOOK_SHARE * self._look_took)
            some = self._on_record or self._book.calls
            self._look_at = now + (min(rest, _LOOK_SECONDS) if some else _LOOK_SECONDS)

    # Writing anew.

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._look_at if self._due is None else min(self._look_at, self._due)

    def tick(self, now: float) -> None:
        """Write a little of what was carried, and a little more of what is written anew."""
        if now >= self._look_at:  # as it is until a look is over
            self._look_on(now)
        if self._due is None or self._due > now:
            return
        assert self._rest is not None
        parts = [part for _, part in zip(range(_TURN), self._rest, strict=False)]
        if parts and not self._store.is_full:
            self._store.append(b"".join(parts))
            self._due = now + _PAUSE
        else:  # it is complete, or it grows faster than it is written anew
            self._store.append(b"".join(parts))
            self._finish()

    def _renew(self, now: float) -> None:
        self._store.renew()
        self._rest = self._everything()
        self._due = now

    def _finish(self) -> None:
        if self._rest is not None:
            self._store.append(b"".join(self._rest))
        self._rest = self._due = None
        self._store.renewed()

    def _everything(self) -> Iterator[bytes]:
        """Yield the records of all there is, each as it is when it is asked for."""
        book = self._book
        yield records.last_id(book.last_id)
        for connection in list(book.connections.values()):
            if connection.state is not ControlState.CLOSED:
                yield records.connection_now(book, connection)
        for call in list(book.calls.values()):
            if call.state is not CallState.GONE:
                yield records.call_now(book, call, 0.0)
        for until, call in list(book.retired):
            yield records.call_now(book, call, until)
        for each in book.bindings.quarantined():
            yield records.kept_back(*each)
        yield from map(records.carried, self._carried())
