"""Each control packet's verdict: make before, break after."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from pptp_nat.core.events import Outcome, Verdict
from pptp_nat.core.translator import Translator
from pptp_nat.linux.nfqueue import LOCAL_HOOKS, Packet, Queue
from pptp_nat.router.effects import Effects

if TYPE_CHECKING:
    from pptp_nat.scrape.meter import Meter


class Judge:
    """Asks the translator about each packet and hands on what follows from it.

    Until it has `effects` it judges nothing: it raises, and the queue drops what TCP sends again.
    It is a class of its own because it is compiled, which the daemon is not (`setup.py`).
    """

    effects: Effects

    def __init__(self, translator: Translator, meter: Meter | None) -> None:
        self._translator: Final = translator
        self._meter: Final = meter

    def judge(self, queue: Queue, packet: Packet) -> None:
        """Give one control packet its verdict."""
        now = monotonic()
        outcome = self._translator.handle(
            packet.octets, now,
            packet_id=queue.next_id(), is_local=packet.hook in LOCAL_HOOKS,
        )  # fmt: skip
        self.effects.note(outcome, now)
        self._release(queue, outcome)
        if outcome.verdict is Verdict.ACCEPT:
            queue.let_pass(packet, outcome.packet)
        elif outcome.verdict is Verdict.HOLD:
            queue.hold(packet)
        else:
            queue.drop(packet)
        self.effects.follow(outcome, now)
        if self._meter is not None:
            self._meter.judged(outcome, now)

    def carry_out(self, queue: Queue, outcome: Outcome, now: float) -> None:
        """Carry out what no packet in hand has caused."""
        self.effects.note(outcome, now)
        self._release(queue, outcome)
        self.effects.follow(outcome, now)
        queue.flush()
        if self._meter is not None:
            self._meter.tell(outcome.events, now)

    def _release(self, queue: Queue, outcome: Outcome) -> None:
        for released in outcome.released:
            queue.release(released.packet_id, released.packet)
