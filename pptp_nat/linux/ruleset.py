"""The firewall rules that bring packets to the daemon: show, check, apply and remove them.

Two backends say the same: `pptp_nat.linux.ruleset_iptables` and
`pptp_nat.linux.ruleset_nftables`.  Here is what they have in common.  Where a
packet is queued, and why there, is told in ``rules/README.md``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable
from typing import Final, NamedTuple

from pptp_nat.errors import AdapterError
from pptp_nat.linux import (
    ruleset_iptables,
    ruleset_iptables_kernel,
    ruleset_nftables,
    ruleset_pace,
)
from pptp_nat.linux.rule_counters import rule_counters
from pptp_nat.linux.ruleset_settings import APPLY, Backend, Features, Pace, RuleSettings

__all__ = [
    "Backend",
    "BackendChoice",
    "Features",
    "Pace",
    "RuleSettings",
    "apply",
    "backend_choice",
    "check",
    "choose_backend",
    "paced_drops",
    "probe_features",
    "remove",
    "render",
    "stray_drops",
]

#: Where the bounds are counted: table and chain, of either backend.
_PACE_CHAINS: Final = (
    (ruleset_nftables.TABLE, ruleset_nftables.PACE), ("filter", ruleset_iptables.PACE),
)  # fmt: skip
_GRE_PACE_CHAINS: Final = (
    (ruleset_nftables.TABLE, ruleset_nftables.GRE_PACE), ("raw", ruleset_iptables.GRE_PACE),
)  # fmt: skip


class BackendChoice(NamedTuple):
    """The backend to use, and why: one line for people."""

    backend: Backend
    reason: str


def backend_choice() -> BackendChoice:
    """Return the backend that works here: nftables where it can queue packets, else iptables.

    Raises:
        AdapterError: neither can.
    """
    complaint = ruleset_nftables.probe_queue()
    if not complaint:
        return BackendChoice(Backend.NFTABLES, "nftables: its queue statement works here")
    if "not permitted" in complaint:  # nor would iptables say
        raise AdapterError(
            "finding out whose rules work here", errno.EPERM,
            mend="be root, or name the backend: --backend iptables or nftables",
        )  # fmt: skip
    if ruleset_iptables_kernel.probe().nfqueue:
        return BackendChoice(
            Backend.IPTABLES, f"iptables: nftables cannot queue packets here ({complaint})"
        )
    raise AdapterError(
        f"queueing packets to user space (nft: {complaint}; iptables has no NFQUEUE)",
        errno.EOPNOTSUPP,
        mend="be root and load nft_queue or xt_NFQUEUE; OpenWrt: install kmod-nft-queue",
    )


def choose_backend() -> Backend:
    """Return the backend that works here; `backend_choice` says why as well.

    Raises:
        AdapterError: none does.
    """
    return backend_choice().backend


def probe_features() -> Features:
    """Return what the firewall's tools can do here.  Needs CAP_NET_ADMIN, changes nothing."""
    features = ruleset_iptables_kernel.probe()
    return Features(
        nfqueue=features.nfqueue,
        bpf=features.bpf,
        u32=features.u32,
        addrtype=features.addrtype,
        hashlimit=features.hashlimit,
        nft_queue=not ruleset_nftables.probe_queue(),
    )


def render(settings: RuleSettings, backend: Backend, features: Features | None = None) -> str:
    """Return the rules as the backend's own tool reads them, with comments for people.

    *features* left out stands for an ordinary router, whatever this one can do.

    Raises:
        AdapterError: something that the data path cannot do without is missing.
    """
    if backend is Backend.NFTABLES:
        _one_worker(settings)
        return ruleset_nftables.render(settings)
    return ruleset_iptables.render(settings, features or Features())


def check(settings: RuleSettings, backend: Backend) -> list[str]:
    """Return what is wrong, one line each; empty: all in place, and first in their chains.

    Raises:
        AdapterError: the rules in place cannot be read.
    """
    if backend is Backend.NFTABLES:
        _one_worker(settings)
        problems = ruleset_nftables.check(settings)
    else:
        problems = ruleset_iptables_kernel.check(settings)
    problems += (
        f"{holder} holds rules of ours as well, and both are in force: packets would be queued "
        f"twice; {APPLY}"
        for holder in _strangers(backend)
    )
    return problems


