"""What a Cause Code says, in words.

RFC 2637 leaves the code to the kind of line behind the PAC and names one kind:
for ISDN it is the cause value of ITU-T Q.931, whose numbers Q.850 lists (sections
2.8 and 2.13: "For ISDN calls it is the Q.931 cause code").  Modems dialled by
V.25 have no numbers of their own there.  PACs without a line (every VPN server)
send 0, or borrow a number from this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# fmt: off
CAUSES: Final[Mapping[int, str]] = MappingProxyType({
    1: "unassigned number", 2: "no route to transit network", 3: "no route to destination",
    6: "channel unacceptable", 7: "call delivered in an established channel",
    16: "normal clearing", 17: "user busy", 18: "no user responding", 19: "no answer from user",
    20: "subscriber absent", 21: "call rejected", 22: "number changed",
    26: "not the user selected", 27: "destination out of order", 28: "invalid number format",
    29: "facility rejected", 30: "answer to a status enquiry", 31: "normal, unspecified",
    34: "no circuit available", 38: "network out of order", 41: "temporary failure",
    42: "switching equipment congested", 43: "access information discarded",
    44: "requested circuit not available", 47: "resource unavailable",
    49: "quality of service not available", 50: "facility not subscribed",
    57: "bearer capability not authorized", 58: "bearer capability not available now",
    63: "service or option not available", 65: "bearer capability not implemented",
    66: "channel type not implemented", 69: "facility not implemented",
    70: "restricted digital bearer only", 79: "service or option not implemented",
    81: "invalid call reference", 82: "no such channel", 83: "suspended call has another identity",
    84: "call identity in use", 85: "no call suspended", 86: "call of that identity is cleared",
    88: "incompatible destination", 91: "invalid transit network", 95: "invalid message",
    96: "mandatory element missing", 97: "message type unknown",
    98: "message not for this call state", 99: "element unknown", 100: "invalid element contents",
    101: "message not compatible with call state", 102: "timer expired", 111: "protocol error",
    127: "interworking, unspecified",
})
# fmt: on
