"""Finding calls by number: the few by looking, the many by an index, and both agree."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core import calls
from pptp_nat.core.bindings import Bindings
from pptp_nat.core.book import Book, Settings
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.index import Index
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Flow, Leg, Party, Placement, Seat, flow_key

from .effort import effort

A, X, S = bytes((192, 168, 77, 10)), bytes((198, 18, 7, 1)), bytes((198, 18, 7, 2))
FLOW = Flow(A, 4711, S, 1723)
PLACEMENT = Placement(FLOW, Seat(A, X), Seat(S, S), 5)
NUMBERS = st.sampled_from((0, 1, 0x1200, 0xFFFF))


def connection(*, is_local: bool = False, placement: Placement = PLACEMENT) -> Connection:
    return Connection.placed(1, placement, 0.0, is_local=is_local)


@given(st.lists(st.tuples(
    st.sampled_from(("add", "renumber", "end", "remove")), st.integers(0, 11),
    st.sampled_from(Party), NUMBERS, NUMBERS,
), max_size=40))  # fmt: skip
@effort(300)
def test_many_calls_are_found_as_few_are(steps: list[tuple[str, int, Party, int, int]]) -> None:
    """A number leads to the call that has it; one that is gone only if no other has it.

    The model: a number has one owner that is not gone, the book sees to that.
    """
    followed = connection()
    model: list[Call] = []
    for step, which, party, own, seen in steps:
        if step == "add":
            call = Call(len(model) + 100 * which, followed, Party.ORIGINATOR, Party.ORIGINATOR, 0.0)
            if any(each.id == call.id for each in model):
                continue
            followed.add(call)
            model.append(call)
            continue
        if not model:
            continue
        call = model[which % len(model)]
        if step == "renumber" and call.state is not CallState.GONE:
            for other in model:  # as `Book.hand_over` does
                if other.state is not CallState.GONE and (
                    other.own[party] == own or other.seen[party] == seen
                ):
                    followed.renumber(other, party, NOBODY, NOBODY)
            followed.renumber(call, party, own, seen)
        elif step == "end":
            call.state = CallState.GONE
        elif step == "remove" and call.state is CallState.GONE:
            followed.remove(call)
            model.remove(call)

        for number in (0, 1, 0x1200, 0xFFFF, 77):
            for at in Party:
                for as_seen in (False, True):
                    owners = [c for c in model if (c.seen if as_seen else c.own)[at] == number]
                    live = [c for c in owners if c.state is not CallState.GONE]
                    found = followed.find(at, number, seen=as_seen)
                    if live:
                        assert live == [found]
                    elif found is not None:
                        assert found in owners
    assert {call.id for call in model} == {call.id for call in followed.calls}


def test_an_index_is_made_only_where_calls_are_many() -> None:
    """Most connections carry one call: an index for each would be most of the memory."""
    followed = connection()
    for number in range(calls._FEW + 1):
        assert not isinstance(followed._kept, Index)
        call = Call(number, followed, Party.ORIGINATOR, Party.ORIGINATOR, 0.0)
        followed.add(call)
        followed.renumber(call, Party.ORIGINATOR, number, number + 0x100)

    assert isinstance(followed._kept, Index)
    assert [(0, 1)] == sorted(set(followed.blocks(Party.ORIGINATOR)))
    assert [] == list(followed.blocks(Party.RESPONDER))


def test_a_connection_says_where_everybody_sits() -> None:
    """The placement is kept packed and must come back whole."""
    followed = connection()

    assert followed.placement == PLACEMENT
    assert followed.flow == FLOW
    assert followed.key == flow_key(FLOW)
    assert [X] == [each for each in followed.seen_as if each]
    assert followed.pair(Party.ORIGINATOR) == (X, S)
    assert followed.pair(Party.RESPONDER) == (S, A)
    helped = connection(placement=PLACEMENT._replace(helper="pptp"))
    assert helped.placement.helper == "pptp"


def test_a_leg_translates_where_somebody_is_inside() -> None:
    """Towards an inside host destination and key change, towards the world the source."""
    call = Call(1, connection(), Party.ORIGINATOR, Party.ORIGINATOR, 0.0)
    assert call.leg(Party.ORIGINATOR) is None
    call.give(Party.ORIGINATOR, 7, 0x5555)
    call.give(Party.RESPONDER, 100, 100)

    assert call.leg(Party.ORIGINATOR) == Leg(S, X, 0x5555, S, A, 7)
    assert call.leg(Party.RESPONDER) == Leg(A, S, 100, X, S, 100)
    plain = PLACEMENT._replace(originator=Seat(A, A))
    routed = Call(1, connection(placement=plain), Party.ORIGINATOR, Party.ORIGINATOR, 0.0)
    routed.give(Party.ORIGINATOR, 7, 7)
    leg = routed.leg(Party.ORIGINATOR)
    assert leg is not None
    assert not leg.translates


def test_the_routers_own_calls_need_no_legs() -> None:
    """Their GRE does not travel through."""
    own = PLACEMENT._replace(flow=Flow(X, 4711, S, 1723), originator=Seat(X, X))
    call = Call(1, connection(placement=own, is_local=True), Party.ORIGINATOR, Party.ORIGINATOR, 0)
    call.give(Party.ORIGINATOR, 7, 7)

    assert call.leg(Party.ORIGINATOR) is None


def test_what_thousands_have_in_common_is_kept_once_and_not_for_ever() -> None:
    """Names are the peers' to choose: a thousand different ones must not pile up."""
    book = Book(Bindings(lambda: 0), Settings())
    first = book.one_for_all(tuple(["a name"]))  # noqa: C409 (not the compiler's one copy)

    assert book.one_for_all(tuple(["a name"])) is first  # noqa: C409
    for number in range(1000):
        book.one_for_all((str(number),))
    assert len(book._shared) <= 256


