"""BPF programs at devices: attached, found and detached over rtnetlink (tc's classifier "bpf").

Two filters of ours at a device, where packets arrive and where they leave, both at
`PREFERENCE` and named by `NAME` and the run that attached them.  They hang on the
queueing discipline ``clsact``, which others may need too: the handle of a filter says
whether we made that, so that whoever detaches, be it a later run, knows whether to take
it away.

Layouts are those of linux/rtnetlink.h, linux/pkt_sched.h and linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from pptp_nat.errors import AdapterError
from pptp_nat.linux.netlink import (
    ERROR_CODE,
    F_ACK,
    F_CREATE,
    F_DUMP,
    F_EXCL,
    F_REQUEST,
    HEADER,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_OCTETS,
    attribute,
    attributes,
    nested,
    walk,
)

NAME: Final = "pptp-nat"
PREFERENCE: Final = 1723  #: of our filters; those with a lower one are asked before

_NEW_QDISC, _DELETE_QDISC, _GET_QDISC = 36, 37, 38  # RTM_NEWQDISC, ...
_NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 44, 45, 46  # RTM_NEWTFILTER, ...
_GET_LINK, _GET_ADDRESS = 18, 22  # RTM_GETLINK, RTM_GETADDR
_REPLACE: Final = 0x100  # NLM_F_REPLACE
_TC: Final = struct.Struct("=B3xiIII")  # struct tcmsg: family, index, handle, parent, info
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index
_NUMBER: Final = struct.Struct("=I")
_LINK_NAME, _LINK_MASTER = 3, 10  # IFLA_IFNAME, IFLA_MASTER
_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11  # TCA_BPF_FD, ...
_DIRECT_ACTION: Final = 1  # TCA_BPF_FLAG_ACT_DIRECT
_CLSACT_HANDLE, _CLSACT = 0xFFFF0000, 0xFFFFFFF1  # TC_H_CLSACT
_LOOPBACK: Final = 0x8  # IFF_LOOPBACK
_GROUPS: Final = 0x1 | 0x10  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR
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


class Programs(NamedTuple):
    """Descriptors of what a device is to run."""

    arriving: int
    leaving: int


class Changes:
    """A socket that is told when devices or their IPv4 addresses come, go or change.

    Raises:
        AdapterError: the kernel refuses it.
    """

    def __init__(self) -> None:
        self._socket = _socket(_GROUPS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has changed."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read what is waiting; what it says is for the devices themselves to show."""
        while True:
            try:
                self._socket.recv(RECEIVE_OCTETS)
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
        self._socket = _socket(0)
        self._sequence = 0
        self._name = f"{NAME} {secrets.token_hex(4)}"  # a container's first process is 1 each time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket; what is attached stays."""
        self._socket.close()

    def devices(self) -> list[Device]:
        """Return the devices where IPv4 is routed, less the loopback.

        They are those that have an address and their ports: with bridge-nf-call-iptables
        the firewall sees packets at a bridge's port, before the bridge itself does.

        Raises:
            AdapterError: refused.
        """
        addressed = {
            _ADDRESS.unpack_from(body)[4]
            for body in self._dump(_GET_ADDRESS, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0))
            if body[0] == socket.AF_INET
        }
        return [each for each in self._links() if {each.number, each.master} & addressed]

    def loopback(self) -> Device | None:
        """Return the loopback device, which packets between hosts never cross.

        Raises:
            AdapterError: refused.
        """
        served = set(self._links())
        return next((each for each in self._links(loopback=True) if each not in served), None)

    def _links(self, *, loopback: bool = False) -> Iterator[Device]:
        for body in self._dump(_GET_LINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, hardware, index, flags, _ = _LINK.unpack_from(body)
            if loopback or not flags & _LOOPBACK:
                found = attributes(body[_LINK.size :])
                name = found.get(_LINK_NAME, b"")
                master = found.get(_LINK_MASTER, b"")
                yield Device(
                    index, _text(name), hardware,
                    _NUMBER.unpack(master)[0] if len(master) == _NUMBER.size else 0,
                )  # fmt: skip

    def attach(self, device: Device, programs: Programs) -> None:
        """Have *device* run *programs*, in place of those of ours that it may run.

        Raises:
            AdapterError: the kernel refuses.
        """
        doing = f"attaching BPF programs to {device.name}"
        handle = self._handle(device)
        if handle is None:
            code = self._ask(_NEW_QDISC, F_CREATE | F_EXCL, _TC.pack(
                0, device.number, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0"))
            if code not in (0, errno.EEXIST):
                raise AdapterError(doing, code, mend=_MENDS.get(code, ""))
            handle = _THEIRS if code else _OURS
        for parent, program in ((ARRIVING, programs.arriving), (LEAVING, programs.leaving)):
            code = self._ask(_NEW_FILTER, F_CREATE | _REPLACE, _filter(device, parent, handle)
                + attribute(_KIND, b"bpf\0")
                + nested(
                    _OPTIONS,
                    attribute(_BPF_FD, _NUMBER.pack(program)),
                    attribute(_BPF_NAME, self._name.encode() + b"\0"),
                    attribute(_BPF_FLAGS, _NUMBER.pack(_DIRECT_ACTION)),
                ))
            if code:
                self.detach(device)
                raise AdapterError(doing, code, mend=_MENDS.get(code, ""))

    def attached(self, device: Device) -> bool:
        """Whether *device* runs both programs that this object has attached.

        Raises:
            AdapterError: refused.
        """
        return all(
            any(name == self._name for _, name in self._filters(device, parent))
            for parent in (ARRIVING, LEAVING)
        )

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
        found = False
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
        for body in self._dump(_GET_FILTER, asked, may_fail=True):
            _, _, handle, _, _ = _TC.unpack_from(body)
            found = attributes(body[_TC.size :])
            options = attributes(found.get(_OPTIONS, b""))
            # Each chain of filters tells of itself, without a handle and options.
            if handle or options:
                yield handle, _text(options.get(_BPF_NAME, b""))

    def _must(self, device: Device, kind: int, body: bytes) -> None:
        code = self._ask(kind, 0, body)
        if code not in (0, errno.ENOENT, errno.ENODEV):
            raise AdapterError(
                f"detaching BPF programs from {device.name}", code, mend=_MENDS.get(code, "")
            )

    def _ask(self, kind: int, flags: int, body: bytes) -> int:
        """Send one request; return its errno, 0 for success."""
        for answer, _, content in self._exchange(kind, flags | F_ACK, body):
            if answer == NLMSG_ERROR:
                return _code(content)
        return errno.ENOBUFS

    def _dump(self, kind: int, body: bytes, *, may_fail: bool = False) -> list[bytes]:
        """Return the bodies of all that there is of a kind."""
        bodies: list[bytes] = []
        for answer, _, content in self._exchange(kind, F_DUMP, body):
            if answer == NLMSG_DONE:
                return bodies
            if answer == NLMSG_ERROR:
                if may_fail:  # no such queueing discipline: no filters
                    return bodies
                raise AdapterError("listing devices", _code(content))
            bodies.append(content)
        return bodies

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Send one request and yield kind, flags and body of what comes back."""
        self._sequence += 1
        header = HEADER.pack(
            HEADER.size + len(body), kind, F_REQUEST | flags, self._sequence, 0
        )
        try:
            self._socket.send(header + body)
        except OSError as error:
            raise AdapterError("asking rtnetlink", error.errno or 0) from error
        while True:
            try:
                datagram = self._socket.recv(RECEIVE_OCTETS)
            except BlockingIOError:
                return
            except OSError as error:
                raise AdapterError("asking rtnetlink", error.errno or 0) from error
            for answer, marks, sequence, _, content in walk(datagram):
                if sequence == self._sequence:
                    yield answer, marks, content


def _socket(groups: int) -> socket.socket:
    try:
        made = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        made.setblocking(False)  # the kernel answers before send() returns
        made.bind((0, groups))
    except OSError as error:
        raise AdapterError("opening a routing netlink socket", error.errno or 0) from error
    return made


def _text(octets: bytes) -> str:
    return octets.split(b"\0", 1)[0].decode("ascii", "replace")


def _filter(device: Device, parent: int, handle: int) -> bytes:
    return _TC.pack(0, device.number, handle, parent, PREFERENCE << 16 | _IPV4)


def _code(body: bytes) -> int:
    code: int = -ERROR_CODE.unpack_from(body)[0]
    return code
