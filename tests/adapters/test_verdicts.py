"""The kernel takes no verdict for a while: every packet gets its own, and what ended is ended.

A pair of unix sockets stands in for the kernel's queue, so nobody has to be root.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pptp_nat.core.calls import Call
from pptp_nat.core.events import Outcome, Released, Verdict
from pptp_nat.linux.nfqueue import FORWARD, Queue
from pptp_nat.router.judge import Judge

from .test_carried import EXTERNALS, call
from .test_effects import Router, comes_up, ends
from .test_gre_queue import MARK, message

REFUSED = OSError(errno.ENOBUFS, "no memory for it")


class Desk:
    """A queue whose packets are judged as the test says, and a kernel that may not listen."""

    def __init__(self) -> None:
        self.router = Router()
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.setblocking(False)
        self.outcomes: list[Outcome] = []
        translator = SimpleNamespace(handle=lambda *_, **__: self.outcomes.pop(0))
        self.judge = Judge(translator, None)  # type: ignore[arg-type]
        self.judge.effects = self.router.effects
        self.queue = Queue(
            17, self.judge.judge, self.router.faults.append, length=100, buffer=1 << 16,
            repeat_mark=MARK, batch=1, inherited=ours.detach(),
        )  # fmt: skip
        self.kernel.recv(1 << 10)  # how many packets a queue that is taken over may hold
        self.queue.attend(self.router.effects.before, self.router.effects.after)
        self._named = 0

    def arrive(self, *outcomes: Outcome) -> list[int]:
        """Have packets come to which *outcomes* answer; return the kernel's names for them."""
        self.outcomes += outcomes
        names = [self._named + n for n in range(1, len(outcomes) + 1)]
        for name in names:
            self.kernel.send(message(name, FORWARD, bytes(40)))
        self._named += len(outcomes)
        return names

    def deafen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the kernel refuse every send from here on."""

        def refuse(_octets: bytes) -> int:
            raise REFUSED

        ears = SimpleNamespace(send=refuse, recv_into=self.queue._socket.recv_into)
        monkeypatch.setattr(self.queue, "_socket", ears)

    def heard(self) -> list[int]:
        """Return whose verdicts the kernel has got."""
        names = []
        while True:
            try:
                octets = self.kernel.recv(1 << 16)
            except BlockingIOError:
                return names
            while octets:
                (length,) = struct.unpack_from("=I", octets)
                names.append(int.from_bytes(octets[28:32], "big"))
                octets = octets[length + 3 & ~3 :]


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.queue.close()
    made.kernel.close()


def up_and_carried(desk: Desk) -> Call:
    made = call(1, EXTERNALS[0], 100)
    desk.router.judge(*comes_up(made))
    desk.router.send()
    assert 2 == len(list(desk.router.path.matches()))
    return made


@pytest.mark.parametrize("verdict", [Verdict.ACCEPT, Verdict.DROP])
def test_legs_of_a_call_that_has_ended_go_though_the_kernel_takes_no_verdict(
    desk: Desk, verdict: Verdict
) -> None:
    """Else they would carry GRE of nobody, as long as this process lives."""
    made = up_and_carried(desk)
    with pytest.MonkeyPatch.context() as patch:
        desk.deafen(patch)
        names = desk.arrive(Outcome(verdict, events=ends(made)))
        with pytest.raises(OSError, match="no memory"):
            desk.queue.serve(10)
    assert [] == desk.heard()
    desk.queue.serve(10)

    assert names == desk.heard(), "one verdict, none twice"
    assert [] == list(desk.router.path.matches())
    assert {1} == set(desk.router.ended)


def test_a_packet_that_lets_held_ones_go_has_its_verdict_too(desk: Desk) -> None:
    """One packet without a verdict takes a place in the kernel's queue for good."""
    made = up_and_carried(desk)
    first, second = desk.arrive(Outcome(Verdict.HOLD), Outcome(Verdict.HOLD))
    desk.queue.serve(10)
    released = [Released(number, bytes(40)) for number in (1, 2)]
    with pytest.MonkeyPatch.context() as patch:
        desk.deafen(patch)
        (third,) = desk.arrive(Outcome(events=ends(made), released=released))
        with pytest.raises(OSError, match="no memory"):
            desk.queue.serve(10)
    desk.queue.serve(10)

    assert [first, second, third] == desk.heard()
    assert [] == list(desk.router.path.matches())


def test_what_no_packet_has_caused_is_carried_out_though_the_kernel_takes_no_verdict(
    desk: Desk,
) -> None:
    """A time that runs out lets a packet go and ends a call."""
    made = up_and_carried(desk)
    names = desk.arrive(Outcome(Verdict.HOLD))
    desk.queue.serve(10)
    with pytest.MonkeyPatch.context() as patch:
        desk.deafen(patch)
        outcome = Outcome(events=ends(made), released=[Released(1, bytes(40))])
        with pytest.raises(OSError, match="no memory"):
            desk.judge.carry_out(desk.queue, outcome, 2.0)
    desk.queue.serve(10)

    assert names == desk.heard()
    assert [] == list(desk.router.path.matches())


def test_what_waits_for_the_kernel_is_never_more_in_one_send_than_it_takes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of packets that are rewritten; one send of them all would be refused for ever."""
    room = desk.queue._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    ours, names = desk.queue._socket, []
    with monkeypatch.context() as patch:
        desk.deafen(patch)
        for _ in range(2 * room // 1400):
            names += desk.arrive(Outcome(packet=bytes(1400)))
            with pytest.raises(OSError, match="no memory"):
                desk.queue.serve(10)
    sizes, heard = [], []

    def send(octets: bytes) -> int:
        sizes.append(len(octets))
        sent = ours.send(octets)
        heard.extend(desk.heard())
        return sent

    ears = SimpleNamespace(send=send, recv_into=ours.recv_into)
    with monkeypatch.context() as patch:
        patch.setattr(desk.queue, "_socket", ears)
        desk.queue.serve(10)

    assert names == heard
    assert max(sizes) < room
    assert sum(sizes) > room
