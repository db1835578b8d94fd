"""The life of a call and of a control connection, as two tables.

The tables are the only writers of state: nothing else in this package assigns
one.  Read a row as: in this state, on this message (or end), go there.  A pair
that is absent is *unexpected*: the message is forwarded, counted, and changes
nothing.  A repeat of the last message is not an error, hence the loops.

Calls (RFC 2637 sections 3.2.3 and 3.2.4)::

    IDLE -> REQUESTED -> UP -> CLEARING -> GONE          outgoing
    IDLE -> REQUESTED -> ANSWERED -> UP -> ...           incoming
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pptp_nat.core.messages import MessageType

_M = MessageType


class _Word(enum.Enum):
    """An enumeration whose members are looked up often: hashed by identity, not by name."""

    __hash__ = object.__hash__


class CallState(_Word):
    """Where a call stands.

    IDLE: its number is known, its first message not yet complete.
        Leaves by the request.  No leg may be installed.
    REQUESTED: one party's call ID is known; GRE towards that party is carried.
        Leaves by the reply, or unanswered.
    ANSWERED: incoming calls only; both call IDs are known and carried.
        Leaves by Incoming-Call-Connected.
    UP: GRE flows both ways.
    CLEARING: the PNS wants the end; GRE may still straggle.
        Leaves by Call-Disconnect-Notify or when that does not come in time.
    GONE: the numbers sit in quarantine; late messages are still translated.
        The data path no longer carries it.  No way leads back.
    """

    IDLE = "idle"
    REQUESTED = "requested"
    ANSWERED = "answered"
    UP = "up"
    CLEARING = "clearing"
    GONE = "gone"


class Answer(_Word):
    """What a message says to the question before it; messages that are none say yes."""

    YES = "yes"
    NO = "no"


class End(_Word):
    """Why a call is gone, from whatever state.  The values are for people and stable."""

    REFUSED = "refused"  #: the reply said no
    DISCONNECTED = "disconnected"  #: Call-Disconnect-Notify
    CLEARED = "cleared"  #: Call-Clear-Request, and no notification came after it
    STOPPED = "control connection stopped"  #: Stop-Control-Connection-Request
    CLOSED = "control connection closed"  #: FIN, RST or its conntrack entry is gone
    REPLACED = "control connection replaced"  #: a new SYN with the same addresses and ports
    UNANSWERED = "unanswered"  #: no reply in time
    IDLE = "idle"  #: no GRE in either direction
    OPERATOR = "cleared by operator"
    ADDRESS = "external address is gone"


_S = CallState
_YES, _NO = Answer.YES, Answer.NO
# fmt: off
CALL_TRANSITIONS: Final[Mapping[tuple[CallState, MessageType, Answer], CallState]] = (
  MappingProxyType({
    (_S.IDLE,      _M.OUTGOING_CALL_REQUEST,   _YES): _S.REQUESTED,
    (_S.REQUESTED, _M.OUTGOING_CALL_REQUEST,   _YES): _S.REQUESTED,
    (_S.UP,        _M.OUTGOING_CALL_REQUEST,   _YES): _S.UP,
    (_S.REQUESTED, _M.OUTGOING_CALL_REPLY,     _YES): _S.UP,
    (_S.REQUESTED, _M.OUTGOING_CALL_REPLY,     _NO):  _S.GONE,
    (_S.UP,        _M.OUTGOING_CALL_REPLY,     _YES): _S.UP,
    (_S.CLEARING,  _M.OUTGOING_CALL_REPLY,     _YES): _S.CLEARING,
    (_S.CLEARING,  _M.OUTGOING_CALL_REPLY,     _NO):  _S.GONE,

    (_S.IDLE,      _M.INCOMING_CALL_REQUEST,   _YES): _S.REQUESTED,
    (_S.REQUESTED, _M.INCOMING_CALL_REQUEST,   _YES): _S.REQUESTED,
    (_S.REQUESTED, _M.INCOMING_CALL_REPLY,     _YES): _S.ANSWERED,
    (_S.REQUESTED, _M.INCOMING_CALL_REPLY,     _NO):  _S.GONE,
    (_S.ANSWERED,  _M.INCOMING_CALL_REPLY,     _YES): _S.ANSWERED,
    (_S.ANSWERED,  _M.INCOMING_CALL_CONNECTED, _YES): _S.UP,
    (_S.UP,        _M.INCOMING_CALL_CONNECTED, _YES): _S.UP,

    (_S.UP,        _M.WAN_ERROR_NOTIFY,        _YES): _S.UP,
    (_S.CLEARING,  _M.WAN_ERROR_NOTIFY,        _YES): _S.CLEARING,
    (_S.UP,        _M.SET_LINK_INFO,           _YES): _S.UP,
    (_S.CLEARING,  _M.SET_LINK_INFO,           _YES): _S.CLEARING,
  }))

#: Legal in any state but GONE (sections 2.12 and 2.13), so rules over the table and not rows.
CALL_ENDINGS: Final[Mapping[MessageType, CallState]] = MappingProxyType({
    _M.CALL_CLEAR_REQUEST:     _S.CLEARING,
    _M.CALL_DISCONNECT_NOTIFY: _S.GONE,
})
# fmt: on


def after_message(
    state: CallState, message: MessageType, answer: Answer = Answer.YES
) -> CallState | None:
    """Return a call's next state, or None when *message* is unexpected in *state*."""
    if state is not _S.GONE and message in CALL_ENDINGS:
        return CALL_ENDINGS[message]
    return CALL_TRANSITIONS.get((state, message, answer))


