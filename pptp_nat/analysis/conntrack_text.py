"""Reads what conntrack-tools and the kernel print of a table, and what people paste of it.

Forms: ``conntrack -L`` with any of ``-o extended,id,ktimestamp,xml``, the lines of
``conntrack -E``, and /proc/net/nf_conntrack.  A line that is none of these is
counted, and the first one kept for a complaint; nothing raises.

Sources: conntrack-tools' libnetfilter_conntrack (snprintf_default.c), the
kernel's nf_conntrack_standalone.c (ct_seq_show).
"""

from __future__ import annotations

import itertools
import operator
import re
from typing import TYPE_CHECKING, Final

from pptp_nat.analysis import conntrack_fields as fields
from pptp_nat.analysis.conntrack_entries import GRE, TCP, ListedEntry, is_control, listed
from pptp_nat.analysis.conntrack_xml import flows, has_ended, is_other, read_flow

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator

LONGEST: Final = 4096  #: characters of a line that are looked at; real ones take 400
SHOWN: Final = 60  #: characters of a line in a complaint
LONGEST_XML: Final = 1 << 16  #: characters of a line of XML that are taken at a time

_KEY: Final = "(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})"
_COUNT: Final = "([0-9]{1,20})"
_TUPLE: Final = (
    r"src=([^ ]+) dst=([^ ]+) "
    rf"(?:(?:sport|srckey)={_KEY} (?:dport|dstkey)={_KEY} )?"
    rf"(?:packets={_COUNT} bytes={_COUNT} )?"
)
#: to the end of the reply tuple
_ENTRY: Final = re.compile(
    r"(?:ipv4\s+2\s+)?(?:tcp|gre|unknown)\s+(6|47)\s+(?:([0-9]{1,20})\s+)?"
    r"(?:timeout=\d+, stream_timeout=\d+ )?(?:([A-Z][A-Z_0-9]*) )?"
    rf"{_TUPLE}(\[UNREPLIED\] )?{_TUPLE}"
)
_OTHER: Final = re.compile(r"(?:ipv[46]\s+\d+\s+)?\S+\s+\d+ .*?src=\S+ dst=\S+ .*?src=\S+ dst=\S+ ")
_EVENT: Final = re.compile(r"(?:\[\d+\.\d+\s*\]\s*)?\[(NEW|UPDATE|DESTROY)\]\s*")
_TRAILER: Final = re.compile(r"conntrack v\S+ \(conntrack-tools\)")
_STARTED: Final = re.compile(r"\[start=([^]]+)\]")
_MARK: Final = re.compile(r" mark=(\S+)")
_HELPER: Final = re.compile(r" helper=(\S+)")
_ID: Final = re.compile(r" id=(\S+)")

# Whole lines just as the programs write them, in a third of the time; any other line is in the
# last group.  [0-9]++ never gives a digit back: no line is looked at twice.
_WRITTEN_KEY: Final = "(0x[0-9a-f]{1,8}|[0-9]{1,10})"
_WRITTEN_TUPLE: Final = (
    rf"src=([0-9.]++) dst=([0-9.]++) (?:s(?:port|rckey)={_WRITTEN_KEY} "
    rf"d(?:port|stkey)={_WRITTEN_KEY} )?(?:packets=([0-9]{{1,20}}+) bytes=([0-9]{{1,20}}+) )?"
)
_WRITTEN: Final = re.compile(
    r"(?:(?:ipv4 {1,9}2 {1,9})?(?:tcp|gre|unknown) {1,9}(6|47) ([0-9]{1,20}+) "
    r"(?:timeout=[0-9]{1,10}, stream_timeout=[0-9]{1,10} )?(?:([A-Z][A-Z_0-9]{,20}+) )?"
    rf"{_WRITTEN_TUPLE}(\[UNREPLIED\] )?{_WRITTEN_TUPLE}(\[ASSURED\] )?"
    r"mark=([0-9]{1,20}+) (?:zone=[0-9]{1,10} )?(?:delta-time=[0-9]{1,20}+ )?"
    r"(?:\[start=([^]\n]{1,40})\] )?(?:helper=(\S{1,40}+) )?use=[0-9]{1,20}+"
    r"(?: id=([0-9]{1,20}+))?|(.*))\n"
)

