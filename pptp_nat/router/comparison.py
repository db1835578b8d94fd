"""After a start that trusted the records: what the kernel carries, compared with them in steps.

A crash changes nothing in the kernel, so an exact journal of this boot is believed at
once and packets are served.  What may be otherwise is found while they are:

    missing    entries that others deleted while nobody listened: put back
    orphans    entries of calls that ended on record, before their entries went: removed,
               and their numbers kept back
    other      entries that carry a leg otherwise than its call wants it: made anew

Until then no call is given a number that an entry of ours has (`Bindings.doubt`).
Between two steps calls come, go and change their numbers: what counts is what the
book holds when something is done, and nothing comes between the look and the deed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

from pptp_nat.core.bindings import Pair
from pptp_nat.core.events import LegUp, Outcome
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Leg, Party
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.datapath import LegOrder, Match, match_of_leg
from pptp_nat.linux.leg_table import name_once
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.restoration import wanted

_NOTED: Final = 4096  #: names that are noted in one step
_AT_ONCE: Final = 64  #: legs that are put back or removed in one step


class Compared(NamedTuple):
    """What was not as it should have been, in legs."""

    put_back: int
    orphans: int
    other: int


class Comparison:
    """Brings what *path* carries and the book of *translator* together, once.

    Args:
        carry_out: does what an outcome without a packet says.
    """

    def __init__(
        self, translator: Translator, carrier: Carrier, path: ConntrackPath,
        carry_out: Callable[[Outcome, float], None],
    ) -> None:  # fmt: skip
        self._translator = translator
        self._carrier = carrier
        self._path = path
        self._carry_out = carry_out

    def steps(self) -> Generator[None, None, Compared]:
        """Compare and mend.

        Raises:
            AdapterError: the kernel did not say what it carries; begin again.
        """
        totals = self._carrier.totals
        strange: list[Leg] = []
        other: list[bytes] = []
        missing: set[bytes] = set()
        with self._carrier.awaiting(missing):
            names = totals.names()
            for start in range(0, len(names), _NOTED):  # at once it would be tens of milliseconds
                missing.update(names[start : start + _NOTED])
                yield
            del names
            for piece in self._path.standing(time.monotonic()):
                for order in piece:
                    name = name_once(order.leg)
                    owner = totals.owner(name)
                    if owner is None:
                        strange.append(order.leg)
                        continue
                    missing.discard(name)
                    if not self._is_wanted(owner, order):
                        other.append(name)
                yield
            orphans = yield from self._remove(strange)
            changed = yield from self._restore(other, self._carrier.install)
            restored = yield from self._restore(missing, self._carrier.put_back)
        return Compared(restored, orphans, changed)

    def _is_wanted(self, owner: int, order: LegOrder) -> bool:
        """Whether call *owner* wants *order*; of a leg that several have one is right."""
        call = self._translator.book.calls.get(owner)
        if call is None:
            return True  # it ends just now, and its entry with it
        if any(call.leg(party) == order.leg for party in Party):
            return call.connection.mark == order.mark
        return self._carrier.totals.has_several(match_of_leg(order.leg))

    def _remove(self, strange: Sequence[Leg]) -> Generator[None, None, int]:
        """End legs that are still nobody's; return how many there were."""
        removed, bindings = 0, self._translator.book.bindings
        for start in range(0, len(strange), _AT_ONCE):
            now = time.monotonic()
            ended = self._carrier.end(strange[start : start + _AT_ONCE], now)
            for leg in ended:
                if leg.destination != leg.new_destination:
                    pair = Pair(leg.destination, leg.source)
                    bindings.keep_back(pair, leg.key, now + bindings.quarantine)
            self._carry_out(Outcome(), now)  # which puts that on record
            removed += len(ended)
            yield
        return removed

    def _restore(
        self, names: set[bytes] | list[bytes], install: Callable[[Sequence[LegUp], float], int]
    ) -> Generator[None, None, int]:
        """Have *names* carried as their calls want it, those that have one still."""
        mended = 0
        while names:
            some = [names.pop() for _ in range(min(_AT_ONCE, len(names)))]
            calls = self._translator.book.calls
            ups = list(filter(None, (wanted(name, calls, self._carrier) for name in some)))
            if ups:
                mended += install(ups, time.monotonic())
            yield
        return mended


def doubt(translator: Translator, conntrack: Conntrack) -> None:
    """Have no number given that an entry of ours carries, until `sure`."""
    bindings = translator.book.bindings

    def carried(pair: Pair, number: int) -> float | None:
        try:
            entry = conntrack.entry(Match(pair.remote, pair.external, number))
        except AdapterError:
            return None  # nobody can say; it is replaced if it is there
        ours = entry is not None and entry.mark & conntrack.entry_mark
        return time.monotonic() + bindings.quarantine if ours else None

    bindings.doubt = carried


def sure(translator: Translator) -> None:
    """Ask no longer whether numbers are carried."""
    translator.book.bindings.doubt = None

