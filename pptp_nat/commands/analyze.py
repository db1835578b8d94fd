"""The command analyze: what captures tell."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.analyze import analyze as analyze_files
from pptp_nat.core.messages import PORT

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from pptp_nat.analysis.model import Analysis

INTERRUPTED: Final = 130  #: exit code: the report is about a part
LARGE: Final = 64 << 20  #: octets of captures for which a progress bar is worth its line
BAR: Final = 40  #: characters
REDRAWN: Final = 0.1  #: seconds


def analyze(options: Namespace) -> int:
    """Read the captures and report."""
    gc.disable()  # windows of a capture hold no cycles: each is let go of when it was read
    bar = _Bar()
    ports = frozenset(options.port or (PORT,))
    analysis = analyze_files([Path(name) for name in options.files], ports, bar.show)
    bar.clear()
    if not analysis.interrupted:  # else processes that read may have to be waited for
        options.kept = analysis  # until this one ends: see `pptp_nat.cli`
    lines = _RENDERINGS[options.output](analysis, whole=not options.summary)
    if options.path is None:
        sys.stdout.writelines(f"{line}\n" for line in lines)
    else:
        with Path(options.path).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    return INTERRUPTED if analysis.interrupted else 0


# What renders is loaded when captures have been read: others read meanwhile.


def _text(analysis: Analysis, *, whole: bool) -> Iterator[str]:
    from pptp_nat.analysis.report import text  # noqa: PLC0415

    return text(analysis, whole=whole)


def _json(analysis: Analysis, *, whole: bool) -> Iterator[str]:
    from pptp_nat.analysis.items import analysis_item  # noqa: PLC0415

    item = analysis_item(analysis)
    if not whole:
        item = {name: item[name] for name in ("files", "interrupted", "counts", "diagnoses")}
    yield json.dumps(item, indent=1)


def _html(analysis: Analysis, *, whole: bool) -> Iterator[str]:
    from pptp_nat.analysis.html import report  # noqa: PLC0415  costs a moment

    yield report(analysis, whole=whole)


_RENDERINGS: Final = {"text": _text, "json": _json, "html": _html}


class _Bar:
    """How far the reading has come: a line on standard error, if a person looks at it."""

    def __init__(self) -> None:
        self._is_seen = sys.stderr.isatty()
        self._drawn = 0.0
        self._is_there = False

    def show(self, done: int, total: int) -> None:
        """Draw the bar, if the files are large."""
        if not self._is_seen or total < LARGE or time.monotonic() - self._drawn < REDRAWN:
            return
        self._drawn, self._is_there = time.monotonic(), True
        full = BAR * done // total
        sys.stderr.write(f"\r[{'#' * full}{'.' * (BAR - full)}] {100 * done // total:3} %")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave no trace of the bar."""
        if self._is_there:
            sys.stderr.write("\r\x1b[K")
