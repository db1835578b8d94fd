"""The fifteen PPTP control messages (RFC 2637 section 2), as one table.

`LAYOUTS` is the whole knowledge: how long each message is, what its fields are
called, who sends it, and which fields are call IDs.  A field named *Call ID*
carries the sender's number, one named *Peer's Call ID* the receiver's.  Offsets
and lengths count octets from the first octet of the message, header included;
ints are in host order.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pptp_nat.errors import BadLength, BadMagic, WireError

# Specification constants.
MAGIC: Final = 0x1A2B3C4D
MAGIC_OCTETS: Final = MAGIC.to_bytes(4, "big")
CONTROL: Final = 1  #: PPTP Message Type of all fifteen
PORT: Final = 1723
HEADER: Final = struct.Struct("!HHIHH")  #: length, message type, magic, control type, reserved0

# Implementation constants.
PREFIX: Final = 10  #: octets of the header that say all: its reserved ones come last
#: Where a header has what all Start-Control-Connection-Requests share, whatever their length.
OPENING_AT: Final = 2
OPENING: Final = struct.pack("!HIH", CONTROL, MAGIC, 1)
LONGEST: Final = 1024  #: octets; the RFC's longest is 220, some peers append to theirs


class MessageType(enum.IntEnum):
    """The control message types, by their numbers on the wire."""

    START_CONTROL_CONNECTION_REQUEST = 1
    START_CONTROL_CONNECTION_REPLY = 2
    STOP_CONTROL_CONNECTION_REQUEST = 3
    STOP_CONTROL_CONNECTION_REPLY = 4
    ECHO_REQUEST = 5
    ECHO_REPLY = 6
    OUTGOING_CALL_REQUEST = 7
    OUTGOING_CALL_REPLY = 8
    INCOMING_CALL_REQUEST = 9
    INCOMING_CALL_REPLY = 10
    INCOMING_CALL_CONNECTED = 11
    CALL_CLEAR_REQUEST = 12
    CALL_DISCONNECT_NOTIFY = 13
    WAN_ERROR_NOTIFY = 14
    SET_LINK_INFO = 15

    @property
    def title(self) -> str:
        """The RFC's spelling: ``Outgoing-Call-Request``."""
        return self.name.title().replace("_", "-").replace("Wan-", "WAN-")


class Role(enum.Enum):
    """What a party is in a call (RFC 2637 section 1.2)."""

    PNS = "PNS"
    PAC = "PAC"

    @property
    def other(self) -> Role:
        """The other role."""
        return Role.PAC if self is Role.PNS else Role.PNS


@dataclass(frozen=True, slots=True)
class Layout:
    """One message type: its section, its sender and its fields behind the header."""

    section: str  #: of RFC 2637
    sender: Role | None  #: None: either
    body: struct.Struct
    names: tuple[str, ...]  #: of the body's fields, in order
    length: int  #: the Length that the RFC gives, in octets
    call_id: int | None  #: offset of the sender's number
    peer_call_id: int | None  #: offset of the receiver's number
    result: int | None  #: offset of the Result Code (in one message: Reason), 1 octet
    error: int | None  #: offset of the General Error Code, 1 octet
    cause: int | None  #: offset of the Cause Code, 2 octets
    reserved: tuple[slice, ...]  #: what must be zero, the header's included

    @property
    def fields(self) -> tuple[tuple[int, bool], ...]:
        """The call-ID fields: (offset, whether it is the sender's), in stream order."""
        pairs = ((self.call_id, True), (self.peer_call_id, False))
        return tuple((at, own) for at, own in pairs if at is not None)


def _layout(section: str, sender: Role | None, form: str, names: str) -> Layout:
    body = struct.Struct("!" + form)
    words = tuple(names.split())
    offsets, at = {}, HEADER.size
    reserved = [slice(10, 12)]
    for name, code in zip(words, form_codes(form), strict=True):
        offsets[name], start = at, at
        at += struct.calcsize("!" + code)
        if name.startswith("reserved"):
            reserved.append(slice(start, at))
    return Layout(
        section, sender, body, words, at,
        offsets.get("call_id"), offsets.get("peer_call_id"),
        offsets.get("result", offsets.get("reason")), offsets.get("error"), offsets.get("cause"),
        tuple(reserved),
    )  # fmt: skip


def form_codes(form: str) -> list[str]:
    """Split a struct format without repeats of single values: ``"H64s"`` -> ``["H", "64s"]``."""
    codes, digits = [], ""
    for letter in form:
        if letter.isdigit():
            digits += letter
        else:
            codes.append(digits + letter)
            digits = ""
    return codes


