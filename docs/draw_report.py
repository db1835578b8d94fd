# ruff: noqa: INP001  a script beside the pages, in no package
"""Draws pictures of the HTML report for these pages, from two captures of one call.

    python docs/draw_report.py            prints their names and sizes
    python docs/draw_report.py --write    writes them

The captures are those of tests/captures in which a router drops the server's GRE;
tests/analysis/test_html.py compares the pictures with what is drawn here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.html_stack import stack
from pptp_nat.analysis.html_style import STYLE
from pptp_nat.analysis.html_topology import topology

DOCS: Final = Path(__file__).parent
CAPTURES: Final = DOCS.parent / "tests" / "captures"
_WIDTH: Final = 640  #: pixels


def drawn() -> dict[Path, str]:
    """Return each picture's file and what is to stand in it."""
    sides = (CAPTURES / f"gre_blocked_inbound-{side}.pcap" for side in ("lan", "wan"))
    analysis = analyze(sides)
    call = analysis.translations[0].inside
    pictures = {
        "report-hosts.svg": topology(analysis),
        "report-way.svg": stack(analysis, call),
    }
    ground = '<rect width="100%" height="100%" rx="8" fill="var(--card)"></rect>'
    return {
        DOCS / name: markup.replace("<svg ", f'<svg width="{_WIDTH}" ', 1).replace(
            "</title>", f"</title><style>{STYLE}</style>{ground}", 1
        )
        + "\n"
        for name, markup in pictures.items()
    }


if __name__ == "__main__":
    for path, text in drawn().items():
        if sys.argv[1:] == ["--write"]:
            path.write_text(text)
        else:
            sys.stdout.write(f"{path.name}: {len(text)} octets\n")
