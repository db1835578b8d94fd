"""Work shared out among processes is done, whatever becomes of them."""

from __future__ import annotations

import os
import threading

import pytest

from pptp_nat.analysis import apart


def test_each_share_is_done_by_a_process_of_its_own() -> None:
    found = apart.shared(lambda share: (share, os.getpid()), 3)

    assert [share for share, _ in found] == [0, 1, 2]
    assert len({process for _, process in found}) == 3
    assert found[0][1] == os.getpid()


def test_what_a_process_dies_of_is_done_here(capfd: pytest.CaptureFixture[str]) -> None:
    here = os.getpid()

    def work(share: int) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), 9)
        return share

    assert apart.shared(work, 2) == [0, 1]


def test_where_no_process_can_be_made_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refused)

    assert apart.shared(lambda share: (share, os.getpid()), 2) == [
        (0, os.getpid()), (1, os.getpid())
    ]  # fmt: skip


def test_a_process_with_threads_is_not_copied() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert apart.shares() == 1
    done.set()
    thread.join()
