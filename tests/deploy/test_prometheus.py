"""Rules, alerts and the dashboard: Prometheus takes them, and they ask for what is exported."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest

from pptp_nat.lab.prometheus import tool
from pptp_nat.scrape.metrics import FAMILIES, PREFIX

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana/pptp-nat.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(each["expr"] for each in DASHBOARD["annotations"]["list"]),
]
ALERTS = re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())
#: what other exporters have, and Prometheus itself
FOREIGN = {"up", "node_nf_conntrack_entries", "node_nf_conntrack_entries_limit"}
#: what every process has
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes",
           "process_start_time_seconds"}  # fmt: skip
UNITS = {"none", "ops", "s", "bps", "pps", "bytes", "percentunit", "bool_yes_no"}  # Grafana's

needs_promtool = pytest.mark.skipif(
    tool("promtool") is None, reason="promtool is not here: run make venv"
)


def series():
    """Return the names under which the families are stored."""
    for family in FAMILIES:
        if family.kind == "histogram":
            yield from (f"{PREFIX}{family.name}_{end}" for end in ("bucket", "sum", "count"))
        else:
            yield PREFIX + family.name


def used(text):
    """Return the series that expressions in *text* name, rules' own names left out."""
    return set(re.findall(r"(?<![\w:.`\[])(?:pptp_nat|node|process)_\w+(?![\w:])", text))


def promtool(*argv):
    command = [tool("promtool"), *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROMETHEUS)
    return done.returncode, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    "argv",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_takes_what_is_shipped(argv) -> None:
    """The rules' own tests say when each alert fires, and when it does not."""
    code, said = promtool(*argv)

    assert code == 0, said
    assert "SUCCESS" in said


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_firing_and_quiet(alert) -> None:
    """One that never fires is worse than none; so is one that always does."""
    text = (PROMETHEUS / "alerts_test.yml").read_text()

    assert re.search(rf"alertname: {alert}, exp_alerts: \[\]", text)
    assert re.search(rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels", text)


@pytest.mark.parametrize("name", ["rules.yml", "alerts.yml"])
def test_rules_ask_for_what_is_exported(name) -> None:
    """A misspelt name is no error to Prometheus: it finds nothing, for ever."""
    text = "\n".join(
        line for line in (PROMETHEUS / name).read_text().splitlines()
        if not re.match(r" *(#|summary|description|- record|- name)", line)
    )  # fmt: skip
    code = re.sub(r"description: >-\n(?: {12}.*\n)+", "", text)

    assert used(code)
    assert set() == used(code) - set(series()) - FOREIGN


def test_rules_that_are_used_are_recorded() -> None:
    """Alerts stand on recorded rules, whose names only this checks."""
    recorded = set(re.findall(r"record: (\S+)", (PROMETHEUS / "rules.yml").read_text()))
    asked = set(re.findall(r"\binstance\w*:[\w:]+", (PROMETHEUS / "alerts.yml").read_text()))

    assert asked
    assert set() == asked - recorded


# The dashboard.


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_panels_ask_for_what_is_exported_and_only_of_the_chosen_routers(expression) -> None:
    """No panel is empty for a misspelling, none mixes routers that were not asked for."""
    names = used(expression)

    assert names
    assert set() == names - set(series()) - PROCESS
    selectors = re.findall(r"\b(?:pptp_nat|process)_\w+(\{[^}]*\})?", expression)
    assert all('job=~"$job", instance=~"$instance"' in each for each in selectors)


@needs_promtool
def test_prometheus_can_read_every_expression(tmp_path) -> None:
    """Grafana shows a syntax error only when somebody looks."""
    rules = "\n".join(
        f"      - record: panel:{number}\n        expr: {json.dumps(_filled_in(expression))}"
        for number, expression in enumerate(EXPRESSIONS)
    )
    file = tmp_path / "panels.yml"
    file.write_text(f"groups:\n  - name: panels\n    rules:\n{rules}\n")
    code, said = promtool("check", "rules", file)

    assert code == 0, said
    assert f"{len(EXPRESSIONS)} rules found" in said


def _filled_in(expression):
    for name, value in (("$__rate_interval", "2m"), ("$job", "pptp-nat"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    return expression


def test_panels_have_places_of_their_own() -> None:
    """Overlapping panels hide each other; two with one id are one to Grafana."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)

    taken = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} over {taken[cell]}"
            taken[cell] = panel["title"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_has_a_unit_and_the_chosen_data_source(panel) -> None:
    """A number without unit is a riddle; a fixed data source is somebody else's."""
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert {"${datasource}"} == {source["uid"] for source in sources}
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    assert all(target["legendFormat"] for target in panel["targets"]) or panel["type"] == "stat"


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It has no id of the Grafana that it was made in, and asks which data it shows."""
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]

    assert ["datasource", "job", "instance"] == names
    assert "pptp-nat" == DASHBOARD["uid"]
    assert {"id", "__inputs"}.isdisjoint(DASHBOARD)


def test_everything_that_goes_wrong_is_on_the_dashboard() -> None:
    """What is counted as trouble must be seen without knowing its name."""
    shown = set().union(*map(used, EXPRESSIONS))
    troubles = {
        PREFIX + family.name
        for family in FAMILIES
        if re.search(r"fail|drop|fault|refus|unmatched|oddit|parse_errors|closed", family.name)
    }

    assert troubles - shown <= {
        "pptp_nat_textfile_failures_total",  # there is no scrape to see it in, mostly
        "pptp_nat_queue_verdicts_refused_total",  # of packets that were gone already
    }
