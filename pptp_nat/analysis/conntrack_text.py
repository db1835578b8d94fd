"""Reads what conntrack-tools and the kernel print of a table, and what people paste of it.

Forms: ``conntrack -L`` with any of ``-o extended,id,ktimestamp,xml``, the lines of
``conntrack -E``, and /proc/net/nf_conntrack.  A line that is none of these is
counted, and the first one kept for a complaint; nothing raises.

Sources: conntrack-tools' libnetfilter_conntrack (snprintf_default.c,
snprintf_xml.c), the kernel's nf_conntrack_standalone.c (ct_seq_show).
"""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.analysis.conntrack_entries import GRE, TCP, Count, ListedEntry, Way, is_control

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

LONGEST: Final = 4096  #: characters of a line or a <flow> that are looked at; real ones take 700
SHOWN: Final = 60  #: characters of a line in a complaint

_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
_ADDRESS: Final = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")
_KEY: Final = "(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})"
_COUNT: Final = "([0-9]{1,20})"
_TUPLE: Final = (
    r"src=([^ ]+) dst=([^ ]+) "
    rf"(?:(?:sport|srckey)={_KEY} (?:dport|dstkey)={_KEY} )?"
    rf"(?:packets={_COUNT} bytes={_COUNT} )?"
)
#: to the end of the reply tuple, and behind it what mostly stands there
_ENTRY: Final = re.compile(
    r"(?:ipv4\s+2\s+)?(?:tcp|gre|unknown)\s+(6|47)\s+(?:([0-9]{1,20})\s+)?"
    r"(?:timeout=\d+, stream_timeout=\d+ )?(?:([A-Z][A-Z_0-9]*) )?"
    rf"{_TUPLE}(\[UNREPLIED\] )?{_TUPLE}()"
    r"(?:(\[ASSURED\] )?mark=([0-9]{1,20}) (?:helper=(\S+) )?use=\d+ $)?"
)
_BEHIND: Final = 17  #: the empty group behind the reply tuple
_OTHER: Final = re.compile(r"(?:ipv[46]\s+\d+\s+)?\S+\s+\d+ .*?src=\S+ dst=\S+ .*?src=\S+ dst=\S+ ")
_EVENT: Final = re.compile(r"(?:\[\d+\.\d+\s*\]\s*)?\[(NEW|UPDATE|DESTROY)\]\s*")
_TRAILER: Final = re.compile(r"conntrack v\S+ \(conntrack-tools\)")
_STARTED: Final = re.compile(r"\[start=([^]]+)\]")
_MARK: Final = re.compile(r" mark=(\S+)")
_HELPER: Final = re.compile(r" helper=(\S+)")
_ID: Final = re.compile(r" id=(\S+)")
_TAG: Final = re.compile(r"<(\w+)>([^<]*)</")
_LAYER4: Final = re.compile(r'<layer4 protonum="(\d+)"')
IPV4: Final = '<layer3 protonum="2"'  # AF_INET
_EVENT_XML: Final = re.compile(r'<flow[^>]* type="destroy"')


class _Tail(NamedTuple):
    """What stands behind the tuples of an entry, as `ListedEntry` has it."""

    assured: bool
    offloaded: bool
    mark: int
    helper: str
    identity: int | None
    started: float | None


