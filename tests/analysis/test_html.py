"""The page: read as markup, and opened in a real browser."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pptp_nat import cli
from pptp_nat.analysis import html_plots
from pptp_nat.analysis.analyze import analyze
from pptp_nat.analysis.html import report
from pptp_nat.analysis.html_elements import Markup, joined, tag
from pptp_nat.analysis.html_rungs import Reach, rungs_of
from pptp_nat.analysis.model import Analysis, Call
from pptp_nat.core.messages import MessageType
from tests.analysis import story as s
from tests.analysis import troubles
from tests.analysis.browser import Browser, executable
from tests.analysis.story import ALICE, PAC_ROLE, PNS, SERVER, Story
from tests.analysis.troubles import TROUBLES, Tell
from tests.core.pcap import FOLDER

CAPTURES = {
    "healthy": ("healthy_mppe-lan", "healthy_mppe-wan"),
    "refused": ("auth_fail_mschapv2-lan",),
    "blocked": ("gre_blocked_inbound-lan", "gre_blocked_inbound-wan"),
    "old": ("windows-nt-to-poptop-2000",),
}
HOSTILE = b"<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
PHONE = 390


class Reader(HTMLParser):
    """What elements and attributes a page has, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def page_of(tell: Tell, folder: Path) -> str:
    told = tell()
    stories = (told,) if isinstance(told, Story) else told
    paths = [each.pcap(folder / f"{at}.pcap") for at, each in enumerate(stories)]
    return report(analyze(paths))


def captured(name: str) -> str:
    return report(analyze([FOLDER / f"{each}.pcap" for each in CAPTURES[name]]))


def hostile() -> Story:
    """Everything that a peer may choose is an attempt to get into the page."""
    story = Story()
    tcp = story.open(ALICE, SERVER)
    tcp.say(ALICE, MessageType.START_CONTROL_CONNECTION_REQUEST, version=0x100,
            host=HOSTILE[:64], vendor=HOSTILE[:64])  # fmt: skip
    tcp.say(SERVER, MessageType.START_CONTROL_CONNECTION_REPLY, version=0x100, result=1,
            host=HOSTILE[:64], vendor=b"\x1b[2J\x00\xff")  # fmt: skip
    tcp.say(ALICE, MessageType.OUTGOING_CALL_REQUEST, call_id=1, phone=HOSTILE[:64])
    tcp.say(SERVER, MessageType.OUTGOING_CALL_REPLY, call_id=2, peer_call_id=1, result=1)
    call = s.Call(story, tcp, ALICE, SERVER, 1, 2).link()
    call.ppp(PAC_ROLE, s.CHAP, 1, b"\x10" + s.SECRET + HOSTILE, identifier=9)
    call.ppp(PNS, s.CHAP, 2, b"\x31" + bytes(49) + HOSTILE, identifier=9)
    call.ppp(PAC_ROLE, s.CHAP, 4, b"E=691 R=0 C=00 V=3 M=" + HOSTILE, identifier=9)
    call.ppp(PNS, s.LCP, s.TERMINATE, HOSTILE)
    return call.story


# As markup.


@pytest.mark.parametrize("name", CAPTURES)
def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(name: str) -> None:
    page = captured(name)
    reader = read(page)

    assert page.isascii()
    assert not {tag for tag, _ in reader.seen} & {"script", "img", "iframe", "object", "base"}
    for tag_name, attributes in reader.seen:
        assert not any(key.startswith("on") or key == "style" for key in attributes), tag_name
        for key in ("href", "src"):
            assert (attributes.get(key) or "data:").startswith("data:")
    policy = next(each["content"] for _, each in reader.seen if "http-equiv" in each)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


@pytest.mark.parametrize("name", CAPTURES)
def test_each_picture_is_well_formed_and_has_a_name(name: str) -> None:
    pictures = re.findall(r"<svg .*?</svg>", captured(name), re.DOTALL)

    assert pictures
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root[0].tag.endswith("title")
        assert root[0].text


@pytest.mark.parametrize(
    "tell", [tell for tells in TROUBLES.values() for tell in tells], ids=lambda tell: tell.__name__
)
def test_every_trouble_has_a_page(tell: Tell, tmp_path: Path) -> None:
    page = page_of(tell, tmp_path)

    reader = read(page)
    words = " ".join(reader.words)
    found = analyze(sorted(tmp_path.glob("*.pcap"))).diagnoses
    for diagnosis in found:
        assert diagnosis.rule in words
    assert "bf5e9b69095b823f" not in page
    assert "hunter2" not in page


def test_an_ip_loop_is_drawn_as_one(tmp_path: Path) -> None:
    looped = page_of(troubles.pptp_in_the_tunnel_to_the_same_server, tmp_path)

    assert 'class="data broken loop"' in looped
    assert 'class="data broken loop"' not in captured("healthy")


def test_gre_that_is_missing_is_crossed_out_where_it_is_missing() -> None:
    assert captured("blocked").count('class="cross"') == 2  # in each picture of the inner side
    assert 'class="cross"' not in captured("healthy")


