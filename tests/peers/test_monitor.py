"""`pptp-nat monitor` on the router, beside the daemon: both sides of the translation."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.items import dotted
from pptp_nat.core.messages import Role
from pptp_nat.lab.real_peers import Client, absent, converse, start_server

from .conftest import World

pytestmark = pytest.mark.kernel


class Monitor:
    """The command, in the router, until it has said enough."""

    def __init__(self, world: World, folder: Path, *argv: str) -> None:
        self._world = world
        self._said, self._log = folder / "said", folder / "log"
        with self._said.open("wb") as out:
            self.process = world.lab.popen(
                world.lab.router,
                [sys.executable, "-m", "pptp_nat", "monitor", "-o", "json", *argv],
                stdout=out.fileno(),
                log=self._log,
            )
        self.until(self._is_reading, "it has opened its sockets")

    def _is_reading(self) -> bool:
        """Whether a socket is bound to ETH_P_ALL; before that it is listed, and hears nothing."""
        sockets = self._world.lab.run(self._world.lab.router, ["cat", "/proc/net/packet"]).stdout
        return any(line.split()[3:6:2] == ["0003", "1"] for line in sockets.splitlines()[1:])

    def until(self, done: Callable[[], bool], what: str) -> None:
        found = self._world.loop.run_until(done, 20, every=0.1)
        said = self._said.read_text() + self._log.read_text()
        assert found, f"waited in vain until {what}: {said}"

    @property
    def said(self) -> list[dict[str, Any]]:
        lines = self._said.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines]

    def status(self, field: str) -> str:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{field}:")).split(":")[1].strip()

    def end(self) -> int:
        self.process.send_signal(2)
        return self.process.wait(20)


def test_the_monitor_shows_each_call_on_both_sides_of_the_nat(
    world: Callable[..., World], tmp_path: Path
) -> None:
    here = world("conntrack", inside=2)
    kept = tmp_path / "kept.pcapng"
    monitor = Monitor(here, tmp_path, "--write", str(kept))
    here.station(here.lab.outside[0]).listen()
    calls = [
        here.dial(here.station(host), here.lab.outside[0].address).call(0xAB01)
        for host in here.lab.inside
    ]
    both = here.up(calls)
    here.all_hear(both, count=20)

    def pairs() -> list[dict[str, Any]]:
        return [each for each in monitor.said if each["event"] == "translation"]

    monitor.until(lambda: len(pairs()) == 2, "both calls were found on both sides")
    listed = here.listed(2, "--state", "up")
    seen = {
        (call["pns"]["address"], call["pns"]["call_id"]): call["other_side"]["call"]
        for call in (each["call"] for each in pairs())
    }

    assert {(c["external"]["address"], c["external"]["call_id"]) for c in listed} == set(seen)
    assert monitor.status("Uid").split() == ["65534"] * 4
    assert int(monitor.status("CapEff"), 16) == 0
    assert monitor.end() == 0

    analysis = analyze([kept])
    assert len(analysis.translations) == 2
    assert [Role.PNS] * 2 == [each.hidden for each in analysis.translations]
    assert {40} == {
        sum(flow.packets for flow in call.gre.values()) for call in analysis.calls
    }
    assert [] == [
        (flow.source, flow.quality.lost, flow.quality.duplicates)
        for call in analysis.calls
        for flow in call.gre.values()
        if flow.quality is None or flow.quality.lost or flow.quality.duplicates
    ]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_what_the_monitor_keeps_is_what_tshark_reads(
    world: Callable[..., World], tmp_path: Path
) -> None:
    """And nothing else of the traffic is in there."""
    here = world("nothing", inside=1)
    kept = tmp_path / "kept.pcapng"
    monitor = Monitor(here, tmp_path, "--write", str(kept))
    here.station(here.lab.outside[0]).listen()
    call = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address).call(7)
    here.up([call])
    with here.lab.open_socket(here.lab.inside[0], socket.SOCK_DGRAM) as other:
        other.sendto(b"not for us", (here.lab.outside[0].address, 1723))
    monitor.until(
        lambda: any(e["event"] == "call" and e["call"]["state"] == "up" for e in monitor.said),
        "the call was seen to be up",
    )
    assert monitor.end() == 0
    read = subprocess.run(
        ["tshark", "-r", kept, "-T", "fields", "-e", "frame.protocols",
         "-e", "pptp.control_message_type"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    types = [line.split("\t")[1] for line in read if "pptp" in line.split("\t")[0]]

    assert {"1", "2", "7", "8"} <= set(types)
    assert [] == [line for line in read if "pptp" not in line and "tcp" not in line
                  and "gre" not in line]  # fmt: skip
    seen = analyze([kept])
    # each control message was on both sides of the router
    assert len(types) == sum(
        sum(connection.messages.values()) for connection in seen.control_connections
    )


@pytest.mark.peers
@pytest.mark.skipif(absent() is not None, reason=absent() or "all there")
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_pptp_linux_and_pptpd_are_followed_as_tshark_reads_them(
    world: Callable[..., World], tmp_path: Path
) -> None:
    """Recorded on the router, both sides of the NAT at once, and read from the file."""
    here = world("conntrack", inside=2)
    kept = tmp_path / "kept.pcapng"
    monitor = Monitor(here, tmp_path, "--write", str(kept))
    start_server(here.lab, here.lab.outside[0])
    server = here.lab.outside[0].address
    clients = [Client(here.lab, host, server, here.loop, call_id=77) for host in here.lab.inside]
    report = converse(here.loop, clients)
    assert report.good, report
    for client in clients:
        client.hang_up()
    monitor.until(
        lambda: sum(e["event"] == "call" and e["call"]["state"] == "gone" for e in monitor.said)
        >= 4,
        "the calls were seen to end",
    )
    assert monitor.end() == 0

    found = analyze([kept])
    assert len(found.calls) == 4
    assert sorted(each.inside.pns.call_id or 0 for each in found.translations) == [77, 77]
    read = subprocess.run(
        ["tshark", "-r", kept, "-Y", "gre.key.call_id", "-T", "fields", "-e", "ip.src", "-e",
         "ip.dst", "-e", "gre.key.call_id", "-e", "gre.sequence_number", "-e",
         "gre.ack_number", "-e", "ip.id"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    # a packet that passes several interfaces is in the file as often, and counted once
    theirs = Counter(tuple(line.split("\t")[:3]) for line in set(read))
    ours = Counter({
        (dotted(flow.source), dotted(flow.destination), str(flow.key)): flow.packets
        for call in found.calls
        for flow in call.gre.values()
    })  # fmt: skip
    assert theirs == ours
