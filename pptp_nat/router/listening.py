"""When calls last carried GRE, and how much all of them: a look at all counts now and then.

The data path counts but tells nobody.  So the counts are read every ten seconds;
what has grown was heard, and what came on top is added to the totals.  Of 200,000
legs that takes a second of processor time: it is done in pieces, between which
packets have their turns, and never for more than a hundredth of the time.

Who shows totals wants them newer than that.  There is one look for everybody: he
says when he will show them next (`expect`), and a look is timed to be over by
then.  If it was not, or nobody knew of him, he has the counts read while he waits
(`freshen`), or what is left of a look that is under way.  Looks that are wanted
for that take a tenth of the time at most.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Final

from pptp_nat import log
from pptp_nat.core.translator import Translator
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.router.carrier import FEW_CALLS, Carrier

_log: Final = logging.getLogger(__name__)
SECONDS: Final = 10.0  #: between two looks, at least
SHARE: Final = 100  #: a look may take one in so many seconds, ...
EXPECTED_SHARE: Final = 10  #: ... one that is expected one in so many
FRESH_SECONDS: Final = 5.0  #: after a look its counts are good enough for totals
_NOTICED_SECONDS: Final = 0.25  #: of processor time for a look: with some 20,000 calls
_AHEAD_SECONDS: Final = 0.1  #: that a look is to be over before it is wanted
_SLOWER: Final = 1.25  #: times as long as the last one the next look may take


class Listening:
    """Notes which calls of *translator* carry GRE, and what all of them have carried."""

    def __init__(self, translator: Translator, carrier: Carrier) -> None:
        self._translator = translator
        self._carrier = carrier
        self._due = 0.0
        self._expected: float | None = None  # when somebody will show the counts
        self._look: Iterator[None] | None = None  # under way
        self._is_ahead = False  # whether the kernel writes pieces of it before they are asked for
        self._began = 0.0  # monotonic seconds, of the look under way
        self._spent = 0.0  # CPU seconds, of that look or the last one
        self._took = 0.0  # seconds from the beginning to the end of the last one
        self._over = 0.0  # when it was
        self._failure: AdapterError | None = None  # that it ended with
        self.read_at: float | None = None  #: no count of the totals is older, monotonic seconds
        self.looks = 0  #: that were begun
        self.cpu_seconds = 0.0  #: that all of them took
        self.longest = 0.0  #: CPU seconds of the longest piece; whoever reads it may reset it

    def next_timer(self) -> float:
        """Return when `tick` has something to do, in monotonic seconds."""
        if self._look is not None:
            return 0.0
        begin = self._in_time()
        # One look serves both, if the other can wait as long.
        return self._due if begin is None or begin > self._due + SECONDS else begin

    def _in_time(self) -> float | None:
        """Return when to begin with the look that is expected, None if none is."""
        if self._expected is None:
            return None
        begin = self._expected - _SLOWER * self._took - _AHEAD_SECONDS
        return max(begin, self._over + EXPECTED_SHARE * self._spent)

    def tick(self, now: float) -> None:
        """Do one piece of work if a look is due or under way."""
        if self.next_timer() <= now:
            self._step(now)

    def expect(self, at: float | None) -> None:
        """Have a look that is over by *at*, monotonic seconds, once; None: nobody knows when."""
        self._expected = at if self._are_many() else None

    def freshen(self, seconds: float = 0.0) -> Iterator[None]:
        """Have all counts read, a piece at a time, if those that are known are not fresh.

        Of few calls they always are read: that costs less than to explain it.

        Args:
            seconds: for which counts are good; or ten times as long as they took, if that is more.

        Raises:
            AdapterError: while it is iterated, the data path does not say.
        """
        now = time.monotonic()
        if self._is_fresh(now, seconds):
            return
        self._step(now)
        look = self._look
        while look is not None and self._look is look:
            yield
            if self._look is look:
                self._step(time.monotonic())
        if self._failure is not None:
            raise self._failure

    def hear_all(self) -> None:
        """Have all counts read at once, none of them before now; a refusal is in the log."""
        self._finish()  # what it has read by now is older
        self._step(time.monotonic())
        self._finish()

    def _finish(self) -> None:
        while self._look is not None:
            self._step(time.monotonic())

    def note(self, tallies: Mapping[Match, Tally], now: float) -> None:
        """Take in counts that somebody has looked up, just now: at *now*.

        What the kernel has written for a look under way may be older; it must not come
        after them, since a count that falls would be one that began anew.
        """
        if self._look is None or not self._is_ahead:
            self._take_in(tallies, now)

    def _take_in(self, tallies: Mapping[Match, Tally], now: float) -> None:
        calls = self._translator.book.calls
        for number, packets in self._carrier.totals.read(tallies):
            call = calls.get(number)
            if call is not None:
                self._translator.heard(call, call.packets + packets, now)

    @property
    def lasting(self) -> float:
        """Seconds for which counts are shown to people who did not ask for newer ones.

        Where a look takes no longer than people notice, that is no time at all.
        """
        return SHARE * self._spent if self._spent > _NOTICED_SECONDS else 0.0

    def _is_fresh(self, now: float, seconds: float) -> bool:
        if self._look is not None or self._failure is not None or self.read_at is None:
            return False
        if not self._are_many():
            return False
        return now < self._over + max(seconds, EXPECTED_SHARE * self._spent)

    def _are_many(self) -> bool:
        return len(self._translator.book.calls) > FEW_CALLS

    def _step(self, now: float) -> None:
        """Begin a look if none is under way, and do a piece of it."""
        if self._look is None:
            begin = self._in_time()
            if begin is not None and begin <= now:
                self._expected = None  # this is the one
            self._look, self._began, self._spent = self._pieces(), now, 0.0
            self._failure = None
            self._is_ahead = self._are_many()
            self.looks += 1
        began = time.thread_time()  # the machine's other work is not ours
        try:
            over = next(self._look, self) is self
            if over:
                self.read_at = self._began
        except AdapterError as error:
            over, self._failure = True, error
            log.event(_log, logging.ERROR, "data-path-refused", reason=str(error))
        except Exception:  # told by whoever had it done; what is left of the look is not whole
            self._look, self._due = None, now + SECONDS
            raise
        took = time.thread_time() - began
        self._spent += took
        self.cpu_seconds += took
        self.longest = max(self.longest, took)
        if over:
            self._look = None
            self._over = now
            self._took = now - self._began
            self._due = now + max(SECONDS, SHARE * self._spent)

    def _pieces(self) -> Iterator[None]:
        calls = self._translator.book.calls
        if not calls:
            return
        for piece in self._carrier.tally_pieces(calls.values()):
            self._take_in(piece, time.monotonic())
            yield
