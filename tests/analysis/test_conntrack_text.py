"""Listings of conntrack tables, as programs print them and as people paste them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.analysis.conntrack_entries import GRE, Count, ListedEntry, Way, listed
from pptp_nat.analysis.conntrack_text import LONGEST, Listing
from tests.core.effort import effort

from . import conntrack_lines as lines
from .conntrack_lines import control, gre

LISTINGS = Path(__file__).parent / "listings"
FORMS = ("text", "extended", "proc", "xml")
BY = ("helper", "daemon", "nothing")


def read(text: str, ports=(1723,)) -> Listing:
    listing = Listing(ports)
    listing.read([text])
    return listing


def recorded(by: str, form: str) -> str:
    return (LISTINGS / f"{by}.{form}").read_text()


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_one_table_tells_the_same(by: str, form: str) -> None:
    """Each recording was made within a second, in all forms: the kernel is the oracle."""

    def essence(listing: Listing) -> list[ListedEntry]:
        return sorted(
            e._replace(line=0, identity=None, started=None, seconds_left=None,
                       helper="" if form == "proc" else e.helper)
            for e in listing.entries
        )  # fmt: skip

    listing = read(recorded(by, form))
    assert essence(read(recorded(by, "extended"))) == essence(listing)
    assert (1, 0, None) == (listing.others, listing.garbage, listing.complaint)


def test_an_entry_is_read_with_all_that_stands_in_it() -> None:
    """A connection that the kernel's helper follows, and the call's entry."""
    entries = {e.identity: e for e in read(recorded("helper", "xml")).entries}

    assert entries[910373511] == listed(
        6, Way("192.168.77.10", "198.18.7.2", 52316, 1723),
        Way("198.18.7.2", "198.18.7.1", 1723, 52316), (Count(6, 644), Count(5, 456)),
        state="ESTABLISHED", seconds_left=431998, assured=True, helper="pptp",
        identity=910373511, started=pytest.approx(1795560888.634338), line=6,
    )  # fmt: skip
    assert entries[2728912508] == listed(
        GRE, Way("192.168.77.10", "198.18.7.2", 7, 1), Way("198.18.7.2", "198.18.7.1", 1, 52316),
        (Count(3, 210), Count(1, 74)), seconds_left=29, identity=2728912508,
        started=pytest.approx(1795560888.636109), line=3,
    )  # fmt: skip


def test_the_time_that_text_shows_is_the_time_that_xml_shows() -> None:
    """The one in whole seconds and local time, the other in nanoseconds."""
    exact = {e.identity: e.started for e in read(recorded("helper", "xml")).entries}
    for entry in read(recorded("helper", "extended")).entries:
        # The recording's machine ran on UTC; here it may be another zone.
        assert (entry.started - exact[entry.identity] + 1) % 900 <= 1


addresses = st.integers(0, 0xFFFFFFFF).map(
    lambda n: f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
)
numbers = st.integers(0, 0xFFFF)
counts = st.none() | st.builds(Count, st.integers(0, 1 << 63), st.integers(0, 1 << 63))


@st.composite
def some_entry(draw) -> ListedEntry:
    protocol = draw(st.sampled_from((6, GRE)))
    known = protocol == 6 or draw(st.booleans())
    ways = [
        Way(draw(addresses), draw(addresses), *(draw(numbers) if known else None for _ in "12"))
        for _ in "12"
    ]
    if protocol == 6:
        ways[0] = ways[0]._replace(destination_key=1723)
    counted = draw(st.booleans())
    return listed(
        protocol,
        *ways,
        [Count(draw(numbers), draw(numbers)) if counted else None for _ in "12"],
        state=draw(st.sampled_from(("ESTABLISHED", "SYN_SENT2"))) if protocol == 6 else "",
        seconds_left=draw(st.integers(0, 1 << 31)),
        **{flag: draw(st.booleans()) for flag in ("unreplied", "assured", "offloaded")},
        mark=draw(st.integers(0, 0xFFFFFFFF)),
    )


@effort(100)
@given(st.lists(some_entry(), max_size=5, unique_by=lambda e: (e.protocol, e.original)))
def test_whatever_is_in_an_entry_is_read_back_from_every_form(entries) -> None:
    """Written by another hand than the one that reads."""
    for form in ("text", "extended", "proc"):
        listing = read("".join(lines.line(entry, form) for entry in entries))
        assert in_order(entries) == in_order(e._replace(line=0) for e in listing.entries)
    body = "".join(map(lines.flow, entries))
    for text in (body, body.replace("<", "\n <").replace("\n </", "</")):
        listing = read(f'<?xml version="1.0"?>\n<conntrack>\n{text}</conntrack>\n')
        assert in_order(entries) == in_order(e._replace(line=0) for e in listing.entries)
        assert listing.complaint is None


def in_order(entries) -> list[ListedEntry]:
    return sorted(entries, key=repr)


def test_a_listing_that_was_pasted_twice_is_one_table() -> None:
    """What was later holds: an entry has another time to live by then."""
    entry = gre("10.0.0.1", "10.9.9.9", 5)
    later = entry._replace(seconds_left=3)
    listing = read(lines.line(entry, "text") + "\n" + lines.line(later, "text"))

    assert [later] == [e._replace(line=0) for e in listing.entries]


@effort(100)
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
def test_nothing_that_somebody_pastes_ends_the_reading(text: str) -> None:
    """Prose, octets, half a line."""
    read(text)
    read(f"<conntrack>{text}<flow>{text}</flow>{text}")
    read(recorded("helper", "text") + text)


@effort(100)
@given(st.sampled_from(BY), st.sampled_from(FORMS), st.data())
def test_a_listing_that_was_cut_gives_what_is_whole(by: str, form: str, data) -> None:
    """A terminal's buffer has an end: at most one entry is lost, and that is told."""
    whole = recorded(by, form)
    at = data.draw(st.integers(0, len(whole)))

    listing = read(whole[:at])

    entries = read(whole).entries
    assert {(e.original, e.reply) for e in listing.entries} <= {
        (e.original, e.reply) for e in entries
    }
    assert len(listing.entries) >= sum(e.line <= whole[:at].count("\n") for e in entries)
    assert listing.garbage <= 1


