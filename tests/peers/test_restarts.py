"""Crashes and restarts under calls that come and go, with peers that tell who says what to whom."""

from __future__ import annotations

import functools
import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pptp_nat.core.states import CallState, End
from pptp_nat.lab.control import Call, Connection
from pptp_nat.lab.peers import Station
from pptp_nat.state import records, statefile
from pptp_nat.state.contents import Contents
from tests.paths import at_great_length, at_length, every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel

#: Crashes in one test; ``make faults`` asks for more.
KILLS = int(os.environ.get("PPTP_NAT_KILLS", "10"))
#: Clients that stay, and as many that come and go.
CLIENTS = int(os.environ.get("PPTP_NAT_CLIENTS", "10"))
#: Rules that stay, as if the administrator had put them there, and short times.
KEPT: dict[str, Any] = {
    "options": ("--rules", "leave"),
    "config": "[timers]\nclosing_grace = 0.2\n[call_ids]\nquarantine = 1\n",
}


class Churn:
    """Clients of one server: some stay, some come and go; all say whom they speak to."""

    def __init__(self, here: World, count: int) -> None:
        self.here = here
        self.server = here.station(here.lab.outside[0])
        self.server.listen()
        # All clients count alike, so the same numbers come from each of them.
        self.stations: list[Station] = [
            here.station(host, call_ids=itertools.cycle(range(100, 1 << 16)))
            for host in here.lab.inside
        ]
        self.lasting = here.up(self.dial(station).call(7) for station in self.stations[:count])
        self.coming: list[Connection] = []
        self.lots = random.Random(4)

    def dial(self, station: Station) -> Connection:
        return self.here.dial(station, self.here.lab.outside[0].address)

    def step(self) -> None:
        """Have somebody do something, and do not wait for what comes of it."""
        station = self.lots.choice(self.stations)
        if len(self.coming) < len(self.stations) and self.lots.random() < 0.5:
            connection = station.dial(self.here.lab.outside[0].address)
            self.coming.append(connection)
        elif self.coming:
            connection = self.lots.choice(self.coming)
            up = [call for call in connection.calls.values() if call.up]
            fate = self.lots.random()
            if connection.established and not connection.closed and fate < 0.5:
                connection.call()
            elif up and fate < 0.8:
                connection.clear(up[0])
            else:
                self.coming.remove(connection)
                self.lots.choice((Connection.close, Connection.reset))(connection)
        for call in self.lots.sample(self.lasting, min(4, len(self.lasting))):
            call.say()
        self.here.loop.run_dry(0.005)

    def all_arrives(self) -> None:
        """Wait until each call that stays has heard all that its other end has ever said."""
        pairs = list(zip(self.lasting[::2], self.lasting[1::2], strict=True))
        self.here.until(
            lambda: all(a.right == b.sent and b.right == a.sent for a, b in pairs),
            "all that was said has arrived",
        )
        self.judge()

    def forget(self) -> None:
        """Let go of what is over, so that a long run does not fill this process instead."""
        for station in (*self.stations, self.server):
            station.connections[:] = [each for each in station.connections if not each.closed]
            for connection in station.connections:
                connection.received.clear()
                for number, call in list(connection.calls.items()):
                    if call.state == "gone":
                        del connection.calls[number]

    def judge(self) -> None:
        """Nothing was delivered to anybody for whom it was not."""
        calls = [call for each in self.here.stations.values() for call in each.calls()]
        assert [] == [payload for call in calls for payload in call.wrong]

    def leave(self) -> None:
        """Have everybody end all calls.

        The servers too: a client's RST that nobody in the router has read is not sent again.
        """
        for station in (*self.stations, self.server):
            for connection in station.connections:
                connection.close()


def _shown(here: World) -> dict[str, Any]:
    return {each["inside"]["address"]: each["external"] for each in here.listed(2, "--state", "up")}


def _numbers(calls: list[Call]) -> set[int]:
    return {call.peer_id for call in calls[1::2] if call.peer_id is not None}


