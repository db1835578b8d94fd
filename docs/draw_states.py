# ruff: noqa: INP001  a script beside the pages, in no package
"""Draws what docs/theory.md shows of the code's tables, from the tables themselves.

    python docs/draw_states.py            prints each part with its name
    python docs/draw_states.py --write    puts them into docs/theory.md

A part stands between two comments that name it; tests/test_diagrams.py compares
what stands there with what is drawn here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Final

from pptp_nat.core import states
from pptp_nat.core.messages import LAYOUTS, Layout, MessageType, Role

THEORY: Final = Path(__file__).with_name("theory.md")
Arrows = dict[tuple[Enum, Enum], list[str]]


def messages() -> str:
    """Return the fifteen messages as a Markdown table."""
    rows = ["| # | Message | Section | Sender | Octets | Call ID | Peer's Call ID | Result |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    rows += (_row(kind, layout) for kind, layout in LAYOUTS.items())
    return "\n".join(rows)


def _row(kind: MessageType, layout: Layout) -> str:
    receiver = layout.sender.other if layout.sender else None
    cells = (
        int(kind), kind.title, layout.section, _who(layout.sender), layout.length,
        _whose(layout.call_id, layout.sender), _whose(layout.peer_call_id, receiver),
        "" if layout.result is None else layout.result,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _who(role: Role | None) -> str:
    return role.value if role else "either"


def _whose(offset: int | None, role: Role | None) -> str:
    return "" if offset is None else f"{offset}, of the {_who(role)}"


def calls() -> str:
    """Return the life of a call as a Mermaid diagram."""
    arrows: Arrows = {}
    for state in states.CallState:
        for kind in MessageType:
            for answer in states.Answer:
                after = states.after_message(state, kind, answer)
                _note(arrows, state, after, kind.title, answer)
    return _diagram(states.CallState, arrows)


def connections() -> str:
    """Return the life of a control connection as a Mermaid diagram."""
    arrows: Arrows = {}
    for state in states.ControlState:
        if state is states.ControlState.CLOSED:
            continue
        for event in (*MessageType, *states.TcpEnd):
            for answer in states.Answer:
                title = event.title if isinstance(event, MessageType) else event.value
                if event in states.IMPLIES_OPEN:
                    title = "whatever only an open one carries"
                _note(arrows, state, states.control_after(state, event, answer), title, answer)
    return _diagram(states.ControlState, arrows)


def _note(
    arrows: Arrows, state: Enum, after: Enum | None, title: str, answer: states.Answer
) -> None:
    """Add one arrow; a yes that a no follows stands for both."""
    if after is None or after is state:
        return
    labels = arrows.setdefault((state, after), [])
    if answer is states.Answer.YES or title not in labels:
        text = title if answer is states.Answer.YES else f"{title} says no"
        if text not in labels:
            labels.append(text)


def _diagram(kinds: type[Enum], arrows: Arrows) -> str:
    first, *_, last = kinds
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}"]
    for (state, after), labels in arrows.items():
        lines += (f"    {state.name} --> {after.name}: {label}" for label in labels)
    return "\n".join([*lines, f"    {last.name} --> [*]", "```"])


PARTS: Final[dict[str, Callable[[], str]]] = {
    "messages": messages, "calls": calls, "connections": connections,
}  # fmt: skip


def put(text: str) -> str:
    """Return *text* with each part as it is drawn now."""
    for name, draw in PARTS.items():
        before, begin, rest = text.partition(f"<!-- drawn: {name} -->\n")
        _, end, after = rest.partition(f"\n<!-- end: {name} -->")
        if not begin or not end:
            raise SystemExit(f"{THEORY}: no place for the part {name}: put its two comments in")
        text = before + begin + draw() + end + after
    return text


def _shown() -> Iterator[str]:
    for name, draw in PARTS.items():
        yield f"{name}\n{draw()}\n\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        THEORY.write_text(put(THEORY.read_text()))
    else:
        sys.stdout.writelines(_shown())
