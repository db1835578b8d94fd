"""What ``pptp-nat top`` shows and how it answers to keys, without a terminal.

`rated` makes rates of two lists; `Top` holds what the reader has chosen and makes
lines for a screen of any size.  Whoever owns a terminal feeds it and paints them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from socket import inet_aton
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pptp_nat.tables.table import CallRow, Count, StatusRow

_HELP: Final = "q quit  / filter  < > sort by  r reverse  space pause  + - pace  arrows, PgUp, PgDn"
_UNITS: Final = ("", "k", "M", "G", "T")
FASTEST: Final = 0.5  #: seconds between two looks
SLOWEST: Final = 60.0
_SAME: Final = 0.1  #: seconds by which two counts of one moment may seem to differ


class Rate(NamedTuple):
    """GRE in one direction, per second; None while there is nothing to compare with."""

    packets: float | None
    octets: float | None


class Rated(NamedTuple):
    """A call and its rates."""

    row: CallRow
    to_remote: Rate
    to_inside: Rate

    @property
    def octets(self) -> float:
        """Both ways together, per second."""
        return (self.to_remote.octets or 0.0) + (self.to_inside.octets or 0.0)


class Seen(NamedTuple):
    """One look at the daemon, and what it showed."""

    at: float  #: when GRE was counted, monotonic seconds
    wall: float  #: when it answered, Unix seconds
    status: StatusRow
    calls: Sequence[CallRow]
    missing: str = ""  #: whose calls are not among these, and why


_UNKNOWN: Final = Rate(None, None)


def rated(before: Seen | None, now: Seen) -> list[Rated]:
    """Return the calls of *now* with their rates since *before*.

    A call that is new, or whose counts are lower than they were, has none; neither
    has any after the daemon was started anew, for its ids begin again.
    """
    if before is None or before.status.started != now.status.started or now.at <= before.at:
        return [Rated(row, _UNKNOWN, _UNKNOWN) for row in now.calls]
    earlier = {row.id: row for row in before.calls}
    seconds = now.at - before.at
    return [
        Rated(
            row,
            _rate(was.to_remote, row.to_remote, seconds),
            _rate(was.to_inside, row.to_inside, seconds),
        )
        if (was := earlier.get(row.id)) is not None else Rated(row, _UNKNOWN, _UNKNOWN)
        for row in now.calls
    ]  # fmt: skip


def _rate(before: Count, now: Count, seconds: float) -> Rate:
    if now.packets < before.packets or now.octets < before.octets:
        return _UNKNOWN
    return Rate((now.packets - before.packets) / seconds, (now.octets - before.octets) / seconds)


class Style(enum.Enum):
    """How a line is painted."""

    PLAIN = "plain"
    BOLD = "bold"
    TITLES = "titles"  #: of the columns
    ALERT = "alert"


class Line(NamedTuple):
    """One line of the screen; never wider than the screen."""

    text: str
    style: Style = Style.PLAIN


class Column(NamedTuple):
    """A column: what it shows, what it sorts by, and how dear it is where room is short."""

    title: str
    width: int
    show: Callable[[Rated, float], str]
    order: Callable[[Rated], object]
    rank: int  #: those of the lowest ranks are shown first
    left: bool = False  #: aligned


def _unknown_last(value: float | None) -> float:
    return -1.0 if value is None else value


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


COLUMNS: Final = (
    Column("ID", 7, lambda r, _: str(r.row.id), lambda r: r.row.id, 7),
    Column("STATE", 9, lambda r, _: r.row.state, lambda r: r.row.state, 1, left=True),
    Column("CLIENT", 15, lambda r, _: r.row.inside.address,
           lambda r: inet_aton(r.row.inside.address), 0, left=True),
    Column("CALL", 5, lambda r, _: _number(r.row.inside.call_id),
           lambda r: _unknown_last(r.row.inside.call_id), 8),
    Column("SEEN", 5, lambda r, _: _number(r.row.external.call_id),
           lambda r: _unknown_last(r.row.external.call_id), 8),
    Column("SERVER", 15, lambda r, _: r.row.remote.address,
           lambda r: inet_aton(r.row.remote.address), 2, left=True),
    Column("PEER", 5, lambda r, _: _number(r.row.remote.call_id),
           lambda r: _unknown_last(r.row.remote.call_id), 8),
    Column("AGE", 6, lambda r, now: age(now - (r.row.up_since or r.row.created)),
           lambda r: -(r.row.up_since or r.row.created), 5),
    Column("OUT p/s", 7, lambda r, _: short(r.to_remote.packets),
           lambda r: _unknown_last(r.to_remote.packets), 6),
    Column("OUT o/s", 7, lambda r, _: short(r.to_remote.octets),
           lambda r: _unknown_last(r.to_remote.octets), 3),
    Column("IN p/s", 7, lambda r, _: short(r.to_inside.packets),
           lambda r: _unknown_last(r.to_inside.packets), 6),
    Column("IN o/s", 7, lambda r, _: short(r.to_inside.octets),
           lambda r: _unknown_last(r.to_inside.octets), 3),
    Column("BOTH", 7, lambda r, _: short(r.octets), lambda r: r.octets, 9),
    Column("QUIET", 6, lambda r, now: age(None if r.row.last_seen is None else
                                          now - r.row.last_seen),
           lambda r: -(r.row.last_seen or 0.0), 10),
)  # fmt: skip
_BOTH: Final = next(n for n, column in enumerate(COLUMNS) if column.title == "BOTH")


def short(value: float | None) -> str:
    """Return a rate in six characters at most: ``0``, ``9.5``, ``950``, ``12.3k``, ``1.2G``."""
    if value is None:
        return "-"
    thousands = 0
    while value >= 999.5 and thousands < len(_UNITS) - 1:
        value /= 1000
        thousands += 1
    tenths = value < (99.95 if thousands else 9.95)
    text = f"{value:.1f}".removesuffix(".0") if tenths else f"{value:.0f}"
    return text + _UNITS[thousands]


def age(seconds: float | None) -> str:
    """Return a time in five characters at most: ``59s``, ``12m``, ``23h59``, ``99d``."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < 100:
        return f"{whole}s"
    if whole < 6000:
        return f"{whole // 60}m{whole % 60:02d}"
    if whole < 360_000:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d"


