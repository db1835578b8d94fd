"""What workers divide and share, without processes: numbers, records, the board, sums."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat import cli
from pptp_nat.api import Request
from pptp_nat.config import Config, Control, Gre, Limits, load
from pptp_nat.core.bindings import Bindings, Pair
from pptp_nat.core.parts import Part, worker_of
from pptp_nat.errors import ConfigError, ExhaustedError, UsageError
from pptp_nat.scrape.metrics import FAMILIES, Distribution, Sample
from pptp_nat.workers import estate
from pptp_nat.workers.board import Board, Seat
from pptp_nat.workers.figures import GREATEST, LEAST, summed
from pptp_nat.workers.merged import Merged
from pptp_nat.workers.worker import config_of

PAIR = Pair(bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2)))
OTHER = Pair(bytes((198, 18, 7, 1)), bytes((198, 18, 7, 3)))
counts = st.integers(2, 8)


def seats(count: int, carried: frozenset[int] = frozenset()) -> list[Seat]:
    """Return the seats of *count* workers, for whom the kernel carries some numbers of PAIR."""
    board = Board(count, 64)
    made = [
        Seat(board, Part(index, count), lambda _external, _remote, number: number in carried)
        for index in range(count)
    ]
    for seat in made:
        seat.show()
    return made


@given(counts, st.lists(st.tuples(st.integers(0, 7), st.integers(0, 0xFFFF)), max_size=40),
       st.booleans(), st.sets(st.integers(1, 0xFFFF), max_size=20), st.randoms())  # fmt: skip
def test_no_two_workers_give_one_number(count, wanted, preserve, held, random) -> None:
    """Also none that somebody holds outside of his part."""
    at_board = seats(count)
    tables = [
        Bindings(lambda: random.randrange(1 << 16), preserve=preserve, part=Part(index, count),
                 elsewhere=seat)
        for index, seat in enumerate(at_board)
    ]  # fmt: skip
    for number in held:
        assert tables[number % 3 % count].claim(PAIR, number, shared=True)
    given_numbers = set(held)
    for who, own in wanted:
        table = tables[who % count]
        try:
            number = table.reserve(PAIR, own, table.choose_block(
                PAIR, own >> 8, like=None, unlike=set()))  # fmt: skip
        except ExhaustedError:
            continue
        assert number
        assert number not in given_numbers
        assert Part(who % count, count).has_number(number)
        given_numbers.add(number)


@given(counts)
def test_every_number_is_of_one_part(count: int) -> None:
    parts = [Part(index, count) for index in range(count)]

    for number in range(0, 1 << 16, 7):
        assert [number & 0xFF in range(number & 0xFF, 256)] == [
            True for part in parts if part.has_number(number)
        ]
    assert (1 << 256) - 1 == sum(((1 << 256) - 1) ^ part.closed for part in parts)


@given(st.binary(min_size=4, max_size=4), st.sampled_from([1, 2, 4, 8, 256]), counts)
def test_addresses_in_a_row_or_in_steps_are_spread(server: bytes, step: int, count: int) -> None:
    """An operator gives his customers every fourth address; all must not be at one worker."""
    hosts = [(0x0A000000 + step * n).to_bytes(4, "big") for n in range(256)]
    spread = Counter(worker_of(host, server, count) for host in hosts)

    assert count == len(spread)
    assert max(spread.values()) < 2 * 256 / count


numbers = st.integers(1, 0xFFFF)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([PAIR, OTHER]), numbers), max_size=300),
       st.lists(st.integers(0, 300), max_size=5))  # fmt: skip
def test_the_board_shows_what_its_writers_hold(steps, restarts) -> None:
    """Whoever reads at any moment sees what is held, also after a log was written anew."""
    board = Board(2, 4)
    board.capacity = 16  # so that it is full again and again
    board.size = 4 + 4 * board.capacity
    writer = Seat(board, Part(0, 2), lambda *_: False)
    reader = Seat(board, Part(1, 2), lambda *_: False)
    writer.show()
    held: dict[tuple[Pair, int], None] = {}
    for at, (takes, pair, number) in enumerate(steps):
        if takes and len(held) < 12:
            writer.hold(*pair, number)
            held[pair, number] = None
        else:
            writer.let_go(*pair, number)
            held.pop((pair, number), None)
        if at in restarts:  # its successor holds what it held
            writer = Seat(board, Part(0, 2), lambda *_: False)
            for pair_then, number_then in held:
                writer.hold(*pair_then, number_then)
            writer.show()
        if at % 7 == 0:
            for pair_now, block in {(p, n >> 8) for p, n in held} | {(pair, number >> 8)}:
                expected = sum(
                    1 << (n & 0xFF) for p, n in held if (p, n >> 8) == (pair_now, block)
                )
                assert expected == reader.held(*pair_now, block)


def test_what_an_inside_host_has_is_not_the_routers_to_take() -> None:
    first, second = seats(2, frozenset((4, 5)))
    table = Bindings(itertools.count().__next__, part=Part(0, 2), elsewhere=first)

    assert not table.claim(PAIR, 5, shared=True)  # the other one's, and the kernel carries it
    assert table.claim(PAIR, 4, shared=True)  # ours: nobody but this table knows better
    assert table.claim(PAIR, 7, shared=True)
    assert 1 << 7 == second.held(*PAIR, 0)
    table.drop(PAIR, 7)
    assert 0 == second.held(*PAIR, 0)


def test_limits_are_divided_and_places_are_apart() -> None:
    whole = Config(limits=Limits(calls=101, connections=10))
    parts = [config_of(whole, Part(index, 4)) for index in range(4)]

    assert [1723, 1724, 1725, 1726] == [each.control.queue for each in parts]
    assert [(26, 3)] * 4 == [(each.limits.calls, each.limits.connections) for each in parts]
    assert [whole.limits.calls_per_client] * 4 == [each.limits.calls_per_client for each in parts]
    for name in ("socket", "directory", "journal"):
        assert 4 == len({
            str(getattr(each.api, name, None) or getattr(each.state, name)) for each in parts
        })  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[control]\nworkers = 2\n[gre]\ndatapath = "queue"\n', 'gre.datapath = "conntrack"'),
        ('[control]\nworkers = 2\n[rules]\nbackend = "nftables"\n',
         'rules.backend = "iptables"'),
        ("[control]\nworkers = 8\nqueue = 65530\n[gre]\nqueue = 1\n", "lower control.queue"),
        ("[control]\nworkers = 0\n", "control.workers"),
    ],
)  # fmt: skip
def test_what_workers_cannot_do_is_told(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "pptp-nat.toml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=r"control\.workers") as told:
        load(file)

    assert expected in str(told.value)
    assert 1 == len(str(told.value).splitlines())


def test_the_queue_of_gre_does_not_matter_to_workers() -> None:
    assert 2 == Config(control=Control(workers=2), gre=Gre(queue=1723)).control.workers


def test_workers_neither_take_over_nor_hand_over(capsys: pytest.CaptureFixture[str]) -> None:
    """What they cannot do is refused before anything is touched."""
    assert cli.FAILED == cli.main(["run", "--workers", "2", "--takeover"])
    assert "--takeover: workers take nothing over" in capsys.readouterr().err

    with pytest.raises(UsageError, match="hands nothing over"):
        Merged(None)(Request(1, "takeover", {}, 0))  # type: ignore[arg-type]


def test_places_of_workers_that_are_no_more_are_known(tmp_path: Path) -> None:
    config = load(None, {"state.directory": str(tmp_path / "a"), "api.socket": "/tmp/none/s"})
    for name in ("worker-0", "worker-3", "worker-x", "worker-"):
        (tmp_path / "a" / name).mkdir(parents=True)

    assert [0, 3] == [int(p.copies.name[-1]) for p in estate.workers_places(config)]
    assert [estate.base(config), estate.place_of(config, 3)] == list(estate.leftovers(config, 2))
    assert 2 == len(list(estate.leftovers(config, 1)))


def test_a_scrape_is_the_sum_where_a_sum_is_true() -> None:
    one = {
        "calls": [Sample(("up",), 3.0)], "call_ids_limit": [Sample((), 65535)],
        "call_ids_fullest": [Sample(("198.18.7.1",), 40_000)],
        "queue_bound": [Sample(("control",), 1)], "api_clients": [Sample((), 1)],
        "call_setup_duration_seconds": [Sample((), Distribution((1.0,), (2, 1), 4.5))],
    }  # fmt: skip
    other = one | {
        "calls": [Sample(("up",), 4.0)], "queue_bound": [Sample(("control",), 0)],
        "call_ids_fullest": [Sample(("198.18.7.1",), 4)],
    }  # fmt: skip

    found = summed([one, other], 2)

    assert [Sample(("up",), 7.0)] == found["calls"]
    assert [Sample((), 65535)] == found["call_ids_limit"]
    assert [Sample(("198.18.7.1",), 65535)] == found["call_ids_fullest"]
    assert [Sample(("control",), 0)] == found["queue_bound"]
    assert [Sample((), Distribution((1.0,), [4, 2], 9.0))] == found["call_setup_duration_seconds"]
    assert "api_clients" not in found
    assert {*LEAST, *GREATEST} <= {family.name for family in FAMILIES}
