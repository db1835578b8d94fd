"""Judgements as text for people and as JSON (``docs/doctor.schema.json``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from pptp_nat import __version__
from pptp_nat.doctor.model import Judgement, Outcome, worst

#: 3 for a warning: 1 says that PPTP does not pass, 2 is for a wrong use
EXIT_CODES = {Outcome.PASS: 0, Outcome.WARN: 3, Outcome.FAIL: 1}


def line(judgement: Judgement) -> str:
    """Return a judgement as one line; what peers and files say is made harmless."""
    check, outcome, text, mend = judgement
    words = f"{outcome.value.upper()} {check}: {text}"
    return _clean(f"{words}; mend: {mend}" if mend else words)


def summary(judgements: Iterable[Judgement]) -> str:
    """Return one line that counts them."""
    counts = Counter(each.outcome for each in judgements)
    words = {Outcome.PASS: "passed", Outcome.WARN: "with a warning", Outcome.FAIL: "failed"}
    return ", ".join(f"{counts[outcome]} {words[outcome]}" for outcome in Outcome)


def as_json(judgements: Sequence[Judgement]) -> str:
    """Return all of them as one JSON object."""
    item = {
        "version": __version__,
        "outcome": worst(judgements).value,
        "checks": [
            {"check": check, "outcome": outcome.value, "text": text, "mend": mend or None}
            for check, outcome, text, mend in judgements
        ],
    }
    return json.dumps(item, indent=2)


def _clean(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