@dataclass(slots=True)
class Top:
    """What the reader has chosen, and what there is to show."""

    interval: float  #: seconds between two looks
    seen: Seen | None = None
    trouble: str | None = None  #: why there is nothing newer, or not all of it
    sort: int = _BOTH  #: in `COLUMNS`
    descending: bool = True
    filter: str = ""
    typing: bool = False  #: the filter is being typed
    paused: bool = False
    first: int = 0  #: the row at the top of the screen
    _rated: list[Rated] = field(default_factory=list)
    _page: int = 1

    def look(self, seen: Seen) -> None:
        """Take in what the daemon shows now."""
        self.trouble = seen.missing or None
        if self.paused:
            return
        before = self.seen
        if before is None or seen.status.started != before.status.started or (
            seen.at - before.at > _SAME
        ):
            self._rated = rated(before, seen)
            self.seen = seen
        else:  # many calls, whose counts are not read for every look: what is shown stays
            self.seen = seen._replace(at=before.at, calls=before.calls)

    def key(self, name: str) -> bool:
        """Do what a key says; whether to go on.

        Args:
            name: a character, or one of ``UP DOWN PAGEUP PAGEDOWN HOME END ENTER ESCAPE
                BACKSPACE``.
        """
        if self.typing:
            self._type(name)
        elif name in ("q", "Q"):
            return False
        elif name in _KEYS:
            _KEYS[name](self)
        return True

    def _type(self, name: str) -> None:
        if name in ("ENTER", "ESCAPE"):
            self.typing = False
            if name == "ESCAPE":
                self.filter = ""
        elif name == "BACKSPACE":
            self.filter = self.filter[:-1]
        elif len(name) == 1 and " " <= name <= "~":
            self.filter += name
        self.first = 0

    def scroll(self, rows: int) -> None:
        """Move the table by so many rows."""
        self.first = max(0, min(self.first + rows, len(self.shown()) - self._page))

    def by(self, step: int) -> None:
        """Sort by the column that is so many further right."""
        self.sort = (self.sort + step) % len(COLUMNS)

    def shown(self) -> list[Rated]:
        """Return the calls that pass the filter, in the order that was chosen."""
        chosen = [each for each in self._rated if self._passes(each)]
        chosen.sort(key=lambda each: each.row.id)
        column = COLUMNS[self.sort]
        chosen.sort(key=column.order, reverse=self.descending)  # type: ignore[arg-type]
        return chosen

    def _passes(self, each: Rated) -> bool:
        if not self.filter:
            return True
        row = each.row
        words = (
            row.state, row.inside.address, row.remote.address, row.external.address,
            *map(_number, (row.id, row.inside.call_id, row.external.call_id, row.remote.call_id)),
        )  # fmt: skip
        return all(
            any(wanted in word for word in words) for wanted in self.filter.lower().split()
        )

    def lines(self, width: int, height: int) -> list[Line]:
        """Return the screen, *height* lines of at most *width* characters."""
        rows = self.shown()
        head = self._head(rows)
        self._page = max(1, height - len(head) - 2)
        self.first = max(0, min(self.first, len(rows) - self._page))
        columns = _fitting(width)
        wall = 0.0 if self.seen is None else self.seen.wall
        body = [
            Line(_row(columns, [column.show(each, wall) for column in columns]))
            for each in rows[self.first : self.first + self._page]
        ]
        body += [Line("")] * (self._page - len(body))
        lines = [*head, self._titles(columns), *body, Line(_HELP)]
        return [Line(line.text[:width], line.style) for line in lines[:height]]

    def _head(self, rows: Sequence[Rated]) -> list[Line]:
        if self.seen is None:
            return [Line(self.trouble or "asking the daemon", Style.BOLD), Line("")]
        status, now = self.seen.status, self.seen.wall
        states = " ".join(f"{state}={n}" for state, n in sorted(status.calls.items()) if n)
        drops = sum(queue.dropped + queue.user_dropped for queue in status.queues)
        sums = [
            short(sum(getattr(rate, unit) or 0.0 for rate in rates))
            for rates in ([r.to_remote for r in rows], [r.to_inside for r in rows])
            for unit in Rate._fields
        ]
        told = f"filter {self.filter}_" if self.typing else f"filter {self.filter or '-'}"
        order = "down" if self.descending else "up"
        pause = "  PAUSED" if self.paused else ""
        return [
            Line(
                f"pptp-nat {status.version}  {status.datapath}  up {age(now - status.started)}  "
                f"calls {sum(status.calls.values())} {states}  "
                f"control connections {sum(status.connections.values())} "
                f"opaque={status.opaque} queue drops={drops}",
                Style.BOLD,
            ),
            Line(
                f"shown {len(rows)}  out {sums[0]} packets/s {sums[1]} octets/s  "
                f"in {sums[2]} packets/s {sums[3]} octets/s  every {self.interval:g} s{pause}"
            ),
            Line(
                self.trouble or f"sorted by {COLUMNS[self.sort].title} {order}  {told}",
                Style.ALERT if self.trouble else Style.PLAIN,
            ),
        ]

    def _titles(self, columns: Sequence[Column]) -> Line:
        chosen = COLUMNS[self.sort]
        marks = ["*" if column is chosen else "" for column in columns]
        titles = [mark + column.title for mark, column in zip(marks, columns, strict=True)]
        return Line(_row(columns, titles), Style.TITLES)

    def toggle(self, name: str) -> None:
        """Turn round what is called so."""
        setattr(self, name, not getattr(self, name))

    def pace(self, factor: float) -> None:
        """Look more seldom by so much."""
        self.interval = min(SLOWEST, max(FASTEST, self.interval * factor))


