"""The command conntrack on this router: the live table, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import operator
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn

from pptp_nat.analysis.conntrack_entries import GRE, TCP, ListedEntry
from pptp_nat.analysis.conntrack_report import entry_item, entry_line
from pptp_nat.analysis.conntrack_rules import TableDiagnosis, table_diagnoses
from pptp_nat.analysis.conntrack_tunnels import pptp_table
from pptp_nat.analysis.severity import Severity
from pptp_nat.linux.conntrack_events import Change
from pptp_nat.linux.conntrack_layout import (
    ASSURED,
    OFFLOADED,
    SEEN_REPLY,
    FlatRow,
    TableRow,
    helper_name,
    state_name,
)
from pptp_nat.linux.conntrack_table import Follower, is_wanted, table_pieces

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Collection, Hashable, Iterable, Iterator

    from pptp_nat.analysis.conntrack_entries import Way

LOOK_AGAIN: Final = 5.0  #: seconds between two looks at the whole table while following
RESTS: Final = 10  #: times as long as judging a table takes, until it is judged again
_WAYS: Final = operator.itemgetter(*range(1, 9))  # both ways of an entry


class _Dotted(dict[bytes, str]):
    """Addresses as text, each the very same object: it is hashed many times."""

    def __missing__(self, address: bytes) -> str:
        dotted = self[address] = socket.inet_ntoa(address)
        return dotted


_DOTTED: Final = _Dotted()


def live(ports: Collection[int]) -> Iterable[ListedEntry]:
    """Return all GRE entries and the control connections on *ports*.

    Raises:
        AdapterError: the kernel refused.
    """
    found: list[ListedEntry] = []
    for piece, told in table_pieces(ports):
        for rows in piece.flat:
            found += entries(rows, ports, frozenset(ports) if told else frozenset())
        found += [entry_of(row) for row in piece.rows if is_wanted(row, ports)]
    if len(set(map(hash, map(_WAYS, found)))) == len(found):
        return found
    # An old kernel's answers are all the same; a table that is resized may be told of twice.
    once: dict[Hashable, ListedEntry] = {}
    for entry in found:
        once.setdefault(_WAYS(entry), entry)
    return once.values()


def entries(
    rows: Iterable[FlatRow], ports: Collection[int], told: Collection[int]
) -> Iterator[ListedEntry]:
    """Yield what `entry_of` returns of each of *rows*, but for what was dialled on *told* ports."""
    dotted, make = _DOTTED, tuple.__new__
    for (
        protocol, source, source_key, destination, key,
        back_protocol, back_source, back_source_key, back_destination, back_key,
        status, left, state, packets, octets, back_packets, back_octets,
        mark, helper, identity, started,
    ) in rows:  # fmt: skip
        if protocol != GRE and (
            protocol != TCP or key in told or (key not in ports and back_source_key not in ports)
        ):
            continue
        if key is None and back_protocol != GRE:
            continue  # as `read_row`, which knows no other protocol without keys
        flags = status or 0
        yield make(ListedEntry, (
            protocol,
            dotted[source], dotted[destination], source_key, key,
            dotted[back_source], dotted[back_destination], back_source_key, back_key,
            "" if state is None else state_name(state),
            left,
            not flags & SEEN_REPLY,
            flags & ASSURED != 0,
            flags & OFFLOADED != 0,
            packets, octets, back_packets, back_octets,
            mark or 0,
            "" if helper is None else helper_name(helper),
            identity or 0,
            None if started is None else started / 1e9,
            0,
        ))  # fmt: skip


def entry_of(row: TableRow) -> ListedEntry:
    """Return what a listing would have shown of *row*."""
    (
        (protocol, source, source_key, destination, key),
        (_, back_source, back_source_key, back_destination, back_key),
        keyed, status, state, left, carried, returned, mark, helper, identity, started,
    ) = row  # fmt: skip
    keys: tuple[int | None, int | None] = source_key, key
    back_keys: tuple[int | None, int | None] = back_source_key, back_key
    if not keyed:
        keys = back_keys = None, None
    return tuple.__new__(ListedEntry, (
        protocol,
        _DOTTED[source], _DOTTED[destination], *keys,
        _DOTTED[back_source], _DOTTED[back_destination], *back_keys,
        state,
        left,
        not status & SEEN_REPLY,
        bool(status & ASSURED),
        bool(status & OFFLOADED),
        *(carried or (None, None)),
        *(returned or (None, None)),
        mark,
        helper or "",
        identity,
        started,
        0,
    ))  # fmt: skip


# --- following ----------------------------------------------------------------------------------


class _Watch:
    """A table that is kept up to date, and what was already said about it."""

    def __init__(self, options: Namespace, ports: Collection[int]) -> None:
        self._ports = ports
        self._mark = options.entry_mark
        self._json = options.output == "json"
        self._entries: dict[tuple[int, Way], ListedEntry] = {}
        self._told: dict[tuple[str, Way], TableDiagnosis] = {}

    def look(self) -> None:
        """Read the whole table."""
        self._entries = {(e.protocol, e.original): e for e in live(self._ports)}

    def take(self, change: Change, row: TableRow) -> None:
        """Note and tell what became of an entry."""
        entry = entry_of(row)
        key = entry.protocol, entry.original
        if change is Change.DESTROY:
            self._entries.pop(key, None)
        else:
            self._entries[key] = entry
        if self._json:
            self._say({"change": change.value, "entry": entry_item(entry)})
        else:
            self._say(f"[{change.value.upper()}] {entry_line(entry)}")

    def judge(self) -> None:
        """Tell what has become wrong, and what no longer is."""
        found = pptp_table(self._entries.values(), self._ports, self._mark)
        now = {
            (each.rule, each.evidence[0].original): each
            for each in table_diagnoses(found)
            if each.severity is not Severity.OK
        }
        for key in self._told.keys() - now.keys():
            self._tell("over", self._told[key])
        for key in now.keys() - self._told.keys():
            self._tell("found", now[key])
        self._told = now

    def _tell(self, what: str, each: TableDiagnosis) -> None:
        if self._json:
            item = {"rule": each.rule, "severity": each.severity.value, "summary": each.summary}
            self._say({"change": what, "diagnosis": {**item, "remedy": each.remedy}})
        elif what == "over":
            self._say(f"OVER {each.rule}: {each.summary}")
        else:
            self._say(f"{each.severity.value.upper()} {each.rule}: {each.summary}")
            self._say(f"  mend: {each.remedy}")

    def _say(self, what: object) -> None:
        if self._json:
            what = json.dumps({"time": time.time(), **what})  # type: ignore[dict-item]
        sys.stdout.write(f"{what}\n")


def follow(options: Namespace, ports: Collection[int]) -> NoReturn:
    """Tell changes until interrupted."""
    watch = _Watch(options, ports)
    with contextlib.closing(Follower(ports)) as follower:
        look_due = judge_due = 0.0
        while True:
            now = time.monotonic()
            if now >= look_due:
                watch.look()
                look_due = now + LOOK_AGAIN
            if now >= judge_due:
                watch.judge()
                taken = time.monotonic() - now
                judge_due = now + RESTS * taken  # a large table is not judged at every event
            sys.stdout.flush()
            if follower.wait(max(0.0, min(look_due, judge_due) - time.monotonic())):
                for change, row in follower.read():
                    if row is None:
                        look_due = 0.0
                    else:
                        watch.take(change, row)
