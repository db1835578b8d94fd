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
from pptp_nat.daemon import Daemon
from pptp_nat.linux.nfqueue import FORWARD, Queue

from .test_carried import EXTERNALS, call
from .test_effects import Router, comes_up, ends
from .test_gre_queue import MARK, message

REFUSED = OSError(errno.ENOBUFS, "no memory for it")


class Judge:
    """A daemon that judges control packets as the test says, and a kernel that may not listen."""

    def __init__(self) -> None:
        self.router = Router()
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.setblocking(False)
        self.outcomes: list[Outcome] = []
        self.daemon = daemon = Daemon.__new__(Daemon)
        daemon.translator = SimpleNamespace(  # type: ignore[assignment]
            handle=lambda *_, **__: self.outcomes.pop(0)
        )
        daemon._effects = self.router.effects
        daemon._meter = None
        self.queue = daemon.control_queue = Queue(
            17, daemon._judge, self.router.faults.append, length=100, buffer=1 << 16,
            repeat_mark=MARK, batch=1, inherited=ours.detach(),
        )  # fmt: skip
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
def judge() -> Iterator[Judge]:
    made = Judge()
    yield made
    made.queue.close()
    made.kernel.close()


def up_and_carried(judge: Judge) -> Call:
    made = call(1, EXTERNALS[0], 100)
    judge.router.judge(*comes_up(made))
    judge.router.send()
    assert 2 == len(list(judge.router.path.matches()))
    return made


@pytest.mark.parametrize("verdict", [Verdict.ACCEPT, Verdict.DROP])
def test_legs_of_a_call_that_has_ended_go_though_the_kernel_takes_no_verdict(
    judge: Judge, verdict: Verdict
) -> None:
    """Else they would carry GRE of nobody, as long as this process lives."""
    made = up_and_carried(judge)
    with pytest.MonkeyPatch.context() as patch:
        judge.deafen(patch)
        names = judge.arrive(Outcome(verdict, events=ends(made)))
        with pytest.raises(OSError, match="no memory"):
            judge.queue.serve(10)
    assert [] == judge.heard()
    judge.queue.serve(10)

    assert names == judge.heard(), "one verdict, none twice"
    assert [] == list(judge.router.path.matches())
    assert {1} == set(judge.router.ended)


def test_a_packet_that_lets_held_ones_go_has_its_verdict_too(judge: Judge) -> None:
    """One packet without a verdict takes a place in the kernel's queue for good."""
    made = up_and_carried(judge)
    first, second = judge.arrive(Outcome(Verdict.HOLD), Outcome(Verdict.HOLD))
    judge.queue.serve(10)
    released = [Released(number, bytes(40)) for number in (1, 2)]
    with pytest.MonkeyPatch.context() as patch:
        judge.deafen(patch)
        (third,) = judge.arrive(Outcome(events=ends(made), released=released))
        with pytest.raises(OSError, match="no memory"):
            judge.queue.serve(10)
    judge.queue.serve(10)

    assert [first, second, third] == judge.heard()
    assert [] == list(judge.router.path.matches())


def test_what_no_packet_has_caused_is_carried_out_though_the_kernel_takes_no_verdict(
    judge: Judge,
) -> None:
    """A time that runs out lets a packet go and ends a call."""
    made = up_and_carried(judge)
    names = judge.arrive(Outcome(Verdict.HOLD))
    judge.queue.serve(10)
    with pytest.MonkeyPatch.context() as patch:
        judge.deafen(patch)
        outcome = Outcome(events=ends(made), released=[Released(1, bytes(40))])
        with pytest.raises(OSError, match="no memory"):
            judge.daemon.carry_out(outcome, 2.0)
    judge.queue.serve(10)

    assert names == judge.heard()
    assert [] == list(judge.router.path.matches())


def test_what_waits_for_the_kernel_is_never_more_in_one_send_than_it_takes(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of packets that are rewritten; one send of them all would be refused for ever."""
    room = judge.queue._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    ours, names = judge.queue._socket, []
    with monkeypatch.context() as patch:
        judge.deafen(patch)
        for _ in range(2 * room // 1400):
            names += judge.arrive(Outcome(packet=bytes(1400)))
            with pytest.raises(OSError, match="no memory"):
                judge.queue.serve(10)
    sizes, heard = [], []

    def send(octets: bytes) -> int:
        sizes.append(len(octets))
        sent = ours.send(octets)
        heard.extend(judge.heard())
        return sent

    ears = SimpleNamespace(send=send, recv_into=ours.recv_into)
    with monkeypatch.context() as patch:
        patch.setattr(judge.queue, "_socket", ears)
        judge.queue.serve(10)

    assert names == heard
    assert max(sizes) < room
    assert sum(sizes) > room
