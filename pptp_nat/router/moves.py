"""External addresses that change: what depends on them ends, or waits for them to return.

An address that is replaced by another on its interface (DHCP, a PPPoE redial) is
over at once, and so is one that is taken off an interface that keeps others.  An
interface that vanishes with all its addresses may be back in a moment, as it was:
then nothing has happened, since conntrack's entries and calls were still there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from socket import inet_ntoa
from typing import Final

from pptp_nat import log
from pptp_nat.core.events import Outcome
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Address
from pptp_nat.linux.addresses import Addresses, Change, Held

_log: Final = logging.getLogger(__name__)
BACK_SECONDS: Final = 10.0  #: for an interface to come back with the address that it had


class Moves:
    """Ends what depends on external addresses that are no longer this router's.

    Args:
        carry_out: does what an outcome without a packet says.
    """

    def __init__(
        self, translator: Translator, carry_out: Callable[[Outcome, float], None]
    ) -> None:
        self._translator = translator
        self._carry_out = carry_out
        self._missing: dict[Held, float] = {}  # until when each may come back

    def look(self, addresses: Addresses, now: float) -> None:
        """Read what has become of *addresses*."""
        self.note(addresses.read(), addresses.held, now)

    def note(self, change: Change, held: frozenset[Held], now: float) -> None:
        """Take note of what has changed; *held* is what there is now."""
        addresses = {each.address for each in held}
        interfaces = {each.interface for each in held}
        for each in change.gone:
            if each.address not in addresses:
                self._missing[each] = now + BACK_SECONDS
        for each in list(self._missing):
            if each.address in addresses:
                del self._missing[each]  # it is back, there or on another interface
            elif each.interface in interfaces:
                del self._missing[each]  # which has another one in its place
                self._end(each.address, now)

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        return min(self._missing.values(), default=None)

    def tick(self, now: float) -> None:
        """End what has waited long enough."""
        for each in [each for each, due in self._missing.items() if due <= now]:
            del self._missing[each]
            self._end(each.address, now)

    def _end(self, address: Address, now: float) -> None:
        connections = self._translator.book.connections.values()
        depending = sum(address in each.seen_as for each in connections)
        if depending:
            log.event(
                _log, logging.WARNING, "address-gone", address=inet_ntoa(address),
                connections=depending,
            )  # fmt: skip
            self._carry_out(self._translator.address_gone(address, now), now)
