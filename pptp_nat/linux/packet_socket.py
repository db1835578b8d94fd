"""Packets as they pass an interface: AF_PACKET with a filter that the kernel runs (packet(7)).

The sockets are of type SOCK_DGRAM: the kernel takes the link header off, so every kind of
interface looks the same and a VLAN tag that the kernel has taken apart is no special case.
A socket is bound only when its filter is attached; nothing else is ever read.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pptp_nat.errors import AdapterError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Specification: linux/if_packet.h, linux/filter.h, asm-generic/socket.h.
_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_SO_ATTACH_FILTER: Final = 26
_SO_TIMESTAMPNS: Final = 35
_SO_RCVBUFFORCE: Final = 33
_PROTOCOL: Final = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
_STATISTICS: Final = struct.Struct("II")
_ADDRESS: Final = struct.Struct("=HHiHBB8s")  # struct sockaddr_ll
_TIMESPEC: Final = struct.Struct("qq")
_PR_SET_NO_NEW_PRIVS: Final = 38

# Implementation constants.
_RECEIVE_BUFFER: Final = 8 << 20  #: octets
_LONGEST: Final = 65536
_WHOLE: Final = 0x40000  #: octets of a packet that the filter lets through

_LOAD: Final = 0x20  # A = word at k
_LOAD_HALF: Final = 0x28
_LOAD_HALF_X: Final = 0x48  # A = half word at X + k
_LOAD_OCTET_X: Final = 0x50
_X: Final = 0x01  # X = k
_AND: Final = 0x54
_SHIFT_LEFT: Final = 0x64
_ADD_X: Final = 0x0C
_TO_X: Final = 0x07
_JUMP: Final = 0x05
_IF_EQUAL: Final = 0x15
_IF_ANY_BIT: Final = 0x45
_ANSWER: Final = 0x06
_STEP: Final = struct.Struct("HBBI")


class Seen(NamedTuple):
    """A packet, from its network header on."""

    time: float  #: Unix seconds, by the kernel
    octets: bytes
    length: int  #: octets that it has; more than `octets` holds if it was longer than 64 KiB
    interface: int
    protocol: int  #: EtherType
    direction: int  #: PACKET_HOST and the like: 0 to us, 4 from us
    hardware: int  #: ARPHRD_*
    address: bytes  #: of the sender on the link


def program(ports: Iterable[int]) -> bytes:
    """Return the filter: IPv4, tagged or not, with GRE, TCP on *ports*, or ICMP about either.

    Of TCP and ICMP only first fragments, of GRE all.
    """
    tests = [port for port in ports for _ in range(2)]
    steps: list[tuple[int, str | int, str | int, int]] = [
        (_LOAD, 0, 0, _PROTOCOL),
        (_IF_EQUAL, "plain", 0, 0x0800),
        (_IF_EQUAL, 0, "no", 0x8100),
        (_LOAD_HALF, 0, 0, 2),
        (_IF_EQUAL, 0, "no", 0x0800),
        (_X, 0, 0, 4),
        (_JUMP, 0, 0, 1),
        (_X, 0, 0, 0),  # plain
        (_LOAD_OCTET_X, 0, 0, 9),
        (_IF_EQUAL, "yes", 0, 47),
        (_IF_EQUAL, "first", 0, 6),
        (_IF_EQUAL, 0, "no", 1),
        (_LOAD_HALF_X, 0, 0, 6),
        (_IF_ANY_BIT, "no", 0, 0x1FFF),
        *_behind_header(),
        (_LOAD_OCTET_X, 0, 0, 0),
        (_IF_EQUAL, 2, 0, 3),
        (_IF_EQUAL, 1, 0, 11),
        (_IF_EQUAL, 0, "no", 12),
        (_LOAD_OCTET_X, 0, 0, 17),  # the protocol of the packet that the error is about
        (_IF_EQUAL, "yes", 0, 47),
        (_IF_EQUAL, "yes", "no", 6),
        (_LOAD_HALF_X, 0, 0, 6),  # first
        (_IF_ANY_BIT, "no", 0, 0x1FFF),
        *_behind_header(),
    ]
    labels = {"plain": 7, "first": 26}
    for at in (0, 2):
        steps.append((_LOAD_HALF_X, 0, 0, at))
        steps += [(_IF_EQUAL, "yes", 0, port) for port in dict.fromkeys(tests)]
    labels["no"] = len(steps)
    labels["yes"] = len(steps) + 1
    steps += [(_ANSWER, 0, 0, 0), (_ANSWER, 0, 0, _WHOLE)]

    def distance(index: int, target: str | int) -> int:
        return target if isinstance(target, int) else labels[target] - index - 1

    return b"".join(
        _STEP.pack(code, distance(index, true), distance(index, false), k)
        for index, (code, true, false, k) in enumerate(steps)
    )


def _behind_header() -> list[tuple[int, str | int, str | int, int]]:
    """X += octets of the IP header at X."""
    return [
        (_LOAD_OCTET_X, 0, 0, 0), (_AND, 0, 0, 15), (_SHIFT_LEFT, 0, 0, 2),
        (_ADD_X, 0, 0, 0), (_TO_X, 0, 0, 0),
    ]  # fmt: skip


class PacketSocket:
    """Packets of one interface, or of all.

    Raises:
        UsageError: there is no such interface.
        AdapterError: the kernel refuses; needs CAP_NET_RAW.
    """

    def __init__(self, interface: str | None, ports: Iterable[int]) -> None:
        name = interface or "all interfaces"
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except OSError as error:
            raise AdapterError(
                "open a packet socket", error.errno or 0, mend="run as root"
            ) from None
        try:
            self._attach(program(ports))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._enlarge()
            self._socket.setblocking(False)
            self._bind(0 if interface is None else socket.if_nametoindex(interface))
        except OSError as error:
            self._socket.close()
            if interface is not None and error.errno in (None, errno.ENODEV, errno.ENXIO):
                raise UsageError(
                    f"there is no interface {interface}; `ip link` shows those that there are"
                ) from None
            raise AdapterError(f"read packets of {name}", error.errno or 0) from None

    def fileno(self) -> int:
        """Return the descriptor, to wait for."""
        return self._socket.fileno()

    def _attach(self, steps: bytes) -> None:
        buffer = ctypes.create_string_buffer(steps)
        # struct sock_fprog: a count and a pointer, aligned as the machine has it
        head = struct.pack("@HP", len(steps) // _STEP.size, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
        del buffer  # not before the kernel has copied it

    def _bind(self, index: int) -> None:
        """Begin to receive; index 0 is every interface, which `socket.bind` has no word for."""
        address = _ADDRESS.pack(socket.AF_PACKET, socket.htons(_ETH_P_ALL), index, 0, 0, 0, b"")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(self._socket.fileno(), address, len(address)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except OSError:  # not of this user namespace: what rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)

    def read(self, most: int) -> Iterator[Seen]:
        """Yield up to *most* packets that are there by now.

        Raises:
            AdapterError: the interface is gone or down.
        """
        for _ in range(most):
            try:
                octets, extra, flags, sender = self._socket.recvmsg(_LONGEST, 64)
            except BlockingIOError:
                return
            except OSError as error:
                raise AdapterError("read packets", error.errno or 0) from None
            time = 0.0
            for level, kind, value in extra:
                if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    seconds, nanoseconds = _TIMESPEC.unpack_from(value)
                    time = seconds + nanoseconds / 1e9
            name, protocol, direction, hardware, address = sender
            yield Seen(
                time, octets, max(len(octets), _total(octets) if flags else 0), _index(name),
                protocol, direction, hardware, address,
            )  # fmt: skip

    def dropped(self) -> int:
        """Return how many packets the kernel had no room for since this was last asked."""
        value = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        return int(_STATISTICS.unpack(value)[1])

    def close(self) -> None:
        """Read no more."""
        self._socket.close()


@functools.lru_cache(maxsize=256)
def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # gone in the meantime
        return 0


def _total(octets: bytes) -> int:
    return octets[2] << 8 | octets[3] if len(octets) > 3 else 0


def drop_privileges(user: str) -> None:
    """Become *user* for good; do nothing if we are not root.

    Raises:
        UsageError: there is no such user.
        AdapterError: the kernel refuses.
    """
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise UsageError(f"--user: there is no user {user}") from None
    try:
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except OSError as error:
        raise AdapterError(f"become user {user}", error.errno or 0) from None
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
