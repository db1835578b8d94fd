"""An upgrade without a gap: a daemon hands all it has to its successor and ends.

The successor starts, checks everything, and asks.  The old one stops serving and
sends the descriptors of its queues and of its socket, and a snapshot in memory.
A queue stays bound as long as anybody has its descriptor: what is queued
meanwhile waits, and the successor reads on.  When that has restored all, it says
so, and the old one ends, without a word to the firewall or the kernel's entries.

Until then nothing is lost: a successor that fails, or takes too long, is
forgotten, and the old one serves on.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import select
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from pptp_nat import api, log
from pptp_nat.control import sockets
from pptp_nat.errors import UsageError
from pptp_nat.state import records
from pptp_nat.state.contents import Contents
from pptp_nat.state.store import Found

if TYPE_CHECKING:
    from pptp_nat.daemon import Daemon

_log: Final = logging.getLogger(__name__)
VERSION: Final = 1
PATIENCE: Final = 15.0  #: seconds for the other one to do its part; a tenth is usual
TAKEN: Final = b"taken"
_LONGEST: Final = 4096  #: octets of what stands beside the descriptors
_CREDENTIALS: Final = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid


class Terms(NamedTuple):
    """What both must agree on, since descriptors and entries are passed on as they are."""

    version: int
    datapath: str
    control_queue: int
    gre_queue: int
    repeat_mark: int
    entry_mark: int


def terms_of(daemon: Daemon) -> Terms:
    """Return the terms of *daemon*."""
    config = daemon.config
    return Terms(
        VERSION, daemon.carrier.path.name, config.control.queue, config.gre.queue,
        config.control.repeat_mark, config.gre.entry_mark,
    )  # fmt: skip


class Heritage:
    """What the old daemon has sent, until it is confirmed or let go of."""

    def __init__(self, peer: socket.socket, descriptors: list[int], contents: Contents) -> None:
        self._peer = peer
        self.control, self.listener, *rest = descriptors
        self.gre = rest[0] if rest else None
        self.found = Found(
            contents, exact=True, this_boot=True, wall=time.time() - time.monotonic(),
            source="takeover",
        )  # fmt: skip

    def confirm(self) -> None:
        """Tell the old daemon that it may end, and wait until it has.

        Raises:
            UsageError: it does not end.
        """
        self._peer.send(TAKEN)
        self._peer.settimeout(PATIENCE)
        try:
            self._peer.recv(1)  # nothing: it is gone
        except TimeoutError:
            raise UsageError("the daemon that was taken over does not end; stop it") from None
        except OSError:
            pass  # it is gone
        self._peer.close()


# The successor.


class Request:
    """A successor's request to the daemon that listens at *path*."""

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self._terms = terms

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="pptp-nat-")
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind(str(Path(self._directory.name, "door")))
        self._door.listen(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()
        self._directory.cleanup()

    def answer(self) -> Heritage:
        """Ask, and return what comes.

        Raises:
            UsageError: nobody listens there, or it refuses; says why.
        """
        with sockets.connect(self._path, PATIENCE) as asking:
            door = self._door.getsockname()
            api.send(asking, {"do": "takeover", "door": door, **self._terms._asdict()})
            ready, _, _ = select.select([self._door, asking], [], [], PATIENCE)
            if self._door not in ready:
                with asking.makefile("rb") as answers:
                    api.next_answer(self._path, answers)  # it raises what the daemon says
                raise UsageError(f"{self._path}: the daemon there hands nothing over; restart it")
            peer, _ = self._door.accept()
        peer.settimeout(PATIENCE)
        try:
            _, descriptors, _, _ = socket.recv_fds(peer, _LONGEST, 4)
        except OSError as error:
            peer.close()
            raise UsageError(f"the running daemon does not hand over: {error}") from error
        *rest, memory = descriptors
        try:
            contents = _contents(memory)
        finally:
            os.close(memory)
        return Heritage(peer, rest, contents)


def _contents(descriptor: int) -> Contents:
    contents = Contents()
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory:
        octets = memory[:]
    if records.read(octets, contents) != len(octets):
        raise UsageError("what the running daemon hands over makes no sense; restart it instead")
    return contents


# The old one.


def hand_over(daemon: Daemon, door: str, theirs: Terms, uid: int) -> None:
    """Hand *daemon* to whoever waits at *door*; if that goes well, this process ends here.

    Raises:
        UsageError: it does not; *daemon* serves on.
    """
    ours = terms_of(daemon)
    if uid not in (0, os.geteuid()):
        raise UsageError("takeover: only root or the daemon's own user may")
    if theirs != ours:
        differing = [name for name in Terms._fields if getattr(ours, name) != getattr(theirs, name)]
        raise UsageError(f"takeover: {', '.join(differing)} must be the same; restart it instead")
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(PATIENCE)
        try:
            peer.connect(door)
            pid, waiting = _credentials(peer)
            if waiting not in (0, os.geteuid()):
                raise UsageError("takeover: whoever waits there is somebody else")
            _send(daemon, peer)
            answer = peer.recv(len(TAKEN))
        except OSError as error:
            raise UsageError(f"takeover: {error.strerror or error}; serving on") from error
        if answer != TAKEN:
            raise UsageError("takeover: the successor has failed; serving on")
        log.event(
            _log, logging.INFO, "handed-over", seconds=time.monotonic() - started,
            calls=len(daemon.translator.book.calls),
        )  # fmt: skip
        daemon.service.hand_over(pid)
        daemon.store.close(astray=False, copy=False)
        # Nothing else may run any more: what closes a queue would unbind it for both.
        os._exit(0)


def _credentials(peer: socket.socket) -> tuple[int, int]:
    """Return process and user at the other end."""
    octets = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(octets)
    return pid, uid


def _send(daemon: Daemon, peer: socket.socket) -> None:
    queues = [queue for queue in (daemon.control_queue, daemon.gre_queue) if queue is not None]
    for queue in queues:
        queue.drop_held()
    tallies = daemon.carrier.kept()
    memory = os.memfd_create("pptp-nat", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.writelines(records.whole(daemon.translator.snapshot(), tallies))
        first, *others = (queue.fileno() for queue in queues)
        descriptors = [first, daemon.server.descriptor, *others, memory]
        socket.send_fds(peer, [json.dumps({"version": VERSION}).encode()], descriptors)
    finally:
        os.close(memory)
