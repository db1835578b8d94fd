"""Figures in the documents are those of the last run that is kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import publish, results
from benchmarks.results import LATEST

PERFORMANCE, README = publish.DOCUMENTS


@pytest.fixture(scope="module")
def report() -> publish.Report:
    return publish.Report(results.read(LATEST))


@pytest.mark.parametrize("path", publish.DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_says_was_measured_was(path: Path, report: publish.Report) -> None:
    text = path.read_text()

    assert publish.put(text, report, path) == text, "run: .venv/bin/python -m benchmarks.publish"


def test_the_page_about_speed_has_all_parts() -> None:
    assert set(publish.PARTS) == set(re.findall("<!-- measured: (.*) -->", PERFORMANCE.read_text()))


def test_the_verdicts_that_are_kept_are_those_of_the_samples(report: publish.Report) -> None:
    """A bound that is moved in the code moves the verdict, and nobody may overlook that."""
    kept = report.document["targets"]

    assert [target.as_dict() for target in report.targets] == kept


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    document = {"machine": {"cpus": 2}, "targets": [], "samples": [{"way": "wire", "ns": 1.5}]}
    results.write(tmp_path / "run.json", document)

    assert document == results.read(tmp_path / "run.json")


def test_a_part_that_nobody_makes_is_told(report: publish.Report) -> None:
    text = "<!-- measured: weather -->\nrain\n<!-- end: weather -->\n"

    with pytest.raises(SystemExit, match="no part is called weather"):
        publish.put(text, report, README)
