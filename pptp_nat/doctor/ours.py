"""What the doctor looks at of our own: the daemon, its rules and queues, and its rival."""

from __future__ import annotations

import time
from typing import Final

from pptp_nat import __version__
from pptp_nat.doctor.model import Judged, Judgement, Outcome, of, or_pass
from pptp_nat.doctor.openwrt import FIREWALL, helper_options
from pptp_nat.doctor.router import Router
from pptp_nat.errors import AdapterError
from pptp_nat.linux import preflight, preflight_helper
from pptp_nat.linux.ruleset_settings import UNPACED, Backend

QUIET_SECONDS: Final = 120  #: a control connection says something in two echo intervals
MANY_WAITING: Final = 256  #: packets in a queue whose daemon is well are gone in milliseconds
#: What the kernel lacks where it keeps no pace.
_LIMITS: Final = {
    Backend.IPTABLES: "xt_hashlimit (OpenWrt: iptables-mod-hashlimit)",
    Backend.NFTABLES: "nft_limit",
}  # fmt: skip
NO_DAEMON: Final = "systemctl start pptp-nat (OpenWrt: /etc/init.d/pptp-nat start)"


def daemon(router: Router) -> Judged:
    """Judge what the daemon says of itself."""
    status = router.status
    if status is None:
        try:
            needed = router.has_rules or not _helped(router)
        except AdapterError:
            needed = False  # without rights nobody knows what else is at work here
        yield Judgement("daemon", Outcome.FAIL if needed else Outcome.WARN, router.complaint,
                        NO_DAEMON)  # fmt: skip
        return
    version, path = status.get("version"), status.get("datapath")
    if version != __version__:
        yield Judgement(
            "daemon", Outcome.WARN,
            f"the daemon is version {version}, this program {__version__}",
            "restart the daemon: calls stay up meanwhile",
        )  # fmt: skip
    yield Judgement(
        "daemon", Outcome.PASS,
        f"version {version}, data path {path}: {status.get('datapath_reason')}",
    )  # fmt: skip
    if opaque := status.get("opaque"):
        yield Judgement(
            "daemon", Outcome.WARN,
            f"{opaque} control connections are not understood and pass untranslated",
            "pptp-nat connections shows them; a capture shows why: pptp-nat analyze FILE",
        )  # fmt: skip


def rules(router: Router) -> Judged:
    """Judge our rules."""
    mend = "pptp-nat rules apply, or rules.manage in the configuration"
    if not router.has_rules:
        alone = router.status is None and _helped(router)
        yield Judgement(
            "rules", Outcome.WARN if alone else Outcome.FAIL,
            f"none of ours are in place ({router.backend.value})",
            "see kernel_helper, which is at work here" if alone else mend,
        )  # fmt: skip
        return
    found = (
        Judgement("rules", Outcome.FAIL, problem.partition("; run ")[0], mend)
        for problem in router.rule_problems
    )
    yield from or_pass(found, "rules", f"{router.backend.value}: all in place and first")
    if router.settings.pace != UNPACED and not router.rule_problems and not router.is_paced:
        yield Judgement(
            "rules", Outcome.WARN,
            "they hold back no flood: the kernel could keep no pace when they were made",
            f"load {_LIMITS[router.backend]}, then: pptp-nat rules apply",
        )  # fmt: skip


def queue(router: Router) -> Judged:
    """Judge our queues."""
    status, settings = router.status, router.settings
    wanted = dict.fromkeys(settings.control_queues, "control")
    if settings.datapath == "queue":
        wanted[settings.gre_queue] = "gre"
    for number, purpose in wanted.items():
        counters = router.queue(number)
        name = f"queue {number} ({purpose})"
        if counters is None:
            if status is not None or router.has_rules:
                yield Judgement(
                    "queue", Outcome.FAIL,
                    f"nobody listens to {name}: its packets are dropped",
                    f"{'restart' if status is not None else 'start'} the daemon: {NO_DAEMON}",
                )  # fmt: skip
            continue
        if status is None:
            yield from of(preflight.bound_queues(settings, router.queue), "queue")
            return
        lost = counters.dropped + counters.user_dropped
        if counters.waiting >= MANY_WAITING:
            yield Judgement("queue", Outcome.WARN, f"{counters.waiting} packets wait in {name}",
                            "the daemon hangs or has too little CPU: see its log")  # fmt: skip
        if lost:
            yield Judgement(
                "queue", Outcome.WARN, f"{name} has lost {lost} packets",
                f"raise {purpose}.queue_length and {purpose}.socket_buffer",
            )  # fmt: skip
        if not lost and counters.waiting < MANY_WAITING:
            yield _heard(router, name, counters.sequence)


def _heard(router: Router, name: str, packets: int) -> Judgement:
    """Judge whether the rules have been hit."""
    started = (router.status or {}).get("started", time.time())
    flowing = [r for r in router.connections if r.state == "ESTABLISHED"]
    if packets or not flowing or time.time() - started < QUIET_SECONDS:
        return Judgement("queue", Outcome.PASS, f"{name} is bound, {packets} packets so far")
    return Judgement(
        "queue", Outcome.WARN,
        f"{name} has seen no packet of {len(flowing)} open control connections",
        "something carries them past the rules: see flow_offload, rules and firewall_control",
    )  # fmt: skip


def kernel_helper(router: Router) -> Judged:
    """Look for the kernel's own helper, attached or about to be."""
    alone = router.status is None and not router.has_rules
    loaded = preflight_helper.loaded()
    mend = "take the rule away, then the connections: conntrack -D -p tcp --dport 1723"
    found = [
        Judgement(
            "kernel_helper", Outcome.WARN if alone else Outcome.FAIL,
            f"the kernel's own pptp helper is attached by {where}",
            f"before pptp-nat starts, {mend}" if alone else mend,
        )
        for where in _helped(router)
    ]  # fmt: skip
    switch = router.text("proc/sys/net/netfilter/nf_conntrack_helper")
    automatic = preflight.automatic_helper(switch, router.settings, loaded=loaded)
    found += of(automatic, "kernel_helper", warn=alone)
    if loaded is not False and not found:
        for option in helper_options(router.text(FIREWALL) or ""):
            found.append(Judgement(
                "kernel_helper", Outcome.WARN,
                f"/{FIREWALL}: {option}, and the kernel has the pptp helper",
                "set option auto_helper 0 there, and no helper pptp; or remove "
                "kmod-nf-nathelper-extra",
            ))  # fmt: skip
    found += (
        Judgement("kernel_helper", Outcome.WARN, f"rules cannot be read ({complaint})",
                  "make that command work: whether a rule attaches the helper is not known")
        for complaint in router.unreadable
    )  # fmt: skip
    yield from or_pass(found, "kernel_helper", "not attached to control connections")


def _helped(router: Router) -> list[str]:
    """Return where the kernel's helper is attached, or will be."""
    ports = router.settings.ports
    places = [
        f"{command}, {where}"
        for command, tables, _ in router.saved
        for where in preflight_helper.assigned_by_iptables(tables, ports)
    ]
    found = preflight_helper.assigned_by_nftables(router.nftables, ports)
    places += [f"nftables, {where}" for where in found]
    for row in router.connections:
        if row.helper == preflight_helper.NAME:
            ends = row.original
            where = f"{'.'.join(map(str, ends.source))}:{ends.source_key}"
            places.append(f"the control connection from {where}")
    return places
