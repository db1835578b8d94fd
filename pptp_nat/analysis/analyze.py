"""Files in, an analysis out: the whole of `pptp-nat analyze` but its report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis import parallel
from pptp_nat.analysis.capture import CaptureReader
from pptp_nat.analysis.diagnosis import diagnose
from pptp_nat.analysis.follower import Follower
from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.model import Analysis, CaptureFile
from pptp_nat.analysis.translations import translations
from pptp_nat.core.messages import PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pptp_nat.analysis.sorting import Window

    #: Is told how many octets of how many have been read.
    Progress = Callable[[int, int], None]

_NUMBERS: Final = re.compile(r"[-_.]?\d+")


def analyze(
    paths: Iterable[Path],
    ports: frozenset[int] = frozenset((PORT,)),
    progress: Progress | None = None,
) -> Analysis:
    """Read files; an interruption (Ctrl-C) ends the reading, not the analysis.

    Raises:
        UsageError: a file cannot be read at all, or is no capture.
    """
    analysis = Analysis()
    readers = [CaptureReader(path, ports) for path in paths]
    total, done = sum(reader.size for reader in readers), 0
    vantages: list[_Vantage] = []
    measure = _measure(readers)
    try:
        for reader, first, rest in _in_time(readers):
            file = CaptureFile(reader.name, reader.kind)
            analysis.files.append(file)
            vantage = _vantage_of(
                file, first, vantages, lambda: Follower(analysis, ports, measure)
            )
            file.vantage = vantages.index(vantage)
            vantage.follower.begin(len(analysis.files) - 1)
            vantage.latest = file
            window: Window | None = first
            while window is not None:
                vantage.follower.take(window)
                if progress is not None:
                    progress(done + reader.position, total)
                window = next(rest, None)
            done += reader.size
    except KeyboardInterrupt:
        analysis.interrupted = True
    for vantage in vantages:
        vantage.follower.finish()
    conclude(analysis)
    return analysis


def conclude(analysis: Analysis) -> None:
    """Say what follows from all that was read; may be done again when there is more."""
    analysis.translations = translations(analysis)
    analysis.diagnoses = diagnose(analysis)


def _measure(readers: list[CaptureReader]) -> type[GreQuality]:
    """Return what measures GRE: by the column if it is read so."""
    if all(reader.bulk is None for reader in readers):
        return GreQuality
    from pptp_nat.analysis.gre_arrays import ArrayQuality  # noqa: PLC0415  numpy is here

    return ArrayQuality


class _Vantage:
    """A place that one or several files were captured at."""

    def __init__(self, name: str, follower: Follower) -> None:
        self.name = name
        self.follower = follower
        self.latest: CaptureFile


def _in_time(
    readers: list[CaptureReader],
) -> list[tuple[CaptureReader, Window, Iterator[Window]]]:
    """Return the readers in the order of their first packets, with their windows."""
    begun = []
    for reader in readers:
        windows = reader.windows()
        first = next(windows)
        if parallel.is_worth_it(reader) and first.damage is None:
            windows = parallel.windows(reader)
        begun.append((reader, first, windows))
    return sorted(begun, key=lambda item: item[1].first or 0.0)


def _vantage_of(
    file: CaptureFile, first: Window, vantages: list[_Vantage], begun: Callable[[], Follower]
) -> _Vantage:
    """Return the vantage point of a file: that of the file which it continues, or a new one.

    A file continues another whose name differs only in numbers, as those of a ring buffer
    do, and which has ended by the time that it begins.
    """
    name = _NUMBERS.sub("", file.name)
    for vantage in reversed(vantages):
        ended = vantage.latest.last
        if vantage.name == name and (ended or 0.0) <= (first.first or 0.0):
            return vantage
    vantages.append(_Vantage(name, begun()))
    return vantages[-1]