_KEYS: Final[Mapping[str, Callable[[Top], None]]] = {
    "/": lambda top: top.toggle("typing"),
    "f": lambda top: top.toggle("typing"),
    "<": lambda top: top.by(-1),
    ">": lambda top: top.by(1),
    "r": lambda top: top.toggle("descending"),
    " ": lambda top: top.toggle("paused"),
    "+": lambda top: top.pace(0.5),
    "-": lambda top: top.pace(2.0),
    "UP": lambda top: top.scroll(-1),
    "k": lambda top: top.scroll(-1),
    "DOWN": lambda top: top.scroll(1),
    "j": lambda top: top.scroll(1),
    "PAGEUP": lambda top: top.scroll(-top._page),  # noqa: SLF001  ours
    "PAGEDOWN": lambda top: top.scroll(top._page),  # noqa: SLF001
    "HOME": lambda top: top.scroll(-len(top.shown())),
    "END": lambda top: top.scroll(len(top.shown())),
}


def _fitting(width: int) -> list[Column]:
    """Return the columns that there is room for, the dearest first, in their order."""
    room, taken = width, set()
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        if column.width + 1 > room + 1:
            break
        room -= column.width + 1
        taken.add(column.title)
    return [column for column in COLUMNS if column.title in taken] or [COLUMNS[2]]


def _row(columns: Iterable[Column], words: Sequence[str]) -> str:
    return " ".join(
        f"{word:<{column.width}}" if column.left else f"{word:>{column.width}}"
        for column, word in zip(columns, words, strict=True)
    ).rstrip()
