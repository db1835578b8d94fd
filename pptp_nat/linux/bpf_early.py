"""What is easy of calls' GRE, carried before there is a stack: at which devices, and why not.

A packet goes this way if the device where it arrives runs the XDP program of
``pptp_nat/bpf/gre.c`` and the one where it leaves takes frames of others; the program
knows both from its maps.  Whatever either cannot is for tc's programs.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from pptp_nat.errors import AdapterError
from pptp_nat.linux import xdp
from pptp_nat.linux.bpf_object import BpfObject
from pptp_nat.linux.traffic_control import (
    EARLY_NAME,
    ETHERNET,
    Device,
    Early,
    TrafficControl,
)

NEEDS: Final = (EARLY_NAME, "ports", "exits")  #: of the object, beside what tc's programs need
_INDEX: Final = struct.Struct("=I")
_PORT: Final = struct.Struct("=6s2x")  # struct port of gre.c
_MAC_OCTETS: Final = 6
_TAKES_NOTHING: Final = (
    "its driver takes no frames from other devices (of a veth: as long as its other end"
    " has neither GRO nor an XDP program)"
)


class BeforeTheStack:
    """Follows which devices can do without the stack.

    Args:
        programs: the object, with all that it `NEEDS`.

    Raises:
        AdapterError: this kernel does not tell what devices can do.
    """

    def __init__(self, programs: BpfObject) -> None:
        self._programs = programs
        self._early = Early(programs.program_fd(EARLY_NAME), programs.program_id(EARLY_NAME))
        self._ports, self._exits = programs.map_fd("ports"), programs.map_fd("exits")
        self._abilities = xdp.Abilities()
        self._written: dict[tuple[int, int], bytes] = {}  # what the maps hold, by map and device
        #: devices where GRE of calls does not go this way, and why
        self.without: dict[str, str] = {}
        self.group = self._abilities.group  #: that hears when devices can do something else

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._abilities.__exit__()

    def choose(self, devices: Sequence[Device]) -> dict[int, Early]:
        """Return what is to run where, by the device's number; let frames leave where they can.

        Raises:
            AdapterError: the kernel does not tell what devices can do, or takes no more.
        """
        can = self._abilities.read()
        self.without = {}
        takers = {d.number for d in devices if xdp.Ability.TAKE in can.get(d.number, xdp.NONE)}
        runners = []
        for device in devices:
            flaw = _flaw(device, can.get(device.number, xdp.NONE), takers)
            if flaw is None:
                runners.append(device)
            # What arrives at a device may go early though nothing leaves there so.
            if flaw is None and device.number not in takers:
                flaw = _TAKES_NOTHING
            if flaw is not None:
                self.without[device.name] = flaw
        self._write(
            {(self._exits, number): _INDEX.pack(number) for number in takers}
            | {(self._ports, d.number): _PORT.pack(d.address) for d in runners}
        )
        return {device.number: self._early for device in runners}

    def _write(self, wanted: dict[tuple[int, int], bytes]) -> None:
        """Have the maps hold what is *wanted*, and nothing else."""
        for (fd, number) in self._written.keys() - wanted.keys():
            self._programs.delete(fd, _INDEX.pack(number))  # or the kernel has, with the device
            del self._written[fd, number]
        for (fd, number), value in wanted.items():
            # An exit is written each time: its device may have gone and come again.
            if fd == self._exits or self._written.get((fd, number)) != value:
                code = self._programs.update(fd, _INDEX.pack(number), value)
                if code not in (0, errno.EINVAL):  # it has gone meanwhile
                    raise AdapterError("telling BPF programs of a device", code)
                self._written[fd, number] = value


def _flaw(device: Device, can: xdp.Ability, takers: set[int]) -> str | None:
    """Say why what arrives at *device*, or leaves there, does not go before the stack."""
    if device.hardware not in ETHERNET or len(device.address) != _MAC_OCTETS:
        return "its frames have no Ethernet header"
    if xdp.RUN not in can:
        return "its driver runs no XDP programs"
    if device.master:
        return "it is a port of another device"
    if device.carries:
        return f"{device.carries} is a part of it"
    if not takers - {device.number}:
        return "no other device takes frames"
    return None


class Programmed(NamedTuple):
    """The devices where IPv4 is routed, by name."""

    served: list[str]  #: with programs of ours
    unserved: list[str]  #: without
    early: list[str]  #: of those that are served: with one before the stack besides


def programmed() -> Programmed:
    """Return where programs of ours run, whoever has attached them.

    Raises:
        AdapterError: the devices cannot be listed.
    """
    with TrafficControl() as tc:
        devices = tc.devices()
        served = {each.name for each in devices if tc.programmed(each)}
        early = [each.name for each in devices if each.name in served and tc.early(each)]
    names = [each.name for each in devices]
    return Programmed(
        [n for n in names if n in served], [n for n in names if n not in served], early
    )
