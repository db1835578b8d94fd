"""What is said of loss, order, delay and windows, against counting with the fingers."""

import math
from itertools import accumulate

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pptp_nat.analysis.gre_measures import Delays
from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.packets import ABSENT, NO_COLUMNS, Evidence, GrePacket, Row, columns_of
from pptp_nat.core.messages import Role
from tests.analysis.fed import gre_packets, quality_of
from tests.analysis.story import ALICE, PAC_ROLE, PNS, SERVER, Call, Story

MEASURES = (
    "packets", "octets", "data", "acknowledging", "lost", "duplicates", "reordered", "depth",
    "restarts", "outstanding", "acks_of_unseen", "longest_gap", "lengths", "silence", "loss",
    "first", "last", "losses", "stalls", "unanswered",
)  # fmt: skip


def sent(*sequences: int, start: float = 100.0, step: float = 0.1, length: int = 50) -> list[Row]:
    """Packets with these numbers, one each tenth of a second."""
    return [
        (start + at * step, at + 1, length, sequence & 0xFFFFFFFF, ABSENT, 0)
        for at, sequence in enumerate(sequences)
    ]


def measured(
    rows: list[Row], heard: list[Row] | None = None, batch: int | None = None
) -> GreQuality:
    """Feed rows of one direction and of the other, in time slices of *batch* packets."""
    quality = GreQuality()
    heard = heard or []
    everything = sorted([*((row, 0) for row in rows), *((row, 1) for row in heard)])
    size = batch or len(everything)
    for at in range(0, len(everything), size):
        part = everything[at : at + size]
        quality.feed_many(
            columns_of([row for row, which in part if not which]),
            columns_of([row for row, which in part if which]),
        )
    return quality


def alice_and_server() -> Call:
    return Story().dial(ALICE, SERVER)


@st.composite
def arrivals(draw: st.DrawFn) -> list[int]:
    """Numbers as they come past: some missing, some twice, some late."""
    first = draw(st.sampled_from([0, 1, 17, 2**32 - 20]))
    numbers = list(range(first, first + draw(st.integers(1, 60))))
    kept = [n for n in numbers[1:-1] if draw(st.integers(0, 9)) > 0]
    numbers = [numbers[0], *kept, numbers[-1]]
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(1, len(numbers)))
        numbers.insert(draw(st.integers(at, len(numbers))), numbers[at - 1])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(numbers) - 1))
        moved = numbers.pop(at)
        numbers.insert(min(at + draw(st.integers(0, 5)), len(numbers)), moved)
    # The first numbers of a count, come so late, are a new count.
    highest = accumulate(numbers, max)
    assume(all(n & 0xFFFFFFFF > 1 or top - n < 32 for n, top in zip(numbers, highest, strict=True)))
    return numbers


@given(arrivals(), st.integers(1, 80))
def test_loss_repeats_and_order_are_what_counting_says(numbers: list[int], batch: int) -> None:
    begin, seen, highest = numbers[0], set(), numbers[0] - 1
    repeats = late = depth = 0
    for number in numbers:
        if number in seen or number < begin:
            repeats += 1  # what is from before the first packet cannot be told from a repeat
        elif number < highest:
            late += 1
            depth = max(depth, highest - number)
        seen.add(number)
        highest = max(highest, number)

    quality = measured(sent(*numbers), batch=batch)

    assert quality.duplicates == repeats
    assert quality.reordered == late
    assert quality.depth == depth
    assert quality.lost == sum(each not in seen for each in range(begin, highest))
    assert quality.data == len(numbers)
    assert quality.restarts == 0


@given(
    arrivals(),
    st.lists(st.tuples(st.floats(0, 8), st.integers(-3, 60)), max_size=40),
    st.integers(1, 80),
)
def test_how_the_packets_are_cut_into_batches_changes_nothing(
    numbers: list[int], acks: list[tuple[float, int]], batch: int
) -> None:
    heard = [
        (
            100.0 + at,
            1000 + index,
            0,
            ABSENT,
            ABSENT if ack < 0 else numbers[0] + ack & 0xFFFFFFFF,
            0,
        )
        for index, (at, ack) in enumerate(sorted(acks))
    ]
    rows = sent(*numbers)
    # Acknowledgements of numbers that are only now on their way depend on how far one looks.
    whole, pieces = measured(rows, heard), measured(rows, heard, batch)

    different = {name for name in MEASURES if getattr(whole, name) != getattr(pieces, name)}
    assert different <= {"acks_of_unseen", "outstanding", "stalls"}
    if all(row[4] == ABSENT for row in heard):
        assert not different


