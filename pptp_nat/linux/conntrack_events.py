"""What happens to conntrack entries, as the kernel tells it: control connections and ours.

The kernel offers the events of every connection of a namespace.  A classic BPF
program on the socket drops those of all others before they wake us.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, TypeAlias

from pptp_nat.core.parts import MULTIPLIER, SHIFT, WHOLE, Part
from pptp_nat.core.tuples import Leg, Placement
from pptp_nat.linux.conntrack_wire import (
    CT_DELETE,
    CT_NEW,
    CTA_MARK,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    FAMILY,
    GRE,
    TCP,
    TUPLE,
    TUPLE_HEADER,
    Entry,
    read_entry,
)
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.netlink import ATTRIBUTE, F_CREATE, HEADER, Instruction, Netlink, Received


class Change(enum.Enum):
    """What became of an entry."""

    NEW = "new"
    UPDATE = "update"
    DESTROY = "destroy"
    OVERRUN = "overrun"  # events were lost; compare with what is there


# Multicast groups as bits for bind() (linux/netfilter/nfnetlink_compat.h).
GROUPS: Final = {Change.NEW: 1, Change.UPDATE: 2, Change.DESTROY: 4}
_AT_ONCE: Final = 128  #: events: about a millisecond, in which entries of ours may be missing


class CtEvent(NamedTuple):
    """A change to a control connection's entry or to a GRE entry of ours; the end of a stray's.

    Of ``placement``, ``leg`` and ``is_stray`` one is set, none in an overrun.  ``tally``
    holds the last counts of GRE, zeros where the kernel does not count.
    """

    change: Change
    placement: Placement | None = None
    leg: Leg | None = None
    mark: int = 0
    tally: Tally = Tally(0, 0)
    is_stray: bool = False  #: the end of GRE with a call ID that was not ours


class Events:
    """A socket that listens to conntrack.

    Args:
        ports: of control connections.
        changes: what to listen for.
        entry_mark: the bit of CTA_MARK that says an entry is ours.
        own: the port ID of the socket with which we change entries; what we did
            ourselves is no event.
        part: of several workers, whose events are wanted.
        but_ours: leave out what becomes of our GRE entries.

    Raises:
        AdapterError: the kernel refuses the groups or the filter.
    """

    def __init__(
        self,
        ports: Collection[int],
        changes: Collection[Change],
        entry_mark: int,
        own: int,
        part: Part = WHOLE,
        *,
        but_ours: bool = False,
    ) -> None:
        self._ports = frozenset(ports)
        self._entry_mark = entry_mark
        self._own = own
        self._part = part
        self._netlink = Netlink(
            sum(group for change, group in GROUPS.items() if change in changes),
            event_filter(self._ports, part, but_ours=entry_mark if but_ours else 0),
        )

    def fileno(self) -> int:
        """Return the descriptor that is readable when events are waiting."""
        return self._netlink.fileno()

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def read(self) -> list[CtEvent]:
        """Return what has happened, without waiting.

        Raises:
            AdapterError: the kernel's octets make no sense.
        """
        received, overrun = self._netlink.drain(_AT_ONCE)
        events = [CtEvent(Change.OVERRUN)] if overrun else []
        for message in received:
            change = change_of(message)
            if change is None or message.portid == self._own:
                continue
            entry = read_entry(message.body)
            if entry is None:
                continue
            if is_ours(entry, self._entry_mark):
                if not self._part.has_leg(entry.leg):
                    continue
                tally = _carried(entry)
                events.append(CtEvent(change, leg=entry.leg, mark=entry.mark, tally=tally))
            elif is_control(entry, self._ports):
                events.append(CtEvent(change, placement=entry.placement, mark=entry.mark))
            elif change is Change.DESTROY and _is_stray(entry):
                events.append(CtEvent(change, is_stray=True, tally=_carried(entry)))
        return events


def _carried(entry: Entry) -> Tally:
    return entry.carried or Tally(0, 0)


def _is_stray(entry: Entry) -> bool:
    # Without a call ID it is plain GRE; call ID 0, which is rare, passes for that too.
    return entry.original.protocol == GRE and bool(entry.original.destination_key)


def is_ours(entry: Entry, entry_mark: int) -> bool:
    """Whether *entry* carries a leg."""
    return entry.original.protocol == GRE and bool(entry.mark & entry_mark)


def is_control(entry: Entry, ports: Collection[int]) -> bool:
    """Whether *entry* is TCP answered on one of *ports*.

    Answered: the port that the opener dialled, or the one that a port forward
    made of it.
    """
    dialled, answering = entry.original.destination_key, entry.reply.source_key
    return entry.original.protocol == TCP and (dialled in ports or answering in ports)


def change_of(message: Received) -> Change | None:
    """Return what *message* says of an entry; None: it is no event."""
    if message.kind == CT_DELETE:
        return Change.DESTROY
    if message.kind == CT_NEW:
        return Change.NEW if message.flags & F_CREATE else Change.UPDATE
    return None


# Where an event has what the filter looks at, in octets from the start of the message.
_AT_FAMILY: Final = HEADER.size
_AT_ORIGINAL: Final = _AT_FAMILY + len(FAMILY)
_AT_REPLY: Final = _AT_ORIGINAL + ATTRIBUTE.size + TUPLE.size
_AT_PROTOCOL: Final = _AT_ORIGINAL + 32
_AT_ORIGINAL_DESTINATION_PORT: Final = _AT_ORIGINAL + 48
_AT_REPLY_SOURCE_PORT: Final = _AT_REPLY + 40

_AT_ORIGINAL_SOURCE: Final = _AT_ORIGINAL + 12
_AT_REPLY_SOURCE: Final = _AT_REPLY + 12

_AT_PORT_ID: Final = 12  # of the message's header, in the machine's octet order
_AT_ATTRIBUTES: Final = _AT_FAMILY + len(FAMILY)
#: where linux/filter.h offers what it finds: the attribute of type X, sought from A on
_ATTRIBUTE: Final = 0xFFFFF000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR

# linux/filter.h: load one, two or four octets from a fixed place; compute; compare; return.
_CONSTANT: Final = 0x00
_X_CONSTANT: Final = 0x01
_TO_X: Final = 0x07
_EXCLUSIVE_OR: Final = 0xAC  # with X
_MULTIPLY: Final = 0x24
_SHIFT_RIGHT: Final = 0x74
_REMAINDER: Final = 0x94
_LOAD_OCTET: Final = 0x30
_LOAD_HALF: Final = 0x28
_LOAD_WORD: Final = 0x20
_LOAD_WORD_AT_X: Final = 0x40
_JUMP_EQUAL: Final = 0x15
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
ACCEPT: Final = 0xFFFFFFFF
DROP: Final = 0


#: code, operand, and where a comparison leads: None is the next row, a number skips as many
#: where it is not true
_Row: TypeAlias = tuple[int, int, str | int | None]


def _rows_of(part: Part) -> list[_Row]:
    """Return rows that drop events between hosts that are others': each wakes one worker."""
    return [
        (_LOAD_WORD, _AT_ORIGINAL, None),
        (_JUMP_EQUAL, int.from_bytes(TUPLE_HEADER[CTA_TUPLE_ORIG]), "else accept"),
        (_LOAD_WORD, _AT_REPLY, None),
        (_JUMP_EQUAL, int.from_bytes(TUPLE_HEADER[CTA_TUPLE_REPLY]), "else accept"),
        (_LOAD_WORD, _AT_ORIGINAL_SOURCE, None),
        (_TO_X, 0, None),
        (_LOAD_WORD, _AT_REPLY_SOURCE, None),
        (_EXCLUSIVE_OR, 0, None),
        (_MULTIPLY, MULTIPLIER, None),
        (_SHIFT_RIGHT, SHIFT, None),
        (_REMAINDER, part.count, None),
        (_JUMP_EQUAL, part.index, "else drop"),
    ]


