"""The conntrack adapter and its data path against a real table, with conntrack(8) as witness."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from pptp_nat.core.tuples import Flow, Leg, Placement, Seat
from pptp_nat.errors import AdapterError
from pptp_nat.linux import conntrack as adapter
from pptp_nat.linux.conntrack import ENTRY_MARK, Conntrack
from pptp_nat.linux.conntrack_events import Change, CtEvent
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.conntrack_wire import CARRYING
from pptp_nat.linux.datapath import DataPath, LegOrder, Match, Tally

from .conntrack_lab import (
    CLIENT,
    EXTERNAL,
    OTHER,
    SECOND_EXTERNAL,
    SERVER,
    ConntrackLab,
    Gre,
    Host,
    inbound,
    ip_header,
    leg,
    octets,
    outbound,
    ready,
)

pytestmark = pytest.mark.kernel

PORT = 1723


def orders(*legs: Leg, mark: int = 0) -> list[LegOrder]:
    return [LegOrder(one, mark) for one in legs]


def match(one: Leg) -> Match:
    return Match(*one[:3])


# Who is inside.


@contextlib.contextmanager
def connected(
    opener: Host, source: str, dialled: tuple[str, int], listener: Host, own: tuple[str, int]
) -> Iterator[Flow]:
    """Open a TCP connection; yield its flow from the opener, with both hosts' own addresses."""
    listening = listener.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(own)
    listening.listen()
    client = opener.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.bind((source, 0))
    client.connect(dialled)
    accepted, _ = listening.accept()
    try:
        yield Flow(octets(source), client.getsockname()[1], octets(own[0]), own[1])
    finally:
        for opened in (accepted, client, listening):
            opened.close()


def both_ways(conntrack: Conntrack, flow: Flow) -> set[Placement | None]:
    return {conntrack.locate(flow), conntrack.locate(flow.reversed())}


def test_a_masqueraded_client_is_inside(lab: ConntrackLab, conntrack: Conntrack) -> None:
    with connected(lab.inside, CLIENT, (SERVER, PORT), lab.server, (SERVER, PORT)) as flow:
        found = both_ways(conntrack, flow)

    client = Seat(octets(CLIENT), octets(EXTERNAL))
    server = Seat(octets(SERVER), octets(SERVER))
    assert {Placement(flow, client, server, 0)} == found


@pytest.mark.parametrize("port", [PORT, 1799])
def test_a_server_behind_a_port_forward_is_inside(
    lab: ConntrackLab, conntrack: Conntrack, port: int
) -> None:
    """Also where the forward changes the port: the flow has the server's own."""
    forward = ("-j", "DNAT", "--to-destination", f"{CLIENT}:{PORT}")
    lab.rule("-t", "nat", "-A", "PREROUTING", "-i", "wan", "-p", "tcp", *forward)
    with connected(lab.server, SERVER, (EXTERNAL, port), lab.inside, (CLIENT, PORT)) as flow:
        found = both_ways(conntrack, flow)

    opener = Seat(octets(SERVER), octets(SERVER))
    responder = Seat(octets(CLIENT), octets(EXTERNAL))
    assert {Placement(flow, opener, responder, 0)} == found


def test_with_plain_routing_nobody_is_inside(lab: ConntrackLab, conntrack: Conntrack) -> None:
    with connected(lab.server, SERVER, (CLIENT, PORT), lab.inside, (CLIENT, PORT)) as flow:
        (found,) = both_ways(conntrack, flow)

    assert found is not None
    assert flow == found.flow
    assert not found.originator.inside
    assert not found.responder.inside


