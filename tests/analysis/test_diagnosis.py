"""Each rule finds its trouble, keeps silent at what only looks like it, and at real captures."""

from __future__ import annotations

import pickle
import runpy
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.diagnosis import ALL_RULES, diagnose
from pptp_nat.analysis.model import Analysis, Diagnosis
from pptp_nat.analysis.severity import Severity
from pptp_nat.core.messages import Role
from tests.analysis import troubles
from tests.analysis.story import START, Story
from tests.analysis.troubles import NEAR_MISSES, TROUBLES, Tell
from tests.core.pcap import FOLDER

#: Found by what the reader of captures says of files, which no story can have.
OF_FILES = {"damaged_file", "cut_messages"}


def analysed(told: Story | tuple[Story, Story], folder: Path) -> Analysis:
    """Write what was told, read it as any capture, and judge it."""
    stories = (told,) if isinstance(told, Story) else told
    names = ("inside", "outside")
    paths = [each.pcap(folder / f"{name}.pcap") for each, name in zip(stories, names, strict=False)]
    return analyze(paths)


def slugs(analysis: Analysis) -> set[str]:
    return {diagnosis.rule for diagnosis in analysis.diagnoses}


def bad(analysis: Analysis) -> set[str]:
    return {
        diagnosis.rule
        for diagnosis in analysis.diagnoses
        if diagnosis.severity in (Severity.ERROR, Severity.WARNING)
    }


CASES = [(slug, tell) for slug, tells in TROUBLES.items() for tell in tells]
MISSES = [(slug, tell) for slug, tells in NEAR_MISSES.items() for tell in tells]


def name(value: str | Tell) -> str:
    return value if isinstance(value, str) else value.__name__


def test_every_rule_has_a_trouble_and_a_near_miss() -> None:
    known = {rule.slug for rule in ALL_RULES}

    assert len(known) == len(ALL_RULES)
    assert set(TROUBLES) | OF_FILES == known
    assert set(NEAR_MISSES) <= known
    assert known - set(NEAR_MISSES) == set()


def test_rules_that_give_way_to_others_name_rules() -> None:
    known = {rule.slug for rule in ALL_RULES}

    assert {slug for rule in ALL_RULES for slug in rule.unless} <= known


def test_the_page_of_diagnoses_is_drawn_from_the_tables() -> None:
    docs = Path(__file__).parents[2] / "docs"
    drawn = runpy.run_path(str(docs / "draw_diagnoses.py"))

    assert (docs / "diagnoses.md").read_text() == drawn["page"](), (
        "run: .venv/bin/python docs/draw_diagnoses.py --write"
    )


@pytest.mark.parametrize(("slug", "tell"), CASES, ids=name)
def test_the_trouble_is_found_and_no_secret_told(slug: str, tell: Tell, tmp_path: Path) -> None:
    analysis = analysed(tell(), tmp_path)

    found = [each for each in analysis.diagnoses if each.rule == slug]
    assert found, [(each.rule, each.summary) for each in analysis.diagnoses]
    told = found[0]
    assert told.summary
    assert told.remedy or told.severity is Severity.OK
    assert all(place.number > 0 for place in told.evidence)
    assert told.evidence or slug in {"captured_twice", "no_pptp"}
    left = pickle.dumps(analysis.diagnoses)
    for secret in (b"hunter2", b"bf5e9b69095b823f", b"B2B54B1D8FAF5617"):
        assert secret not in left


@pytest.mark.parametrize(("slug", "tell"), MISSES, ids=name)
def test_what_looks_like_the_trouble_is_not_taken_for_it(
    slug: str, tell: Tell, tmp_path: Path
) -> None:
    assert slug not in slugs(analysed(tell(), tmp_path))


#: What else a trouble rightly shows.
COMPANY = {
    "the_client_is_deaf": set(), "wrong_password": set(), "mppe_is_rejected": set(),
    "only_the_client_s_gre": set(), "two_clients_look_like_one": set(),
    "untranslated": set(), "gre_leaves_by_another_address": set(),
    "dead_after_two_minutes_of_rest": set(), "accepted_and_closed": set(),
    "the_server_s_gre_does_not_come_in": set(), "no_gre_at_all": set(),
    "reset_instead_of_syn_ack": set(), "three_syns_and_no_answer": set(),
    "silent_with_everything_once_it_has_an_address": set(),
    "both_ask_and_none_answers": set(), "the_client_hears_itself": set(),
    "a_call_as_it_should_be": set(), "one_of_twenty_is_lost": set(),
    "waits_for_each_window": set(), "the_largest_packets_vanish": set(),
}  # fmt: skip


@pytest.mark.parametrize("teller", COMPANY)
def test_one_trouble_is_told_once(teller: str, tmp_path: Path) -> None:
    """A list of twelve findings where one is the cause helps nobody."""
    slug = next(slug for slug, tell in CASES if tell.__name__ == teller)

    analysis = analysed(getattr(troubles, teller)(), tmp_path)

    assert bad(analysis) - COMPANY[teller] == {slug} - {"healthy_call"}
    counts = Counter((each.rule, each.call) for each in analysis.diagnoses)
    assert set(counts.values()) == {1}


