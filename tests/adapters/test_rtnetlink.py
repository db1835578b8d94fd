"""Netlink that lists: what changes meanwhile."""

from __future__ import annotations

import struct

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.linux import rtnetlink
from pptp_nat.linux.netlink import F_DUMP_INTR, HEADER, NLMSG_DONE, NLMSG_ERROR
from pptp_nat.linux.rtnetlink import Asking

LISTED = 20  # RTM_NEWADDR


class Kernel:
    """Answers each request with the next of *lists*: kinds, flags and bodies."""

    def __init__(self, *lists: list[tuple[int, int, bytes]]) -> None:
        self._lists = list(lists)
        self._waiting: list[bytes] = []

    def send(self, request: bytes) -> None:
        _, _, _, sequence, _ = HEADER.unpack_from(request)
        self._waiting += [
            HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body
            for kind, flags, body in self._lists.pop(0)
        ]

    def recv(self, _octets: int) -> bytes:
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.pop(0)

    def close(self) -> None:
        pass


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Asking:
    monkeypatch.setattr(rtnetlink, "opened", lambda _protocol: Kernel(*request.param))
    return Asking()


TORN = [(LISTED, 0, b"old."), (LISTED, F_DUMP_INTR, b"half"), (NLMSG_DONE, F_DUMP_INTR, bytes(4))]
WHOLE = [(LISTED, 0, b"new."), (NLMSG_DONE, 0, bytes(4))]


@pytest.mark.parametrize("asking", [(TORN, TORN, WHOLE)], indirect=True)
def test_what_changes_while_it_is_listed_is_listed_again(asking: Asking) -> None:
    assert [b"new."] == asking.dump(22, b"")


@pytest.mark.parametrize("asking", [[TORN] * 5], indirect=True)
def test_a_list_that_never_rests_is_an_error_in_its_own_words(asking: Asking) -> None:
    with pytest.raises(AdapterError, match="listing addresses: Interrupted system call"):
        asking.dump(22, b"", doing="listing addresses")


REFUSED = [(NLMSG_ERROR, 0, struct.pack("=i", -95) + bytes(16))]


@pytest.mark.parametrize("asking", [[REFUSED] * 2], indirect=True)
def test_a_refusal_is_an_error_or_nothing(asking: Asking) -> None:
    with pytest.raises(AdapterError, match="listing devices: Operation not supported"):
        asking.dump(22, b"")
    assert [] == asking.dump(22, b"", may_fail=True)
