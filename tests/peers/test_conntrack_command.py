"""``pptp-nat conntrack`` where somebody, or nobody, translates; conntrack is the oracle."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pptp_nat.lab.network import missing

from .conftest import By, World

pytestmark = pytest.mark.peers
PROGRAM = [sys.executable, "-m", "pptp_nat", "conntrack"]


def two_clients(world: Callable[..., World], by: By) -> World:
    """Have two inside clients dial with one call ID, and let both ends of each call speak."""
    if why := missing(["conntrack"]):
        pytest.skip(why)
    made = world(by, inside=2)
    made.lab.sysctl(made.lab.router, "net.netfilter.nf_conntrack_acct", "1")
    server = made.station(made.lab.outside[0])
    server.listen()
    calls = [
        made.dial(made.station(host, call_ids=[7]), made.lab.outside[0].address).call()
        for host in made.lab.inside
    ]
    calls = made.up(calls)
    for call in calls:
        call.say(3)
    made.loop.run_dry(0.2)
    return made


def told(world: World, *argv: str, text: str | None = None) -> tuple[int, dict[str, Any]]:
    ran = world.lab.run(world.lab.router, [*PROGRAM, *argv, "-o", "json"], text=text, check=False)
    assert "Traceback" not in ran.stderr
    return ran.returncode, json.loads(ran.stdout)


def essence(value: dict[str, Any]) -> list[Any]:
    """Return what a table is whatever it was read from: without times and places."""
    return sorted(
        json.dumps([e["original"], e["reply"], e["state"], e["unreplied"], e["mark"]])
        for tunnel in value["tunnels"]
        for e in itertools.chain(
            tunnel["control_connections"], *(call["entries"] for call in tunnel["calls"])
        )
    )


@pytest.mark.parametrize(
    ("by", "code", "expected"),
    [
        ("conntrack", 0, {"calls_healthy"}),
        ("kernel helper", 0, {"calls_healthy"}),
        ("nothing", 3, {"no_helper", "keys_collide"}),
    ],
)
def test_the_live_table_and_every_listing_of_it_tell_the_same(
    world: Callable[..., World], by: By, code: int, expected: set[str]
) -> None:
    """Read over ctnetlink, by conntrack in three forms, and out of /proc."""
    made = two_clients(world, by)
    router = made.lab.router

    live = told(made)
    with made.lab.entered(router):
        # What this thread's /proc shows is of the namespace that it is in.
        proc = Path("/proc/thread-self/net/nf_conntrack")
        listings = {"proc": proc.read_text() if proc.exists() else None}
    for form in ("", "extended,id,ktimestamp", "xml"):
        options = ["-o", form] if form else []
        listings[form or "text"] = made.lab.run(router, ["conntrack", "-L", *options]).stdout

    assert code == live[0]
    assert expected == {each["rule"] for each in live[1]["diagnoses"]}
    assert 2 == len(live[1]["tunnels"])
    assert {"kernel helper": {"helper"}, "conntrack": {"pptp-nat"}, "nothing": {"nobody"}}[by] == {
        call["by"] for tunnel in live[1]["tunnels"] for call in tunnel["calls"]
    }
    for form, listing in listings.items():
        if listing is not None:
            again = told(made, "-", text=listing)
            assert essence(live[1]) == essence(again[1]), form
            assert expected == {each["rule"] for each in again[1]["diagnoses"]}, form
            assert 0 == again[1]["garbage"]


def test_following_tells_what_comes_and_goes(world: Callable[..., World]) -> None:
    """A call that nobody pairs: its entries, and then what is wrong with them."""
    if why := missing(["conntrack"]):
        pytest.skip(why)
    made = world("nothing", inside=1)
    process = made.lab.popen(
        made.lab.router, [*PROGRAM, "--follow", "-o", "json"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    seen: list[dict[str, Any]] = []
    rest = b""
    # It is listening once it tells an entry that is made now.
    server = made.station(made.lab.outside[0])
    server.listen()
    client = made.station(made.lab.inside[0])

    def until(done: Callable[[], bool], act: Callable[[], object]) -> None:
        nonlocal rest
        for _ in range(200):
            act()
            made.loop.run_dry(0.02)
            # Read past Python's buffer: what lies in there would not be waited for.
            while select.select([process.stdout], [], [], 0.03)[0]:
                octets = os.read(process.stdout.fileno(), 1 << 16)
                assert octets, "it has ended"
                *lines, rest = (rest + octets).split(b"\n")
                seen.extend(map(json.loads, lines))
            if done():
                return
        pytest.fail(f"waited in vain; it has said {seen}")

    def connected() -> bool:
        return any(e.get("entry", {}).get("state") == "ESTABLISHED" for e in seen)

    until(connected, lambda: made.dial(client, made.lab.outside[0].address))
    call = next(iter(client.connections[-1].calls.values()), None) or client.connections[-1].call()
    made.up([call])
    other = made.other_end(call)
    until(
        lambda: "no_helper" in {e["diagnosis"]["rule"] for e in seen if e["change"] == "found"},
        lambda: (call.say(), other.say()),
    )
    made.lab.run(made.lab.router, ["conntrack", "-D", "-p", "tcp"])
    until(
        lambda: "no_helper" in {e["diagnosis"]["rule"] for e in seen if e["change"] == "over"},
        lambda: None,
    )

    assert {"new", "update", "destroy"} <= {e["change"] for e in seen}
    made.lab.end(process)


def test_a_file_that_is_not_there_is_one_line(world: Callable[..., World]) -> None:
    made = world("nothing", inside=1)
    ran = made.lab.run(made.lab.router, [*PROGRAM, "/nowhere/table"], check=False)

    assert (1, "") == (ran.returncode, ran.stdout)
    assert "pptp-nat: /nowhere/table: No such file or directory\n" == ran.stderr
