"""Privileges that the daemon lets go of: all but what it works with.

CAP_NET_ADMIN is what queues and conntrack ask for.  capabilities(7), prctl(2);
numbers are those of linux/capability.h and linux/prctl.h.

Privileges belong to threads: this is for the first one, before there are others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Collection
from typing import Final

from pptp_nat.errors import AdapterError

NET_ADMIN: Final = 12
NET_RAW: Final = 13  #: iptables opens a raw socket to talk to the kernel
BPF: Final = 39
_SETPCAP: Final = 8
_LAST_CAP: Final = 63  #: of those that capset(2) can name

_BOUNDING_READ, _BOUNDING_DROP = 23, 24  # PR_CAPBSET_READ, PR_CAPBSET_DROP
_NO_NEW_PRIVILEGES: Final = 38  # PR_SET_NO_NEW_PRIVS
_AMBIENT, _AMBIENT_CLEAR = 47, 4  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL
_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_HEADER: Final = struct.Struct("=II")
_SETS: Final = struct.Struct("=6I")  # effective, permitted, inheritable; low words, high words
_MENDS: Final = {errno.EPERM: "the sandbox forbids it; capabilities and no_new_privs only shrink"}

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def drop(kept: Collection[int] = (NET_ADMIN,), *, inherited: bool = False) -> None:
    """Let go of every capability but *kept*, for good, for this process and its children.

    What is not there to begin with is not needed: kept are those that there are.

    Args:
        kept: capabilities.
        inherited: whether children of an ordinary user keep them too.

    Raises:
        AdapterError: the kernel refuses.
    """
    bits = sum(1 << number for number in kept)
    effective, permitted_before, _ = _held()
    permitted = permitted_before & bits
    # Without CAP_SETPCAP, as in a sandbox, the bounding set stays: without new privileges
    # nobody gets anything out of it.
    for number in range(_LAST_CAP + 1) if effective >> _SETPCAP & 1 else ():
        if not bits >> number & 1 and _prctl(_BOUNDING_READ, number, may_fail=True) == 1:
            _prctl(_BOUNDING_DROP, number)
    if not inherited:
        _prctl(_AMBIENT, _AMBIENT_CLEAR, may_fail=True)
    # A sandbox may forbid capset(2), and has then left nothing to let go of: what is
    # inheritable and not ambient is worth nothing without new privileges.
    if (permitted, permitted) != (effective, permitted_before):
        low, high = permitted & 0xFFFFFFFF, permitted >> 32
        sets = _SETS.pack(low, low, low * inherited, high, high, high * inherited)
        header = ctypes.create_string_buffer(_HEADER.pack(_VERSION, 0))
        if _LIBC.capset(header, ctypes.create_string_buffer(sets)) != 0:
            _raise("letting go of capabilities")
    _prctl(_NO_NEW_PRIVILEGES, 1)


def _held() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities, as bits."""
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION, 0))
    sets = ctypes.create_string_buffer(_SETS.size)
    if _LIBC.capget(header, sets) != 0:
        _raise("looking at capabilities")
    low, high = _SETS.unpack_from(sets)[:3], _SETS.unpack_from(sets)[3:]
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def _prctl(option: int, argument: int, *, may_fail: bool = False) -> int:
    zero = ctypes.c_ulong(0)
    done: int = _LIBC.prctl(option, ctypes.c_ulong(argument), zero, zero, zero)
    if done < 0 and not may_fail:
        _raise(f"prctl {option}")
    return done


def _raise(doing: str) -> None:
    code = ctypes.get_errno()
    raise AdapterError(doing, code, mend=_MENDS.get(code, os.strerror(code)))
