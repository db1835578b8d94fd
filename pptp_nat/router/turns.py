"""The daemon's turns: packets by the shortest way, timers asked for when packets pause.

Theory of operation
-------------------
A packet that wakes the daemon waits for all that is done before it is read, and the next
one, its answer perhaps, for all that is done behind it.  So queues of packets are waited
for directly, and everything else - people, conntrack's events, signals - behind one
descriptor, that of a selector.

A dozen parts have timers, and any packet may set one of them earlier.  Asking all of them
costs as much as a packet.  So they are asked when no packet has come for `QUIET` seconds,
or when the first one that came since is so old: a timer is late by that much at most.
"""

from __future__ import annotations

import math
import select
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

_T = TypeVar("_T")
QUIET: Final = 0.002  #: seconds; epoll counts in thousandths


class Guarded(Protocol):
    """Does *work*; what it raises ends that work alone."""

    def __call__(self, work: Callable[[_T], None], argument: _T, /) -> None:
        """Call *work* with *argument*."""


class Turns:
    """Serves queues, and everything else between two looks at them.

    Args:
        queues: what serves the packets behind each descriptor, the most urgent first.
        selector: all else that is waited for; its keys' data are called with what is ready.
        next_due: asks all parts for the earliest of their times, monotonic seconds.
        tick: does what is due; is given the time that it was due.
        guarded: calls all of these but *next_due*.
    """

    def __init__(
        self,
        queues: Mapping[int, Callable[[int], None]],
        selector: selectors.DefaultSelector,
        next_due: Callable[[], float | None],
        tick: Callable[[float], None],
        guarded: Guarded,
    ) -> None:
        self._queues = dict(queues)
        self._selector = selector
        self._next_due = next_due
        self._tick = tick
        self._guarded = guarded
        self._rank = {descriptor: place for place, descriptor in enumerate(queues)}
        self._due = math.inf  # the earliest of their times, when parts were asked last
        self._ask_at = -math.inf  # when they are asked again
        self._ready = select.epoll()
        for descriptor in (*queues, selector.fileno()):
            self._ready.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        """Let go of what was waited on; queues and selector stay."""
        self._ready.close()

    def turn(self) -> float:
        """Wait until there is something to do, and do a bounded part of it.

        Returns:
            When it began to be done, monotonic seconds.
        """
        now = time.monotonic()
        if now >= self._ask_at:
            due = self._next_due()
            self._due, self._ask_at = math.inf if due is None else due, math.inf
        until = min(self._due, self._ask_at)
        ready = self._ready.poll(None if until == math.inf else max(0.0, until - now))
        began = time.monotonic()
        if len(ready) > 1:
            ready.sort(key=self._place)
        for descriptor, mask in ready:
            serve = self._queues.get(descriptor)
            if serve is not None:
                self._guarded(serve, mask)
                self._ask_at = min(self._ask_at, began + QUIET)
                continue
            for key, events in self._selector.select(0):
                self._guarded(key.data, events)
            self._ask_at = -math.inf
        if self._due <= time.monotonic():
            self._guarded(self._tick, self._due)
            self._ask_at = -math.inf
        return began

    def _place(self, ready: tuple[int, int]) -> int:
        return self._rank.get(ready[0], len(self._rank))
