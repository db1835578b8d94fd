"""What only the data path `bpf` has: counts of gaps, and a way past the stack."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pptp_nat.lab.wire import Gre, encode_gre
from tests.paths import BPF

from .conftest import By, World
from .test_metrics import PLACE, scrape

pytestmark = pytest.mark.kernel


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
