"""The words of PPP: protocols, codes, options and error numbers, as tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from pptp_nat.analysis import ppp_wire as wire

#: Protocol field to its usual name (IANA, "Point-to-Point Protocol Field Assignments").
PROTOCOLS: Final = MappingProxyType({
    wire.IPV4: "IPv4", wire.IPV6: "IPv6", wire.COMPRESSED: "compressed or encrypted data",
    wire.IPCP: "IPCP", wire.IPV6CP: "IPV6CP", wire.CCP: "CCP", wire.ECP: "ECP",
    wire.LCP: "LCP", wire.PAP: "PAP", wire.LQR: "LQR", wire.CHAP: "CHAP", wire.EAP: "EAP",
    0x002B: "IPX", 0x002D: "TCP with compressed header", 0x002F: "TCP with whole header",
    0x003D: "multilink", 0x003F: "NetBIOS", 0x0281: "MPLS", 0x802B: "IPXCP", 0x803F: "NBFCP",
    0x80FB: "individual-link CCP", 0x8281: "MPLSCP", 0xC029: "CBCP", 0xC02B: "BACP",
    0xC02D: "BAP",
})  # fmt: skip

CODES: Final = MappingProxyType({
    wire.CONFIGURE_REQUEST: "Configure-Request", wire.CONFIGURE_ACK: "Configure-Ack",
    wire.CONFIGURE_NAK: "Configure-Nak", wire.CONFIGURE_REJECT: "Configure-Reject",
    wire.TERMINATE_REQUEST: "Terminate-Request", wire.TERMINATE_ACK: "Terminate-Ack",
    wire.CODE_REJECT: "Code-Reject", wire.PROTOCOL_REJECT: "Protocol-Reject",
    wire.ECHO_REQUEST: "Echo-Request", wire.ECHO_REPLY: "Echo-Reply",
    wire.DISCARD_REQUEST: "Discard-Request", wire.IDENTIFICATION: "Identification",
    wire.TIME_REMAINING: "Time-Remaining", wire.RESET_REQUEST: "Reset-Request",
    wire.RESET_ACK: "Reset-Ack",
})  # fmt: skip

#: MS-CHAP Failure error numbers (RFC 2433 section 6, RFC 2759 section 6).
MS_ERRORS: Final = MappingProxyType(
    {
        646: "log-on is not allowed at this hour",
        647: "the account is disabled",
        648: "the password has expired",
        649: "the account has no dial-in permission",
        691: "wrong user name or password",
        709: "the password could not be changed",
    }
)

#: Numbers that Windows gives in a Terminate-Request (raserror.h of the Windows SDK).
RAS_ERRORS: Final = MappingProxyType({
    718: "PPP time-out", 719: "ended by the remote computer", 720: "no PPP protocols configured",
    721: "the remote computer does not answer", 732: "PPP does not converge",
    733: "control protocol rejected", 734: "LCP ended", 735: "requested address rejected",
    736: "network control protocol ended", 737: "loopback", 738: "no address assigned",
    741: "this computer does not do the encryption asked for",
    742: "the remote computer does not do the encryption asked for",
    743: "the remote computer wants encryption",
})  # fmt: skip

_CHAP_ALGORITHMS: Final = {5: "CHAP (MD5)", 6: "CHAP (SHA-1)", 7: "CHAP (SHA-256)",
                           0x80: "MS-CHAP", 0x81: "MS-CHAP v2"}  # fmt: skip

EAP_METHODS: Final = MappingProxyType({
    1: "identity", 2: "notification", 3: "nak", 4: "MD5", 5: "one-time password",
    6: "token card", 13: "TLS", 21: "TTLS", 25: "PEAP", 26: "MS-CHAP v2", 29: "MS-CHAP v2",
    43: "FAST",
})  # fmt: skip

#: MPPE's supported bits (RFC 3078 section 2.1) in the order in which they are said.
MPPE_BITS: Final = ((0x00000040, "128"), (0x00000080, "56"), (0x00000020, "40"))
MPPE_STATELESS: Final = 0x01000000
MPPC: Final = 0x00000001

_UNPRINTABLE: Final = re.compile(r"[^ -~]")


def text(octets: bytes, most: int = 80) -> str:
    """Return what a peer has written, fit for any terminal or page.

    Octets that are no printable ASCII become ``.``; more than *most* are left out.
    """
    shown = _UNPRINTABLE.sub(".", octets[:most].rstrip(b"\0").decode("latin-1"))
    return shown + "…" if len(octets) > most else shown


def protocol_name(protocol: int) -> str:
    """Name a protocol field."""
    return PROTOCOLS.get(protocol, f"protocol 0x{protocol:04x}")


def code_name(code: int) -> str:
    """Name a code of LCP or of a network control protocol."""
    return CODES.get(code, f"code {code}")


def authentication_name(value: bytes) -> str:
    """Name what LCP's Authentication-Protocol option asks for (RFC 1661 section 6.2)."""
    protocol = int.from_bytes(value[:2], "big")
    if protocol == wire.CHAP and len(value) > 2:
        return _CHAP_ALGORITHMS.get(value[2], f"CHAP (algorithm {value[2]})")
    return protocol_name(protocol)


