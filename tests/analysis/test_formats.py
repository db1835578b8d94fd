"""One story in every form of capture: what it tells does not depend on how it was written."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pptp_nat import cli
from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.items import analysis_item
from pptp_nat.analysis.model import Analysis
from pptp_nat.errors import UsageError

from . import writers
from .story import ALICE, BOB, SERVER, Story
from .writers import LINKS, pcap, pcapng


def told() -> Story:
    """Two calls, long enough for columns to be worth their while."""
    story = Story()
    first = story.dial(ALICE, SERVER, call_id=7, answers=100).link().prove().mppe().network()
    second = story.dial(BOB, SERVER, call_id=7, answers=101).link().prove()
    first.chat(40, every=0.001)
    second.chat(30)
    first.hang_up()
    return story


PACKETS = told().packets


def facts(analysis: Analysis) -> dict[str, Any]:
    """All that is to be the same, whatever the file looks like."""
    item = analysis_item(analysis)
    names = ("control_connections", "calls", "strays", "icmp")
    return {name: rounded(item[name]) for name in names}


def rounded(value: Any) -> Any:
    """Leave out the last bits of time, which are not the same in every form, and its bins."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items() if name != "timeline"}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def read(octets: bytes, folder: Path) -> Analysis:
    path = folder / "capture"
    path.write_bytes(octets)
    return analyze([path])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = facts(read(pcap(PACKETS), tmp_path_factory.mktemp("expected")))
    assert len(found["calls"]) == 2
    return found


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("write", [pcap, pcapng], ids=lambda write: write.__name__)
def test_every_link_type_tells_the_same(
    link: str, write: Callable[..., bytes], expected: dict[str, Any], tmp_path: Path
) -> None:
    number, frame = LINKS[link]
    assert facts(read(write(PACKETS, link=number, frame=frame), tmp_path)) == expected


