"""Files in, an analysis out: the whole of `pptp-nat analyze` but its report."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis import parallel
from pptp_nat.analysis.capture import CaptureReader
from pptp_nat.analysis.model import Analysis, CaptureFile
from pptp_nat.core.messages import PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pptp_nat.analysis.follower import Follower
    from pptp_nat.analysis.gre_quality import GreQuality
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
        for reader, first, begin in _in_time(readers):
            rest = begin()
            # Other processes read while this one loads modules.
            from pptp_nat.analysis.follower import Follower  # noqa: PLC0415

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
    from pptp_nat.analysis.diagnosis import conclude  # noqa: PLC0415

    conclude(analysis)
    return analysis


def _measure(readers: list[CaptureReader]) -> type[GreQuality]:
    """Return what measures GRE: by the column if it is read so."""
    if all(reader.bulk is None for reader in readers):
        from pptp_nat.analysis.gre_quality import GreQuality  # noqa: PLC0415

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
) -> list[tuple[CaptureReader, Window, Callable[[], Iterator[Window]]]]:
    """Return the readers in the order of their first packets.

    With each its first window, and what begins to read the others.
    """
    begun = []
    for reader in readers:
        windows = reader.windows()
        first = next(windows)
        if parallel.is_worth_it(reader) and first.damage is None:
            begin = functools.partial(parallel.windows, reader)
        else:
            begin = functools.partial(iter, windows)
        begun.append((reader, first, begin))
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
