"""What legs have carried, as last read: totals that never fall, and which calls were heard.

The kernel counts per leg, and a leg's count dies with its entry.  Here what each
leg was last known to have carried is kept, and only what came on top is told: so
it does not matter how often a count is read, in which order the pieces of a table
come, or whether a leg's end overtakes them.  A count that is lower than it was
began anew and counts in full.

Some 130 octets per leg, what the data path notes of it included.  What is read is let go
piece by piece: the counts of 100,000 calls, kept until the last of them is read, would
take 70 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from pptp_nat.core.calls import Call
from pptp_nat.core.events import LegDown, LegUp, legs_up
from pptp_nat.core.tuples import Address
from pptp_nat.linux.datapath import Match, Tally
from pptp_nat.linux.leg_table import PLACE, PLACE_BITS, Notes, name_of
from pptp_nat.tables.views import inside_party

# A leg's note above what is the data path's: the direction (1 bit), the call (48), whether its
# count was never read (1), its packets (56), and its octets.  So six digits of CPython's, 48 octets
# of memory, hold 17 TB; until a packet has come two digits do, 32 octets.
_INWARD: Final = 1 << PLACE_BITS
_CALL_AT: Final = PLACE_BITS + 1
_CALL: Final = (1 << 48) - 1
_UNREAD_AT: Final = _CALL_AT + 48
_UNREAD: Final = 1 << _UNREAD_AT
_COUNTS_AT: Final = _UNREAD_AT + 1
_UNCOUNTED: Final = (1 << _COUNTS_AT) - 1  #: a mask
_LASTING: Final = _UNCOUNTED & ~_UNREAD  #: a mask
_PACKETS: Final = (1 << 56) - 1
_OCTETS_AT: Final = 56  #: from `_COUNTS_AT` on
_NOTHING: Final = Tally(0, 0)


class Grown(NamedTuple):
    """A call that has carried something since it was last looked at."""

    call: int  #: its identity
    packets: int  #: that came on top


class ClientTotals:
    """What one inside host's calls have carried since its first call of those that are up."""

    __slots__ = ("legs", "octets", "packets")

    def __init__(self) -> None:
        self.legs = 0
        self.packets = [0, 0]  #: by "to the inside"
        self.octets = [0, 0]


