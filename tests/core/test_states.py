"""The two tables of states: complete, connected, and the only way a state changes."""

import ast
from itertools import product
from pathlib import Path

import pytest

from pptp_nat import core
from pptp_nat.core.book import LIVE
from pptp_nat.core.messages import REPLIES, MessageType
from pptp_nat.core.states import (
    CALL_ENDINGS,
    CALL_TRANSITIONS,
    CONTROL_TRANSITIONS,
    IMPLIES_OPEN,
    Answer,
    CallState,
    ControlState,
    TcpEnd,
    after_message,
    control_after,
)

M = MessageType
FOLDER = Path(core.__file__).parent


def call_successors(state: CallState) -> set[CallState]:
    """Where messages and the end of the connection can lead."""
    after = {after_message(state, kind, answer) for kind, answer in product(M, Answer)}
    return {each for each in after if each is not None}


def control_successors(state: ControlState) -> set[ControlState]:
    """Where messages and TCP can lead, a new SYN left out."""
    events = (*M, *(end for end in TcpEnd if end is not TcpEnd.REPLACED))
    after = {control_after(state, event, answer) for event, answer in product(events, Answer)}
    return {each for each in after if each is not None}


def reachable(start, successors):
    seen, new = {start}, {start}
    while new:
        new = {after for state in new for after in successors(state)} - seen
        seen |= new
    return seen


def test_every_call_state_is_reachable() -> None:
    """A state that nothing leads to is decoration."""
    assert set(CallState) == reachable(CallState.IDLE, call_successors)


@pytest.mark.parametrize("state", CallState)
def test_every_call_can_end(state: CallState) -> None:
    """A call without a way out keeps its number for ever."""
    assert CallState.GONE in reachable(state, call_successors)


def test_no_way_leads_back_from_gone() -> None:
    """Its number is in quarantine: nothing may use it again."""
    assert set() == call_successors(CallState.GONE)


def test_every_control_state_is_reachable_and_can_end() -> None:
    """FIN and then the grace period end a connection in whatever state."""
    assert set(ControlState) == reachable(ControlState.OPENING, control_successors)
    for state in ControlState:
        assert ControlState.CLOSED in reachable(state, control_successors)
        assert ControlState.CLOSED is control_after(state, TcpEnd.REPLACED)


def test_clearing_is_legal_in_any_state() -> None:
    """RFC 2637 sections 2.12 and 2.13."""
    for state, kind in product(set(CallState) - {CallState.GONE}, CALL_ENDINGS):
        assert CALL_ENDINGS[kind] is after_message(state, kind)


def test_only_a_reply_says_no() -> None:
    """A row with NO for a message that cannot say it would never be used."""
    for table in (CALL_TRANSITIONS, CONTROL_TRANSITIONS):
        for _, kind, answer in table:
            assert answer is Answer.YES or kind in REPLIES


def test_a_repeat_of_the_last_message_is_not_unexpected() -> None:
    """Peers repeat a request that was not answered in time."""
    for (_, kind, answer), state in CALL_TRANSITIONS.items():
        if state is not CallState.GONE:
            assert state is after_message(state, kind, answer), (state, kind)


def test_what_only_an_open_connection_carries_opens_it() -> None:
    """A connection met in the middle has shown no Start-Control-Connection-Reply."""
    starts_and_stops = {kind for kind in M if kind <= M.STOP_CONTROL_CONNECTION_REPLY}
    assert set(M) - starts_and_stops == IMPLIES_OPEN
    for kind in IMPLIES_OPEN:
        assert ControlState.OPEN is control_after(ControlState.OPENING, kind)


def test_live_means_neither_ending_nor_unasked_for() -> None:
    """What is live carries GRE and keeps its number."""
    assert set(CallState) - {CallState.IDLE, CallState.CLEARING, CallState.GONE} == LIVE


def test_only_the_book_writes_states() -> None:
    """A table that something else can get round is decoration; constructors set the first one."""
    writers = set()
    for path in FOLDER.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                writers |= {
                    f"{path.name}:{function.name}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute | ast.Name)
                    and isinstance(node.ctx, ast.Store | ast.Del)
                    and isinstance(node, ast.Attribute)
                    and node.attr == "state"
                }

    assert writers == {"book.py:move", "book.py:move_connection", "book.py:put_back"}
