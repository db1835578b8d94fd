"""The binding table as a state machine against a naive model: sets and lists."""

from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from pptp_nat.core.bindings import LIMIT, Bindings, Pair
from pptp_nat.core.parts import Part
from pptp_nat.errors import ExhaustedError

from .effort import effort

PAIRS = [Pair(bytes((198, 18, 7, 1)), bytes((198, 18, 7, last))) for last in (2, 3)]
QUARANTINE = 60.0
# Few numbers, so that they meet.
NUMBERS = st.sampled_from((0, 1, 2, 0x1200, 0x1201, 0x12FF, 0xFFFF))


class BindingsMachine(RuleBasedStateMachine):
    """Numbers are given, claimed, released, kept and dropped; time goes by."""

    given_numbers = Bundle("given_numbers")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.live: dict[Pair, list[int]] = {pair: [] for pair in PAIRS}  # once per owner
        self.waiting: list[tuple[float, Pair, int]] = []

    @initialize(seed=st.integers(0, 99), preserve=st.booleans(), few=st.booleans())
    def begin(self, seed: int, preserve: bool, few: bool) -> None:  # noqa: FBT001 (drawn values)
        drawn = random.Random(seed)
        bits = 2 if few else 16  # a poor random source must not matter
        self.bindings = Bindings(
            lambda: drawn.randrange(1 << bits), preserve=preserve, quarantine=QUARANTINE
        )

    def taken(self, pair: Pair) -> set[int]:
        return {*self.live[pair], *(number for _, p, number in self.waiting if p == pair)}

    @rule(target=given_numbers, pair=st.sampled_from(PAIRS), own=NUMBERS, unlike=st.sets(
        st.integers(0, 255), max_size=4), like=st.none() | st.integers(0, 255))  # fmt: skip
    def reserve(self, pair: Pair, own: int, unlike: set[int], like: int | None) -> object:
        block = self.bindings.choose_block(pair, own >> 8, like=like, unlike=unlike)
        if like is not None:
            assert like == block  # no block is full here
        number = self.bindings.reserve(pair, own, block)

        assert block == number >> 8
        assert number != 0
        assert number not in self.taken(pair)
        if self.bindings.preserve and like is None and own >> 8 not in unlike:
            assert own in (number, 0) or own in self.taken(pair)
        self.live[pair].append(number)
        return pair, number

    @rule(target=claims, pair=st.sampled_from(PAIRS), number=NUMBERS, shared=st.booleans())
    def claim(self, pair: Pair, number: int, shared: bool) -> object:  # noqa: FBT001 (drawn)
        claimed_by_sharers = self.bindings._shares[pair, number] > 0
        free = number == 0 or number not in self.live[pair] or (shared and claimed_by_sharers)

        assert free == self.bindings.claim(pair, number, shared=shared)

        if not free:
            return multiple()
        if number:
            self.live[pair].append(number)
            self.waiting = [each for each in self.waiting if each[1:] != (pair, number)]
        return pair, number

    @rule(binding=st.one_of(consumes(given_numbers), consumes(claims)), at_once=st.booleans())
    def let_go(self, binding: tuple[Pair, int], at_once: bool) -> None:  # noqa: FBT001 (drawn)
        pair, number = binding
        last = self.live[pair].count(number) == 1
        if at_once:
            self.bindings.drop(pair, number)
        elif number:
            self.bindings.release(pair, number, self.now)
            if last:
                self.waiting.append((self.now + QUARANTINE, pair, number))
        if number:
            self.live[pair].remove(number)

    @rule(target=given_numbers, pair=st.sampled_from(PAIRS), data=st.data())
    def keep(self, pair: Pair, data: st.DataObject) -> object:
        waiting = [number for _, p, number in self.waiting if p == pair]
        number = data.draw(st.sampled_from([*waiting, 0x4321]))

        assert (number in waiting) == self.bindings.keep(pair, number)

        if number not in waiting:
            return multiple()
        self.waiting = [each for each in self.waiting if each[1:] != (pair, number)]
        self.live[pair].append(number)
        return pair, number

    @rule(seconds=st.sampled_from((0.0, 1.0, 30.0, 60.0)))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.bindings.tick(self.now)
        self.waiting = [each for each in self.waiting if each[0] > self.now]

    @invariant()
    def the_table_is_the_model(self) -> None:
        if not hasattr(self, "bindings"):
            return
        used = {pair: len(self.taken(pair)) for pair in PAIRS if self.taken(pair)}
        assert used == self.bindings.used()
        assert sorted(self.waiting) == sorted(self.bindings.quarantined())
        assert min((each[0] for each in self.waiting), default=None) == self.bindings.next_timer()
        for pair in PAIRS:
            for number in self.taken(pair):
                assert self.bindings.has(pair, number)

    def teardown(self) -> None:
        """After the last release and quarantine the table is empty."""
        if not hasattr(self, "bindings"):
            return
        for pair, numbers in self.live.items():
            for number in numbers:
                self.bindings.release(pair, number, self.now)
        self.bindings.tick(self.now + QUARANTINE)
        assert {} == self.bindings.used()
        assert [] == self.bindings.quarantined()
        assert {} == dict(self.bindings._shares)


