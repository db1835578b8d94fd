"""The schemas in docs/, and what of a value departs from one."""

import json
from pathlib import Path

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

DOCS = Path(__file__).parents[2] / "docs"
SCHEMAS = {
    path.name.partition(".")[0]: json.loads(path.read_text())
    for path in DOCS.glob("*.schema.json")
}
_REGISTRY = Registry().with_resources(
    (schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()
)


def departures(value, name):
    """Return where *value* is not what docs/NAME.schema.json says."""
    validator = Draft202012Validator(
        SCHEMAS[name], registry=_REGISTRY, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