def both_sides(captures: tuple[str, ...]) -> tuple[Analysis, Call, Call]:
    analysis = analyze([FOLDER / f"{each}.pcap" for each in captures])
    translation = analysis.translations[0]
    return analysis, translation.inside, translation.outside


def test_the_ladder_shows_where_each_packet_was_lost() -> None:
    """Two captures of one call: what one side has and the other has not ends at the NAT."""
    rungs = rungs_of(*both_sides(CAPTURES["blocked"]))

    lost = [rung for rung in rungs if rung.reach is not Reach.THROUGH]
    assert {(rung.reach, rung.sender) for rung in lost} == {(Reach.TO_NAT, PAC_ROLE)}
    assert len(lost) == 16  # all of the server's GRE, as tshark counts it outside
    assert sum(rung.sender is PNS and rung.class_ == "ppp" for rung in rungs) == 12
    assert captured("blocked").count("l10 10m0 -10l-10 10") == 16


def test_a_ladder_of_two_captures_has_each_packet_once() -> None:
    analysis, inner, outer = both_sides(CAPTURES["healthy"])

    rungs = rungs_of(analysis, inner, outer)

    assert {rung.reach for rung in rungs} == {Reach.THROUGH}
    assert len(rungs) == len(rungs_of(analysis, inner, None))
    assert [rung.evidence.time for rung in rungs] == sorted(rung.evidence.time for rung in rungs)


def test_clocks_that_differ_do_not_tear_a_ladder_apart(tmp_path: Path) -> None:
    inside, outside = troubles.both_sides(blocked=True)
    outside.packets = [(time + 3600.25, packet) for time, packet in outside.packets]
    paths = [inside.pcap(tmp_path / "inside.pcap"), outside.pcap(tmp_path / "outside.pcap")]

    analysis = analyze(paths)
    found = analysis.translations[0]
    views = sorted((found.inside, found.outside), key=lambda call: call.file)
    rungs = rungs_of(analysis, *views)

    # Ten are lost; of the last two the capture inside, over by then, proves nothing.
    assert sum(rung.reach is Reach.TO_NAT for rung in rungs) == 8
    assert not any(rung.reach is Reach.FROM_NAT for rung in rungs)


