"""Control connections out of conntrack's table in pieces, between which other work is done.

A socket of its own is open from the first piece to the last, in the namespace of whoever
asks for the first.  An entry that comes or goes meanwhile may be left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pptp_nat.core.tuples import Placement
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_events import is_control
from pptp_nat.linux.conntrack_refusals import failed
from pptp_nat.linux.conntrack_rows import Reader, entries_of
from pptp_nat.linux.conntrack_wire import (
    BY_DESTINATION_PORT,
    BY_PROTOCOL,
    BY_SOURCE_PORT,
    TCP,
    Status,
    Tuple,
    by_status,
    by_tuple,
    dump_message,
)
from pptp_nat.linux.netlink import Netlink


def control_criteria(ports: Collection[int]) -> Iterator[bytes]:
    """Yield what to ask for so as to hear of all that is answered on *ports*, mostly twice.

    For each port, what was dialled there, and what is answered there.
    """
    for port in ports:
        dialled = Tuple(TCP, bytes(4), port, bytes(4), port)
        yield by_tuple(original=(BY_PROTOCOL | BY_DESTINATION_PORT, dialled), reply=None)
        yield by_tuple(original=None, reply=(BY_PROTOCOL | BY_SOURCE_PORT, dialled))


def control_pieces(ports: Collection[int]) -> Iterator[list[Placement]]:
    """Yield the control connections that are answered on one of *ports*, each once.

    Raises:
        AdapterError: the kernel refused.
    """
    seen: set[bytes] = set()
    read = Reader()
    try:
        for criteria in control_criteria(ports):
            with Netlink() as reading:
                for bodies in reading.pieces(dump_message(criteria), _unread, list):
                    found = entries_of(bodies, read, seen)
                    yield [each.placement for each in found if is_control(each, ports)]
    except AdapterError as error:
        raise failed("listing control connections in conntrack", error.errno) from error


def helped(ports: Collection[int], name: str, *, attached: bool) -> list[Placement]:
    """Return the control connections on *ports* that the kernel's helper *name* follows.

    *attached*: this kernel attaches helpers by rules alone, and says so in an entry's
    status; then it need not show us the others.

    Raises:
        AdapterError: the kernel refused.
    """
    wanted = name.encode() + b"\0"
    marked = by_status(Status.HELPER) if attached else b""
    found: list[Placement] = []
    try:
        for criteria in control_criteria(ports):
            with Netlink() as reading:
                for bodies in reading.pieces(dump_message(criteria, marked), _unread, list):
                    some = [body for body in bodies if wanted in body]
                    found += [
                        each.placement for each in entries_of(some, Reader(), None)
                        if is_control(each, ports) and each.helper == name
                    ]  # fmt: skip
    except AdapterError as error:
        raise failed("looking for a helper's connections in conntrack", error.errno) from error
    return list(dict.fromkeys(found))


def _unread(_datagram: bytes) -> None:
    """Leave it to be read entry by entry."""
