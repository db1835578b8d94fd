"""What is counted as it happens: times, verdicts and what became of calls.

The table of calls and the book say what is; this says what was.  A packet costs
one look at the clock, one bisection and two additions; all else waits for
whoever asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from pptp_nat.core.calls import Call
from pptp_nat.core.events import CallChanged, Event, Outcome, Verdict
from pptp_nat.core.messages import RESULTS, MessageType
from pptp_nat.core.states import CallState, End

#: Upper ends in seconds.  A verdict takes some 50 microseconds; what takes longer than 5 ms is
#: worth a look.
VERDICT_BOUNDS: Final = (
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3,
)  # fmt: skip
SETUP_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
CALL_BOUNDS: Final = (10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 86400.0)


class Histogram:
    """How often which values came: ``counts[i]`` those up to ``bounds[i]``, the last the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Meter:
    """Counts for one daemon, from its start on."""

    __slots__ = (
        "call_seconds", "established", "failures", "reloaded", "reloads_good", "requests",
        "setup_seconds", "turn_seconds", "verdict_seconds", "verdicts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.verdicts: dict[Verdict, int] = dict.fromkeys(Verdict, 0)
        self.verdict_seconds = Histogram(VERDICT_BOUNDS)
        self.turn_seconds = Histogram(VERDICT_BOUNDS)
        self.setup_seconds = Histogram(SETUP_BOUNDS)
        self.call_seconds = Histogram(CALL_BOUNDS)
        self.requests = 0
        self.established = 0
        self.failures: Counter[str] = Counter()  #: calls that never came up, by why
        self.reloads_good = True
        self.reloaded = time.time()  #: when a configuration was last taken over, Unix seconds

    def judged(self, outcome: Outcome, began: float) -> None:
        """Count a verdict whose packet was taken in hand at *began*, monotonic seconds."""
        self.verdicts[outcome.verdict] += 1
        self.verdict_seconds.add(time.monotonic() - began)
        if outcome.events:
            self.tell(outcome.events, began)

    def tell(self, events: Iterable[Event], now: float) -> None:
        """Count what became of calls."""
        # An event carries the call as it is by now: which state each change led to is
        # what the change after it led from.
        later: dict[Call, CallState] = {}
        for each in reversed(list(events)):
            if isinstance(each, CallChanged):
                self._changed(each, later.get(each.call, each.call.state), now)
                later[each.call] = each.was

    def _changed(self, change: CallChanged, state: CallState, now: float) -> None:
        call = change.call
        if change.was is CallState.IDLE:
            self.requests += 1
        if state is CallState.UP:
            self.established += 1
            self.setup_seconds.add((call.up_since or now) - call.created)
        elif state is CallState.GONE:
            if call.up_since is not None:
                self.call_seconds.add(now - call.up_since)
            elif change.was is not CallState.IDLE:
                self.failures[failure(call)] += 1

    def reloading(self, *, good: bool) -> None:
        """Take note of how a reload of the configuration went."""
        self.reloads_good = good
        if good:
            self.reloaded = time.time()


_REPLIES: Final = (MessageType.OUTGOING_CALL_REPLY, MessageType.INCOMING_CALL_REPLY)
_UNKNOWN: Final = "unknown result"


def slug(words: str) -> str:
    """Return *words* as a label's value: ``no dial tone`` -> ``no_dial_tone``."""
    return words.lower().replace(" ", "_").replace("-", "_")


#: All that `failure` can return.
FAILURES: Final = tuple(dict.fromkeys(
    slug(words) for words in (
        *(word for kind in _REPLIES for code, word in RESULTS[kind].items() if code != 1),
        _UNKNOWN, *(end.name for end in End if end is not End.REFUSED),
    )
))  # fmt: skip


def failure(call: Call) -> str:
    """Return why *call* never came up: a word of the RFC's table, or that of its end.

    There are as many as those tables have rows, whatever peers send.
    """
    if call.end is End.REFUSED and call.codes is not None:
        kind, code, _, _ = call.codes
        return slug(RESULTS[MessageType(kind)].get(code, _UNKNOWN))
    assert call.end is not None
    return slug(_UNKNOWN if call.end is End.REFUSED else call.end.name)
