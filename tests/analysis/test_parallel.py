"""Several processes read a capture as one does, wherever its stretches are cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.measures.capture import write_capture
from pptp_nat.analysis import apart, capture, carriage, parallel
from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.capture import CaptureReader
from tests.core.wire import ip_packet

from .story import ALICE, BOB, SERVER, Story
from .test_formats import PACKETS, facts
from .writers import pcap, pcapng


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every file worth several processes, and stretches short."""
    monkeypatch.setattr(capture, "WINDOW", 1500)
    monkeypatch.setattr(parallel, "SMALLEST", 0)
    monkeypatch.setattr(parallel, "STRETCH", 4000)
    monkeypatch.setattr(parallel, "_workers", lambda: 2)
    monkeypatch.setattr(carriage, "_SHARED", 1)
    monkeypatch.setattr(apart, "shares", lambda: 2)


def serial(path: Path) -> list[tuple[int, int]]:
    """Tell the numbers of ordinary GRE packets and those of others, read by one process."""
    return numbers(CaptureReader(path).windows())


def numbers(windows) -> list[tuple[int, int]]:
    found = []
    for window in windows:
        found += [(n, 0) for columns in window.flows.values() for n in columns.numbers]
        found += [(special.number, 1) for special in window.specials if not special.ordinary]
    return sorted(found)


@pytest.mark.parametrize(
    "write",
    [pcap, lambda packets: pcap(packets, order=">", nano=True), pcapng,
     lambda packets: pcapng(packets, order=">", comments=True)],
    ids=["pcap", "pcap big-endian", "pcapng", "pcapng big-endian"],
)  # fmt: skip
def test_what_several_processes_read_is_what_one_reads(
    write: Callable[..., bytes], small: None, tmp_path: Path
) -> None:
    path = tmp_path / "capture"
    path.write_bytes(write(PACKETS))
    reader = CaptureReader(path)
    first = next(reader.windows())
    assert first.packets < len(PACKETS)

    assert numbers([first, *parallel.windows(reader)]) == serial(path)


def test_the_whole_analysis_is_the_same(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "capture"
    path.write_bytes(pcap(PACKETS))
    together = facts(analyze([path]))
    monkeypatch.setattr(parallel, "_workers", lambda: 1)
    monkeypatch.setattr(apart, "shares", lambda: 1)
    alone = facts(analyze([path]))

    assert together["control_connections"] == alone["control_connections"]
    for one, other in zip(together["calls"], alone["calls"], strict=True):
        assert {k: v for k, v in one.items() if k != "gre"} == {
            k: v for k, v in other.items() if k != "gre"
        }
        for role in ("pns", "pac"):
            assert one["gre"][role]["packets"] == other["gre"][role]["packets"]
            assert one["gre"][role]["quality"]["lost"] == other["gre"][role]["quality"]["lost"]


def test_a_capture_within_a_capture_deceives_nobody(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody downloads captures while this one is made: plausible records everywhere."""
    inner = pcap([(1.0 + n, ip_packet(ALICE.address, BOB.address, 17, bytes(20)))
                  for n in range(200)])[24:]  # fmt: skip
    story = Story()
    call = story.dial(ALICE, SERVER)
    for _ in range(5):
        story.put(ip_packet(ALICE.address, SERVER.address, 17, inner[:9000]))
        call.chat(10)
    path = tmp_path / "capture"
    path.write_bytes(pcap(story.packets))
    reader = CaptureReader(path)

    assert numbers([next(reader.windows()), *parallel.windows(reader)]) == serial(path)


def test_damage_is_found_at_the_same_place(small: None, tmp_path: Path) -> None:
    octets = bytearray(pcap(PACKETS))
    at = len(pcap(PACKETS[:150]))
    octets[at + 8 : at + 12] = b"\xff" * 4
    path = tmp_path / "capture"
    path.write_bytes(octets)
    damage = analyze([path]).files[0].damage

    assert damage is not None
    assert (damage.offset, damage.number) == (at, 150)


def test_a_section_in_the_middle_is_heeded(small: None, tmp_path: Path) -> None:
    """Files may be put together with cat."""
    path = tmp_path / "capture"
    path.write_bytes(
        pcapng(PACKETS[:100]) + pcapng(PACKETS[100:], order=">", resolution=9)
    )
    reader = CaptureReader(path)

    assert numbers([next(reader.windows()), *parallel.windows(reader)]) == serial(path)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a call does not depend on how long it lasts."""
    monkeypatch.setattr(capture, "WINDOW", 1 << 20)
    monkeypatch.setattr(carriage, "_WAITING", 4_000)
    peaks = []
    for packets in (8_000, 24_000):
        path = tmp_path / f"{packets}.pcap"
        write_capture(path, packets, calls=3)
        tracemalloc.start()
        analysis = analyze([path])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(analysis.calls) == 3
        assert analysis.files[0].packets == packets

    assert peaks[1] < 1.25 * peaks[0]
