"""The real captures tell their stories, and tshark sees what we see."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.items import analysis_item, dotted
from pptp_nat.analysis.model import Analysis, Call
from pptp_nat.analysis.report import text
from pptp_nat.core.messages import MessageType, Role
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Party

from .json_schema import departures, load

FOLDER = Path(__file__).parents[1] / "captures"
FILES = sorted(FOLDER.glob("*.pcap"))
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
M = MessageType


def read(*names: str) -> Analysis:
    return analyze([FOLDER / f"{name}.pcap" for name in names])


def ids(call: Call) -> tuple[int | None, int | None]:
    return call.pns.call_id, call.pac.call_id


def ladder(analysis: Analysis, connection: int = 0) -> list[tuple[int, str]]:
    found = analysis.control_connections[connection].ladder
    return [(entry.evidence.number, entry.title) for entry in found]


def rules(analysis: Analysis) -> set[str]:
    return {each.rule for each in analysis.diagnoses}


def test_windows_dials_poptop_and_the_server_hangs_up() -> None:
    analysis = read("windows-nt-to-poptop-2000")
    (connection,), (call,) = analysis.control_connections, analysis.calls

    assert ids(call) == (0, 0)
    assert (call.end, call.state) == (End.CLOSED, CallState.GONE)
    assert call.serial == 30760
    assert [i.vendor for i in connection.introductions if i] == [
        "Microsoft Windows NT", "MoretonBay"
    ]  # fmt: skip
    assert ladder(analysis) == [
        (1, "SYN"), (2, "SYN, ACK"), (5, "Start-Control-Connection-Request"),
        (8, "Start-Control-Connection-Reply"), (10, "Outgoing-Call-Request"),
        (13, "Outgoing-Call-Reply"), (15, "Set-Link-Info"), (19, "FIN"), (21, "FIN"),
    ]  # fmt: skip
    assert connection.end is not None
    assert connection.end.by is Party.RESPONDER
    assert {role: flow.packets for role, flow in call.gre.items()} == {Role.PNS: 1}
    assert call.setup == pytest.approx(0.168839, abs=1e-6)
    assert "server_hung_up" in rules(analysis)


def test_packets_that_the_capture_has_twice_are_no_retransmissions() -> None:
    analysis = read("windows-nt-to-poptop-2000")
    (connection,) = analysis.control_connections
    own, servers = connection.trouble

    assert (own.repeated, servers.repeated, analysis.files[0].repeated) == (0, 8, 8)
    assert (own.retransmissions, servers.retransmissions) == (0, 0)
    assert connection.messages.total() == 5


def test_two_clients_with_one_call_id_are_paired_with_what_the_nat_makes_of_them() -> None:
    analysis = read("healthy_mppe-wan", "healthy_mppe-lan")
    pairs = {
        (ids(each.inside), ids(each.outside), each.hidden) for each in analysis.translations
    }

    assert pairs == {
        ((16961, 0), (49038, 0), Role.PNS), ((16961, 128), (35066, 128), Role.PNS)
    }  # fmt: skip
    assert all(0 < (each.delay or 0) < 0.001 for each in analysis.translations)
    assert [call.ppp.encryption for call in analysis.calls if call.ppp] == [
        "MPPE 128 stateless"
    ] * 4  # fmt: skip
    assert rules(analysis) == {"healthy_call"}


def test_the_wrong_password_is_named() -> None:
    analysis = read("auth_fail_mschapv2-lan")
    (call,) = analysis.calls
    assert call.ppp is not None

    assert call.ppp.authentications[Role.PAC].error == 691
    assert call.end is End.CLEARED
    assert rules(analysis) == {"authentication_failed"}


def test_gre_that_the_router_drops_is_seen_outside_alone() -> None:
    inside, outside = read("gre_blocked_inbound-lan"), read("gre_blocked_inbound-wan")
    both = read("gre_blocked_inbound-lan", "gre_blocked_inbound-wan")

    assert set(inside.calls[0].gre) == {Role.PNS}
    assert set(outside.calls[0].gre) == {Role.PNS, Role.PAC}
    assert "gre_lost_in_nat" in rules(both)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_report_shows_a_password_a_challenge_or_a_response(path: Path) -> None:
    analysis = analyze([path])
    reports = json.dumps(analysis_item(analysis)) + "\n".join(text(analysis))
    secrets = ["bf5e9b69095b", "16763f76212e", "68bcc9c0b764", "4a407241a3d6", "B2B54B1D8FAF"]

    assert [] == [each for each in secrets if each.lower() in reports.lower()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_json_is_as_its_schema_says(path: Path) -> None:
    schema = load("analysis.schema.json")
    value = json.loads(json.dumps(analysis_item(analyze([path]))))

    assert [] == list(departures(value, schema, schema, "analysis"))


def tshark(path: Path, wanted: str, *fields: str) -> list[list[str]]:
    argv = ["tshark", "-r", str(path), "-Y", wanted, "-T", "fields"]
    argv += [word for field in fields for word in ("-e", field)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line.split("\t") for line in said.splitlines()]


@needs_tshark
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tshark_counts_the_same_control_messages_with_the_same_call_ids(path: Path) -> None:
    """But for what the capture has twice, which tshark takes for retransmissions."""
    theirs = Counter(
        (int(number), int(kind), call_id or None, peer or None)
        for number, kind, call_id, peer in tshark(
            path, "pptp", "frame.number", "pptp.control_message_type", "pptp.call_id",
            "pptp.peer_call_id",
        )
    )  # fmt: skip
    ours = Counter(
        (
            entry.evidence.number, int(entry.kind),
            None if "call_id" not in entry.fields else str(entry.fields["call_id"]),
            None if "peer_call_id" not in entry.fields else str(entry.fields["peer_call_id"]),
        )
        for connection in analyze([path]).control_connections
        for entry in connection.ladder
        if entry.kind is not None
    )  # fmt: skip

    assert theirs == ours


@needs_tshark
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tshark_counts_the_same_gre_of_each_call(path: Path) -> None:
    theirs: Counter[tuple[str, str, int]] = Counter()
    octets: Counter[tuple[str, str, int]] = Counter()
    numbers: dict[tuple[str, str, int], list[int]] = {}
    for source, destination, key, length, number in tshark(
        path, "gre", "ip.src", "ip.dst", "gre.key.call_id", "ip.len", "gre.sequence_number"
    ):
        flow = source, destination, int(key)
        theirs[flow] += 1
        octets[flow] += int(length)
        if number:
            numbers.setdefault(flow, []).append(int(number))
    flows = [flow for call in analyze([path]).calls for flow in call.gre.values()]
    names = [(dotted(flow.source), dotted(flow.destination), flow.key) for flow in flows]

    assert theirs == dict(zip(names, (flow.packets for flow in flows), strict=True))
    assert octets == dict(zip(names, (flow.octets for flow in flows), strict=True))
    for name, flow in zip(names, flows, strict=True):
        assert flow.quality is not None
        missing = set(range(min(numbers[name]), max(numbers[name]))) - set(numbers[name])
        assert flow.quality.lost == len(missing)
        assert flow.quality.data == len(numbers[name])
