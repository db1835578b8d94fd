"""A bound queue changes hands when its process has ended: what waits in it loses nothing."""

import os
import socket
from pathlib import Path

import pytest

from pptp_nat.lab import namespaces
from pptp_nat.linux import queue_resumption
from pptp_nat.linux.nfqueue import Packet, Queue
from pptp_nat.linux.queue_resumption import is_bound, resume

from .test_nfqueue import NUMBER, World, world

pytestmark = pytest.mark.kernel
__all__ = ["world"]

SENT = [bytes((n,)) for n in range(20)]
TABLE = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")


def passing(queue: Queue, packet: Packet) -> None:
    queue.let_pass(packet)


class Left:
    """A queue whose process has ended after it had read some packets; somebody has its socket."""

    def __init__(self, world: World, *, read: int) -> None:
        self.world = world
        first = world.queue(passing)
        with socket.socket(fileno=os.dup(first.fileno())) as theirs:
            world.send(*SENT)
            for _ in range(read):
                theirs.recv(1 << 16)
        self.descriptor = os.dup(first.fileno())
        first.is_kept = True
        first.close()

    def resumed(self) -> Queue:
        """Return the queue in new hands."""
        again = self.world.queue(passing, inherited=self.descriptor)
        with (
            namespaces.entered(self.world.name),
            socket.socket(fileno=os.dup(again.fileno())) as bound,
        ):
            assert len(SENT) == resume(bound, NUMBER, TABLE)
        return again


@pytest.mark.parametrize("read", [0, 1, 7, 19, 20])
def test_what_was_read_and_not_judged_comes_again_in_its_order(world: World, read: int) -> None:
    queue = Left(world, read=read).resumed()
    assert [] == world.received()
    world.send(b"late")
    queue.serve(100)

    assert [*SENT, b"late"] == world.received()
    assert world.waiting() == 0
    assert (queue.refusals, queue.faults) == (0, 0)


@pytest.mark.parametrize("read", [0, 7])
def test_of_very_many_those_that_were_read_come_last_and_none_is_lost(
    world: World, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_resumption, "IN_ORDER", 4)
    queue = Left(world, read=read).resumed()
    queue.serve(100)

    assert [*SENT[read:], *SENT[:read]] == world.received()
    assert world.waiting() == 0


def test_a_socket_is_known_by_the_queue_that_is_bound_to_it(world: World) -> None:
    """Descriptors come from outside, and may be anything by the time."""
    left = Left(world, read=0)
    with (
        namespaces.entered(world.name),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as other,
        socket.socket(socket.AF_UNIX) as neither,
        Path(os.devnull).open() as none,
    ):
        assert is_bound(left.descriptor, NUMBER, TABLE)
        assert not is_bound(left.descriptor, NUMBER + 1, TABLE)
        for each in (other, neither, none):
            assert not is_bound(each.fileno(), NUMBER, TABLE)
            os.fstat(each.fileno())  # it is still there
    left.resumed().serve(100)
    assert SENT == world.received()


def test_a_queue_that_changes_hands_has_the_length_that_the_new_ones_ask_for(world: World) -> None:
    left = Left(world, read=0)
    again = world.queue(passing, inherited=left.descriptor, length=25)
    world.send(*SENT)
    again.serve(100)

    assert 25 == len(world.received())