# The shared captures.

LAN_AND_WAN = {
    "healthy_mppe": ({"healthy_call"}, {"healthy_call"}),
    "auth_fail_mschapv2": ({"authentication_failed"}, {"authentication_failed"}),
    "gre_blocked_inbound": ({"no_gre_from_server"}, {"gre_lost_behind"}),
}


@pytest.mark.parametrize("capture", LAN_AND_WAN)
@pytest.mark.parametrize(("side", "at"), [("lan", 0), ("wan", 1)])
def test_the_shared_captures_tell_their_story_from_either_side(
    capture: str, side: str, at: int
) -> None:
    analysis = analyze([FOLDER / f"{capture}-{side}.pcap"])

    assert {each.rule for each in diagnose(analysis)} == LAN_AND_WAN[capture][at]


def test_two_captures_say_where_the_gre_is_lost() -> None:
    analysis = analyze([FOLDER / f"gre_blocked_inbound-{side}.pcap" for side in ("lan", "wan")])

    found = diagnose(analysis)

    assert [each.rule for each in found] == ["gre_lost_in_nat"]
    assert "outside" in found[0].summary


def test_what_both_sides_show_is_told_once_with_the_evidence_of_both() -> None:
    analysis = analyze([FOLDER / f"auth_fail_mschapv2-{side}.pcap" for side in ("lan", "wan")])

    (told,) = diagnose(analysis)

    assert told.rule == "authentication_failed"
    assert "E=691" in told.summary
    assert {place.file for place in told.evidence} == {0, 1}


def test_both_healthy_calls_are_told_with_address_and_encryption() -> None:
    analysis = analyze([FOLDER / f"healthy_mppe-{side}.pcap" for side in ("lan", "wan")])

    found = diagnose(analysis)

    assert [each.rule for each in found] == ["healthy_call"] * 2
    assert {address for each in found for address in ("10.0.0.101", "10.0.0.102")
            if address in each.summary} == {"10.0.0.101", "10.0.0.102"}  # fmt: skip
    assert all("MPPE 128 stateless" in each.summary for each in found)


def test_the_server_of_2000_hangs_up_and_the_capture_has_it_twice() -> None:
    analysis = analyze([FOLDER / "windows-nt-to-poptop-2000.pcap"])

    assert {each.rule for each in diagnose(analysis)} == {"server_hung_up", "captured_twice"}


# Properties of the whole.


def test_a_capture_that_was_cut_short_is_told_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "cut.pcap"
    path.write_bytes((FOLDER / "healthy_mppe-lan.pcap").read_bytes()[:20_001])

    assert "damaged_file" in {each.rule for each in diagnose(analyze([path]))}


def test_a_snap_length_that_cuts_messages_is_told(tmp_path: Path) -> None:
    story = troubles.up().story
    story.packets = [(time, packet[:60]) for time, packet in story.packets]
    path = story.pcap(tmp_path / "cut.pcap", wire=200)

    assert "cut_messages" in {each.rule for each in diagnose(analyze([path]))}


def test_judging_twice_says_the_same(tmp_path: Path) -> None:
    analysis = analysed(troubles.one_of_twenty_is_lost(), tmp_path)

    assert diagnose(analysis) == analysis.diagnoses


def test_the_worst_comes_first(tmp_path: Path) -> None:
    order = [Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK]
    for tell in (troubles.pap, troubles.a_server_that_acknowledges_nothing):
        ranks = [order.index(each.severity) for each in analysed(tell(), tmp_path).diagnoses]
        assert ranks == sorted(ranks)


@given(st.sampled_from(CASES), st.data())
@settings(max_examples=40, deadline=None)
def test_any_part_of_a_story_is_judged_without_complaint(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, Tell], data: st.DataObject
) -> None:
    """Captures begin late, end early and lose packets: rules must live with that."""
    told = case[1]()
    story = told if isinstance(told, Story) else told[0]
    kept = data.draw(st.lists(st.booleans(), min_size=len(story.packets),
                              max_size=len(story.packets)))  # fmt: skip
    story.packets = [each for each, keep in zip(story.packets, kept, strict=True) if keep]

    found = analysed(story, tmp_path_factory.mktemp("part")).diagnoses

    for diagnosis in found:
        assert isinstance(diagnosis, Diagnosis)
        assert all(START <= place.time for place in diagnosis.evidence)


def test_a_call_from_the_server_s_side_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    """Names in the words follow the roles, not who opened the connection."""
    analysis = analysed(troubles.only_the_server_s_gre(), tmp_path)

    (told,) = [each for each in analysis.diagnoses if each.rule == "no_gre_from_client"]
    assert "none comes from the client 192.168.77.10" in told.summary
    assert analysis.calls[0].end_of(Role.PNS).call_id == 1
