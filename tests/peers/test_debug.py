"""`pptp-nat debug` beside real traffic: what it sees, and what it leaves alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pptp_nat.lab.peers import Call
from pptp_nat.linux.datapath import Match
from pptp_nat.linux.gre_tap import HEADERS, MOST_LEGS, GreTap
from tests.paths import every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel


def two_calls(world: Callable[..., World], by: By) -> tuple[World, list[Call]]:
    """Return a world with a call of each of two clients, ends in pairs."""
    here = world(by, inside=2)
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    return here, calls


class Debug:
    """A running ``pptp-nat debug`` in the router, and what it has told so far."""

    def __init__(self, here: World, *argv: str, prefix: tuple[str, ...] = ()) -> None:
        assert here.daemon is not None
        self._here = here
        command = [sys.executable, "-m", "pptp_nat", "debug", "--socket", str(here.daemon.socket)]
        self.process = here.lab.popen(
            here.lab.router, [*prefix, *command, "-o", "json", "--for", "1h", *argv],
            stdout=subprocess.PIPE, log=here.lab.directory / "debug.log",
        )  # fmt: skip
        self.records: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of one type."""
        return [each for each in self.records if each["type"] == kind]

    def end(self) -> None:
        """End it as Ctrl-C would."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 130
        self._thread.join()

    @property
    def complaints(self) -> str:
        return (self._here.lab.directory / "debug.log").read_text()


@every_path
def test_a_client_is_traced_and_nobody_else(world: Callable[..., World], by: By) -> None:
    """Messages by the daemon, GRE by who asks, on either data path."""
    here, calls = two_calls(world, by)
    debug = Debug(here, here.lab.inside[0].address, "--mask", "all")

    def looks() -> bool:
        here.all_hear(calls, count=1)
        return {each["to"] for each in debug.of("gre")} == {"inside", "remote"}

    assert here.loop.run_until(looks, 30, every=0.2)
    here.all_hear(calls, count=5)
    calls[0].connection.clear(calls[0])
    assert here.loop.run_until(lambda: len(debug.of("destroy")) == 1, 30, every=0.1)
    (destroyed,) = debug.of("destroy")
    for way, counted in destroyed["call"]["counters"].items():
        to = way.removeprefix("to_")

        def numbers(to: str = to) -> list[int]:
            return [each["seq"] for each in debug.of("gre") if each["to"] == to]

        last = counted["packets"] - 1
        assert here.loop.run_until(lambda last=last, n=numbers: last in n(), 30, every=0.1)
        assert list(range(numbers()[0], last + 1)) == numbers()
        assert len(numbers()) > 5
    debug.end()

    assert len(debug.of("data")) == len(debug.of("gre"))
    assert {destroyed["call"]["id"]} == {each["call"] for each in debug.of("gre")}
    assert {"Call-Clear-Request", "Call-Disconnect-Notify"} == {
        each["message"] for each in debug.of("message")
    }
    assert here.lab.inside[1].address not in json.dumps(debug.records)
    assert debug.complaints == ""


@every_path
def test_each_packet_is_told_once_also_where_bridges_translate(
    world: Callable[..., World], by: By
) -> None:
    """What is translated to a host of the same bridge may never get as far as IP."""
    here = world(by, inside=3, publish=0, hairpin="external")
    here.station(here.lab.inside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.router.address).call(7)
        for host in here.lab.inside[1:]
    )
    debug = Debug(here, "all", "--mask", "gre")

    def told() -> set[tuple[int, str]]:
        return {(each["call"], each["to"]) for each in debug.of("gre")}

    def looks() -> bool:
        here.all_hear(calls, count=1)
        return len(told()) == 4

    assert here.loop.run_until(looks, 30, every=0.2)
    here.all_hear(calls, count=3)
    last = {call.sent - 1 for call in calls}

    def all_told() -> bool:
        return all(
            last & {e["seq"] for e in debug.of("gre") if (e["call"], e["to"]) == way}
            for way in told()
        )

    assert here.loop.run_until(all_told, 30, every=0.1)
    debug.end()
    for way in told():
        numbers = [e["seq"] for e in debug.of("gre") if (e["call"], e["to"]) == way]
        assert list(range(numbers[0], numbers[-1] + 1)) == numbers


def test_it_leaves_nothing_behind(world: Callable[..., World]) -> None:
    """Killed or over, the daemon looks at messages no longer."""
    here, calls = two_calls(world, "conntrack")

    def subscribers() -> int:
        assert here.daemon is not None
        status = json.loads(here.daemon.ask("status", "-o", "json").stdout)
        number: int = status["api"]["subscribers"]
        return number

    debug = Debug(here, "all", "--mask", "control,gre")
    assert here.loop.run_until(lambda: subscribers() == 1, 30, every=0.2)
    debug.process.kill()
    debug.process.wait(30)
    assert here.loop.run_until(lambda: subscribers() == 0, 30, every=0.2)
    here.all_hear(calls)


def test_without_the_right_to_look_the_counters_are_told(world: Callable[..., World]) -> None:
    """And it says so."""
    here, calls = two_calls(world, "conntrack")
    debug = Debug(here, "all", "--mask", "gre", prefix=("setpriv", "--bounding-set=-net_raw"))

    def both_are_told() -> bool:
        here.all_hear(calls, count=2)
        return len({each["call"] for each in debug.records}) == 2

    assert here.loop.run_until(both_are_told, 30, every=0.2)
    debug.end()
    assert "CAP_NET_RAW: run it as root); counters are shown instead" in debug.complaints
    assert {"counts"} == {each["type"] for each in debug.records}
    assert all(each["grown"]["to_inside"]["packets"] > 0 for each in debug.records)


def test_in_another_network_namespace_it_says_where_to_look(world: Callable[..., World]) -> None:
    """GRE would be waited for in vain."""
    here, _ = two_calls(world, "conntrack")
    assert here.daemon is not None
    done = subprocess.run(
        [sys.executable, "-m", "pptp_nat", "debug", "all", "--socket", str(here.daemon.socket),
         "--mask", "gre"], capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert f"nsenter -n -t {here.daemon.pid}`" in done.stderr


def test_no_payload_leaves_the_kernel_that_was_not_asked_for(world: Callable[..., World]) -> None:
    """The filter cuts it off; what is not there cannot be shown by mistake."""
    here, calls = two_calls(world, "conntrack")
    with here.lab.entered(here.lab.router):
        tap = GreTap(HEADERS)
    try:
        here.all_hear(calls, count=1, padding=800)
        assert tap.read() == []
        # More legs than a program holds: all GRE with call IDs.
        tap.watch([Match(bytes(4), bytes(4), 0)] * (MOST_LEGS + 1))
        here.all_hear(calls, count=1, padding=800)
        tapped = tap.read()
    finally:
        tap.close()

    assert len(tapped) == 4
    assert {len(octets) for octets, _ in tapped} == {HEADERS}