def test_numbers_go_on_behind_the_last_of_32_bits() -> None:
    quality = measured(sent(*range(2**32 - 3, 2**32 + 3)))

    assert (quality.data, quality.lost, quality.restarts) == (6, 0, 0)


def test_a_count_begun_anew_is_no_loss() -> None:
    quality = measured(sent(*range(5000, 5100), *range(100)))

    assert (quality.restarts, quality.lost, quality.duplicates) == (1, 0, 0)


def test_a_leap_is_a_new_count_and_not_a_million_losses() -> None:
    quality = measured(sent(1, 2, 3, 9_000_000, 9_000_001))

    assert (quality.restarts, quality.lost) == (1, 0)


def test_an_acknowledgement_tells_the_delay_of_the_packet_that_it_names() -> None:
    rows = sent(0, 1, 2, 3, step=1.0)
    heard = [(row[0] + 0.25, 50 + row[3], 0, ABSENT, row[3], 0) for row in rows]

    quality = measured(rows, heard)

    assert quality.delays.count == 4
    assert quality.delays.percentile(0.5) == pytest.approx(0.25, rel=0.01)
    assert quality.outstanding == 1


def test_an_acknowledgement_covers_all_before_it() -> None:
    quality = measured(sent(0, 1, 2, 3, 4), [(100.55, 99, 0, ABSENT, 4, 0)])

    assert quality.outstanding == 5
    assert quality.delays.count == 1


def test_the_acknowledgement_of_what_never_came_past_is_told() -> None:
    quality = measured(sent(0, 1), [(100.5, 99, 0, ABSENT, 77, 0)])

    assert quality.acks_of_unseen == 1
    assert quality.delays.count == 0


def test_outstanding_packets_and_delay_stand_in_the_bin_of_their_time() -> None:
    rows = sent(*range(100), step=0.01)  # a second
    heard = [(101.5, 500, 0, ABSENT, 99, 0)]

    timeline = measured(rows, heard).timeline

    assert sum(each.octets for _, each in timeline.items()) == 5000
    assert [begin for begin, each in timeline.items() if each.delayed] == [101.5]
    assert max(each.outstanding for _, each in timeline.items()) == 100


def test_a_day_has_no_more_bins_than_a_minute() -> None:
    rows = sent(*range(5000), step=17.28)

    timeline = measured(rows, batch=100).timeline

    assert len(timeline.bins) <= 128
    assert sum(each.packets for _, each in timeline.items()) == 5000
    assert all(begin % timeline.width == 0 for begin, _ in timeline.items())


def test_a_sender_that_waits_for_the_window_is_seen_to_wait() -> None:
    """Four packets, then nothing until the acknowledgement, then the next four at once."""
    rows, heard = [], []
    for turn in range(3):
        rows += [
            (100.0 + turn * 2 + at * 0.001, turn * 10 + at + 1, 900, turn * 4 + at, ABSENT, 0)
            for at in range(4)
        ]
        heard.append((101.99 + turn * 2, turn * 10 + 9, 0, ABSENT, turn * 4 + 3, 0))

    quality = measured(rows, heard)

    assert len(quality.stalls) == 2
    assert {stall.outstanding for stall in quality.stalls} == {4}
    assert quality.stalled == pytest.approx(2 * 1.997)
    assert measured(rows, heard, 1).stalls == quality.stalls


def test_a_sender_with_nothing_to_say_does_not_wait() -> None:
    rows = sent(0, 1, 2, step=2.0)
    heard = [(row[0] + 0.5, 90 + row[3], 0, ABSENT, row[3], 0) for row in rows]

    assert measured(rows, heard).stalls == []


def test_a_silence_counts_where_the_other_side_spoke_in_it() -> None:
    rows = sent(0, 1, step=60.0)
    heard = sent(*range(10), start=110.0, step=1.0)

    quality = measured(rows, heard)

    assert quality.silence is not None
    assert (quality.silence.seconds, quality.silence.heard) == (60.0, 10)
    assert measured(rows, heard, 1).silence == quality.silence
    assert measured(rows).silence is None


