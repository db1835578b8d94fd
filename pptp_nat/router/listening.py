"""When calls last carried GRE: a look at all counts now and then, a piece per turn.

The data path counts but does not say when.  So the counts are read every ten
seconds, and what has grown was heard.  Of 40,000 legs that takes a tenth of a
second: it is done in pieces, between which packets have their turns, and never
for more than a hundredth of the time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from pptp_nat import log
from pptp_nat.core.calls import Call
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.router.carrier import Carrier

_log: Final = logging.getLogger(__name__)
SECONDS: Final = 10.0  #: between two looks, at least
SHARE: Final = 100  #: a look may take one in so many seconds
_SLICE: Final = 256  #: calls compared in one turn


class Listening:
    """Notes which calls of *translator* carry GRE."""

    def __init__(self, translator: Translator, carrier: Carrier) -> None:
        self._translator = translator
        self._carrier = carrier
        self._due = 0.0
        self._look: Iterator[None] | None = None  # under way
        self._spent = 0.0  # seconds of that look's work

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return self._due

    def tick(self, now: float) -> None:
        """Do one piece of work if a look is due or under way."""
        if self._due > now:
            return
        if self._look is None:
            self._look, self._spent = self._pieces(), 0.0
        began = time.perf_counter()
        over = next(self._look, self) is self
        self._spent += time.perf_counter() - began
        if over:
            self._look = None
            self._due = now + max(SECONDS, SHARE * self._spent)

    def _pieces(self) -> Iterator[None]:
        calls = self._translator.book.calls
        if not calls:
            return
        tallies: dict[Match, Tally] = {}
        try:
            for piece in self._carrier.tally_pieces(calls.values()):
                tallies.update(piece)
                yield
        except AdapterError as error:
            log.event(_log, logging.ERROR, "data-path-refused", reason=str(error))
            return
        numbers = list(calls)
        for start in range(0, len(numbers), _SLICE):
            now = time.monotonic()
            for number in numbers[start : start + _SLICE]:
                call = calls.get(number)
                if call is not None and all(match in tallies for match in _matches(call)):
                    packets = self._carrier.counts(call, tallies).packets
                    self._translator.heard(call, packets, now)
            yield


def _matches(call: Call) -> Iterator[Match]:
    legs = (call.leg(party) for party in Party)
    return (Match(*leg[:3]) for leg in legs if leg is not None)
