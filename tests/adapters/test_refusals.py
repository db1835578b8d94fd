"""Why a new call was refused: a slug for machines, a sentence for people, and no others."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pptp_nat.core
from pptp_nat import log
from pptp_nat.core.book import Settings
from pptp_nat.router.news import REFUSALS, News
from tests.scenario.ladder import ALICE, PAC, Ladder

CORE = Path(pptp_nat.core.__file__).parent


def raised() -> set[str]:
    """Return the reasons that the core's code gives."""
    return {
        argument.value
        for path in CORE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ExhaustedError"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }


def test_every_reason_is_a_slug_with_a_sentence() -> None:
    assert raised() == set(REFUSALS)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", slug) for slug in REFUSALS)


def test_the_log_says_why_a_call_was_refused() -> None:
    nat = Ladder(Settings(calls=1))
    first = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    nat.call(ALICE, call_id=2, over=first.tcp).to(PAC)
    lines = io.StringIO()
    log.configure("warning", 0, lines)

    News(lambda *_: None, lambda: False, lambda: True).tell(nat.events, {})

    assert 'reason=calls_limit text="limits.calls are up already"' in lines.getvalue()