def _rows_of_mark(entry_mark: int, unmarked: str, marked: str) -> list[_Row]:
    """Return rows that look at CTA_MARK, which has no fixed place: where to with and without."""
    return [
        (_X_CONSTANT, CTA_MARK, None),
        (_CONSTANT, _AT_ATTRIBUTES, None),
        (_LOAD_WORD, _ATTRIBUTE, None),
        (_JUMP_EQUAL, 0, f"then {unmarked}"),
        (_TO_X, 0, None),
        (_LOAD_WORD_AT_X, ATTRIBUTE.size, None),
        (_JUMP_ANY_BIT, entry_mark, f"{marked} else {unmarked}"),
    ]


def event_filter(
    ports: Collection[int], part: Part = WHOLE, *, but_ours: int = 0
) -> list[Instruction]:
    """Return a program that passes events of GRE, and of TCP answered on one of *ports*.

    Of several workers each hears of the hosts of its *part* (`pptp_nat.core.parts`).
    A TCP event whose tuples are not laid out as expected passes too;
    the reader looks again.

    With *but_ours*, a bit of CTA_MARK, GRE that has it does not pass: see `end_filter`.
    """
    ours = _rows_of_mark(but_ours, "accept", "drop") if but_ours else []
    return _program([
        (_LOAD_OCTET, _AT_FAMILY, None),
        (_JUMP_EQUAL, FAMILY[0], "else drop"),
        *(_rows_of(part) if part.count > 1 else ()),
        (_LOAD_OCTET, _AT_PROTOCOL, None),
        (_JUMP_EQUAL, GRE, len(ours) if ours else "then accept"),
        *ours,
        (_JUMP_EQUAL, TCP, "else drop"),
        (_LOAD_WORD, _AT_ORIGINAL, None),
        (_JUMP_EQUAL, int.from_bytes(TUPLE_HEADER[CTA_TUPLE_ORIG]), "else accept"),
        (_LOAD_WORD, _AT_REPLY, None),
        (_JUMP_EQUAL, int.from_bytes(TUPLE_HEADER[CTA_TUPLE_REPLY]), "else accept"),
        (_LOAD_HALF, _AT_ORIGINAL_DESTINATION_PORT, None),
        *((_JUMP_EQUAL, port, "then accept") for port in ports),
        (_LOAD_HALF, _AT_REPLY_SOURCE_PORT, None),
        *((_JUMP_EQUAL, port, "then accept") for port in ports),
    ])


