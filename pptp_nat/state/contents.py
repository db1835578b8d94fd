"""What records say together: the latest of each connection, call and number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pptp_nat.core.bindings import Pair
from pptp_nat.core.messages import MessageType
from pptp_nat.core.snapshot import CallRecord, ConnectionRecord, KeptBack, Positions, Snapshot
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Address

_make: Final = tuple.__new__  # a NamedTuple's constructor without its detour over Python


class LegCount(NamedTuple):
    """GRE of a leg that nobody else counts: source, destination and key of what arrives."""

    source: Address
    destination: Address
    key: int
    packets: int
    octets: int


@dataclass(slots=True)
class Contents:
    """What records say together."""

    last_id: int = 0
    connections: dict[int, ConnectionRecord] = field(default_factory=dict)
    positions: dict[int, Positions] = field(default_factory=dict)
    calls: dict[int, CallRecord] = field(default_factory=dict)
    kept_back: dict[tuple[Pair, int], float] = field(default_factory=dict)
    carried: dict[tuple[Address, Address, int], LegCount] = field(default_factory=dict)
    half_open: dict[bytes, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    messages: dict[tuple[MessageType | None, bool], int] = field(default_factory=dict)
    ends: dict[End, int] = field(default_factory=dict)
    whole: bool = False  #: all that a translator knew, at one moment
    astray: bool = False  #: octets have gone by since that nobody has read

    def let_go(self) -> None:
        """Forget connections and calls, which are many, when they are in a snapshot."""
        self.connections, self.positions, self.calls = {}, {}, {}

    def snapshot(self, now: float) -> Snapshot:
        """Return all of it but what is over at *now*, and of two with one flow the later one."""
        connections, positions = self.connections, self.positions
        latest = {connections[number].key: number for number in sorted(connections)}
        ours = set(latest.values())
        return Snapshot(
            self.last_id,
            [
                each if each.id not in positions
                else _make(ConnectionRecord, (*each[:-1], positions[each.id]))
                for each in map(connections.__getitem__, latest.values())
            ],
            [
                each
                for each in self.calls.values()
                if each.connection in ours
                and (each.state is not CallState.GONE or (each.due or 0.0) > now)
            ],
            [
                KeptBack(until, pair, number)
                for (pair, number), until in self.kept_back.items()
                if until > now
            ],
            self.half_open, self.counts, self.messages, self.ends,
        )  # fmt: skip
