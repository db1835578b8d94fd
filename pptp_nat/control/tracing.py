"""What ``pptp-nat debug`` says of GRE packets: headers, order, and a little of the data.

Nothing here looks at a socket.  `Trace` is told of legs and packets and returns
records, which have the shape of the API's events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pptp_nat.core.packet import enhanced_gre
from pptp_nat.errors import WireError

Glimpse = Callable[[bytes], Mapping[str, Any]]
_RANGE: Final = 1 << 32


@dataclass(slots=True)
class _Way:
    """One leg and how far its sequence numbers have come."""

    call: int
    to: str
    key: int  #: as it arrives
    new_key: int  #: as it leaves
    next: int | None = None  #: the sequence number that must come
    packets: int = 0


class Trace:
    """Tells of the packets on some legs.

    Args:
        masks: of `pptp_nat.control.subscription.MASKS`.
        rate: records per second; what is beyond is counted.
        glimpse: says what there is to say of a PPP frame; needed for the mask ``data``.
    """

    def __init__(
        self, masks: Iterable[str], rate: int, glimpse: Glimpse = lambda _octets: {}
    ) -> None:
        self._masks = frozenset(masks)
        self._glimpse = glimpse
        self._rate = rate
        self._tokens = float(rate)
        self._filled: float | None = None
        self._ways: dict[tuple[str, str, int], _Way] = {}
        self.suppressed = 0  #: records left out since the last that was told

    @property
    def arriving(self) -> list[tuple[str, str, int]]:
        """What arrives on the legs: source, destination, key."""
        return list(self._ways)

    def follow(self, legs: Iterable[Mapping[str, Any]]) -> None:
        """Follow these *legs*, as the API has them, and no others; numbers go on."""
        before, self._ways = self._ways, {}
        for leg in legs:
            arrives = leg["arrives"]["src"], leg["arrives"]["dst"], leg["arrives"]["key"]
            way = before.get(arrives)
            if way is None or way.call != leg["call"]:
                way = _Way(leg["call"], leg["to"], arrives[2], leg["leaves"]["key"])
            self._ways[arrives] = way

    def packet(self, octets: bytes, interface: str, now: float) -> list[dict[str, Any]]:
        """Return what there is to say of an IP packet that came at *now*, Unix seconds.

        Args:
            octets: its beginning.
            interface: where it arrived.
            now: Unix seconds.
        """
        size = (octets[0] & 0x0F) * 4 if octets else 0
        total = int.from_bytes(octets[2:4], "big")
        whole = octets[:total].ljust(total, b"\0")  # what was cut off is not looked at
        source, destination = (".".join(map(str, octets[at : at + 4])) for at in (12, 16))
        said: dict[str, Any] | None
        try:
            header = enhanced_gre(whole, size)
        except WireError as error:
            key = int.from_bytes(octets[size + 6 : size + 8], "big")
            way = self._ways.get((source, destination, key))
            said = None if way is None else {"problem": error.reason}
        else:
            if header is None:
                return []
            way = self._ways.get((source, destination, header.key))
            said = {
                "seq": header.sequence, "ack": header.acknowledgement,
                "payload": header.payload_length,
            }  # fmt: skip
        if way is None or said is None:
            return []
        way.packets += 1
        common = {
            "time": now, "call": way.call, "to": way.to, "interface": interface,
            "src": source, "dst": destination, "key": way.key, "forwarded": way.new_key,
        }  # fmt: skip
        records = []
        if "gre" in self._masks or ("problem" in said and "seq" in self._masks):
            records.append({"type": "gre", **common, "bytes": total, **said})
        if "seq" in self._masks and said.get("seq") is not None:
            order = _order(way, said["seq"])
            if order is not None:
                records.append({"type": "seq", **common, "seq": said["seq"], **order})
        if "data" in self._masks and said.get("payload"):
            assert header is not None
            begin = size + header.size
            there = octets[begin : begin + header.payload_length]
            records.append({"type": "data", **common, "seq": said["seq"], **self._glimpse(there)})
        return self._admitted(records, now)

    def _admitted(self, records: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
        """Return the records that the rate lets through, after how many it did not."""
        if self._filled is not None:
            grown = max(0.0, now - self._filled) * self._rate
            self._tokens = min(self._rate, self._tokens + grown)
        self._filled = now
        admitted: list[dict[str, Any]] = []
        for each in records:
            if self._tokens < 1:
                self.suppressed += 1
                continue
            self._tokens -= 1
            if self.suppressed:
                admitted.append({"type": "suppressed", "time": now, "count": self.suppressed})
                self.suppressed = 0
            admitted.append(each)
        return admitted


def _order(way: _Way, sequence: int) -> dict[str, Any] | None:
    """Say what is odd about a sequence number; None if it is the one that must come."""
    expected, ahead = way.next, 0
    if expected is not None:
        ahead = (sequence - expected) % _RANGE
        if ahead >= _RANGE // 2:
            return {"order": "late or repeated", "expected": expected, "by": _RANGE - ahead}
    way.next = (sequence + 1) % _RANGE
    if expected is None:
        return {"order": "first", "expected": None, "by": 0}
    return {"order": "gap", "expected": expected, "by": ahead} if ahead else None
