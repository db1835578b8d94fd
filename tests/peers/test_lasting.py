"""What happens over time: many calls one after another, restarts, and neighbours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pptp_nat.lab.control import Connection
from tests.paths import BPF, every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel

#: How a client may leave, from polite to rude.
LEAVES: tuple[Callable[[Connection], None], ...] = (
    lambda it: it.clear(next(iter(it.calls.values()))),
    Connection.stop,
    Connection.close,
    Connection.reset,
)


@every_path
def test_many_short_calls_leave_nothing(world: Callable[..., World], by: By) -> None:
    """However their clients leave, and though they come back from the same port at once."""
    here = world(by, inside=2, config="[timers]\nclosing_grace = 0.2\n")
    here.station(here.lab.outside[0]).listen()
    stays, comes = (here.station(host) for host in here.lab.inside)
    lasting = here.up([here.dial(stays, here.lab.outside[0].address).call(7)])
    for turn in range(40):
        leave = LEAVES[turn % len(LEAVES)]
        port = 40000 if leave is Connection.reset else 0
        connection = here.dial(comes, here.lab.outside[0].address, source_port=port)
        calls = here.up([connection.call(7)])
        here.all_hear(calls, count=2)
        leave(connection)
        here.until(lambda there=calls[1]: not there.up, "the other end sees it end")
        connection.close()
    here.all_hear(lasting)
    (left,) = here.listed(1)
    assert 10 == left["counters"]["to_inside"]["packets"]


@pytest.mark.parametrize("by", ["conntrack", BPF])
def test_the_kernel_carries_calls_while_nobody_watches(
    world: Callable[..., World], by: By
) -> None:
    """What is in the kernel needs no daemon: a crash stops new calls, not those that are up."""
    here = world(by, inside=2)
    assert here.daemon is not None
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.daemon.kill()
    here.all_hear(calls)


@every_path
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_calls_survive_a_new_start_of_the_daemon(
    world: Callable[..., World], by: By, end: str
) -> None:
    """An update of the program, or its crash, must not throw people out."""
    here = world(by, inside=3)
    assert here.daemon is not None
    here.station(here.lab.outside[0]).listen()
    clients = [here.station(host) for host in here.lab.inside]
    connections = [here.dial(client, here.lab.outside[0].address) for client in clients[:2]]
    calls = here.up(each.call(7) for each in connections)
    before = {each["inside"]["address"]: each["external"] for each in here.listed(2)}

    getattr(here.daemon, end)()
    here.daemon.start()

    assert before == {each["inside"]["address"]: each["external"] for each in here.listed(2)}
    here.all_hear(calls)
    calls += here.up([here.dial(clients[2], here.lab.outside[0].address).call(7)])
    here.all_hear(calls)
    connections[0].clear(calls[0])
    here.until(lambda: not calls[1].up, "a call from before is cleared")
    here.listed(2, "--state", "up")
    here.all_hear(calls[2:])


@every_path
def test_a_call_that_the_operator_clears_carries_nothing_any_more(
    world: Callable[..., World], by: By
) -> None:
    here = world(by, inside=2)
    assert here.daemon is not None
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.daemon.ask("clear", "--client", here.lab.inside[0].address)

    (left,) = here.listed(1, "--state", "up")
    assert here.lab.inside[1].address == left["inside"]["address"]
    calls[1].say(3)
    here.all_hear(calls[2:])
    assert 0 == calls[0].right


def test_two_routers_of_one_machine_do_not_meet(world: Callable[..., World]) -> None:
    """Each has its namespace, its queues, its socket and its calls."""
    one, other = world("conntrack", inside=1), world("queue", inside=1)
    calls = []
    for here in (one, other):
        here.station(here.lab.outside[0]).listen()
        connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
        calls.append(here.up([connection.call(7)]))
    for here, both in zip((one, other), calls, strict=True):
        here.all_hear(both)
        here.listed(1)
