"""A glimpse of a PPP frame: its protocol, and how it begins if that can be no secret.

Passwords, challenges and responses travel in protocols of authentication, but
also in pieces (multilink) and in what is only compressed; so what may be shown
is told, and all else is named and not shown.
"""

from __future__ import annotations

from typing import Any, Final

from pptp_nat.analysis import ppp_wire as wire
from pptp_nat.analysis.ppp_words import protocol_name

SHOWN: Final = 24  #: octets of the frame's information: an inner IP header and its ports
#: Protocols that hold no secret: IP, its compressed headers, what negotiates them, LCP, LQR.
#: Not the data of CCP: what is only compressed may be anything.
_HARMLESS: Final = frozenset((
    wire.IPV4, wire.IPV6, 0x002D, 0x002F, wire.IPCP, wire.IPV6CP, wire.CCP, wire.LCP, wire.LQR,
))  # fmt: skip


def glimpse(octets: bytes) -> dict[str, Any]:
    """Return the protocol and the beginning of the PPP frame in a GRE payload."""
    found = wire.frame(octets)
    if found is None:
        return {"protocol": None, "information": None}
    shown = found.protocol in _HARMLESS and not found.is_escaped
    return {
        "protocol": protocol_name(found.protocol),
        "information": found.information[:SHOWN].hex() if shown else None,
    }
