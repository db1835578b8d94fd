"""Netlink with netfilter: messages, attributes, and a socket that asks and listens.

Layouts are those of linux/netlink.h and linux/netfilter/nfnetlink.h.  Headers
are in the machine's octet order; what netfilter's attributes carry is in
network order.

Nothing here waits.  The kernel runs a request inside the caller's send()
(af_netlink.c hands the octets on in the same context), so when send() returns
the answer is in the socket, or it was lost.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, NoReturn, Self, TypeVar

from pptp_nat.errors import AdapterError

_T = TypeVar("_T")

# Specification: linux/netlink.h.
NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10  # an error comes without the request that it is about
HEADER: Final = struct.Struct("=IHHII")  # length, kind, flags, sequence, port ID
ERROR_CODE: Final = struct.Struct("=i")
#: An error with the header of its request, as NETLINK_CAP_ACK has it: kind, sequence, code.
_ACKNOWLEDGEMENT: Final = struct.Struct("=4xH2xI4xi16x")
_HEADER_SIZE: Final = HEADER.size
_NO_HEADER: Final = (0, 0, 0, 0, 0)
ATTRIBUTE: Final = struct.Struct("=HH")  # length with this header, type
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
FIRST_OWN_KIND: Final = 16  # kinds below are netlink's own
F_REQUEST: Final = 0x001
F_MULTI: Final = 0x002
F_ACK: Final = 0x004
F_ECHO: Final = 0x008
F_DUMP_INTR: Final = 0x010
F_DUMP_FILTERED: Final = 0x020
F_DUMP: Final = 0x300
F_EXCL: Final = 0x200
F_CREATE: Final = 0x400
NESTED: Final = 0x8000
TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
SO_ATTACH_FILTER: Final = 26
SO_RCVBUFFORCE: Final = 33

# Implementation.
RECEIVE_OCTETS: Final = 1 << 16  # the kernel fills at most 32 KiB of it per call
REQUEST_BUFFER: Final = 1 << 20  # octets that answers may take while we are away
LISTEN_BUFFER: Final = 8 << 20  # octets: a burst of some ten thousand events
MOST_PER_SEND: Final = 64  # messages; all of their errors fit into the smallest buffer
MOST_PER_DRAIN: Final = 512  # datagrams, so that a flood of events lets others have a turn
DUMP_ATTEMPTS: Final = 5


class Message(NamedTuple):
    """A request; ``body`` is a whole number of 4-octet words, without the header."""

    kind: int
    flags: int
    body: bytes


class Received(NamedTuple):
    """What came back.  ``asked`` counts the request in its send, -1 where none is named."""

    asked: int
    kind: int
    flags: int
    portid: int
    body: bytes


class Instruction(NamedTuple):
    """One classic BPF instruction (linux/filter.h, struct sock_filter)."""

    code: int
    jump_true: int
    jump_false: int
    k: int


def attach(opened: socket.socket, program: Sequence[Instruction]) -> None:
    """Have the kernel drop what *program* returns 0 for, of whatever comes to *opened*.

    Raises:
        AdapterError: the kernel refuses the program.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    except OSError as error:
        raise AdapterError("attaching a filter to a socket", error.errno or 0) from error
    # A compiler may let go of a local after its last use; the kernel has copied it by now.
    ctypes.memset(buffer, 0, len(code))


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to a multiple of 4 octets."""
    return ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds *attributes*."""
    return attribute(NESTED | kind, b"".join(attributes))


