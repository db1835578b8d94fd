"""What must hold before the daemon starts, and what would make it fail in silence.

Each check reads one thing and says in one line what is the matter, where, and
what to do.  Most take the text that they judge, so that a test can hand them a
router that cannot be built.
"""

from __future__ import annotations

import enum
import os
import re
import socket
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pptp_nat.errors import AdapterError
from pptp_nat.linux import preflight_helper
from pptp_nat.linux.conntrack_pieces import helped
from pptp_nat.linux.nfqueue import QueueCounters, queue_counters
from pptp_nat.linux.ruleset_settings import RuleSettings

__all__ = ["Finding", "QueueCounters", "Severity", "checks", "queue_counters"]

PROC: Final = Path("/proc")
CAP_NET_ADMIN: Final = 12  # linux/capability.h
SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
NETLINK_NETFILTER: Final = 12  # linux/netlink.h
USER_NAMESPACE_REFUSED: Final = (7, 1)  # Linux: payloads change in the first user namespace only
INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD  # linux/proc_ns.h, PROC_USER_INIT_INO
WHOLE_UID_MAP: Final = ["0", "0", "4294967295"]


class Severity(enum.Enum):
    """What a finding means for the start."""

    REFUSE = "refuse"  #: starting would do harm or nothing at all
    WARN = "warn"  #: something will not work
    NOTE = "note"  #: worth knowing


class Finding(NamedTuple):
    """One thing that is not as it should be: what and where, and what to do."""

    severity: Severity
    what: str
    mend: str

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.what}: {self.mend}"


def checks(
    settings: RuleSettings,
    *,
    receive_buffer: int = 0,
    running: bool = False,
    ours: Container[int] = (),
) -> list[Finding]:
    """Return what is wrong with this router, the worst first.

    Args:
        settings: the rules', whose ports and queues are looked at.
        receive_buffer: octets that a queue's socket is to hold; 0 leaves the check out.
        running: the daemon runs already, so that its queues are bound as they should be.
        ours: queues that an earlier run has left bound for this one.
    """
    found = list(privileges(_text(PROC / "self/status")))
    if not found:
        if not running:
            found += bound_queues(settings, ours=ours)
        found += conntrack(settings)
        found += _kernel_helper(settings)
        found += receive_buffers(receive_buffer)
    found += forwarding(_text(PROC / "sys/net/ipv4/ip_forward"))
    found += accounting(_text(PROC / "sys/net/netfilter/nf_conntrack_acct"))
    found += user_namespace(
        _text(PROC / "self/uid_map"), namespace_inode(), os.uname().release
    )
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def namespace_inode() -> int:
    """Return which user namespace this is."""
    try:
        return (PROC / "self/ns/user").stat().st_ino
    except OSError:
        return INITIAL_USER_NAMESPACE


def privileges(status: str | None) -> Iterator[Finding]:
    """Judge /proc/self/status: whether queues, conntrack and rules are ours to touch."""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status or "", re.MULTILINE)
    if effective and not int(effective[1], 16) >> CAP_NET_ADMIN & 1:
        yield Finding(
            Severity.REFUSE,
            "CAP_NET_ADMIN is missing (CapEff in /proc/self/status)",
            "start as root, or with AmbientCapabilities=CAP_NET_ADMIN in the systemd unit",
        )


def bound_queues(
    settings: RuleSettings,
    counters: Callable[[int], QueueCounters | None] = queue_counters,
    *,
    ours: Container[int] = (),
) -> Iterator[Finding]:
    """Find queues that another program holds; not *ours*."""
    wanted = dict.fromkeys(settings.control_queues, "control.queue")
    if settings.datapath == "queue":
        wanted[settings.gre_queue] = "gre.queue"
    for queue, key in wanted.items():
        if queue not in ours and (bound := counters(queue)) is not None:
            name = (_text(PROC / f"{bound.portid}/comm") or "").strip()
            owner = f"probably by process {bound.portid} ({name})" if name else "by somebody"
            yield Finding(
                Severity.REFUSE,
                f"queue {queue} is bound already, {owner}, in /proc/net/netfilter/nfnetlink_queue",
                f"stop that program or set another {key}",
            )


def conntrack(
    settings: RuleSettings,
    limit: Path = PROC / "sys/net/netfilter/nf_conntrack_max",
    sysctl: Path = PROC / "sys/net/netfilter/nf_conntrack_helper",
) -> Iterator[Finding]:
    """Find out whether there is a conntrack table, open to us, and what a helper holds in it."""
    if not limit.exists():
        yield no_conntrack(limit)
        return
    try:
        # Before Linux 6.0, which has no such switch, helpers may also attach themselves.
        connections = helped(
            settings.ports, preflight_helper.NAME, attached=not sysctl.exists()
        )
    except AdapterError as error:
        yield no_ctnetlink(error)
        return
    for placement in connections:
        flow = placement.flow
        yield Finding(
            Severity.REFUSE,
            f"the kernel's own pptp helper is attached to the control connection "
            f"{socket.inet_ntoa(flow.source)}:{flow.source_port} -> "
            f"{socket.inet_ntoa(flow.destination)}:{flow.destination_port}",
            "take its rule away, then the connection "
            f"(conntrack -D -p tcp --dport {flow.destination_port})",
        )


