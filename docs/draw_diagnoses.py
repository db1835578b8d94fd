# ruff: noqa: INP001  a script beside the pages, in no package
"""Draws the tables of docs/diagnoses.md from the tables of rules.

    python docs/draw_diagnoses.py            prints the page
    python docs/draw_diagnoses.py --write    writes it

tests/analysis/test_diagnosis.py compares the page with what is drawn here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pptp_nat.analysis.diagnosis import HEALTHY
from pptp_nat.analysis.rule import Rule
from pptp_nat.analysis.rules_call import CALL_RULES
from pptp_nat.analysis.rules_control import CONNECTION_RULES
from pptp_nat.analysis.rules_gre import GRE_RULES
from pptp_nat.analysis.rules_ppp import PPP_RULES
from pptp_nat.analysis.rules_whole import WHOLE_RULES

PAGE: Final = Path(__file__).with_name("diagnoses.md")

INTRODUCTION: Final = """# Diagnoses

What `pptp-nat analyze` and `pptp-nat monitor` can find, rule by rule.
The names are stable: scripts may look for them (`-o json`, `.diagnoses[].rule`).

An *error* keeps a call from working, a *warning* makes it work badly or may do so.
A *note* does no harm by itself, *ok* says that a call is well.
Each finding has its evidence, packets with the numbers that Wireshark gives them, and a remedy.

Where one finding explains another, only the first is told; the last column says which these are.
What both sides of a NAT show is told once, with the evidence of both.
Nothing is found without packets that show it.
A capture that ends too early, or was cut, gives fewer findings and no wrong ones.
"""

GROUPS: Final[Sequence[tuple[str, Sequence[Rule[Any]]]]] = (
    ("The control connection", CONNECTION_RULES),
    ("How a call comes up, what way its GRE takes, how it ends", CALL_RULES),
    ("PPP inside the call", PPP_RULES),
    ("The data of a call", GRE_RULES),
    ("Several calls, GRE of none, and the capture itself", WHOLE_RULES),
    ("And else", (HEALTHY,)),
)


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for title, rules in GROUPS:
        rows = ["| Rule | | What was seen | What to do | Not told with |", "|---|---|---|---|---|"]
        rows += map(_row, rules)
        parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(rule: Rule[Any]) -> str:
    seen = " ".join((rule.find.__doc__ or "").split("\n\n")[0].split())
    better = ", ".join(f"`{slug}`" for slug in rule.unless)
    return f"| `{rule.slug}` | {rule.severity.value} | {seen} | {rule.remedy} | {better} |"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
