"""Unmapping undoes mapping: what one party says of itself is what it hears of itself."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.core.bindings import Bindings
from pptp_nat.core.book import Book, Settings
from pptp_nat.core.calls import Connection
from pptp_nat.core.dialogue import Dialogue
from pptp_nat.core.messages import LAYOUTS, MessageType, frame, pack
from pptp_nat.core.tuples import Flow, Party, Placement, Seat

from .effort import effort

M = MessageType
A, B = bytes((192, 168, 77, 10)), bytes((10, 0, 0, 9))
X, Y = bytes((198, 18, 7, 1)), bytes((203, 0, 113, 1))
HAIRPIN = Placement(Flow(A, 4711, B, 1723), Seat(A, X), Seat(B, Y), 0)  # both are translated
OWN = [kind for kind, layout in LAYOUTS.items() if layout.call_id is not None]
PEERS = [kind for kind, layout in LAYOUTS.items() if layout.peer_call_id is not None]
LISTS = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=12, unique=True)


class Spoken:
    """A dialogue in which both parties have told each other their numbers."""

    def __init__(self, numbers: dict[Party, list[int]], drawn: int, outgoing: list[bool]) -> None:
        self.book = Book(Bindings(lambda: drawn), Settings())
        self.dialogue = Dialogue(self.book)
        self.connection = Connection.placed(1, HAIRPIN, 0.0, is_local=False)
        self.book.open_connection(self.connection)
        for first, second, out in zip(*numbers.values(), outgoing, strict=False):
            request = M.OUTGOING_CALL_REQUEST if out else M.INCOMING_CALL_REQUEST
            reply = M.OUTGOING_CALL_REPLY if out else M.INCOMING_CALL_REPLY
            seen = self.say(Party.ORIGINATOR, request, first)
            self.say(Party.RESPONDER, reply, second, seen)

    def field(self, sender: Party, kind: MessageType, value: int, *, own: bool) -> int:
        self.dialogue.attend(self.connection, sender, 0.0)
        return self.dialogue.number(kind, value, own=own, sent=None)

    def say(self, sender: Party, kind: MessageType, own: int, peers: int = 0) -> int:
        """Say a whole message; return what its Call ID has become."""
        became = self.field(sender, kind, own, own=True)
        fields = {"call_id": own, "peer_call_id": peers, "result": 1}
        names = LAYOUTS[kind].names
        octets = pack(kind, **{n: value for n, value in fields.items() if n in names})
        self.dialogue.message(frame(octets), octets)
        return became


@given(LISTS, LISTS, st.integers(0, 0xFFFF), st.lists(st.booleans(), min_size=12, max_size=12))
@effort(150)
def test_a_number_comes_back_as_its_owner_chose_it(
    first: list[int], second: list[int], drawn: int, outgoing: list[bool]
) -> None:
    """Whatever message shows it and whatever message answers about it."""
    numbers = {Party.ORIGINATOR: first, Party.RESPONDER: second}
    spoken = Spoken(numbers, drawn, outgoing)
    shared = min(len(first), len(second))
    for party, own_kind, peer_kind in product(Party, OWN, PEERS):
        seen = set()
        for own in numbers[party][:shared]:
            became = spoken.field(party, own_kind, own, own=True)
            seen.add(became)
            assert own == spoken.field(party.other, peer_kind, became, own=False)
        assert shared == len(seen), "numbers stay apart"


@given(LISTS, LISTS, st.integers(0, 0xFFFF), st.lists(st.booleans(), min_size=12, max_size=12))
@effort(100)
def test_the_first_octet_decides_what_it_becomes(
    first: list[int], second: list[int], drawn: int, outgoing: list[bool]
) -> None:
    """A cut field whose first octet is sent on must fit whatever the second one is."""
    spoken = Spoken({Party.ORIGINATOR: first, Party.RESPONDER: second}, drawn, outgoing)
    for call in spoken.connection.calls:
        for party in Party:
            for kind in set(OWN) - {M.CALL_DISCONNECT_NOTIFY}:  # the quirk's numbers come in
                spoken.dialogue.attend(spoken.connection, party, 0.0)
                own = call.own[party]
                decided = spoken.dialogue.first_octet(kind, own >> 8, own=True)
                assert call.seen[party] >> 8 == decided.octet
            for kind in PEERS:
                spoken.dialogue.attend(spoken.connection, party.other, 0.0)
                seen = call.seen[party]
                decided = spoken.dialogue.first_octet(kind, seen >> 8, own=False)
                assert call.own[party] >> 8 == decided.octet
