"""Packed rows out of rows: what a daemon would answer that has just those."""

import time

from pptp_nat.tables.packed import COLUMNS


def packed_answer(rows, columns=COLUMNS, age=0.0):
    """Return the items of a packed list whose counts are *age* seconds old."""
    head = {"columns": columns, "counted": time.time() - age}
    return [head, *({"rows": [_values(each)]} for each in rows)]


def _values(row):
    """Return *row* as the daemon packs it."""
    result = row.result
    return [
        row.id, row.state, row.role, row.direction, *row.inside, *row.external, *row.remote,
        *row.control, row.created, row.up_since, row.last_seen,
        *row.to_remote[:2], *row.to_inside[:2], row.mark, row.connection, row.cause,
        [result.code, result.text, result.error, result.cause],
        None if row.to_remote.missing is None else [*row.to_remote[2:], *row.to_inside[2:]],
    ]  # fmt: skip