def test_a_capture_that_was_over_earlier_proves_no_loss(tmp_path: Path) -> None:
    inside, outside = troubles.both_sides(blocked=False)
    inside.packets = inside.packets[: len(inside.packets) // 2]
    paths = [inside.pcap(tmp_path / "inside.pcap"), outside.pcap(tmp_path / "outside.pcap")]

    analysis = analyze(paths)
    (found,) = analysis.translations

    assert {rung.reach for rung in rungs_of(analysis, found.inside, found.outside)} == {
        Reach.THROUGH
    }


def test_a_server_behind_the_nat_stands_behind_the_nat(tmp_path: Path) -> None:
    """A port forward hides the server's address and number, and not the client's."""
    traveller, home = s.Host("", bytes((203, 0, 113, 5))), s.Host("", bytes((192, 168, 77, 20)))
    for name, server, number, later in (("in", home, 7, 0.001), ("out", s.ROUTER, 5001, 0.0)):
        call = Story(s.START + later).dial(traveller, server, call_id=1, answers=number, serial=9)
        call.link().prove().mppe().network().chat().story.pcap(tmp_path / f"{name}.pcap")

    page = report(analyze(sorted(tmp_path.glob("*.pcap"))))

    picture = page[page.index("<svg") : page.index("</svg>")]
    words = Reader()
    words.feed(picture)
    hosts = [word for word in words.words if word.count(".") == 3 and not word.startswith("ppp")]
    assert hosts == ["203.0.113.5", "192.168.77.20", "198.18.7.1"]  # client, server, NAT
    assert "5001 \N{RIGHTWARDS ARROW OVER LEFTWARDS ARROW} 7" in words.words


@given(st.text(max_size=80), st.text(max_size=80))
def test_text_stays_text(words: str, attribute: str) -> None:
    reader = read(tag("p", words, joined(words), class_=attribute))

    # A browser reads a carriage return as a line feed, and drops nulls.
    assert [name for name, _ in reader.seen] == ["p"]
    assert "".join(reader.words) == words + words
    assert reader.seen[0][1]["class"] == attribute


def test_only_markup_is_markup() -> None:
    assert tag("b", Markup("<i>"), "<i>") == "<b><i>&lt;i&gt;</b>"


@given(st.floats(1e-9, 1e15))
def test_an_axis_reaches_as_far_as_its_values_and_not_much_farther(most: float) -> None:
    axis = html_plots.scale(most)
    ticks = list(axis.ticks())

    assert axis.most >= most * 0.998
    assert axis.most <= most * 2.6
    assert 2 <= len(ticks) <= 6


def test_many_calls_make_a_page_of_bounded_size(tmp_path: Path) -> None:
    story = Story()
    for at in range(120):
        story.dial(s.Host("", bytes((10, 1, at, 1))), SERVER, call_id=at, answers=at).link()

    page = report(analyze([story.pcap(tmp_path / "many.pcap")]))

    assert page.count('<article class="card call">') == 40
    assert "80 more calls are not shown" in page
    assert len(page) < 2_000_000


def test_no_two_hosts_are_drawn_over_each_other(tmp_path: Path) -> None:
    """Clients that dial several servers, some of them twice: boxes must find their places."""
    story = Story()
    servers = (SERVER, s.OTHER_SERVER, s.ROUTER)
    for at in range(8):
        client = s.Host("", bytes((10, 1, 1, at // 3)))
        story.dial(client, servers[at * 2 % 3], call_id=at, answers=at, serial=at).link()
    page = report(analyze([story.pcap(tmp_path / "many.pcap")]))

    picture = page[page.index("<svg") : page.index("</svg>")]
    boxes = []
    for rectangle in re.findall(r"<rect ([^>]*) class=.host.>", picture):
        x, y, width, height = (
            float(re.search(rf'\b{name}="([^"]+)"', rectangle)[1])
            for name in ("x", "y", "width", "height")
        )
        boxes.append((x, y, x + width, y + height))
    assert len(boxes) > 6
    for one, two in combinations(boxes, 2):
        assert one[0] >= two[2] or two[0] >= one[2] or one[1] >= two[3] or two[1] >= one[3]


def test_the_command_writes_the_page_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"

    code = cli.main(["analyze", str(FOLDER / "healthy_mppe-lan.pcap"), "-o", "html",
                     "--output", str(path)])  # fmt: skip

    assert code == 0
    assert capsys.readouterr().out == ""
    assert path.read_text().startswith("<!DOCTYPE html>")


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if executable() is None:
        pytest.skip("chromium is not installed")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


PAGES = {
    **{name: lambda _, name=name: captured(name) for name in CAPTURES},
    "loop": lambda folder: page_of(troubles.pptp_in_the_tunnel_to_the_same_server, folder),
    "loss": lambda folder: page_of(troubles.one_of_twenty_is_lost, folder),
    "closed": lambda folder: page_of(troubles.reset_instead_of_syn_ack, folder),
    "hostile": lambda folder: page_of(hostile, folder),
}
#: Pictures that take room on the screen, text that does not leave its picture.
MEASURE = """(() => {
  const pictures = [...document.querySelectorAll('svg')];
  const shown = pictures.filter(each => each.getBoundingClientRect().height > 40);
  const spilt = pictures.flatMap(picture => {
    const box = picture.getBoundingClientRect();
    return [...picture.querySelectorAll('text')].filter(text => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
    }).map(text => text.textContent);
  });
  return {pictures: pictures.length, shown: shown.length, spilt,
          page: document.documentElement.scrollWidth,
          ground: getComputedStyle(document.body).backgroundColor,
          smallest: Math.min(...[...document.querySelectorAll('svg text')].map(
            text => text.getBoundingClientRect().height))};
})()"""


@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_every_picture_and_complains_of_nothing(
    name: str, browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.html"
    path.write_text(PAGES[name](tmp_path))
    grounds = set()

    for width, dark in ((PHONE, False), (PHONE, True), (1280, False)):
        browser.show(path, width=width, dark=dark)
        seen = browser.evaluate(MEASURE)

        assert seen["pictures"] == seen["shown"] >= 1
        assert seen["page"] <= width
        assert seen["spilt"] == []
        assert seen["smallest"] >= 8  # pixels from ascender to descender
        grounds.add(seen["ground"])
    assert len(grounds) == 2  # light and dark
    assert browser.complaints == []


def test_hostile_names_are_shown_as_they_are_and_do_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page_of(hostile, tmp_path))

    browser.show(path, width=PHONE)

    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert browser.evaluate("document.body.textContent.includes('<script>alert(1)')")


@given(st.sampled_from(sorted(FOLDER.glob("*.pcap"))), st.data())
@settings(max_examples=30, deadline=None)
def test_a_damaged_capture_has_a_page_too(
    tmp_path_factory: pytest.TempPathFactory, path: Path, data: st.DataObject
) -> None:
    octets = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 40))):
        at = data.draw(st.integers(24, len(octets) - 1))
        octets[at] = data.draw(st.integers(0, 255))
    damaged = tmp_path_factory.mktemp("damaged") / "capture.pcap"
    damaged.write_bytes(octets[: data.draw(st.integers(24, len(octets)))])

    read(report(analyze([damaged])))


def test_the_pictures_of_the_pages_are_those_of_the_report() -> None:
    docs = Path(__file__).parents[2] / "docs"

    for path, text in runpy.run_path(str(docs / "draw_report.py"))["drawn"]().items():
        assert path.read_text() == text, "run: .venv/bin/python docs/draw_report.py --write"
        ET.fromstring(text)
