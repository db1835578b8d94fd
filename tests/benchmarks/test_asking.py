"""How much is measured is the asker's choice, and a choice that cannot be is refused at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.__main__ import arguments, plan_of
from benchmarks.plan import FULL, QUICK, Plan
from benchmarks.results import LATEST


def test_calls_that_are_asked_for_are_up_in_every_measure() -> None:
    plan = plan_of(arguments(["--calls", "5,1_000,5"]))
    counted = [f.name for f in dataclasses.fields(Plan) if f.name.endswith("_calls")]

    assert {(5, 1000)} == {getattr(plan, name) for name in counted}
    assert FULL.rounds == plan.rounds


def test_few_rounds_are_few_for_slow_measures_too() -> None:
    assert 1 == plan_of(arguments(["--rounds", "1"])).slow_rounds
    assert FULL.slow_rounds == plan_of(arguments(["--rounds", "9"])).slow_rounds


@pytest.mark.parametrize(
    "words", ["--quick", "--only gre", "--way plain", "--calls 1", "--sizes 64"]
)
def test_only_a_full_run_becomes_the_last_one(words: str) -> None:
    """The documents' figures must not become those of a part."""
    assert arguments(words.split()).json is None
    assert LATEST == arguments([]).json


def test_a_quick_run_is_a_part_of_a_full_one() -> None:
    assert plan_of(arguments(["--quick"])) == QUICK
    assert all(
        max(getattr(QUICK, f.name)) <= max(getattr(FULL, f.name))
        for f in dataclasses.fields(Plan)
        if isinstance(getattr(QUICK, f.name), tuple) and getattr(QUICK, f.name)
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sizes", "63"], "64 to 1500"),
        (["--calls", "0"], "invalid"),
        (["--calls", "many"], "invalid"),
        (["--rounds", "0"], "at least 1"),
        (["--way", "carrier-pigeon"], "invalid choice"),
        (["--package", "/nowhere"], "no pptp_nat in"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(words)

    assert reason in capsys.readouterr().err


def test_the_compiled_package_is_measured_from_its_place(tmp_path: Path) -> None:
    (tmp_path / "pptp_nat").mkdir()
    (tmp_path / "pptp_nat" / "daemon.py").touch()
    asked = arguments(["--package", str(tmp_path)])

    assert (tmp_path, None) == (asked.package, asked.json)
