# ruff: noqa: INP001, T201  a script beside the pages, in no package
"""Capture the picture in docs/top.md: ``pptp-nat top`` in a laboratory of 20 clients.

Needs root.  Prints the screen; run it as ``python -m docs.capture_top``.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time

from pptp_nat.lab.network import Lab
from pptp_nat.lab.peers import Call, Loop, Station
from pptp_nat.lab.router import daemon
from tests.terminal import Terminal

CLIENTS = 20
SECONDS = 13.0  # so that there has been a look at who was last heard


def main() -> int:
    """Capture one screen."""
    with (
        Lab(inside=CLIENTS) as lab,
        contextlib.closing(Loop()) as loop,
        daemon(lab) as running,
    ):
        hosts = [*lab.inside, *lab.outside]
        stations = [Station(h.name, loop, functools.partial(lab.open_socket, h)) for h in hosts]
        stations[-1].listen()
        dialled = [each.dial(lab.outside[0].address) for each in stations[:-1]]
        loop.run_until(lambda: all(each.established for each in dialled))
        calls = [each.call(7) for each in dialled]
        loop.run_until(lambda: all(each.up for each in calls))
        terminal = Terminal("top", "--socket", str(running.socket), columns=132, lines=30)
        calls += [stations[-1].named(each.label) for each in calls[:-3]]
        ends = time.monotonic() + SECONDS
        terminal.until(
            lambda _: time.monotonic() > ends, meanwhile=functools.partial(_talk, loop, calls)
        )
        print("\n".join(line.rstrip() for line in terminal.screen.display))
        terminal.press("q")
        terminal.process.wait(10)
        terminal.close()
    return 0


def _talk(loop: Loop, calls: list[Call]) -> None:
    """Have each call say more than the one before it."""
    for number, call in enumerate(calls, 1):
        for _ in range(number % 7 + 1):
            call.say(padding=40 * number)
    loop.run_dry(0)


if __name__ == "__main__":
    sys.exit(main())
