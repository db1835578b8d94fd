"""Gaps of sequence numbers: what a list shows of calls whose GRE BPF programs look at."""

from __future__ import annotations

import dataclasses

from pptp_nat.core.calls import Call
from pptp_nat.core.tuples import Party
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.linux.datapath import DataPath
from pptp_nat.tables.packing import Gaps
from pptp_nat.tables.table import CallRow, Count
from pptp_nat.tables.views import inside_party


def with_gaps(row: CallRow, call: Call, path: DataPath) -> CallRow:
    """Return *row* of *call* with what was missing and late, if *path* knows."""
    if not isinstance(path, BpfPath):
        return row
    inside = inside_party(call)
    return dataclasses.replace(
        row,
        to_remote=_counted(row.to_remote, call, inside.other, path),
        to_inside=_counted(row.to_inside, call, inside, path),
    )


def _counted(count: Count, call: Call, party: Party, path: BpfPath) -> Count:
    leg = call.leg(party)
    seen = None if leg is None else path.watched(leg)
    return count if seen is None else count._replace(missing=seen.missing, late=seen.late)


def gaps_of(call: Call, path: DataPath) -> Gaps | None:
    """Return what was missing and late of *call*, if *path* knows."""
    if not isinstance(path, BpfPath):
        return None
    inside = inside_party(call)
    nothing = Count(0, 0)
    to_remote = _counted(nothing, call, inside.other, path)
    to_inside = _counted(nothing, call, inside, path)
    return to_remote.missing, to_remote.late, to_inside.missing, to_inside.late
