"""What a call knows, in one int: of a hundred thousand calls each object besides counts.

From the lowest bits on:

    numbers  4 x 17    own of the originator, own of the responder, seen of the one, seen of
                       the other; each one higher than it is, so that 0 is `NOBODY`
    roles    2 x 1     who asked, who is PNS
    times    2 x 54    when it began, since when it is up; 0: it never was
    end      4         why it is gone; 0: it is not
    codes    1 + 48    of the message that refused or ended it: whether there is one, its type,
                       result, error and cause

While nothing is known of its end that is six digits of CPython's, 48 octets of memory.
A time is a whole number of 2**-20 s, about a microsecond and never later than it was: as a
float it is exact, so it stays what it is however often it is written and read.
"""

from __future__ import annotations

from typing import Final

from pptp_nat.core.states import End

BITS: Final = 17  #: of a number
MASK: Final = (1 << BITS) - 1
SEEN: Final = 2 * BITS  #: where those begin that the other party sees
ROLES: Final = 4 * BITS
LASTING: Final = -1 << ROLES  #: a mask: what is not numbers
_TIME_BITS: Final = 54
_TIME: Final = (1 << _TIME_BITS) - 1
_CREATED: Final = ROLES + 2
_UP: Final = _CREATED + _TIME_BITS
_END: Final = _UP + _TIME_BITS
_CODES: Final = _END + 4
_ENDLESS: Final = ~(15 << _END)  #: a mask
_CODELESS: Final = (1 << _CODES) - 1  #: a mask
_TICKS: Final = 1 << 20  #: of a second
_ZERO: Final = 1 << _TIME_BITS - 1  #: what stands for 0 s
_FAR: Final = float((_ZERO - 1) // _TICKS)  #: seconds, 272 years
_ENDS: Final = (None, *End)
_PLACES: Final = {end: place for place, end in enumerate(_ENDS)}

Codes = tuple[int, int, int, int]  #: type, result, error and cause
Over = tuple[End | None, Codes | None]
NOT_OVER: Final[Over] = (None, None)


def begun(requester: int, pns: int, now: float) -> int:
    """Return the bits of a call that begins *now*, in monotonic seconds."""
    return _ticks(now) << _CREATED | (requester | pns << 1) << ROLES


def _ticks(at: float) -> int:
    if -_FAR < at < _FAR:
        return int(at * _TICKS // 1) + _ZERO
    # What was on record may be anything; no call is that old.
    return int(_FAR if at > 0 else -_FAR) * _TICKS + _ZERO


def lasting(bits: int) -> tuple[int, int, int, int, int, int, float]:
    """Return own, own, seen, seen, who asked, who is PNS, and when it began."""
    return (
        (bits & MASK) - 1, (bits >> BITS & MASK) - 1,
        (bits >> SEEN & MASK) - 1, (bits >> SEEN + BITS & MASK) - 1,
        bits >> ROLES & 1, bits >> ROLES + 1 & 1, ((bits >> _CREATED & _TIME) - _ZERO) / _TICKS,
    )  # fmt: skip


def created(bits: int) -> float:
    """Return when the call began."""
    return ((bits >> _CREATED & _TIME) - _ZERO) / _TICKS


def up_since(bits: int) -> float | None:
    """Return since when it is or was up."""
    ticks = bits >> _UP & _TIME
    return (ticks - _ZERO) / _TICKS if ticks else None


def with_up_since(bits: int, at: float | None) -> int:
    """Return *bits* with another time since when it is up."""
    return bits & ~(_TIME << _UP) | (0 if at is None else _ticks(at)) << _UP


def over(bits: int) -> Over:
    """Return why it is gone, and the codes of the message that says so."""
    rest = bits >> _END
    if not rest:
        return NOT_OVER
    codes = rest >> 4
    if codes:
        return _ENDS[rest & 15], (
            codes >> 1 & 0xFFFF, codes >> 17 & 0xFF, codes >> 25 & 0xFF, codes >> 33
        )  # fmt: skip
    return _ENDS[rest & 15], None


def with_end(bits: int, end: End | None) -> int:
    """Return *bits* with another reason why it is gone."""
    return bits & _ENDLESS | _PLACES[end] << _END


def with_codes(bits: int, codes: Codes | None) -> int:
    """Return *bits* with other codes of the message that says so."""
    bits &= _CODELESS
    if codes is None:
        return bits
    kind, result, error, cause = codes
    return bits | (1 | kind << 1 | result << 17 | error << 25 | cause << 33) << _CODES
