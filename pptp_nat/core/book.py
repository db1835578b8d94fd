"""The book: every connection and call, and the one place where their states change.

`Book.move` and `Book.move_connection` are the only writers of state.  What
follows from a change - deadlines, legs, the numbers' way into quarantine -
follows here, so that it follows always.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeVar

from pptp_nat.core.bindings import Bindings
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.clients import Clients
from pptp_nat.core.events import (
    CallChanged,
    CallRefused,
    ConnectionChanged,
    Event,
    LegDown,
    LegUp,
    OddityMet,
)  # fmt: skip
from pptp_nat.core.messages import MessageType
from pptp_nat.core.parts import WHOLE, Part
from pptp_nat.core.states import (
    IMPLIES_OPEN,
    Answer,
    CallState,
    ControlState,
    End,
    TcpEnd,
    control_after,
)  # fmt: skip
from pptp_nat.core.tuples import Party

_T = TypeVar("_T", bound=Hashable)
_LN_2: Final = 0.69315
_SHARED: Final = 256  #: different values that are shared
REST: Final = 0.25  #: seconds without a word, after which a connection is put to sleep
#: Seconds between two looks at what runs out: each ends or puts to sleep what has come up in
#: them, where a look of its own for each call would cost the daemon a turn of its loop.
_ROUND: Final = 0.1
_NEVER: Final = float("-inf")
_LOOKS: Final = 256  #: connections put to sleep in one go: less than a millisecond
LIVE: Final = frozenset((CallState.REQUESTED, CallState.ANSWERED, CallState.UP))


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and times.  Times are seconds; every default is in the configuration's manual."""

    connections: int = 65_536  #: followed at once
    calls: int = 131_072  #: at once, those in quarantine not counted
    calls_per_connection: int = 0  #: 0: no limit but `calls`
    calls_per_client: int = 0  #: of whoever asks for them; 0: no limit but `calls`
    setups_per_client: float = 0.0  #: new calls per second; 0: no limit
    buffered: int = 64 << 20  #: octets of unacknowledged stream kept of all connections
    history: int = 4_096  #: octets of unacknowledged stream kept per direction
    half_open: int = 4_096  #: SYNs remembered, and flows whose first octets were in doubt
    request: float = 180.0  #: until a request without a reply is forgotten
    clearing: float = 30.0  #: until a Call-Clear-Request without a notification is believed
    closing_grace: float = 5.0  #: for late messages and GRE after FIN, RST or worse
    gre_idle: float = 21_600.0  #: until a call without GRE ends; 0: never
    connection_idle: float = 7_200.0  #: until a silent connection without calls is forgotten
    hold: float = 0.04  #: for a call-ID field cut in two that cannot be decided by one octet
    quarantine: float = 60.0  #: for released call IDs


def shared_out(settings: Settings) -> int:
    """Return the octets that connections share, so that all keep `Settings.buffered` at most.

    A share that was right when it was kept is too large when there are more connections.
    Of those that there are, at most m kept theirs when there were m or fewer (they all
    were there at that time), so all together keep no more than the sum of min(history,
    b / 2m) over both directions and m up to the limit of connections N, which is at most
    b (1 + ln (2 N history / b)).  This is a b for which that is at most `buffered`.
    """
    most = 2 * settings.history * settings.connections
    factor, before = 1.0, 0.0
    while factor != before:  # it grows, ever slower
        before = factor
        factor = 1.0 + _LN_2 * int(most * factor / settings.buffered).bit_length()
    return int(settings.buffered / factor)


class Deadline(enum.Enum):
    """What can run out."""

    __hash__ = object.__hash__

    REQUEST = "request"
    CLEARING = "clearing"
    CLOSING = "closing_grace"


_SECONDS: Final[Mapping[Deadline, Callable[[Settings], float]]] = {
    kind: attrgetter(kind.value) for kind in Deadline
}
_CALL_DEADLINE: Final = {
    CallState.REQUESTED: Deadline.REQUEST,
    CallState.ANSWERED: Deadline.REQUEST,
    CallState.CLEARING: Deadline.CLEARING,
}
_END_OF_DEADLINE: Final = {
    Deadline.REQUEST: End.UNANSWERED,
    Deadline.CLEARING: End.CLEARED,
}


