"""Rewriting commutes with segmentation: what TCP does to the octets changes none of them.

The one exception is the quirk ``cut_call_id`` of `pptp_nat.core.dialogue`: a
number that no call has, or that only a quirk explains, cut in two and waited
for in vain.  Its first octet may be that of a call's number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hypothesis import event, given
from hypothesis import strategies as st

from pptp_nat.core.messages import LAYOUTS
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Flow, Party, Placement, Seat

from .effort import effort
from .hosts import Round, conversations, split
from .legs import assert_empty, run_out
from .network import Weather, Wire

ALICE, BOB = bytes((192, 168, 77, 10)), bytes((10, 0, 0, 9))
ROUTER, ROUTER_TOO = bytes((198, 18, 7, 1)), bytes((203, 0, 113, 1))
SERVER = bytes((198, 18, 7, 2))
FLOWS = {
    "opener inside": Placement(
        Flow(ALICE, 4711, SERVER, 1723), Seat(ALICE, ROUTER), Seat(SERVER, SERVER), 0
    ),
    "responder inside": Placement(
        Flow(SERVER, 4711, BOB, 1723), Seat(SERVER, SERVER), Seat(BOB, ROUTER), 0
    ),
    "hairpin": Placement(
        Flow(ALICE, 4711, BOB, 1723), Seat(ALICE, ROUTER), Seat(BOB, ROUTER_TOO), 0
    ),
    "plain routing": Placement(
        Flow(ALICE, 4711, SERVER, 1723), Seat(ALICE, ALICE), Seat(SERVER, SERVER), 0
    ),
}


class Setting(NamedTuple):
    """Where the hosts are and what the router is like."""

    place: str
    drawn: int
    preserve: bool
    crowd: list[int]  #: numbers that other inside hosts have already


SETTINGS = st.builds(
    Setting,
    st.sampled_from(sorted(FLOWS)),
    st.integers(0, 0xFFFF),
    st.booleans(),
    st.lists(st.sampled_from((0x1200, 0x1201, 0x0001, 0xFFFF, 0x1334)), max_size=5),
)
# Sequence numbers that wrap during the conversation are the interesting ones.
STARTS = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(-600, 0).map(lambda n: n & 0xFFFFFFFF))
WEATHER = st.builds(
    Weather, st.sampled_from((0.5, 0.3, 0.1)), st.integers(0, 0xFFFF), st.booleans(), st.booleans()
)


def wire_of(
    setting: Setting, starts: tuple[int, int], weather: Weather, *,
    draw: Callable[[], int] | None = None,
) -> Wire:  # fmt: skip
    placement = FLOWS[setting.place]
    translator = Translator(
        lambda _: placement, draw or (lambda: setting.drawn), preserve=setting.preserve
    )
    wire = Wire(translator, placement.flow, starts, weather)
    for party in Party:
        if placement.seat(party).inside:
            for number in setting.crowd:
                pair = placement.seat(party).seen_as, placement.seat(party.other).own
                translator.claim(*pair, number)
    return wire


def doubtful(rounds: list[Round], party: Party, octets: bytes) -> Iterator[int]:
    """Yield where the first octets of numbers are that no call explains."""
    at = 0
    ops = [op for spoken in rounds for op in spoken[party]]
    for op, message in zip(ops, split(octets), strict=True):
        if op.call is None or op.quirk in ("pns", "swapped"):
            yield from (at + field for field, _ in LAYOUTS[op.kind].fields)
        at += len(message)


def end(wire: Wire, setting: Setting) -> None:
    """Let all times run out; nothing may be left."""
    for pair in wire.translator.book.bindings.used():
        for number in set(setting.crowd):
            wire.translator.book.bindings.drop(pair, number)
    now = run_out(wire.translator, wire.legs, wire.now)
    assert_empty(wire.translator, wire.legs)
    assert now < wire.now + 9 * 3600


@given(
    SETTINGS, conversations(), st.tuples(STARTS, STARTS), WEATHER,
    st.sampled_from(((), (0,), (1,), (0, 1))),
)
@effort(250)
def test_what_tcp_does_to_the_octets_changes_none_of_them(
    setting: Setting, rounds: list[Round], starts: tuple[int, int], weather: Weather,
    closers: tuple[int, ...],
) -> None:  # fmt: skip
    """Cuts, losses, repeats and another order: same octets, same numbers, same calls."""
    calm = wire_of(setting, (7, 7), Weather())
    rough = wire_of(setting, starts, weather)
    for wire in (calm, rough):
        for spoken in rounds:
            wire.speak(spoken)
    counts = rough.translator.book.counts
    for party in Party:
        expected, actual = calm.outputs[party], rough.outputs[party]
        assert len(expected) == len(actual)
        differing = {at for at in range(len(actual)) if expected[at] != actual[at]}
        if counts["cut_call_id"]:
            differing -= set(doubtful(rounds, party, expected))
        assert set() == differing
    event(f"cut_call_id: {bool(counts['cut_call_id'])}, {setting.place}")

    for wire in (calm, rough):
        wire.finish([Party(closer) for closer in closers])
        end(wire, setting)


@given(SETTINGS, conversations(), WEATHER)
@effort(120)
def test_whatever_numbers_are_drawn_the_hosts_understand_each_other(
    setting: Setting, rounds: list[Round], weather: Weather
) -> None:  # fmt: skip
    """A draw that never gives the same twice: what was sent on once is never decided again."""
    drawn = random.Random(setting.drawn)
    wire = wire_of(
        setting, (7, 7), weather, draw=lambda: drawn.randrange(1 << 16)
    )
    for spoken in rounds:
        wire.speak(spoken)
    wire.finish([Party.ORIGINATOR])
    end(wire, setting)
