"""A kernel that refuses, or answers too late: what is carried is soon what should be."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from pptp_nat.core.events import LegUp
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Leg, Party, Placement, Seat
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.router.carrier import Carrier
from pptp_nat.state.adoption import rebuilt

from .conntrack_lab import CLIENT, EXTERNAL, SERVER, inbound, octets, outbound

pytestmark = pytest.mark.kernel
CODES = [errno.ENOBUFS, errno.EPERM, errno.EEXIST, errno.EBUSY, errno.ENOMEM]
CONNECTION = Placement(
    Flow(octets(CLIENT), 4711, octets(SERVER), 1723),
    Seat(octets(CLIENT), octets(EXTERNAL)), Seat(octets(SERVER), octets(SERVER)), 0,
)  # fmt: skip


class Moody:
    """Netlink that fails as often as it is told, before it asks the kernel or after it has."""

    def __init__(self, netlink: Any, code: int, seed: int) -> None:
        self.netlink = netlink
        self.code = code
        self.lots = random.Random(seed)
        self.badness = 0.0
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.netlink, name)
        return self._moody(found) if name in {"request", "exchange", "get", "dump"} else found

    def _moody(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*words: Any) -> Any:
            fate = self.lots.random()
            if fate < self.badness / 2:
                self._fail()
            answer = ask(*words)
            if fate < self.badness:
                self._fail()  # it has happened, and the answer is lost
            return answer

        return asked

    def _fail(self) -> None:
        self.failures += 1
        raise AdapterError("asking netfilter", self.code)


@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
def test_whatever_the_kernel_refuses_for_a_while_comes_true_in_the_end(
    conntrack: Conntrack, code: int
) -> None:
    """Calls come and go under it; no leg is lost, none is left, and no exception passes."""
    moody = Moody(conntrack._netlink, code, seed=code)
    conntrack._netlink = moody  # type: ignore[assignment]
    carrier = Carrier(ConntrackPath(conntrack))
    translator = Translator(lambda _: None, lambda: 7)
    book, now = translator.book, 1000.0
    moody.badness = 0.4
    for number in range(1, 61):
        found = [inbound(2000 + number, number), outbound(number)]
        known = {key: each.id for key, each in book.connections.items()}
        before = set(book.calls)
        translator.restore(rebuilt(found, [CONNECTION], known, book.next_id, now), now)
        (call,) = (each for each in book.calls.values() if each.id not in before)
        ups = [
            LegUp(call, party, leg, 0) for party in Party if (leg := call.leg(party)) is not None
        ]
        for up in ups:
            carrier.before([up], now)
        if moody.lots.random() < 0.5:
            ending = moody.lots.choice(list(book.calls.values()))
            outcome = translator.clear([ending], now)
            carrier.after(outcome.events, now)
        now += 0.07
        carrier.tick(now)
    assert moody.failures > 10
    assert carrier.failures > 0

    moody.badness = 0.0
    for _ in range(200):
        due = carrier.next_timer()
        if due is None:
            break
        now = max(now, due)
        carrier.tick(now)
    assert carrier.next_timer() is None, "it has come to rest"
    wanted: set[Leg] = {
        leg
        for call in book.calls.values()
        for party in Party
        if (leg := call.leg(party)) is not None
    }
    assert wanted == {entry.leg for entry in conntrack.entries()}
    assert len(wanted) > 20

    outcome = translator.clear(list(book.calls.values()), now)
    carrier.after(outcome.events, now)
    assert [] == list(conntrack.entries())