def apply(settings: RuleSettings, backend: Backend, features: Features | None = None) -> None:
    """Put the rules in place, first in their chains; ours of other settings go.

    *features* left out are probed.  Rules of ours that another backend or the other kind of
    iptables holds go as well.  Both in force would translate a packet twice, and none not
    once: so ours come first and *hold* until the others are gone, that is, what they are to
    queue they drop.  TCP sends it again, as it does while no daemon runs.

    Raises:
        AdapterError: refused, or something that the data path needs is missing; then what was
            in force before is in force still.
    """
    place: Callable[..., None]
    if backend is Backend.NFTABLES:
        _one_worker(settings)
        ruleset_nftables.try_out(settings)
        place = functools.partial(ruleset_nftables.apply, settings)
    else:
        features = features or ruleset_iptables_kernel.probe()
        ruleset_iptables.plan(settings, features)  # may raise
        place = functools.partial(ruleset_iptables_kernel.apply, settings, features)
    if strangers := _strangers(backend):
        place(hold=True)
        try:
            _remove_of(strangers)
        except AdapterError:
            with contextlib.suppress(AdapterError):
                if _strangers(backend):  # they bring the packets, then: ours would drop them
                    _remove_of([backend.value])
            raise
    place()


def _strangers(backend: Backend) -> list[str]:
    """Return who else than *backend* has rules of ours: "nftables", or a kind of iptables."""
    if backend is Backend.NFTABLES:
        return ruleset_iptables_kernel.holders()
    others = ruleset_iptables_kernel.holders(other_than="iptables")
    return [*others, *(["nftables"] if ruleset_nftables.present() else [])]


def _remove_of(holders: list[str]) -> None:
    """Take away the rules of ours that *holders* have, named as by `_strangers`."""
    for holder in holders:
        if holder == Backend.NFTABLES.value:
            ruleset_nftables.remove()
        else:
            ruleset_iptables_kernel.remove([holder])


def _one_worker(settings: RuleSettings) -> None:
    """Refuse several workers: nftables has no expression that is the same both ways.

    Its hashes of addresses know their order, its symmetric one adds ports and a secret, and
    a number that nobody can compute again says of no call on record whose it is.
    """
    if settings.workers > 1:
        raise AdapterError(
            "dividing control connections among workers in nftables", errno.EOPNOTSUPP,
            mend='write rules.backend = "iptables", or control.workers = 1',
        )  # fmt: skip


def remove(backend: Backend | None = None) -> None:
    """Leave nothing of ours behind, of *backend* or of both, whatever settings it came from.

    Raises:
        AdapterError: refused.
    """
    if backend is not Backend.NFTABLES:
        ruleset_iptables_kernel.remove()
    if backend is not Backend.IPTABLES:
        ruleset_nftables.remove()


def stray_drops(backend: Backend) -> int | None:
    """Return how many GRE packets of no call were dropped; None where no rule counts them.

    Raises:
        AdapterError: the rules in place cannot be read.
    """
    if backend is Backend.NFTABLES:
        return ruleset_nftables.stray_drops()
    return ruleset_iptables_kernel.stray_drops()


def paced_drops(settings: RuleSettings) -> dict[str, int] | None:
    """Return how many packets each bound of their pace has dropped, by its key in [limits].

    None: there are no such rules, or none that are counted where we can read it (those of
    iptables-legacy are not).  Some ten microseconds; needs CAP_NET_ADMIN.
    """
    drops: dict[str, int] = {}
    pace = settings.pace
    for bounds, places in (
        (list(ruleset_pace.bounds(pace)), _PACE_CHAINS),
        (list(ruleset_pace.gre_bounds(pace, settings.datapath)), _GRE_PACE_CHAINS),
    ):
        for table, chain in places if bounds else ():
            try:
                counts = rule_counters(table, chain)
            except AdapterError:
                return None
            if counts and len(counts) == len(bounds):
                for bound, count in zip(bounds, counts, strict=True):
                    drops[bound.key] = drops.get(bound.key, 0) + count
                break
    return drops or None
