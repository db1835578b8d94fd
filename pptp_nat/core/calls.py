"""Calls and the control connections that carry them: what is known, and how to find it.

Each party of a call has a number of its own and one that the other party sees.
For a party that this router hides (see `Seat.inside`) they differ; for any
other they are the same.  Everything else follows from that: a message's *Call
ID* goes from own to seen, its *Peer's Call ID* from seen to own, a leg carries
GRE from seen to own.

Objects here are many (100,000 and more) and small: slots, packed octets where
several values share a life, and an index only when a connection has many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from pptp_nat.core import call_bits
from pptp_nat.core.bindings import Pair
from pptp_nat.core.call_bits import BITS, LASTING, MASK, ROLES, SEEN, Codes, Over
from pptp_nat.core.index import Index
from pptp_nat.core.introductions import Introduction, introduction, said_in
from pptp_nat.core.refused import Refused
from pptp_nat.core.states import CallState, ControlState, End
from pptp_nat.core.stream import Stream
from pptp_nat.core.talk import Echo, Talk, identity, is_opaque, settled, spoke, woken
from pptp_nat.core.tuples import Address, Flow, Leg, Party, Placement, Seat, flow_key

NOBODY: Final = -1  #: in place of a call ID that is not known yet
_FEW: Final = 4  #: calls that are found by looking at each
_NOTHING: Final = (None, None)
_TRANSLATED: Final[tuple[bool, str | None]] = (False, None)
_PARTIES: Final = tuple(Party)


class Call:
    """One call.  `state` is written by `pptp_nat.core.dialogue` only, from the table."""

    __slots__ = ("_bits", "connection", "id", "last_gre", "packets", "state")

    def __init__(
        self, number: int, connection: Connection, requester: Party, pns: Party, now: float
    ) -> None:
        self.id = number
        self.connection = connection
        self.state = CallState.IDLE
        self.last_gre: float | None = None  #: when its count was last seen to have grown
        self.packets = 0  #: of both legs, at that time
        self._bits = call_bits.begun(requester, pns, now)

    @property
    def requester(self) -> Party:
        """Who asked for the call."""
        return _PARTIES[self._bits >> ROLES & 1]

    @property
    def pns(self) -> Party:
        """Who is the PNS."""
        return _PARTIES[self._bits >> ROLES + 1 & 1]

    @property
    def created(self) -> float:
        """When its request came, monotonic seconds."""
        return call_bits.created(self._bits)

    @property
    def up_since(self) -> float | None:
        """When its reply came, if it said yes."""
        return call_bits.up_since(self._bits)

    @up_since.setter
    def up_since(self, at: float | None) -> None:
        self._bits = call_bits.with_up_since(self._bits, at)

    @property
    def over(self) -> Over:
        """Both `end` and `codes`."""
        return call_bits.over(self._bits)

    @property
    def end(self) -> End | None:
        """Why it is gone."""
        return self.over[0]

    @end.setter
    def end(self, end: End | None) -> None:
        self._bits = call_bits.with_end(self._bits, end)

    @property
    def codes(self) -> Codes | None:
        """Type, result, error and cause of the message that refused or ended it."""
        return self.over[1]

    @codes.setter
    def codes(self, codes: Codes | None) -> None:
        self._bits = call_bits.with_codes(self._bits, codes)

    @property
    def own(self) -> tuple[int, int]:
        """The parties' own numbers, by party."""
        numbers = self._bits
        return (numbers & MASK) - 1, (numbers >> BITS & MASK) - 1

    @property
    def seen(self) -> tuple[int, int]:
        """What the other party knows them as, by party."""
        numbers = self._bits >> SEEN
        return (numbers & MASK) - 1, (numbers >> BITS & MASK) - 1

    @property
    def lasting(self) -> tuple[int, int, int, int, int, int, float]:
        """Own, own, seen, seen, `requester`, `pns` and `created`: at the price of two of them."""
        return call_bits.lasting(self._bits)

    def own_of(self, party: Party) -> int:
        """Return *party*'s own number; half the price of `own`."""
        return (self._bits >> BITS * party & MASK) - 1

    def seen_of(self, party: Party) -> int:
        """Return what the other party knows *party*'s number as."""
        return (self._bits >> SEEN + BITS * party & MASK) - 1

    def give(self, party: Party, own: int, seen: int) -> None:
        """Note the number of *party* and what the other party knows it as."""
        at = BITS * party
        others = self._bits & (LASTING | (MASK << SEEN | MASK) << BITS - at)
        self._bits = others | own + 1 << at | seen + 1 << SEEN + at

    def leg(self, party: Party) -> Leg | None:
        """Return the leg that carries GRE towards *party*.

        None while its number is unknown, and for a call of this router itself, whose
        GRE does not travel through.
        """
        own = self.own_of(party)
        connection = self.connection
        if own == NOBODY or (connection.is_local and not connection.travels):
            return None
        key, seen_as = connection.key, connection.seen_as
        to_own, from_own = (key[4:8], key[:4]) if party else (key[:4], key[4:8])
        return tuple.__new__(Leg, (
            from_own, seen_as[party] or to_own, self.seen_of(party),
            seen_as[not party] or from_own, to_own, own,
        ))  # fmt: skip