def test_who_never_answers_is_told_with_what_he_did_not_answer() -> None:
    quality = measured([], sent(*range(20)))

    assert quality.packets == 0
    assert quality.unanswered is not None
    assert quality.unanswered.heard == 20
    assert quality.unanswered.since is None


def test_a_call_to_and_fro_is_measured_both_ways() -> None:
    call = alice_and_server()
    call.link().prove().mppe().network().chat(20)
    packets = gre_packets(call.story.packets, ALICE.address)

    measures = quality_of(packets, batch=7)

    for role in Role:
        mine = [packet for packet in packets if packet.sender is role]
        assert measures[role].packets == len(mine)
        assert measures[role].octets == sum(packet.payload_length for packet in mine)
        assert (measures[role].lost, measures[role].duplicates) == (0, 0)
        assert measures[role].delays.percentile(0.5) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    ("flags", "slug"),
    [
        (0xB001, "checksum_flag"), (0x7001, "routing_flag"), (0x1001, "no_key_flag"),
        (0x3801, "source_route_flag"), (0x3101, "recursion_not_zero"), (0x3009, "reserved_flags"),
        (0x3000, "version_not_one"),
    ],
)  # fmt: skip
def test_flags_against_section_4_1_are_named(flags: int, slug: str) -> None:
    quality = GreQuality()
    quality.feed(odd(flags=flags))
    quality.settle()

    assert set(quality.oddities) == {slug}
    assert quality.packets == 1


def test_a_length_that_ip_does_not_carry_is_a_lie() -> None:
    quality = GreQuality()
    quality.feed(odd(claims=500))
    quality.settle()

    assert quality.lies == 1
    assert quality.octets == 40


def test_a_number_belongs_to_payload_and_to_nothing_else() -> None:
    quality = measured([(1.0, 1, 0, 5, ABSENT, 0), (2.0, 2, 40, ABSENT, 7, 0)])

    assert set(quality.oddities) == {"sequence_without_payload", "payload_without_sequence"}


def test_odd_packets_are_measured_among_the_ordinary_ones() -> None:
    """The odd come at once, the ordinary late: their order on the wire is what counts."""
    quality = GreQuality()
    quality.feed(odd(sequence=1, time=1.5))
    quality.feed_many(
        columns_of([(1.0, 1, 40, 0, ABSENT, 0), (2.0, 3, 40, 2, ABSENT, 0)]), NO_COLUMNS
    )

    assert (quality.data, quality.lost, quality.reordered) == (3, 0, 0)


def odd(
    *, flags: int = 0x3001, sequence: int = 1, claims: int = 40, time: float = 1.0
) -> GrePacket:
    return GrePacket(
        Evidence(0, 2, time), PNS, 1, flags, claims, 40, sequence, None, bytes(40), 80, 0
    )


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
@settings(max_examples=50)
def test_a_percentile_is_right_to_one_hundredth(values: list[float], share: float) -> None:
    delays = Delays()
    delays.add(values)

    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert delays.percentile(share) == pytest.approx(exact, rel=0.0101)


@given(st.lists(st.tuples(
    st.floats(0, 1e10), st.integers(0, 2**32), st.integers(0, 65535),
    st.integers(-1, 2**32 - 1), st.integers(-1, 2**32 - 1), st.integers(0, 2**32 - 1),
), max_size=50), st.integers(1, 9))  # fmt: skip
@settings(max_examples=50)
def test_any_numbers_at_any_times_are_measured_in_bounded_memory(
    rows: list[Row], batch: int
) -> None:
    both = measured(rows[::2], rows[1::2], batch)

    assert both.packets == len(rows[::2])
    assert both.lost >= 0
    assert len(both.timeline.bins) <= 128
    assert both.data + sum(row[3] == ABSENT for row in rows[::2]) == both.packets


def test_the_other_direction_is_the_server_s() -> None:
    call = alice_and_server()
    call.seal(PNS).seal(PAC_ROLE).seal(PAC_ROLE)

    measures = quality_of(gre_packets(call.story.packets, ALICE.address))

    assert (measures[PNS].packets, measures[PAC_ROLE].packets) == (1, 2)
