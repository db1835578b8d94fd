"""What one client may take: a model of exact counts beside the sketch."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core import clients as module
from pptp_nat.core.clients import Clients

from .effort import effort

ADDRESSES = [bytes((10, 0, 0, n)) for n in range(40)]
MOVES = st.lists(st.tuples(st.sampled_from(ADDRESSES), st.booleans()), max_size=200)


@given(MOVES)
@effort(100)
def test_a_client_is_never_taken_for_one_with_fewer_calls(
    moves: list[tuple[bytes, bool]]
) -> None:
    """And with as few clients as here, hardly ever for one with more."""
    counted, exact = Clients(), Counter[bytes]()
    for client, more in moves:
        if more:
            counted.began(client)
            exact[client] += 1
        elif exact[client]:
            counted.ended(client)
            exact[client] -= 1
        assert counted.calls(client) >= exact[client]
    wrong = [each for each in ADDRESSES if counted.calls(each) != exact[each]]
    assert len(wrong) <= 1


def test_nothing_is_left_when_all_calls_are_over() -> None:
    counted = Clients()
    for client in ADDRESSES * 3:
        counted.began(client)
    for client in ADDRESSES * 3:
        counted.ended(client)
    assert {0} == {cell for table in counted._calls for cell in table}


@given(
    st.floats(0.5, 1000), st.lists(st.floats(0, 3), min_size=1, max_size=300),
    st.floats(0, 1e10),
)  # fmt: skip
@effort(150)
def test_no_client_gets_more_than_its_rate_and_a_burst(
    rate: float, pauses: list[float], now: float
) -> None:
    clients, first, let = Clients(), now, 0
    for pause in pauses:
        now += pause
        let += clients.may_ask(ADDRESSES[0], rate, now)
    most = (now - first + module._BURST_SECONDS) * rate + 1
    assert let <= most + now * rate * 1e-12


@given(st.floats(1, 1000), st.integers(1, 50))
@effort(50)
def test_a_client_that_keeps_to_its_rate_is_never_refused(rate: float, count: int) -> None:
    """Whatever others do."""
    clients = Clients()
    for step in range(count):
        now = 1000 + step * (1 / rate) * 1.0001
        assert clients.may_ask(ADDRESSES[0], rate, now)
        for _ in range(3):
            clients.may_ask(ADDRESSES[1], rate, now)


def test_memory_does_not_depend_on_how_many_clients_there_are() -> None:
    clients = Clients()
    for number in range(20_000):
        clients.may_ask(number.to_bytes(4, "big"), 10, 1.0)
        clients.began(number.to_bytes(4, "big"))
    octets = sum(len(t) * t.itemsize for t in (*clients._calls, *clients._full_at))
    assert octets == 2 * module.CELLS * (4 + 8)
