"""IPv4 addresses of this router, and what becomes of them, over rtnetlink.

The kernel tells every address that comes or goes (RTMGRP_IPV4_IFADDR,
linux/rtnetlink.h) once it has happened.  Needs no privilege.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address
from pptp_nat.errors import AdapterError
from pptp_nat.linux.netlink import RECEIVE_OCTETS, attributes, walk
from pptp_nat.linux.rtnetlink import ROUTE, Asking, opened

# linux/rtnetlink.h and linux/if_addr.h.
_GROUP: Final = 0x10  # RTMGRP_IPV4_IFADDR
_NEW, _GONE, _GET = 20, 21, 22  # RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR
_BODY: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL: differ on a point-to-point interface
_LABEL: Final = 3  # IFA_LABEL


class Held(NamedTuple):
    """An address on an interface."""

    interface: str
    address: Address


class Change(NamedTuple):
    """What has become of this router's addresses since they were last looked at."""

    come: frozenset[Held]
    gone: frozenset[Held]


class Addresses:
    """A socket that knows this namespace's addresses.

    Raises:
        AdapterError: the kernel refuses it.
    """

    def __init__(self) -> None:
        self._listener = opened(ROUTE, _GROUP)
        try:
            self.held = _dump()
        except BaseException:
            self._listener.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has changed."""
        return self._listener.fileno()

    def close(self) -> None:
        """Let go of the socket."""
        self._listener.close()

    def read(self) -> Change:
        """Return what has changed, all that is waiting at once.

        An interface that goes takes all its addresses with it: they are gone
        together in what this returns.

        Raises:
            AdapterError: the kernel's octets make no sense.
        """
        before, lost = self.held, False
        held = set(before)
        while True:
            try:
                datagram = self._listener.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise AdapterError("listening for addresses", error.errno or 0) from error
                lost = True  # some were dropped: what is there now counts
                continue
            for kind, _, _, _, body in walk(datagram):
                each = _read(body) if kind in (_NEW, _GONE) else None
                if each is not None:
                    (held.add if kind == _NEW else held.discard)(each)
        self.held = _dump() if lost else frozenset(held)
        return Change(self.held - before, before - self.held)


def _dump() -> frozenset[Held]:
    """Return the addresses that there are."""
    with Asking() as asking:
        bodies = asking.dump(
            _GET, _BODY.pack(socket.AF_INET, 0, 0, 0, 0), doing="listing this router's addresses"
        )
    return frozenset(filter(None, map(_read, bodies)))


def _read(body: bytes) -> Held | None:
    """Return the address that an RTM_NEWADDR or RTM_DELADDR is about; None: not IPv4."""
    if len(body) < _BODY.size:
        return None
    family, _, _, _, index = _BODY.unpack_from(body)
    if family != socket.AF_INET:
        return None
    found = attributes(body[_BODY.size :])
    address = found.get(_LOCAL, found.get(_ADDRESS, b""))
    if len(address) != 4:
        return None
    label = found.get(_LABEL, b"").split(b"\0", 1)[0].decode("ascii", "replace")
    return Held(label or f"#{index}", address)