TestBindings = BindingsMachine.TestCase
TestBindings.settings = effort(120, steps=40)


def drawn_bindings(**options) -> Bindings:
    drawn = random.Random(4)
    return Bindings(lambda: drawn.randrange(1 << 16), **options)


@pytest.mark.parametrize("preserve", [False, True])
def test_all_numbers_of_a_pair_are_given_and_not_one_more(preserve: bool) -> None:  # noqa: FBT001 (a parameter)
    """65,535 calls towards one server; the next is refused and nothing changes."""
    bindings = drawn_bindings(preserve=preserve)
    pair, other = PAIRS
    given = set()
    for own in range(LIMIT):
        block = bindings.choose_block(pair, own >> 8, like=None, unlike=set())
        given.add(bindings.reserve(pair, own, block))
    assert set(range(1, LIMIT + 1)) == given

    for own in (0, 7, 0xFFFF):
        with pytest.raises(ExhaustedError):
            bindings.choose_block(pair, own >> 8, like=0x12, unlike={0x34})
        with pytest.raises(ExhaustedError):
            bindings.reserve(pair, own, 0x12)
    assert bindings.used() == {pair: LIMIT}
    assert not bindings.claim(pair, 7)
    assert not bindings.claim(pair, 7, shared=True)
    assert bindings.reserve(other, 7, bindings.choose_block(other, 0, like=None, unlike=set()))

    bindings.drop(pair, 0x1234)
    block = bindings.choose_block(pair, 0, like=0, unlike={0x12})
    assert bindings.reserve(pair, 7, block) == 0x1234


def test_a_full_block_is_left_for_another() -> None:
    """One octet no longer decides the other then, but the call gets its number."""
    bindings = drawn_bindings()
    pair = PAIRS[0]
    for low in range(256):
        bindings.reserve(pair, low, 0x12)

    assert bindings.choose_block(pair, 0x12, like=0x12, unlike=set()) != 0x12


def test_the_own_number_is_kept_where_it_is_free() -> None:
    """With ``preserve``, a capture on either side shows the same number."""
    bindings = drawn_bindings(preserve=True)
    pair = PAIRS[0]

    assert bindings.reserve(pair, 0x1234, 0x12) == 0x1234
    assert bindings.reserve(pair, 0x1234, 0x12) not in (0, 0x1234)
    assert bindings.choose_block(pair, 0x56, like=None, unlike={0x56}) != 0x56


def test_blocks_of_other_numbers_are_avoided_while_there_are_others() -> None:
    """Otherwise the first octet of a cut field would not decide the first octet sent on."""
    bindings = drawn_bindings()
    unlike = set(range(256)) - {0x77}

    assert bindings.choose_block(PAIRS[0], 1, like=None, unlike=unlike) == 0x77
    assert bindings.choose_block(PAIRS[0], 1, like=None, unlike=set(range(256))) in range(256)


def test_another_worker_s_number_that_goes_makes_no_room_in_a_full_block() -> None:
    """A block said to have room, and that has none, refuses calls that other blocks could take."""
    part = Part(0, 2)
    bindings, pair = drawn_bindings(part=part), PAIRS[0]
    ours = [low for low in range(256) if part.has_number(low)]
    assert bindings.claim(pair, 0x1201, shared=True), "of this router's own client"
    given = [bindings.reserve(pair, 7, 0x12) for _ in ours]
    assert sorted(given) == [0x1200 + low for low in ours]
    bindings.drop(pair, 0x1201)

    assert bindings.choose_block(pair, 0x12, like=0x12, unlike=set()) != 0x12
    bindings.drop(pair, given[0])
    assert bindings.choose_block(pair, 0x12, like=0x12, unlike=set()) == 0x12