class Listing:
    """Entries out of text, and what else was in it.

    Where the listing is one of events, what is left is what was there at its end.

    Args:
        ports: TCP ports of PPTP servers.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._found: dict[int, dict[Way, ListedEntry]] = {TCP: {}, GRE: {}}
        self.others = 0  #: entries of other protocols, ports and of IPv6
        self.garbage = 0  #: lines that are no entries
        self.first_garbage: tuple[int, str] | None = None  #: its line, and its printable start
        self._ports = frozenset(ports)
        self._marks = tuple(f"port={port}" for port in ports)

    @property
    def entries(self) -> list[ListedEntry]:
        """The control connections, then GRE; of an entry that is listed twice, the later line."""
        return [entry for of_protocol in self._found.values() for entry in of_protocol.values()]

    def read(self, lines: Iterable[str]) -> None:
        """Take in *lines*, of whatever form."""
        numbered = enumerate(lines, 1)
        for number, line in numbered:
            if "<" in line and line.lstrip().startswith("<"):
                self._read_xml(number, line, numbered)
                return
            self._line(number, line)

    # Lines.

    def _line(self, number: int, line: str) -> None:
        line = line[:LONGEST].strip() + " "
        event = None
        if line.startswith("["):
            event = _EVENT.match(line)
            line = line[event.end() :] if event else line
        read = _ENTRY.match(line)
        if read is None:
            self._note_other(number, line)
            return
        (
            protocol, left, state,
            source, destination, source_key, destination_key, packets, octets, unreplied,
            back_source, back_destination, back_source_key, back_key, back_packets, back_octets,
            _, said, marked, helper,
        ) = read.groups()  # fmt: skip
        original = _listed_way(source, destination, source_key, destination_key)
        reply = _listed_way(back_source, back_destination, back_source_key, back_key)
        if original is None or reply is None:
            self._note_other(number, line)
            return
        if marked is not None and event is None:
            rest, assured, offloaded, mark = "", said is not None, False, int(marked)
            identity = started = None
        else:
            rest = line[read.end(_BEHIND) - 1 :]
            if event is None and " use=" not in rest:  # each listing ends so: this line was cut
                self._note(number, line)
                return
            if event is not None and event[1] == "DESTROY":
                self._found[int(protocol)].pop(original, None)
                return
            assured, offloaded, mark, helper, identity, started = _tail(rest)
        # Without the constructors, which are functions of Python's: they take three times as long.
        self._keep(tuple.__new__(ListedEntry, (
            GRE if protocol == "47" else TCP,
            original,
            reply,
            state or "",
            None if left is None else int(left),
            unreplied is not None or "[UNREPLIED]" in rest,
            assured,
            offloaded,
            None if packets is None else tuple.__new__(Count, (int(packets), int(octets))),
            None
            if back_packets is None
            else tuple.__new__(Count, (int(back_packets), int(back_octets))),
            mark,
            helper or "",
            identity,
            started,
            number,
        )))  # fmt: skip

    def _keep(self, entry: ListedEntry) -> None:
        if entry[0] == GRE or is_control(entry, self._ports):
            self._found[entry[0]][entry[1]] = entry
        else:
            self.others += 1

    def _note_other(self, number: int, line: str) -> None:
        """Count an entry that is none of ours, or a line that is no entry after all."""
        if _OTHER.match(line):
            self.others += 1
        else:
            self._note(number, line)

    @property
    def complaint(self) -> str | None:
        """One line about what could not be read."""
        if self.first_garbage is None:
            return None
        number, words = self.first_garbage
        lines = "1 line is" if self.garbage == 1 else f"{self.garbage} lines are"
        return f"{lines} no conntrack entry; the first is line {number}: {words!r}"

    def _note(self, number: int, line: str) -> None:
        words = line.strip()
        if not words or _TRAILER.match(words):
            return
        self.garbage += 1
        if self.first_garbage is None:
            shown = "".join(each if each.isprintable() else "?" for each in words[:SHOWN])
            self.first_garbage = number, shown

    # XML.

    def _read_xml(self, number: int, line: str, numbered: Iterator[tuple[int, str]]) -> None:
        """Take in what stands between <flow> and </flow>, on one line or on several."""
        parts: list[str] = []
        held, began = 0, number
        while True:
            while "</flow>" in line:
                head, line = line.split("</flow>", 1)
                began = number if "<flow" in head else began
                self._flow(began, ("".join(parts) + head)[-LONGEST:])
                parts, held = [], 0
            if line.strip() and held < LONGEST:
                began = number if "<flow" in line else began
                parts.append(line)
                held += len(line)
            following = next(numbered, None)
            if following is None:
                rest = "".join(parts).partition("<flow")
                if rest[1]:  # the listing was cut
                    self._note(began, f"<flow{rest[2]}")
                return
            number, line = following

    def _flow(self, number: int, text: str) -> None:
        text = text[max(text.rfind("<flow"), 0) :]
        kind = _LAYER4.search(text)
        if kind is None or text.count(kind[0]) != 2:
            self._note(number, text)
            return
        protocol = kind[1]
        if protocol not in ("6", "47") or text.count(IPV4) != 2:
            self.others += 1
            return
        ways, rest = _metas(text)
        original, reply = _way(*ways[0][:4]), _way(*ways[1][:4])
        if original is None or reply is None:
            self._note(number, text)
            return
        if _EVENT_XML.match(text):
            self._found[int(protocol)].pop(original, None)
            return
        started = _number(rest.get("start"))
        self._keep(
            ListedEntry(
                int(protocol),
                original,
                reply,
                rest.get("state", ""),
                _number(rest.get("timeout")),
                "<unreplied/>" in text,
                "<assured/>" in text,
                "offload/>" in text,
                _count(*ways[0][4:]),
                _count(*ways[1][4:]),
                _number(rest.get("mark")) or 0,
                rest.get("helper", ""),
                _number(rest.get("id")),
                None if started is None else started / 1e9,
                number,
            )
        )


_XML_FIELDS: Final = {
    "src": 0, "dst": 1, "sport": 2, "srckey": 2, "dport": 3, "dstkey": 3, "packets": 4, "bytes": 5,
}  # fmt: skip
_Parts = list[str | None]


def _tail(rest: str) -> _Tail:
    """Return what stands behind the tuples of an entry, in whatever order."""
    mark = _MARK.search(rest)
    helper = _HELPER.search(rest) if " helper=" in rest else None
    identity = _ID.search(rest) if " id=" in rest else None
    started = _STARTED.search(rest) if " [start=" in rest else None
    return _Tail(
        "[ASSURED]" in rest,
        "OFFLOAD]" in rest,
        0 if mark is None else _number(mark[1]) or 0,
        "" if helper is None else helper[1],
        None if identity is None else _number(identity[1]),
        None if started is None else _unix(started[1]),
    )


def _metas(text: str) -> tuple[tuple[_Parts, _Parts], dict[str, str]]:
    """Return the fields of both ways, in the order of `_TUPLE`, and all others by name."""
    ways: tuple[_Parts, _Parts] = ([None] * 6, [None] * 6)
    rest: dict[str, str] = {}
    at = -1
    for name, value in _TAG.findall(text):
        index = _XML_FIELDS.get(name)
        if index is None:
            rest[name] = value
            continue
        at += name == "src"
        if 0 <= at < 2:
            ways[at][index] = value
    return ways, rest


def _way(
    source: str | None, destination: str | None, source_key: str | None, key: str | None
) -> Way | None:
    """Return the way of source, destination and keys; None where the addresses are not IPv4."""
    one, other = _address(source), _address(destination)
    if one is None or other is None:
        return None
    return Way(one, other, _number(source_key), _number(key))


@functools.lru_cache(1 << 16)
def _address(text: str | None) -> str | None:
    """Return an IPv4 address, each time the very same object: it is hashed many times."""
    return None if text is None or _ADDRESS.fullmatch(text) is None else text


def _listed_way(
    source: str, destination: str, source_key: str | None, key: str | None
) -> Way | None:
    """Return the way of what matches `_TUPLE`; None where the addresses are not IPv4."""
    one, other = _address(source), _address(destination)
    if one is None or other is None:
        return None
    if source_key is None or key is None:
        return Way(one, other, None, None)
    return tuple.__new__(Way, (
        one,
        other,
        int(source_key, 16 if source_key[1:2] == "x" else 10),
        int(key, 16 if key[1:2] == "x" else 10),
    ))  # fmt: skip


def _count(packets: str | None, octets: str | None) -> Count | None:
    if packets is None or octets is None:
        return None
    return Count(_number(packets) or 0, _number(octets) or 0)


def _number(text: str | None) -> int | None:
    """Return a number in decimal or as 0x...; None for anything else."""
    if text is None or len(text) > 20:
        return None
    try:
        return int(text, 16 if text[:2] == "0x" else 10)
    except ValueError:
        return None


def _unix(written: str) -> float | None:
    """Return Unix seconds of what ctime(3) wrote, in the local time zone."""
    try:
        return time.mktime(time.strptime(written, "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError):
        return None
