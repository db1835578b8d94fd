"""Log lines: one per event, whatever peers call themselves, and never more than are wanted."""

import enum
import io
import logging
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pptp_nat import log

#: a logfmt line: words of name=bare or name="quoted", by blanks
LOGFMT = re.compile(r'(?:\w+=(?:[!#-<>-\[\]-~]+|"(?:[ !#-\[\]-~]|\\.)*")(?: |$))+')


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def logger():
    """Give a logger of its own, without handlers."""
    logger = logging.getLogger("elsewhere")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()


@pytest.fixture
def written(logger):
    """Give what the logger wrote, as a function that returns the lines since the last call."""
    stream = io.StringIO()
    logger.addHandler(log.LineHandler(stream, 0, journal=True))

    def written():
        lines = stream.getvalue().splitlines()
        stream.seek(0)
        stream.truncate()
        return lines

    return written


def test_the_call_is_named_first(logger, written) -> None:
    """Its story is then one grep away."""
    log.event(
        logger, logging.INFO, "call-up", setup=0.0125, server="198.51.100.7", call=7,
        client=b"\xc0\xa8\x01\x14", connection=3, cause=None,
    )  # fmt: skip
    expected = (
        "<6>call=7 connection=3 client=192.168.1.20 server=198.51.100.7 event=call-up setup=0.0125"
    )

    assert [expected] == written()


def test_a_plain_message_is_a_field_too(logger, written) -> None:
    """Libraries log sentences."""
    logger.warning("queue %d is full", 1723)

    assert written() == ['<4>msg="queue 1723 is full"']


def test_an_exception_is_one_line(logger, written) -> None:
    """A traceback of many lines would be many events to a collector."""
    try:
        int("a\nb")
    except ValueError:
        logger.exception("failed")
    [line] = written()

    assert line.startswith('<3>msg=failed traceback="Traceback (most recent call last):\\n')
    assert "ValueError: invalid literal" in line


class Colour(enum.Enum):
    """Some enum."""

    DARK_RED = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("word", "word"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('a"b', r'"a\"b"'),
        ("a\\b", r'"a\\b"'),
        ("a\nb\r\tc", r'"a\nb\r\tc"'),
        ("\x1b[2J\x00\x7f", r'"\x1b[2J\x00\x7f"'),
        ("B\u00fcro \u202e", r'"B\xfcro \u202e"'),
        ("\ud800", r'"\ud800"'),
        (True, "true"),
        (7, "7"),
        (1.0, "1"),
        (0.0000004, "0"),
        (1234.5678901, "1234.56789"),
        (float("nan"), "nan"),
        (b"\x0a\x00\x00\x01", "10.0.0.1"),
        (b"\x0a\x00", "0a00"),
        (b"", '""'),
        (Colour.DARK_RED, "dark_red"),
        ("x" * 513, "x" * 512 + "..."),
    ],
)
def test_values_are_quoted_when_they_need_it(value, expected) -> None:
    """Bare words stay bare, so that people can read them."""
    assert expected == log.quoted(value)


@given(st.text() | st.binary() | st.floats() | st.integers())
def test_no_value_forges_a_field_or_a_line(value) -> None:
    """Peers choose host names and vendor strings."""
    assert LOGFMT.fullmatch(f"a={log.quoted(value)}")


def test_a_terminal_gets_time_and_level() -> None:
    """The journal keeps them itself."""
    record = logging.makeLogRecord({"created": 1772366400.25, "levelno": logging.INFO, "msg": "x"})

    assert log.LineFormatter(journal=False).format(record) == (
        "time=2026-03-01T12:00:00.250Z level=info msg=x"
    )


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6),
     (logging.DEBUG, 7), (5, 7)],
)  # fmt: skip
def test_levels_are_the_journals(level, priority) -> None:
    """sd-daemon(3)."""
    assert priority == log.priority(level)


