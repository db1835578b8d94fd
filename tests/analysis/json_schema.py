"""Compares JSON with a schema: the part of JSON Schema that ours use, and nothing undeclared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
    "boolean": bool, "null": type(None),
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((DOCS / name).read_text())
    return schema


def departures(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str) -> Iterator[str]:
    """Yield where *value* is not what *schema* says; *at* names the place."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        if value not in schema["enum"]:
            yield f"{at}: {value!r} is none of {schema['enum']}"
        return
    allowed = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(isinstance(value, KINDS[kind]) for kind in allowed) or (
        isinstance(value, bool) and "boolean" not in allowed
    ):
        yield f"{at}: {value!r} is not {allowed}"
        return
    if isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        yield f"{at}: {value!r} is out of bounds"
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from departures(each, schema["items"], root, f"{at}[{index}]")
    if isinstance(value, dict):
        properties = schema["properties"]
        yield from (f"{at}: {name} is missing" for name in set(schema["required"]) - set(value))
        for name, each in value.items():
            if name in properties:
                yield from departures(each, properties[name], root, f"{at}.{name}")
            elif "additionalProperties" in schema:
                others = schema["additionalProperties"]
                yield from departures(each, others, root, f"{at}.{name}")
            else:
                yield f"{at}: {name} is not in the schema"
