"""Legs with more than one owner: the latest carries, and the one before it when that ends.

`tests.core.legs.Legs` keeps every owner of every leg and so knows what must carry;
`Shares` keeps only what is shared.
"""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.checksum import checksum
from pptp_nat.core.packet import pack_enhanced_gre
from pptp_nat.core.tuples import Leg
from pptp_nat.linux.datapath import LegOrder, Match
from pptp_nat.linux.queue_path import QueuePath
from tests.core.wire import ip_packet

CLIENT, OTHER = bytes((192, 168, 77, 10)), bytes((192, 168, 77, 11))
EXTERNAL, SECOND = bytes((198, 18, 7, 1)), bytes((198, 18, 7, 9))
PAC = bytes((198, 18, 7, 2))
POSTROUTING = 4

LEGS = [
    Leg(CLIENT, PAC, 100, EXTERNAL, PAC, 100),
    Leg(CLIENT, PAC, 100, SECOND, PAC, 100),  # the same client by another address
    Leg(OTHER, PAC, 100, EXTERNAL, PAC, 100),
    Leg(PAC, EXTERNAL, 7, PAC, CLIENT, 1),
    Leg(PAC, EXTERNAL, 7, PAC, OTHER, 2),
    Leg(CLIENT, EXTERNAL, 8, EXTERNAL, OTHER, 1),  # hairpins: both addresses change
    Leg(CLIENT, EXTERNAL, 9, EXTERNAL, OTHER, 1),  # and this has its second stage in common
    Leg(CLIENT, EXTERNAL, 9, SECOND, OTHER, 3),
]
ORDERS = st.builds(LegOrder, st.sampled_from(LEGS), st.integers(0, 2))


class _Queue:
    """Puts one packet through both hooks."""

    def __init__(self, path: QueuePath) -> None:
        self._path = path
        self.passed: bytes | None = None
        self.mark = 0

    def put(self, octets: bytes, hook: int = 0) -> None:
        packet = SimpleNamespace(octets=octets, hook=hook, mark=0)
        self._path.judge(self, packet)
        self.mark = packet.mark

    def let_pass(self, _: SimpleNamespace, octets: bytes | None = None) -> None:
        self.passed = octets

    def repeat(self, _: SimpleNamespace, octets: bytes) -> None:
        self.put(octets, POSTROUTING)

    def accept(self, _: SimpleNamespace) -> None:
        self.passed = None

    drop = accept


@given(st.lists(st.tuples(st.booleans(), ORDERS), max_size=30))
def test_the_latest_owner_that_is_left_carries(steps: list[tuple[bool, LegOrder]]) -> None:
    path = QueuePath()
    owners: dict[Match, list[LegOrder]] = {}
    for ends, order in steps:
        match = Match(*order.leg[:3])
        mine = [each for each in owners.get(match, []) if each.leg == order.leg]
        if not ends:
            path.install([order])
            owners.setdefault(match, []).append(order)
        elif mine:
            path.remove([order.leg])
            last = max(at for at, each in enumerate(owners[match]) if each.leg == order.leg)
            del owners[match][last]
            if not owners[match]:
                del owners[match]

        assert set(owners) == set(path.matches())
        for source, destination, key in {Match(*leg[:3]) for leg in LEGS}:
            queue = _Queue(path)
            queue.put(ip_packet(source, destination, 47, pack_enhanced_gre(key, b"ppp")))
            carrying = owners.get(Match(source, destination, key))
            if carrying is None:
                assert queue.passed is None
                continue
            leg, mark = carrying[-1]
            gre = pack_enhanced_gre(leg.new_key, b"ppp")
            assert ip_packet(leg.new_source, leg.new_destination, 47, gre) == queue.passed
            assert checksum(queue.passed[:20]) == 0
            # The second stage of two hairpins may be one, and then its mark is the latest.
            assert queue.mark == mark or leg.destination != leg.new_destination
    for match in list(owners):
        for order in owners.pop(match):
            path.remove([order.leg])
    assert [] == list(path.matches())
    assert {} == path.seconds


@given(ORDERS, ORDERS)
def test_another_mark_is_that_of_the_leg_that_it_is_for(first: LegOrder, second: LegOrder) -> None:
    path = QueuePath()
    path.install([first, second])
    path.remark([first._replace(mark=9)])
    shared = first.leg[:3] == second.leg[:3]
    same = first.leg == second.leg

    def mark(order: LegOrder) -> int:
        queue = _Queue(path)
        source, destination, key = order.leg[:3]
        queue.put(ip_packet(source, destination, 47, pack_enhanced_gre(key, b"")))
        return queue.mark

    if second.leg.source == second.leg.new_source or second.leg.destination == PAC:
        assert mark(second) == (9 if same else second.mark)
    path.remove([second.leg])
    if first.leg.source == first.leg.new_source or first.leg.destination == PAC:
        assert mark(first) == (9 if not same or not shared else first.mark)
