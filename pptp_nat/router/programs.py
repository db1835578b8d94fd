"""The devices that run the BPF programs, and those that cannot: told once, not every minute."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from pptp_nat import log
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.linux.datapath import DataPath
from pptp_nat.router.clockwork import Clockwork, HasFileno

_log: Final = logging.getLogger(__name__)


def where_early(path: DataPath) -> str:
    """Say where *path* carries before the stack, or why nowhere, if that is configured."""
    if not isinstance(path, BpfPath):
        return ""
    if path.by_stack:
        return "; through the stack: " + path.by_stack
    if path.early_at:
        return f"; before the stack at {', '.join(path.early_at)}"
    return "; nowhere before the stack" if path.late else ""


def replace_programs(path: DataPath) -> None:
    """Have the programs of *path*, if it has some, take the place of those of who has ended.

    Raises:
        AdapterError: this router's devices cannot be listed.
    """
    if isinstance(path, BpfPath):
        path.replace()


def follow_devices(
    path: DataPath,
    watch: Callable[[HasFileno, Callable[[int], None]], None],
    clockwork: list[Clockwork],
) -> None:
    """Have *path* hear of devices that come and go, if it is one that cares."""
    if isinstance(path, BpfPath):
        devices = Devices(path)
        watch(devices, devices.look)
        clockwork.append(devices)


class Devices:
    """Follows what *path* has to say of this router's devices."""

    def __init__(self, path: BpfPath) -> None:
        self._path = path
        self._told: dict[str, str] = {}
        self._told_late: dict[str, str] = {}
        self._told_by_stack = ""
        self._due = 0.0

    def fileno(self) -> int:
        """Return the descriptor that is readable when devices have changed."""
        return self._path.fileno()

    def look(self, _mask: int) -> None:
        """Have devices that are new run the programs, and tell of those that cannot."""
        self._path.on_devices()
        self._tell()

    def _tell(self) -> None:
        unserved = dict(self._path.unserved)
        for device, reason in unserved.items():
            if self._told.get(device) != reason:
                log.event(
                    _log, logging.WARNING, "device-unserved", device=device, reason=reason,
                    effect="GRE of calls that arrives there is dropped",
                )  # fmt: skip
        self._told = unserved
        late = dict(self._path.late)
        for device, reason in late.items():
            if self._told_late.get(device) != reason:
                log.event(
                    _log, logging.WARNING, "device-late", device=device or "all", reason=reason,
                    effect="GRE of calls goes past the stack by tc's redirect there",
                )  # fmt: skip
        self._told_late = late
        if self._path.by_stack != self._told_by_stack:
            self._told_by_stack = self._path.by_stack
            log.event(
                _log, logging.WARNING if self._told_by_stack else logging.INFO, "gre-forwarding",
                reason=self._told_by_stack or "no rule of routing asks for packet marks any more",
                effect="GRE of calls goes "
                + ("through the stack" if self._told_by_stack else "past the stack where it can"),
            )  # fmt: skip

    def next_timer(self) -> float | None:
        """Return when `tick` has something to do, in monotonic seconds."""
        path = self._path
        found = path.unserved.keys(), path.late.keys(), path.by_stack
        told = self._told.keys(), self._told_late.keys(), self._told_by_stack
        return None if found == told else self._due

    def tick(self, _now: float) -> None:
        """Tell of devices that the path has met by itself."""
        self._tell()
