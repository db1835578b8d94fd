"""What a daemon stands on: its data path, a router that is fit for it, its rules."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Mapping
from typing import Final, NamedTuple

from pptp_nat import log
from pptp_nat.config import Config, DataPathName
from pptp_nat.errors import AdapterError, PptpNatError
from pptp_nat.linux import bpf_path, preflight, privileges, ruleset
from pptp_nat.linux.bpf_object import kernel_release
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.datapath import Carrying
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.firewall import backend_of

_log: Final = logging.getLogger(__name__)
_LOUDNESS: Final = {
    preflight.Severity.WARN: logging.WARNING,
    preflight.Severity.NOTE: logging.INFO,
}


#: The data paths in the order in which `auto` likes them, and what says why one does not work.
PROBES: Final[Mapping[Carrying, Callable[[], str | None]]] = {
    "conntrack": ConntrackPath.probe,
    "bpf": BpfPath.probe,
    "queue": lambda: None,
}


class Working(NamedTuple):
    """The name of a data path that works here, and why this one."""

    name: Carrying
    reason: str


class Chosen(NamedTuple):
    """A data path at work, and why this one."""

    carrier: Carrier
    queue_path: QueuePath | None
    reason: str


def working_path(wanted: DataPathName) -> Working:
    """Return the data path that is *wanted*, or the first one that works here.

    Raises:
        PptpNatError: the one that is wanted does not.
    """
    flaws: list[str] = []
    for name, probe in PROBES.items():
        if wanted not in ("auto", name):
            continue
        flaw = probe()
        if flaw is None:
            configured = "configured" if wanted == name else "its probe succeeded"
            return Working(name, "; ".join(flaws) or configured)
        if wanted == name:
            raise PptpNatError(
                f'gre.datapath "{name}" does not work here: {flaw}; use "queue" or "auto"'
            )
        flaws.append(f"{name} does not work here: {flaw}")
    raise AssertionError("the last one always works")


def choose_path(config: Config, conntrack: Conntrack) -> Chosen:
    """Return the data path that is configured, or the one that works here.

    Raises:
        PptpNatError: the one that is configured does not.
    """
    name, reason = working_path(config.gre.datapath)
    if name == "bpf":
        path = BpfPath(
            config.limits.calls, config.control.repeat_mark,
            stays=config.rules.manage != "apply", forwarding=config.gre.forwarding,
        )  # fmt: skip
        return Chosen(Carrier(path), None, reason)
    let_go_of_programs()
    if name == "queue":
        queue_path = QueuePath()
        return Chosen(Carrier(queue_path), queue_path, reason)
    return Chosen(Carrier(ConntrackPath(conntrack)), None, reason)


def let_go_of_programs() -> None:
    """Take away what a run with the data path `bpf` has left at the devices."""
    try:
        names = bpf_path.detach_all()
    except AdapterError as error:
        log.event(_log, logging.WARNING, "bpf-programs", problem=str(error))
        return
    if names:
        log.event(_log, logging.INFO, "bpf-programs", detached_from=",".join(names))


def check_router(
    config: Config, settings: ruleset.RuleSettings, ours: Container[int] = ()
) -> None:
    """Tell what is unfit about this router, whose queues *ours* are bound for us.

    Raises:
        PptpNatError: too unfit to start.
    """
    buffer = max(config.control.socket_buffer, config.gre.socket_buffer)
    findings = preflight.checks(settings, receive_buffer=buffer, ours=ours)
    for finding in findings:
        if finding.severity is not preflight.Severity.REFUSE:
            log.event(_log, _LOUDNESS[finding.severity], "check", finding=finding.text)
    refusals = [f.text for f in findings if f.severity is preflight.Severity.REFUSE]
    if refusals:
        raise PptpNatError("\n".join(refusals))


def let_go_of_privileges(config: Config, name: str) -> None:
    """Keep CAP_NET_ADMIN alone, and what the firewall's tools need if the rules are ours.

    *name* is that of the data path: before Linux 5.19 BPF maps ask for CAP_BPF at each look.
    """
    ours = config.rules.manage != "keep"
    kept = [privileges.NET_ADMIN, privileges.NET_RAW][: 1 + ours]
    if name == "bpf" and kernel_release() < (5, 19):
        kept.append(privileges.BPF)
    try:
        privileges.drop(kept, inherited=ours)
    except AdapterError as error:
        log.event(_log, logging.WARNING, "privileges", problem=str(error))


def rule_problems(config: Config, settings: ruleset.RuleSettings) -> list[str]:
    """Return what is wrong with the rules that are in place; takes a fifth of a second."""
    try:
        return ruleset.check(settings, backend_of(config))
    except AdapterError as error:  # in a sandbox: they are not ours to read, nor to mend
        ask = "" if os.geteuid() == 0 else "; as root, ask `pptp-nat rules check`"
        return [f"cannot be checked: {error}{ask}"]


def arrange_rules(
    config: Config, settings: ruleset.RuleSettings, problems: list[str]
) -> Callable[[], None] | None:
    """See to the rules as `rules.manage` says; return what undoes that at a clean stop.

    Raises:
        AdapterError: they are ours to put in place, and the kernel refuses.
    """
    care = config.rules.manage
    if care == "keep":
        for problem in problems:
            log.event(_log, logging.WARNING, "rules", problem=problem)
        return None
    backend = backend_of(config)
    if problems:  # where they are in place already there is no moment without them
        ruleset.apply(settings, backend)
    return None if care != "apply" else lambda: ruleset.remove(backend)