_M = MessageType
_PNS, _PAC = Role.PNS, Role.PAC
# fmt: off
LAYOUTS: Final[Mapping[MessageType, Layout]] = MappingProxyType({
    _M.START_CONTROL_CONNECTION_REQUEST: _layout("2.1", None, "HHIIHH64s64s",
        "version reserved1 framing bearer maximum_channels firmware host vendor"),
    _M.START_CONTROL_CONNECTION_REPLY: _layout("2.2", None, "HBBIIHH64s64s",
        "version result error framing bearer maximum_channels firmware host vendor"),
    _M.STOP_CONTROL_CONNECTION_REQUEST: _layout("2.3", None, "BBH",
        "reason reserved1 reserved2"),
    _M.STOP_CONTROL_CONNECTION_REPLY: _layout("2.4", None, "BBH",
        "result error reserved1"),
    _M.ECHO_REQUEST: _layout("2.5", None, "I",
        "identifier"),
    _M.ECHO_REPLY: _layout("2.6", None, "IBBH",
        "identifier result error reserved1"),
    _M.OUTGOING_CALL_REQUEST: _layout("2.7", _PNS, "HHIIIIHHHH64s64s",
        "call_id serial minimum_bps maximum_bps bearer framing window processing_delay "
        "phone_length reserved1 phone subaddress"),
    _M.OUTGOING_CALL_REPLY: _layout("2.8", _PAC, "HHBBHIHHI",
        "call_id peer_call_id result error cause speed window processing_delay channel"),
    _M.INCOMING_CALL_REQUEST: _layout("2.9", _PAC, "HHIIHH64s64s64s",
        "call_id serial bearer channel dialed_length dialing_length dialed dialing subaddress"),
    _M.INCOMING_CALL_REPLY: _layout("2.10", _PNS, "HHBBHHH",
        "call_id peer_call_id result error window processing_delay reserved1"),
    _M.INCOMING_CALL_CONNECTED: _layout("2.11", _PAC, "HHIHHI",
        "peer_call_id reserved1 speed window processing_delay framing"),
    _M.CALL_CLEAR_REQUEST: _layout("2.12", _PNS, "HH",
        "call_id reserved1"),
    _M.CALL_DISCONNECT_NOTIFY: _layout("2.13", _PAC, "HBBHH128s",
        "call_id result error cause reserved1 statistics"),
    _M.WAN_ERROR_NOTIFY: _layout("2.14", _PAC, "HHIIIIII",
        "peer_call_id reserved1 crc_errors framing_errors hardware_overruns buffer_overruns "
        "time_outs alignment_errors"),
    _M.SET_LINK_INFO: _layout("2.15", _PNS, "HHII",
        "peer_call_id reserved1 send_accm receive_accm"),
})

GENERAL_ERRORS: Final = ("none", "not connected", "bad format", "bad value", "no resource",
                         "bad call ID", "PAC error")  #: section 2.16

_COMMON_REPLY = {1: "connected", 2: "general error"}
#: The words for Result Code (for Stop-Control-Connection-Request: Reason) by message type.
RESULTS: Final[Mapping[MessageType, Mapping[int, str]]] = MappingProxyType({
    _M.START_CONTROL_CONNECTION_REPLY: {1: "successful", 2: "general error",
        3: "command channel exists already", 4: "requester is not authorized",
        5: "protocol version is not supported"},
    _M.STOP_CONTROL_CONNECTION_REQUEST: {1: "none", 2: "stop-protocol",
        3: "stop-local-shutdown"},
    _M.STOP_CONTROL_CONNECTION_REPLY: {1: "ok", 2: "general error"},
    _M.ECHO_REPLY: {1: "ok", 2: "general error"},
    _M.OUTGOING_CALL_REPLY: {**_COMMON_REPLY, 3: "no carrier", 4: "busy", 5: "no dial tone",
        6: "time-out", 7: "do not accept"},
    _M.INCOMING_CALL_REPLY: {**_COMMON_REPLY, 3: "do not accept"},
    _M.CALL_DISCONNECT_NOTIFY: {1: "lost carrier", 2: "general error", 3: "admin shutdown",
        4: "request"},
})
# fmt: on

#: The replies to requests for calls, and all types whose Result Code 1 means yes, any other no.
CALL_REPLIES: Final = frozenset((_M.OUTGOING_CALL_REPLY, _M.INCOMING_CALL_REPLY))
REPLIES: Final = CALL_REPLIES | {_M.START_CONTROL_CONNECTION_REPLY}


@dataclass(frozen=True, slots=True)
class Frame:
    """What a message's header says."""

    type: MessageType | None  #: None: a type that we do not know; its octets pass untouched
    length: int  #: octets up to the next message
    oddity: str | None = None  #: slug of a tolerated departure from the RFC


