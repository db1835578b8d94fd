"""What a run leaves behind: samples that can be picked, and the JSON that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.spread import Spread

Sample = Mapping[str, Any]
RESULTS: Final = Path(__file__).parent / "results"
LATEST: Final = RESULTS / "latest.json"  #: of the last full run; the documents' figures


class Samples:
    """All samples of a run, to be picked by what they say of themselves."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.all = samples

    def pick(self, **wanted: object) -> list[Sample]:
        """Return the samples that have all the *wanted* values."""
        return [s for s in self.all if all(s.get(k) == v for k, v in wanted.items())]

    def by_round(self, figure: str, **wanted: object) -> dict[int, float]:
        """Return one figure of the samples that fit, by round."""
        return {s["round"]: float(s[figure]) for s in self.pick(**wanted) if s.get(figure)}

    def spread(self, figure: str, **wanted: object) -> Spread | None:
        """Summarize one figure over the rounds, or return None if there are none."""
        values = self.by_round(figure, **wanted)
        return Spread.of(values.values()) if values else None

    def distinct(self, key: str, **wanted: object) -> list[Any]:
        """Return the values that *key* takes, in order."""
        return sorted({s[key] for s in self.pick(**wanted)})


def read(path: Path) -> dict[str, Any]:
    """Return a run as it was written."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def write(path: Path, document: Mapping[str, object]) -> None:
    """Write a run, each sample and each target on a line of its own."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, indent=1)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
