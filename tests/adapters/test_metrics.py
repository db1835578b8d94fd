"""What is exported: names that stay, numbers that are right, in forms that Prometheus reads."""

from __future__ import annotations

import gzip
import math
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import CallChanged, Outcome, Verdict
from pptp_nat.core.messages import RESULTS, MessageType
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Flow, Party, Placement, Seat
from pptp_nat.lab.prometheus import tool
from pptp_nat.scrape.meter import FAILURES, VERDICT_BOUNDS, Histogram, Meter, failure
from pptp_nat.scrape.metrics import (
    FAMILIES,
    OPENMETRICS,
    PREFIX,
    TEXT,
    Distribution,
    Sample,
    form_for,
    written,
)

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    family.name: [
        Sample(
            family.labels,
            Distribution((0.1, 1.0), (1, 2, 3), 4.5) if family.kind == "histogram" else 7,
        )
    ]
    for family in FAMILIES
}


def text(samples, form=TEXT):
    return b"".join(written(samples, form)).decode()


def test_the_manual_lists_every_family_with_its_help() -> None:
    """docs/metrics.md is what people write their queries from."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$",
                      (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)  # fmt: skip

    assert [
        (PREFIX + each.name, each.kind, ", ".join(f"`{label}`" for label in each.labels), each.help)
        for each in FAMILIES
    ] == rows


@pytest.mark.skipif(tool("promtool") is None, reason="promtool is not here: run make venv")
def test_promtool_finds_nothing_to_object_to() -> None:
    """Names, units, help: Prometheus' own rules."""
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text(EVERYTHING), text=True,
        capture_output=True, check=False,
    )  # fmt: skip

    assert (0, "", "") == (checked.returncode, checked.stdout, checked.stderr)


def _names(labels):
    return float(labels["le"]) if "le" in labels else tuple(sorted(labels))


@pytest.mark.parametrize(("form", "read"), [(TEXT, read_text), (OPENMETRICS, read_openmetrics)])
def test_both_forms_say_the_same(form, read) -> None:
    """Whoever reads them with another library finds each number under its name."""
    found = {
        (sample.name, _names(sample.labels)): sample.value
        for family in read(text(EVERYTHING, form))
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }
    for family in FAMILIES:
        name = PREFIX + family.name
        if family.kind == "histogram":
            assert [1, 3, 6] == [found[f"{name}_bucket", le] for le in (0.1, 1.0, math.inf)]
            assert (6, 4.5) == (found[f"{name}_count", ()], found[f"{name}_sum", ()])
        else:
            assert 7 == found[name, tuple(sorted(family.labels))], name


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
    ],
)
def test_openmetrics_is_for_those_who_ask(accept, form) -> None:
    """Prometheus does; curl does not."""
    assert form is form_for(accept)


def test_a_scrape_is_written_in_small_pieces() -> None:
    """Verdicts come between two of them."""
    pieces = list(written(EVERYTHING, OPENMETRICS))

    assert len(pieces) > len(FAMILIES)
    assert b"".join(pieces).endswith(b"# EOF\n")
    assert 1 == b"".join(pieces).count(b"# EOF")
    assert len(gzip.compress(b"".join(pieces))) < len(b"".join(pieces)) / 3


def test_a_textfile_leaves_out_what_node_exporter_has_itself() -> None:
    """A name that comes twice makes node_exporter's whole scrape fail."""
    names = {family.name for family in read_text(text(EVERYTHING))}
    kept = b"".join(written(EVERYTHING, TEXT, process=False)).decode()

    assert {name for name in names if name.startswith(PREFIX)} == {
        family.name for family in read_text(kept)
    }


# Counting.


@given(st.lists(st.floats(0, 10, allow_nan=False)))
def test_a_histogram_counts_each_value_where_prometheus_expects_it(values) -> None:
    """A bucket holds what is at most its bound (``le``)."""
    histogram = Histogram(VERDICT_BOUNDS)
    for value in values:
        histogram.add(value)

    for number, bound in enumerate(VERDICT_BOUNDS):
        assert sum(value <= bound for value in values) == sum(histogram.counts[: number + 1])
    assert len(values) == sum(histogram.counts)