@at_great_length
def test_no_crash_breaks_a_call_that_is_up(world: Callable[..., World], by: By) -> None:
    """Killed at any moment, again and again, while others come and go."""
    here = world(by, inside=CLIENTS, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    churn = Churn(here, CLIENTS)
    for _ in range(KILLS):
        for _ in range(churn.lots.randrange(1, 12)):
            churn.step()
        daemon.kill()
        if by in ("conntrack", "bpf"):
            here.all_hear_their_own(churn.lasting)
        for _ in range(churn.lots.randrange(4)):
            churn.step()
        daemon.start()
    churn.judge()
    assert all(call.up for call in churn.lasting)
    here.all_hear_their_own(churn.lasting)
    assert CLIENTS == len(_numbers(churn.lasting)), "no number was given twice"

    late = [churn.dial(station).call(7) for station in churn.stations]
    here.all_hear_their_own(here.up(late))
    churn.leave()
    # A RST that came while no daemon ran is not sent again: such a connection's entry is
    # gone, and it has 90 s to show that it lives.
    here.listed(0, seconds=150)
    here.until_no_entry_is_left()
    churn.judge()


@at_length
def test_a_call_is_set_up_and_ended_across_crashes(world: Callable[..., World], by: By) -> None:
    """A crash between any two messages, and each arrives translated once."""
    here = world(by, inside=1, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    server = here.station(here.lab.outside[0])
    server.listen()

    def crash() -> None:
        daemon.kill()
        daemon.start()

    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    crash()
    first = here.up([connection.call(7)])
    crash()
    here.all_hear(first)
    second = here.up([connection.call(8)])
    crash()
    here.all_hear(first + second)
    before = {each["id"]: each["external"] for each in here.listed(2)}
    crash()
    assert before == {each["id"]: each["external"] for each in here.listed(2)}
    connection.clear(first[0])
    here.until(lambda: not first[1].up and first[0].state == "gone", "the first is cleared")
    here.listed(1, "--state", "up")
    here.all_hear(second)
    assert [] == connection.unknown + [m for each in server.connections for m in each.unknown]


def test_a_call_that_ended_in_the_last_moment_stays_ended(world: Callable[..., World]) -> None:
    """On record as over, its entries still in the kernel, its control connection alive."""
    here = world("conntrack", inside=1, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    calls = here.up([connection.call(7), connection.call(8)])
    assert daemon.pid is not None
    legs = here.entries()
    daemon.kill()
    # As if the end had been recorded, and the process had died before it removed the legs.
    (journal,) = daemon.socket.with_suffix(".journal").glob("journal.*")
    contents = Contents()
    records.read(journal.read_bytes()[statefile.HEADER_SIZE :], contents)
    ended = min(contents.calls.values(), key=lambda each: each.id)
    gone = ended._replace(state=CallState.GONE, end=End.DISCONNECTED, due=time.monotonic() + 60)
    with journal.open("ab") as file:
        file.write(records.call(gone))
    daemon.start()

    assert 4 == len(legs)
    assert here.loop.run_until(lambda: len(here.entries()) == 2, every=0.05), "within seconds"
    here.listed(1)
    here.all_hear(calls[2:])


def test_counts_go_on_over_a_crash(world: Callable[..., World]) -> None:
    here = world("conntrack", inside=1, **KEPT)
    assert here.daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    calls = here.up([connection.call(7)])
    here.all_hear(calls, count=5)
    here.lab.run(here.lab.router, ["conntrack", "-D", "-p", "gre"])
    assert here.loop.run_until(lambda: len(here.entries()) == 2, every=0.05)
    here.all_hear(calls, count=6)
    here.daemon.stop()
    here.daemon.start()
    here.all_hear(calls, count=7)
    (call,) = here.listed(1)
    assert {18} == {each["packets"] for each in call["counters"].values()}


def test_entries_that_somebody_deletes_are_back_at_once(world: Callable[..., World]) -> None:
    """An administrator empties conntrack's table; the calls hardly notice."""
    here = world("conntrack", inside=3, **KEPT)
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    for _ in range(3):
        here.lab.run(here.lab.router, ["conntrack", "-F"])
        began = time.monotonic()
        assert here.loop.run_until(lambda: len(here.entries()) == 6, 30, every=0.02)
        print(f"back after {time.monotonic() - began:.2f} s")  # noqa: T201  usually 0.2 and a look
        here.all_hear(calls)


@pytest.mark.parametrize("left", ["an old copy", "nothing"])
def test_calls_outlive_the_loss_of_the_journal(world: Callable[..., World], left: str) -> None:
    """What no record tells the kernel's entries and the control connections do."""
    here = world("conntrack", inside=3, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    server = here.station(here.lab.outside[0])
    server.listen()
    clients = [here.station(host) for host in here.lab.inside]
    connections = [here.dial(each, here.lab.outside[0].address) for each in clients]
    calls = here.up(each.call(7) for each in connections[:2])
    if left == "an old copy":
        daemon.stop()
        daemon.start()
        connections[0].clear(calls[0])  # the copy does not know that
        here.until(lambda: not calls[1].up, "the call is over")
        here.listed(1, "--state", "up")
        calls = calls[2:] + here.up([connections[2].call(7)])  # nor this
    before = _shown(here)
    daemon.kill()
    for path in daemon.socket.with_suffix(".journal").glob("journal.*"):
        path.unlink()
    if left == "nothing":
        for path in daemon.state.iterdir():
            path.unlink()
    daemon.start()

    assert before == _shown(here)
    here.all_hear(calls)
    ended = calls[0]
    ended.connection.clear(ended)
    here.until(lambda: not calls[1].up, "a call that was rebuilt is cleared")
    here.listed(1, "--state", "up")
    here.all_hear(calls[2:])
    assert [] == server.connections[0].unknown + ended.connection.unknown


@every_path
def test_calls_outlive_a_reboot_of_the_router(
    world: Callable[..., World], by: By, tmp_path: Path
) -> None:
    """Nothing of the kernel is left, nothing below /run; the hosts have not noticed yet."""
    here = world(by, inside=3, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    server = here.station(here.lab.outside[0])
    server.listen()
    clients = [here.station(host) for host in here.lab.inside]
    connections = [here.dial(each, here.lab.outside[0].address) for each in clients]
    calls = here.up(each.call(7) for each in connections[:2])
    here.all_hear(calls)
    before = _shown(here)
    daemon.stop()
    for path in daemon.socket.with_suffix(".journal").iterdir():
        path.unlink()
    here.lab.run(here.lab.router, ["conntrack", "-F"])
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    another = {"/proc/sys/kernel/random/boot_id": boot_id}
    here.lab.popen = functools.partial(here.lab.popen, mounts=another)  # type: ignore[method-assign]
    daemon.start()

    assert before == _shown(here)
    here.all_hear(calls)
    connections[0].clear(calls[0])
    here.until(lambda: not calls[1].up, "a call from before is cleared")
    here.listed(1, "--state", "up")
    calls += here.up([connections[2].call(7)])
    here.all_hear(calls[2:])
    assert [] == [m for each in (*connections, *server.connections) for m in each.unknown]


def test_a_damaged_journal_is_told_and_costs_no_call(world: Callable[..., World]) -> None:
    here = world("conntrack", inside=2, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    daemon.kill()
    (journal,) = daemon.socket.with_suffix(".journal").glob("journal.*")
    octets = bytearray(journal.read_bytes())
    octets[len(octets) // 2] ^= 0xFF
    journal.write_bytes(octets)
    daemon.start()

    assert 2 == len(here.listed(2, "--state", "up"))
    here.all_hear(calls)
    assert 1 == daemon.log.count("state-damaged")
    assert Path(journal.parent, "journal.damaged").exists()
