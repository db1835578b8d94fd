"""The plots of a run say what its samples say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import plots, results
from benchmarks.chart import (
    COLOURS,
    LinePanel,
    Point,
    Row,
    RowPanel,
    Series,
    amount,
    apart,
    lines,
    rows,
)
from benchmarks.results import LATEST, Samples
from benchmarks.spread import Spread

SVG = "{http://www.w3.org/2000/svg}"
POSITIVE = st.floats(0.01, 1e7)


def spread(median: float, part: float = 0.0) -> Spread:
    return Spread(median, median * (1 - part), median * (1 + part), 3)


def places(picture: str, kind: str) -> list[tuple[float, float]]:
    """Return where the marks of a kind stand."""
    found = ET.fromstring(picture).iter(f"{SVG}{kind}")
    return [(float(e.get("cx", 0)), float(e.get("cy", 0))) for e in found]


@given(st.lists(POSITIVE, min_size=2, max_size=8), st.booleans())
def test_a_greater_figure_stands_higher(values: list[float], logarithmic: bool) -> None:  # noqa: FBT001
    points = [Point(10.0**n, spread(value)) for n, value in enumerate(values)]
    panel = LinePanel("a title", [Series("one", "blue", points)], log_y=logarithmic)
    heights = [-y for _, y in places(lines("t", "n", [panel], "x"), "circle")]
    order = sorted(range(len(values)), key=lambda n: values[n])

    assert [heights[n] for n in order] == sorted(heights)


@given(st.lists(POSITIVE, min_size=1, max_size=8), st.floats(0, 0.9))
def test_nothing_is_drawn_beside_the_paper(values: list[float], part: float) -> None:
    """A whisker that leaves the paper would be cut off and look short."""
    each = [Row(f"way {n}", "red", [spread(value, part)]) for n, value in enumerate(values)]
    drawn = rows("t", "n", [RowPanel("a panel", each)], "us", logarithmic=True)
    root = ET.fromstring(drawn)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    numbers = [
        tuple(map(float, pair))
        for path in root.iter(f"{SVG}path")
        for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d", ""))
    ]

    assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_labels_do_not_cover_each_other(wanted: list[float]) -> None:
    found = sorted(apart(wanted, 12.0, 200.0))

    assert all(b - a >= 12.0 - 1e-6 for a, b in pairwise(found))
    assert found[-1] <= 200.0 or len(wanted) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (1500, "1,500"), (20000, "20 k"), (3e6, "3 M"), (0, "0")]
)
def test_a_number_at_an_axis_is_short(value: float, text: str) -> None:
    assert text == amount(value)


def test_a_name_with_an_angle_is_still_a_picture() -> None:
    drawn = rows("a < b & c", "n", [RowPanel("<", [Row("&", "red", [spread(1.0)])])], "us")

    assert "a < b & c" == ET.fromstring(drawn).findtext(f"{SVG}title")


def test_every_way_that_was_measured_is_in_the_plot_of_set_ups() -> None:
    samples = Samples([
        {"measure": "setup", "way": way, "calls": 1, "round": n, "per_second": rate + n}
        for way, rate in (("helper", 9000.0), ("conntrack", 4000.0))
        for n in range(3)
    ])  # fmt: skip
    words = [e.text for e in ET.fromstring(plots.setups(samples)).iter(f"{SVG}text")]

    assert {"kernel helper", "9,001", "pptp-nat conntrack", "4,001"} <= set(words)


def test_every_way_has_a_colour_of_its_own() -> None:
    found = [plots.colour(way) for way in plots.NAMES]

    assert len(set(found)) == len(found)
    assert set(found) <= set(COLOURS)


def test_colours_are_for_light_and_for_dark_ground() -> None:
    """A plot on a page of the night must not be black on black."""
    drawn = rows("t", "n", [RowPanel("p", [Row("r", "red", [spread(1.0)])])], "us")
    light, dark = drawn.split("@media(prefers-color-scheme:dark)")

    for name in ("paper", "red", "faint", "rule"):
        assert f".{name}{{" in light
        assert f".{name}{{" in dark


def test_the_plots_that_lie_there_are_those_of_the_last_run() -> None:
    drawn = plots.draw(Samples(results.read(LATEST)["samples"]))
    there = {path.name: path.read_text() for path in LATEST.parent.glob("*.svg")}

    assert {plots.place(LATEST, name).name: text for name, text in drawn.items()} == there, (
        "run: .venv/bin/python -m benchmarks.publish"
    )


def test_plots_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    left = tmp_path / "run-gre-9000.svg"
    left.write_text("old")
    other = tmp_path / "another-echo.svg"
    other.write_text("another run's")
    samples = [{"measure": "setup", "way": "plain", "calls": 1, "round": 0, "per_second": 1.0}]
    drawn = plots.write(tmp_path / "run.json", Samples(samples))

    assert [tmp_path / "run-setups.svg"] == drawn
    assert {"run-setups.svg", "another-echo.svg"} == {path.name for path in tmp_path.iterdir()}
