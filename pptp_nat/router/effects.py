"""What packets have caused, around the one send in which their verdicts travel.

Before it: what was changed is on record, and what lets a peer send GRE is in the
kernel.  After it: what ended is taken out of the kernel, and people are told.  Each
is done for all packets of that send at once; what has to be asked of the kernel, or
written, costs as much for eight packets as for one.

Nobody waits for the look at the mark of a connection that has echoed, and the reply to its
echo may be under way already: that comes when packets pause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Final

from pptp_nat.core.calls import Connection
from pptp_nat.core.events import Event, Outcome
from pptp_nat.router.carried import Counts
from pptp_nat.router.carrier import Carrier
from pptp_nat.state.recorder import Recorder

_LOOKS: Final = 32  #: at once, half a millisecond

Tell = Callable[[list[Event], Mapping[int, Counts | None]], None]


class Effects:
    """Carries out what outcomes say.

    Args:
        recorder: keeps what has changed.
        carrier: has GRE carried.
        look: looks at the mark of a connection that has echoed.
        tell: is told all events, in their order, and what calls that are gone have carried.
        fault: is told of what one of these has raised; the others go on.
    """

    def __init__(
        self,
        recorder: Recorder,
        carrier: Carrier,
        look: Callable[[Connection], Outcome],
        tell: Tell,
        fault: Callable[[BaseException], None],
    ) -> None:
        self._recorder: Final = recorder
        self._carrier: Final = carrier
        self._look: Final = look
        self.tell = tell
        self._fault: Final = fault
        self._events: list[Event] = []  # of packets that have their verdicts
        self._echoed: dict[Connection, None] = {}  # since their marks were looked at
        self._now = 0.0  # of the latest of them

    def note(self, outcome: Outcome, now: float) -> None:
        """Take note of what must be true before the verdict of *outcome*, not yet given."""
        self._recorder.note(outcome, now)
        if outcome.events:
            self._carrier.gather(outcome.events, now)

    def follow(self, outcome: Outcome, now: float) -> None:
        """Take note of what comes after the verdict of *outcome*, which is given but not sent."""
        self._now = now
        if outcome.events:
            self._events += outcome.events
        if outcome.echoed and outcome.connection is not None:
            self._echoed[outcome.connection] = None

    def before(self) -> None:
        """Do what must be true before the verdicts in hand: on record first, then carried."""
        self._do(self._recorder.write)
        self._do(self._carrier.settle)

    def after(self) -> None:
        """Do what comes after the verdicts that were sent."""
        if self._events:
            events, self._events = self._events, []
            self._do(lambda: self.tell(events, self._carrier.after(events, self._now)))

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._now if self._echoed else None

    def tick(self, now: float) -> None:
        """Have GRE follow the marks of connections that have echoed: a question for each."""
        if not self._echoed:
            return
        self._now = now
        echoed = list(islice(self._echoed, _LOOKS))
        for connection in echoed:
            del self._echoed[connection]
        for connection in echoed:
            self._do(partial(self._look_at, connection))
        self.before()

    def _look_at(self, connection: Connection) -> None:
        outcome = self._look(connection)
        if outcome.events:
            self.note(outcome, self._now)

    def _do(self, work: Callable[[], None]) -> None:
        """Do *work*; what it raises ends that work, never that of other calls."""
        try:
            work()
        except Exception as error:  # noqa: BLE001
            self._fault(error)
