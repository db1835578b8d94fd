"""The conntrack table as it is now, for people: control connections and all GRE, with their states.

`pptp_nat.linux.conntrack` looks at what is ours and changes it; this module only
looks, at the entries of anybody, and needs no daemon.
"""

from __future__ import annotations

import select
from collections.abc import Collection, Iterator
from typing import Final

from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_events import GROUPS, Change, change_of, event_filter
from pptp_nat.linux.conntrack_layout import TableRow
from pptp_nat.linux.conntrack_pieces import control_criteria
from pptp_nat.linux.conntrack_refusals import MENDS
from pptp_nat.linux.conntrack_rows import TUPLES, Piece, Reader, read_row
from pptp_nat.linux.conntrack_wire import (
    BY_PROTOCOL,
    GRE,
    TCP,
    Status,
    Tuple,
    by_status,
    by_tuple,
    dump_message,
)
from pptp_nat.linux.netlink import Netlink

_ALL_GRE: Final = by_tuple(
    original=(BY_PROTOCOL, Tuple(GRE, bytes(4), 0, bytes(4), 0)), reply=None
)


def table_pieces(ports: Collection[int]) -> Iterator[tuple[Piece, bool]]:
    """Yield all GRE entries and the control connections on *ports*, some of them twice.

    With each piece comes whether all that was dialled on one of *ports* has been told before;
    what is forwarded to them may be that.  Kernels before 5.8 send the whole table for each
    question, and all of it is yielded; before 5.13, most of what was dialled comes twice.

    Raises:
        AdapterError: the kernel refused.
    """
    read = Reader()

    def one_by_one(bodies: list[bytes]) -> Piece:
        return Piece([], [row for row in map(read, bodies) if row is not None])

    controls = list(control_criteria(ports))
    dialled = controls[::2]
    # Dialled on another port means that the destination is translated.
    forwarded = [each + by_status(Status.DST_NAT) for each in controls[1::2]]
    for question in (_ALL_GRE, *dialled, *forwarded):
        try:
            with Netlink() as netlink:
                for piece in netlink.pieces(
                    dump_message(question), read.read_datagram, one_by_one
                ):
                    yield piece, question in forwarded
        except AdapterError as error:
            raise _failed("reading the conntrack table", error.errno) from error


def table(ports: Collection[int]) -> list[TableRow]:
    """Return all GRE entries and the control connections on *ports*.

    Kernels before 5.8 send the whole table for each question; what was not
    asked for is left out here.

    Raises:
        AdapterError: the kernel refused.
    """
    found: dict[bytes, TableRow] = {}
    read = Reader()
    with Netlink() as netlink:
        for question in (_ALL_GRE, *control_criteria(ports)):
            try:
                bodies = netlink.dump(dump_message(question))
            except AdapterError as error:
                raise _failed("reading the conntrack table", error.errno) from error
            for body in bodies:
                # A connection may answer two questions; both tuples come first.
                tuples = body[:TUPLES]
                if tuples not in found:
                    row = read(body)
                    if row is not None and is_wanted(row, ports):
                        found[tuples] = row
    return list(found.values())


class Follower:
    """Listens to what becomes of GRE entries and control connections on *ports*.

    Raises:
        AdapterError: the kernel refused.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        try:
            self._netlink = Netlink(sum(GROUPS.values()), event_filter(self._ports))
        except AdapterError as error:
            raise _failed("listening to conntrack", error.errno) from error

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def wait(self, seconds: float | None) -> bool:
        """Wait for something to read; False when *seconds* went by without."""
        return bool(select.select([self._netlink], [], [], seconds)[0])

    def read(self) -> Iterator[tuple[Change, TableRow | None]]:
        """Yield what has happened, without waiting; the row is None after an overrun."""
        received, overrun = self._netlink.drain()
        if overrun:
            yield Change.OVERRUN, None
        for message in received:
            change = change_of(message)
            if change is not None:
                row = read_row(message.body)
                if row is not None and is_wanted(row, self._ports):
                    yield change, row


def _failed(doing: str, code: int) -> AdapterError:
    return AdapterError(doing, code, mend=MENDS.get(code, ""))


def is_wanted(row: TableRow, ports: Collection[int]) -> bool:
    """Whether *row* is an entry of GRE, or of a control connection on *ports*."""
    control = row.original.destination_key in ports or row.reply.source_key in ports
    return row.original.protocol == GRE or (control and row.original.protocol == TCP)