def test_lines_that_are_no_entries_are_told_of_once() -> None:
    """With the number of the first and its words, harmless to a terminal."""
    text = f"root@router:~# conntrack -L\n{recorded('helper', 'text')}\n\x1b[2Jwhat?\n"
    text += "conntrack v1.4.7 (conntrack-tools): 5 flow entries have been shown.\n"

    listing = read(text)

    assert 4 == len(listing.entries)
    assert 2 == listing.garbage
    assert listing.complaint == (
        "2 lines are no conntrack entry; the first is line 1: 'root@router:~# conntrack -L'"
    )
    assert "'?[2Jwhat?'" in read("\x1b[2Jwhat?").complaint


def test_other_traffic_is_counted_and_left_out() -> None:
    """UDP, ICMP, IPv6, and TCP to other ports."""
    text = """\
udp      17 27 src=192.168.1.5 dst=9.9.9.9 sport=4567 dport=53 src=9.9.9.9 dst=1.2.3.4 sport=53 dport=4567 [ASSURED] mark=0 use=1
icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=1723 src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=1723 mark=0 use=1
ipv6     10 tcp      6 431995 ESTABLISHED src=2001:db8::1 dst=2001:db8::2 sport=40000 dport=1723 src=2001:db8::2 dst=2001:db8::1 sport=1723 dport=40000 [ASSURED] mark=0 use=1
tcp      6 117 TIME_WAIT src=192.168.1.5 dst=9.9.9.9 sport=17230 dport=443 src=9.9.9.9 dst=1.2.3.4 sport=443 dport=17230 [ASSURED] mark=0 use=1
"""  # noqa: E501
    listing = read(text)

    assert ([], 4, 0) == (listing.entries, listing.others, listing.garbage)
    assert 1 == len(read(text, ports=(443,)).entries)


def test_a_port_forward_is_a_control_connection_too() -> None:
    """Dialled on another port, answered on 1723."""
    entry = control("203.0.113.9", "198.18.7.1", forwarded="192.168.77.10")
    dialled = entry._replace(destination_key=21723)

    assert [dialled] == [e._replace(line=0) for e in read(lines.line(dialled, "text")).entries]


def test_events_leave_what_was_there_at_their_end() -> None:
    """As conntrack -E prints them, with and without -o timestamp."""
    one = control("10.0.0.1", "10.9.9.9", state="SYN_SENT", unreplied=True, assured=False)
    two = gre("10.0.0.1", "10.9.9.9", 5)
    text = (
        f"    [NEW] {lines.line(one, 'text')}"
        f"[1795560888.5\t]  [UPDATE] {lines.line(one._replace(state='ESTABLISHED'), 'text')}"
        f"    [NEW] {lines.line(two, 'text')}"
        f"[DESTROY] {lines.line(two, 'text').replace(' 170 ', ' ')}"
    )

    listing = read(text)

    assert ["ESTABLISHED"] == [e.state for e in listing.entries]
    assert listing.complaint is None


def test_a_line_without_end_costs_no_memory() -> None:
    """A file need not have been made by conntrack."""
    listing = read("<conntrack>" + "x" * (4 * LONGEST) + "\n" + "y" * 100)
    assert [] == listing.entries
    assert 1 == read("gre 47 " + "z" * (4 * LONGEST)).garbage
