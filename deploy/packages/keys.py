"""The table that OpenWrt's init script reads: which keys there are, and how they are written.

One line per key, ``section.key kind live|fixed``, out of the code that reads them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from pptp_nat.config import SECTIONS, Config

NAME: Final = "keys"


def table() -> str:
    """Return the table."""
    config = Config()
    lines = []
    for section, keys in SECTIONS.items():
        defaults = getattr(config, section)
        hints = {each.name: each.type for each in dataclasses.fields(defaults)}
        for name, key in keys.items():
            kind = _kind(getattr(defaults, name), str(hints[name]))
            lines.append(f"{section}.{name} {kind} {'live' if key.live else 'fixed'}\n")
    return "".join(lines)


def _kind(default: object, hint: str) -> str:
    """Return how a value is written, by its default or, for an empty list, by its type."""
    if isinstance(default, tuple) and not hasattr(default, "_fields"):
        return "wholes" if "[int, ...]" in hint else "texts"
    if isinstance(default, bool):
        return "switch"
    if "float" in hint:
        return "number"
    return "whole" if isinstance(default, int) else "text"


def write(folder: Path) -> Path:
    """Write the table into *folder*, where a recipe of OpenWrt's takes it from."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    path.write_text(table(), encoding="utf-8")
    return path
