"""What a subscriber wants to hear, for how long, and how much of it.

Debug types are heard only by those who name them, and only so many per second:
what is beyond is counted and told (`Subscription.admits`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pptp_nat.errors import UsageError
from pptp_nat.tables.table import Filter

if TYPE_CHECKING:
    from collections.abc import Mapping

#: All types of events, those of calls first.
EVENT_TYPES: Final = (
    "new", "update", "destroy", "connection", "refused", "oddity", "message",
)  # fmt: skip
DEBUG_TYPES: Final = frozenset(("oddity", "message"))
#: Classes of messages that ``pptp-nat debug`` can show.
MASKS: Final = ("control", "gre", "seq", "data")
RATE: Final = 1000  #: debug events per second, unless a subscriber says otherwise
MOST_RATE: Final = 100_000
LONGEST: Final = 86_400.0  #: seconds that a subscription with an end may last

_ARGUMENTS: Final = ("types", "call", "connection", "client", "server", "rate", "seconds")


class About(NamedTuple):
    """What an event is about, known before the event is made."""

    type: str
    call: int | None
    connection: int
    hosts: tuple[str, str]  #: both ends' own addresses


class Subscription:
    """What one subscriber hears.

    Args:
        number: of the request.
        types: of events; empty: all but the debug types.
        which: of `call`, `client` and `server`, what events must be about.
        connection: events must be about this control connection.
        rate: debug events per second.
        until: monotonic seconds; None: as long as the subscriber likes.
        now: monotonic seconds.
    """

    __slots__ = (
        "_connection", "_filled", "_rate", "_tokens", "_which", "number", "suppressed", "types",
        "until",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        types: frozenset[str],
        which: Filter,
        connection: int | None,
        rate: int,
        until: float | None,
        now: float,
    ) -> None:
        self.number = number
        self.types = types
        self.until = until
        self.suppressed = 0  #: debug events left out since the last that was told
        self._which = which
        self._connection = connection
        self._rate = rate
        self._tokens = float(rate)
        self._filled = now

    @classmethod
    def of(cls, number: int, arguments: Mapping[str, object], now: float) -> Subscription:
        """Return what a ``subscribe`` request asks for.

        Raises:
            UsageError: it asks for what there is not.
        """
        unknown = sorted(set(arguments) - set(_ARGUMENTS))
        if unknown:
            raise UsageError(
                f"{unknown[0]}: no such argument; there are {', '.join(_ARGUMENTS)}"
            )
        which = Filter.of(
            {name: arguments[name] for name in ("call", "client", "server") if name in arguments}
        )
        seconds = _number(arguments, "seconds", LONGEST)
        return cls(
            number,
            _types(arguments.get("types") or []),
            which,
            _whole(arguments, "connection", 1 << 63),
            _whole(arguments, "rate", MOST_RATE) or RATE,
            None if seconds is None else now + seconds,
            now,
        )

    def hears(self, kind: str) -> bool:
        """Whether events of type *kind* are wanted, whatever they are about."""
        return kind in self.types if self.types else kind not in DEBUG_TYPES

    def wants(self, about: About) -> bool:
        """Whether an event about this is wanted.

        One that is about a control connection and none of its calls is about
        every call that is named together with that connection.
        """
        which = self._which
        return (
            self.hears(about.type)
            and self._connection in (None, about.connection)
            and (
                which.call in (None, about.call)
                or (about.call is None and self._connection is not None)
            )
            and (which.client is None or which.client in about.hosts)
            and (which.server is None or which.server in about.hosts)
        )

    def admits(self, kind: str, now: float) -> bool:
        """Whether there is room for one more event now; one that there is not is counted."""
        if kind not in DEBUG_TYPES:
            return True
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1:
            self.suppressed += 1
            return False
        self._tokens -= 1
        return True


def _types(types: object) -> frozenset[str]:
    if not isinstance(types, list) or not all(isinstance(each, str) for each in types):
        raise UsageError('types: a list of names, such as ["new","destroy"]')
    unknown = sorted(set(types) - set(EVENT_TYPES))
    if unknown:
        raise UsageError(f"types: no {unknown[0]!r}; there are {', '.join(EVENT_TYPES)}")
    return frozenset(types)


def _whole(arguments: Mapping[str, object], name: str, most: int) -> int | None:
    value = _number(arguments, name, most)
    if value is not None and type(value) is not int:
        raise UsageError(f"{name}: a whole number")
    return value


def _number(arguments: Mapping[str, object], name: str, most: float) -> Any:  # noqa: ANN401
    if name not in arguments:
        return None
    value = arguments[name]
    if type(value) not in (int, float) or not 0 < value <= most:  # type: ignore[operator]
        raise UsageError(f"{name}: a number above 0 and up to {most:g}")
    return value
