"""What each call-ID field of a control message becomes: the rule, its quirks, its refusals.

For a message from one party to the other:

    a field *Call ID*         holds the sender's number:   own -> seen
    a field *Peer's Call ID*  holds the receiver's number: seen -> own

For a party that this router does not hide, own and seen are equal and the rule
changes nothing.  Roles, directions and who opened the TCP connection drop out.
What the messages then mean for calls is the matter of `pptp_nat.core.dialogue`,
which names the quirks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pptp_nat.core.book import LIVE, Book
from pptp_nat.core.calls import NOBODY, Call, Connection
from pptp_nat.core.messages import CALL_REPLIES, MessageType
from pptp_nat.core.refused import MOST, NOT_A_NUMBER, SAYS_NO, Refused
from pptp_nat.core.states import CallState
from pptp_nat.core.stream import FirstOctet
from pptp_nat.core.tuples import Party
from pptp_nat.errors import ExhaustedError

_M = MessageType
_REQUESTS: Final = frozenset((_M.OUTGOING_CALL_REQUEST, _M.INCOMING_CALL_REQUEST))
#: Messages in which a party shows a number of its own for the first time.
_INTRODUCTIONS: Final = _REQUESTS | CALL_REPLIES
_PNS_NUMBER: Final = "disconnect_notify_with_pns_number"
_SWAPPED_PNS_NUMBER: Final = "disconnect_notify_with_swapped_pns_number"


class Numbers:
    """Gives numbers to the streams of all connections; `attend` says whose is speaking."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._now = 0.0
        self._connection: Connection
        self._sender = Party.ORIGINATOR

    def attend(self, connection: Connection, sender: Party, now: float) -> None:
        """Listen to *sender* on *connection* from here on."""
        self._connection, self._sender, self._now = connection, sender, now

    def number(self, kind: MessageType, value: int, *, own: bool, sent: int | None) -> int:
        """Return what a call-ID field becomes (see `pptp_nat.core.stream.Reader`)."""
        if not own:
            became = self._restored(kind, value)
        elif kind in _INTRODUCTIONS:
            became = self._introduced(kind, value, sent)
        elif kind is _M.CALL_DISCONNECT_NOTIFY:
            became = self.disconnected(value)[0]
        else:
            became = self._seen_as(value)
        if sent is not None and became >> 8 != sent:
            self._book.oddity(self._connection, self._sender, "cut_call_id")
            became = sent << 8 | became & 0xFF
        return became

    def _restored(self, kind: MessageType, seen: int) -> int:
        """Return the receiver's own number for the one that the sender knows it by."""
        receiver, refused = self._sender.other, self._connection.refused
        call = self._connection.find(receiver, seen, seen=True)
        if call is not None:
            return call.own_of(receiver)
        if refused is None or (own := refused.own(receiver, seen)) is None:
            return seen
        refused.replies[self._sender] |= kind in CALL_REPLIES
        return own

    def _seen_as(self, own: int) -> int:
        """Return what the receiver knows the sender's number as."""
        call, refused = self._connection.find(self._sender, own, seen=False), None
        if call is not None:
            return call.seen_of(self._sender)
        if self._connection.refused is not None:
            refused = self._connection.refused.seen(self._sender, own)
        return own if refused is None else refused

    def _introduced(self, kind: MessageType, own: int, sent: int | None) -> int:
        """Return what the number that the sender introduces is seen as; choose it if it is new."""
        connection, sender, bindings = self._connection, self._sender, self._book.bindings
        call = connection.find(sender, own, seen=False)
        # A request whose number is being cleared begins anew; any other repeat is the same call.
        if call is not None and call.state is not CallState.GONE and (
            call.state is not CallState.CLEARING or kind not in _REQUESTS
        ):  # fmt: skip
            return call.seen_of(sender)
        try:
            if kind in _REQUESTS:
                self._check_room()
            if connection.chooses(sender):
                pair = connection.pair(sender)
                block = self._block(own >> 8) if sent is None else sent
                if bindings.has(pair, own):
                    self._book.counts["collision_avoided"] += 1
                seen = bindings.reserve(pair, own, block)
            elif connection.claims(sender):
                seen = self._claimed(own)
            else:
                return own
        except ExhaustedError as refusal:
            return self._refused(kind, own, sent, refusal)
        talk = connection.talk
        if talk.fresh is None:
            talk.fresh = {}
        # A stream has one message under way and asks for each of its fields once.
        assert (sender, own) not in talk.fresh
        talk.fresh[sender, own] = seen
        return seen

    def _claimed(self, own: int) -> int:
        """Return the number of this router's own client, which nobody else may have now."""
        pair = self._connection.pair(self._sender)
        if not self._book.bindings.claim(pair, own, shared=True):
            raise ExhaustedError("router_number_taken")
        return own

    def _refused(
        self, kind: MessageType, own: int, sent: int | None, refusal: ExhaustedError
    ) -> int:
        """Refuse a call in words; return what the number in the message becomes.

        Raises:
            ExhaustedError: *refusal*, where words would do harm: drop the segment.
        """
        connection, sender, book = self._connection, self._sender, self._book
        refused = connection.talk.refused = connection.refused or Refused()
        pair = connection.pair(sender)
        seen = NOT_A_NUMBER
        if len(refused.waiting) >= MOST:
            raise refusal
        if not connection.chooses(sender) and not connection.claims(sender):
            seen = own  # nobody is sent to the called host's GRE, whatever its key
        elif sent:  # the first octet has gone as that of a number
            if not connection.chooses(sender):
                raise refusal
            seen = book.bindings.reserve(pair, own, sent)
            book.bindings.release(pair, seen, self._now)
        elif book.bindings.has_zero(pair):
            raise refusal
        if kind in _REQUESTS:
            refused.ask(sender, own, seen)
        else:
            refused.replies[sender] = True
        book.refuse(connection, sender, refusal.reason)
        return seen

    def result(self, value: int) -> int:
        """Return what the codes of a reply become (see `pptp_nat.core.stream.Reader`)."""
        refused = self._connection.refused
        if refused is None or not refused.replies[self._sender] or value >> 8 != 1:
            return value
        return SAYS_NO

    def _check_room(self) -> None:
        settings, connection = self._book.settings, self._connection
        if not any(connection.seen_as) and connection.is_routed:
            return  # neither numbers nor legs: `_request` does not follow it, that is all
        if len(self._book.calls) >= settings.calls:
            raise ExhaustedError("calls_limit")
        if 0 < settings.calls_per_connection <= sum(c.state in LIVE for c in connection.calls):
            raise ExhaustedError("calls_per_connection_limit")
        client, clients = connection.own(self._sender), self._book.clients
        if 0 < settings.calls_per_client <= clients.calls(client):
            raise ExhaustedError("calls_per_client_limit")
        rate = settings.setups_per_client
        if rate and not clients.may_ask(client, rate, self._now):
            raise ExhaustedError("setups_per_client_limit")

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
            known = [seen for first, seen in self._connection.blocks(self._sender) if first == high]
            try:
                if kind in _REQUESTS and not known:
                    self._check_room()
                block = self._block(high)
            except ExhaustedError:
                block = NOT_A_NUMBER >> 8
            return FirstOctet(block, all(seen == block for seen in known))
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
        for asked in self._connection.refused.waiting if self._connection.refused else ():
            if own and asked.party is sender:
                yield asked.own, asked.seen
            elif not own and asked.party is receiver:
                yield asked.seen, asked.own
        for call in self._connection.calls:
            if call.own[receiver] == NOBODY:
                continue
            if not own:
                yield call.seen[receiver], call.own[receiver]
            elif kind is _M.CALL_DISCONNECT_NOTIFY and call.pns is receiver:
                yield call.seen[receiver], call.own[receiver]
                yield _swapped(call.seen[receiver]), _swapped(call.own[receiver])

    def disconnected(self, value: int) -> tuple[int, Call | None, str | None]:
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


def _swapped(number: int) -> int:
    return (number & 0xFF) << 8 | number >> 8
