"""Scrapes: one reading for all who ask, in small steps, and an answer whatever happens."""

from __future__ import annotations

import gzip
import selectors
import socket
import sys
from http import HTTPStatus
from types import SimpleNamespace

import pytest

from pptp_nat.config import Config, Metrics
from pptp_nat.config_values import Endpoint
from pptp_nat.errors import AdapterError, ConfigError
from pptp_nat.scrape import exporter as module
from pptp_nat.scrape.exporter import Exporter, credentials
from pptp_nat.scrape.http1 import Request
from pptp_nat.scrape.measuring import exporter_for
from pptp_nat.scrape.meter import Meter
from pptp_nat.scrape.metrics import Sample

STEPS = 7
OPENMETRICS = {"accept": "application/openmetrics-text"}
GZIP = {"accept-encoding": "deflate, gzip;q=0.8"}


class Readings:
    """Reads nothing, in some steps; counts how often, and fails on demand."""

    def __init__(self):
        self.taken = 0
        self.fault = None

    def expect(self, when):
        """Nobody counts here."""

    def longest(self, step):
        return step

    def unbound(self):
        return 65000

    def take(self):
        self.taken += 1
        for _ in range(STEPS):
            yield
            if self.fault is not None:
                raise self.fault
        return {"calls": [Sample(("up",), self.taken)]}


class Clock:
    """Stands in for the module `time`: one step takes a millisecond and a bit."""

    now = 100.0

    def monotonic(self):
        return self.now

    def thread_time(self):
        self.now += 0.0006
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def built(config=None):
    daemon = SimpleNamespace(selector=None)
    return Exporter(daemon, config or Metrics(listen=None), Readings(), Meter())


def ask(exporter, path="/metrics", method="GET", **fields):
    """Return a list that holds the answer once it is there."""
    answers = []
    exporter.handle(Request(method, path, fields), answers.append)
    return answers


def work(exporter, clock):
    """Turn the loop until nothing is due; return the number of turns."""
    turns = 0
    while (due := exporter.next_timer()) is not None and due <= clock.now:
        exporter.tick(clock.now)
        turns += 1
        assert turns < 1000, "it never ends"
    return turns


def test_all_who_ask_share_one_reading_each_in_the_form_asked_for(clock) -> None:
    """Ten scrapers cost as much as one."""
    exporter = built()
    answers = [ask(exporter) for _ in range(5)]
    answers += [ask(exporter, **GZIP), ask(exporter, **OPENMETRICS), ask(exporter, **GZIP)]
    assert [[]] * 8 == answers
    turns = work(exporter, clock)

    assert turns > STEPS  # a verdict can come between any two of them
    assert 1 == exporter.readings.taken
    bodies = [each[0].body for each in answers]
    assert 1 == len(set(bodies[:5]))
    assert b'pptp_nat_calls{state="up"} 1.0\n' in bodies[0]
    assert bodies[5] == bodies[7]
    assert gzip.decompress(bodies[5]).startswith(bodies[0][:200])
    assert bodies[6].endswith(b"# EOF\n")
    assert "Content-Encoding: gzip" in answers[5][0].fields
    assert "Content-Encoding: gzip" not in answers[0][0].fields


def test_a_reading_is_good_for_a_while_and_then_made_anew(clock) -> None:
    """Whoever asks without pause takes a tenth of the processor at most."""
    exporter = built()
    first = ask(exporter)
    work(exporter, clock)
    again = ask(exporter)
    assert first[0].body == again[0].body  # at once
    other = ask(exporter, **OPENMETRICS)  # another form of the same
    work(exporter, clock)
    assert 1 == exporter.readings.taken
    assert b'pptp_nat_calls{state="up"} 1.0\n' in other[0].body

    clock.now += 1.0
    later = ask(exporter)
    work(exporter, clock)
    assert 2 == exporter.readings.taken
    assert b'pptp_nat_calls{state="up"} 2.0\n' in later[0].body


@pytest.mark.parametrize("good", [True, False])
def test_who_has_reloaded_sees_how_it_went_however_good_the_last_reading_is(clock, good) -> None:
    """Whoever changes a configuration looks at once whether it was taken over."""
    exporter = built()
    ask(exporter)
    work(exporter, clock)
    exporter.meter.reloading(good=good)
    exporter.meter.reloaded += good  # the clock may not have moved
    answer = ask(exporter)
    work(exporter, clock)

    assert 2 == exporter.readings.taken
    assert 1 == len(answer)