class Connection:
    """One control connection: its place, its two streams and its calls."""

    __slots__ = ("_kept", "_nature", "_talk", "key", "mark", "said", "seen_as", "state")

    def __init__(
        self, talk: Talk | bytes, key: bytes, seen_as: tuple[Address | None, Address | None],
        mark: int, *, is_local: bool, passive: str | None,
    ) -> None:  # fmt: skip
        self._talk = talk
        self.key = key
        self.seen_as = seen_as  #: by party, what it is seen as; None: as its own address
        self.mark = mark
        # Hardly any is other than that, and two places would cost each a row of the allocator's.
        self._nature = (is_local, passive) if is_local or passive else _TRANSLATED
        self.state = ControlState.OPENING
        #: its calls: nearly always one, then some, then so many that they are looked up
        self._kept: Call | tuple[Call, ...] | Index[Call] = ()
        #: of themselves, by party: see `introduce`
        self.said: tuple[bytes | None, bytes | None] = _NOTHING

    @classmethod
    def placed(cls, number: int, placement: Placement, now: float, *, is_local: bool) -> Connection:
        """Return a connection that begins *now*, between the hosts of *placement*."""
        (one, one_seen_as), (other, other_seen_as) = placement.originator, placement.responder
        seen_as = (
            None if one == one_seen_as else one_seen_as,
            None if other == other_seen_as else other_seen_as,
        )
        return cls(
            Talk(number, now, now), flow_key(placement.flow), seen_as, placement.mark,
            is_local=is_local, passive="kernel_helper" if placement.helper else None,
        )  # fmt: skip

    @property
    def is_local(self) -> bool:
        """Whether one party is this router itself."""
        return self._nature[0]

    @property
    def passive(self) -> str | None:
        """Why its octets pass untouched for good, if they do."""
        return self._nature[1]

    @property
    def talk(self) -> Talk:
        """What the parties' octets change; only of one that is awake."""
        talk = self._talk
        assert isinstance(talk, Talk)
        return talk

    @property
    def is_asleep(self) -> bool:
        """Whether its parties rest, and what is known of their talk lies in a row."""
        return isinstance(self._talk, bytes)

    def wake(self) -> None:
        """Be ready for octets; for the caller to say when it may rest again (`Book.attend`)."""
        if isinstance(self._talk, bytes):
            self._talk = woken(self._talk)

    def rest(self) -> bool:
        """Fall asleep; whether it does: not in the middle of anything."""
        if isinstance(self._talk, Talk):
            row = self._talk.row()
            if row is None:
                return False
            self._talk = row
        return True

    def settle(self) -> None:
        """Let go of what was kept for a retransmission; overlays stay."""
        if isinstance(self._talk, Talk):
            self._talk.settle()
        else:
            self._talk = settled(self._talk)

    @property
    def told(self) -> Talk:
        """What is known of its talk, to read: of one that is asleep it is a copy."""
        talk = self._talk
        return talk if isinstance(talk, Talk) else woken(talk)

    @property
    def id(self) -> int:
        """Its identity."""
        talk = self._talk
        return talk.id if isinstance(talk, Talk) else identity(talk)

    @property
    def is_opaque(self) -> bool:
        """Whether some of its octets travel without being understood."""
        talk = self._talk
        opaque = talk.is_opaque if isinstance(talk, Talk) else is_opaque(talk)
        return opaque or self.passive is not None

    @property
    def created(self) -> float:
        """When it began, monotonic seconds."""
        return self.told.created

    @property
    def last_message(self) -> float:
        """When its last message was whole, monotonic seconds."""
        talk = self._talk
        return talk.last_message if isinstance(talk, Talk) else spoke(talk)

    @property
    def fresh(self) -> dict[tuple[Party, int], int] | None:
        """Numbers chosen for a message that is not complete yet: (party, own) -> seen."""
        talk = self._talk
        return talk.fresh if isinstance(talk, Talk) else None

    @property
    def refused(self) -> Refused | None:
        """What has been refused to it, if anything."""
        talk = self._talk
        return talk.refused if isinstance(talk, Talk) else None

    @property
    def last_echo(self) -> Echo | None:
        """The last echo that was answered."""
        return self.told.last_echo

    def share(self, one_for_all: Callable[[tuple[Address | None, ...]], Any]) -> None:
        """Keep one copy of what thousands of connections have in common."""
        self.seen_as = one_for_all(self.seen_as)

    def introduce(
        self, party: Party, octets: bytes, one_for_all: Callable[[Any], Any]
    ) -> None:
        """Note what *party* says of itself in a Start-Control-Connection message."""
        # Read when somebody asks.  Most clients of a kind say the same, so it is kept once.
        said = said_in(octets)
        was = self.said
        self.said = one_for_all((was[0], said) if party else (said, was[1]))

    @property
    def introductions(self) -> tuple[Introduction | None, Introduction | None]:
        """What Start-Control-Connection said of each party."""
        originator, responder = self.said
        return introduction(originator), introduction(responder)

    @property
    def streams(self) -> tuple[Stream, Stream]:
        """The octets of each party, by sender; to read, since of one asleep it is a copy."""
        talk = self.told
        return talk.originators, talk.responders

    @property
    def calls(self) -> Collection[Call]:
        """Its calls, also those that are gone and still translated."""
        kept = self._kept
        return kept.calls.values() if isinstance(kept, Index) else _few(kept)

    @property
    def flow(self) -> Flow:
        """The direction of the opener, both hosts' own addresses."""
        key = self.key
        return Flow(
            key[:4], int.from_bytes(key[8:10], "big"), key[4:8], int.from_bytes(key[10:], "big")
        )

    def own(self, party: Party) -> Address:
        """Return the own address of *party*."""
        return self.key[4:8] if party else self.key[:4]

    def seat(self, party: Party) -> Seat:
        """Return where *party* sits."""
        own = self.key[4:8] if party else self.key[:4]
        return Seat(own, self.seen_as[party] or own)

    @property
    def placement(self) -> Placement:
        """What conntrack said of this connection."""
        helper = "pptp" if self.passive == "kernel_helper" else None
        originator, responder = self.seat(Party.ORIGINATOR), self.seat(Party.RESPONDER)
        return Placement(self.flow, originator, responder, self.mark, helper)

    def pair(self, party: Party) -> Pair:
        """Return what the numbers of *party* must be unique within."""
        key = self.key
        own, remote = (key[4:8], key[:4]) if party else (key[:4], key[4:8])
        return tuple.__new__(Pair, (self.seen_as[party] or own, remote))

    def chooses(self, party: Party) -> bool:
        """Whether we choose the number that the other party sees."""
        return self.seen_as[party] is not None

    def claims(self, party: Party) -> bool:
        """Whether *party* is this router itself, whose own numbers nobody else may be given."""
        # Either address may be the router's: the one that is not does no harm, since
        # no inside host is ever seen as it.
        return self.is_local and not self.chooses(party)

    @property
    def travels(self) -> bool:
        """Whether the GRE of its calls travels through this router."""
        return not self.is_local or any(self.seen_as)

    @property
    def is_routed(self) -> bool:
        """Whether both parties are others' and neither is hidden: nothing is to be changed."""
        return not self.is_local and not any(self.seen_as)

    def add(self, call: Call) -> None:
        """Take *call* in."""
        kept = self._kept
        if not isinstance(kept, Index):
            if not kept:
                self._kept = call
                return
            few = _few(kept)
            if len(few) < _FEW:
                self._kept = (*few, call)
                return
            kept = self._kept = Index()
            for each in sorted(few, key=lambda each: each.state is not CallState.GONE):
                kept.note(each)
        kept.note(call)

    def renumber(self, call: Call, party: Party, own: int, seen: int) -> None:
        """Give *call* a number of *party* and find it by that; a number's latest owner wins."""
        index = self._kept if isinstance(self._kept, Index) else None
        if index is not None:
            index.drop(call)
        call.give(party, own, seen)
        if index is not None:
            index.note(call)

    def remove(self, call: Call) -> None:
        """Forget *call*."""
        kept = self._kept
        if isinstance(kept, Index):
            kept.drop(call)
        else:
            few = tuple(each for each in _few(kept) if each is not call)
            self._kept = few[0] if len(few) == 1 else few

    def find(self, party: Party, number: int, *, seen: bool) -> Call | None:
        """Return the call in which *number* is that of *party*: its own, or as it is seen.

        A call that is gone is found only where no other has the number.
        """
        kept = self._kept
        at, wanted = BITS * party + (SEEN if seen else 0), number + 1
        if isinstance(kept, Call):  # nearly always
            return kept if kept._bits >> at & MASK == wanted else None  # noqa: SLF001
        if isinstance(kept, Index):
            return kept.find(party, number, seen=seen)
        late = None
        for call in reversed(_few(kept)):
            if call._bits >> at & MASK == wanted:  # noqa: SLF001 - its keeper
                if call.state is not CallState.GONE:
                    return call
                late = late or call
        return late

    def blocks(self, party: Party) -> Iterator[tuple[int, int]]:
        """Yield (high octet of own, high octet of seen) of numbers of *party*, 256 at most."""
        kept = self._kept
        if isinstance(kept, Index):
            for (whose, own), seen in kept.blocks.items():
                if whose is party:
                    yield own, seen
            return
        for call in _few(kept):
            if (own := call.own_of(party)) != NOBODY:
                yield own >> 8, call.seen_of(party) >> 8


def _few(kept: Call | tuple[Call, ...]) -> tuple[Call, ...]:
    return (kept,) if isinstance(kept, Call) else kept
