"""What a daemon stands on: its data path, a router that is fit for it, its rules."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from pptp_nat import log
from pptp_nat.config import Config
from pptp_nat.errors import AdapterError, PptpNatError
from pptp_nat.linux import preflight, privileges, ruleset
from pptp_nat.linux.conntrack import Conntrack
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.firewall import backend_of

_log: Final = logging.getLogger(__name__)
_LOUDNESS: Final = {
    preflight.Severity.WARN: logging.WARNING,
    preflight.Severity.NOTE: logging.INFO,
}


class Chosen(NamedTuple):
    """A data path at work, and why this one."""

    carrier: Carrier
    queue_path: QueuePath | None
    reason: str


def choose_path(config: Config, conntrack: Conntrack) -> Chosen:
    """Return the data path that is configured, or the one that works here.

    Raises:
        PptpNatError: the one that is configured does not.
    """
    wanted = config.gre.datapath
    flaw = None if wanted == "queue" else ConntrackPath.probe()
    if wanted == "conntrack" and flaw is not None:
        raise PptpNatError(
            f'gre.datapath "conntrack" does not work here: {flaw}; use "queue" or "auto"'
        )
    if wanted == "queue" or flaw is not None:
        path = QueuePath()
        reason = "configured" if flaw is None else f"conntrack does not work here: {flaw}"
        return Chosen(Carrier(path), path, reason)
    reason = "configured" if wanted == "conntrack" else "its probe succeeded"
    return Chosen(Carrier(ConntrackPath(conntrack)), None, reason)


def check_router(config: Config, settings: ruleset.RuleSettings) -> None:
    """Tell what is unfit about this router.

    Raises:
        PptpNatError: too unfit to start.
    """
    buffer = max(config.control.socket_buffer, config.gre.socket_buffer)
    findings = preflight.checks(settings, receive_buffer=buffer)
    for finding in findings:
        if finding.severity is not preflight.Severity.REFUSE:
            log.event(_log, _LOUDNESS[finding.severity], "check", finding=finding.text)
    refusals = [f.text for f in findings if f.severity is preflight.Severity.REFUSE]
    if refusals:
        raise PptpNatError("\n".join(refusals))


def let_go_of_privileges(config: Config) -> None:
    """Keep CAP_NET_ADMIN alone, and what the firewall's tools need if the rules are ours."""
    ours = config.rules.manage != "keep"
    try:
        privileges.drop((privileges.NET_ADMIN, privileges.NET_RAW)[: 1 + ours], inherited=ours)
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