class Book:
    """All connections, calls, numbers, deadlines and counts."""

    def __init__(self, bindings: Bindings, settings: Settings, part: Part = WHOLE) -> None:
        self.bindings = bindings
        self.settings = settings
        self.connections: dict[bytes, Connection] = {}  #: by `Connection.key`
        self.calls: dict[int, Call] = {}  #: those not gone, by id
        self._looked = _NEVER  # when it was last looked at what runs out
        self.retired: deque[tuple[float, Call]] = deque()  #: gone, still translated until then
        self.deadlines: dict[Deadline, OrderedDict[Call | Connection, float]] = {
            kind: OrderedDict() for kind in Deadline
        }
        self.awake: deque[tuple[float, Connection]] = deque()  #: when each is looked at
        self.counts: Counter[str] = Counter()  #: oddities and other things that happened, by slug
        self.messages: Counter[tuple[MessageType | None, bool]] = Counter()  #: (type, from inside)
        self.ends: Counter[End] = Counter()
        self.events: list[Event] = []  #: of the packet or tick under way
        self.last_id = 0  #: the highest identity given
        self._part = part
        self.clients = Clients()
        self._shared: dict[Any, Any] = {}
        self._shared_for: Settings | None = None  # what `_shared_out` was reckoned for
        self._shared_out = 0

    @property
    def history(self) -> int:
        """Octets of unacknowledged stream that may be kept of one direction now."""
        settings = self.settings
        if settings is not self._shared_for:
            self._shared_for, self._shared_out = settings, shared_out(settings)
        share = self._shared_out // (2 * len(self.connections) + 1)
        return share if share < settings.history else settings.history  # noqa: FURB136  hot

    def next_id(self) -> int:
        """Return a new identity for a call or connection."""
        self.last_id += 1
        if self._part.count > 1:  # one of those that no other worker gives
            self.last_id += (self._part.index - self.last_id) % self._part.count
        return self.last_id

    def one_for_all(self, value: _T) -> _T:
        """Return the one copy of *value*, of which thousands of connections have a handful."""
        if len(self._shared) >= _SHARED:
            self._shared.clear()
        shared: _T = self._shared.setdefault(value, value)
        return shared

    def open_connection(self, connection: Connection) -> None:
        """Take a new connection in."""
        connection.share(self.one_for_all)
        self.connections[connection.key] = connection
        self.awake.append((connection.created + REST, connection))
        self.events.append(ConnectionChanged(connection, None))

    def oddity(self, connection: Connection, sender: Party, slug: str) -> None:
        """Count and tell a departure from the RFC."""
        self.counts[slug] += 1
        self.events.append(OddityMet(connection, sender, slug))

    def refuse(self, connection: Connection, sender: Party, reason: str) -> None:
        """Tell that the call was refused that *sender* has asked for or agreed to."""
        self.counts[f"refused_{reason}"] += 1
        self.events.append(CallRefused(connection, sender, reason))

    def open_call(self, connection: Connection, requester: Party, pns: Party, now: float) -> Call:
        """Take a new call in; it is IDLE."""
        call = Call(self.next_id(), connection, requester, pns, now)
        self.calls[call.id] = call
        self.clients.began(connection.own(requester))
        return call

    def move(
        self, call: Call, state: CallState, now: float, end: End | None = None
    ) -> None:
        """Give *call* the state that the table named; *end* says why it is GONE."""
        was = call.state
        if state is was:
            return
        call.state = state
        if (deadline := _CALL_DEADLINE.get(was)) is not None:
            self.deadlines[deadline].pop(call, None)
        if (deadline := _CALL_DEADLINE.get(state)) is not None:
            self.set_deadline(deadline, call, now)
        if state is CallState.UP:
            call.up_since = now
        self.events.append(CallChanged(call, was))
        if state is CallState.GONE:
            assert end is not None
            call.end = end
            self._retire(call, end, now)

    def _retire(self, call: Call, end: End, now: float) -> None:
        self.ends[end] += 1
        del self.calls[call.id]
        self.clients.ended(call.connection.own(call.requester))
        for party in Party:
            if call.own_of(party) != NOBODY:
                self._withdraw(call, party, now)
        self.retired.append((now + self.settings.quarantine, call))

    def _withdraw(self, call: Call, party: Party, now: float) -> None:
        """Have GRE towards *party* no longer carried and its number kept back."""
        connection = call.connection
        if (leg := call.leg(party)) is not None:
            self.events.append(LegDown(call, party, leg))
        if connection.seen_as[party] is not None or connection.claims(party):
            self.bindings.release(connection.pair(party), call.seen_of(party), now)

    def number(self, call: Call, party: Party, own: int, seen: int, now: float) -> None:
        """Note *party*'s number and have its GRE carried; a number that it had before goes."""
        if call.own_of(party) != NOBODY:
            self._withdraw(call, party, now)
        call.connection.renumber(call, party, own, seen)
        # The other party's number does not matter for this leg: it is complete.
        if (leg := call.leg(party)) is not None:
            self.events.append(LegUp(call, party, leg, call.connection.mark))

    def hand_over(self, holder: Call, call: Call, party: Party, now: float) -> None:
        """Make *party*'s number of *holder* that of *call*; *holder* is over."""
        own, seen = holder.own_of(party), holder.seen_of(party)
        if (leg := holder.leg(party)) is not None:
            self.events.append(LegDown(holder, party, leg))
        holder.connection.renumber(holder, party, NOBODY, NOBODY)
        self.finish(holder, End.REPLACED, now)
        self.number(call, party, own, seen, now)

    def take_fresh(self, connection: Connection, party: Party, own: int) -> int | None:
        """Return the number chosen for the message that is now complete, once."""
        fresh = connection.fresh
        if fresh is None or (party, own) not in fresh:
            return None
        seen = fresh.pop((party, own))
        if not fresh:
            connection.talk.fresh = None
        return seen

    def drop_fresh(self, connection: Connection, party: Party, own: int) -> None:
        """Free the number chosen for a message that led to no call."""
        seen = self.take_fresh(connection, party, own)
        if seen is not None:
            self.bindings.drop(connection.pair(party), seen)

    def move_connection(
        self,
        connection: Connection,
        event: MessageType | TcpEnd,
        now: float,
        answer: Answer = Answer.YES,
        end: End = End.CLOSED,
    ) -> None:
        """Give *connection* the state that the table names; what depends on it follows."""
        was = connection.state
        if was is ControlState.OPEN and event in IMPLIES_OPEN:
            return  # most messages
        state = control_after(was, event, answer)
        if state is None or state is was:
            return
        connection.state = state
        self.events.append(ConnectionChanged(connection, was))
        if state is ControlState.CLOSING:
            self.set_deadline(Deadline.CLOSING, connection, now)
        if state is ControlState.STOPPING:
            self.end_calls(connection, End.STOPPED, now)
        if state is ControlState.CLOSED:
            self.deadlines[Deadline.CLOSING].pop(connection, None)
            self.end_calls(connection, end, now)
            for party, own in list(connection.fresh or ()):
                self.drop_fresh(connection, party, own)
            if self.connections.get(connection.key) is connection:
                del self.connections[connection.key]

    def end_calls(self, connection: Connection, end: End, now: float) -> None:
        """End every call of *connection*."""
        for call in list(connection.calls):
            self.finish(call, end, now)

    def finish(self, call: Call, end: End, now: float) -> None:
        """End *call* otherwise than by a message of its own."""
        self.move(call, CallState.GONE, now, end)

    def set_deadline(self, kind: Deadline, subject: Call | Connection, now: float) -> None:
        """Start the time of *kind* for *subject*."""
        self.deadlines[kind][subject] = now + _SECONDS[kind](self.settings)

    def due(self, subject: Call | Connection) -> float | None:
        """Return when the time of *subject* runs out, None if it has none."""
        for queue in self.deadlines.values():
            if (due := queue.get(subject)) is not None:
                return due
        return None

    def put_back(
        self,
        connections: Iterable[tuple[Connection, ControlState, float | None]],
        calls: Iterable[tuple[Call, CallState, float | None]],
    ) -> None:
        """Take in what an earlier run has left, each in its state and due when it was due."""
        dues: list[tuple[float, Deadline, Call | Connection]] = []
        for connection, control_state, due in connections:
            connection.share(self.one_for_all)
            connection.state = control_state
            self.connections[connection.key] = connection
            if not connection.rest():
                self.awake.append((0.0, connection))
            if due is not None:
                dues.append((due, Deadline.CLOSING, connection))
        for call, state, due in calls:
            call.state = state
            if state is CallState.GONE:
                self.retired.append((due or 0.0, call))
                continue
            self.calls[call.id] = call
            self.clients.began(call.connection.own(call.requester))
            kind = _CALL_DEADLINE.get(state)
            if due is not None and kind is not None:
                dues.append((due, kind, call))
        for until, kind, subject in sorted(dues, key=itemgetter(0)):
            self.deadlines[kind][subject] = until
        self.retired = deque(sorted(self.retired, key=itemgetter(0)))

    def wake(self, connection: Connection, now: float) -> None:
        """Have *connection* ready for octets until its parties rest again."""
        connection.wake()
        self.awake.append((now + REST, connection))

    def let_rest(self, now: float) -> None:
        """Have some of the connections fall asleep whose parties have nothing more to say."""
        awake = self.awake
        for _ in range(_LOOKS):
            if not awake or awake[0][0] > now:
                return
            _, connection = awake.popleft()
            if connection.state is ControlState.CLOSED:
                continue
            if connection.last_message + REST > now or not connection.rest():
                awake.append((now + REST, connection))
        self._looked = _NEVER  # there are more

    def next_timer(self) -> float | None:
        """Return when to look next at what runs out, None if nothing can."""
        times = [next(iter(queue.values())) for queue in self.deadlines.values() if queue]
        if self.retired:
            times.append(self.retired[0][0])
        if self.awake:
            times.append(self.awake[0][0])
        if (released := self.bindings.next_timer()) is not None:
            times.append(released)
        return max(min(times), self._looked + _ROUND) if times else None

    def tick(self, now: float) -> None:
        """Do what has run out."""
        self._looked = now
        for kind, queue in self.deadlines.items():
            while queue:
                subject = next(iter(queue))
                if queue[subject] > now:
                    break
                del queue[subject]
                if isinstance(subject, Call):
                    self.finish(subject, _END_OF_DEADLINE[kind], now)
                else:
                    self.move_connection(subject, TcpEnd.GRACE_OVER, now)
        while self.retired and self.retired[0][0] <= now:
            _, call = self.retired.popleft()
            call.connection.remove(call)
        self.bindings.tick(now)
