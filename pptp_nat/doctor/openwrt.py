"""Reads OpenWrt's /etc/config/firewall as far as it concerns PPTP (UCI's file format)."""

from __future__ import annotations

import shlex
from typing import Final, NamedTuple

FIREWALL: Final = "etc/config/firewall"
ON: Final = frozenset({"1", "on", "true", "yes", "enabled"})


class Section(NamedTuple):
    """One section: its type, and its options by name."""

    kind: str
    options: dict[str, str]


def sections(text: str) -> list[Section]:
    """Return the sections of a UCI file; lines that make no sense are passed over."""
    found: list[Section] = []
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        match words:
            case ["config", kind, *_]:
                found.append(Section(kind, {}))
            case ["option" | "list", name, value] if found:
                options = found[-1].options
                earlier = f"{options[name]} " if words[0] == "list" and name in options else ""
                options[name] = earlier + value
    return found


def helper_options(text: str) -> list[str]:
    """Return what in the file has fw4 attach the kernel's pptp helper, if the kernel has it.

    fw4 attaches a zone's ``helper`` list, or where there is none and the zone does
    not masquerade, all helpers there are, unless ``auto_helper`` is off in the zone
    or in the defaults (fw4.uc, ``parse_zone``).
    """
    parsed = sections(text)
    everywhere = all(_on(s, "auto_helper", default=True) for s in parsed if s.kind == "defaults")
    found = []
    for section in parsed:
        options = section.options
        name = options.get("name", "?")
        named = [word for key in ("helper", "set_helper") for word in options.get(key, "").split()]
        if "pptp" in named:
            found.append(f"{section.kind} {name!r} has helper pptp")
        elif section.kind == "zone" and everywhere and not named:
            masqueraded = any(_on(section, key, default=False) for key in ("masq", "masq6"))
            if _on(section, "auto_helper", default=True) and not masqueraded:
                found.append(f"zone {name!r} has auto_helper on")
    return found


def offload_options(text: str) -> list[str]:
    """Return what in the file turns flow offloading on."""
    return [
        f"option {name} {section.options[name]!r}"
        for section in sections(text)
        if section.kind == "defaults"
        for name in ("flow_offloading", "flow_offloading_hw")
        if _on(section, name, default=False)
    ]


def _on(section: Section, name: str, *, default: bool) -> bool:
    value = section.options.get(name)
    return default if value is None else value.lower() in ON
