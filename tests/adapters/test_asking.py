"""Workers asked side by side: one that hangs, and one that is away, hold nobody else up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pptp_nat import api, cli
from pptp_nat.api import Request
from pptp_nat.config import Config
from pptp_nat.errors import UsageError
from pptp_nat.tables.table import (
    ApiRow,
    CallRow,
    ControlEnds,
    Count,
    Result,
    Side,
    StatusRow,
    status_item,
)  # fmt: skip
from pptp_nat.workers import asking
from pptp_nat.workers.crew import Member
from pptp_nat.workers.merged import Merged

from .packed_rows import packed_answer
from .threaded_daemon import threaded_daemon

pytest.importorskip("prometheus_client")

from pptp_nat.scrape.metrics import Distribution, Sample
from pptp_nat.workers.figures import Figures

COUNT = 4
HANGS, AWAY = 1, 2  # who of them
LONG = 1.0  # seconds of patience; the daemon's own are five times as many


def status(index: int) -> Mapping[str, object]:
    return status_item(StatusRow(
        "1", 100 + index, 0.0, "conntrack", "", (), {"up": 10 + index}, {"open": 1}, 0,
        ApiRow(0, 0, 0, 0, 0),
    ))  # fmt: skip


def row(index: int) -> CallRow:
    return CallRow(
        id=index, state="up", role="PAC", direction="outgoing",
        inside=Side("10.0.0.1", index), external=Side("198.18.7.1", index),
        remote=Side("198.18.7.2", 7), control=ControlEnds("10.0.0.1", 1, "198.18.7.2", 1723),
        created=1.0, up_since=2.0, setup_seconds=1.0, last_seen=None, to_remote=Count(0, 0),
        to_inside=Count(0, 0), mark=0, result=Result(None, None), connection=1, cause=None,
    )  # fmt: skip


def worker(index: int, stub: Stub) -> Callable[[Request], Any]:
    """Return what answers as worker *index*, which has one call."""

    def answer(request: Request) -> Any:
        if request.do == "status":
            return status(index)
        if request.do == "clear":
            return {"cleared": 1}
        if request.do == "figures":
            return iter([
                {"family": "calls", "samples": [[["up"], 10 + index]]},
                {"family": "calls_established_total", "samples": [[[], stub.counted[index]]]},
                {"family": "call_setup_duration_seconds", "samples": [
                    [[], {"bounds": [1.0], "counts": [stub.counted[index], 0], "total": 2.0}]
                ]},
                {"family": "paced_packets_total", "samples": [] if index else [[["openers"], 7]]},
                {"family": "scrape_longest_step_seconds", "samples": [[[], 0.5]]},
            ])  # fmt: skip
        if request.do == "list" and set(request.arguments) <= {"packed"}:
            return packed_answer([row(index)])
        raise UsageError(f"worker {index} cannot do that")

    return answer


class Stub:
    """As much of a supervisor as is asked for."""

    def __init__(self, directory: Path) -> None:
        self._places = [directory / str(index) for index in range(COUNT)]
        self.hanging: set[int] = set()  #: known to
        self.config = Config()
        self.started = 0.0
        self.datapath, self.datapath_reason = "conntrack", ""
        self.restarts = 1
        self.died = [0] * COUNT
        self.counted = [100] * COUNT  #: of workers, calls
        self.exporter = SimpleNamespace(meter=SimpleNamespace(reloads_good=True, reloaded=0.0))

    def sockets(self) -> list[Path]:
        return self._places

    def generations(self) -> list[int]:
        return list(self.died)

    def missing(self) -> list[int]:
        return [AWAY]

    def places(self) -> dict[int, Path]:
        return {i: p for i, p in enumerate(self._places) if i != AWAY and i not in self.hanging}

    def api_row(self) -> ApiRow:
        return ApiRow(1, 0, 0, 0, 0)


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Have the supervisor of workers of which one hangs and one is away."""
    monkeypatch.setattr(asking, "PATIENCE", LONG)
    stub = Stub(tmp_path)
    with contextlib.ExitStack() as held:
        for index, place in enumerate(stub.sockets()):
            if index == HANGS:
                hung = held.enter_context(socket.socket(socket.AF_UNIX))
                hung.bind(str(place))
                hung.listen()
            elif index != AWAY:
                held.enter_context(threaded_daemon(place, worker(index, stub)))
        yield stub


@pytest.fixture
def merged(crew: Stub, tmp_path: Path) -> Iterator[Path]:
    """Have that supervisor answer, and return where."""
    answers = Merged(crew)  # type: ignore[arg-type]
    with threaded_daemon(tmp_path / "s", answers) as daemon:
        yield daemon.path


