"""Authentication in PPP: who says what to whom, and how it ended.

PAP (RFC 1334), CHAP (RFC 1994), MS-CHAP v1 (RFC 2433) and v2 (RFC 2759), EAP (RFC 3748).
Names and error numbers are read; passwords, challenges, responses and authenticator
values are stepped over here and exist nowhere behind this file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from pptp_nat.analysis import ppp_wire as wire
from pptp_nat.analysis.ppp_words import EAP_METHODS, text

_MS_ERROR: Final = re.compile(rb"E=(\d{1,10})")
_MS_RETRY: Final = re.compile(rb" R=([01])")
_MS_MESSAGE: Final = re.compile(rb"(?:^| )M=(.*)", re.DOTALL)
_MS_FIELDS: Final = re.compile(rb"\b[SC]=[0-9A-Fa-f]*|^E=\d|\b[RV]=\d")
_MS_SECRET: Final = re.compile(rb"\b[SC]=[0-9A-Fa-f]{8,}")
_MS_CHAP_METHODS: Final = (26, 29)
_EAP_IDENTITY: Final = 1
_EAP_NAK: Final = 3


class Kind(enum.Enum):
    """What an authentication packet is, across the protocols."""

    REQUEST = "request"  #: PAP's Authenticate-Request: carries the password too
    CHALLENGE = "challenge"
    RESPONSE = "response"
    SUCCESS = "success"
    FAILURE = "failure"
    CHANGE = "password change"
    OTHER = "other"


class AuthenticationPacket(NamedTuple):
    """One packet, without its secrets."""

    protocol: str  #: PAP, CHAP, EAP
    kind: Kind
    name: str = ""  #: of the sender, as far as the packet gives one
    error: int | None = None  #: MS-CHAP's E=
    may_retry: bool | None = None  #: MS-CHAP's R=
    message: str = ""  #: what is meant for a person's eyes
    method: str = ""  #: EAP's method
    wants: tuple[str, ...] = ()  #: the methods that an EAP nak would rather have

    @property
    def said(self) -> str:
        """One line for a ladder: ``CHAP failure E=691 (Access denied)``."""
        words = [self.protocol, self.method, self.kind.value]
        if self.error is not None:
            words.append(f"E={self.error}")
        if self.name:
            words.append(f"from “{self.name}”" if self.kind is Kind.CHALLENGE else f"“{self.name}”")
        if self.message:
            words.append(f"({self.message})")
        if self.wants:
            words.append("wants " + ", ".join(self.wants))
        return " ".join(word for word in words if word)


def authentication_packet(protocol: int, information: bytes) -> AuthenticationPacket | None:
    """Read a packet of PAP, CHAP or EAP; None for anything else and for what has no header."""
    read = _READERS.get(protocol)
    packet = wire.control_packet(information)
    return None if read is None or packet is None else read(packet)


def _pap(packet: wire.ControlPacket) -> AuthenticationPacket:
    kind = {1: Kind.REQUEST, 2: Kind.SUCCESS, 3: Kind.FAILURE}.get(packet.code, Kind.OTHER)
    first = packet.data[1 : 1 + packet.data[0]] if packet.data else b""
    if kind is Kind.REQUEST:
        return AuthenticationPacket("PAP", kind, name=text(first))
    return AuthenticationPacket("PAP", kind, message=text(first))


_CHAP_KINDS: Final = {
    1: Kind.CHALLENGE, 2: Kind.RESPONSE, 3: Kind.SUCCESS, 4: Kind.FAILURE,
    5: Kind.CHANGE, 6: Kind.CHANGE, 7: Kind.CHANGE,
}  # fmt: skip


def _chap(packet: wire.ControlPacket) -> AuthenticationPacket:
    kind = _CHAP_KINDS.get(packet.code, Kind.OTHER)
    data = packet.data
    if kind in (Kind.CHALLENGE, Kind.RESPONSE):
        name = data[1 + data[0] :] if data else b""
        return AuthenticationPacket("CHAP", kind, name=text(name))
    if kind in (Kind.SUCCESS, Kind.FAILURE):
        return _outcome("CHAP", kind, data)
    return AuthenticationPacket("CHAP", kind)


def _outcome(protocol: str, kind: Kind, data: bytes, method: str = "") -> AuthenticationPacket:
    """Read the text of a Success or Failure; of MS-CHAP's fields all but S= and C=."""
    error, retry = _MS_ERROR.search(data), _MS_RETRY.search(data)
    found = _MS_MESSAGE.search(data)
    message = found[1] if found else b"" if _MS_FIELDS.search(data) else data
    return AuthenticationPacket(
        protocol,
        kind,
        error=int(error[1]) if error and kind is Kind.FAILURE else None,
        may_retry=retry[1] == b"1" if retry and kind is Kind.FAILURE else None,
        message=text(_MS_SECRET.sub(b"", message).strip()),
        method=method,
    )


def _eap(packet: wire.ControlPacket) -> AuthenticationPacket:
    if packet.code in (3, 4):
        return AuthenticationPacket("EAP", Kind.SUCCESS if packet.code == 3 else Kind.FAILURE)
    if packet.code not in (1, 2) or not packet.data:
        return AuthenticationPacket("EAP", Kind.OTHER)
    kind = Kind.CHALLENGE if packet.code == 1 else Kind.RESPONSE
    number, body = packet.data[0], packet.data[1:]
    method = EAP_METHODS.get(number, f"method {number}")
    if number == _EAP_IDENTITY:
        if kind is Kind.RESPONSE:
            return AuthenticationPacket("EAP", kind, name=text(body), method=method)
        return AuthenticationPacket("EAP", kind, message=text(body), method=method)
    if number == _EAP_NAK and kind is Kind.RESPONSE:
        wants = tuple(EAP_METHODS.get(each, f"method {each}") for each in body[:8])
        return AuthenticationPacket("EAP", kind, method=method, wants=wants)
    if number in _MS_CHAP_METHODS and len(body) >= 4:
        return _ms_chap_in_eap(kind, method, body)
    return AuthenticationPacket("EAP", kind, method=method)


def _ms_chap_in_eap(kind: Kind, method: str, body: bytes) -> AuthenticationPacket:
    """Read EAP-MSCHAPv2: operation, identifier, length, and then what CHAP has."""
    operation, data = body[0], body[4:]
    if operation == 1 and kind is Kind.CHALLENGE:
        return AuthenticationPacket("EAP", kind, name=_behind_value(data), method=method)
    if operation == 2:
        return AuthenticationPacket("EAP", kind, name=_behind_value(data), method=method)
    if operation == 4 and kind is Kind.CHALLENGE:
        return _outcome("EAP", Kind.FAILURE, data, method)
    return AuthenticationPacket("EAP", kind, method=method)


def _behind_value(data: bytes) -> str:
    return text(data[1 + data[0] :]) if data else ""


_READERS: Final[dict[int, Callable[[wire.ControlPacket], AuthenticationPacket]]] = {
    wire.PAP: _pap,
    wire.CHAP: _chap,
    wire.EAP: _eap,
}
