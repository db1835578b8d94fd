"""The command conntrack: what the kernel's table says about PPTP, without the daemon."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn

from pptp_nat.analysis.conntrack_entries import ListedEntry
from pptp_nat.analysis.conntrack_report import entry_item, entry_line, table_json, table_text
from pptp_nat.analysis.conntrack_rules import TableDiagnosis, table_diagnoses
from pptp_nat.analysis.conntrack_text import Listing
from pptp_nat.analysis.conntrack_tunnels import PORT, pptp_table
from pptp_nat.analysis.model import Severity
from pptp_nat.errors import ConfigError, UsageError
from pptp_nat.linux.conntrack_events import Change
from pptp_nat.linux.conntrack_table import ASSURED, OFFLOADED, SEEN_REPLY, Follower, TableRow, table

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Collection, Iterable, Iterator
    from typing import TextIO

    from pptp_nat.analysis.conntrack_entries import Way


SOMETHING_WRONG: Final = 3  #: exit code; 1 is for a table that cannot be read
LOOK_AGAIN: Final = 5.0  #: seconds between two looks at the whole table while following
RESTS: Final = 10  #: times as long as judging a table takes, until it is judged again
PIECE: Final = 1 << 16  #: characters that are read at once: what comes of them stays near


def conntrack(options: Namespace) -> int:
    """Show tunnels, calls and what is wrong with them; 3 if anything is."""
    ports = tuple(options.port or (PORT,))
    if options.follow:
        if options.file is not None:
            raise ConfigError(
                "pptp-nat conntrack: --follow listens to this router's table: leave FILE out"
            )
        return _follow(options, ports)
    gc.disable()  # a hundred thousand entries without one cycle: a third of the time
    others = garbage = 0
    if options.file is None:
        entries = _live(ports)
    else:
        listing = Listing(ports)
        with _opened(options.file) as file:
            listing.read(iter(functools.partial(file.read, PIECE), ""))
        if listing.complaint:
            name = "standard input" if options.file == "-" else options.file
            if not listing.entries and not listing.others:
                raise UsageError(f"{name}: {listing.complaint}; it takes what `conntrack -L` shows")
            sys.stderr.write(f"pptp-nat: {name}: {listing.complaint}\n")
        entries, others, garbage = listing.entries, listing.others, listing.garbage
    found = pptp_table(entries, ports, options.entry_mark)
    diagnoses = table_diagnoses(found)
    options.kept = entries, found, diagnoses  # until the process ends: see `pptp_nat.cli`
    if options.output == "json":
        sys.stdout.writelines(table_json(found, diagnoses, others=others, garbage=garbage))
    else:
        lines = table_text(found, diagnoses, others=others)
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return SOMETHING_WRONG if _wrong(diagnoses) else 0


def _wrong(diagnoses: Iterable[TableDiagnosis]) -> bool:
    return any(each.severity in (Severity.ERROR, Severity.WARNING) for each in diagnoses)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    """Yield the file *name*, or standard input; octets of any sort are text."""
    with contextlib.ExitStack() as stack:
        if name == "-":
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
            yield sys.stdin
        else:
            # An OSError names the file; the command line tells it in one line.
            yield stack.enter_context(open(name, encoding="utf-8", errors="replace"))  # noqa: PTH123


# --- the live table -----------------------------------------------------------------------------

_dotted = functools.lru_cache(1 << 16)(socket.inet_ntoa)


def _live(ports: Collection[int]) -> list[ListedEntry]:
    return [_entry(row) for row in table(ports)]


def _entry(row: TableRow) -> ListedEntry:
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
        _dotted(source), _dotted(destination), *keys,
        _dotted(back_source), _dotted(back_destination), *back_keys,
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
        self._entries = {(e.protocol, e.original): e for e in _live(self._ports)}

    def take(self, change: Change, row: TableRow) -> None:
        """Note and tell what became of an entry."""
        entry = _entry(row)
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


def _follow(options: Namespace, ports: Collection[int]) -> NoReturn:
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
