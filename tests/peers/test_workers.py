"""Several workers: one router to everybody outside, and no call hangs on any of them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pptp_nat.core.parts import worker_of
from pptp_nat.lab.control import Call
from pptp_nat.lab.peers import Station
from pptp_nat.lab.router import daemon

from .conftest import World
from .test_metrics import scrape
from .test_restarts import KEPT, Churn
from .test_tables import Events

pytestmark = pytest.mark.kernel

CLIENTS = 12
TWO = ("--workers", "2")
PRESERVE = '[call_ids]\nallocation = "preserve"\n'


def dialled(here: World) -> tuple[Station, list[Station], list[Call]]:
    """Have all inside hosts call one server with one call ID; return who, and the calls."""
    server = here.station(here.lab.outside[0])
    server.listen()
    return dialled_at(here, server, 1)


def dialled_at(
    here: World, server: Station, call_id: int
) -> tuple[Station, list[Station], list[Call]]:
    """Have all inside hosts call *server*, each with *call_id*."""
    clients = [
        here.station(host, call_ids=itertools.count(call_id)) for host in here.lab.inside
    ]
    connections = [here.dial(each, here.lab.outside[0].address) for each in clients]
    return server, clients, here.up(each.call() for each in connections)


def workers_of(here: World) -> list[int]:
    """Return the process IDs of the workers."""
    assert here.daemon is not None
    assert here.daemon.pid is not None
    pid = here.daemon.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait(here: World, done: Callable[[], bool], what: str) -> None:
    """Wait until *done*, for which no packet need come."""
    assert here.loop.run_until(done, 30, every=0.1), f"waited in vain until {what}"


def log_of(here: World) -> str:
    """Return what the daemon has written to its log."""
    assert here.daemon is not None
    return here.daemon.log


def shares(here: World) -> dict[int, int]:
    """Return how many packets each queue has had."""
    path = "/proc/net/netfilter/nfnetlink_queue"
    text = here.lab.run(here.lab.router, ["cat", path]).stdout
    rows = [line.split() for line in text.splitlines()]
    return {int(row[0]): int(row[7]) for row in rows}


def test_clients_of_one_server_with_one_call_id_speak_through_two_workers(
    world: Callable[..., World],
) -> None:
    here = world("conntrack", inside=CLIENTS, options=TWO)
    _, _, calls = dialled(here)

    here.all_hear(calls)
    rows = here.listed(CLIENTS, "--state", "up")

    assert CLIENTS == len({row["external"]["call_id"] for row in rows})
    assert CLIENTS == len({row["id"] for row in rows})
    assert {0, 1} == {row["external"]["call_id"] % 2 for row in rows}
    assert {1723, 1724} == {number for number, count in shares(here).items() if count > 10}
    assert 2 * CLIENTS == len(here.entries())


def test_a_connection_stays_with_the_worker_that_everybody_computes(
    world: Callable[..., World],
) -> None:
    """A kernel assumption: the rules' program, the events' filter and Python say the same."""
    here = world("conntrack", inside=CLIENTS, options=TWO)
    server, _, calls = dialled(here)
    remote = socket.inet_aton(here.lab.outside[0].address)
    expected = Counter(
        worker_of(socket.inet_aton(host.address), remote, 2) for host in here.lab.inside
    )

    numbers = [call.peer_id for call in calls[1::2]]

    assert expected == Counter(number % 2 for number in numbers if number is not None)
    assert 0 < expected[0] < CLIENTS
    del server


def test_a_worker_that_is_killed_is_back_and_no_call_has_noticed(
    world: Callable[..., World],
) -> None:
    here = world("conntrack", inside=CLIENTS, options=TWO)
    server, clients, calls = dialled(here)
    before = here.listed(CLIENTS, "--state", "up")
    first, second = workers_of(here)

    os.kill(first, signal.SIGKILL)
    here.all_hear(calls)  # the kernel carries them
    wait(here, lambda: _back(here, {second}), "there is a new worker")
    # All of them place one more call, the ones whose worker was away too.
    more = here.up(each.connections[0].call() for each in clients)
    here.all_hear([*calls, *more])
    after = here.listed(2 * CLIENTS, "--state", "up")

    assert {row["id"] for row in before} < {row["id"] for row in after}
    assert 2 * CLIENTS == len({row["external"]["call_id"] for row in after})
    for each in (*clients, server):
        for connection in each.connections:
            connection.close()
    here.until_no_entry_is_left()


def _back(here: World, others: set[int]) -> bool:
    """Whether `status` is content with two workers, one of which is not of *others*."""
    assert here.daemon is not None
    fresh = set(workers_of(here)) - others
    return len(fresh) == 1 and here.daemon.ask("status", check=False).returncode == 0 and (
        "worker-back" in here.daemon.log
    )


@pytest.mark.parametrize("counts", [(1, 3, 2), (4, 1)])
def test_calls_outlive_any_change_of_the_count_of_workers(
    world: Callable[..., World], counts: tuple[int, ...]
) -> None:
    """Numbers that one worker gave are another's to give now: nobody gets them twice."""
    here = world("nothing", inside=CLIENTS)
    server = here.station(here.lab.outside[0])
    server.listen()
    clients = [here.station(each, call_ids=itertools.count(1)) for each in here.lab.inside]
    calls: list[Call] = []
    for count in counts:
        with daemon(here.lab, datapath="conntrack", options=("--workers", str(count))) as running:
            here.daemon = running
            if calls:
                here.all_hear(calls, count=2)
            else:
                for each in clients:
                    here.dial(each, here.lab.outside[0].address)
            calls += here.up(each.connections[0].call() for each in clients)
            here.all_hear(calls, count=2)
            rows = here.listed(len(calls) // 2, "--state", "up")

            assert len(rows) == len({row["external"]["call_id"] for row in rows})
            assert len(rows) == len({row["id"] for row in rows})
            assert 2 * len(rows) == len(here.entries())
            if count == counts[-1]:
                for each in (*clients, server):
                    for connection in each.connections:
                        connection.close()
                here.until_no_entry_is_left()


def test_what_is_listed_measured_and_told_is_what_conntrack_has(
    world: Callable[..., World],
) -> None:
    here = world("conntrack", inside=CLIENTS, options=TWO, metrics="127.0.0.1:9723")
    assert here.daemon is not None
    events = Events(here)
    _, _, calls = dialled(here)
    here.all_hear(calls, count=5)

    status = here.daemon.status()
    rows = here.listed(CLIENTS)
    values = scrape(here)

    assert 2 * CLIENTS == len(here.entries())
    assert CLIENTS == status["calls"]["up"] == values["pptp_nat_calls", "up"]
    assert CLIENTS == status["connections"]["open"]
    assert [1723, 1724] == [queue["queue"] for queue in status["queues"] if queue["bound"]]
    assert CLIENTS == values["pptp_nat_calls_established_total",]
    assert CLIENTS == values["pptp_nat_clients",]
    assert CLIENTS == values["pptp_nat_call_setup_duration_seconds_count",]
    assert 2 == values["pptp_nat_workers",]
    assert 0 == values["pptp_nat_worker_restarts_total",]
    carried = sum(row["counters"][way]["packets"] for row in rows for way in row["counters"])
    assert len(calls) * 5 == carried
    assert carried == sum(values["pptp_nat_gre_packets_total", way]
                          for way in ("to_inside", "to_remote"))  # fmt: skip

    client = here.lab.inside[0].address
    assert "1" in here.daemon.ask("clear", "--client", client).stdout
    wait(here, lambda: len(events.told("destroy")) == 1, "the end is told")
    assert {row["id"] for row in rows} == {each["call"]["id"] for each in events.told("new")}
    assert CLIENTS == len({each["connection"] for each in events.told("message")})
    assert CLIENTS - 1 == len(here.listed(CLIENTS - 1, "--state", "up"))


def test_a_reload_reaches_all_workers_or_none(world: Callable[..., World]) -> None:
    here = world("conntrack", inside=CLIENTS, options=TWO, config="", metrics="127.0.0.1:9723")
    assert here.daemon is not None
    assert here.daemon.pid is not None
    server, clients, calls = dialled(here)
    file = here.lab.directory / "pptp-nat.toml"

    file.write_text("[limits]\ncalls_per_connection = 1\nkalls = 2\n")
    os.kill(here.daemon.pid, signal.SIGHUP)
    wait(here, lambda: "reload-refused" in log_of(here), "it is refused")
    assert 0 == scrape(here)["pptp_nat_config_last_reload_successful",]
    calls += here.up(each.connections[0].call() for each in clients)
    file.write_text("[limits]\ncalls_per_connection = 2\n")
    os.kill(here.daemon.pid, signal.SIGHUP)
    wait(here, lambda: log_of(here).count("event=reloaded") == 3, "it is taken over by all")
    refused = [each.connections[0].call() for each in clients]
    here.until(lambda: all(each.state == "refused" for each in refused), "all are refused")

    here.all_hear(calls)
    del server


def test_a_clean_stop_leaves_nothing_but_what_carries_calls(
    world: Callable[..., World],
) -> None:
    here = world("conntrack", inside=CLIENTS, options=TWO)
    assert here.daemon is not None
    _, _, calls = dialled(here)
    workers = workers_of(here)

    assert 0 == here.daemon.stop()

    assert [] == [each for each in workers if Path(f"/proc/{each}").exists()]
    assert {} == shares(here)
    assert "PPTP_NAT" not in here.lab.run(here.lab.router, ["iptables-save"]).stdout
    assert [] == list(here.lab.directory.glob("*worker*"))
    here.all_hear(calls)
    assert "level=error" not in here.daemon.log


def test_without_their_supervisor_workers_end_and_another_one_goes_on(
    world: Callable[..., World],
) -> None:
    here = world("conntrack", inside=CLIENTS, options=TWO)
    assert here.daemon is not None
    _, clients, calls = dialled(here)
    workers = workers_of(here)

    here.daemon.kill()
    wait(here, lambda: not any(Path(f"/proc/{each}").exists() for each in workers), "they end")
    here.all_hear(calls)
    here.daemon.start()
    calls += here.up(each.connections[0].call() for each in clients)

    here.all_hear(calls)
    assert 2 * CLIENTS == len({r["external"]["call_id"] for r in here.listed(2 * CLIENTS)})


def test_no_worker_gives_a_number_that_the_routers_own_client_has(
    world: Callable[..., World],
) -> None:
    """Each client prefers the router's own number; its worker does not see the router's calls."""
    here = world("conntrack", inside=CLIENTS, options=TWO, config=PRESERVE)
    server = here.station(here.lab.outside[0])
    server.listen()
    own = here.station(here.lab.router, call_ids=itertools.count(100))
    first = here.dial(own, here.lab.outside[0].address)
    here.up(first.call() for _ in range(2))  # 100 and 101: one is of either worker's part
    _, _, calls = dialled_at(here, server, 100)

    here.all_hear(calls)
    rows = here.listed(CLIENTS + 2, "--state", "up")

    assert CLIENTS + 2 == len({row["external"]["call_id"] for row in rows})


def test_workers_are_killed_while_calls_come_and_go(world: Callable[..., World]) -> None:
    """What lasts hears its own all the time, and what is over leaves nothing behind."""
    here = world("conntrack", inside=CLIENTS, options=("--workers", "3"), config=KEPT["config"])
    assert here.daemon is not None
    churn = Churn(here, CLIENTS // 2)
    for back in (1, 2):
        for _ in range(30):
            churn.step()
        os.kill(churn.lots.choice(workers_of(here)), signal.SIGKILL)
        for _ in range(20):
            churn.step()
        wait(here, lambda back=back: log_of(here).count("worker-back") == back, "it is back")
        churn.all_arrives()
    churn.leave()

    here.until_no_entry_is_left()
    assert [] == here.listed(0)
    assert "fault" not in here.daemon.log
