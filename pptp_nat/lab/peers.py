"""Our own PPTP peers: what real ones do, and what they seldom or wrongly do.

A `Station` is one host that speaks PPTP.  It dials and is dialled, places
calls (as PNS) and offers them (as PAC), any number on each connection, and has
one raw socket for the GRE of all of them.  All stations of a laboratory live
in one thread and share a `Loop`.

Every GRE packet names its sender, its receiver and its call, and both ends know
what it must say: the callers put their call's label into the telephone number,
a field that no NAT touches.  A call counts what was for it, and keeps what was not.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import TYPE_CHECKING, Final, Literal

from pptp_nat.lab import wire
from pptp_nat.lab.control import Call, Connection
from pptp_nat.lab.loop import PATIENCE, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    OpenSocket = Callable[[socket.SocketKind, int], socket.socket]

__all__ = ["Call", "Connection", "Loop", "Quirk", "Station", "converse"]

#: Whose number a Call-Disconnect-Notify carries: the PAC's own (RFC 2637), or the
#: PNS's as accel-ppp has it, formerly also with its two octets the wrong way round.
Quirk = Literal["own", "peers", "peers-swapped"]

BACKLOG: Final = 128
GRE_BUFFER: Final = 8 << 20  #: octets; all that has waited in a queue comes at once
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h


class Station:
    """One host that speaks PPTP.

    Args:
        name: at most 63 ASCII characters, unique in the laboratory.
        loop: shared by all stations of one thread.
        open_socket: opens an IPv4 socket of a kind and protocol on this host.
        call_ids: the numbers of its calls; counts from 1 by itself, and begins anew after 65,535.
        refuses: answer every call with "no".
        quirk: whose number its Call-Disconnect-Notify carries.
        cut: octets in a segment of what it sends as the listener; see `dial`.
    """

    def __init__(
        self,
        name: str,
        loop: Loop,
        open_socket: OpenSocket,
        *,
        call_ids: Iterable[int] | None = None,
        refuses: bool = False,
        quirk: Quirk = "own",
        cut: int | None = None,
    ) -> None:
        self.name = name
        self.octets = name.encode("ascii")
        self.loop = loop
        self.refuses = refuses
        self.quirk: Quirk = quirk
        self._cut = cut
        self.connections: list[Connection] = []
        self.strays: list[tuple[str, bytes]] = []  #: GRE for no call: source address, octets
        self._open_socket = open_socket
        self._ids: Iterator[int] = iter(self._numbers() if call_ids is None else call_ids)
        self._labels = itertools.count()
        self._calls: dict[tuple[str, int], Call] = {}  # by remote address and own call ID
        self._gre = open_socket(socket.SOCK_RAW, socket.IPPROTO_GRE)
        self._gre.setblocking(False)
        with contextlib.suppress(OSError):  # by default some 270 small packets fit
            self._gre.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, GRE_BUFFER)
        self._listener: socket.socket | None = None
        loop.watch(self._gre, self._gre_ready)

    def listen(self, address: str = "0.0.0.0", port: int = wire.PORT) -> int:  # noqa: S104 a lab host has one address
        """Answer control connections from now on; return the port."""
        listener = self._open_socket(socket.SOCK_STREAM, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self.loop.watch(listener, self._accept)
        self._listener = listener
        chosen: int = listener.getsockname()[1]
        return chosen

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            sock, (address, _port) = self._listener.accept()
        except BlockingIOError:
            return
        connection = Connection(self, sock, address, cut=self._cut)
        self.connections.append(connection)
        self.loop.watch(sock, connection.ready)

    def dial(
        self,
        address: str,
        port: int = wire.PORT,
        *,
        source_port: int = 0,
        cut: int | None = None,
        nodelay: bool = True,
    ) -> Connection:
        """Open a control connection.

        Args:
            address: of the other end, dotted.
            port: of the other end.
            source_port: 0 lets the kernel choose.
            cut: octets in a segment; None leaves each message whole.
            nodelay: whether Nagle's algorithm is off.
        """
        sock = self._open_socket(socket.SOCK_STREAM, 0)
        if source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", source_port))  # noqa: S104 a lab host has one address
        connection = Connection(self, sock, address, cut=cut, nodelay=nodelay)
        self.connections.append(connection)
        connection.connect(port)
        return connection

    def _numbers(self) -> Iterator[int]:
        for number in itertools.cycle(range(1, 1 << 16)):
            if all(number != taken for _, taken in self._calls):
                yield number

    def next_id(self) -> int:
        """Return the number of the next call."""
        return next(self._ids)

    def next_label(self) -> str:
        """Return a name that no other call of the laboratory has."""
        return f"{self.name}#{next(self._labels)}"

    def calls(self) -> list[Call]:
        """Return the calls of all connections, also those that are over."""
        return [call for each in self.connections for call in each.calls.values()]

    def named(self, label: str) -> Call:
        """Return the call with this label."""
        return next(call for call in self.calls() if call.label == label)

    def remember(self, call: Call) -> None:
        """Have GRE with the number of *call* delivered to it."""
        self._calls[call.connection.remote, call.own_id] = call

    def end(self, call: Call) -> None:
        """Stop delivering GRE to *call*."""
        if call.state != "refused":
            call.state = "gone"
        if self._calls.get((call.connection.remote, call.own_id)) is call:
            del self._calls[call.connection.remote, call.own_id]

    def send_gre(self, address: str, octets: bytes) -> None:
        """Send GRE of any sort; *octets* begin with the GRE header."""
        self._gre.sendto(octets, (address, 0))

    def _gre_ready(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (address, _port) = self._gre.recvfrom(65536)
                self.hear(address, packet[(packet[0] & 0x0F) * 4 :])

    def hear(self, address: str, octets: bytes) -> None:
        """Deliver GRE from *address* to the call it is for."""
        packet = wire.decode_gre(octets)
        call = None if packet is None else self._calls.get((address, packet.key))
        if packet is None or call is None:
            self.strays.append((address, octets))
        else:
            call.hear(packet)

    def close(self) -> None:
        """Close all connections and sockets."""
        for connection in self.connections:
            connection.close()
        for sock in (self._gre, self._listener):
            if sock is not None:
                self.loop.forget(sock)
                sock.close()


def converse(
    loop: Loop,
    calls: Iterable[Call],
    *,
    count: int = 10,
    padding: int = 0,
    seconds: float = PATIENCE,
) -> bool:
    """Let each of *calls* send *count* packets; True if each received as many.

    Args:
        loop: serves all of them.
        calls: both ends of each call.
        count: packets from each end.
        padding: octets that each carries besides who says it to whom.
        seconds: how long to wait for the last.
    """
    calls = list(calls)
    wanted = {call: call.right + count for call in calls}
    for _ in range(count):
        for call in calls:
            call.say(padding=padding)
        loop.run_dry(0)
    return loop.run_until(lambda: all(call.right >= n for call, n in wanted.items()), seconds)