class ControlState(_Word):
    """Where a control connection stands.

    OPENING: no Start-Control-Connection-Reply yet.
    OPEN: calls may come and go.
    STOPPING: one party asked to stop; no call outlives this.
    CLOSING: FIN, RST or the end of its conntrack entry was seen; late messages
        are still translated, calls live on for the grace period.
    CLOSED: forgotten.
    """

    OPENING = "opening"
    OPEN = "open"
    STOPPING = "stopping"
    CLOSING = "closing"
    CLOSED = "closed"


class TcpEnd(_Word):
    """What ends a control connection besides its messages."""

    CLOSE = "close"  #: FIN or RST
    LOST = "lost"  #: its conntrack entry is gone
    GRACE_OVER = "grace over"
    REPLACED = "replaced"


_C = ControlState
# fmt: off
CONTROL_TRANSITIONS: Final[
    Mapping[tuple[ControlState, MessageType | TcpEnd, Answer], ControlState]
] = MappingProxyType({
    (_C.OPENING,  _M.START_CONTROL_CONNECTION_REQUEST, _YES): _C.OPENING,
    (_C.OPENING,  _M.START_CONTROL_CONNECTION_REPLY,   _YES): _C.OPEN,
    (_C.OPENING,  _M.START_CONTROL_CONNECTION_REPLY,   _NO):  _C.OPENING,
    (_C.OPEN,     _M.START_CONTROL_CONNECTION_REPLY,   _YES): _C.OPEN,
    (_C.OPENING,  _M.STOP_CONTROL_CONNECTION_REQUEST,  _YES): _C.STOPPING,
    (_C.OPEN,     _M.STOP_CONTROL_CONNECTION_REQUEST,  _YES): _C.STOPPING,
    (_C.STOPPING, _M.STOP_CONTROL_CONNECTION_REQUEST,  _YES): _C.STOPPING,
    (_C.STOPPING, _M.STOP_CONTROL_CONNECTION_REPLY,    _YES): _C.STOPPING,
    (_C.OPENING,  TcpEnd.CLOSE,                        _YES): _C.CLOSING,
    (_C.OPEN,     TcpEnd.CLOSE,                        _YES): _C.CLOSING,
    (_C.STOPPING, TcpEnd.CLOSE,                        _YES): _C.CLOSING,
    (_C.OPENING,  TcpEnd.LOST,                         _YES): _C.CLOSING,
    (_C.OPEN,     TcpEnd.LOST,                         _YES): _C.CLOSING,
    (_C.STOPPING, TcpEnd.LOST,                         _YES): _C.CLOSING,
    (_C.CLOSING,  TcpEnd.GRACE_OVER,                   _YES): _C.CLOSED,
})
# fmt: on
#: A connection met in the middle shows that it is open by what only an open one carries.
IMPLIES_OPEN: Final = frozenset(
    kind
    for kind in MessageType
    if not kind.name.startswith(("START_", "STOP_"))
)


def control_after(
    state: ControlState, event: MessageType | TcpEnd, answer: Answer = Answer.YES
) -> ControlState | None:
    """Return a control connection's next state, or None when *event* changes nothing."""
    if event is TcpEnd.REPLACED:
        return _C.CLOSED
    if state is _C.OPENING and event in IMPLIES_OPEN:
        return _C.OPEN
    return CONTROL_TRANSITIONS.get((state, event, answer))