FORMS = {
    "big-endian": pcap(PACKETS, order=">"),
    "nanoseconds": pcap(PACKETS, nano=True),
    "big-endian nanoseconds": pcap(PACKETS, order=">", nano=True),
    "pcapng": pcapng(PACKETS),
    "pcapng big-endian": pcapng(PACKETS, order=">"),
    "pcapng nanoseconds": pcapng(PACKETS, resolution=9),
    "pcapng comments": pcapng(PACKETS, comments=True),
    "pcapng third interface": pcapng(PACKETS, interfaces=3),
    "gzip": gzip.compress(pcap(PACKETS)),
    "gzip pcapng": gzip.compress(pcapng(PACKETS)),
    "old packet blocks": writers.section("<") + writers.interface("<", 101) + b"".join(
        writers.old("<", 0, round(time * 1e6), packet) for time, packet in PACKETS
    ),
    "other blocks between": writers.section("<") + writers.interface("<", 101) + b"".join(
        writers.enhanced("<", 0, round(time * 1e6), packet) + writers.block("<", 4, b"names")
        + writers.block("<", 0x0BAD, b"custom octets")
        for time, packet in PACKETS
    ),
    "a section within": pcapng(PACKETS[:90]) + pcapng(PACKETS[90:], order=">", resolution=9),
    "modified pcap": struct.pack("<IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, 101) + b"".join(
        struct.pack("<IIII8x", int(time), round(time % 1 * 1e6), len(packet), len(packet)) + packet
        for time, packet in PACKETS
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_tells_the_same(
    form: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    assert facts(read(FORMS[form], tmp_path)) == expected


def test_the_resolution_may_be_a_power_of_two(expected: dict[str, Any], tmp_path: Path) -> None:
    found = read(pcapng(PACKETS, resolution=0x80 | 20), tmp_path)

    assert len(found.calls) == len(expected["calls"])
    assert found.files[0].last == pytest.approx(PACKETS[-1][0], abs=2e-6)


def test_packets_without_time_are_read(tmp_path: Path) -> None:
    """Simple Packet Blocks have none."""
    octets = writers.section("<") + writers.interface("<", 101)
    octets += b"".join(writers.simple("<", packet) for _, packet in PACKETS)
    found = read(octets, tmp_path)

    assert [(call.pns.call_id, call.pac.call_id) for call in found.calls] == [(7, 100), (7, 101)]


@pytest.mark.parametrize("snap", [96, 68, 56])
def test_a_snap_length_hides_payload_and_no_call(snap: int, tmp_path: Path) -> None:
    """Of an Outgoing-Call-Reply 16 octets are enough, behind 40 of headers."""
    found = read(pcap(PACKETS, snap=snap), tmp_path)

    assert [(call.pns.call_id, call.pac.call_id) for call in found.calls] == [(7, 100), (7, 101)]
    assert found.files[0].cut > 0
    assert [sum(f.packets for f in c.gre.values()) for c in found.calls] == [
        sum(1 for _, p in PACKETS if p[9] == 47 and p[12:20] in (
            host.address + SERVER.address, SERVER.address + host.address))
        for host in (ALICE, BOB)
    ]  # fmt: skip


def test_windows_of_any_size_tell_the_same(
    expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call's packets are spread over many."""
    monkeypatch.setattr("pptp_nat.analysis.capture.WINDOW", 1500)
    found = facts(read(pcap(PACKETS), tmp_path))

    assert found["control_connections"] == expected["control_connections"]
    for one, other in zip(found["calls"], expected["calls"], strict=True):
        for role in ("pns", "pac"):
            mine, theirs = one["gre"][role], other["gre"][role]
            assert (mine["packets"], mine["octets"], mine["first"], mine["last"]) == (
                theirs["packets"], theirs["octets"], theirs["first"], theirs["last"]
            )  # fmt: skip
            assert mine["quality"]["lost"] == theirs["quality"]["lost"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", [150, 501, 1999])
def test_pieces_of_any_size_tell_the_same(
    form: str, piece: int, expected: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Records begin in one piece and end in the next, or are longer than one."""
    monkeypatch.setattr("pptp_nat.analysis.capture.PIECE", piece)

    assert facts(read(FORMS[form], tmp_path)) == expected


@pytest.mark.parametrize("small", [1, 1 << 40], ids=["by the column", "one by one"])
def test_columns_and_single_packets_tell_the_same(
    small: int, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pptp_nat.analysis.capture.SMALL", small)

    assert facts(read(pcap(PACKETS), tmp_path)) == expected


def test_pieces_of_a_ring_buffer_are_one_capture(expected: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for index, begin in enumerate(range(0, len(PACKETS), 60)):
        paths.append(tmp_path / f"ring_{index:05}.pcap")
        paths[-1].write_bytes(pcap(PACKETS[begin : begin + 60]))
    found = analyze(reversed(paths))

    assert len({file.vantage for file in found.files}) == 1
    assert [(c.pns.call_id, c.pac.call_id, c.state) for c in found.calls] == [
        (c["pns"]["call_id"], c["pac"]["call_id"], found.calls[i].state)
        for i, c in enumerate(expected["calls"])
    ]  # fmt: skip
    assert sum(f.packets for c in found.calls for f in c.gre.values()) == sum(
        flow["packets"] for c in expected["calls"] for flow in c["gre"].values()
    )


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "the file is empty"),
        (b"GET / HTTP/1.1\r\n" * 20, "neither pcap nor pcapng"),
        (pcap(PACKETS)[:20], "ends within its first header"),
        (gzip.compress(b"hello, this is no capture" * 9), "neither pcap nor pcapng"),
    ],
    ids=["empty", "something else", "cut header", "compressed something else"],
)
def test_what_is_no_capture_is_one_clear_line(
    octets: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(octets)

    assert cli.main(["analyze", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err
    assert str(path) in said.err


def test_a_file_that_is_not_there_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", "/nonexistent/x.pcap"]) == 1
    assert "/nonexistent/x.pcap: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("write", [pcap, pcapng], ids=lambda write: write.__name__)
@pytest.mark.parametrize("cut", [1, 7, 15, 40])
def test_a_truncated_file_is_read_up_to_where_it_ends(
    write: Callable[..., bytes], cut: int, tmp_path: Path
) -> None:
    octets = write(PACKETS)
    found = read(octets[:-cut], tmp_path)
    damage = found.files[0].damage

    assert damage is not None
    assert damage.number == len(PACKETS) - 1
    assert damage.offset == len(octets) - len(write(PACKETS[-1:])) + len(write([]))
    assert len(found.calls) == 2


def test_damage_in_the_middle_is_told_with_its_place(tmp_path: Path) -> None:
    begin = len(pcap(PACKETS[:100]))
    octets = bytearray(pcap(PACKETS))
    octets[begin + 8 : begin + 12] = b"\xff\xff\xff\x7f"
    found = read(bytes(octets), tmp_path)

    assert found.files[0].damage is not None
    assert found.files[0].damage.offset == begin
    assert (found.files[0].damage.number, found.files[0].packets) == (100, 100)


@pytest.mark.parametrize("small", [1, 1 << 40], ids=["by the column", "one by one"])
@pytest.mark.parametrize("cut", [0, 7], ids=["whole", "truncated"])
def test_of_two_damages_the_first_is_told(
    small: int, cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time that cannot be shows late, when what lies behind it was read already."""
    monkeypatch.setattr("pptp_nat.analysis.capture.SMALL", small)
    begin = len(pcap(PACKETS[:100]))
    octets = bytearray(pcap(PACKETS))
    octets[begin + 4 : begin + 8] = b"\xff" * 4
    file = read(bytes(octets[: len(octets) - cut]), tmp_path).files[0]

    assert file.damage is not None
    assert file.damage.what == "a packet whose time has 4294967295 parts of a second"
    assert (file.damage.offset, file.damage.number, file.packets) == (begin, 100, 100)


def test_a_truncated_gzip_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    found = read(gzip.compress(pcap(PACKETS))[:-2000], tmp_path)

    assert found.files[0].damage is not None
    assert found.files[0].packets > 10
    assert found.calls


WHOLE = {"pcap": pcap(PACKETS), "pcapng": pcapng(PACKETS, comments=True)}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0.02, 1),
)
@example("pcap", [(0.0003, 255)], 1.0)
def test_no_octets_make_the_reader_fail(
    form: str, flips: list[tuple[float, int]], keep: float
) -> None:
    """Any damage ends in a report, or in one line that says that this is no capture."""
    octets = bytearray(WHOLE[form])
    for place, value in flips:
        octets[int(place * (len(octets) - 1))] = value
    folder = Path("/tmp") if not Path("/dev/shm").is_dir() else Path("/dev/shm")
    path = folder / "pptp-nat-test-hostile"
    path.write_bytes(octets[: int(keep * len(octets))])
    try:
        found = analyze([path])
    except UsageError:  # one line, by its kind
        return
    finally:
        path.unlink()
    assert found.files[0].packets <= len(PACKETS) + 1000
    analysis_item(found)


def test_scapys_writer_is_understood(expected: dict[str, Any], tmp_path: Path) -> None:
    utils = pytest.importorskip("scapy.utils")
    layers = pytest.importorskip("scapy.layers.inet")
    path = tmp_path / "scapy.pcapng"
    writer = utils.PcapNgWriter(str(path))
    for time, packet in PACKETS:
        made = layers.IP(packet)
        made.time = time
        writer.write(made)
    writer.close()
    found = analyze([path])

    assert [(c.pns.call_id, c.pac.call_id) for c in found.calls] == [
        (c["pns"]["call_id"], c["pac"]["call_id"]) for c in expected["calls"]
    ]  # fmt: skip
