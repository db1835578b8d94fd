"""Packed rows out of rows: what a daemon would answer that has just those."""

import time

from pptp_nat.tables.packed import COLUMNS
from pptp_nat.tables.packed_connections import COLUMNS as CONNECTIONS


def packed_answer(rows, columns=COLUMNS, age=0.0):
    """Return the items of a packed list whose counts are *age* seconds old."""
    head = {"columns": columns, "counted": time.time() - age}
    return [head, *({"rows": [_values(each)]} for each in rows)]


def packed_connections_answer(rows):
    """Return the items of packed control connections."""
    return [{"columns": CONNECTIONS, "counted": time.time()},
            *({"rows": [_connection(each)]} for each in rows)]  # fmt: skip


def _connection(row):
    ends = row.originator, row.responder
    return [
        row.id, row.state, *ends[0][:2], *ends[1][:2], row.inside, row.opaque, row.passive,
        row.calls, row.age, row.echo_age, row.echo_seconds, row.echo_by,
        *(end[2:] if any(end[2:]) else None for end in ends),
    ]  # fmt: skip


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