def frame(octets: bytes, at: int = 0) -> Frame:
    """Read the header at *at*; 12 octets must be there.

    Unknown types and wrong lengths within bounds keep the framing: whoever
    receives them may object, the next message starts where Length says.

    Raises:
        BadMagic: framing is lost; the control connection cannot be followed.
        BadLength: no message can have this Length.
    """
    length, message_type, magic, control_type, _ = HEADER.unpack_from(octets, at)
    if magic != MAGIC:
        raise BadMagic("bad_magic", offset=4)
    if length < HEADER.size:
        raise BadLength("length_below_header", offset=0)
    if length > LONGEST:
        raise BadLength("length_beyond_bound", offset=0)
    if message_type != CONTROL:
        return Frame(None, length, "not_a_control_message")
    known = _FRAMES.get((control_type, length))
    if known is not None:
        return known
    if control_type not in _LENGTHS:
        return Frame(None, length, "unknown_control_type")
    if length < _LENGTHS[control_type]:
        return Frame(None, length, "short_message")
    return Frame(MessageType(control_type), length, "long_message")


_LENGTHS: Final = {int(kind): layout.length for kind, layout in LAYOUTS.items()}
_FRAMES: Final = {(int(k), lay.length): Frame(k, lay.length) for k, lay in LAYOUTS.items()}
#: The frames of messages as the RFC has them, by the `PREFIX` octets that each begins with.
REGULAR: Final[Mapping[bytes, Frame]] = MappingProxyType({
    HEADER.pack(head.length, CONTROL, MAGIC, kind, 0)[:PREFIX]: head
    for (kind, _), head in _FRAMES.items()
})  # fmt: skip


def may_open(octets: bytes) -> bool:
    """Whether *octets*, if only one, may be the beginning of a Start-Control-Connection-Request."""
    return OPENING.startswith(octets[OPENING_AT : OPENING_AT + len(OPENING)])


def is_boundary(octets: bytes, at: int = 0) -> bool:
    """Whether a message certainly begins at *at*: magic, type and the type's own length agree."""
    if len(octets) < at + HEADER.size or octets[at + 4 : at + 8] != MAGIC_OCTETS:
        return False
    length, message_type, _, control_type, _ = HEADER.unpack_from(octets, at)
    return message_type == CONTROL and (control_type, length) in _FRAMES


def find_boundary(octets: bytes, start: int = 0) -> int | None:
    """Return where the first certain message boundary at or after *start* lies, if anywhere."""
    at = octets.find(MAGIC_OCTETS, start + 4)
    while at != -1:
        if is_boundary(octets, at - 4):
            return at - 4
        at = octets.find(MAGIC_OCTETS, at + 1)
    return None


def unpack(octets: bytes) -> tuple[MessageType, dict[str, int | bytes]]:
    """Read one whole message: its type and its fields by name; text fields as 64 octets.

    Raises:
        WireError: the octets are not one whole message of a known type; octets
            that a peer appends to a message are allowed and left out.
    """
    if len(octets) < HEADER.size:
        raise BadLength("short_message", offset=len(octets))
    head = frame(octets)
    if head.type is None:
        raise WireError(head.oddity or "unknown_control_type", offset=8)
    layout = LAYOUTS[head.type]
    if len(octets) < layout.length:
        raise BadLength("short_message", offset=len(octets))
    values = layout.body.unpack_from(octets, HEADER.size)
    return head.type, dict(zip(layout.names, values, strict=True))


def pack(kind: MessageType, /, **fields: int | bytes) -> bytes:
    """Return the message *kind* with *fields*; those not given are zero."""
    layout = LAYOUTS[kind]
    unknown = fields.keys() - set(layout.names)
    assert not unknown, f"{kind.title} has no field {unknown}"
    codes = form_codes(layout.body.format[1:])
    values = [
        fields.get(name, b"" if code.endswith("s") else 0)
        for name, code in zip(layout.names, codes, strict=True)
    ]
    return HEADER.pack(layout.length, CONTROL, MAGIC, kind, 0) + layout.body.pack(*values)


def says_yes(kind: MessageType, octets: bytes) -> bool:
    """Whether a whole message agrees: a reply's Result Code is 1; the others always agree."""
    if kind not in REPLIES:
        return True
    at = LAYOUTS[kind].result
    assert at is not None
    return octets[at] == 1


def text(field: int | bytes) -> str:
    """Return a text field as people read it: up to the first NUL, undecodable octets as ``?``."""
    assert isinstance(field, bytes)
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
