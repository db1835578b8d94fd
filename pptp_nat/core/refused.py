"""Calls that are refused in words: their requests travel on, their replies say no.

A new call may find no number or no room.  To drop its request would hold up
everything behind it on the control connection, echoes of living calls among it;
to answer for the called host would put octets into a TCP stream.  But nothing
forbids the called host to answer::

    the request     goes on with `NOT_A_NUMBER`, which no call is ever given
    the reply       comes back with the caller's own number again, and with
                    Result Code 2 (General Error), Error Code 4 (No-Resource)

So the caller hears within one round trip that there is no room.  The called host
believes in a call that no GRE reaches, as after a caller's crash: it ends it
itself, or with the control connection, which nearly every caller closes now.
A reply that finds no number for its own sender is turned into a refusal likewise.

Replies come in the order of the requests, for which only one number is there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pptp_nat.core.tuples import Party

NOT_A_NUMBER: Final = 0  #: what `pptp_nat.core.bindings` never gives
SAYS_NO: Final = 2 << 8 | 4  #: Result Code and Error Code (RFC 2637 sections 2.8, 2.10, 2.16)
MOST: Final = 64  #: requests of one connection that wait for their replies


class Asked(NamedTuple):
    """A refused request whose reply has not come."""

    party: Party  #: who asked
    own: int  #: the number in its request
    seen: int  #: the number in the request that travelled on


class Refused:
    """What one connection has had refused."""

    __slots__ = ("replies", "requests", "waiting")

    def __init__(self) -> None:
        #: the requests that are under way, by sender
        self.requests: list[Asked | None] = [None, None]
        #: whether the reply that is under way is to say no, by sender
        self.replies = [False, False]
        self.waiting: list[Asked] = []  #: oldest first

    def forget(self, sender: Party) -> None:
        """Let go of what *sender* was saying: its end will not be seen."""
        self.requests[sender] = None
        self.replies[sender] = False

    def ask(self, party: Party, own: int, seen: int) -> None:
        """Note a request of *party* that goes on in vain."""
        self.requests[party] = Asked(party, own, seen)

    def asked(self, party: Party) -> bool:
        """Whether the request of *party* that is whole now is one of these; once."""
        asked, self.requests[party] = self.requests[party], None
        if asked is None:
            return False
        self.waiting.append(asked)
        return True

    def own(self, party: Party, seen: int) -> int | None:
        """Return the number with which *party* asked, by the number that went on."""
        return next((a.own for a in self.waiting if (a.party, a.seen) == (party, seen)), None)

    def seen(self, party: Party, own: int) -> int | None:
        """Return the number that went on, by the number with which *party* asked."""
        return next((a.seen for a in self.waiting if (a.party, a.own) == (party, own)), None)

    def answered(self, party: Party, seen: int) -> None:
        """Take note of the reply to the oldest request of *party* with that number."""
        for at, asked in enumerate(self.waiting):
            if (asked.party, asked.seen) == (party, seen):
                del self.waiting[at]
                return

    def says_no(self, sender: Party) -> bool:
        """Whether the reply of *sender* that is whole now was made a refusal; once."""
        said, self.replies[sender] = self.replies[sender], False
        return said