def mppe_name(bits: int) -> str:
    """Say MPPE's bits: ``MPPE 128 stateless``, ``MPPE 40/56/128``, ``MPPC``, ``no encryption``."""
    lengths = [length for bit, length in reversed(MPPE_BITS) if bits & bit]
    words = ["MPPE", "/".join(lengths)] if lengths else []
    if bits & MPPC:
        words.append("with MPPC" if words else "MPPC")
    if not words:
        return "no encryption"
    if bits & MPPE_STATELESS:
        words.append("stateless")
    return " ".join(words)


def address(value: bytes) -> str:
    """Return four octets as people write an IPv4 address."""
    return ".".join(map(str, value[:4]))


def _number(value: bytes) -> str:
    return str(int.from_bytes(value[:8], "big"))


def _hex(value: bytes) -> str:
    return f"0x{value[:8].hex()}" if value else ""


def _nothing(_: bytes) -> str:
    return ""


def _interface(value: bytes) -> str:
    return ":".join(value[at : at + 2].hex() for at in range(0, 8, 2))


def _compression(value: bytes) -> str:
    return {0x2D: "Van Jacobson"}.get(
        int.from_bytes(value[:2], "big"), protocol_name(int.from_bytes(value[:2], "big"))
    )


def _mppe(value: bytes) -> str:
    return mppe_name(int.from_bytes(value[:4], "big"))


def _callback(value: bytes) -> str:
    return f"operation {value[0]}" if value else ""


Say = Callable[[bytes], str]

#: Protocol to option type to (name, how the value is said).  A magic number is said, it
#: is no secret; an option whose value is no business of a report says its name alone.
OPTIONS: Final[MappingProxyType[int, dict[int, tuple[str, Say]]]] = MappingProxyType({
    wire.LCP: {
        1: ("MRU", _number), 2: ("ACCM", _hex), 3: ("authentication", authentication_name),
        4: ("quality", _compression), 5: ("magic", _hex), 7: ("PFC", _nothing),
        8: ("ACFC", _nothing), 9: ("FCS alternatives", _hex), 13: ("callback", _callback),
        15: ("compound frames", _nothing), 17: ("MRRU", _number),
        18: ("short sequence numbers", _nothing), 19: ("endpoint", _nothing),
        23: ("link discriminator", _number),
    },
    wire.IPCP: {
        1: ("addresses", _hex), 2: ("header compression", _compression),
        3: ("address", address), 4: ("mobile address", address),
        129: ("DNS", address), 130: ("WINS", address), 131: ("second DNS", address),
        132: ("second WINS", address),
    },
    wire.IPV6CP: {1: ("interface", _interface), 2: ("header compression", _compression)},
    wire.CCP: {
        0: ("proprietary", _nothing), 1: ("Predictor 1", _nothing), 2: ("Predictor 2", _nothing),
        17: ("Stac LZS", _nothing), 18: ("encryption", _mppe), 21: ("BSD compress", _nothing),
        24: ("Deflate (draft)", _nothing), 26: ("Deflate", _nothing),
    },
})  # fmt: skip


def option_text(protocol: int, option: wire.Option) -> tuple[str, str]:
    """Return an option's name and its value in words, which may be empty."""
    name, say = OPTIONS.get(protocol, {}).get(option.type, (f"option {option.type}", _hex))
    return name, say(option.value)
