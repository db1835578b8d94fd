"""What may be in the way of an entry of ours when it is inserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux.conntrack_events import is_ours
from pptp_nat.linux.conntrack_wire import (
    Entry,
    Status,
    Tuple,
    delete_message,
    get_message,
    read_entry,
)
from pptp_nat.linux.datapath import LegOrder, Tally
from pptp_nat.linux.netlink import MOST_PER_SEND, Message, Netlink


class Met(NamedTuple):
    """An entry of ours that had the match of a leg already."""

    order: LegOrder  #: what it carried
    carried: Tally
    stays: bool  #: it carries the new leg as well, so its counts go on


class Inserted(NamedTuple):
    """What `Conntrack.insert` met."""

    counted: dict[Leg, Tally]  #: by entries of ours that had to be made anew
    met: dict[Leg, Met]
    refused: list[tuple[LegOrder, AdapterError]]


def is_twin(entry: Entry, leg: Leg, entry_mark: int) -> bool:
    """Whether *entry* is ours and arriving GRE of *leg* is what it matches.

    One whose end is told already is not: what it counted was told with it.
    """
    mine = is_ours(entry, entry_mark) and not entry.status & Status.DYING
    return mine and entry.original == Tuple.of_match(leg)


def instead_of_strays(
    netlink: Netlink, orders: Sequence[LegOrder], new: Callable[[LegOrder, int], Message],
    entry_mark: int,
) -> set[LegOrder]:
    """Insert those of *orders* in whose way a stray is; return them.

    A stray: the track of a packet that came while there was no entry.  Where somebody has
    emptied the table under calls that talk, nearly every leg has one, so they are
    looked up together and replaced together.

    Args:
        netlink: asks the kernel.
        orders: not carried, since something has their match; at most `MOST_PER_SEND`.
        new: makes the message that inserts an order with a spare key.
        entry_mark: the bit of CTA_MARK that says an entry is ours.
    """
    _, received = netlink.exchange([get_message(Tuple.of_match(order.leg)) for order in orders])
    replacing: list[tuple[LegOrder, Message]] = []
    for answer in received:
        entry, order = read_entry(answer.body), orders[answer.asked]
        if entry is None or entry.original != Tuple.of_match(order.leg):
            continue
        if not is_ours(entry, entry_mark):
            end = delete_message(entry)._replace(flags=0)  # what it counted is nobody's
            replacing.append((order, end))
    done: set[LegOrder] = set()
    for start in range(0, len(replacing), MOST_PER_SEND // 2):
        some = replacing[start : start + MOST_PER_SEND // 2]
        messages = [each for order, end in some for each in (end, new(order, 0))]
        errnos, _ = netlink.exchange(messages)
        done.update(order for (order, _), code in zip(some, errnos[1::2], strict=True) if not code)
    return done
