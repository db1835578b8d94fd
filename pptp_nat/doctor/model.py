"""What the doctor says: one judgement for each thing that is looked at."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pptp_nat.linux.preflight import Finding, Severity


class Outcome(enum.Enum):
    """How a check went; the values are stable."""

    PASS = "pass"
    WARN = "warn"  #: works badly, may fail, or cannot be found out
    FAIL = "fail"  #: PPTP does not pass as long as this is so


class Judgement(NamedTuple):
    """The outcome of one check."""

    check: str  #: stable slug
    outcome: Outcome
    text: str  #: one line: what was seen, and where
    mend: str = ""  #: one line: what to do; "" where all is well


def worst(judgements: Iterable[Judgement]) -> Outcome:
    """Return the worst outcome there is; PASS where nothing was looked at."""
    order = list(Outcome)
    return max((each.outcome for each in judgements), key=order.index, default=Outcome.PASS)


Judged = Iterator[Judgement]


def of(findings: Iterable[Finding], check: str, *, warn: bool = False) -> Judged:
    """Turn findings of the start-up checks into judgements; *warn*: none of them fails."""
    for severity, what, mend in findings:
        failed = severity is Severity.REFUSE and not warn
        yield Judgement(check, Outcome.FAIL if failed else Outcome.WARN, what, mend)


def or_pass(judgements: Iterable[Judgement], check: str, text: str) -> Judged:
    """Yield *judgements*, or if there are none that all is well."""
    found = list(judgements)
    yield from found or [Judgement(check, Outcome.PASS, text)]