times = st.one_of(st.floats(-1e9, 1e9), st.floats())
codes = st.tuples(*(st.integers(0, most) for most in (0x7FFF, 0xFF, 0xFF, 0xFFFF)))
numbers = st.integers(0, 0xFFFF)


@given(
    st.sampled_from(Party), st.sampled_from(Party), times, st.none() | times,
    st.sampled_from([None, *End]), st.none() | codes, st.tuples(numbers, numbers, numbers, numbers),
    st.permutations(range(5)),
)  # fmt: skip
def test_what_a_call_knows_comes_back_whatever_was_told_first(
    requester, pns, created, up_since, end, codes, four, order
) -> None:
    """All of it lies in one int; a time is told to the microsecond, and stays what it is told."""
    call = Call(7, connection(), requester, pns, created)
    own, others_own, seen, others_seen = four
    tell = [
        lambda: call.give(Party.ORIGINATOR, own, seen),
        lambda: call.give(Party.RESPONDER, others_own, others_seen),
        lambda: setattr(call, "up_since", up_since),
        lambda: setattr(call, "end", end),
        lambda: setattr(call, "codes", codes),
    ]
    for at in order:
        tell[at]()
    call.give(Party.RESPONDER, others_own, others_seen)
    call.up_since = call.up_since

    assert (own, others_own, seen, others_seen, requester, pns, call.created) == call.lasting
    assert ((own, others_own), (seen, others_seen)) == (call.own, call.seen)
    assert (requester, pns, end, codes) == (call.requester, call.pns, call.end, call.codes)
    assert call.over == (end, codes)
    for said, kept in ((created, call.created), (up_since, call.up_since)):
        if said is None or abs(said) > 1e9 or said != said:  # noqa: PLR0124  NaN
            assert (kept is None) == (said is None)
            continue
        assert 0 <= said - kept < 1e-6
        again = Call(8, call.connection, requester, pns, kept)
        assert again.created == kept


def test_a_call_that_goes_on_takes_no_more_than_two_objects() -> None:
    """Of a hundred thousand calls each object besides takes 32 octets at least."""
    call = Call(1 << 20, connection(), Party.ORIGINATOR, Party.ORIGINATOR, 86400.0 * 1000)
    for party in Party:
        call.give(party, 0xFFFF, 0xFFFF)
    call.up_since = 86400.0 * 1000 + 0.125

    assert sys.getsizeof(call._bits) <= 48
    assert sys.getsizeof(call) <= 88  # 80, and where it is compiled what finds its methods
    assert (call.last_gre, call.packets) == (None, 0)
