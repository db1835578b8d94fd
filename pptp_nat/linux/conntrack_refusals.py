"""What conntrack refuses, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.errors import AdapterError

MENDS: Final = {
    errno.EPERM: "run it as root, with CAP_NET_ADMIN over this network namespace",
    errno.EINVAL: "load the module nf_conntrack_netlink",
    errno.EOPNOTSUPP: "load the modules nf_nat and nf_conntrack_netlink",
    errno.ENOMEM: "raise net.netfilter.nf_conntrack_max if the table is full",
    errno.ENOSPC: "raise net.netfilter.nf_conntrack_buckets",
}


def failed(doing: str, code: int) -> AdapterError:
    """Return what to raise after the kernel has answered *code*."""
    return AdapterError(doing, code, mend=MENDS.get(code, ""))


def _dotted(address: bytes) -> str:
    return ".".join(map(str, address))


def described(leg: Leg) -> str:
    """Return a leg in words."""
    return f"from {_dotted(leg.source)} to {_dotted(leg.destination)} with call ID {leg.key}"


def check(errnos: Iterable[int], doing: str) -> None:
    """Raise the first errno that says more than "there is none"."""
    for code in errnos:
        if code not in {0, errno.ENOENT}:
            raise failed(doing, code)