@pytest.mark.parametrize("fault", [ZeroDivisionError("a bug"), AdapterError("reading", 5)])
def test_a_reading_that_fails_is_answered_and_the_next_one_works(clock, fault) -> None:
    """A bug in what is shown must not leave anybody waiting, nor stop the daemon."""
    exporter = built()
    exporter.readings.fault = fault
    answers = ask(exporter)
    with pytest.raises(type(fault)):  # the loop logs it and goes on
        work(exporter, clock)
    assert HTTPStatus.INTERNAL_SERVER_ERROR == answers[0].status
    assert exporter.next_timer() is None

    exporter.readings.fault = None
    answers = ask(exporter)
    work(exporter, clock)
    assert HTTPStatus.OK == answers[0].status


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/healthz", "HEAD", 200),
        ("/readyz", "GET", 503),  # queue 65000 is nobody's
        ("/metrics/", "GET", 404),
        ("/metrics", "POST", 405),
        ("/healthz", "DELETE", 405),
    ],
)
def test_each_path_has_its_answer(path, method, status) -> None:
    """Health checks look at the status only."""
    assert status == ask(built(), path, method)[0].status


@pytest.mark.parametrize(
    ("accept", "taken"),
    [("gzip", True), ("br, GZIP ; q=0.5", True), ("", False), ("gzip;q=0", False),
     ("identity", False), ("x-gzip", False)],
)  # fmt: skip
def test_gzip_is_for_those_who_take_it(accept, taken) -> None:
    """Octets that a client cannot read are no answer."""
    assert taken == module._takes_gzip(accept)


def test_a_textfile_that_cannot_be_written_is_told_once_and_counted(
    clock, tmp_path, caplog
) -> None:
    """The daemon carries calls all the same, and the file comes when its directory does."""
    place = tmp_path / "later" / "pptp-nat.prom"
    exporter = built(Metrics(listen=None, textfile=place, textfile_interval=5))
    exporter.begin()
    for _ in range(3):
        work(exporter, clock)
        clock.now += 5
    assert 3 == exporter.failures
    assert 1 == sum("metrics-trouble" in str(each.__dict__) for each in caplog.records)

    place.parent.mkdir()
    work(exporter, clock)
    assert "\npptp_nat_textfile_failures_total 3.0\n" in place.read_text()
    assert [place] == list(place.parent.iterdir())
    exporter.close()
    assert [] == list(place.parent.iterdir())


def test_a_textfile_of_a_successor_is_left_alone(clock, tmp_path) -> None:
    """In an upgrade the old daemon ends after the new one has begun."""
    place = tmp_path / "pptp-nat.prom"
    old, new = (built(Metrics(listen=None, textfile=place)) for _ in range(2))
    for exporter in (old, new):
        exporter.begin()
        work(exporter, clock)
    old.close()
    assert place.exists()
    new.close()
    assert not place.exists()


def test_a_port_that_a_predecessor_still_has_is_had_a_second_later(clock, caplog) -> None:
    """An upgrade without a gap is no trouble to tell of."""
    with socket.socket() as taken, selectors.DefaultSelector() as selector:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        exporter = built(Metrics(listen=Endpoint("127.0.0.1", taken.getsockname()[1])))
        exporter._daemon.selector = selector
        exporter.begin()
        assert exporter._server is None
        taken.close()
        clock.now += 1.0
        work(exporter, clock)
        assert exporter._server is not None
        assert [] == [each for each in caplog.records if each.levelname == "ERROR"]
        exporter.close()


def test_without_the_package_calls_are_carried_all_the_same(monkeypatch, caplog) -> None:
    """A router's owner may have left it out to save room."""
    daemon = SimpleNamespace(config=Config())
    monkeypatch.delitem(sys.modules, "pptp_nat.scrape.exporter")
    monkeypatch.setitem(sys.modules, "pptp_nat.scrape.metrics", None)
    assert exporter_for(daemon, lambda *_: Readings()) is None
    (record,) = caplog.records
    assert 'write metrics.listen = "off"' in str(record.__dict__)

    off = Metrics(listen=None)
    assert exporter_for(SimpleNamespace(config=Config(metrics=off)), lambda *_: Readings()) is None
    assert 1 == len(caplog.records)


@pytest.mark.parametrize("text", ["", "\n \n", "two words", "g\u00fcltig"])
def test_a_file_without_token_is_refused(tmp_path, text) -> None:
    """An empty token would be known to everybody."""
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"metrics\.token_file: .*; write one word"):
        credentials(Metrics(token_file=file))
    with pytest.raises(ConfigError, match="No such file"):
        credentials(Metrics(token_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("sent", "admitted"),
    [("Bearer secret", True), ("bearer  secret ", True), ("Basic secret", False),
     ("Bearer secre", False), ("Bearer ", False), ("", False), ("Bearer \u00e9", False)],
)  # fmt: skip
def test_a_token_is_compared_whole(tmp_path, clock, sent, admitted) -> None:
    """And in constant time, which no test can see."""
    file = tmp_path / "token"
    file.write_text("secret\n")
    exporter = built(Metrics(listen=None, token_file=file))
    answers = ask(exporter, authorization=sent)
    work(exporter, clock)

    assert (200 if admitted else 401) == answers[0].status
