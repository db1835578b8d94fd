"""The command rules: show, check, apply or remove the firewall rules."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pptp_nat import api
from pptp_nat.commands.run import config_path, overriding
from pptp_nat.config import load
from pptp_nat.errors import UsageError
from pptp_nat.linux import bpf_path, ruleset
from pptp_nat.linux.accounting import turn_on_accounting
from pptp_nat.router.firewall import backend_of, rule_settings
from pptp_nat.router.footing import working_path

if TYPE_CHECKING:
    from argparse import Namespace

    from pptp_nat.config import Config
    from pptp_nat.linux.datapath import Carrying


def rules(options: Namespace) -> int:
    """Do *action* with the rules that the configuration asks for."""
    overrides = overriding(options)
    config = load(config_path(options), overrides)
    if options.action == "remove":
        # Of the backend that is named here; the configuration may have named another one before.
        named = options.backend
        ruleset.remove(None if named in (None, "auto") else ruleset.Backend(named))
        _say("rules removed")
        if _running(config) is None and (names := bpf_path.detach_all()):
            _say(f"BPF programs detached from {', '.join(names)}")
        return 0
    backend = backend_of(config)
    settings = rule_settings(config, _carrier(config))
    if options.action == "show":
        # What an ordinary user may not find out is taken to be as on an ordinary router.
        features = ruleset.probe_features() if os.geteuid() == 0 else None
        sys.stdout.write(ruleset.render(settings, backend, features))
        return 0
    if options.action == "apply":
        turn_on_accounting()  # a daemon in a sandbox may not
        ruleset.apply(settings, backend)
        _say(f"{backend.value} rules for data path {settings.datapath} applied")
        return 0
    problems = ruleset.check(settings, backend)
    for problem in problems:
        _say(problem)
    if not problems:
        _say(f"{backend.value} rules for data path {settings.datapath} are all in place")
    return 1 if problems else 0


def _carrier(config: Config) -> Carrying:
    """Return the data path that the rules are for; "auto" is what the daemon found out."""
    if config.gre.datapath != "auto":
        return config.gre.datapath
    running = _running(config)
    if running is not None:
        return running
    # No daemon runs: look at what it would choose.  Only root may; others take the likely one.
    return working_path("auto").name if os.geteuid() == 0 else "conntrack"


def _running(config: Config) -> Carrying | None:
    """Return the data path of the daemon that runs; None: none does."""
    try:
        running: Carrying = api.ask(config.api.socket, {"do": "status"})["datapath"]
    except (UsageError, KeyError):
        return None
    return running


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
