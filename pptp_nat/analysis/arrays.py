"""Columns of ordinary GRE as arrays of numpy: the same packets, a tenth of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pptp_nat.analysis.packets import COLUMNS, OPENING, Columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pptp_nat.analysis.packets import Row
    from pptp_nat.analysis.sorting import FlowKey

#: The type of each column, in the order of `COLUMNS`.
_TYPES = ("f8", "u4", "u4", "u1", "u4", "u1", "u4", "u4")


class Known(NamedTuple):
    """What is asked of any columns, told of many flows at once; see `Columns`."""

    octets: int
    first: tuple[int, float]
    last: tuple[int, float]
    repeats: bool


class ArrayColumns(Columns):
    """See `Columns`; each column is an array, `sequenced` and `acknowledged` of 0 and 1."""

    __slots__ = ("known",)
    waits = True

    def __init__(self, *columns: Any, known: Known | None = None) -> None:  # noqa: ANN401
        super().__init__(*columns)
        self.known = known

    times: Any
    numbers: Any
    lengths: Any
    sequenced: Any
    sequences: Any
    acknowledged: Any
    acknowledgements: Any
    heads: Any

    @property
    def octets(self) -> int:
        """See `Columns.octets`."""
        if self.known is not None:
            return self.known.octets
        numbers = np.count_nonzero(self.sequenced) + np.count_nonzero(self.acknowledged)
        return int(self.lengths.sum(dtype=np.int64)) + 28 * len(self) + 4 * int(numbers)

    @property
    def first(self) -> tuple[int, float]:
        """See `Columns.first`."""
        if self.known is not None:
            return self.known.first
        return self.numbers.item(0), self.times.item(0)

    @property
    def last(self) -> tuple[int, float]:
        """See `Columns.last`."""
        if self.known is not None:
            return self.known.last
        return self.numbers.item(-1), self.times.item(-1)

    @property
    def repeats(self) -> bool:
        """See `Columns.repeats`."""
        if self.known is not None:
            return self.known.repeats
        return super().repeats

    def shift(self, base: int) -> None:
        """See `Columns.shift`."""
        self.numbers = self.numbers + np.uint32(base)
        self.known = None

    def listed(self) -> Columns:
        """See `Columns.listed`."""
        return Columns(
            self.times.tolist(), self.numbers.tolist(), self.lengths.tolist(),
            self.sequenced.tobytes(), self.sequences.tolist(),
            self.acknowledged.tobytes(), self.acknowledgements.tolist(), self.heads.tolist(),
        )  # fmt: skip

    def rows(self) -> Iterator[Row]:
        """See `Columns.rows`."""
        return self.listed().rows()

    def followed_by(self, others: Sequence[Columns]) -> Columns:
        """See `Columns.followed_by`."""
        parts = (self, *others)
        return ArrayColumns(*(
            np.concatenate([_array(getattr(each, name), kind) for each in parts])
            for name, kind in zip(COLUMNS, _TYPES, strict=True)
        ))  # fmt: skip

    def part(self, start: int, stop: int) -> ArrayColumns:
        """See `Columns.part`."""
        return ArrayColumns(*(getattr(self, name)[start:stop] for name in COLUMNS))


NOTHING: Final = ArrayColumns(*(np.empty(0, kind) for kind in _TYPES))


class Packed(NamedTuple):
    """The columns of many flows, one behind the other: few large arrays travel fast."""

    flows: list[tuple[FlowKey, int]]  #: how many packets each has, one at least
    columns: tuple[Any, ...]  #: in the order of `COLUMNS`


def packed(flows: dict[FlowKey, Columns]) -> Packed:
    """Put the columns of flows together."""
    columns = tuple(
        np.concatenate([_array(getattr(each, name), kind) for each in flows.values()])
        if flows else np.empty(0, kind)
        for name, kind in zip(COLUMNS, _TYPES, strict=True)
    )  # fmt: skip
    return Packed([(key, len(each)) for key, each in flows.items()], columns)


def unpacked(what: Packed, base: int) -> dict[FlowKey, Columns]:
    """Return the columns of each flow, with *base* added to the packets' numbers."""
    if not what.flows:
        return {}
    times, numbers, *others = what.columns
    columns = (times, numbers + np.uint32(base), *others)
    flows: dict[FlowKey, Columns] = {}
    at = 0
    for (key, count), known in zip(what.flows, _known(what.flows, columns), strict=True):
        flows[key] = ArrayColumns(*(each[at : at + count] for each in columns), known=known)
        at += count
    return flows


def _known(flows: list[tuple[FlowKey, int]], columns: tuple[Any, ...]) -> list[Known]:
    """Tell what is asked of each flow."""
    times, numbers, lengths, sequenced, sequences, acknowledged, acknowledgements, _ = columns
    counts = np.array([count for _, count in flows])
    ends = np.cumsum(counts)
    begins, lasts = ends - counts, ends - 1
    octets = np.add.reduceat(lengths, begins, dtype=np.int64) + 28 * counts
    for flag in (sequenced, acknowledged):
        octets += 4 * np.add.reduceat(flag, begins, dtype=np.int64)
    alike = np.zeros(len(flows), np.int64)
    for at in range(1, OPENING):
        here = np.minimum(begins + at, lasts)
        alike += (
            (at < counts)
            & (sequences[here] == sequences[here - 1])
            & (acknowledgements[here] == acknowledgements[here - 1])
        )
    repeats = 2 * alike >= np.maximum(np.minimum(counts, OPENING) - 2, 1)
    firsts, finals = (
        zip(numbers[places].tolist(), times[places].tolist(), strict=True)
        for places in (begins, lasts)
    )
    return list(map(Known, octets.tolist(), firsts, finals, repeats.tolist()))


def _array(column: Any, kind: str) -> Any:  # noqa: ANN401  an array, octets or numbers
    if isinstance(column, bytes):
        return np.frombuffer(column, kind)
    if isinstance(column, np.ndarray):
        return column
    return np.array([each & 0xFFFFFFFF for each in column] if kind == "u4" else column, kind)
