"""The pictures in docs/theory.md are those that the code's tables give."""

from __future__ import annotations

import runpy
from pathlib import Path

from pptp_nat.core.states import CallState, ControlState

DOCS = Path(__file__).parents[1] / "docs"


def test_what_theory_shows_of_the_tables_is_current() -> None:
    """A row that is added to a table must not leave a picture of the old one behind."""
    drawn = runpy.run_path(str(DOCS / "draw_states.py"))
    text = (DOCS / "theory.md").read_text()

    assert drawn["put"](text) == text, "run: .venv/bin/python docs/draw_states.py --write"


def test_every_state_is_in_its_picture() -> None:
    """A state that no arrow leads to would silently be left out."""
    drawn = runpy.run_path(str(DOCS / "draw_states.py"))

    for draw, kinds in (("calls", CallState), ("connections", ControlState)):
        words = set(drawn[draw]().replace(":", " ").split())
        assert {state.name for state in kinds} <= words