def end_filter(entry_mark: int, own: int, part: Part = WHOLE) -> list[Instruction]:
    """Return a program that passes events of GRE entries of ours that are not our doing.

    Args:
        entry_mark: the bit of CTA_MARK that says an entry is ours.
        own: the port ID of the socket with which we change entries.
        part: see `event_filter`.
    """
    return _program([
        (_LOAD_OCTET, _AT_FAMILY, None),
        (_JUMP_EQUAL, FAMILY[0], "else drop"),
        (_LOAD_OCTET, _AT_PROTOCOL, None),
        (_JUMP_EQUAL, GRE, "else drop"),
        (_LOAD_WORD, _AT_PORT_ID, None),
        (_JUMP_EQUAL, int.from_bytes(own.to_bytes(4, sys.byteorder)), "then drop"),
        *(_rows_of(part) if part.count > 1 else ()),
        *_rows_of_mark(entry_mark, "drop", "accept"),
    ])


def _program(rows: Sequence[_Row]) -> list[Instruction]:
    """Return *rows* with their jumps; what falls off their end is dropped."""
    drop, accept = len(rows), len(rows) + 1
    program = []
    for here, (code, k, jump) in enumerate(rows, 1):
        to_accept, to_drop = accept - here, drop - here
        targets = {
            "then accept": (to_accept, 0), "else accept": (0, to_accept),
            "then drop": (to_drop, 0), "else drop": (0, to_drop),
            "accept else drop": (to_accept, to_drop), "drop else accept": (to_drop, to_accept),
            None: (0, 0),
        }  # fmt: skip
        taken, refused = (0, jump) if isinstance(jump, int) else targets[jump]
        program.append(Instruction(code, taken, refused, k))
    return [*program, Instruction(_RETURN, 0, 0, DROP), Instruction(_RETURN, 0, 0, ACCEPT)]
