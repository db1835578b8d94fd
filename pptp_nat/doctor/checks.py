"""What the doctor looks at on the router, as a table: `CHECKS`.

Each check yields one judgement for each thing that is wrong, or one that says
all is well.  What the start-up checks (`pptp_nat.linux.preflight`) know already
is asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from pptp_nat.doctor import kernel, ours, programs, rules
from pptp_nat.doctor.model import Judgement, Outcome, of
from pptp_nat.doctor.router import Router
from pptp_nat.errors import AdapterError
from pptp_nat.linux import preflight

Check = Callable[[Router], Iterable[Judgement]]


def examine(router: Router) -> Iterator[Judgement]:
    """Yield what there is to say about *router*, check by check."""
    status = router.text("proc/self/status")
    refused = list(of(preflight.privileges(status), "privileges", warn=True))
    if refused:
        # Without them the rest would say of everything that it cannot be read.
        yield refused[0]._replace(mend="run the doctor as root: only what needs no rights follows")
    for name, (check, privileged) in CHECKS.items():
        if refused and privileged:
            continue
        try:
            yield from check(router)
        except AdapterError as error:
            yield Judgement(name, Outcome.WARN, f"cannot be found out: {error}")


#: name -> the check, and whether it needs CAP_NET_ADMIN; in the order in which they are told
CHECKS: Final[dict[str, tuple[Check, bool]]] = {
    "kernel": (kernel.kernel, False),
    "clock": (kernel.clock, False),
    "forwarding": (kernel.forwarding, False),
    "reverse_path": (kernel.reverse_path, False),
    "conntrack": (kernel.conntrack, True),
    "conntrack_gre": (kernel.conntrack_gre, True),
    "conntrack_room": (kernel.conntrack_room, False),
    "bpf": (programs.bpf, True),
    "accounting": (kernel.accounting, False),
    "gre_timeouts": (kernel.gre_timeouts, True),
    "nat": (rules.nat, True),
    "daemon": (ours.daemon, False),
    "queue": (ours.queue, True),
    "rules": (ours.rules, True),
    "kernel_helper": (ours.kernel_helper, True),
    "flow_offload": (rules.flow_offload, True),
    "firewall_control": (rules.firewall_control, True),
    "firewall_gre": (rules.firewall_gre, True),
}
