"""What is done quickly with a hundred thousand entries: the same as what is done step by step."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.analysis import conntrack_text, conntrack_tunnels
from pptp_nat.analysis.conntrack_entries import ENTRY_MARK, GRE, Count, listed
from pptp_nat.analysis.conntrack_report import table_json, table_text
from pptp_nat.analysis.conntrack_rules import table_diagnoses
from pptp_nat.analysis.conntrack_text import Listing
from pptp_nat.analysis.conntrack_tunnels import PlainTunnel, pptp_table
from tests.core.effort import effort

from . import conntrack_lines as lines
from .conntrack_lines import Way, control, gre

#: what a program may write between mark= and use=, and what is not there yet
EXTRAS = (
    "", "zone=3 ", "delta-time=7 ", "secctx=null ", "labels=0x1,rare ", "helper=pptp ",
    "zone=1 delta-time=2 ", "[start=Tue Nov 24 22:54:48 2026] ", "[HW_OFFLOAD] ", "[NEW_FLAG] ",
    "delta-time=1 [start=Tue Nov 24 22:54:48 2026] helper=pptp ",
)  # fmt: skip
NONE, UP, MANY = Count(0, 0), Count(3, 210), Count(1 << 62, 1 << 63)
BETWEEN = re.compile(r"(?<=[ \d])")


def through_all(text: str, **change) -> tuple[object, ...]:
    """Return all that a listing says of *text*."""
    listing = Listing((1723,))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in change.items():
            patch.setattr(conntrack_text, name, value)
        listing.read([text])
    return listing.entries, listing.others, listing.complaint


@st.composite
def written(draw) -> str:
    """Draw a line as a program writes it, or nearly so."""
    keys = st.sampled_from((0, 1, 7, 1723, 40000, 65535))
    hosts = st.sampled_from(("10.0.0.1", "198.51.100.7", "255.0.0.0", "1.2.3.999", "01.2.3.4"))
    is_gre = draw(st.booleans())
    keyed = not is_gre or draw(st.booleans())
    ways = [Way(draw(hosts), draw(hosts), *(draw(keys) if keyed else None for _ in "12"))
            for _ in "12"]  # fmt: skip
    counts = draw(st.sampled_from(((NONE, UP), (UP, MANY), (None, None), (UP, None), (None, UP))))
    entry = listed(
        GRE if is_gre else 6, *ways, counts, state="" if is_gre else "ESTABLISHED",
        seconds_left=draw(st.integers(0, 1 << 31)), unreplied=draw(st.booleans()),
        assured=draw(st.booleans()), mark=draw(st.sampled_from((0, 7, ENTRY_MARK))),
        identity=draw(st.sampled_from((None, 1 << 31))),
    )  # fmt: skip
    line = lines.line(entry, draw(st.sampled_from(("text", "extended", "proc"))))
    line = line.replace("use=", draw(st.sampled_from(EXTRAS)) + "use=")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line) - 1))
        what = draw(st.sampled_from(("", " ", "0", "9" * 21, "x", "src=", "[UNREPLIED] ", "\t")))
        line = line[:at] + what + line[at + draw(st.integers(0, 3)) :]
    return line.removesuffix("\n") + "\n"


@effort(400)
@given(st.lists(written(), max_size=4))
def test_lines_read_at_once_say_what_they_say_one_by_one(some: list[str]) -> None:
    """Zones, labels, flags of tomorrow, counts that are missing, octets that are wrong."""
    text = "".join(some)
    one_by_one = re.compile(f"{'()' * 21}(.*)\\n")

    assert through_all(text) == through_all(text, _WRITTEN=one_by_one)


@effort(100)
@given(st.lists(written(), max_size=3), st.integers(1, 200))
def test_where_a_piece_of_the_text_ends_does_not_matter(some: list[str], size: int) -> None:
    """A pipe gives what it has."""
    text = "".join(some)
    for whole in (text, f"<conntrack>\n{text}"):
        listing = Listing((1723,))
        listing.read(whole[at : at + size] for at in range(0, len(whole), size))
        found = listing.entries, listing.others, listing.complaint
        assert found == through_all(whole)


@pytest.mark.parametrize("form", ["text", "extended", "proc"])
def test_a_line_as_programs_write_it_is_not_read_twice(form: str, monkeypatch) -> None:
    """The second way is slow: this is what there is a first one for."""
    entries = [
        control("10.0.0.1", "10.9.9.9", helper="pptp" if form != "proc" else ""),
        gre("10.0.0.1", "10.9.9.9", 5, unreplied=True),
        gre("10.9.9.9", "10.0.0.1", 6, carried=UP, returned=NONE, mark=ENTRY_MARK, assured=True),
    ]
    monkeypatch.setattr(Listing, "_line", None)

    found, others, complaint = through_all("".join(lines.line(e, form) for e in entries))

    assert entries == [e._replace(line=0) for e in found]
    assert (0, None) == (others, complaint)


def test_lines_behind_a_line_without_end_keep_their_numbers() -> None:
    """However it comes in."""
    text = f"{'x' * 10_000}\nsome words\n" + lines.line(control("10.0.0.1", "10.9.9.9"), "text")
    for size in (100, 1 << 20):
        listing = Listing((1723,))
        listing.read(text[at : at + size] for at in range(0, len(text), size))
        assert [3] == [entry.line for entry in listing.entries]
        assert 2 == listing.garbage


# --- tunnels ------------------------------------------------------------------------------------

CLIENTS = tuple(f"192.168.77.{n}" for n in range(10, 14))
EXTERNAL, SERVER = "198.18.7.1", "198.18.7.2"


@st.composite
def some_tunnel(draw, client: str) -> list:
    """Draw what a client's calls look like: mostly well, in each way once in a while not."""
    rarely = st.integers(0, 9).map(lambda n: n == 0)
    seen_as = draw(st.sampled_from((EXTERNAL, EXTERNAL, client)))
    state = "CLOSE" if draw(rarely) else "ESTABLISHED"
    helper = draw(st.sampled_from(("", "pptp")))
    counts = draw(st.sampled_from(((UP, MANY), (UP, NONE), (None, None), (NONE, UP))))
    more = {
        "carried": counts[0], "returned": counts[1], "unreplied": draw(rarely),
        "assured": draw(st.booleans()),
    }  # fmt: skip
    entries = [control(client, SERVER, seen_as=seen_as, helper=helper, state=state,
                       mark=draw(st.sampled_from((0, 66))), unreplied=draw(rarely),
                       offloaded=draw(rarely))]  # fmt: skip
    if draw(rarely):
        entries.append(entries[0]._replace(source_key=2))
    left = st.sampled_from((29, 31, 86_399, 86_400, 2_000_000, None))
    keys = st.sampled_from((1, 7, 40_000, 65_535))
    if helper and draw(st.booleans()):
        one, other = (client, SERVER, draw(keys), SERVER, seen_as), (SERVER, seen_as, draw(keys),
                                                                     client, SERVER)  # fmt: skip
        ends = draw(st.sampled_from((one, other)))
        entries.append(gre(*ends, draw(keys), draw(keys), own=draw(keys), seconds_left=draw(left),
                           **more))  # fmt: skip
    else:
        mark = 0 if draw(rarely) else ENTRY_MARK
        way = {**more, "mark": mark}
        entries += [
            gre(client, SERVER, draw(keys), SERVER, seen_as, draw(keys), 0,
                seconds_left=draw(left), **way),
            gre(SERVER, seen_as, draw(keys), client, SERVER, draw(keys), 7,
                seconds_left=draw(left), **way),
        ]  # fmt: skip
    if draw(rarely):
        entries.append(gre(SERVER, EXTERNAL, draw(keys), unreplied=True))
    if draw(rarely):
        entries.append(gre(client, SERVER, draw(keys), SERVER, "198.18.9.9", 1, 0))
    if draw(rarely):
        entries.append(gre("192.0.2.1", SERVER, draw(keys)))
    if draw(rarely):
        entries.pop(draw(st.integers(0, len(entries) - 1)))
    return entries


