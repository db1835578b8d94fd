"""Entries that others delete from a real table: all of them are told, and put back as told."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import LegDown, Outcome, legs_up
from pptp_nat.core.parts import Part
from pptp_nat.core.states import CallState
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Leg, Party, Placement, Seat
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_ends import Ended, Ends
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.conntrack_wire import CT_DELETE, CT_GET, CT_NEW
from pptp_nat.linux.datapath import LegOrder, Tally, match_of_leg
from pptp_nat.linux.netlink import Message, Received
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.upkeep import Upkeep

from .conntrack_lab import (
    CLIENT,
    EXTERNAL,
    OTHER,
    SERVER,
    ConntrackLab,
    Gre,
    inbound,
    octets,
    outbound,
    ready,
)

pytestmark = pytest.mark.kernel
CALLS = 150
PATIENCE = 60.0  #: seconds, on a busy machine
SEATS = Seat(octets(CLIENT), octets(EXTERNAL)), Seat(octets(SERVER), octets(SERVER))


def call(number: int) -> Call:
    """Return a call of the one client, which the server calls ``300 + number``."""
    placement = Placement(Flow(octets(CLIENT), 4711, octets(SERVER), 1723), *SEATS, 0)
    made = Call(
        number, Connection.placed(number, placement, 0.0, is_local=False),
        Party.ORIGINATOR, Party.ORIGINATOR, 0.0,
    )  # fmt: skip
    made.give(Party.ORIGINATOR, number, 2000 + number)
    made.give(Party.RESPONDER, 300 + number, 300 + number)
    made.state = CallState.UP
    return made


class Router:
    """The parts of a daemon that mend, in the lab's router."""

    def __init__(self, lab: ConntrackLab, conntrack: Conntrack) -> None:
        self.lab = lab
        self.conntrack = conntrack
        self.path = ConntrackPath(conntrack)
        self.carrier = Carrier(self.path)
        translator = Translator(lambda _: None, lambda: 7)
        self.calls = translator.book.calls
        self.upkeep = Upkeep(translator, self.carrier, conntrack, self._carry_out, lambda: None)
        self.upkeep._due.clear()  # of chores that are due anyway
        with lab.router.entered():
            (self.ends,) = self.upkeep.listen([1723], to_ends=True)
        self.path.catch_up = self.upkeep.catch_up
        self.sent: Counter[int] = Counter()  #: messages by kind
        exchange = conntrack._netlink.exchange

        def counting(messages: Sequence[Message]) -> tuple[list[int], list[Received]]:
            self.sent.update(each.kind for each in messages)
            return exchange(messages)

        conntrack._netlink.exchange = counting  # type: ignore[method-assign]

    def _carry_out(self, outcome: Outcome, now: float) -> None:
        self.carrier.before(outcome.events, now)
        self.carrier.after(outcome.events, now)

    def has(self, count: int) -> None:
        for number in range(1, count + 1):
            made = self.calls[number] = call(number)
            self.carrier.before(legs_up([made]), 0.0)

    def carried(self) -> set[Leg]:
        return {entry.leg for entry in self.conntrack.entries()}

    def wanted(self) -> set[Leg]:
        return {up.leg for up in legs_up(self.calls.values())}

    def mend(self) -> None:
        """Do what the daemon's loop does, until everything is back."""
        put_back = self.upkeep.restored + len(self.wanted())
        until = time.monotonic() + PATIENCE
        while self.upkeep.restored < put_back:
            assert time.monotonic() < until, f"{put_back - self.upkeep.restored} are missing"
            if select.select([self.ends], [], [], 0 if self.upkeep._restoration else 0.05)[0]:
                self.upkeep.on_ends(0)
            self.upkeep.tick(0.0)

    def close(self) -> None:
        self.ends.close()


@pytest.fixture
def router(lab: ConntrackLab, conntrack: Conntrack) -> Iterator[Router]:
    built = Router(lab, conntrack)
    yield built
    built.close()


