"""Many netlink messages in one system call each way: recvmmsg(2), sendmsg(2).

Python's sockets have no recvmmsg, so libc is called by ctypes.  The memory is
one mapping of the system's with a room for the longest message, of which only
the pages are there that a message has touched.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from socket import MSG_DONTWAIT
from typing import Final

#: Octets: the longest packet and its message's attributes.  Not a whole number of pages, or the
#: beginnings of all rooms would have the same few places in the processor's cache.
ROOM: Final = 17 * 4096 + 192
ROOMS: Final = 256  #: messages
_IOVEC: Final = struct.Struct("@PN")  # struct iovec: address, octets
PIECE_SIZE: Final = _IOVEC.size  #: octets of a place in `Batch.pieces`
#: struct msghdr: name, its length, iovec, how many, control, its length, flags
_MSGHDR: Final = struct.Struct("@PIPNPNi0P")
_MMSGHDR: Final = struct.Struct("@PIPNPNi0PI0P")  #: the same, and what was received


class Batch:
    """Memory for messages from a socket, and for the list of pieces that are sent back.

    Attributes:
        octets: message *n* begins at ``n * ROOM``; its memory may be changed.
        pieces: what `send` sends: `ROOMS` pairs of an address and a length, packed by `piece`.
        address: of the first octet of `octets`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.octets = mmap.mmap(-1, ROOMS * ROOM, mmap.MAP_PRIVATE | mmap.MAP_ANON)
        self.pieces = bytearray(ROOMS * _IOVEC.size)
        self._headers = bytearray(ROOMS * _MMSGHDR.size)
        self._answer = bytearray(_MSGHDR.size)
        places = bytearray(ROOMS * _IOVEC.size)
        #: ctypes' views: they hold the memory where it is, as long as they live
        self._held = [
            ctypes.c_char.from_buffer(each)
            for each in (self.octets, self.pieces, self._headers, self._answer, places)
        ]
        self.address, self._pieces_at, self._headers_at, self._answer_at, places_at = map(
            ctypes.addressof, self._held
        )
        for n in range(ROOMS):
            place = n * _IOVEC.size
            _IOVEC.pack_into(places, place, self.address + n * ROOM, ROOM)
            _MMSGHDR.pack_into(
                self._headers, n * _MMSGHDR.size, 0, 0, places_at + place, 1, 0, 0, 0, 0
            )
        libc = ctypes.CDLL(None, use_errno=True)
        self._recvmmsg, self._sendmsg = libc.recvmmsg, libc.sendmsg
        self._recvmmsg.argtypes = (
            ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p,
        )  # fmt: skip
        self._sendmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
        self._sendmsg.restype = ctypes.c_ssize_t

    piece = staticmethod(_IOVEC.pack_into)

    def receive(self, count: int) -> int:
        """Receive up to *count* messages that wait; return how many came.

        Raises:
            OSError: as recvmmsg(2); ENOBUFS: the kernel had more than the socket's buffer holds.
        """
        got: int = self._recvmmsg(self._descriptor, self._headers_at, count, MSG_DONTWAIT, None)
        if got >= 0:
            return got
        error = ctypes.get_errno()
        if error in (errno.EAGAIN, errno.EINTR):
            return 0
        raise OSError(error, os.strerror(error))

    def copy(self, n: int, into: bytearray) -> int:
        """Copy message *n* to the beginning of *into*; return its octets."""
        size: int = _MMSGHDR.unpack_from(self._headers, n * _MMSGHDR.size)[-1]
        into[:size] = self.octets[n * ROOM : n * ROOM + size]
        return size

    def send(self, first: int, count: int) -> None:
        """Send *count* pieces from the one numbered *first* on as one datagram.

        Raises:
            OSError: as sendmsg(2).
        """
        pieces_at = self._pieces_at + first * PIECE_SIZE
        _MSGHDR.pack_into(self._answer, 0, 0, 0, pieces_at, count, 0, 0, 0)
        if self._sendmsg(self._descriptor, self._answer_at, MSG_DONTWAIT) < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def copied(self, first: int, count: int) -> bytes:
        """Return what `send` would have sent."""
        pairs = _IOVEC.iter_unpack(
            bytes(self.pieces[first * PIECE_SIZE : (first + count) * PIECE_SIZE])
        )
        starts = ((at - self.address, size) for at, size in pairs)
        return b"".join(self.octets[start : start + size] for start, size in starts)
