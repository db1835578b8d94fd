"""What two captures saw of one call stands in one ladder, each packet once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.report import text

from . import troubles
from .story import ALICE, SERVER, Story
from .test_captures import FOLDER, needs_tshark, tshark
from .writers import pcap

NAMES = ("healthy_mppe-lan", "healthy_mppe-wan")
RUNG = re.compile(r" +(\S+) \| (\S+) +(\d+\.\d{3}) (-->|<--) (.*)")


def lines_of(*paths: Path) -> list[str]:
    return list(text(analyze(paths)))


def rungs(lines: list[str]) -> list[list[tuple[str, ...]]]:
    """Return the rungs of each ladder of two places in a report."""
    ladders: list[list[tuple[str, ...]]] = [[]]
    for line in lines:
        found = RUNG.fullmatch(line)
        if found is not None:
            ladders[-1].append(found.groups())
        elif ladders[-1]:
            ladders.append([])
    return [each for each in ladders if each]


@needs_tshark
def test_a_message_stands_once_with_its_number_in_either_capture() -> None:
    """Tshark lists the messages of either file; by a client's port both lists are one."""
    paths = [FOLDER / f"{name}.pcap" for name in NAMES]
    inside, outside = (
        sorted(
            (int(source) + int(destination), int(number))
            for number, source, destination in tshark(
                path, "pptp && !tcp.analysis.retransmission",
                "frame.number", "tcp.srcport", "tcp.dstport",
            )
        )
        for path in paths
    )  # fmt: skip
    shown = {
        (one, other)
        for ladder in rungs(lines_of(*paths))
        for one, other, _, _, words in ladder
        if words.startswith(("Start-", "Outgoing-", "Call-", "Set-", "Echo-"))
    }

    assert shown == {
        (str(one), str(other))
        for (_, one), (_, other) in zip(inside, outside, strict=True)
    }  # fmt: skip


def test_a_ladder_shows_what_the_nat_has_changed_and_goes_on_in_time() -> None:
    lines = lines_of(*(FOLDER / f"{name}.pcap" for name in NAMES))
    ladders = rungs(lines)

    assert len(ladders) == 4  # of two control connections, and the PPP of a call on each
    for ladder in ladders:
        times = [float(time) for _, _, time, _, _ in ladder]
        assert times == sorted(times)
    said = [words for _, _, _, _, words in ladders[0]]
    assert "Outgoing-Call-Request call_id=16961 | 49038 window=3" in said
    for other in ("control connection 1", "control connection 2", "call 1", "call 2"):
        assert any(line.endswith(f"its ladder stands with that of {other}") for line in lines)


@pytest.mark.parametrize("ahead", [0.0, 1.25, 3600.25])
def test_what_came_to_one_place_only_is_seen_to_do_so_whatever_the_clocks(
    ahead: float, tmp_path: Path
) -> None:
    """The server's GRE reaches the NAT and not the client; the clocks need not agree."""
    inside, outside = troubles.both_sides(blocked=True)
    outside.packets = [(time + ahead, packet) for time, packet in outside.packets]
    paths = [inside.pcap(tmp_path / "inside.pcap"), outside.pcap(tmp_path / "outside.pcap")]
    _, ppp = rungs(lines_of(*paths))

    assert {(arrow, one == "-", other == "-") for one, other, _, arrow, _ in ppp} == {
        ("-->", False, False), ("<--", True, False)
    }  # fmt: skip
    assert [float(time) for _, _, time, _, _ in ppp] == sorted(
        float(time) for _, _, time, _, _ in ppp
    )


def test_a_packet_of_a_later_file_of_a_ring_is_marked_with_its_file(tmp_path: Path) -> None:
    story = Story()
    call = story.dial(ALICE, SERVER)
    begun = len(story.packets)
    call.hang_up()
    paths = [tmp_path / "ring_1.pcap", tmp_path / "ring_2.pcap"]
    for path, packets in zip(
        paths, (story.packets[:begun], story.packets[begun:]), strict=True
    ):
        path.write_bytes(pcap(packets))
    numbers = {
        line.split()[3]: line.split()[0] for line in lines_of(*paths) if " --> " in line
    }

    assert (numbers["SYN"], numbers["Call-Clear-Request"]) == ("1", "2:3")