_Counts = tuple[int, int, int, int] | tuple[None, None, None, None]
_WAY: Final = operator.itemgetter(1, 2, 3, 4)  # of an entry: `ListedEntry.original`


class Listing:
    """Entries out of text, and what else was in it.

    Where the listing is one of events, what is left is what was there at its end.

    Args:
        ports: TCP ports of PPTP servers.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._listed: dict[int, list[ListedEntry]] = {TCP: [], GRE: []}
        self._ended = False  # entries are listed that have line 0: they are no more
        self.others = 0  #: entries of other protocols, ports and of IPv6
        self.garbage = 0  #: lines that are no entries
        self.first_garbage: tuple[int, str] | None = None  #: its line, and its printable start
        self._ports = frozenset(ports)
        self._addresses = fields.Addresses()

    @property
    def entries(self) -> list[ListedEntry]:
        """The control connections, then GRE; of an entry that is listed twice, the later line."""
        return [entry for some in self._listed.values() for entry in self._latest(some)]

    def _latest(self, some: list[ListedEntry]) -> Iterable[ListedEntry]:
        # Hashes alone, mostly: a dict of a hundred thousand ways is a quarter of all memory.
        if not self._ended and len(set(map(hash, map(_WAY, some)))) == len(some):
            return some
        found: dict[Hashable, ListedEntry] = {}
        for entry in some:
            if entry.line:
                found[_WAY(entry)] = entry
            else:
                found.pop(_WAY(entry), None)
        return found.values()

    def read(self, pieces: Iterable[str]) -> None:
        """Take in text of whatever form, in *pieces* of any size."""
        pieces = iter(pieces)
        number, held = 1, ""
        for piece in pieces:
            end = piece.rfind("\n") + 1
            text, held = (held + piece[:end], piece[end:]) if end else ("", held + piece)
            at = self._lines(number, text)
            if at is None and len(held) > LONGEST:
                if _is_xml(held):
                    at = len(text)
                else:
                    held = held[: LONGEST + 1]  # of a line no more is looked at
            if at is not None:
                number += text.count("\n", 0, at)
                self._read_xml(number, itertools.chain((text[at:] + held,), pieces))
                return
            number += text.count("\n")
        at = self._lines(number, held + "\n")
        if at is not None:
            self._read_xml(number, (held,))

    # Lines.

    def _lines(self, first: int, text: str) -> int | None:
        """Take in whole lines, of which the *first* has that number; return where XML starts."""
        # All in one loop and without the constructor, which is a function of Python's: a hundred
        # thousand lines come by.
        addresses, ports, make = self._addresses, self._ports, tuple.__new__
        connections, gre = self._listed[TCP], self._listed[GRE]
        lines: list[str] = []
        for number, (
            protocol, left, state, src, dst, sport, dport, packets, octets, unreplied,
            back_src, back_dst, back_sport, back_dport, back_packets, back_octets,
            assured, mark, started, helper, identity, other,
        ) in enumerate(_WRITTEN.findall(text), first):  # fmt: skip
            if not protocol:
                if "<" in other and _is_xml(other):
                    lines = lines or text.split("\n")
                    return sum(map(len, lines[: number - first])) + number - first
                if other:
                    self._line(number, other)
                continue
            try:
                source, destination = addresses[src], addresses[dst]
                back_source, back_destination = addresses[back_src], addresses[back_dst]
                key, back_key = int(dport, 0), int(back_sport, 0)
                source_key, back_destination_key = int(sport, 0), int(back_dport, 0)
                counts: _Counts = (None, None, None, None)
                if packets or back_packets:
                    counts = int(packets), int(octets), int(back_packets), int(back_octets)
            except ValueError:  # no keys, counts of one way, 1.2.3.999, a port like 007
                lines = lines or text.split("\n")
                self._line(number, lines[number - first])
                continue
            if protocol == "47":
                kept = gre
            elif key in ports or back_key in ports:
                kept = connections
            else:
                self.others += 1
                continue
            carried, octets_carried, returned, octets_returned = counts
            kept.append(make(ListedEntry, (
                GRE if kept is gre else TCP,
                source, destination, source_key, key,
                back_source, back_destination, back_key, back_destination_key,
                state,
                int(left),
                unreplied != "",
                assured != "",
                False,
                carried, octets_carried, returned, octets_returned,
                int(mark) if mark != "0" else 0,
                helper,
                int(identity) if identity else None,
                fields.unix(started) if started else None,
                number,
            )))  # fmt: skip
        return None

    def _line(self, number: int, text: str) -> None:
        """Take in a line that is not just as the programs write it, or an event."""
        line = text[:LONGEST].strip() + " "
        event = None
        if line.startswith("["):
            event = _EVENT.match(line)
            line = line[event.end() :] if event else line
        read = _ENTRY.match(line)
        if read is None:
            self._note_other(number, line)
            return
        protocol, left, state, *way, unreplied = read.groups()[:10]
        back = read.groups()[10:]
        original, reply = fields.way(*way[:4]), fields.way(*back[:4])
        if original is None or reply is None:
            self._note_other(number, line)
            return
        rest = line[read.end() - 1 :]
        if event is None and " use=" not in rest:  # each listing ends so: this line was cut
            self._note(number, line)
            return
        if event is not None and event[1] == "DESTROY":
            self._end(listed(int(protocol), original, reply))
            return
        self._keep(listed(
            int(protocol), original, reply, (fields.count(*way[4:]), fields.count(*back[4:])),
            state=state or "", seconds_left=fields.number(left),
            unreplied=unreplied is not None or "[UNREPLIED]" in rest, line=number,
            **_tail(rest),
        ))  # fmt: skip

    def _keep(self, entry: ListedEntry) -> None:
        if entry.protocol == GRE or is_control(entry, self._ports):
            self._listed[entry.protocol].append(entry)
        else:
            self.others += 1

    def _end(self, entry: ListedEntry) -> None:
        self._listed[entry.protocol].append(entry)
        self._ended = True

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

    def _read_xml(self, number: int, pieces: Iterable[str]) -> None:
        for line, flow in flows(_numbered(number, pieces)):
            other = is_other(flow) if flow.endswith("</flow>") else None
            if other:
                self.others += 1
                continue
            entry = None if other is None else read_flow(flow, line)
            if entry is None:
                self._note(line, flow)
            elif has_ended(flow):
                self._end(entry._replace(line=0))
            else:
                self._keep(entry)


def _is_xml(line: str) -> bool:
    return line.lstrip().startswith("<")


def _numbered(number: int, pieces: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, long ones in pieces; the first one is *number*."""
    held = ""
    for piece in pieces:
        *lines, held = (held + piece).split("\n")
        for line in lines:
            yield number, f"{line}\n"
            number += 1
        if len(held) > LONGEST_XML:
            whole = held.rfind("</flow>") + len("</flow>")
            at = whole if "</flow>" in held else len(held) - len("</flow>")
            yield number, held[:at]
            held = held[at:]
    if held:
        yield number, held


def _tail(rest: str) -> dict[str, object]:
    """Return what stands behind the tuples, in whatever order, as `ListedEntry` has it."""
    mark = _MARK.search(rest)
    helper = _HELPER.search(rest) if " helper=" in rest else None
    identity = _ID.search(rest) if " id=" in rest else None
    started = _STARTED.search(rest) if " [start=" in rest else None
    return {
        "assured": "[ASSURED]" in rest,
        "offloaded": "OFFLOAD]" in rest,
        "mark": 0 if mark is None else fields.number(mark[1]) or 0,
        "helper": "" if helper is None else helper[1],
        "identity": None if identity is None else fields.number(identity[1]),
        "started": None if started is None else fields.unix(started[1]),
    }