def test_the_status_of_the_others_says_who_does_not_answer(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = api.ask(merged, {"do": "status"})

    assert {"up": 10 + 13} == answer["calls"]
    assert [HANGS] == answer["silent"]
    queue = Config().control.queue
    assert not next(each for each in answer["queues"] if each["queue"] == queue + AWAY)["bound"]
    assert cli.FAILED == cli.main(["status", "--socket", str(merged)])
    shown = capsys.readouterr()
    assert f"workers that do not answer {HANGS}" in shown.out


def test_a_list_has_the_calls_of_the_others_and_ends_with_who_is_missing(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.FAILED == cli.main(["list", "--socket", str(merged)])

    shown = capsys.readouterr()
    assert 2 == len(shown.out.splitlines())
    (line,) = shown.err.splitlines()
    assert f"worker {AWAY} is being started again, worker {HANGS} does not answer" in line


def test_calls_are_cleared_at_the_others_and_that_is_said(merged: Path) -> None:
    with pytest.raises(UsageError, match=f"2 calls cleared, but .*worker {HANGS} does not answer"):
        api.ask(merged, {"do": "clear", "client": "10.0.0.1"})


def test_a_scrape_has_the_figures_of_the_others(crew: Stub) -> None:
    found = scrape(Figures(crew, 5))  # type: ignore[arg-type]

    assert 10 + 13 == found["calls"][0].value
    assert 2 == found["workers"][0].value


def scrape(figures: Figures) -> dict[str, list[Sample]]:
    taking = figures.take()
    while True:
        try:
            next(taking)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]


def test_counters_of_all_workers_never_fall(
    crew: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum that fell would be as much counted anew: Prometheus takes it for a restart."""
    crew.hanging = {HANGS}
    figures = Figures(crew, 5)  # type: ignore[arg-type]

    def told() -> tuple[object, object, object]:
        found = scrape(figures)
        setups = found["call_setup_duration_seconds"][0].value
        assert isinstance(setups, Distribution)
        return (
            found["calls_established_total"][0].value, setups.counts[0],
            found["paced_packets_total"][0].value,
        )  # fmt: skip

    assert (200, 200, 7) == told()
    crew.hanging = {HANGS, 0}  # it does not answer for a while
    assert (200, 200, 7) == told()
    crew.died[0], crew.counted[0] = 1, 3  # it was killed, and another has counted three
    assert (200, 200, 7) == told()
    crew.hanging = {HANGS}
    assert (203, 203, 7) == told()
    crew.died[0], crew.counted[0] = 2, 1
    assert (204, 204, 7) == told()
    assert (204, 204, 7) == told()


def test_while_one_hangs_the_loop_turns_and_nobody_waits_twice(crew: Stub) -> None:
    """One worker's silence is waited for once, not once per worker, and in short steps."""
    round_ = asking.Round(
        {0: crew.sockets()[0], 1: crew.sockets()[HANGS], 2: crew.sockets()[HANGS]},
        {"do": "status"},
    )  # fmt: skip
    longest, began = 0.0, time.process_time()
    turns = 0
    for said in round_:
        assert said is None
        turns += 1
        longest = max(longest, time.process_time() - began)
        began = time.process_time()

    assert {1, 2} == set(round_.silent)
    assert {0} == set(round_.answered)
    assert turns > 10
    assert longest < LONG / 2


def test_many_who_ask_wait_no_longer_than_one(merged: Path) -> None:
    """Their waiting is shared: each in its turn would have the last wait for all of them."""
    askers = [
        threading.Thread(target=api.ask, args=(merged, {"do": "status"}), kwargs={"timeout": 600})
        for _ in range(8)
    ]
    began = time.monotonic()
    for each in askers:
        each.start()
    for each in askers:
        each.join()

    assert time.monotonic() - began < 8 * LONG
    assert 0 == asking.Round.waiting


def test_who_is_known_to_hang_is_not_asked_again(
    crew: Stub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 600.0)  # nobody could wait so long
    crew.hanging = {HANGS}

    assert [HANGS] == api.ask(merged, {"do": "status"})["silent"]

    member = Member(HANGS)
    assert not member.owes(100.0, 5.0)
    member.asked = 90.0
    assert member.owes(100.0, 5.0)
    assert not member.owes(94.0, 5.0)


@pytest.mark.parametrize("word", ["dance", "configure", "figures"])
def test_no_word_goes_to_workers_but_those_for_everybody(merged: Path, word: str) -> None:
    """A worker would take a new configuration from whoever may ask the supervisor for anything."""
    with pytest.raises(UsageError, match=f"{word}: no such request; there are status, list"):
        api.ask(merged, {"do": word})


def test_what_all_workers_refuse_is_refused_in_their_words(merged: Path) -> None:
    with pytest.raises(UsageError, match=r"worker \d cannot do that"):
        list(api.stream(merged, {"do": "list", "colour": "red"}))
