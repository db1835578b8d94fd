"""`pptp_nat.analysis.gre_quality` for long batches: what goes as it should is judged by numpy.

A batch is taken whole if its numbers rise and its times do not go back; gaps are looked at
one by one.  Any other goes to `GreQuality`, which can judge all, packet by packet.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pptp_nat.analysis.arrays import NOTHING, ArrayColumns
from pptp_nat.analysis.gre_measures import GROWTH, SHORTEST, SILENCE
from pptp_nat.analysis.gre_quality import (
    HALF,
    KEPT,
    LENGTHS_KEPT,
    MASK,
    STALL,
    TIMES_KEPT,
    GreQuality,
)
from pptp_nat.analysis.packets import Columns, Evidence

_FEWEST: Final = 48  #: packets of both directions that arrays are worth their while for


class ArrayQuality(GreQuality):
    """See `GreQuality`; the figures are the same."""

    def feed_many(self, sent: Columns, heard: Columns) -> None:
        """See `GreQuality.feed_many`."""
        heard = heard if len(heard) else NOTHING
        if (
            self._odd
            or len(sent) + len(heard) < _FEWEST
            or not isinstance(sent, ArrayColumns)
            or not isinstance(heard, ArrayColumns)
            or not _is_plain(sent)
            or not bool((heard.times[1:] >= heard.times[:-1]).all())
        ):
            super().feed_many(sent, heard)
            return
        times, numbers, sequences = sent.times, sent.numbers, sent.sequences
        if not sent.sequenced.all():
            chosen = np.flatnonzero(sent.sequenced)
            times, numbers, sequences = times[chosen], numbers[chosen], sequences[chosen]
        came, acks = heard.times, heard.acknowledgements
        if not heard.acknowledged.all():
            chosen = np.flatnonzero(heard.acknowledged)
            came, acks = came[chosen], acks[chosen]
        if not self._rises(sequences, acks):
            super().feed_many(sent, heard)
            return
        self._count_all(sent)
        self._speak(sent, heard)
        highest = self._expected - 1
        if len(times):
            if self._ack_after is not None:  # the batch before has left it open
                self._end_stall(numbers.item(0), times.item(0), self._data_time)
            self._follow(times, numbers, sequences)
        self._hear(times, numbers, sequences, came, acks.astype(np.int64), highest)
        if len(times):
            self._remember(times, sequences)
            self._data_time = times.item(-1)

    def _rises(self, sequences: Any, acks: Any) -> bool:  # noqa: ANN401  of numpy
        """Whether each number is above the one before, and all are far from beginning anew."""
        if self._expected >= HALF or HALF <= self._acked < MASK or acks.max(initial=0) >= HALF:
            return False
        return not len(sequences) or bool(
            self._expected <= sequences.item(0)
            and sequences.item(-1) < HALF - 1
            and (sequences[1:] > sequences[:-1]).all()
        )

    def _count_all(self, sent: ArrayColumns) -> None:
        """See `GreQuality._count`."""
        times, lengths = sent.times, sent.lengths
        self.packets += len(sent)
        self.octets += int(lengths.sum(dtype=np.int64))
        self.acknowledging += int(np.count_nonzero(sent.acknowledged))
        if len(self.lengths) < LENGTHS_KEPT:
            counts = np.bincount(lengths)
            found = np.flatnonzero(counts)
            self.lengths.update(dict(zip(found.tolist(), counts[found].tolist(), strict=True)))
        if self.first is None:
            self.first = Evidence(self.file, *sent.first)
        largest = lengths.max().item()
        if largest >= self.largest:
            latest = np.flatnonzero(lengths == largest)[-KEPT:].tolist()
            seen = [Evidence(self.file, sent.numbers.item(at), times.item(at)) for at in latest]
            before = self.largest_at if largest == self.largest else []
            self.largest, self.largest_at = largest, [*before, *seen][-KEPT:]
        bins, begins, counts = self._shares(times)
        np.asarray(self.timeline.packets)[bins] += counts
        np.asarray(self.timeline.octets)[bins] += np.add.reduceat(lengths, begins, dtype=np.int64)

    def _shares(self, times: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401  of numpy
        """Return the bins that hold some of *times*, where in them each begins, how many it has."""
        first, edges = self.timeline.between(times.item(0), times.item(-1))
        cuts = np.concatenate(((0,), times.searchsorted(edges), (len(times),)))
        counts = cuts[1:] - cuts[:-1]
        full = counts.nonzero()[0]
        return full + first, cuts[full], counts[full]

    def _speak(self, sent: ArrayColumns, heard: ArrayColumns) -> None:
        """Look for pauses; those of less than a second are nothing to speak of."""
        longest = np.diff(sent.times).max(initial=0.0).item()
        if longest > SILENCE:
            self._pauses.spoken(sent.times.tolist(), sent.numbers.tolist(), heard.times.tolist())
            return
        first, last = sent.first[1], sent.last[1]
        before = heard.times[: np.searchsorted(heard.times, first)]
        behind = heard.times[np.searchsorted(heard.times, last) :]
        self._pauses.went_on(
            first, Evidence(self.file, *sent.last), longest, before.tolist(), behind.tolist()
        )

    def _follow(self, times: Any, numbers: Any, sequences: Any) -> None:  # noqa: ANN401
        """See `GreQuality._order`; there are gaps at most."""
        self.data += len(sequences)
        gaps = (np.flatnonzero(np.diff(sequences) != 1) + 1).tolist()
        if sequences.item(0) != self._expected:
            gaps.insert(0, 0)
        for at in gaps:
            if at:
                self._expected = sequences.item(at - 1) + 1
            self._unexpected(sequences.item(at), times.item(at), numbers.item(at))
        self._expected = sequences.item(-1) + 1

    def _hear(
        self, times: Any, numbers: Any, sequences: Any,  # noqa: ANN401  of numpy
        came: Any, acks: Any, highest: int,  # noqa: ANN401
    ) -> None:  # fmt: skip
        """See `GreQuality._acknowledge`."""
        if self._expected < 0 or not len(acks):
            return
        is_fresh = np.concatenate(((acks.item(0) != self._acked,), acks[1:] != acks[:-1]))
        is_seen = acks < self._expected
        self.acks_of_unseen += int(np.count_nonzero(is_fresh & ~is_seen))
        is_known, acked = self._acked >= 0, self._acked
        if acked == MASK:
            acked = -1  # what comes before 0, and all before it: nothing is left to be waited for
        highest_acked = np.maximum.accumulate(
            np.concatenate(((acked,), np.where(is_seen, acks, -1)))
        )
        news = np.flatnonzero(is_seen & (acks > highest_acked[:-1]))
        if len(news):
            came, acks = came[news], acks[news]
            # What each acknowledgement finds: the packet before it, and that one's time.
            before = np.searchsorted(times, came, "right")
            waiting = np.concatenate(((highest,), sequences)).astype(np.int64)[before]
            waiting -= highest_acked[news]
            silent = came - np.concatenate(((self._data_time,), times))[before]
            if not is_known:  # how much was waiting before it
                waiting[0], silent[0] = 0, 0.0
            self._acked = acks.item(-1)
            for at in np.flatnonzero(silent > STALL).tolist():
                self._ack_after = came.item(at), waiting.item(at) & MASK
                place = before.item(at)
                if place < len(times):
                    previous = times.item(place - 1) if place else self._data_time
                    self._end_stall(numbers.item(place), times.item(place), previous)
            delays = came - self._times_of(acks, came, times, sequences)
            self._enter_all(came, np.maximum(waiting, 0), delays)
        if self._acked >= 0 and len(times):
            self._most((self._expected - 1 - self._acked) & MASK, times.item(-1))

    def _times_of(
        self, acks: Any, came: Any, times: Any, sequences: Any  # noqa: ANN401  of numpy
    ) -> Any:  # noqa: ANN401
        """Return when what is acknowledged was sent; when that came, where it is not known."""
        at = np.searchsorted(sequences, acks)
        inside = np.minimum(at, max(len(sequences) - 1, 0))
        sent = came.copy()
        known = sequences[inside] == acks if len(sequences) else np.zeros(len(acks), bool)
        sent[known] = times[inside[known]]
        for index in np.flatnonzero(~known).tolist():
            sent[index] = self._sent.get(acks.item(index), came.item(index))
        return sent

    def _enter_all(self, came: Any, waiting: Any, delays: Any) -> None:  # noqa: ANN401
        """See `GreQuality._enter`."""
        self._count_delays(np.maximum(delays[delays != 0.0], SHORTEST))
        at = int(waiting.argmax())
        self._most(waiting.item(at), came.item(at))
        bins, begins, _ = self._shares(came)
        told = self.timeline
        np.asarray(told.delay)[bins] += np.add.reduceat(delays, begins)
        np.asarray(told.delayed)[bins] += np.add.reduceat(delays != 0.0, begins, dtype=np.int64)
        for column, values in ((told.outstanding, waiting), (told.longest, delays)):
            here = np.asarray(column)
            here[bins] = np.maximum(here[bins], np.maximum.reduceat(values, begins))

    def _count_delays(self, delays: Any) -> None:  # noqa: ANN401  of numpy
        """See `pptp_nat.analysis.gre_measures.Delays.add`."""
        if len(delays):
            buckets = np.floor(np.log(delays) * GROWTH).astype(np.int64)
            least = buckets.min().item()
            counts = np.bincount(buckets - least)
            found = np.flatnonzero(counts)
            buckets = dict(zip((found + least).tolist(), counts[found].tolist(), strict=True))
            self.delays.add_counted(buckets, delays.max().item())

    def _remember(self, times: Any, sequences: Any) -> None:  # noqa: ANN401  of numpy
        """Keep the latest sending times."""
        if len(self._sent) + len(sequences) > 2 * TIMES_KEPT:
            missing = max(TIMES_KEPT - len(sequences), 0)
            self._sent = dict(list(self._sent.items())[len(self._sent) - missing :])
            times, sequences = times[-TIMES_KEPT:], sequences[-TIMES_KEPT:]
        self._sent.update(zip(sequences.tolist(), times.tolist(), strict=True))


def _is_plain(sent: ArrayColumns) -> bool:
    """Whether there are packets, their times do not go back, and just those with data count."""
    return bool(
        len(sent)
        and (sent.times[1:] >= sent.times[:-1]).all()
        and ((sent.lengths != 0) == sent.sequenced).all()
    )