def call(state=CallState.IDLE):
    inside = bytes((192, 168, 77, 10))
    server = bytes((198, 18, 7, 2))
    seats = Seat(inside, bytes((198, 18, 7, 1))), Seat(server, server)
    connection = Connection.placed(1, Placement(Flow(inside, 4000, server, 1723), *seats, 0), 0.0,
                            is_local=False)  # fmt: skip
    made = Call(2, connection, Party.ORIGINATOR, Party.ORIGINATOR, 100.0)
    made.state = state
    return made


def test_a_life_is_counted_once_however_its_events_come() -> None:
    """Events carry the call as it is at the end of a packet, which may hold a whole life."""
    steps = [CallState.IDLE, CallState.REQUESTED, CallState.UP, CallState.CLEARING]
    whole, parts = Meter(), Meter()
    one = call(CallState.GONE)
    one.up_since, one.end = 100.25, End.DISCONNECTED
    whole.tell([CallChanged(one, was) for was in steps], 160.0)

    other = call()
    for was, state in zip(steps, [*steps[1:], CallState.GONE], strict=True):
        other.state = state
        if state is CallState.UP:
            other.up_since = 100.25
        other.end = End.DISCONNECTED if state is CallState.GONE else None
        parts.tell([CallChanged(other, was)], 160.0)

    for meter in (whole, parts):
        assert (1, 1, {}) == (meter.requests, meter.established, dict(meter.failures))
        assert (1, 0.25) == (sum(meter.setup_seconds.counts), meter.setup_seconds.total)
        assert (1, 59.75) == (sum(meter.call_seconds.counts), meter.call_seconds.total)


@pytest.mark.parametrize(
    ("end", "codes", "why"),
    [
        (End.REFUSED, (8, 4, 0, 17), "busy"),
        (End.REFUSED, (8, 5, 0, 0), "no_dial_tone"),
        (End.REFUSED, (8, 2, 4, 0), "general_error"),
        (End.REFUSED, (10, 3, 0, 0), "do_not_accept"),
        (End.REFUSED, (8, 200, 0, 0), "unknown_result"),
        (End.UNANSWERED, None, "unanswered"),
        (End.CLOSED, None, "closed"),
        (End.DISCONNECTED, (13, 3, 0, 0), "disconnected"),
    ],
)
def test_a_call_that_never_came_up_is_counted_by_why(end, codes, why) -> None:
    """The help desk asks that first."""
    meter, failed = Meter(), call(CallState.GONE)
    failed.end, failed.codes = end, codes
    meter.tell([CallChanged(failed, CallState.REQUESTED)], 130.0)

    assert {why: 1} == dict(meter.failures)
    assert 0 == sum(meter.setup_seconds.counts) + sum(meter.call_seconds.counts)


def test_peers_cannot_make_series() -> None:
    """Whatever codes they send, the reasons are those of our tables."""
    made = set()
    for end in End:
        for kind in RESULTS if end is End.REFUSED else (MessageType.CALL_DISCONNECT_NOTIFY,):
            if kind in (MessageType.OUTGOING_CALL_REPLY, MessageType.INCOMING_CALL_REPLY):
                for code in range(2, 256):
                    failed = call(CallState.GONE)
                    failed.end, failed.codes = end, (int(kind), code, 0, 0)
                    made.add(failure(failed))
        failed = call(CallState.GONE)
        failed.end = end
        made.add(failure(failed))

    assert set(FAILURES) == made
    assert {None} == {re.sub(r"[a-z_]+", "", why) or None for why in made}


def test_verdicts_are_counted_with_their_time() -> None:
    """A drop or a hold is worth a look when they grow."""
    meter = Meter()
    for verdict in (Verdict.ACCEPT, Verdict.ACCEPT, Verdict.DROP):
        meter.judged(Outcome(verdict), 0.0)

    assert {"accept": 2, "drop": 1, "hold": 0} == {
        verdict.value: count for verdict, count in meter.verdicts.items()
    }
    assert 3 == sum(meter.verdict_seconds.counts)
