"""What the configuration says about the firewall's rules, for the daemon and for `rules`."""

from __future__ import annotations

from pptp_nat.config import Config
from pptp_nat.linux import ruleset
from pptp_nat.linux.datapath import Carrying


def rule_settings(config: Config, datapath: Carrying) -> ruleset.RuleSettings:
    """Return what the rules depend on; *datapath* is the one in use, never "auto"."""
    limits = config.limits
    return ruleset.RuleSettings(
        ports=config.control.ports,
        control_queue=config.control.queue,
        gre_queue=config.gre.queue,
        workers=config.control.workers,
        repeat_mark=config.control.repeat_mark,
        datapath=datapath,
        external_addresses=tuple(each.packed for each in config.gre.external_addresses),
        pace=ruleset.Pace(
            limits.openers_per_client, limits.openers, limits.segments_per_client,
            limits.gre_per_host,
        ),
    )


def backend_of(config: Config) -> ruleset.Backend:
    """Return the backend that is configured, or the one that works here.

    Raises:
        AdapterError: none works.
    """
    chosen = config.rules.backend
    if chosen == "auto" and config.control.workers > 1:
        return ruleset.Backend.IPTABLES  # the other one cannot divide among them
    return ruleset.choose_backend() if chosen == "auto" else ruleset.Backend(chosen)