def test_the_tenth_flush_costs_what_the_first_did(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One insertion for each entry, and no look at the table: neither grows with what was."""
    router.has(CALLS)
    for reading in ("_dump", "_bodies", "counts", "count_pieces", "leg_pieces"):
        monkeypatch.setattr(router.conntrack, reading, None)
    for _ in range(10):
        router.sent.clear()
        router.lab.router.run("conntrack", "-F")
        router.mend()
        assert {CT_NEW: 2 * CALLS} == router.sent
    monkeypatch.undo()
    assert router.wanted() == router.carried()
    assert 20 * CALLS == router.upkeep.restored
    assert 0 == router.carrier.failures


def test_no_more_ends_are_read_than_are_put_back(router: Router) -> None:
    """However slowly that goes: the kernel keeps 200,000 of them in less room than Python."""
    router.has(2 * CALLS)
    router.lab.router.run("conntrack", "-F")
    for _ in range(20):
        router.upkeep.on_ends(0)

    assert ready(router.ends.fileno()), "the rest waits"
    assert len(router.upkeep._restoration) < 3 * CALLS
    router.mend()
    assert router.wanted() == router.carried()


def test_an_end_that_finds_no_room_is_told_later_with_its_counts(router: Router) -> None:
    """The kernel keeps it for us: a socket's buffer holds some ten thousand, a table more."""
    router.has(CALLS)
    packets = [Gre(SERVER, EXTERNAL, 2000 + number) for number in range(1, CALLS, 7)]
    assert len(packets) == len(router.lab.back(*packets))
    counted = router.path.tallies()
    assert len(packets) == sum(tally.packets for tally in counted.values())
    buffer = router.ends._netlink._socket
    buffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    for _ in range(2):
        router.lab.router.run("conntrack", "-F")
        router.mend()

    assert router.ends._netlink.without_room() > 2 * CALLS
    assert counted == router.path.tallies()
    assert router.wanted() == router.carried()
    assert len(packets) == len(router.lab.back(*packets))


def test_the_tracks_of_packets_that_came_meanwhile_give_way_together(router: Router) -> None:
    """Calls talk on while their entries are missing, and each packet leaves a track."""
    router.has(CALLS)
    packets = [Gre(SERVER, EXTERNAL, 2000 + number) for number in range(1, CALLS + 1)]
    router.lab.router.run("conntrack", "-F")
    assert [] == router.lab.back(*packets)
    router.sent.clear()

    router.mend()

    # One by one each of them would take three messages in two sends of their own.
    assert (3 * CALLS, CALLS, CALLS) == tuple(
        router.sent[kind] for kind in (CT_NEW, CT_GET, CT_DELETE)
    )
    assert router.wanted() == router.carried()
    arrived = {packet.key for packet in router.lab.back(*packets)}
    assert set(range(1, CALLS + 1)) == arrived


@pytest.mark.parametrize("is_heard_of", [True, False])
def test_a_call_that_ends_while_its_entries_are_missing_stays_away(
    router: Router, *, is_heard_of: bool
) -> None:
    """What it had carried is told all the same, also if nobody has heard of the deletion yet."""
    router.has(1)
    router.lab.back(Gre(SERVER, EXTERNAL, 2001))
    router.lab.router.run("conntrack", "-D", "-p", "gre")
    assert ready(router.ends.fileno())
    if is_heard_of:
        router.upkeep.on_ends(0)
    ended = router.calls.pop(1)
    ended.state = CallState.GONE
    downs = [LegDown(up.call, up.party, up.leg) for up in legs_up([ended])]

    ((_, counts),) = router.carrier.after(downs, 0.0).items()
    router.upkeep.tick(0.0)

    assert (Tally(1, 35), Tally(0, 0)) == counts
    assert set() == router.carried()
    assert 0 == router.upkeep.restored


def test_who_asks_for_one_call_waits_for_no_others_end(router: Router) -> None:
    """After a flush of 100,000 calls their ends take the better part of a second to read."""
    router.has(CALLS)
    mine = outbound(7, OTHER)
    router.path.install([LegOrder(mine, 0)])
    router.lab.out(Gre(OTHER, SERVER, 7))
    router.lab.router.run("conntrack", "-D", "-p", "gre", "-s", OTHER)
    router.lab.router.run("conntrack", "-F")

    assert {match_of_leg(mine): Tally(1, 35)} == router.path.tallies_of([mine])

    assert len(router.ends.read()) > CALLS / 2, "were left waiting"


def test_only_the_ends_of_our_entries_by_others_are_told(router: Router) -> None:
    """Nothing else takes room in the socket, or has the kernel keep an entry for us."""
    lab, conntrack = router.lab, router.conntrack
    with lab.router.entered():
        conntrack.follow([1723], but_ours=True)
    conntrack.insert([LegOrder(leg, 3) for leg in (inbound(2000, 7), inbound(2001, 7))])
    conntrack.delete([inbound(2000, 7)])
    conntrack.renew(list(conntrack.entries()))
    lab.back(Gre(SERVER, EXTERNAL, 2002))  # a stray: no call's
    words = f"-I -p tcp -s {CLIENT} -d {SERVER} --sport 9 --dport 1723 -t 90 --state SYN_SENT"
    lab.router.run("conntrack", *words.split(), "-m", f"{conntrack.entry_mark:#x}")
    assert [] == router.ends.read()
    lab.router.run("conntrack", "-F")

    assert ready(router.ends.fileno())
    assert [Ended(inbound(2001, 7), Tally(0, 0))] == router.ends.read()
    others = conntrack.read_events()
    assert ["stray", "connection"] == sorted(
        ("stray" if each.is_stray else "connection" for each in others), reverse=True
    )


def test_an_entry_that_just_dies_is_no_obstacle_that_carries(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of an end first and then takes the entry out: it may be met between."""
    conntrack = router.conntrack
    router.has(1)
    leg = inbound(2001, 1)
    seen: list[int] = []
    look = conntrack._entry

    def dying_at_first(*asked: object) -> object:
        entry = look(*asked)  # type: ignore[arg-type]
        seen.append(1)
        return entry._replace(status=entry.status | 1 << 9) if entry and len(seen) == 1 else entry

    monkeypatch.setattr(conntrack, "_entry", dying_at_first)
    done = router.path.restore([LegOrder(leg, 0)])

    assert ({}, ()) == (done.shared, tuple(done.refused))
    assert {leg, outbound(301)} == router.carried()
    assert match_of_leg(leg) in router.path.tallies()


def test_ends_are_read_alike_whatever_the_kernel_writes_besides(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries without counters or with more attributes are laid out otherwise."""
    router.lab.router.sysctl("net.netfilter.nf_conntrack_acct", "0")
    try:
        router.has(1)
    finally:
        router.lab.router.sysctl("net.netfilter.nf_conntrack_acct", "1")
    router.calls[2] = call(2)
    router.carrier.before(legs_up([router.calls[2]]), 0.0)
    router.lab.back(Gre(SERVER, EXTERNAL, 2001), Gre(SERVER, EXTERNAL, 2002))
    router.lab.router.run("conntrack", "-D", "-p", "gre")
    assert ready(router.ends.fileno())

    told = dict(router.ends.read())

    assert {
        inbound(2001, 1): Tally(0, 0), outbound(301): Tally(0, 0),
        inbound(2002, 2): Tally(1, 35), outbound(302): Tally(0, 0),
    } == told  # fmt: skip




def test_of_several_workers_one_is_told_of_each_end(router: Router) -> None:
    """The kernel shares ends out as it does packets: by the two hosts."""
    lab, conntrack = router.lab, router.conntrack
    with lab.router.entered():
        parts = [Ends(conntrack.entry_mark, conntrack._netlink, Part(n, 3)) for n in range(3)]
    mine = [inbound(2000 + number, 7, f"10.9.0.{number}") for number in range(2, 42)]
    conntrack.insert([LegOrder(leg, 0) for leg in mine])
    lab.router.run("conntrack", "-D", "-p", "gre")
    told = [[each.leg for each in ends.read()] for ends in parts]
    for ends in parts:
        ends.close()

    assert sorted(mine) == sorted(itertools.chain.from_iterable(told))
    assert all(told)
    for number, legs in enumerate(told):
        assert all(Part(number, 3).has_leg(leg) for leg in legs)
