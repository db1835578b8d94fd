"""GRE of some calls as it arrives at this machine: a look at it, whatever carries it.

A packet socket is handed what arrives before any rule or translation sees it.  A
classic BPF program on it passes GRE of the wanted legs alone, nothing that leaves,
and cuts off what the asker is not to see: payload never leaves the kernel unless it
was asked for.

The socket listens to all protocols.  One for IPv4 alone would miss what never gets
as far as IP: where bridges call iptables (net.bridge.bridge-nf-call-iptables), a
packet that is translated to a host of the same bridge is bridged.  The price is
that a packet comes once for each interface on its way, the port, the bridge, the
VLAN; the first is told (`GreTap.read`).

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

_ALL: Final = 0x0003  # ETH_P_ALL
_IPV4: Final = 0x0800  # ETH_P_IP
_OUTGOING: Final = 4  # PACKET_OUTGOING
_PROTOCOL: Final = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
_KIND: Final = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_RECENT: Final = 512  # packets that are known again on the next interface
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
        self._recent: dict[bytes, str] = {}  # where packets came in first
        try:
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_ALL)
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
        """Return what has arrived, without waiting, *most* packets at a time.

        What is the same to the octet as a packet of another interface is that one, on
        its way.
        """
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
            first = self._recent.setdefault(octets, interface)
            if first == interface:
                tapped.append(Tapped(octets, interface))
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]
        seen = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        self.lost += int(struct.unpack("=II", seen)[1])
        return tapped


def program(legs: Sequence[Match] | None, octets: int) -> list[Instruction]:
    """Return a program that passes *octets* of arriving enhanced GRE of *legs*; None: of any."""
    preamble = [
        (_LOAD_OCTET, _KIND, None), (_JUMP_EQUAL, _OUTGOING, True),
        (_LOAD_HALF, _PROTOCOL, None), (_JUMP_EQUAL, _IPV4, False),
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
