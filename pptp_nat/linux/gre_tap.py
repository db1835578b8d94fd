"""GRE of some calls as it arrives at this machine: a look at it, whatever carries it.

A packet socket for IPv4 is handed what has got as far as IP: once, whatever
bridges and VLANs a packet came through, before any rule or translation, and
nothing that leaves.  A classic BPF program on it passes GRE of the wanted legs
alone, and cuts off what the asker is not to see: payload never leaves the kernel
unless it was asked for.

Opening it takes CAP_NET_RAW.  The daemon does without; see
docs/decisions/0022-who-asks-looks-at-gre-himself.md.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Match
from pptp_nat.linux.netlink import Instruction, attach

_IPV4: Final = 0x0800  # ETH_P_IP
_SOL_PACKET: Final = 263
_STATISTICS: Final = 6  # PACKET_STATISTICS
_BUFFER: Final = 1 << 20  # octets that may wait for us
HEADERS: Final = 60 + 16  #: octets: the longest IP header and the longest enhanced GRE header
MOST_LEGS: Final = 500  #: that one program has room for

# linux/filter.h
_LOAD_WORD: Final = 0x20  # absolute
_LOAD_HALF: Final = 0x28
_LOAD_OCTET: Final = 0x30
_LOAD_HALF_AT_X: Final = 0x48  # from X on
_LOAD_OCTET_AT_X: Final = 0x50
_X_IS_HEADER: Final = 0xB1  # X = 4 * (octet & 15)
_AND: Final = 0x54
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_BITS: Final = 0x45
_RETURN: Final = 0x06
_DROP: Final = Instruction(_RETURN, 0, 0, 0)


class Tapped(NamedTuple):
    """A packet, from its IP header on, as far as it was wanted."""

    octets: bytes
    interface: str  #: on which it arrived


class GreTap:
    """Looks at arriving GRE.

    Args:
        octets: of each packet that are handed out.

    Raises:
        AdapterError: no CAP_NET_RAW (EPERM), or no packet sockets here.
    """

    def __init__(self, octets: int = HEADERS) -> None:
        self._octets = octets
        self.lost = 0  #: packets that found our buffer full
        try:
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_IPV4)
            )
        except OSError as error:
            mend = "it takes CAP_NET_RAW: run it as root" if error.errno == errno.EPERM else ""
            doing = "opening a packet socket"
            raise AdapterError(doing, error.errno or 0, mend=mend) from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self.watch(())
            while self.read():
                pass  # what came before the filter was there
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when packets wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Look no more."""
        self._socket.close()

    def watch(self, legs: Collection[Match]) -> None:
        """Look at GRE that arrives on these legs from now on; beyond `MOST_LEGS`, on any."""
        wanted = list(legs)
        attach(self._socket, program(None if len(wanted) > MOST_LEGS else wanted, self._octets))

    def read(self, most: int = 64) -> list[Tapped]:
        """Return what has arrived, without waiting, *most* packets at a time."""
        tapped = []
        for _ in range(most):
            try:
                octets, (interface, *_) = self._socket.recvfrom(self._octets)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # an interface went down; the others did not
                    continue
                raise AdapterError("looking at GRE", error.errno or 0) from error
            tapped.append(Tapped(octets, interface))
        seen = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        self.lost += int(struct.unpack("=II", seen)[1])
        return tapped


def program(legs: Sequence[Match] | None, octets: int) -> list[Instruction]:
    """Return a program that passes *octets* of arriving enhanced GRE of *legs*; None: of any."""
    preamble = [
        (_LOAD_OCTET, 9, None), (_JUMP_EQUAL, 47, False),  # GRE
        (_LOAD_HALF, 6, None), (_JUMP_BITS, 0x1FFF, True),  # no later fragment
        (_X_IS_HEADER, 0, None),
        (_LOAD_HALF_AT_X, 2, None), (_JUMP_EQUAL, 0x880B, False),
        (_LOAD_OCTET_AT_X, 1, None), (_AND, 7, None), (_JUMP_EQUAL, 1, False),  # version 1
    ]  # fmt: skip
    drop = len(preamble) + 1  # behind a jump over it
    rows = []
    for at, (code, k, drops_if) in enumerate(preamble, 1):
        away = drop - at
        rows.append(Instruction(
            code, away if drops_if is True else 0, away if drops_if is False else 0, k
        ))  # fmt: skip
    rows += [Instruction(_JUMP, 0, 0, 1), _DROP]
    accept = Instruction(_RETURN, 0, 0, octets)
    if legs is None:
        return [*rows, accept]
    for source, destination, key in legs:
        rows += [
            Instruction(_LOAD_WORD, 0, 0, 12),
            Instruction(_JUMP_EQUAL, 0, 5, int.from_bytes(source, "big")),
            Instruction(_LOAD_WORD, 0, 0, 16),
            Instruction(_JUMP_EQUAL, 0, 3, int.from_bytes(destination, "big")),
            Instruction(_LOAD_HALF_AT_X, 0, 0, 6),
            Instruction(_JUMP_EQUAL, 0, 1, key),
            accept,
        ]
    return [*rows, _DROP]
