"""GRE of a capture: which call each packet belongs to, and who of it is told.

A number belongs to the call that showed it last; what came earlier than that belongs to
the call before.  GRE of no call is a stray.  Two strays in opposite directions of which
each acknowledges what the other has sent are a call that was up when the capture began.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis.gre_quality import GreQuality
from pptp_nat.analysis.model import GreFlow
from pptp_nat.analysis.packets import NO_COLUMNS, Columns, Evidence, GrePacket
from pptp_nat.analysis.ppp import Ppp
from pptp_nat.core.messages import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pptp_nat.analysis.model import Analysis, Call
    from pptp_nat.analysis.sorting import FlowKey, Window

_STRAYS: Final = 1000  #: flows of no call that are kept
_KEPT: Final = 32  #: packets of each that are kept whole
_EARLY: Final = 3.0  #: seconds by which GRE may precede the message that explains it

#: Source and destination, key.
Name = tuple[bytes, int]
