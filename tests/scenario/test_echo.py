"""Echoes: who has answered whom, when, and how long it took from here and back."""

import pytest

from pptp_nat.core.messages import MessageType as M
from pptp_nat.core.tuples import Party

from .ladder import ALICE, PAC, Host, Ladder, Tcp


def asked(nat: Ladder, tcp: Tcp, who: Host, identifier: int, *, after: float = 0.0) -> None:
    nat.wait(after)
    tcp.say(who, M.ECHO_REQUEST, identifier=identifier)


def answered(nat: Ladder, tcp: Tcp, who: Host, identifier: int, *, after: float = 0.0) -> None:
    nat.wait(after)
    tcp.say(who, M.ECHO_REPLY, identifier=identifier, result=1)


@pytest.mark.parametrize(("asks", "replies"), [(ALICE, PAC), (PAC, ALICE)], ids=str)
def test_an_echo_is_known_with_how_long_it_took(nat: Ladder, asks: Host, replies: Host) -> None:
    """From this router to who answers and back: half of the way, and whose half is told."""
    tcp = nat.connect(ALICE, PAC)
    asked(nat, tcp, asks, 0xABCD0001, after=60)
    answered(nat, tcp, replies, 0xABCD0001, after=0.25)
    assert tcp.followed is not None
    echo = tcp.followed.last_echo

    assert echo is not None
    assert (echo.by, echo.at) == (tcp.party(replies), nat.now)
    assert echo.seconds == pytest.approx(0.25, abs=1e-6)


def test_without_an_echo_nothing_is_known(nat: Ladder) -> None:
    """Many clients never send one while there are calls."""
    tcp = nat.connect(ALICE, PAC)

    assert tcp.followed is not None
    assert tcp.followed.last_echo is None
    asked(nat, tcp, ALICE, 1)
    assert tcp.followed.last_echo is None


@pytest.mark.parametrize("reply", [(PAC, 2), (ALICE, 1)], ids=["another number", "who has asked"])
def test_an_answer_to_nothing_says_nothing(nat: Ladder, reply: tuple[Host, int]) -> None:
    """A peer that makes up answers must not look alive."""
    tcp = nat.connect(ALICE, PAC)
    answered(nat, tcp, *reply)
    asked(nat, tcp, ALICE, 1)
    answered(nat, tcp, *reply, after=1)

    assert tcp.followed is not None
    assert tcp.followed.last_echo is None


def test_one_question_has_one_answer(nat: Ladder) -> None:
    """The second is to nothing; its delay would be none."""
    tcp = nat.connect(ALICE, PAC)
    asked(nat, tcp, ALICE, 1)
    answered(nat, tcp, PAC, 1, after=0.5)
    answered(nat, tcp, PAC, 1, after=9)

    assert tcp.followed is not None
    assert tcp.followed.last_echo is not None
    assert tcp.followed.last_echo.seconds == pytest.approx(0.5)


def test_the_last_answer_is_kept_while_the_next_question_waits(nat: Ladder) -> None:
    """And the next answer takes its place, also from the other end."""
    tcp = nat.connect(ALICE, PAC)
    asked(nat, tcp, ALICE, 1)
    answered(nat, tcp, PAC, 1, after=0.5)
    asked(nat, tcp, PAC, 7, after=60)
    assert tcp.followed is not None
    kept = tcp.followed.last_echo
    answered(nat, tcp, ALICE, 7, after=0.125)
    new = tcp.followed.last_echo

    assert kept is not None
    assert new is not None
    assert (kept.by, new.by) == (Party.RESPONDER, Party.ORIGINATOR)
    assert new.seconds == pytest.approx(0.125)
