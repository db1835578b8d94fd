"""A command that has read much ends at once, and has said all that it had to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pptp_nat.cli import KEPT, main

CAPTURE = Path(__file__).parents[1] / "captures" / "auth_fail_mschapv2-wan.pcap"
COMMANDS = {
    "analyze": ["analyze", str(CAPTURE)],
    "conntrack": ["conntrack", "-"],
}
LISTING = (
    "tcp      6 431999 ESTABLISHED src=192.168.1.10 dst=192.0.2.9 sport=1041 dport=1723 "
    "src=192.0.2.9 dst=203.0.113.5 sport=1723 dport=1041 [ASSURED] mark=0 use=1\n"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_process_says_is_what_a_caller_of_main_hears(
    command: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Its output is whole, into a pipe too, and its exit code is the command's."""
    listing = tmp_path / "listing"
    listing.write_text(LISTING)
    words = [str(listing) if word == "-" else word for word in COMMANDS[command]]

    ended = subprocess.run(
        [sys.executable, "-m", "pptp_nat", *words], capture_output=True, text=True, check=False
    )
    code = main(words)

    assert (code, capsys.readouterr().out) == (ended.returncode, ended.stdout)
    assert ended.stdout
    assert "" == ended.stderr


def test_only_who_keeps_much_is_left_in_haste() -> None:
    """Others end as Python ends, with all that wants to be done then."""
    package = Path(main.__code__.co_filename).parent
    keeping = {
        path.stem for path in (package / "commands").glob("*.py")
        if f"options.{KEPT} =" in path.read_text()
    }  # fmt: skip
    assert set(COMMANDS) == keeping
