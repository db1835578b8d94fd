"""The peers in C do what the bench believes of them: through a router, and without one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from benchmarks import machine, paths, programs
from benchmarks.measures.gre import DIRECTIONS, bursts, delays
from benchmarks.measures.setup import IN_FLIGHT
from benchmarks.paths import CONNTRACK, FIRST_FREE_SLOT, WIRE, Lab, Way
from benchmarks.plan import QUICK, Run
from benchmarks.shell import BenchError

pytestmark = pytest.mark.kernel
CALLS, SINGLE = 64, 12  #: of a bank; those with a connection of their own


def missing() -> str | None:
    if os.geteuid():
        return "not root: the bench makes network namespaces"
    if not shutil.which("gcc"):
        return "no gcc: the peers are in C"
    try:
        machine.check()
    except BenchError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if why := missing():
        pytest.skip(why)
    build = tmp_path_factory.mktemp("bench")
    programs.compile_peers(build)
    return Run(QUICK, build, lambda _line: None)


@pytest.fixture(scope="module", params=[WIRE, CONNTRACK], ids=lambda way: way.name)
def lab(run: Run, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Have most of the calls share connections."""
    way: Way = request.param
    built = Lab(way, run.build, suffix="t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ALONE", SINGLE)
        try:
            built.grow(2 * CALLS)
            yield built
        finally:
            built.close()


def test_several_calls_of_a_connection_come_up_with_numbers_of_their_own(lab: Lab) -> None:
    assert [CALLS, CALLS] == [bank.up for bank in lab.banks]
    if lab.daemon:
        assert 2 * CALLS == lab.daemon.calls_up()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_packet_of_a_burst_comes_to_its_own_client(
    run: Run, lab: Lab, direction: str
) -> None:
    sample = bursts(run, lab, direction, 64, 2 * CALLS)

    assert (2 * CALLS, 0, 0) == (sample["up"], sample["wrong"], sample["lost"])
    assert sample["received"] == sample["sent"] > 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_packet_is_late_from_when_it_was_due(run: Run, lab: Lab, direction: str) -> None:
    sample = delays(run, lab, direction, 2 * CALLS)

    assert (0, 0) == (sample["wrong"], sample["early"])
    assert 0 < sample["p50_us"] <= sample["p99_us"] <= sample["p999_us"] <= sample["max_us"]
    assert sample["per_second"] == pytest.approx(sample["capacity"] / 2, abs=1)


def test_echoes_go_on_until_it_is_enough(lab: Lab) -> None:
    echoing, dialing = (bank.client for bank in lab.banks)
    echoing.tell("echo 0 60000")
    dialed = dialing.ask(f"dial {FIRST_FREE_SLOT} 20 {IN_FLIGHT} 1 1000")
    echoing.tell("enough")
    echoed = echoing.answer()
    cleared = dialing.ask(f"clear {FIRST_FREE_SLOT} 20 {IN_FLIGHT}")

    assert (20, 0, 0) == (dialed["done"], dialed["failed"], dialed["wrong"])
    assert 20 == cleared["done"]
    assert 0 < echoed["done"]
    assert (0, 0) == (echoed["failed"], echoed["wrong"])


@pytest.mark.parametrize("lab", [CONNTRACK], indirect=True, ids=lambda way: way.name)
def test_a_daemon_that_is_killed_comes_back_with_its_calls(lab: Lab) -> None:
    assert lab.daemon
    killed = lab.daemon.pid
    lab.daemon.crash_and_return()

    assert lab.daemon.pid != killed
    assert 2 * CALLS == lab.daemon.calls_up()


def test_a_way_that_cannot_have_so_many_calls_says_so(lab: Lab) -> None:
    with pytest.raises(BenchError, match="no more than 100,000 calls"):
        lab.grow(100_001)
