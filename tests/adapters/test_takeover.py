"""Who may take over from a daemon."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pptp_nat.config import Config
from pptp_nat.errors import UsageError
from pptp_nat.state.takeover import hand_over, terms_of

_CARRIER = SimpleNamespace(path=SimpleNamespace(name="queue"))
DAEMON = cast("Any", SimpleNamespace(config=Config(), carrier=_CARRIER))


def test_only_root_and_the_daemon_s_own_user_may_take_over() -> None:
    """Whoever may ask for calls, as a member of the socket's group, gets no queue by that."""
    with pytest.raises(UsageError, match="only root or the daemon's own user may"):
        hand_over(DAEMON, "/nowhere", terms_of(DAEMON), os.geteuid() + 1)


def test_a_successor_that_is_gone_already_costs_nothing() -> None:
    with pytest.raises(UsageError, match="serving on"):
        hand_over(DAEMON, "/nowhere", terms_of(DAEMON), os.geteuid())


def test_a_successor_with_other_marks_is_refused() -> None:
    """Its rules and entries would not be those that are there."""
    theirs = terms_of(DAEMON)._replace(entry_mark=1, repeat_mark=2)
    with pytest.raises(UsageError, match="repeat_mark, entry_mark must be the same"):
        hand_over(DAEMON, "/nowhere", theirs, os.geteuid())
