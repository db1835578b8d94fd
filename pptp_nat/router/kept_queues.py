"""Queues that outlive the daemon: a service manager keeps their sockets meanwhile.

As long as somebody has a queue's socket it stays bound, and packets wait in it for the
next run instead of being dropped.  systemd keeps descriptors (FileDescriptorStoreMax=),
and so does `pptp_nat.guard`, both by the protocol of `pptp_nat.service`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Final

from pptp_nat import log
from pptp_nat.linux import queue_resumption
from pptp_nat.linux.nfqueue import Queue, queue_counters
from pptp_nat.service import Service

_log: Final = logging.getLogger(__name__)
_NAMES: Final = {"control": "pptp-nat-control-", "gre": "pptp-nat-gre-"}
_PATIENCE: Final = 5.0  #: seconds until a manager has let go of what it was asked to let go of


class KeptQueues:
    """The queues of one daemon at its service manager.

    Args:
        service: the manager.
        wanted: the number of the control queue, and of GRE's, None where there is none.
    """

    def __init__(self, service: Service, control: int, gre: int | None) -> None:
        self._service = service
        self._queues: list[tuple[str, Queue]] = []
        wanted = {_name("control", control)} | ({_name("gre", gre)} if gre is not None else set())
        #: descriptors of bound queues, ours to use, by the queue's number
        self.given: dict[int, int] = {}
        for name, descriptor in service.given.items():
            number = _number(name)
            if number is None:
                continue  # nothing of ours
            if name in wanted and queue_resumption.is_bound(descriptor, number):
                self.given[number] = descriptor
            else:
                _let_go(service, name, number, descriptor)

    def keep(self, *queues: tuple[str, Queue | None]) -> None:
        """Have the manager keep *queues*, each with what it is for: ``control`` or ``gre``."""
        for use, queue in queues:
            if queue is not None and self._service.keep(_name(use, queue.number), queue.fileno()):
                queue.is_kept = True
                self._queues.append((_name(use, queue.number), queue))

    def resume(self, *queues: Queue | None) -> None:
        """Have *queues* go on with what waits in those that an earlier run has left."""
        for queue in queues:
            if queue is None or queue.number not in self.given:
                continue
            with socket.socket(fileno=os.dup(queue.fileno())) as bound:
                waiting = queue_resumption.resume(bound, queue.number)
            log.event(_log, logging.INFO, "queue-resumed", queue=queue.number, waiting=waiting)

    def let_go(self) -> None:
        """Have nothing kept any more: who stops the helper for good wants nothing to wait."""
        for name, queue in self._queues:
            self._service.let_go(name)
            queue.is_kept = False
        self._queues = []


def let_go_of_all(service: Service) -> None:
    """Let go of all queues of an earlier run."""
    for name, descriptor in service.given.items():
        number = _number(name)
        if number is not None:
            _let_go(service, name, number, descriptor)


def _name(use: str, number: int) -> str:
    return f"{_NAMES[use]}{number}"


def _number(name: str) -> int | None:
    for begin in _NAMES.values():
        number = name.removeprefix(begin)
        if number != name and number.isdecimal():
            return int(number)
    return None


def _let_go(service: Service, name: str, number: int, descriptor: int) -> None:
    """Let go of a queue that has another use now, or none; return when it is free."""
    service.let_go(name)
    bound = queue_resumption.is_bound(descriptor, number)
    os.close(descriptor)
    deadline = time.monotonic() + _PATIENCE
    while bound and queue_counters(number) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
