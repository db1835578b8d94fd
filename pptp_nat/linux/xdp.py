"""XDP: what devices can do with frames before there is a stack, and programs put there.

What a driver can do is told by the generic netlink family ``netdev`` (linux/netdev.h, Linux
6.3): of a veth it changes with what its other end runs.  The rest is linux/if_link.h.
"""

from __future__ import annotations

import enum
import errno
import struct
from typing import Final, Self

from pptp_nat.errors import AdapterError
from pptp_nat.linux.netlink import attribute, attributes, nested
from pptp_nat.linux.rtnetlink import GENERIC, Asking

_SET_LINK: Final = 19  # RTM_SETLINK
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_XDP: Final = 43  # IFLA_XDP
_FD, _FLAGS, _PROGRAM = 1, 3, 4  # IFLA_XDP_FD, IFLA_XDP_FLAGS, IFLA_XDP_PROG_ID
_IF_NONE, _NATIVE = 0x1, 0x4  # XDP_FLAGS_UPDATE_IF_NOEXIST, XDP_FLAGS_DRV_MODE

_CONTROL: Final = 0x10  # GENL_ID_CTRL
_GENERIC: Final = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_GET_FAMILY: Final = 3  # CTRL_CMD_GETFAMILY
_FAMILY, _FAMILY_NAME, _GROUPS = 1, 2, 7  # CTRL_ATTR_FAMILY_ID, ...
_GROUP_NAME, _GROUP = 1, 2  # CTRL_ATTR_MCAST_GRP_NAME, CTRL_ATTR_MCAST_GRP_ID
_GET_DEVICE: Final = 1  # NETDEV_CMD_DEV_GET
_INDEX, _FEATURES = 1, 3  # NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES
_MENDS: Final = {
    errno.EBUSY: "another XDP program runs there",
    errno.EEXIST: "another XDP program runs there",
    errno.ENOSPC: "it has fewer queues to receive than its other end has to send",
    errno.ERANGE: "its MTU is too large for XDP",
    errno.EINVAL: "its MTU or its offloads (LRO) do not go with XDP",
}


class Ability(enum.IntFlag):
    """What a driver can do (enum netdev_xdp_act)."""

    BASIC = 1
    REDIRECT = 2
    TAKE = 4  #: frames that another device hands on (NETDEV_XDP_ACT_NDO_XMIT)


NONE: Final = Ability(0)
RUN: Final = Ability.BASIC | Ability.REDIRECT


class Abilities:
    """Asks what devices can do.

    Raises:
        AdapterError: this kernel does not tell.
    """

    def __init__(self) -> None:
        self._asking = Asking(GENERIC)
        found = self._asking.answer(
            _CONTROL, _GENERIC.pack(_GET_FAMILY, 1) + attribute(_FAMILY_NAME, b"netdev\0")
        )
        if found is None:
            self._asking.close()
            raise AdapterError(
                "asking what devices can do before the stack", errno.ENOENT,
                mend="Linux 6.3 or later tells",
            )  # fmt: skip
        told = attributes(found[_GENERIC.size :])
        self._family = struct.unpack("=H", told[_FAMILY])[0]
        groups = [attributes(each) for each in attributes(told.get(_GROUPS, b"")).values()]
        #: number of the group that hears when a device can do something else; 0: none
        self.group: int = next(
            (struct.unpack("=I", g[_GROUP])[0] for g in groups if g[_GROUP_NAME] == b"mgmt\0"), 0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.close()

    def read(self) -> dict[int, Ability]:
        """Return what each device can do, by its number.

        Raises:
            AdapterError: refused.
        """
        can = {}
        for body in self._asking.dump(self._family, _GENERIC.pack(_GET_DEVICE, 1)):
            told = attributes(body[_GENERIC.size :])
            features, = struct.unpack("=Q", told.get(_FEATURES, bytes(8)))
            can[struct.unpack("=I", told[_INDEX])[0]] = Ability(features & (RUN | Ability.TAKE))
        return can


def running(link: dict[int, bytes]) -> int:
    """Return the ID of the XDP program of a *link* (its attributes); 0: none."""
    found = attributes(link.get(_XDP, b"")).get(_PROGRAM, b"")
    return int(struct.unpack("=I", found)[0]) if len(found) == 4 else 0


def attach(asking: Asking, device: int, program: int, *, replacing: bool) -> None:
    """Have *device* run the program of the descriptor *program*.

    Args:
        asking: a socket of routing's.
        device: its number.
        program: a descriptor.
        replacing: whether what runs there is ours.

    Raises:
        AdapterError: the kernel, or the driver, refuses.
    """
    code = _set(asking, device, program, _NATIVE if replacing else _NATIVE | _IF_NONE)
    if code:
        raise AdapterError("attaching an XDP program", code, mend=_MENDS.get(code, ""))


def detach(asking: Asking, device: int) -> None:
    """Have *device* run none.

    Raises:
        AdapterError: the kernel refuses.
    """
    code = _set(asking, device, -1, _NATIVE)
    if code not in (0, errno.ENODEV):
        raise AdapterError("detaching an XDP program", code)


def _set(asking: Asking, device: int, program: int, flags: int) -> int:
    told = nested(
        _XDP,
        attribute(_FD, struct.pack("=i", program)),
        attribute(_FLAGS, struct.pack("=I", flags)),
    )
    return asking.ask(_SET_LINK, 0, _LINK.pack(0, 0, device, 0, 0) + told)
