"""``pptp-nat top``: what it shows of two looks, and what a real terminal shows of that."""

import dataclasses
import signal
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat import cli
from pptp_nat.errors import UsageError
from pptp_nat.tables import table
from pptp_nat.tables.table import ApiRow, Count, QueueRow, Side, StatusRow
from pptp_nat.tables.top import COLUMNS, Rate, Seen, Style, Top, age, rated, short
from tests.terminal import Terminal

from .packed_rows import packed_answer
from .test_cli import row
from .threaded_daemon import threaded_daemon

STATUS = StatusRow(
    version="9.9", pid=1, started=900.0, datapath="conntrack", datapath_reason="",
    queues=(QueueRow(1723, "control", bound=True),), calls={"up": 2}, connections={"open": 2},
    opaque=0, api=ApiRow(1, 0, 0, 0, 0),
)  # fmt: skip


def calls(*octets):
    """Return calls that have carried so many octets, a hundredth as many packets, each way."""
    return [
        dataclasses.replace(
            row(number, f"192.168.77.{number}"),
            to_remote=Count(count // 100, count), to_inside=Count(count // 50, 2 * count),
        )
        for number, count in enumerate(octets, 1)
    ]  # fmt: skip


def seen(at, rows, **changes):
    return Seen(at, 1000.0 + at, dataclasses.replace(STATUS, **changes), rows)


def two_looks(*octets, seconds=2.0):
    top = Top(2.0)
    top.look(seen(10.0, calls(*[0] * len(octets))))
    top.look(seen(10.0 + seconds, calls(*octets)))
    return top


def test_rates_are_what_came_on_top_per_second() -> None:
    """In both directions, packets and octets."""
    [one] = rated(seen(10.0, calls(1000)), seen(12.0, calls(5000)))

    assert one.to_remote == Rate(20.0, 2000.0)
    assert one.to_inside == Rate(40.0, 4000.0)


def test_a_call_that_was_not_there_before_has_no_rate_yet() -> None:
    """Its count is of all its life, not of two seconds."""
    first, second = rated(seen(10.0, calls(0)), seen(12.0, calls(100, 10_000)))

    assert first.to_remote.octets == 50.0
    assert second.to_remote == second.to_inside == Rate(None, None)


@pytest.mark.parametrize("before", [
    None, seen(10.0, calls(9000)), seen(10.0, calls(100), started=1.0), seen(12.0, calls(100)),
], ids=["first look", "counts fell", "another daemon", "no time between"])  # fmt: skip
def test_what_cannot_be_compared_has_no_rate(before) -> None:
    """A dash, and never a negative number."""
    [one] = rated(before, seen(12.0, calls(5000)))

    assert one.to_remote == Rate(None, None)


@given(st.floats(0, 1e15))
def test_rates_fit_into_their_column(value) -> None:
    """And say their size rightly."""
    text = short(value)
    units = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    shown = float(text.rstrip("kMGT")) * units.get(text[-1], 1)

    assert len(text) <= 6
    assert abs(shown - value) <= max(0.05, value * 0.05)


@given(st.floats(0, 1e8))
def test_ages_fit_into_their_column(seconds) -> None:
    """Down to the minute for days."""
    assert len(age(seconds)) <= 6


@given(
    st.integers(1, 300), st.integers(1, 100), st.integers(0, 60),
    st.lists(st.sampled_from([
        "UP", "DOWN", "PAGEUP", "PAGEDOWN", "HOME", "END", "<", ">", "r", " ", "+", "-", "/", "1",
        "x", "ENTER", "ESCAPE", "BACKSPACE", "j", "k", "\x7f", "",
    ]), max_size=12),
)  # fmt: skip
def test_the_screen_is_full_and_no_fuller_whatever_is_pressed(width, height, count, keys) -> None:
    """Terminals are dragged to any size."""
    top = two_looks(*range(count))
    for key in ["", *keys]:
        if not top.key(key):
            break
        lines = top.lines(width, height)

        assert len(lines) == height or height < 6
        assert len(lines) <= height
        assert all(len(line.text) <= width for line in lines)


def body(top, width=140, height=30):
    """Return the clients of the rows that are shown."""
    lines = top.lines(width, height)
    titles = next(at for at, line in enumerate(lines) if line.style is Style.TITLES)
    return [
        word for line in lines[titles + 1 : -1] for word in line.text.split()
        if word.startswith("192.168.77.")
    ]  # fmt: skip


def test_the_busiest_call_is_first() -> None:
    """That is what people open it for."""
    top = two_looks(100, 9000, 500)

    assert [each.rpartition(".")[2] for each in body(top)] == ["2", "3", "1"]
    top.key("r")
    assert [each.rpartition(".")[2] for each in body(top)] == ["1", "3", "2"]


@pytest.mark.parametrize("column", range(len(COLUMNS)))
def test_each_column_can_be_sorted_by(column) -> None:
    """With unknown numbers among them."""
    unknown = dataclasses.replace(
        calls(1)[0], id=9, remote=Side("198.18.7.2", None), external=Side("198.18.7.1", None)
    )
    top = Top(2.0)
    top.look(seen(10.0, [*calls(100, 9000), unknown]))
    for _ in range(column):
        top.key(">")
    order = COLUMNS[top.sort].order
    values = [order(each) for each in top.shown()]

    assert values == sorted(values, reverse=True)
    assert any("*" + COLUMNS[top.sort].title in line.text for line in top.lines(200, 20))


def test_a_filter_is_typed_and_lets_through_what_has_all_its_words() -> None:
    """Part of an address, a state, a number."""
    top = two_looks(*range(100, 112))
    top.key("/")
    for key in "77.1 up":
        top.key(key)

    assert {each.rpartition(".")[2] for each in body(top)} == {"1", "10", "11", "12"}
    top.key("q")  # is typed, and does not end it
    assert body(top) == []
    top.key("ESCAPE")
    assert len(body(top)) == 12
    assert top.key("q") is False


def test_a_pause_holds_the_picture() -> None:
    """To read it out to somebody on the telephone."""
    top = two_looks(100)
    before = top.lines(100, 10)[3:]
    top.key(" ")
    top.look(seen(14.0, calls(9000)))

    assert before == top.lines(100, 10)[3:]
    assert "PAUSED" in top.lines(100, 10)[1].text
    top.key(" ")
    top.look(seen(16.0, calls(9500)))
    assert before != top.lines(100, 10)[3:]


def test_where_room_is_short_the_dear_columns_stay() -> None:
    """Eighty characters show who, with whom and how much."""
    titles = next(line.text for line in two_looks(1).lines(80, 24) if line.style is Style.TITLES)

    assert {"CLIENT", "STATE", "SERVER", "IN", "OUT"} <= set(titles.split())
    assert "QUIET" not in titles


def test_trouble_is_shown_and_the_last_numbers_stay() -> None:
    """A daemon that is being upgraded comes back."""
    top = two_looks(100)
    top.trouble = "no daemon answers"

    assert top.lines(100, 20)[2] == ("no daemon answers", Style.ALERT)
    assert body(top)
    top.look(seen(20.0, calls(200)))
    assert top.trouble is None


def test_who_does_not_answer_is_said_above_what_the_others_have() -> None:
    """One worker that hangs takes its own calls from the screen, and no other's."""
    top = two_looks(100)
    rows = [*calls(9000), *calls(100, 9000)[1:]]
    top.look(seen(20.0, rows)._replace(missing="worker 1 does not answer"))

    assert top.lines(100, 20)[2] == ("worker 1 does not answer", Style.ALERT)
    assert len(body(top)) == len(rows)
    top.look(seen(24.0, rows))
    assert top.trouble is None


def test_without_a_terminal_there_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    """And the way to have numbers in a file."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert cli.main(["top", "--socket", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == (
        "pptp-nat: top needs a terminal; `pptp-nat list --watch` does not\n"
    )


def test_without_curses_it_says_where_that_is(tmp_path, capsys, monkeypatch) -> None:
    """Small routers have Python in pieces."""
    monkeypatch.delitem(sys.modules, "pptp_nat.commands.top", raising=False)
    monkeypatch.setitem(sys.modules, "curses", None)

    assert cli.main(["top", "--socket", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == (
        "pptp-nat: Python package curses is missing: on OpenWrt it is in the package "
        "python3-ncurses\n"
    )


# --- on a terminal ----------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon with two calls, of which one carries more each time that somebody asks."""
    octets = [0, 0]

    def answer(request):
        if request.do == "status":
            return table.status_item(STATUS)
        octets[1] += 100_000
        return packed_answer(calls(*octets))

    with threaded_daemon(tmp_path / "s", answer) as daemon:
        yield daemon


@pytest.fixture
def terminal(daemon):
    """Give a terminal on which top runs."""
    terminal = Terminal("top", "--socket", str(daemon.path), "--interval", "0.2")
    yield terminal
    terminal.close()


def busiest_first(lines):
    rows = [line.split() for line in lines if " 192.168.77." in line]
    return len(rows) == 2 and rows[0][2 if rows[0][0].isdigit() else 1] == "192.168.77.2"


def test_a_terminal_shows_the_calls_and_what_they_carry(terminal) -> None:
    """Over ssh as here: nothing but a terminal is needed."""
    terminal.until(busiest_first)
    terminal.until(lambda lines: any(line.rstrip().endswith("k") for line in lines))
    terminal.until("pptp-nat 9.9  conntrack  up ")
    terminal.until("q quit  / filter")


def test_keys_sort_filter_and_end_it(terminal) -> None:
    """And the terminal is given back as it was."""
    terminal.until(busiest_first)
    terminal.press("/77.1\n")
    terminal.until(lambda lines: sum(" 192.168.77." in line for line in lines) == 1)
    terminal.press("/\x1b")
    terminal.until(lambda lines: sum(" 192.168.77." in line for line in lines) == 2)
    terminal.press("\x1b[C")  # the right arrow, where keys are not in application mode
    terminal.press("r")
    terminal.until(" up  filter")
    terminal.press("q")

    assert terminal.process.wait(30) == 0
    terminal.read()
    assert b"\x1b[?1049l" in terminal.octets  # back to the screen that was there before
    assert termios.tcgetattr(terminal.ours)[3] & (termios.ECHO | termios.ICANON) == (
        termios.ECHO | termios.ICANON
    )


def test_it_follows_the_size_of_the_terminal(terminal) -> None:
    """Smaller and larger while it runs."""
    terminal.until(busiest_first)
    terminal.resize(60, 10)
    terminal.until(lambda lines: len(lines) == 10 and "q quit" in lines[-1])
    terminal.until(lambda lines: "SERVER" in lines[3] and "QUIET" not in lines[3])
    terminal.resize(160, 40)
    terminal.until(lambda lines: "QUIET" in lines[3] and "q quit" in lines[-1])
    assert terminal.process.poll() is None


def test_only_what_has_changed_is_sent(terminal) -> None:
    """A screen that is wiped and painted anew flickers, and is slow over a thin line."""
    terminal.until(busiest_first)
    terminal.until(lambda lines: any(line.rstrip().endswith("k") for line in lines))
    terminal.octets = b""
    before = terminal.screen.display
    terminal.until(lambda lines: lines != before)

    assert b"\x1b[2J" not in terminal.octets
    assert b"\x1b[H\x1b[J" not in terminal.octets
    assert len(terminal.octets) < 24 * 100 / 4


def test_it_outlives_the_daemon(terminal, daemon) -> None:
    """Whoever watches an upgrade sees the calls again afterwards."""
    terminal.until(busiest_first)
    daemon.close()
    terminal.until("no daemon answers on")
    daemon.start()
    terminal.until(lambda lines: not any("no daemon answers" in line for line in lines))
    terminal.until(busiest_first)


def test_a_worker_that_hangs_leaves_the_others_on_the_screen(tmp_path) -> None:
    """Their rates go on, and who comes back is there again."""
    octets, hangs = [0, 0], [True]

    def some():
        octets[1] += 100_000
        yield from packed_answer(calls(*octets))
        if hangs[0]:
            raise UsageError("worker 1 does not answer: its calls are not among these")

    def answer(request):
        return table.status_item(STATUS) if request.do == "status" else some()

    with threaded_daemon(tmp_path / "s", answer) as daemon:
        terminal = Terminal("top", "--socket", str(daemon.path), "--interval", "0.2")
        try:
            terminal.until("worker 1 does not answer")
            terminal.until(busiest_first)
            terminal.until(lambda lines: any(line.rstrip().endswith("k") for line in lines))
            assert terminal.shows("worker 1 does not answer")
            hangs[0] = False
            terminal.until("sorted by ")
            terminal.until(busiest_first)
        finally:
            terminal.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(terminal, number) -> None:
    """A shell whose echo is off is a riddle to its user."""
    terminal.until(busiest_first)
    terminal.process.send_signal(number)

    assert terminal.process.wait(30) == 130
    assert termios.tcgetattr(terminal.ours)[3] & termios.ECHO


def test_without_its_terminal_it_ends(terminal) -> None:
    """Reading a terminal that is gone returns at once: it would spin for ever."""
    terminal.until(busiest_first)
    terminal.hang_up()

    assert terminal.process.wait(30) in (0, 1, 130)  # nobody is left to be told why


def test_a_terminal_that_nobody_knows_is_told(daemon) -> None:
    """One line, no traceback."""
    terminal = Terminal("top", "--socket", str(daemon.path), term="nonesuch")
    try:
        terminal.until("this terminal (TERM='nonesuch') cannot show top")
        assert terminal.process.wait(30) == 1
        assert b"Traceback" not in terminal.octets
    finally:
        terminal.close()


def test_counts_that_were_not_read_anew_leave_the_rates_as_they_were() -> None:
    """Those of 100,000 calls are not read for every look; a rate over no time would be none."""
    top = Top(2.0)
    first, second = (
        Seen(at, 1000.0 + at, STATUS, calls(count)) for at, count in ((10.0, 0), (20.0, 1000))
    )
    top.look(first)
    top.look(second)
    rates = [each.to_remote for each in top.shown()]
    top.look(second._replace(at=20.00001, wall=1022.0))

    assert rates == [each.to_remote for each in top.shown()] == [Rate(1.0, 100.0)]
    assert top.seen.wall == 1022.0
    top.look(Seen(30.0, 1030.0, STATUS, calls(3000)))
    assert [Rate(2.0, 200.0)] == [each.to_remote for each in top.shown()]
