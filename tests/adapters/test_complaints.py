"""What is refused five times a second is told once a minute."""

from __future__ import annotations

import errno

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.router.complaints import AGAIN_SECONDS, Complaints

FULL = AdapterError("inserting it", errno.ENOMEM, mend="make room")
OTHER = AdapterError("inserting it", errno.EPERM)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    lines = [(each.msg, each.fields.get("untold"), each.fields.get("seconds"))
             for each in caplog.records]  # fmt: skip
    caplog.clear()
    return lines


def test_a_refusal_is_told_at_once_then_once_a_minute_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pptp_nat")
    complaints = Complaints()
    for tenth in range(600):
        complaints.tell(FULL, 100 + tenth / 10)
    assert [("data-path-refused", None, None)] == told(caplog)
    complaints.tell(OTHER, 159.0)
    assert [("data-path-refused", None, None)] == told(caplog), "of another kind"
    complaints.tell(FULL, 100 + AGAIN_SECONDS)
    complaints.tell(FULL, 161.0)
    assert [("data-path-refused", 599, None)] == told(caplog)
    complaints.over(170.0)
    complaints.over(171.0)
    assert [("data-path-caught-up", 1, 70.0)] == told(caplog)


def test_what_is_not_tried_again_has_no_end_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    complaints = Complaints()
    complaints.tell(FULL, 1.0, waits=False)
    complaints.over(2.0)
    assert ["data-path-refused"] == [msg for msg, *_ in told(caplog)]