def no_conntrack(limit: Path) -> Finding:
    """Say that this kernel tracks nothing: *limit* is missing."""
    return Finding(
        Severity.REFUSE,
        f"conntrack, which tells who is inside, is not there ({limit} is missing)",
        "load nf_conntrack and masquerade the inside hosts",
    )


def no_ctnetlink(error: AdapterError) -> Finding:
    """Say that the kernel does not let us look at its table."""
    return Finding(
        Severity.REFUSE,
        f"conntrack cannot be asked ({error})",
        "load nf_conntrack_netlink (OpenWrt: kmod-nf-conntrack-netlink)",
    )


def _kernel_helper(settings: RuleSettings) -> Iterator[Finding]:
    """Find rules that attach the kernel's helper, or carry packets past ours."""
    for where in preflight_helper.assignments(settings.ports):
        yield Finding(
            Severity.REFUSE,
            f"the kernel's own pptp helper is attached by {where}",
            "take that rule away, else every message is translated twice",
        )
    sysctl = _text(PROC / "sys/net/netfilter/nf_conntrack_helper")
    yield from automatic_helper(sysctl, settings, loaded=preflight_helper.loaded())
    for where in preflight_helper.offloads():
        yield Finding(
            Severity.WARN,
            f"flow offloading takes TCP past our rules ({where})",
            f"exclude ports {', '.join(map(str, settings.ports))}, or turn it off",
        )
    for complaint in preflight_helper.unreadable():
        yield Finding(
            Severity.WARN,
            f"rules cannot be read ({complaint})",
            "make that command work: whether one of them attaches the kernel's own pptp helper "
            "is not known",
        )


def automatic_helper(
    sysctl: str | None, settings: RuleSettings, *, loaded: bool | None
) -> Iterator[Finding]:
    """Judge nf_conntrack_helper: kernels before 6.0 may attach helpers by port, unasked."""
    if (sysctl or "").strip() != "1" or preflight_helper.PORT not in settings.ports:
        return
    mend = "set net.netfilter.nf_conntrack_helper=0"
    if loaded is False:
        yield Finding(
            Severity.WARN,
            "net.netfilter.nf_conntrack_helper is 1, so once somebody loads nf_conntrack_pptp, "
            "the kernel translates every message a second time",
            mend,
        )
    else:
        yield Finding(
            Severity.REFUSE,
            "net.netfilter.nf_conntrack_helper is 1, so the kernel attaches its own pptp helper "
            f"to port {preflight_helper.PORT} and would translate every message twice",
            mend,
        )


def receive_buffers(octets: int) -> Iterator[Finding]:
    """Try what the kernel gives to a socket that asks for *octets*."""
    if not octets:
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as tried:
        try:
            tried.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, octets)
        except OSError:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)
        given = tried.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # it counts double
    if given < octets:
        yield Finding(
            Severity.NOTE,
            f"a queue's socket gets {given} octets of the {octets} asked for, bursts may be lost",
            f"set net.core.rmem_max={octets}",
        )


def forwarding(switch: str | None) -> Iterator[Finding]:
    """Judge net.ipv4.ip_forward."""
    if switch is not None and switch.strip() == "0":
        yield Finding(
            Severity.WARN,
            "net.ipv4.ip_forward is 0, so this host routes nothing",
            "set it to 1",
        )


def accounting(switch: str | None) -> Iterator[Finding]:
    """Judge net.netfilter.nf_conntrack_acct."""
    if switch is not None and switch.strip() == "0":
        yield Finding(
            Severity.NOTE,
            "net.netfilter.nf_conntrack_acct is 0, so calls made before it is 1 show no packets "
            "and octets",
            "set it to 1",
        )


def user_namespace(uid_map: str | None, inode: int, release: str) -> Iterator[Finding]:
    """Judge where we run: Linux 7.1 lets only the initial user namespace rewrite packets."""
    mapped = uid_map is not None and uid_map.split() != WHOLE_UID_MAP
    if not mapped and inode == INITIAL_USER_NAMESPACE:
        return
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version >= USER_NAMESPACE_REFUSED:
        yield Finding(
            Severity.REFUSE,
            f"this is a user namespace of its own (/proc/self/uid_map) and Linux {release} "
            "rewrites queued packets in the initial one only",
            "run on the host, or in a container without a user namespace",
        )
    else:
        yield Finding(
            Severity.NOTE,
            f"this is a user namespace of its own (/proc/self/uid_map), which Linux {release} "
            "allows; from 7.1 on rewriting queued packets is refused here",
            "plan to run on the host",
        )
