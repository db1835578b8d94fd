"""The command conntrack: what the kernel's table says about PPTP, without the daemon."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.conntrack_report import table_json, table_text
from pptp_nat.analysis.conntrack_rules import TableDiagnosis, table_diagnoses
from pptp_nat.analysis.conntrack_text import Listing
from pptp_nat.analysis.conntrack_tunnels import PORT, pptp_table
from pptp_nat.analysis.severity import Severity
from pptp_nat.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from pptp_nat.analysis.conntrack_entries import ListedEntry


SOMETHING_WRONG: Final = 3  #: exit code; 1 is for a table that cannot be read
PIECE: Final = 1 << 16  #: characters that are read at once: what comes of them stays near


def conntrack(options: Namespace) -> int:
    """Show tunnels, calls and what is wrong with them; 3 if anything is."""
    ports = tuple(options.port or (PORT,))
    if options.follow:
        if options.file is not None:
            raise ConfigError(
                "pptp-nat conntrack: --follow listens to this router's table: leave FILE out"
            )
        from pptp_nat.commands.conntrack_live import follow  # noqa: PLC0415  a file needs no kernel

        return follow(options, ports)
    gc.disable()  # a hundred thousand entries without one cycle: a third of the time
    others = garbage = 0
    entries: Iterable[ListedEntry]
    if options.file is None:
        from pptp_nat.commands.conntrack_live import live  # noqa: PLC0415

        entries = live(ports)
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
