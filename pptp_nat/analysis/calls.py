"""What the messages of a control connection mean for its calls, as a capture tells it.

The rule is the core's: a field *Call ID* holds the sender's number, one named *Peer's Call
ID* the receiver's (`pptp_nat.core.messages`); the states are the core's too
(`pptp_nat.core.states`).  What the daemon need not know, a capture shows: calls that were
up when it began.  Such a call is made of what its later messages and its GRE tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pptp_nat.analysis.model import CallEnd, LinkInfo, Outcome, WanErrors
from pptp_nat.core.messages import MessageType, Role, text
from pptp_nat.core.states import Answer, CallState, End, after_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pptp_nat.analysis.model import Call, ControlConnection
    from pptp_nat.analysis.packets import Evidence
    from pptp_nat.core.tuples import Address, Party

    Fields = Mapping[str, int | bytes]
    Effect = Callable[[MessageType, Party, Fields, Evidence], Call | None]

_M = MessageType
_LINK_INFOS: Final = 16  #: of each call
_ENDING: Final = (CallState.CLEARING, CallState.GONE)


class Keeper(Protocol):
    """Who keeps the calls of all connections."""

    def open_call(
        self, connection: ControlConnection, pns: CallEnd, pac: CallEnd, evidence: Evidence
    ) -> Call:
        """Return a new call."""

    def numbered(self, call: Call, evidence: Evidence) -> None:
        """Take note that a number of *call* has become known."""

    def orphan(self, own: Address, other: Address, role: Role, number: int) -> Call | None:
        """Return a call without connection in which *own* has *role* and *number*."""


class CallBook:
    """The calls of one control connection, by their numbers."""

    def __init__(self, connection: ControlConnection, keeper: Keeper) -> None:
        self.connection = connection
        self._keeper = keeper
        self._by_number: dict[tuple[Party, int], Call] = {}
        #: what each message about a call does; each returns the call that it is about
        self.effects: Mapping[MessageType, Effect] = {
            _M.OUTGOING_CALL_REQUEST: self._request,
            _M.OUTGOING_CALL_REPLY: self._reply,
            _M.INCOMING_CALL_REQUEST: self._request,
            _M.INCOMING_CALL_REPLY: self._reply,
            _M.INCOMING_CALL_CONNECTED: self._connected,
            _M.CALL_CLEAR_REQUEST: self._clear,
            _M.CALL_DISCONNECT_NOTIFY: self._disconnect,
            _M.WAN_ERROR_NOTIFY: self._wan_error,
            _M.SET_LINK_INFO: self._link_info,
        }

    def over(self, end: End, evidence: Evidence) -> None:
        """Take note that no call outlives the connection."""
        for call in self.connection.calls:
            if call.state is not CallState.GONE:
                was_cleared = call.state is CallState.CLEARING
                call.state = CallState.GONE
                call.end = End.CLEARED if was_cleared else end
                call.ended = evidence

    def find(self, party: Party, number: int) -> Call | None:
        """Return the latest call in which *number* is that of *party*."""
        return self._by_number.get((party, number))

    def adopt(self, call: Call, pns: Party) -> None:
        """Take in a call that its GRE has shown."""
        if call.pns.call_id is not None:
            self._by_number[pns, call.pns.call_id] = call
        if call.pac.call_id is not None:
            self._by_number[pns.other, call.pac.call_id] = call

    # Messages that begin calls.

    def _request(
        self, kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call:
        """Outgoing-Call-Request or Incoming-Call-Request."""
        number = _int(fields, "call_id")
        call = self.find(sender, number)
        if call is None or call.state in _ENDING:
            if call is not None and call.state is CallState.CLEARING:
                self._end(call, End.CLEARED, evidence)
            role = Role.PNS if kind is _M.OUTGOING_CALL_REQUEST else Role.PAC
            call = self._open(sender, role, number, evidence)
            call.incoming = kind is _M.INCOMING_CALL_REQUEST
            call.requested = evidence
        call.requests += 1
        call.serial = _int(fields, "serial")
        call.subaddress = text(fields["subaddress"])
        call.phone = text(fields["phone" if "phone" in fields else "dialed"])
        if "dialing" in fields:
            call.dialing = text(fields["dialing"])
        else:
            self._window(call.pns, fields)
        self._step(call, kind, Answer.YES, evidence)
        return call

    def _reply(
        self, kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Outgoing-Call-Reply or Incoming-Call-Reply."""
        asked, number = _int(fields, "peer_call_id"), _int(fields, "call_id")
        role = Role.PAC if kind is _M.OUTGOING_CALL_REPLY else Role.PNS
        call = self.find(sender.other, asked)
        if call is None:
            if not self._may_have_missed():
                return None
            call = self._open(sender.other, role.other, asked, evidence)
            call.incoming = kind is _M.INCOMING_CALL_REPLY
            call.state = CallState.REQUESTED
        outcome = _outcome(kind, fields)
        before = call.end_of(role).call_id
        if call.state is CallState.GONE and before is not None:
            return call
        agrees = outcome.agrees
        if outcome.result == 0 and self.connection.trouble[sender].cut:
            agrees = True  # the code was cut off by the capture; a refusal is rarer
        else:
            call.reply = outcome
        call.replied = evidence
        self._window(call.end_of(role), fields)
        if "speed" in fields:
            call.speed = _int(fields, "speed")
        if agrees and before != number:
            self._number(call, sender, role, number, evidence)
        answer = Answer.YES if agrees else Answer.NO
        if self._step(call, kind, answer, evidence) and call.state is CallState.UP:
            call.connected = call.connected or evidence
        return call

    def _connected(
        self, _kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Incoming-Call-Connected."""
        call = self._receivers(sender, Role.PNS, fields, evidence)
        if call is not None:
            self._window(call.pac, fields)
            call.speed = _int(fields, "speed")
            if call.state is CallState.IDLE:
                call.state = CallState.ANSWERED
            self._step(call, _M.INCOMING_CALL_CONNECTED, Answer.YES, evidence)
            call.connected = call.connected or evidence
        return call

    # Messages that end calls.

    def _clear(
        self, _kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Call-Clear-Request."""
        call = self._senders(sender, Role.PNS, fields, evidence)
        if call is not None:
            call.cleared = call.cleared or evidence
            self._step(call, _M.CALL_CLEAR_REQUEST, Answer.YES, evidence)
        return call

    def _disconnect(
        self, _kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Call-Disconnect-Notify, whose number some PACs get wrong."""
        number = _int(fields, "call_id")
        swapped = number >> 8 | (number & 0xFF) << 8
        wrong = None
        call = self._live(sender, number)
        for candidate in (number, swapped):
            if call is None:
                call = self._live(sender.other, candidate)
                wrong = number
        if call is None:
            wrong = None
            call = self._senders(sender, Role.PAC, fields, evidence)
        if call is None:
            return None
        if call.disconnected is None:
            call.disconnected, call.wrong_notify = evidence, wrong
            call.notify = _outcome(_M.CALL_DISCONNECT_NOTIFY, fields)
            call.statistics = text(fields["statistics"])
        if call.state is not CallState.GONE:
            self._end(call, End.DISCONNECTED, evidence)
        return call

    # Messages about calls that are up.

    def _link_info(
        self, _kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Set-Link-Info, which a PAC sends too, against the RFC."""
        number = _int(fields, "peer_call_id")
        call, exact = self.find(sender.other, number), True
        if call is None and len(self.connection.calls) == 1:
            call, exact = self.connection.calls[0], False
            if call.end_of(self._role(call, sender.other)).call_id is None:
                self._number(call, sender.other, self._role(call, sender.other), number, evidence)
                exact = True
        if call is None:
            call = self._receivers(sender, Role.PAC, fields, evidence)
        if call is not None and len(call.link_infos) < _LINK_INFOS:
            call.link_infos.append(LinkInfo(
                evidence, self._role(call, sender), number,
                _int(fields, "send_accm"), _int(fields, "receive_accm"), exact,
            ))  # fmt: skip
        return call

    def _wan_error(
        self, _kind: MessageType, sender: Party, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """WAN-Error-Notify."""
        call = self._receivers(sender, Role.PNS, fields, evidence)
        if call is not None:
            names = (
                "crc_errors", "framing_errors", "hardware_overruns", "buffer_overruns",
                "time_outs", "alignment_errors",
            )  # fmt: skip
            call.wan_errors = WanErrors(evidence, *(_int(fields, name) for name in names))
            call.wan_notifies += 1
        return call

    # How calls are found, made and moved.

    def _live(self, party: Party, number: int) -> Call | None:
        call = self.find(party, number)
        return None if call is None or call.state is CallState.GONE else call

    def _senders(
        self, sender: Party, role: Role, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Return the call in which a message's *Call ID* is its sender's number."""
        return self._known(sender, role, _int(fields, "call_id"), evidence)

    def _receivers(
        self, sender: Party, role: Role, fields: Fields, evidence: Evidence
    ) -> Call | None:
        """Return the call in which a message's *Peer's Call ID* is its receiver's number."""
        return self._known(sender.other, role, _int(fields, "peer_call_id"), evidence)

    def _known(self, party: Party, role: Role, number: int, evidence: Evidence) -> Call | None:
        call = self.find(party, number)
        if call is not None or not self._may_have_missed():
            return call
        nameless = [
            each
            for each in self.connection.calls
            if each.end_of(role).call_id is None and each.state is not CallState.REQUESTED
        ]
        if len(nameless) == 1:
            self._number(nameless[0], party, role, number, evidence)
            return nameless[0]
        own, other = (self.connection.ends[each].address for each in (party, party.other))
        call = self._keeper.orphan(own, other, role, number)
        if call is not None:
            call.connection = self.connection
            self.connection.calls.append(call)
            self.adopt(call, party if role is Role.PNS else party.other)
            return call
        call = self._open(party, role, number, evidence)
        call.state = CallState.UP
        return call

    def _may_have_missed(self) -> bool:
        """Whether calls may have begun unseen."""
        connection = self.connection
        return connection.under_way or any(
            each.missing or not each.segments for each in connection.trouble
        )

    def _role(self, call: Call, party: Party) -> Role:
        """Return what *party* is in *call*."""
        for role in Role:
            number = call.end_of(role).call_id
            if number is not None:
                known = self._by_number.get((party, number)) is call
                return role if known else role.other
        return Role.PNS

    def _open(self, party: Party, role: Role, number: int, evidence: Evidence) -> Call:
        """Return a new call in which *party* has *role* and *number*."""
        ends = self.connection.ends
        own, other = CallEnd(ends[party].address, number), CallEnd(ends[party.other].address)
        pns, pac = (own, other) if role is Role.PNS else (other, own)
        call = self._keeper.open_call(self.connection, pns, pac, evidence)
        self._by_number[party, number] = call
        self._keeper.numbered(call, evidence)
        return call

    def _number(
        self, call: Call, party: Party, role: Role, number: int, evidence: Evidence
    ) -> None:
        call.end_of(role).call_id = number
        self._by_number[party, number] = call
        self._keeper.numbered(call, evidence)

    @staticmethod
    def _window(end: CallEnd, fields: Fields) -> None:
        end.window = _int(fields, "window")
        end.processing_delay = _int(fields, "processing_delay")

    def _step(self, call: Call, kind: MessageType, answer: Answer, evidence: Evidence) -> bool:
        """Move a call on; return whether the message was to be expected."""
        state = after_message(call.state, kind, answer)
        if state is None:
            return False
        if state is CallState.GONE:
            self._end(call, End.REFUSED, evidence)
        call.state = state
        return True

    @staticmethod
    def _end(call: Call, end: End, evidence: Evidence) -> None:
        call.state, call.end, call.ended = CallState.GONE, end, evidence


def _int(fields: Fields, name: str) -> int:
    value = fields[name]
    assert isinstance(value, int)
    return value


def _outcome(kind: MessageType, fields: Fields) -> Outcome:
    return Outcome(
        kind, _int(fields, "result"), _int(fields, "error"),
        _int(fields, "cause") if "cause" in fields else None,
    )  # fmt: skip