def attributes(octets: bytes) -> dict[int, bytes]:
    """Return the payloads by type; of a type that comes twice, the later one.

    Raises:
        AdapterError: a length runs past the end.
    """
    found: dict[int, bytes] = {}
    header = ATTRIBUTE.unpack_from
    offset, end = 0, len(octets)
    while offset + 4 <= end:
        length, kind = header(octets, offset)
        if length < 4 or offset + length > end:
            raise AdapterError("reading a netlink attribute", errno.EBADMSG)
        found[kind & TYPE_MASK] = octets[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def walk(datagram: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield kind, flags, sequence, port ID and body of each message in *datagram*.

    Raises:
        AdapterError: a length runs past the end.
    """
    offset, end = 0, len(datagram)
    while end - offset >= HEADER.size:
        length, kind, flags, sequence, portid = HEADER.unpack_from(datagram, offset)
        if not HEADER.size <= length <= end - offset:
            raise AdapterError("reading a netlink message", errno.EBADMSG)
        yield kind, flags, sequence, portid, datagram[offset + HEADER.size : offset + length]
        offset += length + 3 & ~3


def _code(body: bytes) -> int:
    """Return the errno in an error message or at the end of a dump; 0 is success."""
    if len(body) < ERROR_CODE.size:
        raise AdapterError("reading a netlink acknowledgement", errno.EBADMSG)
    code: int = -ERROR_CODE.unpack_from(body)[0]
    return code


def _nothing() -> NoReturn:
    raise AdapterError("waiting for netfilter's answer", errno.ENOBUFS)


class Netlink:
    """A NETLINK_NETFILTER socket: for requests, or with *groups* for listening.

    Args:
        groups: what to hear, a bit each.
        program: of it the kernel drops what this returns 0 for, before it wakes us.

    Raises:
        AdapterError: the kernel has no nfnetlink, or refuses the groups or the program.
    """

    def __init__(self, groups: int = 0, program: Sequence[Instruction] = ()) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
            )
        except OSError as error:
            raise AdapterError("opening a netfilter netlink socket", error.errno or 0) from error
        self._sequence = 0
        try:
            self._socket.setblocking(False)
            self._enlarge(LISTEN_BUFFER if groups else REQUEST_BUFFER)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.bind((0, groups))
            self.portid: int = self._socket.getsockname()[0]
        except OSError as error:
            self._socket.close()
            raise AdapterError("binding a netfilter netlink socket", error.errno or 0) from error
        if program:
            try:
                attach(self._socket, program)
            except AdapterError:
                self._socket.close()
                raise

    def _enlarge(self, octets: int) -> None:
        """Ask for a receive buffer, past net.core.rmem_max where we may."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, octets)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of the socket; a second time does no harm."""
        self._socket.close()

    def request(self, messages: Sequence[Message]) -> list[int]:
        """Send all *messages* and return the errno of each, 0 for success."""
        if len(messages) == 1:
            return [self._order(messages[0])]
        return self.exchange(messages)[0]

    def _order(self, message: Message) -> int:
        """Do what `exchange` does for one message, of which nothing but an errno comes back."""
        first = self._send((message,), F_ACK)
        datagram = self._receive() or _nothing()
        if len(datagram) == _ACKNOWLEDGEMENT.size:
            kind, sequence, code = _ACKNOWLEDGEMENT.unpack(datagram)
            if kind == NLMSG_ERROR and sequence == first:
                return -int(code)
        return self._collected(first, 1, datagram)[0][0]

    def exchange(self, messages: Sequence[Message]) -> tuple[list[int], list[Received]]:
        """Send all *messages* at once; return the errno of each, and all that came back.

        Only the last one asks for an acknowledgement: the kernel works through
        a datagram in order and reports an error of any message unasked.

        Raises:
            AdapterError: the kernel does not listen, or its answers were lost.
        """
        assert 0 < len(messages) <= MOST_PER_SEND, "the answers must fit into the buffer"
        first = self._send(messages, F_ACK)
        datagram, count = self._receive(), len(messages)
        if datagram is not None and len(datagram) == _ACKNOWLEDGEMENT.size:
            kind, sequence, code = _ACKNOWLEDGEMENT.unpack(datagram)
            if kind == NLMSG_ERROR and sequence == first + count - 1 and not code:
                return [0] * count, []  # errors and echoes of those before would have come first
        return self._collected(first, count, datagram)

    def _collected(
        self, first: int, count: int, datagram: bytes | None
    ) -> tuple[list[int], list[Received]]:
        """Read the answers to *count* messages, of which *datagram* is the first."""
        last = count - 1
        errnos = [0] * count
        received: list[Received] = []
        while True:
            if datagram is None:
                if errnos[0] == 0:
                    _nothing()
                # Without the capability the kernel answers the first message only.
                return [errnos[0]] * count, received
            for kind, flags, sequence, portid, body in walk(datagram):
                index = sequence - first
                known = 0 <= index <= last
                if kind == NLMSG_ERROR and known:
                    errnos[index] = _code(body)
                    if index == last:
                        return errnos, received
                elif kind >= FIRST_OWN_KIND and (known or sequence == 0):
                    # An echo has no sequence number (nfnl_msg_put in ctnetlink_conntrack_event).
                    received.append(Received(index if known else -1, kind, flags, portid, body))
            datagram = self._receive()

    def get(self, message: Message) -> tuple[int, bytes]:
        """Send *message* and return its errno and the body of its one answer.

        Raises:
            AdapterError: as in `exchange`.
        """
        first = self._send((message,), 0)
        datagram = self._receive() or _nothing()
        size = len(datagram)
        length, kind, _, sequence, _ = (
            HEADER.unpack_from(datagram) if size >= _HEADER_SIZE else _NO_HEADER
        )
        if length == size and kind != NLMSG_ERROR and sequence == first:
            return 0, datagram[_HEADER_SIZE:]  # nearly always
        while True:
            for kind, _, sequence, _, body in walk(datagram):
                if sequence != first:
                    continue
                if kind == NLMSG_ERROR:
                    return _code(body), b""
                return 0, body
            datagram = self._receive() or _nothing()

    def dump(self, message: Message) -> list[bytes]:
        """Send *message* and return the bodies of all answers.

        Read to the end before anything is handed out, so that the caller may
        use this socket while it looks at them.

        Raises:
            AdapterError: refused, lost, or interrupted by changes five times over.
        """
        code = errno.EINTR
        for _ in range(DUMP_ATTEMPTS):
            code, interrupted, bodies = self._dump(message)
            if code == 0 and not interrupted:
                return bodies
            if code not in (0, errno.EINTR):
                break
        raise AdapterError("reading a netfilter table", code or errno.EINTR)

    def _dump(self, message: Message) -> tuple[int, bool, list[bytes]]:
        first = self._send((message,), F_DUMP)
        interrupted = False
        bodies: list[bytes] = []
        while True:
            for kind, flags, sequence, _, body in walk(self._receive() or _nothing()):
                if sequence != first:
                    continue
                interrupted |= bool(flags & F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    return _code(body), interrupted, bodies
                if kind == NLMSG_DONE:
                    return (_code(body) if len(body) else 0), interrupted, bodies
                bodies.append(body)

    def pieces(
        self,
        message: Message,
        quick: Callable[[bytes], _T | None],
        slow: Callable[[list[bytes]], _T],
    ) -> Iterator[_T]:
        """Send *message* and yield what *quick* or *slow* makes of each datagram of answers.

        *quick* is given a whole datagram and returns None for what is not all answers;
        *slow* is given the bodies of the answers in such a one.

        The kernel writes a datagram (32 KiB at most) when its predecessor is read, so
        the work of a long table is spread over the caller's turns.  Entries may come
        and go meanwhile; this socket is for nothing else until the end.

        Raises:
            AdapterError: refused, or lost.
        """
        self._send((message,), F_DUMP)
        is_over = False
        while not is_over:
            datagram = self._receive() or _nothing()
            made = quick(datagram)
            if made is None:
                bodies = []
                for kind, _, _, _, body in walk(datagram):
                    if kind in (NLMSG_ERROR, NLMSG_DONE):
                        is_over = True
                        if code := _code(body) if len(body) else 0:
                            raise AdapterError("reading a netfilter table", code)
                    else:
                        bodies.append(body)
                made = slow(bodies)
            yield made

    def drain(self, most: int = MOST_PER_DRAIN) -> tuple[list[Received], bool]:
        """Return what is waiting, *most* datagrams, and whether the kernel had to drop some."""
        received: list[Received] = []
        overrun = False
        for _ in range(most):
            try:
                datagram = self._socket.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise AdapterError("listening to netfilter", error.errno or 0) from error
                overrun = True
                continue
            received.extend(
                Received(-1, kind, flags, portid, body)
                for kind, flags, _, portid, body in walk(datagram)
                if kind >= FIRST_OWN_KIND
            )
        return received, overrun

    def _send(self, messages: Sequence[Message], last_flags: int) -> int:
        """Send *messages* in one datagram; return the first one's sequence number."""
        if self._sequence + len(messages) >= 1 << 31:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += len(messages)
        parts = []
        for sequence, (kind, flags, body) in enumerate(messages, first):
            last = last_flags if sequence == self._sequence else 0
            length = _HEADER_SIZE + len(body)
            parts.append(HEADER.pack(length, kind, F_REQUEST | flags | last, sequence, 0))
            parts.append(body)
        try:
            self._socket.send(b"".join(parts))
        except OSError as error:
            raise AdapterError("asking netfilter", error.errno or 0) from error
        return first

    def _receive(self) -> bytes | None:
        """Return the next datagram, None when there is no more.

        That others were dropped says nothing yet: it may have been stale ones.
        """
        while True:
            try:
                return self._socket.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise AdapterError("listening to netfilter", error.errno or 0) from error