def test_in_a_hairpin_both_are_inside(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """No tuple of its entry has both hosts' own addresses, so the table is searched."""
    forward = ("-j", "DNAT", "--to-destination", OTHER)
    lab.rule("-t", "nat", "-A", "PREROUTING", "-d", EXTERNAL, "-p", "tcp", *forward)
    snat = ("-j", "SNAT", "--to-source", EXTERNAL)
    lab.rule("-t", "nat", "-A", "POSTROUTING", "-o", "lan", "-p", "tcp", *snat)
    with connected(lab.inside, CLIENT, (EXTERNAL, PORT), lab.inside, (OTHER, PORT)) as flow:
        found = both_ways(conntrack, flow)
        unsought = conntrack.locate(flow, search=False)

    client, server = Seat(octets(CLIENT), octets(EXTERNAL)), Seat(octets(OTHER), octets(EXTERNAL))
    assert {Placement(flow, client, server, 0)} == found
    assert unsought is None


def test_the_routers_own_client_is_found(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """Its call IDs are taken, so the daemon must see it in INPUT and OUTPUT."""
    with connected(lab.router, EXTERNAL, (SERVER, PORT), lab.server, (SERVER, PORT)) as flow:
        (found,) = both_ways(conntrack, flow)

    assert found is not None
    assert not found.originator.inside


def test_a_connection_that_conntrack_does_not_know_is_nowhere(conntrack: Conntrack) -> None:
    assert conntrack.locate(Flow(octets(CLIENT), 1025, octets(SERVER), PORT)) is None


def test_mark_and_helper_of_a_control_connection_are_reported(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """The mark decides GRE's routing too; a kernel helper beside us would translate twice."""
    lab.rule("-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j", "CONNMARK", "--set-mark", "66")
    helper = ("-j", "CT", "--helper", "pptp")
    try:
        lab.rule("-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", str(PORT), *helper)
    except AssertionError:
        pytest.skip("this kernel has no PPTP helper")
    with connected(lab.inside, CLIENT, (SERVER, PORT), lab.server, (SERVER, PORT)) as flow:
        found = conntrack.locate(flow)

    assert found is not None
    assert (66, "pptp") == (found.mark, found.helper)


def test_control_connections_are_listed_by_either_port(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """At start the daemon learns who is connected; a forward may hide the port."""
    forward = ("-j", "DNAT", "--to-destination", f"{CLIENT}:{PORT}")
    lab.rule("-t", "nat", "-A", "PREROUTING", "-i", "wan", "-p", "tcp", *forward)
    with (
        connected(lab.server, SERVER, (EXTERNAL, 1799), lab.inside, (CLIENT, PORT)) as forwarded,
        connected(lab.inside, OTHER, (SERVER, PORT), lab.server, (SERVER, PORT)) as masqueraded,
        connected(lab.inside, OTHER, (SERVER, 80), lab.server, (SERVER, 80)),
    ):
        listed = [placement.flow for placement in conntrack.control_connections([PORT, 1799])]
        with lab.router.entered():
            pieces = list(conntrack.control_pieces([PORT, 1799]))

    assert sorted([forwarded, masqueraded]) == sorted(listed)
    assert listed == [placement.flow for piece in pieces for placement in piece]


# Entries that carry GRE.


def listed(lab: ConntrackLab) -> list[str]:
    """Return what conntrack(8) shows of GRE, without what changes by itself."""
    lines = lab.router.run("conntrack", "-L", "-p", "gre").splitlines()
    return sorted(re.sub(r"^gre +47 \d+ | use=\d+|packets=\d+ bytes=\d+ ", "", at) for at in lines)


def test_conntrack_8_shows_the_entries_as_we_mean_them(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """An independent reader of the same table."""
    conntrack.insert(orders(inbound(1000, 7), outbound(500), mark=3))

    mark = f"mark={ENTRY_MARK | 3}"
    back = f"src={SERVER} dst={EXTERNAL} srckey=0x1f4 dstkey=0x0"
    out = f"src={CLIENT} dst={SERVER} srckey=0x7 dstkey=0x0"
    expected = [
        f"src={CLIENT} dst={SERVER} srckey=0x0 dstkey=0x1f4 {back} [ASSURED] {mark}",
        f"src={SERVER} dst={EXTERNAL} srckey=0x0 dstkey=0x3e8 {out} [ASSURED] {mark}",
    ]
    assert expected == listed(lab)


def test_entries_are_read_back_as_the_legs_that_they_carry(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """After a restart the kernel is the record of what is carried."""
    legs = {
        inbound(1000, 7),
        outbound(500),
        leg(CLIENT, EXTERNAL, 1001, EXTERNAL, OTHER, 8),
        leg(OTHER, SERVER, 501, OTHER, SERVER, 501),
    }
    conntrack.insert(orders(*legs, mark=5))
    entries = list(conntrack.entries())

    assert legs == {entry.leg for entry in entries}
    assert {ENTRY_MARK | 5} == {entry.mark for entry in entries}
    assert {CARRYING} == {entry.status & CARRYING for entry in entries}


def test_a_leg_that_is_there_already_keeps_its_counts(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """A retransmitted request installs its leg again."""
    conntrack.insert(orders(inbound(1000, 7)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))

    conntrack.insert(orders(inbound(1000, 7)))

    assert [(1, 35)] == [entry.carried for entry in conntrack.entries()]


def test_a_leg_replaces_another_with_the_same_match(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    conntrack.insert(orders(inbound(1000, 7)))
    conntrack.insert(orders(inbound(1000, 9, OTHER)))

    assert [Gre(SERVER, OTHER, 9)] == lab.back(Gre(SERVER, EXTERNAL, 1000))


def test_a_leg_replaces_the_track_of_an_early_packet(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    assert [] == lab.back(Gre(SERVER, EXTERNAL, 1000))

    conntrack.insert(orders(inbound(1000, 7)))

    assert [Gre(SERVER, CLIENT, 7)] == lab.back(Gre(SERVER, EXTERNAL, 1000))


def test_many_calls_of_one_client_with_one_number(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """A client that keeps dialling with one call ID, its old calls still half open."""
    conntrack.insert(orders(*(inbound(mapped, 7) for mapped in range(1000, 1100))))

    packets = [Gre(SERVER, EXTERNAL, mapped) for mapped in range(1000, 1100)]
    assert [Gre(SERVER, CLIENT, 7)] * 100 == lab.back(*packets)


def test_a_server_that_gives_every_client_one_number(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """All clients are one address to it; the reply tuples must differ all the same."""
    clients = [f"10.9.{n // 200}.{n % 200 + 2}" for n in range(300)]
    conntrack.insert(orders(*(outbound(1, client) for client in clients)))

    assert len(clients) == len(list(conntrack.entries()))
    expected = [Gre(EXTERNAL, SERVER, 1)] * 2
    assert expected == lab.out(Gre(CLIENT, SERVER, 1), Gre(OTHER, SERVER, 1))


def test_call_id_zero_at_both_ends(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """The reply of the inbound leg is the original tuple of the outbound one, and must move."""
    conntrack.insert(orders(inbound(1000, 0)))
    assert [Gre(SERVER, CLIENT, 0)] == lab.back(Gre(SERVER, EXTERNAL, 1000))

    counted = conntrack.insert(orders(outbound(0)))

    assert {inbound(1000, 0): (1, 35)} == counted.counted
    assert {inbound(1000, 0), outbound(0)} == {entry.leg for entry in conntrack.entries()}
    assert [Gre(EXTERNAL, SERVER, 0)] == lab.out(Gre(CLIENT, SERVER, 0))
    assert [Gre(SERVER, CLIENT, 0)] == lab.back(Gre(SERVER, EXTERNAL, 1000))


def test_call_id_zero_at_both_ends_of_a_routed_call(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    legs = leg(CLIENT, SERVER, 0, CLIENT, SERVER, 0), leg(SERVER, CLIENT, 0, SERVER, CLIENT, 0)
    conntrack.insert(orders(*legs))

    assert set(legs) == {entry.leg for entry in conntrack.entries()}
    assert [Gre(CLIENT, SERVER, 0)] == lab.out(Gre(CLIENT, SERVER, 0))
    assert [Gre(SERVER, CLIENT, 0)] == lab.back(Gre(SERVER, CLIENT, 0))


def test_a_deletion_returns_the_last_counts(lab: ConntrackLab, conntrack: Conntrack) -> None:
    conntrack.insert(orders(inbound(1000, 7), outbound(500)))
    lab.back(Gre(SERVER, EXTERNAL, 1000), Gre(SERVER, EXTERNAL, 1000))

    ended = conntrack.delete([inbound(1000, 7), outbound(500), inbound(1001, 8)])

    assert {match(inbound(1000, 7)): (2, 70), match(outbound(500)): (0, 0)} == ended
    assert [] == listed(lab)


def test_a_deletion_spares_a_leg_that_has_been_replaced(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    conntrack.insert(orders(inbound(1000, 9, OTHER)))

    assert {} == conntrack.delete([inbound(1000, 7)])
    assert [inbound(1000, 9, OTHER)] == [entry.leg for entry in conntrack.entries()]


def test_another_mark_leaves_counts_alone(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """The administrator marks the control connection later than the call is installed."""
    conntrack.insert(orders(inbound(1000, 7)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))

    conntrack.remark(orders(inbound(1000, 7), inbound(1001, 8), mark=6))

    (entry,) = conntrack.entries()
    assert (ENTRY_MARK | 6, (1, 35)) == (entry.mark, entry.carried)


# Events.


def follow(
    lab: ConntrackLab, conntrack: Conntrack, changes: Collection[Change] = (Change.DESTROY,)
) -> None:
    with lab.router.entered():
        conntrack.follow([PORT], changes)


def waiting(conntrack: Conntrack) -> bool:
    return bool(select.select([conntrack.fileno()], [], [], 0)[0])


def test_the_end_of_a_control_connection_is_an_event(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """An expired or deleted entry ends its calls."""
    follow(lab, conntrack)
    with connected(lab.inside, CLIENT, (SERVER, PORT), lab.server, (SERVER, PORT)) as flow:
        lab.router.run("conntrack", "-D", "-p", "tcp", "--orig-src", CLIENT)

        assert ready(conntrack.fileno())
        (event,) = conntrack.read_events()

    assert (Change.DESTROY, None) == (event.change, event.leg)
    assert event.placement is not None
    assert flow == event.placement.flow


def test_the_end_of_an_entry_by_anothers_hand_is_an_event_with_its_counts(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """`conntrack -F` ends calls; the daemon puts them back."""
    follow(lab, conntrack)
    conntrack.insert(orders(inbound(1000, 7), mark=2))
    lab.back(Gre(SERVER, EXTERNAL, 1000))

    lab.router.run("conntrack", "-F")

    assert ready(conntrack.fileno())
    expected = CtEvent(
        Change.DESTROY, leg=inbound(1000, 7), mark=ENTRY_MARK | 2, tally=Tally(1, 35)
    )
    assert [expected] == conntrack.read_events()


def test_what_we_end_ourselves_is_no_event(lab: ConntrackLab, conntrack: Conntrack) -> None:
    follow(lab, conntrack, set(Change) - {Change.OVERRUN})
    conntrack.insert(orders(inbound(1000, 7)))
    conntrack.delete([inbound(1000, 7)])

    assert [] == conntrack.read_events()


def test_other_connections_do_not_wake_us(lab: ConntrackLab, conntrack: Conntrack) -> None:
    """The kernel drops their events in a socket filter; a busy router has thousands."""
    follow(lab, conntrack, set(Change) - {Change.OVERRUN})
    with connected(lab.inside, OTHER, (SERVER, 80), lab.server, (SERVER, 80)):
        echo = struct.pack("!BBHHH", 8, 0, 0xF7FE, 0, 1)
        lab.inside.send_ip(ip_header(CLIENT, SERVER, 1, len(echo)) + echo)
        lab.out()  # UDP
    lab.router.run("conntrack", "-F")

    assert not waiting(conntrack)


def test_a_new_control_connection_is_an_event_if_asked_for(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    follow(lab, conntrack, [Change.NEW])
    with connected(lab.inside, CLIENT, (SERVER, PORT), lab.server, (SERVER, PORT)) as flow:
        events = conntrack.read_events()

    assert [(Change.NEW, flow)] == [(e.change, e.placement and e.placement.flow) for e in events]


def test_lost_events_are_reported_as_an_overrun(
    lab: ConntrackLab, conntrack: Conntrack
) -> None:
    """The daemon compares with the table then."""
    follow(lab, conntrack)
    assert conntrack._events is not None
    conntrack._events._netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    conntrack.insert(orders(*(inbound(mapped, mapped) for mapped in range(1, 200))))

    lab.router.run("conntrack", "-F")
    events = conntrack.read_events()

    assert Change.OVERRUN is events[0].change
    assert len(events) < 200


# The data path.


@pytest.fixture
def path(conntrack: Conntrack) -> ConntrackPath:
    return ConntrackPath(conntrack)


def test_it_is_a_data_path(path: ConntrackPath) -> None:
    """For mypy as much as for us."""
    carries: DataPath = path

    assert carries.name == "conntrack"


def test_the_probe_is_content_here_and_leaves_nothing(lab: ConntrackLab) -> None:
    with lab.router.entered():
        why = ConntrackPath.probe()

    assert why is None
    assert [] == listed(lab)


def test_the_probe_names_the_missing_capability() -> None:
    """One sentence for `doctor`, and for the log when the daemon falls back to the queue."""
    program = (
        "import os; from pptp_nat.linux.conntrack_path import ConntrackPath;"
        "os.setgid(65534); os.setuid(65534); print(ConntrackPath.probe())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert "CAP_NET_ADMIN" in done.stdout
    assert 1 == len(done.stdout.splitlines())


def test_a_leg_with_two_owners_ends_with_the_last(
    lab: ConntrackLab, path: ConntrackPath
) -> None:
    """Two calls of one client may share the outbound leg."""
    path.install(orders(outbound(500)))
    path.install(orders(outbound(500)))
    lab.out(Gre(CLIENT, SERVER, 500))

    assert {match(outbound(500)): (1, 35)} == path.remove([outbound(500)])
    assert [Gre(EXTERNAL, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))
    assert {match(outbound(500)): (2, 70)} == path.remove([outbound(500)])
    assert [] == path.matches()


def test_the_leg_that_another_has_replaced_carries_again_when_that_ends(
    lab: ConntrackLab, path: ConntrackPath
) -> None:
    """One client reaches one server by two external addresses and gets one number from it."""
    first = outbound(500)
    second = leg(CLIENT, SERVER, 500, SECOND_EXTERNAL, SERVER, 500)
    path.install(orders(first))
    lab.out(Gre(CLIENT, SERVER, 500))
    path.install(orders(second, mark=3))
    assert [Gre(SECOND_EXTERNAL, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))

    assert {match(second): (2, 70)} == path.remove([second])
    assert [Gre(EXTERNAL, SERVER, 500)] == lab.out(Gre(CLIENT, SERVER, 500))
    assert {match(first): (3, 105)} == path.tallies() == path.tallies_of([first])
    assert {match(first): (3, 105)} == path.remove([first])
    assert [] == path.matches()


def test_the_last_owner_of_a_replaced_leg_ends_what_replaced_it(path: ConntrackPath) -> None:
    old, new = inbound(1000, 7), inbound(1000, 9, OTHER)
    path.install(orders(old))
    path.install(orders(new))

    path.remove([old])
    assert [match(new)] == path.matches()
    path.remove([new])
    assert [] == path.matches()


def test_a_leg_of_an_earlier_run_can_be_removed(conntrack: Conntrack) -> None:
    ConntrackPath(conntrack).install(orders(outbound(500)))

    path = ConntrackPath(conntrack)

    assert [match(outbound(500))] == path.matches()
    path.remove([outbound(500)])
    assert [] == path.matches()


def renewed(path: ConntrackPath, now: float) -> None:
    """Take all steps of a renewal."""
    for _ in path.renew(now):
        pass


def test_entries_past_half_of_their_life_are_renewed_without_losing_counts(
    lab: ConntrackLab, conntrack: Conntrack, path: ConntrackPath
) -> None:
    """A call may last longer than the kernel's longest timeout."""
    with lab.router.entered():
        short = Conntrack(lifetime=adapter.LIFETIME // 2 - 100)
    with short:
        short.insert(orders(inbound(1000, 7), mark=9))
    path.install(orders(outbound(500)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))

    with lab.router.entered():
        renewed(path, 0.0)

    (entry,) = conntrack.find([inbound(1000, 7)])
    assert entry.seconds_left > adapter.LIFETIME - 60
    assert (Tally(0, 0), ENTRY_MARK | 9) == (entry.carried, entry.mark)
    assert [Gre(SERVER, CLIENT, 7)] == lab.back(Gre(SERVER, EXTERNAL, 1000))
    assert {match(inbound(1000, 7)): (2, 70), match(outbound(500)): (0, 0)} == path.tallies()
    assert {match(inbound(1000, 7)): (2, 70)} == path.remove([inbound(1000, 7)])


def test_the_table_is_not_read_before_an_entry_can_be_old(
    conntrack: Conntrack, path: ConntrackPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`renew` is called once a minute, and reading 40,000 entries takes half a second."""
    path.install(orders(outbound(500)))
    renewed(path, 1000.0)
    monkeypatch.setattr(conntrack, "leg_pieces", None)

    renewed(path, 1060.0)


def test_a_leg_that_was_flushed_and_put_back_keeps_its_counts(
    lab: ConntrackLab, conntrack: Conntrack, path: ConntrackPath
) -> None:
    """`conntrack -F` ends entries; the daemon hears of it and installs them again."""
    follow(lab, conntrack)
    path.install(orders(inbound(1000, 7), mark=4))
    lab.back(Gre(SERVER, EXTERNAL, 1000))
    lab.router.run("conntrack", "-F")
    assert ready(conntrack.fileno())
    (event,) = conntrack.read_events()
    assert event.leg is not None

    path.lost(event.leg, event.tally)
    assert path.matches() == []
    assert {match(inbound(1000, 7)): (1, 35)} == path.tallies()
    path.restore(orders(inbound(1000, 7), mark=4))

    assert [Gre(SERVER, CLIENT, 7)] == lab.back(Gre(SERVER, EXTERNAL, 1000))
    assert {match(inbound(1000, 7)): (2, 70)} == path.tallies()
    assert {match(inbound(1000, 7)): (2, 70)} == path.remove([inbound(1000, 7)])
    assert path.matches() == []


def test_a_leg_that_is_there_after_all_is_not_put_back_and_keeps_its_counts(
    lab: ConntrackLab, path: ConntrackPath
) -> None:
    """A reading of the table may have passed over it."""
    path.install(orders(inbound(1000, 7), mark=4))
    lab.back(Gre(SERVER, EXTERNAL, 1000))

    done = path.restore(orders(inbound(1000, 7), mark=4))

    assert [match(inbound(1000, 7))] == list(done.shared)
    assert {match(inbound(1000, 7)): (1, 35)} == path.remove([inbound(1000, 7)])
    assert path.matches() == []


def test_a_leg_that_was_flushed_still_tells_its_counts_when_removed(
    lab: ConntrackLab, path: ConntrackPath
) -> None:
    """The call may end before the leg is put back."""
    path.install(orders(inbound(1000, 7)))
    lab.router.run("conntrack", "-F")

    path.lost(inbound(1000, 7), Tally(3, 105))

    assert {match(inbound(1000, 7)): (3, 105)} == path.remove([inbound(1000, 7)])


def test_counts_of_a_leg_of_nobody_are_not_kept_for_ever(path: ConntrackPath) -> None:
    """Nobody would ever ask for them."""
    path.lost(inbound(1000, 7), Tally(3, 105))
    renewed(path, 0.0)
    renewed(path, adapter.LIFETIME)

    assert {} == path.remove([inbound(1000, 7)])


def test_a_match_counts_on_when_another_leg_takes_it(
    lab: ConntrackLab, path: ConntrackPath
) -> None:
    """Whose the counts are is told apart by what there was when each owner came."""
    path.install(orders(inbound(1000, 7)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))
    done = path.install(orders(inbound(1000, 9, OTHER)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))
    again = path.install(orders(inbound(1000, 9, OTHER)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))

    name = match(inbound(1000, 7))
    assert ({name: (1, 35)}, {name: (2, 70)}) == (done.shared, again.shared)
    assert {name: (3, 105)} == path.tallies()


def test_a_leg_that_is_installed_after_its_match_was_free_starts_at_zero(
    lab: ConntrackLab, path: ConntrackPath
) -> None:
    """A server may give the number of a call that is gone to the next one at once."""
    path.install(orders(outbound(500)))
    lab.out(Gre(CLIENT, SERVER, 500))
    path.remove([outbound(500)])
    path.install(orders(outbound(500)))
    lab.out(Gre(CLIENT, SERVER, 500))

    assert {match(outbound(500)): (1, 35)} == path.tallies()


@pytest.mark.parametrize("first", [0, 1])
def test_owners_of_replaced_legs_that_leave_together_leave_nothing(
    path: ConntrackPath, first: int
) -> None:
    """A control connection closes, and all of its calls end at once."""
    old, new = inbound(1000, 7), inbound(1000, 9, OTHER)
    path.install(orders(old))
    path.install(orders(new))
    path.remove([old, new][first:] + [old, new][:first])

    assert [] == path.matches()


@pytest.mark.parametrize("asks", ["tallies", "tallies_of", "remove"])
def test_what_was_counted_until_somebody_deleted_it_is_told_to_who_asks_first(
    lab: ConntrackLab, conntrack: Conntrack, path: ConntrackPath, asks: str
) -> None:
    """`conntrack -F` and the end of the call may come between two looks at events."""
    follow(lab, conntrack)
    heard(conntrack, path)
    path.install(orders(inbound(1000, 7), outbound(500)))
    lab.back(Gre(SERVER, EXTERNAL, 1000))
    lab.out(Gre(CLIENT, SERVER, 500))
    lab.out(Gre(CLIENT, SERVER, 500))
    lab.router.run("conntrack", "-F")
    legs = [] if asks == "tallies" else [[inbound(1000, 7), outbound(500)]]

    assert {match(inbound(1000, 7)): (1, 35), match(outbound(500)): (2, 70)} == (
        getattr(path, asks)(*legs)
    )
    path.remove([inbound(1000, 7), outbound(500)])
    assert {} == path.tallies()


def test_counts_go_on_through_everything_at_once(
    lab: ConntrackLab, conntrack: Conntrack, path: ConntrackPath
) -> None:
    """Renewals, other marks, deletions by others, entries put back; they never fall."""
    follow(lab, conntrack)
    heard(conntrack, path)
    mine = inbound(1000, 7)
    path.install(orders(mine))

    def flush() -> None:
        lab.router.run("conntrack", "-D", "-p", "gre")
        conntrack_events_and_restore(path, mine)

    def renew() -> None:
        counted, error = conntrack.renew(list(conntrack.entries()))
        assert error is None
        path._remember_all(counted)

    for number, change in enumerate(
        [flush, renew, lambda: path.remark(orders(mine, mark=5)), renew, flush, renew], 1
    ):
        lab.back(Gre(SERVER, EXTERNAL, 1000))
        change()
        assert {match(mine): (number, 35 * number)} == path.tallies()
        assert {match(mine): (number, 35 * number)} == path.tallies_of([mine])
    assert {match(mine): (6, 210)} == path.remove([mine])


def heard(conntrack: Conntrack, path: ConntrackPath) -> None:
    """Have *path* hear of what others delete, as the daemon does."""

    def catch_up() -> bool:
        for event in conntrack.read_events():
            if event.leg is not None:
                path.lost(event.leg, event.tally)
        return False  # there are few

    path.catch_up = catch_up


def conntrack_events_and_restore(path: ConntrackPath, mine: Leg) -> None:
    path.catch_up()
    assert [] == path.matches()
    path.restore(orders(mine))
    assert [match(mine)] == path.matches()


def test_a_removal_that_the_kernel_refuses_is_made_up_for(
    conntrack: Conntrack, path: ConntrackPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the leg would carry GRE of nobody for 23 days."""
    path.install(orders(inbound(1000, 7), outbound(500)))
    with monkeypatch.context() as patched:
        patched.setattr(conntrack, "delete", refuse)
        with pytest.raises(AdapterError):
            path.remove([inbound(1000, 7), outbound(500)])
    path.install(orders(outbound(500)))  # a new call has taken this one over

    path.remove([])
    assert [match(outbound(500))] == path.matches()


def refuse(*_: object) -> None:
    raise AdapterError("trying", 12)


def test_what_can_be_installed_is_when_something_else_is_refused(
    conntrack: Conntrack, path: ConntrackPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full table has room for one more and not for two."""
    request = conntrack._netlink.request
    monkeypatch.setattr(
        conntrack._netlink, "request", lambda asked: [*request(asked[:1]), *[12] * len(asked[1:])]
    )
    done = path.install(orders(inbound(1000, 7), outbound(500)))
    monkeypatch.undo()

    assert orders(outbound(500)) == done.refused
    assert "conntrack_max" in str(done.error)
    assert [match(inbound(1000, 7))] == path.matches()
    assert {} == path.install(done.refused).shared
    path.remove([inbound(1000, 7), outbound(500)])
    assert [] == path.matches()


def test_accounting_is_turned_on(lab: ConntrackLab) -> None:
    """Without it every tally is zero."""
    with lab.router.entered():
        lab.router.sysctl("net.netfilter.nf_conntrack_acct", "0")
        assert adapter.accounting() is False
        assert adapter.turn_on_accounting()
        assert adapter.accounting() is True


def test_an_entry_that_cannot_be_made_says_what_was_being_done(
    lab: ConntrackLab, conntrack: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for the log: what, where, what to do."""
    monkeypatch.setattr(conntrack._netlink, "request", lambda asked: [12] * len(asked))

    ((order, error),) = conntrack.insert(orders(inbound(1000, 7))).refused

    assert order.leg == inbound(1000, 7)
    assert re.search(r"from 203\.0\.113\.9 to .* ID 1000: .*conntrack_max", str(error))


# A long table in pieces.


def test_a_long_table_is_read_in_pieces_between_which_entries_come_and_go(
    conntrack: Conntrack, lab: ConntrackLab
) -> None:
    """Nobody waits for 40,000 entries to be read, and the other socket is free meanwhile."""
    legs = [inbound(number, number) for number in range(1, 3001)]
    conntrack.insert(orders(*legs))
    reading = conntrack.count_pieces()
    with lab.router.entered():
        first = next(reading)
    conntrack.delete(legs[-1:])
    conntrack.insert(orders(outbound(7)))
    pieces = [first, *reading]
    found = {each: tally for piece in pieces for each, tally in piece.items()}

    assert {match(one) for one in legs[:-1]} <= set(found)
    assert set(found) <= {match(one) for one in [*legs, outbound(7)]}
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 400
    assert 3000 == len(conntrack.counts())


def test_a_reading_that_is_given_up_lets_go_of_its_socket(
    conntrack: Conntrack, lab: ConntrackLab
) -> None:
    """Whoever asks may be gone before the table is read."""
    conntrack.insert(orders(*(inbound(number, number) for number in range(1, 2001))))
    with lab.router.entered():
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(50):
            reading = conntrack.count_pieces()
            next(reading)
            reading.close()
        after = len(list(Path("/proc/self/fd").iterdir()))
        whole = sum(map(len, conntrack.count_pieces()))

    assert (before, 2000) == (after, whole)
