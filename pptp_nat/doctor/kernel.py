"""What the doctor looks at in the kernel."""

from __future__ import annotations

import itertools
import os
import time
from typing import Final

from pptp_nat.doctor.model import Judged, Judgement, Outcome, of, or_pass
from pptp_nat.doctor.router import Router
from pptp_nat.errors import AdapterError
from pptp_nat.linux import preflight, preflight_helper

NEAR_FULL: Final = 0.8  #: of nf_conntrack_max; then there is no room for a bad hour
FULL: Final = 0.98  #: of nf_conntrack_max; the kernel is dropping new connections, or about to
CHAIN_LENGTH: Final = 2  #: entries per bucket beyond which look-ups get slow
MANY_DROPPED: Final = 20  #: packets; a few have no way back while interfaces come up
SHORT_STREAM: Final = 600  #: seconds of nf_conntrack_gre_timeout_stream; less ends idle calls


def kernel(router: Router) -> Judged:
    """Judge where we run."""
    release = os.uname().release
    text = router.text("proc/self/uid_map")
    found = preflight.user_namespace(text, preflight.namespace_inode(), release)
    yield from or_pass(of(found, "kernel"), "kernel", f"Linux {release}, no user namespace")


def forwarding(router: Router) -> Judged:
    """Judge net.ipv4.ip_forward."""
    found = preflight.forwarding(router.text("proc/sys/net/ipv4/ip_forward"))
    failed = (each._replace(outcome=Outcome.FAIL) for each in of(found, "forwarding"))
    yield from or_pass(failed, "forwarding", "net.ipv4.ip_forward is 1")


def conntrack(router: Router) -> Judged:
    """Find out whether the table can be read."""
    limit = router.root / "proc/sys/net/netfilter/nf_conntrack_max"
    if not limit.exists():
        yield from of([preflight.no_conntrack(limit)], "conntrack")
        return
    try:
        count = len(router.connections)
    except AdapterError as error:
        yield from of([preflight.no_ctnetlink(error)], "conntrack")
        return
    yield Judgement(
        "conntrack", Outcome.PASS, f"{count} entries of control connections and GRE"
    )


def conntrack_gre(router: Router) -> Judged:
    """Find out whether conntrack entries can carry calls."""
    complaint = router.gre_complaint()
    if complaint is None:
        yield Judgement("conntrack_gre", Outcome.PASS, "conntrack carries GRE by its call IDs")
        return
    wanted = router.status is not None and router.status.get("datapath") == "conntrack"
    yield Judgement(
        "conntrack_gre",
        Outcome.FAIL if wanted else Outcome.WARN,
        f"conntrack cannot carry calls: {complaint}",
        "a kernel with CONFIG_NF_CT_PROTO_GRE (nf_conntrack_pptp built) and nf_nat; until then "
        "the data path bpf works, or queue at more CPU per packet",
    )


def conntrack_room(router: Router) -> Judged:
    """Judge how full the table is, and how long its chains are."""
    count = router.switch("net.netfilter.nf_conntrack_count")
    most = router.switch("net.netfilter.nf_conntrack_max")
    buckets = router.switch("net.netfilter.nf_conntrack_buckets")
    if count is None or not most:
        yield Judgement("conntrack_room", Outcome.WARN, "nf_conntrack_count cannot be read",
                        "load nf_conntrack")  # fmt: skip
        return
    text = f"{count} of {most} conntrack entries are in use"
    if count < NEAR_FULL * most:
        yield Judgement("conntrack_room", Outcome.PASS, text)
    else:
        outcome = Outcome.FAIL if count >= FULL * most else Outcome.WARN
        mend = f"set net.netfilter.nf_conntrack_max={2 * most}, and find out who fills the table"
        yield Judgement("conntrack_room", outcome, text, mend)
    if buckets and count > CHAIN_LENGTH * buckets:
        yield Judgement(
            "conntrack_buckets",
            Outcome.WARN,
            f"{count} conntrack entries share {buckets} buckets: each look-up is slow",
            f"set net.netfilter.nf_conntrack_buckets={1 << count.bit_length()}",
        )


def accounting(router: Router) -> Judged:
    """Judge net.netfilter.nf_conntrack_acct."""
    found = preflight.accounting(router.text("proc/sys/net/netfilter/nf_conntrack_acct"))
    yield from or_pass(of(found, "accounting"), "accounting", "conntrack counts packets")


def gre_timeouts(router: Router) -> Judged:
    """Judge the timeouts of GRE where calls depend on them."""
    stream = router.switch("net.netfilter.nf_conntrack_gre_timeout_stream")
    helped = any(row.helper == preflight_helper.NAME for row in router.connections)
    if helped and stream is not None and stream < SHORT_STREAM:
        yield Judgement(
            "gre_timeouts",
            Outcome.WARN,
            f"calls of the kernel's helper die after {stream} s without a packet, for good",
            "set net.netfilter.nf_conntrack_gre_timeout_stream=18000 and "
            "nf_conntrack_gre_timeout=600, or let pptp-nat carry them",
        )
    else:
        yield Judgement("gre_timeouts", Outcome.PASS, "no call depends on them")


def reverse_path(router: Router) -> Judged:
    """Judge rp_filter by what it has dropped."""
    strict = []
    everywhere = router.switch("net.ipv4.conf.all.rp_filter") or 0
    directory = router.root / "proc/sys/net/ipv4/conf"
    for each in sorted(directory.iterdir()) if directory.is_dir() else ():
        own = router.switch(f"net.ipv4.conf.{each.name}.rp_filter") or 0
        if each.name not in ("all", "default", "lo") and max(everywhere, own) == 1:
            strict.append(each.name)
    if not strict:
        yield Judgement("reverse_path", Outcome.PASS, "rp_filter is not strict anywhere")
        return
    dropped = _counter(router.text("proc/net/netstat"), "IPReversePathFilter")
    words = f"rp_filter is strict on {', '.join(strict[:8])}"
    if dropped < MANY_DROPPED:
        yield Judgement("reverse_path", Outcome.PASS, f"{words} and has dropped {dropped} packets")
        return
    yield Judgement(
        "reverse_path",
        Outcome.WARN,
        f"{words} and has dropped {dropped} packets: their way back leads elsewhere",
        "route the servers by the interface that they answer on, or set rp_filter=2 there and in "
        "net.ipv4.conf.all",
    )


def _counter(text: str | None, name: str) -> int:
    """Return a counter of /proc/net/netstat: a line of names is followed by one of numbers."""
    lines = (text or "").splitlines()
    for names, numbers in itertools.pairwise(lines):
        if name in names.split():
            return int(numbers.split()[names.split().index(name)])
    return 0


def clock(_router: Router) -> Judged:
    """Judge the time of day."""
    made = os.stat(__file__).st_mtime  # noqa: PTH116  one number of one file
    now = time.time()
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < made:
        yield Judgement(
            "clock",
            Outcome.WARN,
            f"it is {day} by this clock, and pptp-nat was installed later than that",
            "set it (ntpd, chronyd): logs and captures lie, timers of PPTP do not depend on it",
        )
    else:
        yield Judgement("clock", Outcome.PASS, day)