def told(entries) -> tuple[str, str]:
    """Return a table's text and JSON."""
    table = pptp_table(entries)
    found = table_diagnoses(table)
    return "\n".join(table_text(table, found)), "".join(table_json(table, found))


@effort(300)
@given(st.tuples(*map(some_tunnel, CLIENTS)), st.randoms(use_true_random=False))
def test_a_plain_tunnel_is_told_of_as_if_it_had_been_taken_apart(tunnels, chance) -> None:
    """And so are its neighbours, whatever is wrong with them."""
    entries = [entry for tunnel in tunnels for entry in tunnel]
    chance.shuffle(entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conntrack_tunnels, "_plain", lambda *_: None)
        slowly = told(entries)

    assert slowly == told(entries)


def test_a_call_that_is_well_is_not_taken_apart() -> None:
    """By the helper and by the daemon."""
    more = {"carried": UP, "returned": UP}
    ours = {**more, "mark": ENTRY_MARK, "seconds_left": 2_000_000}
    client, other, *_ = CLIENTS
    table = pptp_table([
        control(client, SERVER, seen_as=EXTERNAL, helper="pptp"),
        gre(client, SERVER, 1, SERVER, EXTERNAL, 1, 7, own=7, **more),
        control(other, SERVER, seen_as=EXTERNAL),
        gre(other, SERVER, 2, SERVER, EXTERNAL, 2, 0, **ours),
        gre(SERVER, EXTERNAL, 8, other, SERVER, 9, 0, **ours),
    ])  # fmt: skip

    assert [PlainTunnel, PlainTunnel] == list(map(type, table.tunnels))
    assert ["2 calls have GRE both ways"] == [each.summary for each in table_diagnoses(table)]
