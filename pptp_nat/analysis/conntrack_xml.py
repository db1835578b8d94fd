"""Conntrack entries as XML, ``conntrack -L -o xml``: a <flow> each, on one line or on several.

Source: conntrack-tools' libnetfilter_conntrack (snprintf_xml.c).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis import conntrack_fields as fields
from pptp_nat.analysis.conntrack_entries import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pptp_nat.analysis.conntrack_entries import ListedEntry

LONGEST: Final = 4096  #: characters of a <flow> that are looked at; real ones take 900
_TAG: Final = re.compile(r"<(\w+)>([^<]*)</")
_LAYER4: Final = re.compile(r'<layer4 protonum="(\d+)"')
_IPV4: Final = '<layer3 protonum="2"'  # AF_INET
_ENDED: Final = re.compile(r'<flow[^>]* type="destroy"')
_FIELDS: Final = {
    "src": 0, "dst": 1, "sport": 2, "srckey": 2, "dport": 3, "dstkey": 3, "packets": 4, "bytes": 5,
}  # fmt: skip
_Parts = list[str | None]


def flows(numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield what begins with <flow, each with its line; what was cut has no </flow> at its end.

    Args:
        numbered: lines, or pieces of them, with their numbers.
    """
    parts: list[str] = []
    held = began = 0
    for number, piece in numbered:
        line = piece
        while "</flow>" in line:
            head, line = line.split("</flow>", 1)
            began = number if "<flow" in head else began
            text = ("".join(parts) + head)[-LONGEST:]
            yield began, f"{text[max(text.rfind('<flow'), 0) :]}</flow>"
            parts, held = [], 0
        if line.strip() and held < LONGEST:
            began = number if "<flow" in line else began
            parts.append(line)
            held += len(line)
    _, cut, rest = "".join(parts).partition("<flow")
    if cut:
        yield began, cut + rest


def is_other(flow: str) -> bool | None:
    """Whether *flow* is of another protocol than TCP and GRE over IPv4; None: it is no entry."""
    kind = _LAYER4.search(flow)
    if kind is None or flow.count(kind[0]) != 2:
        return None
    return kind[1] not in ("6", "47") or flow.count(_IPV4) != 2


def has_ended(flow: str) -> bool:
    """Whether *flow* is the event of an entry's end."""
    return _ENDED.match(flow) is not None


def read_flow(flow: str, line: int) -> ListedEntry | None:
    """Return the entry of TCP or GRE that *flow* is; None where its addresses are not IPv4."""
    kind = _LAYER4.search(flow)
    ways, rest = _metas(flow)
    original, reply = fields.way(*ways[0][:4]), fields.way(*ways[1][:4])
    if kind is None or original is None or reply is None:
        return None
    started = fields.number(rest.get("start"))
    return listed(
        int(kind[1]),
        original,
        reply,
        (fields.count(*ways[0][4:]), fields.count(*ways[1][4:])),
        state=rest.get("state", ""),
        seconds_left=fields.number(rest.get("timeout")),
        unreplied="<unreplied/>" in flow,
        assured="<assured/>" in flow,
        offloaded="offload/>" in flow,
        mark=fields.number(rest.get("mark")) or 0,
        helper=rest.get("helper", ""),
        identity=fields.number(rest.get("id")),
        started=None if started is None else started / 1e9,
        line=line,
    )


def _metas(flow: str) -> tuple[tuple[_Parts, _Parts], dict[str, str]]:
    """Return the fields of both ways, in the order of `_FIELDS`, and all others by name."""
    ways: tuple[_Parts, _Parts] = ([None] * 6, [None] * 6)
    rest: dict[str, str] = {}
    at = -1
    for name, value in _TAG.findall(flow):
        index = _FIELDS.get(name)
        if index is None:
            rest[name] = value
            continue
        at += name == "src"
        if 0 <= at < 2:
            ways[at][index] = value
    return ways, rest
