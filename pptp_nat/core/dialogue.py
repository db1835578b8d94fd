"""What the messages of a control connection mean: numbers for fields, steps for calls.

Which numbers the fields hold is the matter of `pptp_nat.core.numbers`.

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

from collections.abc import Callable
from typing import Final

from pptp_nat.core.book import LIVE, Book
from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import MessageSeen, Released
from pptp_nat.core.held import Held
from pptp_nat.core.messages import LAYOUTS, REPLIES, Frame, MessageType, says_yes
from pptp_nat.core.numbers import Numbers
from pptp_nat.core.refused import SAYS_NO
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

_M = MessageType
#: The octets of each message that may be reserved, and its reserved bits, as one number.
_RESERVED: Final = {
    kind: (layout.length, sum(
        ((1 << 8 * (place.stop - place.start)) - 1) << 8 * (layout.length - place.stop)
        for place in layout.reserved
    ))
    for kind, layout in LAYOUTS.items()
}  # fmt: skip


class Dialogue:
    """Reads for the streams (a `pptp_nat.core.stream.Reader`) and writes into the book.

    One object serves all connections; `attend` says which one is speaking.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._numbers = Numbers(book)
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
        self._numbers.attend(connection, sender, now)

    # What a stream asks: numbers (see `pptp_nat.core.stream.Reader`).

    def number(self, kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:
        """Return what a call-ID field becomes."""
        return self._numbers.number(kind, value, own=own, sent=sent)

    def result(self, value: int) -> int:
        """Return what the codes of a reply become."""
        return self._numbers.result(value)

    def first_octet(self, kind: MessageType, high: int, *, own: bool) -> FirstOctet:
        """Return what the first octet of a cut call-ID field becomes."""
        return self._numbers.first_octet(kind, high, own=own)

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
        if connection.refused is not None:
            connection.refused.forget(sender)
        for party, own in list(connection.fresh or ()):
            if party is sender:
                seen = book.take_fresh(connection, party, own)
                assert seen is not None
                book.bindings.release(connection.pair(party), seen, self._now)

    def oddity(self, slug: str) -> None:
        """Count and tell a departure from the RFC."""
        self._book.oddity(self._connection, self._sender, slug)

    def message(self, head: Frame, octets: bytes) -> None:
        """Take note of a whole message: the effect of its type on calls and connection."""
        book, connection, kind = self._book, self._connection, head.type
        book.messages[kind, connection.seen_as[self._sender] is not None] += 1
        connection.talk.last_message = self._now
        if self.observed:
            book.events.append(MessageSeen(connection, self._sender, kind, octets))
        if head.oddity is not None:
            self.oddity(head.oddity)
        if kind is None:
            return
        length, reserved = _RESERVED[kind]
        if int.from_bytes(octets[:length], "big") & reserved:
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
        self._connection.talk.echo_asked(self._sender, octets[12:16], self._now)

    def _echo_reply(self, _kind: MessageType, octets: bytes) -> None:
        self._connection.talk.echo_answered(self._sender, octets[12:16], self._now)

    def _request(self, kind: MessageType, octets: bytes) -> None:
        own = _field(octets, LAYOUTS[kind].call_id)
        connection, sender, book = self._connection, self._sender, self._book
        if connection.refused is not None and connection.refused.asked(sender):
            return
        call = connection.find(sender, own, seen=False)
        if call is not None and call.state in LIVE:
            self._step(call, kind, octets)
            return
        if connection.is_routed and len(book.calls) >= book.settings.calls:
            self.oddity("unfollowed_call")
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
        if (refused := connection.refused) is not None and refused.says_no(sender):
            octets = octets[:16] + SAYS_NO.to_bytes(2, "big") + octets[18:]
            if call is None:
                refused.answered(sender.other, peers)
                self._book.drop_fresh(connection, sender, own)
                return
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
        _, call, quirk = self._numbers.disconnected(_field(octets, LAYOUTS[kind].call_id))
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
