"""What the messages of a control connection mean: numbers for fields, steps for calls.

The rule, for a message from one party to the other:

    a field *Call ID*         holds the sender's number:   own -> seen
    a field *Peer's Call ID*  holds the receiver's number: seen -> own

For a party that this router does not hide, own and seen are equal and the rule
changes nothing.  Roles, directions and who opened the TCP connection drop out.

Quirks (departures of real peers, each tolerated, counted and tested):

``disconnect_notify_with_pns_number``, ``disconnect_notify_with_swapped_pns_number``
    accel-ppp puts the PNS's number, older ones byte-swapped, where the PAC's own
    belongs.  Decided by value; a number that is the PAC's own comes first.
``set_link_info_from_pac``
    A PAC sends what only a PNS should.  The rule holds for it as it is.
``reserved_not_zero``, ``long_message``
    Pass as they are.
``cut_call_id``
    A number that no call has, or that only a quirk explains, cut in two, whose first
    octet looked like a call's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pptp_nat.core.book import LIVE, Book
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.events import MessageSeen, OddityMet, Released
from pptp_nat.core.held import Held
from pptp_nat.core.messages import LAYOUTS, REPLIES, Frame, MessageType, says_yes
from pptp_nat.core.states import (
    IMPLIES_OPEN,
    Answer,
    CallState,
    ControlState,
    End,
    after_message,
)  # fmt: skip
from pptp_nat.core.stream import FirstOctet
from pptp_nat.core.tuples import Party
from pptp_nat.errors import ExhaustedError

_M = MessageType
_REQUESTS: Final = frozenset((_M.OUTGOING_CALL_REQUEST, _M.INCOMING_CALL_REQUEST))
#: Messages in which a party shows a number of its own for the first time.
_INTRODUCTIONS: Final = _REQUESTS | {_M.OUTGOING_CALL_REPLY, _M.INCOMING_CALL_REPLY}
#: The reserved bits of each message, as one number.
_RESERVED: Final = {
    kind: sum(
        ((1 << 8 * (place.stop - place.start)) - 1) << 8 * (layout.length - place.stop)
        for place in layout.reserved
    )
    for kind, layout in LAYOUTS.items()
}
_PNS_NUMBER: Final = "disconnect_notify_with_pns_number"
_SWAPPED_PNS_NUMBER: Final = "disconnect_notify_with_swapped_pns_number"


class Dialogue:
    """Reads for the streams (a `pptp_nat.core.stream.Reader`) and writes into the book.

    One object serves all connections; `attend` says which one is speaking.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._now = 0.0
        self.echoed = False  #: an Echo-Request has gone by since this was last looked at
        self.observed = False  #: whether `MessageSeen` events are wanted
        self.released: list[Released] = []
        self.holds: dict[Held, float] = {}  #: packets that wait, and until when
        self._connection: Connection
        self._sender = Party.ORIGINATOR
        self._effects: dict[MessageType, Callable[[MessageType, bytes], None]] = {
            _M.START_CONTROL_CONNECTION_REQUEST: self._start,
            _M.START_CONTROL_CONNECTION_REPLY: self._start,
            _M.ECHO_REQUEST: self._echo,
            _M.ECHO_REPLY: self._echo_reply,
            _M.OUTGOING_CALL_REQUEST: self._request,
            _M.OUTGOING_CALL_REPLY: self._reply,
            _M.INCOMING_CALL_REQUEST: self._request,
            _M.INCOMING_CALL_REPLY: self._reply,
            _M.INCOMING_CALL_CONNECTED: self._about_receivers_number,
            _M.CALL_CLEAR_REQUEST: self._clear,
            _M.CALL_DISCONNECT_NOTIFY: self._disconnect,
            _M.WAN_ERROR_NOTIFY: self._about_receivers_number,
            _M.SET_LINK_INFO: self._about_receivers_number,
        }

    def attend(self, connection: Connection, sender: Party, now: float) -> None:
        """Listen to *sender* on *connection* from here on."""
        self._connection, self._sender, self._now = connection, sender, now

    # What a stream asks: numbers.

    def number(self, kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:
        """Return what a call-ID field becomes (see `pptp_nat.core.stream.Reader`)."""
        if not own:
            became = self._restored(value)
        elif kind in _INTRODUCTIONS:
            became = self._introduced(kind, value, sent)
        elif kind is _M.CALL_DISCONNECT_NOTIFY:
            became = self._disconnected(value)[0]
        else:
            became = self._seen_as(value)
        if sent is not None and became >> 8 != sent:
            self.oddity("cut_call_id")
            became = sent << 8 | became & 0xFF
        return became

    def _restored(self, seen: int) -> int:
        """Return the receiver's own number for the one that the sender knows it by."""
        receiver = self._sender.other
        call = self._connection.find(receiver, seen, seen=True)
        return seen if call is None else call.own_of(receiver)

    def _seen_as(self, own: int) -> int:
        """Return what the receiver knows the sender's number as."""
        call = self._connection.find(self._sender, own, seen=False)
        return own if call is None else call.seen_of(self._sender)

    def _introduced(self, kind: MessageType, own: int, sent: int | None) -> int:
        """Return what the number that the sender introduces is seen as; choose it if it is new."""
        connection, sender, bindings = self._connection, self._sender, self._book.bindings
        call = connection.find(sender, own, seen=False)
        # A request whose number is being cleared begins anew; any other repeat is the same call.
        ends = (CallState.CLEARING, CallState.GONE) if kind in _REQUESTS else (CallState.GONE,)
        if call is not None and call.state not in ends:
            return call.seen_of(sender)
        if kind in _REQUESTS:
            self._check_room()
        if connection.chooses(sender):
            pair = connection.pair(sender)
            block = self._block(own >> 8) if sent is None else sent
            if bindings.has(pair, own):
                self._book.counts["collision_avoided"] += 1
            seen = bindings.reserve(pair, own, block)
        elif connection.claims(sender):
            if not bindings.claim(connection.pair(sender), own, shared=True):
                raise ExhaustedError("router_number_taken")
            seen = own
        else:
            return own
        if connection.fresh is None:
            connection.fresh = {}
        # A stream has one message under way and asks for each of its fields once.
        assert (sender, own) not in connection.fresh
        connection.fresh[sender, own] = seen
        return seen

    def _check_room(self) -> None:
        settings, connection = self._book.settings, self._connection
        if len(self._book.calls) >= settings.calls:
            raise ExhaustedError("calls_limit")
        if 0 < settings.calls_per_connection <= sum(c.state in LIVE for c in connection.calls):
            raise ExhaustedError("calls_per_connection_limit")

    def _block(self, high: int) -> int:
        """Choose the high octet of what a number that begins with *high* is seen as.

        Numbers of one connection with the same high octet get the same one, others
        others: so the first octet of a cut field decides the first octet sent on.
        """
        like, unlike = None, set()
        for own_high, seen_high in self._connection.blocks(self._sender):
            if own_high == high:
                like = seen_high
            else:
                unlike.add(seen_high)
        pair = self._connection.pair(self._sender)
        return self._book.bindings.choose_block(pair, high, like=like, unlike=unlike)

    def first_octet(self, kind: MessageType, high: int, *, own: bool) -> FirstOctet:
        """Return what the first octet of a cut call-ID field becomes."""
        if own and kind in _INTRODUCTIONS and self._connection.chooses(self._sender):
            block = self._block(high)
            pairs = self._connection.blocks(self._sender)
            return FirstOctet(block, all(seen == block for first, seen in pairs if first == high))
        outputs = [
            became >> 8 for value, became in self._outputs(kind, own=own) if value >> 8 == high
        ]
        if all(output == high for output in outputs):
            return FirstOctet(high, certain=True)
        return FirstOctet(outputs[0], certain=False)

    def _outputs(self, kind: MessageType, *, own: bool) -> Iterator[tuple[int, int]]:
        """Yield what each number that may stand in a field becomes, quirks last."""
        sender, receiver = self._sender, self._sender.other
        for call in self._connection.calls:
            if own and call.own[sender] != NOBODY:
                yield call.own[sender], call.seen[sender]
        for call in self._connection.calls:
            if call.own[receiver] == NOBODY:
                continue
            if not own:
                yield call.seen[receiver], call.own[receiver]
            elif kind is _M.CALL_DISCONNECT_NOTIFY and call.pns is receiver:
                yield call.seen[receiver], call.own[receiver]
                yield _swapped(call.seen[receiver]), _swapped(call.own[receiver])

    def _disconnected(self, value: int) -> tuple[int, Call | None, str | None]:
        """Return (what a Call-Disconnect-Notify's number becomes, the call it ends, the quirk)."""
        find, sender = self._connection.find, self._sender
        senders = find(sender, value, seen=False)
        if senders is not None and senders.state is not CallState.GONE:
            return senders.seen_of(sender), senders, None  # what the RFC says
        fallback: tuple[int, Call | None, str | None] = (value, None, None)
        for call, quirk in (
            (senders, None),
            (find(sender.other, value, seen=True), _PNS_NUMBER),
            (find(sender.other, _swapped(value), seen=True), _SWAPPED_PNS_NUMBER),
        ):
            if call is None or (quirk and call.pns is sender):
                continue
            if quirk is None:
                became = call.seen_of(sender)
            elif quirk is _PNS_NUMBER:
                became = call.own_of(sender.other)
            else:
                became = _swapped(call.own_of(sender.other))
            if call.state is not CallState.GONE:
                return became, call, quirk
            if fallback[1] is None:
                fallback = became, call, quirk
        return fallback

    # What a stream tells: messages.

    def release(self, octet: int) -> None:
        """Let the held packet of the stream that is speaking go."""
        stream = self._connection.streams[self._sender]
        held, stream.held = stream.held, None
        assert isinstance(held, Held)
        del self.holds[held]
        self.released.append(held.release(octet))

    def abandon(self) -> None:
        """Keep back the numbers chosen for a message whose end will not be seen."""
        connection, sender, book = self._connection, self._sender, self._book
        for party, own in list(connection.fresh or ()):
            if party is sender:
                seen = book.take_fresh(connection, party, own)
                assert seen is not None
                book.bindings.release(connection.pair(party), seen, self._now)

    def oddity(self, slug: str) -> None:
        """Count and tell a departure from the RFC."""
        self._book.counts[slug] += 1
        self._book.events.append(OddityMet(self._connection, self._sender, slug))

    def message(self, head: Frame, octets: bytes) -> None:
        """Take note of a whole message: the effect of its type on calls and connection."""
        book, connection, kind = self._book, self._connection, head.type
        book.messages[kind, connection.seen_as[self._sender] is not None] += 1
        connection.last_message = self._now
        if self.observed:
            book.events.append(MessageSeen(connection, self._sender, kind, octets))
        if head.oddity is not None:
            self.oddity(head.oddity)
        if kind is None:
            return
        if int.from_bytes(octets[: LAYOUTS[kind].length], "big") & _RESERVED[kind]:
            self.oddity("reserved_not_zero")
        if connection.state is not ControlState.OPEN or kind not in IMPLIES_OPEN:
            book.move_connection(connection, kind, self._now, _answer(kind, octets))
        effect = self._effects.get(kind)
        if effect is not None:
            effect(kind, octets)

    def _start(self, _kind: MessageType, octets: bytes) -> None:
        self._connection.introduce(self._sender, octets, self._book.one_for_all)

    def _echo(self, _kind: MessageType, octets: bytes) -> None:
        self.echoed = True
        self._connection.echo_asked(self._sender, octets[12:16], self._now)

    def _echo_reply(self, _kind: MessageType, octets: bytes) -> None:
        self._connection.echo_answered(self._sender, octets[12:16], self._now)

    def _request(self, kind: MessageType, octets: bytes) -> None:
        own = _field(octets, LAYOUTS[kind].call_id)
        connection, sender, book = self._connection, self._sender, self._book
        call = connection.find(sender, own, seen=False)
        if call is not None and call.state in LIVE:
            self._step(call, kind, octets)
            return
        if call is not None and call.state is CallState.CLEARING:
            book.finish(call, End.CLEARED, self._now)
        seen = self._shown_as(own)
        if seen is None:
            self.oddity("unexpected_message")
            return
        pns = sender if kind is _M.OUTGOING_CALL_REQUEST else sender.other
        call = book.open_call(connection, sender, pns, self._now)
        connection.add(call)
        book.number(call, sender, own, seen, self._now)
        self._step(call, kind, octets)

    def _shown_as(self, own: int) -> int | None:
        """Return what the number in the sender's message has become, for a new call to have it.

        It was decided with the field, and the call that had it then may be gone
        by now.  None: its quarantine is over as well.
        """
        connection, sender, book = self._connection, self._sender, self._book
        if connection.seen_as[sender] is None and not connection.claims(sender):
            return own
        fresh = book.take_fresh(connection, sender, own)
        if fresh is not None:
            return fresh
        earlier = connection.find(sender, own, seen=False)
        if earlier is None:
            return None
        seen = earlier.seen_of(sender)
        return seen if book.bindings.keep(connection.pair(sender), seen) else None

    def _reply(self, kind: MessageType, octets: bytes) -> None:
        layout, connection, sender = LAYOUTS[kind], self._connection, self._sender
        own = _field(octets, layout.call_id)
        peers = _field(octets, layout.peer_call_id)
        call = connection.find(sender.other, peers, seen=True)
        if call is None or call.requester is sender:
            self._book.drop_fresh(connection, sender, own)
            self.oddity("unknown_peer_call_id")
            return
        answer = _answer(kind, octets)
        state = after_message(call.state, kind, answer)
        if state is not None and answer is Answer.YES and call.own_of(sender) != own:
            holder = connection.find(sender, own, seen=False)
            if holder is not None and holder.state is not CallState.GONE:
                # The sender tells its calls apart by this number: it is this call's from now on.
                self._book.hand_over(holder, call, sender, self._now)
            elif (seen := self._shown_as(own)) is not None:
                self._book.number(call, sender, own, seen, self._now)
        self._book.drop_fresh(connection, sender, own)
        self._step(call, kind, octets)

    def _about_receivers_number(self, kind: MessageType, octets: bytes) -> None:
        number = _field(octets, LAYOUTS[kind].peer_call_id)
        call = self._connection.find(self._sender.other, number, seen=True)
        if call is None:
            self.oddity("unknown_peer_call_id")
            return
        if kind is _M.SET_LINK_INFO and call.pns is not self._sender:
            self.oddity("set_link_info_from_pac")
        self._step(call, kind, octets)

    def _clear(self, kind: MessageType, octets: bytes) -> None:
        number = _field(octets, LAYOUTS[kind].call_id)
        call = self._connection.find(self._sender, number, seen=False)
        if call is None:
            self.oddity("unknown_call_id")
            return
        self._step(call, kind, octets)

    def _disconnect(self, kind: MessageType, octets: bytes) -> None:
        _, call, quirk = self._disconnected(_field(octets, LAYOUTS[kind].call_id))
        if quirk is not None:
            self.oddity(quirk)
        if call is None:
            self.oddity("unknown_call_id")
            return
        self._step(call, kind, octets)

    def _step(self, call: Call, kind: MessageType, octets: bytes) -> None:
        """Move *call* as the table says."""
        state = after_message(call.state, kind, _answer(kind, octets))
        if state is None:
            self.oddity("unexpected_message")
            return
        end = None
        if state is CallState.GONE:
            end = End.DISCONNECTED if kind is _M.CALL_DISCONNECT_NOTIFY else End.REFUSED
            call.codes = _codes(kind, octets)
        self._book.move(call, state, self._now, end)


def _field(octets: bytes, at: int | None) -> int:
    assert at is not None
    return octets[at] << 8 | octets[at + 1]


def _swapped(number: int) -> int:
    return (number & 0xFF) << 8 | number >> 8


def _answer(kind: MessageType, octets: bytes) -> Answer:
    return Answer.YES if kind not in REPLIES or says_yes(kind, octets) else Answer.NO


def _codes(kind: MessageType, octets: bytes) -> tuple[int, int, int, int]:
    layout = LAYOUTS[kind]
    return (
        int(kind),
        0 if layout.result is None else octets[layout.result],
        0 if layout.error is None else octets[layout.error],
        0 if layout.cause is None else _field(octets, layout.cause),
    )
