"""A conntrack table that is full to the last entry: calls that are up notice nothing."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pptp_nat.lab.network import Lab
from pptp_nat.linux.conntrack_wire import (
    CT_NEW,
    CTA_STATUS,
    CTA_TIMEOUT,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    FAMILY,
    Status,
    Tuple,
    tuple_attribute,
)
from pptp_nat.linux.netlink import (
    F_CREATE,
    F_EXCL,
    MOST_PER_SEND,
    Message,
    Netlink,
    attribute,
)

from .conftest import By, World

pytestmark = pytest.mark.kernel
UDP = 17
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
#: Entries that a test may make; each costs the machine some 300 octets and 10 us.
MOST = 300_000
#: Confirmed, or the kernel refuses; assured, or it would give them up for others (early_drop).
STAYING = int(Status.CONFIRMED | Status.ASSURED | Status.SEEN_REPLY)


def _entry(number: int) -> Message:
    """Return the order for the entry of a flow of its own, which nobody uses."""
    there, back = b"\x0a\xf0" + (number >> 16).to_bytes(2, "big"), b"\x0a\xf1\x00\x01"
    body = FAMILY
    body += tuple_attribute(CTA_TUPLE_ORIG, Tuple(UDP, there, number & 0xFFFF, back, 9))
    body += tuple_attribute(CTA_TUPLE_REPLY, Tuple(UDP, back, 9, there, number & 0xFFFF))
    body += attribute(CTA_STATUS, STAYING.to_bytes(4, "big"))
    body += attribute(CTA_TIMEOUT, (600).to_bytes(4, "big"))
    return Message(CT_NEW, F_CREATE | F_EXCL, body)


@contextlib.contextmanager
def _full(lab: Lab) -> Iterator[None]:
    """Have the router's table full; the limit is the machine's, the count each namespace's."""
    with lab.entered(lab.router), Netlink() as netlink:
        for start in range(1, MOST, MOST_PER_SEND):
            answers = netlink.request([_entry(n) for n in range(start, start + MOST_PER_SEND)])
            if errno.ENOMEM in answers:
                break
            assert set(answers) == {0}
        else:
            if (limit := int(LIMIT.read_text())) > MOST:
                pytest.skip(f"somebody has raised net.netfilter.nf_conntrack_max to {limit}")
            raise AssertionError("the table has no end")
        assert netlink.request([_entry(MOST)]) == [errno.ENOMEM]
    yield


@pytest.mark.parametrize("by", ["conntrack", "queue"])
def test_a_full_table_breaks_no_call_and_new_ones_work_once_there_is_room(
    world: Callable[..., World], by: By
) -> None:
    """Data of a new call wait on `conntrack`, and do not on `queue`, which needs no entries."""
    here = world(by, inside=2)
    if (limit := int(LIMIT.read_text())) > MOST:
        pytest.skip(f"net.netfilter.nf_conntrack_max is {limit}: too many entries to make")
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    lasting = here.up([connection.call(7)])
    here.all_hear(lasting)
    with _full(here.lab):
        late = here.up([connection.call(8)])
        here.all_hear(lasting)
        if by == "queue":
            here.all_hear(late)
        else:
            here.until(lambda: "data-path-refused" in daemon.log, "the refusal is told")
            here.loop.run_until(lambda: False, 3)
            told = re.findall(r".*data-path-refused.*", daemon.log)
            assert len(told) == 1, told
            assert "nf_conntrack_max" in told[0]
        here.listed(2, "--state", "up")

    here.lab.run(here.lab.router, ["conntrack", "-F"])
    here.until(lambda: len(here.entries()) == (4 if by == "conntrack" else 0), "all is in place")
    here.all_hear(lasting + late)
    if by == "conntrack":
        here.until(lambda: "data-path-caught-up" in daemon.log, "the end is told as well")
