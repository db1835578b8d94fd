"""BPF programs at devices: attached, found and detached over rtnetlink (tc's classifier "bpf").

Two filters of ours at a device, where packets arrive and where they leave, both at
`PREFERENCE` and named by `NAME` and the run that attached them.  They hang on the
queueing discipline ``clsact``, which others may need too: the handle of a filter says
whether we made that, so that whoever detaches, be it a later run, knows whether to take
it away.  Where an XDP program of ours runs besides, their names say its ID: nothing
else tells whose it is.

Layouts are those of linux/rtnetlink.h, linux/pkt_sched.h and linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import secrets
import select
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from pptp_nat.errors import AdapterError
from pptp_nat.linux import xdp
from pptp_nat.linux.bpf_object import program_name
from pptp_nat.linux.netlink import (
    F_CREATE,
    F_EXCL,
    RECEIVE_OCTETS,
    SOL_NETLINK,
    attribute,
    attributes,
    nested,
)
from pptp_nat.linux.rtnetlink import GENERIC, ROUTE, Asking, opened

NAME: Final = "pptp-nat"
_EARLY: Final = "xdp="  # in the name of a filter, before the ID of an XDP program
EARLY_NAME: Final = "before_the_stack"  #: of that program
PREFERENCE: Final = 1723  #: of our filters; those with a lower one are asked before

_NEW_QDISC, _DELETE_QDISC, _GET_QDISC = 36, 37, 38  # RTM_NEWQDISC, ...
_NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 44, 45, 46  # RTM_NEWTFILTER, ...
_GET_LINK, _GET_ADDRESS, _GET_RULE = 18, 22, 34  # RTM_GETLINK, RTM_GETADDR, RTM_GETRULE
_REPLACE: Final = 0x100  # NLM_F_REPLACE
_TC: Final = struct.Struct("=B3xiIII")  # struct tcmsg: family, index, handle, parent, info
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_RULE: Final = struct.Struct("=B11x")  # struct fib_rule_hdr: family; the rest
_RULE_MARK, _RULE_MASK = 10, 16  # FRA_FWMARK, FRA_FWMASK
_NUMBER: Final = struct.Struct("=I")
_LINK_ADDRESS, _LINK_NAME, _LINK_LOWER, _LINK_MASTER = 1, 3, 5, 10  # IFLA_ADDRESS, ...
_LINK_INFO, _LINK_ELSEWHERE = 18, 37  # IFLA_LINKINFO, IFLA_LINK_NETNSID
_LINK_KIND: Final = 1  # IFLA_INFO_KIND
_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11  # TCA_BPF_FD, ...
_DIRECT_ACTION: Final = 1  # TCA_BPF_FLAG_ACT_DIRECT
_CLSACT_HANDLE, _CLSACT = 0xFFFF0000, 0xFFFFFFF1  # TC_H_CLSACT
_LOOPBACK: Final = 0x8  # IFF_LOOPBACK
_GROUPS: Final = 0x1 | 0x10 | 0x80  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_RULE
_JOIN: Final = 1  # NETLINK_ADD_MEMBERSHIP
_IPV4: Final = socket.htons(0x0800)
#: linux/if_arp.h: what has an Ethernet header, and what has none: ppp, raw IP, tunnels, tun.
ETHERNET: Final = frozenset({1})
BARE: Final = frozenset({512, 519, 768, 776, 778, 0xFFFE})
#: Of a filter, whether the queueing discipline is ours too.
_OURS, _THEIRS = 1, 2
ARRIVING, LEAVING = 0xFFFFFFF2, 0xFFFFFFF3  #: parents: TC_H_MIN_INGRESS, TC_H_MIN_EGRESS
_MENDS: Final = {
    errno.EPERM: "be root, or have CAP_NET_ADMIN",
    errno.ENOENT: "load cls_bpf and sch_ingress; OpenWrt: install kmod-sched-bpf",
    errno.EOPNOTSUPP: "load cls_bpf and sch_ingress; OpenWrt: install kmod-sched-bpf",
}


class Device(NamedTuple):
    """A network device."""

    number: int
    name: str
    hardware: int  #: its type (linux/if_arp.h)
    master: int  #: number of the bridge or the like that it is a port of; 0: none
    address: bytes = b""  #: its MAC address
    early: int = 0  #: ID of the XDP program that it runs; 0: none
    carries: str = ""  #: one device that is a part of it, such as a VLAN


class Early(NamedTuple):
    """A program that runs before the stack."""

    descriptor: int
    id: int  #: of this kernel, given once


class Programs(NamedTuple):
    """Descriptors of what a device is to run."""

    arriving: int
    leaving: int
    early: Early | None = None


class Changes:
    """Hears when devices, their IPv4 addresses or rules of routing come, go or change.

    Args:
        generic: a group of generic netlink that is to be heard too; 0: none.

    Raises:
        AdapterError: the kernel refuses it.
    """

    def __init__(self, generic: int = 0) -> None:
        self._all = select.epoll()
        self._sockets: list[socket.socket] = []
        try:
            self._listen(opened(ROUTE, _GROUPS))
            if generic:
                self._listen(opened(GENERIC)).setsockopt(SOL_NETLINK, _JOIN, generic)
        except OSError as error:
            self.close()
            raise AdapterError("listening for devices", error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    def _listen(self, listening: socket.socket) -> socket.socket:
        self._sockets.append(listening)
        self._all.register(listening, select.EPOLLIN)
        return listening

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hear of nothing any more."""
        self._all.close()
        for each in self._sockets:
            each.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has changed."""
        return self._all.fileno()

    def drain(self) -> None:
        """Read what is waiting; what it says is for the devices themselves to show."""
        for each in self._sockets:
            self._drain(each)

    def _drain(self, listening: socket.socket) -> None:
        while True:
            try:
                listening.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise AdapterError("listening for devices", error.errno or 0) from error


class TrafficControl:
    """An rtnetlink socket of this network namespace.

    Raises:
        AdapterError: the kernel refuses it.
    """

    def __init__(self) -> None:
        self._asking = Asking()
        self._ids: set[int] = set()  # of XDP programs that this object has attached
        self._name = f"{NAME} {secrets.token_hex(4)}"  # a container's first process is 1 each time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket; what is attached stays."""
        self._asking.close()

    def devices(self) -> list[Device]:
        """Return the devices where IPv4 is routed, less the loopback.

        They are those that have an address and their ports: with bridge-nf-call-iptables
        the firewall sees packets at a bridge's port, before the bridge itself does.

        Raises:
            AdapterError: refused.
        """
        addressed = {
            _ADDRESS.unpack_from(body)[4]
            for body in self._asking.dump(_GET_ADDRESS, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0))
            if body[0] == socket.AF_INET
        }
        return [each for each in self._links() if {each.number, each.master} & addressed]

    def routes_by_mark(self) -> bool:
        """Whether a rule of IPv4 routing asks for packet marks (``ip rule ... fwmark``).

        Raises:
            AdapterError: refused.
        """
        rules = self._asking.dump(
            _GET_RULE, _RULE.pack(socket.AF_INET), doing="listing routing's rules"
        )
        return any(
            {_RULE_MARK, _RULE_MASK} & attributes(body[_RULE.size :]).keys() for body in rules
            if body[0] == socket.AF_INET
        )  # fmt: skip

    def loopback(self) -> Device | None:
        """Return the loopback device, which packets between hosts never cross.

        Raises:
            AdapterError: refused.
        """
        served = set(self._links())
        return next((each for each in self._links(loopback=True) if each not in served), None)

    def _links(self, *, loopback: bool = False) -> Iterator[Device]:
        bodies = self._asking.dump(_GET_LINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        links = [(*_LINK.unpack_from(body), attributes(body[_LINK.size :])) for body in bodies]
        parts = {_lower(found): _text(found.get(_LINK_NAME, b"")) for *_, found in links}
        for _, hardware, index, flags, _, found in links:
            if loopback or not flags & _LOOPBACK:
                yield Device(
                    index, _text(found.get(_LINK_NAME, b"")), hardware,
                    _number(found.get(_LINK_MASTER)), found.get(_LINK_ADDRESS, b""),
                    xdp.running(found), parts.get(index, ""),
                )  # fmt: skip

    def attach(self, device: Device, programs: Programs) -> None:
        """Have *device* run *programs*, in place of those of ours that it may run.

        What it runs of ours before the stack stays, if one is to: `attach_early` replaces it.

        Raises:
            AdapterError: the kernel refuses.
        """
        earlier = self._early(device)
        if earlier and not programs.early:
            xdp.detach(self._asking, device.number)
        ids = {programs.early.id, earlier} - {0} if programs.early else ()
        name = " ".join([self._name, *(f"{_EARLY}{each}" for each in ids)])
        doing = f"attaching BPF programs to {device.name}"
        handle = self._handle(device)
        if handle is None:
            code = self._asking.ask(_NEW_QDISC, F_CREATE | F_EXCL, _TC.pack(
                0, device.number, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0"))
            if code not in (0, errno.EEXIST):
                raise AdapterError(doing, code, mend=_MENDS.get(code, ""))
            handle = _THEIRS if code else _OURS
        for parent, program in ((ARRIVING, programs.arriving), (LEAVING, programs.leaving)):
            code = self._asking.ask(
                _NEW_FILTER, F_CREATE | _REPLACE,
                _filter(device, parent, handle) + attribute(_KIND, b"bpf\0")
                + nested(
                    _OPTIONS,
                    attribute(_BPF_FD, _NUMBER.pack(program)),
                    attribute(_BPF_NAME, name.encode() + b"\0"),
                    attribute(_BPF_FLAGS, _NUMBER.pack(_DIRECT_ACTION)),
                ),
            )  # fmt: skip
            if code:
                self.detach(device)
                raise AdapterError(doing, code, mend=_MENDS.get(code, ""))

    def attached(self, device: Device, early: Early | None = None) -> bool:
        """Whether *device* runs both programs that this object has attached.

        Their names must tell of *early*, if they are to, and of no other.

        Raises:
            AdapterError: refused.
        """
        name = f"{self._name} {_EARLY}{early.id}" if early else self._name
        return all(
            any(found == name for _, found in self._filters(device, parent))
            for parent in (ARRIVING, LEAVING)
        )

    def attach_early(self, device: Device, early: Early) -> None:
        """Have *device* run a program before the stack too; `attach` has made it known.

        Raises:
            AdapterError: the kernel or the driver refuses, or it runs somebody else's.
        """
        if device.early != early.id:
            replacing = self._early(device) != 0
            xdp.attach(self._asking, device.number, early.descriptor, replacing=replacing)
            self._ids.add(early.id)

    def early(self, device: Device) -> bool:
        """Whether *device* runs a program of ours before the stack, whoever has attached it.

        Raises:
            AdapterError: refused.
        """
        return self._early(device) != 0

    def _early(self, device: Device) -> int:
        """Return the ID of the XDP program of ours that *device* runs; 0: none.

        All devices run the same one, so the filters of another tell of it too, if this one
        has lost its own; and where none is left, the kernel may tell its name.
        """
        number = device.early
        if number and number not in self._ids:
            others = (each for each in self._links() if each.number != device.number)
            if any(self._tells_of(each, number) for each in (device, *others)):
                return number
            return number if program_name(number) == EARLY_NAME[:15] else 0
        return number

    def _tells_of(self, device: Device, early: int) -> bool:
        ours = f"{_EARLY}{early}"
        return any(
            name.split()[:1] == [NAME] and ours in name.split()
            for parent in (ARRIVING, LEAVING) for _, name in self._filters(device, parent)
        )  # fmt: skip

    def programmed(self, device: Device) -> bool:
        """Whether *device* runs both programs, whoever has attached them.

        Raises:
            AdapterError: refused.
        """
        return all(self._ours(device, parent) for parent in (ARRIVING, LEAVING))

    def detach(self, device: Device) -> bool:
        """Take away what is ours at *device*; whether there was something.

        Raises:
            AdapterError: refused.
        """
        ours = False
        found = self._early(device) != 0
        if found:
            xdp.detach(self._asking, device.number)
        for parent in (ARRIVING, LEAVING):
            for handle in self._ours(device, parent):
                found = True
                ours |= handle == _OURS
                self._must(device, _DELETE_FILTER, _filter(device, parent, handle)
                           + attribute(_KIND, b"bpf\0"))
        if ours and not any(self._others(device, parent) for parent in (ARRIVING, LEAVING)):
            self._must(device, _DELETE_QDISC, _TC.pack(
                0, device.number, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0"))
        return found

    def detach_all(self) -> list[str]:
        """Take away what is ours everywhere; return the names of the devices that had some.

        Raises:
            AdapterError: refused.
        """
        return [each.name for each in self._links(loopback=True) if self.detach(each)]

    def _handle(self, device: Device) -> int | None:
        """Return the handle of our filters at *device*, if there are some."""
        found = [h for parent in (ARRIVING, LEAVING) for h in self._ours(device, parent)]
        return found[0] if found else None

    def _ours(self, device: Device, parent: int) -> list[int]:
        return [h for h, name in self._filters(device, parent) if name.split()[:1] == [NAME]]

    def _others(self, device: Device, parent: int) -> bool:
        return any(name.split()[:1] != [NAME] for _, name in self._filters(device, parent))

    def _filters(self, device: Device, parent: int) -> Iterator[tuple[int, str]]:
        """Yield the handles of the filters at *device*, and their names if they are BPF's."""
        asked = _TC.pack(0, device.number, 0, parent, 0)
        for body in self._asking.dump(_GET_FILTER, asked, may_fail=True):
            _, _, handle, _, _ = _TC.unpack_from(body)
            found = attributes(body[_TC.size :])
            options = attributes(found.get(_OPTIONS, b""))
            # Each chain of filters tells of itself, without a handle and options.
            if handle or options:
                yield handle, _text(options.get(_BPF_NAME, b""))

    def _must(self, device: Device, kind: int, body: bytes) -> None:
        code = self._asking.ask(kind, 0, body)
        if code not in (0, errno.ENOENT, errno.ENODEV):
            raise AdapterError(
                f"detaching BPF programs from {device.name}", code, mend=_MENDS.get(code, "")
            )


def _lower(link: dict[int, bytes]) -> int:
    """Return the device that a link is a part of, of this namespace; 0: none."""
    kind = _text(attributes(link.get(_LINK_INFO, b"")).get(_LINK_KIND, b""))
    # Of a veth it is the other end.
    return 0 if _LINK_ELSEWHERE in link or kind == "veth" else _number(link.get(_LINK_LOWER))


def _number(octets: bytes | None) -> int:
    return int(_NUMBER.unpack(octets)[0]) if octets and len(octets) == _NUMBER.size else 0


def _text(octets: bytes) -> str:
    return octets.split(b"\0", 1)[0].decode("ascii", "replace")


def _filter(device: Device, parent: int, handle: int) -> bytes:
    return _TC.pack(0, device.number, handle, parent, PREFERENCE << 16 | _IPV4)
