"""Netlink that asks and is answered at once: a socket for routing's (devices), and generic's.

Layouts are those of linux/netlink.h.  Nothing here waits: the kernel answers before send()
returns (`pptp_nat.linux.netlink`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Final, Self

from pptp_nat.errors import AdapterError
from pptp_nat.linux.netlink import (
    ERROR_CODE,
    F_ACK,
    F_DUMP,
    F_DUMP_INTR,
    F_REQUEST,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_OCTETS,
    walk,
)

ROUTE: Final = 0  # NETLINK_ROUTE
GENERIC: Final = 16  # NETLINK_GENERIC
_ATTEMPTS: Final = 5  # to list what changes meanwhile
_NAMES: Final = {ROUTE: "routing", GENERIC: "generic"}


class Asking:
    """A netlink socket of this network namespace.

    Args:
        protocol: `ROUTE` or `GENERIC`.

    Raises:
        AdapterError: the kernel refuses it.
    """

    def __init__(self, protocol: int = ROUTE) -> None:
        self._name = _NAMES[protocol]
        self._socket = opened(protocol)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> int:
        """Send one request; return its errno, 0 for success.

        Raises:
            AdapterError: it cannot be sent.
        """
        for answer, _, content in self._exchange(kind, flags | F_ACK, body):
            if answer == NLMSG_ERROR:
                return _code(content)
        return errno.ENOBUFS

    def answer(self, kind: int, body: bytes) -> bytes | None:
        """Return the body of the answer to one request; None: an error.

        Raises:
            AdapterError: it cannot be sent.
        """
        for answer, _, content in self._exchange(kind, 0, body):
            return None if answer == NLMSG_ERROR else content
        return None

    def dump(
        self, kind: int, body: bytes, *, doing: str = "listing devices", may_fail: bool = False
    ) -> list[bytes]:
        """Return the bodies of all that there is of a kind, as of one moment.

        What changes while it is listed is listed again.

        Args:
            kind: of the request.
            body: of the request.
            doing: what an error is about.
            may_fail: a refusal is as good as nothing.

        Raises:
            AdapterError: refused, unless it *may fail*, or it never rests.
        """
        for _ in range(_ATTEMPTS):
            bodies: list[bytes] = []
            interrupted = False
            for answer, flags, content in self._exchange(kind, F_DUMP, body):
                interrupted |= bool(flags & F_DUMP_INTR)
                if answer == NLMSG_DONE:
                    break
                if answer == NLMSG_ERROR:
                    if may_fail:
                        return bodies
                    raise AdapterError(doing, _code(content))
                bodies.append(content)
            if not interrupted:
                return bodies
        raise AdapterError(doing, errno.EINTR)

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Send one request and yield kind, flags and body of what comes back."""
        self._sequence += 1
        header = HEADER.pack(
            HEADER.size + len(body), kind, F_REQUEST | flags, self._sequence, 0
        )
        try:
            self._socket.send(header + body)
        except OSError as error:
            raise AdapterError(f"asking {self._name} netlink", error.errno or 0) from error
        while True:
            try:
                datagram = self._socket.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                return
            except OSError as error:
                raise AdapterError(f"asking {self._name} netlink", error.errno or 0) from error
            for answer, told, sequence, _, content in walk(datagram):
                if sequence == self._sequence:
                    yield answer, told, content


def opened(protocol: int, groups: int = 0) -> socket.socket:
    """Return a socket that never waits, and hears of *groups* (a bit each).

    Raises:
        AdapterError: the kernel refuses it.
    """
    try:
        made = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        made.setblocking(False)
        made.bind((0, groups))
    except OSError as error:
        raise AdapterError(
            f"opening a {_NAMES[protocol]} netlink socket", error.errno or 0
        ) from error
    return made


def _code(body: bytes) -> int:
    code: int = -ERROR_CODE.unpack_from(body)[0]
    return code
