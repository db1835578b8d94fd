"""What the tests with whole peers share: a laboratory, and what translates in its router."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pptp_nat.lab.network import Host, Lab, missing
from pptp_nat.lab.peers import Call, Connection, Loop, Station, converse
from pptp_nat.lab.router import Daemon, daemon, kernel_helper

#: Seconds for what takes milliseconds, on a machine that has much else to do.
PATIENCE = 60.0
#: Our daemon with one of its data paths, the kernel's own helper, or nothing at all.
By = Literal["conntrack", "bpf", "queue", "kernel helper", "nothing"]


@dataclass(slots=True)
class World:
    """A laboratory, its router's daemon, and the stations that were asked for."""

    lab: Lab
    loop: Loop
    daemon: Daemon | None
    stations: dict[str, Station] = field(default_factory=dict)

    def station(self, host: Host, **how: Any) -> Station:
        """Return a new PPTP peer of our own on *host*."""
        station = Station(
            host.name, self.loop, functools.partial(self.lab.open_socket, host), **how
        )
        self.stations[host.name] = station
        return station

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Serve everybody until *done*, which must come."""
        assert self.loop.run_until(done, PATIENCE), f"waited in vain until {what}"

    def dial(self, station: Station, address: str, **how: Any) -> Connection:
        """Return a control connection from *station* that is established."""
        connection = station.dial(address, **how)
        self.until(lambda: connection.established, "the control connection is established")
        return connection

    def up(self, calls: Iterable[Call]) -> list[Call]:
        """Return *calls* once they are up, each followed by its other end, also up."""
        calls = list(calls)
        self.until(lambda: all(each.up for each in calls), "the calls are up")
        both = [end for call in calls for end in (call, self.other_end(call))]
        self.until(lambda: all(each.up for each in both), "they are up at the other end too")
        return both

    def other_end(self, call: Call) -> Call:
        """Return the call of the same label at the other station."""
        return self.stations[call.connection.peer_name].named(call.label)

    def all_hear(self, calls: Iterable[Call], *, count: int = 10, padding: int = 0) -> None:
        """Let each of *calls* send *count* packets; each must hear its own, and only those."""
        calls = list(calls)
        before = [call.right for call in calls]
        converse(self.loop, calls, count=count, padding=padding, seconds=PATIENCE)
        heard = [call.right - then for call, then in zip(calls, before, strict=True)]
        assert [count] * len(calls) == heard
        assert [] == [b for call in calls for b in call.wrong]
        assert [] == [s for each in self.stations.values() for s in each.strays]

    def all_hear_their_own(self, calls: Iterable[Call], *, count: int = 3) -> None:
        """Let each of *calls* send *count* packets; each must hear its own.

        Others may come and go meanwhile: what is on its way when a call ends is a stray.
        """
        calls = list(calls)
        before = [call.right for call in calls]
        converse(self.loop, calls, count=count, seconds=PATIENCE)
        heard = [call.right - then for call, then in zip(calls, before, strict=True)]
        assert [count] * len(calls) == heard
        assert [] == [b for call in calls for b in call.wrong]

    def entries(self) -> list[str]:
        """Return conntrack's entries of GRE in the router."""
        return self.lab.run(
            self.lab.router, ["conntrack", "-L", "-p", "gre"], check=False
        ).stdout.splitlines()

    def until_no_entry_is_left(self) -> None:
        """Wait until the kernel carries nothing any more."""
        found = self.loop.run_until(lambda: not self.entries(), PATIENCE)
        assert found, self.entries()

    def listed(self, count: int, *argv: str, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        """Return what the daemon lists once that is *count* calls."""
        assert self.daemon is not None
        seen: list[dict[str, Any]] = []

        def right() -> bool:
            seen[:] = self.daemon.calls(*argv) if self.daemon else []
            return len(seen) == count

        found = self.loop.run_until(right, seconds, every=0.1)
        assert found, f"{count} calls were to be listed, not {seen}"
        return seen


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[Callable[..., World]]:
    """Give a maker of laboratories: ``world(by, inside=3, publish=0, ...)``."""
    if why := missing(["iptables", "iptables-restore", "unshare"]):
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        running: list[Daemon] = []

        def make(
            by: By, *, config: str | None = None, metrics: str = "off",
            options: Sequence[str] = (), **plan: Any,
        ) -> World:
            lab = stack.enter_context(Lab(**plan))
            loop = stack.enter_context(contextlib.closing(Loop()))
            if by == "kernel helper":
                kernel_helper(lab)
            elif by != "nothing":
                running.append(
                    stack.enter_context(
                        daemon(
                            lab, datapath=by, config=config, metrics=metrics, options=options
                        )
                    ),
                )
            return World(lab, loop, running[-1] if running else None)

        yield make
        for each in running:
            sys.stdout.write(each.log)  # shown if the test fails
