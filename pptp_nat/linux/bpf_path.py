"""The data path through BPF programs at the devices: GRE rewritten before and behind the stack.

Needs nothing of conntrack: GRE of calls passes it untracked.  ``pptp_nat/bpf/gre.c``
says what is done where, rules/README.md what the firewall's rules have to do with it.

Every run loads programs and maps of its own, fills them, and then puts them in the
place of those that an earlier run has left at the devices: until then these carry on.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError
from pptp_nat.linux import bpf_early, bpf_maps, bpf_probe
from pptp_nat.linux.bpf_early import BeforeTheStack
from pptp_nat.linux.bpf_object import BpfObject
from pptp_nat.linux.datapath import Carrying, Installed, LegOrder, Match, Tally
from pptp_nat.linux.leg_table import PLACE, Notes, give_place, match_of, name_of, place_of, placed
from pptp_nat.linux.shares import Shares
from pptp_nat.linux.traffic_control import (
    BARE,
    ETHERNET,
    Changes,
    Device,
    Early,
    Programs,
    TrafficControl,
)

Forwarding = Literal["stack", "redirect", "xdp"]

#: made for either order of octets; that for the other one no kernel takes
OBJECTS: Final = {
    order: Path(__file__).parents[1] / "bpf" / name
    for order, name in (("little", "gre.el.o"), ("big", "gre.eb.o"))
}
_PIECE: Final = 512  #: legs whose counts are read in one go
#: Of two legs: counts, and buckets of both hash maps; entries take theirs as they come.
_OCTETS_PER_CALL: Final = 2 * (64 + 2 * 16)
_SHARE: Final = 32  #: of this router's memory, one part in so many
_FLAG: Final = struct.Struct("=I")  # the variable of gre.c
_ROUTED_BY_MARK: Final = (
    "a rule of routing asks for packet marks (ip rule show: fwmark), which are set in the stack"
)
_FULL: Final = AdapterError(
    "making room for a leg in the BPF maps", errno.ENOSPC, mend="raise limits.calls and restart"
)


class BpfPath:
    """Carries GRE by programs at the devices (a `DataPath`).

    Args:
        calls: how many there may be; of a small router's memory, fewer (`room`).
        repeat_mark: the bit of the packet mark that lets packets pass the rules.
        stays: whether what is attached stays there when this is closed.
        forwarding: "stack"; or packets that are easy go past routing and the firewall,
            "redirect" behind the device, "xdp" before there is a stack where devices can.

    Raises:
        AdapterError: libbpf is missing, or the kernel refuses the programs.
    """

    name: Carrying = "bpf"
    outlives_us = False  #: what an earlier run has left carries on, but does not tell us of what

    def __init__(
        self, calls: int, repeat_mark: int, *, stays: bool = True, forwarding: Forwarding = "stack"
    ) -> None:
        legs = max(64, 2 * min(calls, room()))
        self._stays = stays
        self._may_detach = False  # what is at the devices is ours, and not to stay
        self.notes: Notes = {}  #: the place in one is the leg's slot of `counts`
        self._before: dict[bytes, Tally] = {}  # what was carried in an earlier process
        self._shares = Shares()
        self._unsettled: dict[bytes, LegOrder] = {}  # what must carry, and the kernel had no memory
        #: devices that cannot run our programs, and why: what arrives there is no call's
        self.unserved: dict[str, str] = {}
        #: devices that were to carry before the stack and do not, and why; "" is all of them
        self.late: dict[str, str] = {}
        self.early_at: list[str] = []  #: the devices that carry before the stack
        self.by_stack = ""  #: why nothing goes past the stack although that was wanted
        self._past_the_stack = forwarding != "stack"
        with contextlib.ExitStack() as stack:
            self._object, self._early = self._opened(stack, legs, repeat_mark, forwarding)
            self._tc = stack.enter_context(TrafficControl())
            group = self._early.group if self._early else 0
            self._changes = stack.enter_context(Changes(group))
            self._counts = bpf_maps.Counts(self._object.map_fd("counts"), legs + 1)
            stack.callback(self._counts.close)
            self._told = bpf_maps.mapped(self._object.map_fd("tellings"), mmap.PAGESIZE)
            stack.callback(self._told.close)
            self._closing = stack.pop_all()
        self._maps = bpf_maps.LegMaps(self._object)

    def _opened(
        self, stack: contextlib.ExitStack, legs: int, repeat_mark: int, forwarding: Forwarding
    ) -> tuple[BpfObject, BeforeTheStack | None]:
        """Return the programs, with what goes before the stack if that is wanted and possible."""
        if forwarding == "xdp":
            with contextlib.ExitStack() as trying:
                try:
                    programs = trying.enter_context(opened(legs, repeat_mark, forwarding))
                    early = trying.enter_context(BeforeTheStack(programs))
                except AdapterError as error:
                    self.late = {"": str(error)}
                else:
                    stack.push(trying.pop_all())
                    return programs, early
            forwarding = "redirect"
        return stack.enter_context(opened(legs, repeat_mark, forwarding)), None

    @staticmethod
    def probe() -> str | None:
        """Return None where this path works, or one sentence that says why it does not.

        Loads the programs, runs one on a packet that nobody sends, and attaches it to
        the loopback device for a moment.
        """
        try:
            with opened(64, bpf_probe.MARK) as programs:
                return bpf_probe.flaw(programs)
        except AdapterError as error:
            return str(error)

    def install(self, orders: Sequence[LegOrder]) -> Installed:
        """Have the legs carry packets."""
        shared: dict[Match, Tally] = {}
        refused: list[LegOrder] = []
        error: AdapterError | None = None
        for order in orders:
            name = name_of(order.leg)
            slot = place_of(self.notes, name)
            before = self._maps.get(name) if slot else None
            try:
                self._carry(name, order, before)
            except AdapterError as refusal:
                refused.append(order)
                error = error or refusal
                continue
            if slot:
                self._unsettled.pop(name, None)
                match = match_of(name)
                self._shares.join(match, order, before)
                shared[match] = self._tally(name, slot)
        return Installed(shared, refused, error)

    def restore(self, orders: Sequence[LegOrder]) -> Installed:
        """Have legs carry packets that do not."""
        return self.install([o for o in orders if not place_of(self.notes, name_of(o.leg))])

    def _carry(self, name: bytes, order: LegOrder, before: LegOrder | None = None) -> None:
        """Put a leg into the maps; the counts of its match go on."""
        known = place_of(self.notes, name)
        slot = known or self._counts.take()
        if not slot:
            raise _FULL
        code = self._maps.put(order, slot, before)
        if code:
            if not known:
                self._counts.give_back(slot)
            if code == errno.E2BIG:
                raise _FULL
            raise AdapterError("installing a leg in the BPF maps", code)
        if not known:
            give_place(self.notes, name, slot)

    def _tally(self, name: bytes, slot: int) -> Tally:
        return self._whole(name, self._counts.tally(slot))

    def _whole(self, name: bytes, tally: Tally) -> Tally:
        before = self._before.get(name)
        if before is None:
            return tally
        return Tally(tally.packets + before.packets, tally.octets + before.octets)

    def remark(self, orders: Sequence[LegOrder]) -> None:
        """Give the packets of legs that are carried another mark."""
        for order in orders:
            name = name_of(order.leg)
            if self._shares.remark(order) and place_of(self.notes, name):
                self._carry(name, order, self._maps.get(name))

    def remove(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Stop carrying the legs whose last owner this was; return their last counts."""
        tallies = {}
        for leg in legs:
            name = name_of(leg)
            slot = place_of(self.notes, name)
            if not slot:
                continue
            left = self._shares.leave(leg) if self._shares else None
            if left is not None:
                self._unsettled[name] = left.now
            else:
                # What is left of a shared leg, and the kernel refused, is not in the maps yet.
                stale = self._unsettled.pop(name, None) and self._maps.get(name)
                self._maps.take(stale.leg if stale else leg)
                give_place(self.notes, name, 0)
                self._counts.give_back(slot)
            tallies[match_of(name)] = self._tally(name, slot)
            if left is None:
                self._before.pop(name, None)
        self._settle()
        return tallies

    def _settle(self) -> None:
        """Have carry what is left of shared legs; what the kernel refuses is tried again."""
        for name, order in list(self._unsettled.items()):
            with contextlib.suppress(AdapterError):
                self._carry(name, order, self._maps.get(name))
                del self._unsettled[name]

    def take_over(
        self, orders: Sequence[LegOrder], *, trusted: bool = False
    ) -> Sequence[LegOrder]:
        """Carry all *orders*, then take the place of what an earlier run has left.

        Who trusts a process that carried them until now leaves it that place until it
        ends, and then calls `replace`: if it does not come to that, nothing has changed.

        Returns:
            Those that others have as well, which each of them installs, and those refused.
        """
        seen: set[bytes] = set()
        first: list[LegOrder] = []
        again: list[LegOrder] = []
        for order in orders:
            name = name_of(order.leg)
            (again if name in seen else first).append(order)
            seen.add(name)
        again += self.install(first).refused
        if not trusted:
            self.replace()
        return again

    def replace(self) -> None:
        """Take the place of another run's programs, at all devices.

        Raises:
            AdapterError: devices cannot be listed.
        """
        self._may_detach = not self._stays
        self._attach()

    def left_over(self) -> Sequence[Leg]:
        """Return nothing: what an earlier run has left, `take_over` has replaced."""
        return ()

    def kept(self) -> Iterator[tuple[Match, Tally]]:
        """Yield all counts."""
        for piece in self.tally_pieces():
            yield from piece.items()

    def credit(self, leg: Leg, tally: Tally) -> None:
        """Add what *leg* had carried in an earlier process."""
        name = name_of(leg)
        if place_of(self.notes, name):
            self._before[name] = self._whole(name, tally)

    def lost(self, leg: Leg, tally: Tally) -> None:
        """Do nothing: nobody else can delete a leg here."""

    def tallies(self) -> Mapping[Match, Tally]:
        """Return the counts of all legs; asks nobody, they are in memory."""
        names = placed(self.notes)
        slots = [self.notes[name] & PLACE for name in names]
        counted = zip(names, self._counts.tallies(slots), strict=True)
        if not self._before:
            return {match_of(name): tally for name, tally in counted}
        return {match_of(name): self._whole(name, tally) for name, tally in counted}

    def tallies_of(self, legs: Sequence[Leg]) -> Mapping[Match, Tally]:
        """Return the counts of these *legs* alone."""
        return self._some(map(name_of, legs))

    def tally_pieces(self) -> Iterator[Mapping[Match, Tally]]:
        """Yield the counts of `_PIECE` legs at a time."""
        names = placed(self.notes)
        for start in range(0, len(names), _PIECE):
            yield self._some(names[start : start + _PIECE])

    def _some(self, names: Iterable[bytes]) -> dict[Match, Tally]:
        found = ((name, place_of(self.notes, name)) for name in names)
        return {match_of(name): self._tally(name, slot) for name, slot in found if slot}

    def watched(self, leg: Leg) -> bpf_maps.Watched | None:
        """Return all that is known of the packets of *leg*, which only this path looks at."""
        slot = place_of(self.notes, name_of(leg))
        return self._counts.watched(slot) if slot else None

    def told(self) -> dict[str, int]:
        """Return what the programs have counted besides: `bpf_maps.TOLD`."""
        return bpf_maps.told(self._told)

    def matches(self) -> list[Match]:
        """Return what is carried."""
        return list(map(match_of, placed(self.notes)))

    def fileno(self) -> int:
        """Return the descriptor that is readable when devices, addresses or rules have changed."""
        return self._changes.fileno()

    def on_devices(self) -> None:
        """Have the devices that there are now run our programs, as routing's rules allow.

        Raises:
            AdapterError: they cannot be listed.
        """
        self._changes.drain()
        self._attach()

    def renew(self, now: float) -> Iterator[None]:  # noqa: ARG002
        """Attach again what others have detached."""
        self._settle()
        self._attach()
        yield

    def _attach(self) -> None:
        """Have all devices that route run our programs; what cannot is in `unserved`."""
        if self._past_the_stack:
            self._look_at_rules()
        self.unserved = {}
        self.early_at = []
        devices = self._tc.devices()
        early: dict[int, Early] = {}
        if self._early is not None:
            early = self._early.choose(devices)
            self.late = self._early.without
        for device in devices:
            try:
                self._serve(device, early.get(device.number))
            except AdapterError as error:
                if error.errno != errno.ENODEV:  # it has gone meanwhile
                    self.unserved[device.name] = str(error)

    def _look_at_rules(self) -> None:
        """Leave all to the stack while routing asks for marks, which it alone knows in time."""
        by_mark = self._tc.routes_by_mark()
        code = self._object.update(self._object.map_fd(".bss"), bytes(4), _FLAG.pack(by_mark))
        if code:
            raise AdapterError("telling BPF programs of routing's rules", code)
        self.by_stack = _ROUTED_BY_MARK if by_mark else ""

    def _serve(self, device: Device, early: Early | None) -> None:
        if device.hardware in ETHERNET:
            kind = "ether"
        elif device.hardware in BARE:
            kind = "bare"
        else:
            self.unserved[device.name] = f"its link header (type {device.hardware}) is not known"
            return
        if not self._tc.attached(device, early):
            self._tc.attach(device, Programs(
                self._object.program_fd(f"{kind}_arriving"),
                self._object.program_fd(f"{kind}_leaving"),
                early,
            ))  # fmt: skip
        if early is not None:
            try:
                self._tc.attach_early(device, early)
            except AdapterError as error:
                self.late[device.name] = str(error)
            else:
                self.early_at.append(device.name)

    def close(self) -> None:
        """Let go of the maps; what is attached goes on carrying, unless it was not to stay."""
        try:
            if self._may_detach:
                self._may_detach = False  # a second time there is nothing left to take away
                self._tc.detach_all()
        finally:
            self._closing.close()


def room() -> int:
    """Return for how many calls the maps may take memory: a thirty-second of what there is."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // _SHARE // _OCTETS_PER_CALL


def opened(legs: int, repeat_mark: int, forwarding: Forwarding = "stack") -> BpfObject:
    """Return the programs in the kernel, with room for so many *legs*.

    Raises:
        AdapterError: libbpf is missing, or the kernel refuses them.
    """
    # A hairpin has two rows, and of those there are few.
    return BpfObject(
        OBJECTS[sys.byteorder], {"legs": legs + legs // 16, "origins": legs, "counts": legs + 1},
        struct.pack("=2I", repeat_mark, forwarding != "stack"),
        without=() if forwarding == "xdp" else bpf_early.NEEDS,
    )  # fmt: skip


def detach_all() -> list[str]:
    """Take away what an earlier run has left at devices; return their names.

    Raises:
        AdapterError: refused.
    """
    with TrafficControl() as tc:
        return tc.detach_all()
