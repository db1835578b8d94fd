"""A large capture read by several processes, each a stretch at a time.

A stretch begins anywhere, so a worker looks for the first place where one plausible record
follows another.  That is a guess, and it is checked: each stretch must begin just where the
one before it has ended.  Where it does not, or where a pcapng file describes further
interfaces, that stretch is read once more from the right place, so the outcome is always
that of `pptp_nat.analysis.capture.CaptureReader.windows`.
"""

from __future__ import annotations

import copy
import gc
import os
import signal
import struct
from collections import deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis.capture import Stretch
from pptp_nat.analysis.formats import ENHANCED, LONGEST
from pptp_nat.analysis.model import Damage
from pptp_nat.analysis.stored import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

    from pptp_nat.analysis.arrays import Packed
    from pptp_nat.analysis.bulk import Bulk
    from pptp_nat.analysis.capture import CaptureReader
    from pptp_nat.analysis.formats import Form
    from pptp_nat.analysis.sorting import Window
    from pptp_nat.analysis.walk import Main

STRETCH: Final = 64 << 20  #: octets; longer ones make columns longer, which costs less per packet
SMALLEST: Final = 64 << 20  #: octets of a file that is worth several processes
_CHAIN: Final = 12  #: records in a row that make a beginning plausible
_SEARCHED: Final = 1 << 20  #: octets in the first half of which a record must begin
_AHEAD: Final = 2  #: stretches under way for each worker


class Task(NamedTuple):
    """A stretch to be read."""

    path: str
    form: Form
    main: Main | None
    ports: frozenset[int]
    start: int  #: offset in the file of the first record, or near before it
    stop: int  #: a record at or behind this offset belongs to the next stretch
    bulk: type[Bulk] | None  #: what reads by the column
    is_exact: bool  #: a record begins just at `start`


class Done(NamedTuple):
    """What was in a stretch; packet numbers begin with 1."""

    begin: int  #: offset of its first record; -1: none was found
    end: int  #: offset of the first record behind it
    window: Window
    packed: Packed | None  #: the flows of the window, if it has arrays
    form: Form  #: how the records behind it are to be read


def is_worth_it(reader: CaptureReader) -> bool:
    """Whether several processes will read a file faster than one."""
    return reader.size >= SMALLEST and reader.kind in ("pcap", "pcapng") and _workers() > 1


def _workers() -> int:
    return len(os.sched_getaffinity(0))


def windows(reader: CaptureReader) -> Iterator[Window]:
    """Begin to read what a reader has not read yet, and return it bit by bit."""
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415  costs a moment
    from multiprocessing import get_context  # noqa: PLC0415

    pool = ProcessPoolExecutor(
        _workers(), mp_context=get_context("fork"), initializer=_begin_worker
    )
    stretches = _Stretches(reader, pool)
    # Interrupted between its first process and its thread a pool would wait for both forever.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        stretches.submit()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return stretches.windows()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    gc.disable()


class _Stretches:
    """The stretches of a file, and the pool that reads them."""

    def __init__(self, reader: CaptureReader, pool: Executor) -> None:
        self._reader, self._pool = reader, pool
        offset, _, form, main = reader.state
        self._task = Task(
            reader.name, form, main, reader.ports, 0, 0, reader.bulk, is_exact=False
        )  # fmt: skip
        self._begin = offset
        self._todo = deque(pairwise([*range(offset, reader.size, STRETCH), reader.size]))
        self._under_way: deque[tuple[int, Future[Done]]] = deque()

    def submit(self) -> None:
        """See to it that each worker has something to do, and something waits for it."""
        while self._todo and len(self._under_way) < _AHEAD * _workers():
            start, stop = self._todo.popleft()
            task = self._task._replace(start=start, stop=stop, is_exact=start == self._begin)
            self._under_way.append((stop, self._pool.submit(read_stretch, task)))

    def windows(self) -> Iterator[Window]:
        """Yield what is in them, in order."""
        is_done = False
        try:
            yield from self._in_order()
            is_done = True
        finally:  # whoever is interrupted does not wait for what nobody will look at
            self._pool.shutdown(wait=is_done, cancel_futures=True)

    def _in_order(self) -> Iterator[Window]:
        reader, task = self._reader, self._task
        offset, packets, form, _ = reader.state
        while self._under_way:
            stop, future = self._under_way.popleft()
            done = future.result()
            self.submit()
            if done.begin != offset or form != task.form:
                done = read_stretch(
                    task._replace(form=form, main=None, start=offset, stop=stop, is_exact=True)
                )
            window, form = done.window, done.form
            window.shift(packets)
            if done.packed is not None:
                from pptp_nat.analysis.arrays import unpacked  # noqa: PLC0415  numpy is here

                window.flows = unpacked(done.packed, packets)
            if window.damage is not None:
                window.damage = replace(window.damage, number=window.damage.number + packets)
            packets += window.packets
            offset = reader.position = done.end
            yield window
            if window.damage is not None:
                break


def read_stretch(task: Task) -> Done:
    """Read one stretch."""
    stored, _, _ = opened(Path(task.path))
    stretch = Stretch(stored, copy.deepcopy(task.form), task.ports, task.main, task.bulk)
    begin: int | None = task.start
    if not task.is_exact:
        begin = find_record(task.form, stored.read(task.start, _SEARCHED), task.start)
    if begin is None:
        return Done(-1, -1, stretch.sorter.finish(), None, task.form)
    at = stretch.read(begin, task.stop)
    stored.close()
    window = stretch.sorter.finish()
    what = stretch.damage or stored.trouble
    if what is not None:
        window.damage = Damage(at, stretch.packets, what)
    flows = None
    if task.bulk is not None:
        from pptp_nat.analysis.arrays import packed  # noqa: PLC0415  numpy is here

        flows, window.flows = packed(window.flows), {}
    return Done(begin, at, window, flows, stretch.form)


def find_record(form: Form, buffer: bytes, base: int = 0) -> int | None:
    """Return where the first of several records in a row begins, if it can be told.

    *buffer* stands at *base* in the file.
    """
    step = _pcap_step if form.kind == "pcap" else _pcapng_step
    places = range(0, len(buffer) // 2, 1 if form.kind == "pcap" else 4)
    found = next((at for at in places if _is_chain(form, buffer, at, step)), None)
    return None if found is None else base + found


def _is_chain(
    form: Form, buffer: bytes, at: int, step: Callable[[Form, bytes, int], int | None]
) -> bool:
    for _ in range(_CHAIN):
        if at + 32 > len(buffer):
            return False
        length = step(form, buffer, at)
        if length is None:
            return False
        at += length
    return True


def _pcap_step(form: Form, buffer: bytes, at: int) -> int | None:
    _, parts, captured, wire = struct.unpack_from(form.order + "IIII", buffer, at)
    rate = form.interfaces[0].rate
    is_plausible = 0 < captured <= wire <= LONGEST and (parts < rate or form.loose)
    return form.header + captured if is_plausible else None


def _pcapng_step(form: Form, buffer: bytes, at: int) -> int | None:
    kind, length = struct.unpack_from(form.order + "II", buffer, at)
    if kind != ENHANCED or not 32 <= length <= LONGEST or length % 4:
        return None
    trailer = buffer[at + length - 4 : at + length]
    return length if trailer == buffer[at + 4 : at + 8] else None
