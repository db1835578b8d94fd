"""What rules say, as nft lists them: the part that all of its versions print alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Facts = frozenset[str]


def facts(expression: list[dict[str, Any]]) -> Facts:
    """Return what a rule says of queues, verdicts, ports, addresses and marks."""
    return frozenset(fact for part in expression for fact in _facts(part))


def _facts(part: dict[str, Any]) -> Iterator[str]:
    match part:
        case {"jump": {"target": target}}:
            yield f"jump {target}"
        case {"goto": {"target": target}}:
            yield f"goto {target}"
        case {"queue": {"num": number}}:
            yield f"queue {number}"
        case {"set": {"set": name, "stmt": [{"limit": {"rate": rate, "burst": burst}}]}}:
            yield f"{name.removeprefix('@')} over {rate} burst {burst}"
        case {"limit": {"rate": rate, "burst": burst}}:
            yield f"over {rate} burst {burst}"
        case {"mangle": {"key": {"meta": {"key": "mark"}}}}:
            yield "set mark"
        case {"match": {"left": {"payload": {"field": "dport" | "sport" | "daddr" as field}}}}:
            if part["match"]["left"]["payload"].get("protocol") in ("tcp", "ip"):
                yield f"{field} {_listed(part['match']['right'])}"
        case {"match": {"left": {"fib": {"result": "type"}}, "right": kind}}:
            yield f"fib type {kind}"
        case _:
            yield from part.keys() & {"accept", "drop", "notrack", "return"}


def _listed(right: object) -> str:
    match right:
        case {"set": list(elements)}:
            return ",".join(str(element) for element in sorted(elements, key=str))
        case _:
            return str(right)
