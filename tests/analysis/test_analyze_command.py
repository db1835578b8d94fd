"""`pptp-nat analyze`: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from pptp_nat import cli
from pptp_nat.analysis import capture
from pptp_nat.core.messages import MessageType

from .story import ALICE, SERVER, Story
from .writers import pcap

FOLDER = Path(__file__).parents[1] / "captures"
HEALTHY = FOLDER / "healthy_mppe-lan.pcap"


def test_the_summary_comes_first_and_then_each_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", str(HEALTHY)]) == 0
    out = capsys.readouterr().out

    assert out.index("OK ") < out.index("control connection 1:") < out.index("call 1:")
    assert "--> Outgoing-Call-Request call_id=16961" in out
    assert "MPPE 128 stateless" in out


def test_the_summary_alone_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", "--summary", str(HEALTHY)]) == 0

    assert "control connection 1:" not in capsys.readouterr().out


def test_json_may_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"

    assert cli.main(["analyze", str(HEALTHY), "-o", "json", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert [c["pns"]["call_id"] for c in json.loads(path.read_text())["calls"]] == [16961, 16961]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_peers_words_never_reach_the_terminal_as_they_are(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host name that clears the screen, a vendor that writes backwards."""
    story = Story()
    tcp = story.open(ALICE, SERVER)
    tcp.say(ALICE, MessageType.START_CONTROL_CONNECTION_REQUEST, version=0x100,
            host=b"\x1b[2J\x07\n\r", vendor="\u202egood\u202c\x9b".encode())  # fmt: skip
    path = tmp_path / "\x1bname.pcap"
    path.write_bytes(pcap(story.packets))

    assert cli.main(["analyze", "-o", form, str(path)]) == 0
    out = capsys.readouterr().out
    assert [] == [c for c in out if c != "\n" and not c.isprintable()]


def test_a_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", str(HEALTHY), "--output", "/nonexistent/report"]) == 1

    assert capsys.readouterr().err == "pptp-nat: /nonexistent/report: No such file or directory\n"


def test_another_port_is_followed_if_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = Story()
    tcp = story.open(ALICE, SERVER, port=11723)
    story.dial(ALICE, SERVER, over=tcp)
    path = tmp_path / "other.pcap"
    path.write_bytes(pcap(story.packets))

    assert cli.main(["analyze", str(path)]) == 0
    assert "no PPTP in here" in capsys.readouterr().out
    assert cli.main(["analyze", "--port", "11723", str(path)]) == 0
    assert "1 control connection, 1 call" in capsys.readouterr().out


def test_an_interruption_reports_what_was_read_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "WINDOW", 1500)
    story = Story()
    story.dial(ALICE, SERVER, call_id=7).link().chat(300)
    path = tmp_path / "long.pcap"
    path.write_bytes(pcap(story.packets))
    reads = 0
    whole = capture.Stretch.read

    def read(*values: object) -> int:
        nonlocal reads
        reads += 1
        if reads == 5:
            raise KeyboardInterrupt
        return whole(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(capture.Stretch, "read", read)

    assert cli.main(["analyze", str(path)]) == 130
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "PNS 192.168.77.10/7" in out


def test_a_large_file_shows_how_far_it_is_on_a_terminal_only(tmp_path: Path) -> None:
    story = Story()
    story.dial(ALICE, SERVER).chat(30)
    path = tmp_path / "large.pcap"
    path.write_bytes(pcap(story.packets))
    program = (
        "import sys; from pptp_nat import cli; from pptp_nat.commands import analyze;"
        "analyze.LARGE = 0; sys.exit(cli.main(['analyze', '--summary', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", program, str(path)]
    quiet = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], (), (), 60)[0]:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how a terminal says that nobody is there any more
                break
            shown += part
        assert process.wait() == 0
    os.close(ours)

    assert quiet.stderr == ""
    assert b"100 %" in shown
    assert shown.endswith(b"\r\x1b[K")
