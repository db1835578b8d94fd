"""What the BPF programs count besides packets, where people look for it."""

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
