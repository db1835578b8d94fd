"""What only the data path `bpf` has: counts of gaps, and a way past the stack."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable

import pytest

from pptp_nat.lab.network import Host
from pptp_nat.lab.wire import Gre, encode_gre
from tests.paths import BPF, NO_EARLY

from .conftest import By, World
from .test_metrics import PLACE, scrape

pytestmark = pytest.mark.kernel
SIOCETHTOOL, ETHTOOL_SGRO = 0x8946, 0x2C  # linux/sockios.h, linux/ethtool.h


@pytest.mark.parametrize("by", [BPF])
def test_missing_and_late_packets_show_in_the_list_and_in_a_scrape(
    world: Callable[..., World], by: By
) -> None:
    """Loss on the way to this router: what a help desk asks for first."""
    here = world(by, inside=1, metrics=PLACE)
    server = here.station(here.lab.outside[0])
    server.listen()
    client = here.station(here.lab.inside[0])
    here.up([here.dial(client, here.lab.outside[0].address).call(7)])
    (call,) = here.listed(1)
    for number in (10, 11, 14, 13, 15):
        gre = Gre(call["external"]["call_id"], b"data", number)
        server.send_gre(here.lab.router.address, encode_gre(gre))
    here.until(
        lambda: here.listed(1)[0]["counters"]["to_inside"]["packets"] == 5, "all have arrived"
    )

    counters = here.listed(1)[0]["counters"]

    assert (2, 1) == (counters["to_inside"]["missing"], counters["to_inside"]["late"])
    assert (0, 0) == (counters["to_remote"]["missing"], counters["to_remote"]["late"])
    values = scrape(here)
    assert 2 == values["pptp_nat_gre_observations_total", "sequence_missing"]
    assert 1 == values["pptp_nat_gre_observations_total", "sequence_late"]


@pytest.mark.parametrize("by", [BPF])
@pytest.mark.parametrize("inside", [1, 3])
def test_real_calls_go_past_the_stack(
    world: Callable[..., World], by: By, inside: int
) -> None:
    """One inside host at a device of its own, and several at a bridge; none by the firewall."""
    here = world(by, inside=inside, config='gre.forwarding = "redirect"\n', firewall="established")
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.all_hear(calls)  # neighbours are known by now

    here.all_hear(calls, padding=1000)

    listed = here.listed(inside)
    assert {20} == {each["counters"][way]["packets"] for each in listed for way in each["counters"]}
    told = here.lab.run(here.lab.router, ["iptables", "-v", "-x", "-n", "-L", "PPTP_NAT_JUDGED"])
    passed = sum(int(line.split()[0]) for line in told.stdout.splitlines()[2:])
    assert passed < 20 * inside, "through the firewall go but the first ones"


def receive_like_a_card(here: World, host: Host) -> None:
    """Switch generic receive offload on: then the other end of the cable takes bare frames."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_SGRO, 1))
    with contextlib.closing(here.lab.open_socket(host, socket.SOCK_DGRAM)) as asking:
        request = struct.pack("16sP16x", b"eth0", ctypes.addressof(value))
        fcntl.ioctl(asking, SIOCETHTOOL, request)


def packets_of(here: World) -> list[int]:
    """Return what the one call has carried, to the inside and to the remote."""
    (listed,) = here.listed(1)
    return [listed["counters"][way]["packets"] for way in ("to_inside", "to_remote")]


def early_at(here: World) -> str:
    """Return where the daemon says that it carries before the stack."""
    assert here.daemon is not None
    reason: str = here.daemon.status()["datapath_reason"]
    return reason.rpartition("; ")[2]


@pytest.mark.skipif(NO_EARLY is not None, reason=f"XDP: {NO_EARLY}")
@pytest.mark.parametrize("by", [BPF])
def test_real_calls_go_before_the_stack_and_outlive_the_daemon(
    world: Callable[..., World], by: By
) -> None:
    """By tc's programs until devices can; then without those, without a daemon; in the end none."""
    here = world(by, inside=1, config='gre.forwarding = "xdp"\n', firewall="established")
    assert here.daemon is not None
    server = here.station(here.lab.outside[0])
    server.listen()
    client = here.station(here.lab.inside[0])
    calls = here.up([here.dial(client, here.lab.outside[0].address).call(7)])
    here.all_hear(calls)
    assert "nowhere before the stack" == early_at(here)
    assert "device-late" in here.daemon.log

    for host in (here.lab.inside[0], here.lab.outside[0]):
        receive_like_a_card(here, host)
    here.until(lambda: early_at(here) == "before the stack at lan, wan", "the kernel tells of it")
    here.all_hear(calls, padding=1000)
    here.daemon.kill()
    here.all_hear(calls)
    here.daemon.start()
    assert "before the stack at lan, wan" == early_at(here)
    for device in ("lan", "wan"):
        here.lab.run(here.lab.router, ["tc", "qdisc", "del", "dev", device, "clsact"])
    before = packets_of(here)
    here.all_hear(calls, count=20)

    assert [20, 20] == [late - early for late, early in zip(packets_of(here), before, strict=True)]
    here.daemon.stop()
    shown = here.lab.run(here.lab.router, ["ip", "link", "show"]).stdout
    assert "xdp" not in shown
