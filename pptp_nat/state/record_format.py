"""How records are laid out: kinds, bodies, and the tables that codes are places in.

Whoever changes anything here raises `VERSION`.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from pptp_nat.core.states import CallState, ControlState, End

VERSION: Final = 1
LONGEST: Final = 4 << 20  #: octets of a body; two histories at their largest setting

# Kinds.
LAST_ID, CONNECTION, POSITIONS, CLOSED, CALL, KEPT_BACK, TALLY, ASTRAY, HALF_OPEN, COUNTS = range(
    1, 11
)

CALL_STATES: Final = tuple(CallState)
CONTROL_STATES: Final = tuple(ControlState)
ENDS: Final = tuple(End)
PLACE_OF_STATE: Final = {state: place for place, state in enumerate(CALL_STATES)}
PASSIVE: Final = (None, "kernel_helper")

HEADER: Final = struct.Struct("!IIB")  # CRC-32, length of the body, kind
ID_BODY: Final = struct.Struct("!Q")
CONNECTION_BODY: Final = struct.Struct("!Q12s4s4sIBBBdd")
#: identity, last message, number of fresh numbers; of each stream flags, next, cut, floor, and
#: the lengths of head, overlays and history, which follow in this order
POSITIONS_BODY: Final = struct.Struct("!QdBBIBIHHIBIBIHHI")
NUMBERS_BODY: Final = struct.Struct("!BHH")
CALL_BODY: Final = struct.Struct("!QQBBB4idddQBdhBBH")
KEPT_BACK_BODY: Final = struct.Struct("!d4s4sH")
TALLY_BODY: Final = struct.Struct("!4s4sHQQ")
HALF_OPEN_BODY: Final = struct.Struct("!12sI")

NEVER: Final = math.nan  # a time that is not there
NO_ADDRESS: Final = bytes(4)
NO_CODES: Final = (-1, 0, 0, 0)