def test_the_journal_is_known_by_its_stream() -> None:
    """The variable is inherited by programs whose output goes elsewhere."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        status = os.fstat(stream.fileno())
        ours = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

        assert log.is_journal(stream, ours)
        assert not log.is_journal(stream, {})
        assert not log.is_journal(stream, {"JOURNAL_STREAM": "1:1"})
    assert not log.is_journal(stream, ours)
    assert not log.is_journal(io.StringIO(), ours)


def test_a_storm_is_cut_and_told_of(logger) -> None:
    """A peer that connects in a loop must not fill the disk."""
    stream, clock = io.StringIO(), Clock()
    handler = log.LineHandler(stream, 10, journal=True, clock=clock)
    logger.addHandler(handler)
    for number in range(1000):
        logger.info("%d", number)
    assert len(stream.getvalue().splitlines()) == 10

    clock.now = 0.2
    logger.info("later")
    assert stream.getvalue().splitlines()[10:] == [
        "<4>event=log-suppressed suppressed=990",
        "<6>msg=later",
    ]


def test_the_end_of_a_storm_is_told_without_another_line(logger) -> None:
    """Silence after a storm would hide that lines are missing."""
    stream = io.StringIO()
    handler = log.LineHandler(stream, 1, journal=True, clock=Clock())
    logger.addHandler(handler)
    logger.info("first")
    logger.info("second")
    handler.tell_suppressed()
    handler.tell_suppressed()

    assert stream.getvalue().splitlines() == [
        "<6>msg=first",
        "<4>event=log-suppressed suppressed=1",
    ]


def test_errors_are_written_in_any_storm(logger) -> None:
    """They are our own and there is a reason to look at each."""
    stream = io.StringIO()
    logger.addHandler(log.LineHandler(stream, 1, clock=Clock()))
    for _ in range(5):
        logger.error("ours")

    assert len(stream.getvalue().splitlines()) == 5


def test_no_limit_is_no_limit(logger) -> None:
    """The rate 0."""
    stream = io.StringIO()
    logger.addHandler(log.LineHandler(stream, 0, clock=Clock()))
    for _ in range(5000):
        logger.info("x")

    assert len(stream.getvalue().splitlines()) == 5000


def test_a_log_that_nobody_reads_any_more_ends_no_call(logger) -> None:
    """A journal may restart, a terminal may close."""
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    handler = log.LineHandler(stream, 0)
    logger.addHandler(handler)
    os.close(read)
    logger.info("x" * 100)
    logger.info("y")

    assert handler.suppressed > 0
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_configuring_twice_writes_once() -> None:
    """Tests and reloads do that."""
    root = logging.getLogger(log.ROOT)
    before = (root.handlers[:], root.level, root.propagate)
    try:
        stream = io.StringIO()
        log.configure("info", 0, io.StringIO())
        log.configure("info", 0, stream)
        log.event(logging.getLogger("pptp_nat.x"), logging.INFO, "one")
        log.event(logging.getLogger("pptp_nat.x"), logging.DEBUG, "none")
        log.set_level("debug")
        log.event(logging.getLogger("pptp_nat.x"), logging.DEBUG, "two")
    finally:
        root.handlers[:], root.level, root.propagate = before
        root.setLevel(before[1])

    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == [
        "event=one",
        "event=two",
    ]


@pytest.fixture
def both_ways(monkeypatch):
    """Give a function that logs an event directly and by a record, and returns both texts."""
    package, of_module = logging.getLogger(log.ROOT), logging.getLogger(f"{log.ROOT}.some_module")
    monkeypatch.setattr(package, "propagate", False)
    monkeypatch.setattr(package, "level", logging.INFO)
    package.manager._clear_cache()

    def both_ways(level, fields, rate=0, times=1):
        texts = []
        for others in ([], [logging.NullHandler()]):  # who else listens wants records
            stream = io.StringIO()
            handler = log.LineHandler(stream, rate, journal=True, clock=Clock())
            monkeypatch.setattr(package, "handlers", [handler, *others])
            for _ in range(times):
                log.event(of_module, level, "call-up", **fields)
            handler.tell_suppressed()
            texts.append(stream.getvalue())
        return texts

    yield both_ways
    package.manager._clear_cache()


@given(
    fields=st.dictionaries(
        st.sampled_from(["call", "client", "server", "connection", "text", "cause", "n"]),
        st.none() | st.text() | st.integers() | st.binary() | st.floats() | st.booleans(),
    ),
    level=st.sampled_from([logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]),
    rate=st.integers(0, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_line_is_the_same_with_and_without_a_record(both_ways, fields, level, rate) -> None:
    """Records are left out where nobody but the handler would see them."""
    direct, recorded = both_ways(level, fields, rate, times=4)

    assert direct == recorded
    assert bool(direct) == (level >= logging.INFO)


def test_each_line_of_a_worker_says_whose_it_is(logger, written, monkeypatch) -> None:
    """At its end, where it disturbs nobody."""
    monkeypatch.setitem(log.ALWAYS, "worker", 1)
    log.event(logger, logging.INFO, "call-up", call=7, cause=None)

    assert written() == ["<6>call=7 event=call-up worker=1"]


def test_a_text_that_was_quoted_once_is_quoted_again() -> None:
    """Quoted texts are kept; one that equals another only nearly is another."""
    for _ in range(2):
        assert [log.quoted(each) for each in ("a b", "1", "True", "1.0")] == [
            '"a b"', "1", "True", "1.0",
        ]  # fmt: skip
    assert [log.quoted(each) for each in (True, 1, 1.0)] == ["true", "1", "1"]
    assert log.quoted("x" * 60, longest=10) == "x" * 10 + "..."