class Totals:
    """Adds up what legs have carried, by direction as the table of calls shows it.

    Args:
        notes: the data path's, which has its bits in them.
    """

    def __init__(self, notes: Notes) -> None:
        #: add up per inside host as well, as long as it has legs; to be said before there are any
        self.by_client = False
        self.packets = [0, 0]  #: by "to the inside"
        self.octets = [0, 0]
        self.clients: dict[Address, ClientTotals] = {}
        self._notes = notes
        self._further: dict[bytes, list[int]] = {}  # owners of a leg besides the latest
        self._client: dict[bytes, Address] = {}

    def __len__(self) -> int:
        return sum(note > PLACE for note in self._notes.values())

    @property
    def shares(self) -> int:
        """How many legs several calls have."""
        return len(self._further)

    def names(self) -> list[bytes]:
        """Return the names of all legs that calls have or the data path carries (`name_of`)."""
        return list(self._notes)

    def owner(self, name: bytes) -> int | None:
        """Return the identity of the call that has the leg *name*, of several the latest."""
        note = self._notes.get(name, 0)
        return _call_of(note) if note > PLACE else None

    def has_several(self, match: Match) -> bool:
        """Whether more than one call has the leg that *match* names."""
        return bool(self._further) and name_of(match) in self._further

    def begin(self, up: LegUp) -> None:
        """Count what *up* carries from here on."""
        name = name_of(up.leg)
        note = self._notes.get(name, 0)
        if note > PLACE:
            self._further.setdefault(name, []).append(_call_of(note))
            self._notes[name] = _owned(note, up.call.id)
            return
        inside = inside_party(up.call)
        self._notes[name] = note | up.call.id << _CALL_AT | (_INWARD if up.party is inside else 0)
        if self.by_client:
            client = self._client[name] = up.call.connection.seat(inside).own
            self.clients.setdefault(client, ClientTotals()).legs += 1

    def adopt(self, calls: Iterable[Call]) -> None:
        """Count what the legs of an earlier run's *calls* carry from the first look on."""
        notes, by_client = self._notes, self.by_client
        for call in calls:
            connection, note = call.connection, call.id << _CALL_AT | _UNREAD
            if by_client or connection.is_local:
                self._adopt_one_by_one(call)
                continue
            key, seen_as = connection.key, connection.seen_as
            one, other = key[:4], key[4:8]
            inside = inside_party(call)
            seen = call.seen
            to_one = to_other = None
            if seen[0] >= 0:
                to_one = other + (seen_as[0] or one) + seen[0].to_bytes(2, "big")
            if seen[1] >= 0:
                to_other = one + (seen_as[1] or other) + seen[1].to_bytes(2, "big")
            if to_one in notes or to_other in notes:
                self._adopt_one_by_one(call)
                continue
            if to_one is not None:
                notes[to_one] = note if inside else note | _INWARD
            if to_other is not None:
                notes[to_other] = note | _INWARD if inside else note

    def _adopt_one_by_one(self, call: Call) -> None:
        for up in legs_up((call,)):
            self.begin(up)
            self.unread((up,))

    def unread(self, ups: Iterable[LegUp]) -> None:
        """Take legs that have begun for those of an earlier run, which had carried something.

        What they had carried by the first look at them is not ours to count.
        """
        for up in ups:
            name = name_of(up.leg)
            self._notes[name] |= _UNREAD

    def end(self, down: LegDown, tally: Tally | None) -> None:
        """Add the last count of a leg, None if it is not known, and forget the leg."""
        name = name_of(down.leg)
        note = self._notes.get(name, 0)
        if note <= PLACE:
            return
        if tally is not None:
            self._add(name, note, tally)
            note = self._notes[name]
        owners = self._further.get(name)
        if owners is not None:
            if down.call.id in owners:
                owners.remove(down.call.id)
            else:
                self._notes[name] = _owned(note, owners.pop())
            if not owners:
                del self._further[name]
            return
        if note & PLACE:
            self._notes[name] = note & PLACE
        else:
            del self._notes[name]
        client = self._client.pop(name, None)
        if client is not None:
            self.clients[client].legs -= 1
            if not self.clients[client].legs:
                del self.clients[client]

    def read(self, tallies: Mapping[Match, Tally]) -> list[Grown]:
        """Add what legs have carried since their counts were last read; return whose they are."""
        grown: list[Grown] = []
        noted = self._notes.get
        for (source, destination, key), (packets, octets) in tallies.items():
            # Most legs are idle: this much is done for each of them.
            name = source + destination + key.to_bytes(2, "big")
            note = noted(name, 0)
            if note >> _UNREAD_AT != (octets << _OCTETS_AT | packets) << 1 and note > PLACE:
                came = self._add(name, note, Tally(packets, octets))
                if came:
                    grown.append(Grown(_call_of(note), came))
        return grown

    def last(self, call: Call) -> tuple[Tally, Tally]:
        """Return what the legs of *call* had carried when they were last read, by party.

        Nothing where there is no leg, or none whose count could be read.
        """
        connection, noted, make = call.connection, self._notes.get, tuple.__new__
        key, (one_seen_as, other_seen_as) = connection.key, connection.seen_as
        to_one, to_other = call.seen
        one, other = key[:4], key[4:8]
        first = second = _NOTHING
        if to_one >= 0:
            note = noted(other + (one_seen_as or one) + to_one.to_bytes(2, "big"), 0)
            if note > _UNCOUNTED:
                counts = note >> _COUNTS_AT
                first = make(Tally, (counts & _PACKETS, counts >> _OCTETS_AT))
        if to_other >= 0:
            note = noted(one + (other_seen_as or other) + to_other.to_bytes(2, "big"), 0)
            if note > _UNCOUNTED:
                counts = note >> _COUNTS_AT
                second = make(Tally, (counts & _PACKETS, counts >> _OCTETS_AT))
        return first, second

    def _add(self, name: bytes, note: int, tally: Tally) -> int:
        """Note what *name* has carried by now; return how many packets came on top."""
        counts = tally.octets << _OCTETS_AT | tally.packets
        self._notes[name] = counts << _COUNTS_AT | note & _LASTING
        if note & _UNREAD:
            return 0
        packets = tally.packets - (note >> _COUNTS_AT & _PACKETS)
        octets = tally.octets - (note >> _COUNTS_AT + _OCTETS_AT)
        if packets < 0 or octets < 0:
            packets, octets = tally
        to_inside = 1 if note & _INWARD else 0
        self.packets[to_inside] += packets
        self.octets[to_inside] += octets
        if self.by_client:
            client = self.clients[self._client[name]]
            client.packets[to_inside] += packets
            client.octets[to_inside] += octets
        return packets


def _call_of(note: int) -> int:
    return note >> _CALL_AT & _CALL


def _owned(note: int, call: int) -> int:
    """Return *note* with *call* as the owner."""
    return note & ~(_CALL << _CALL_AT) | call << _CALL_AT
