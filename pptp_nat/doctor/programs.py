"""What there is to say of the BPF programs: whether they would work, and where they run."""

from __future__ import annotations

from pptp_nat.doctor.model import Judged, Judgement, Outcome
from pptp_nat.doctor.router import Router


def bpf(router: Router) -> Judged:
    """Find out whether BPF programs can carry calls, and where they do, at which devices."""
    used = router.settings.datapath == "bpf"
    complaint = router.bpf_complaint()
    if not used:
        said = "could carry calls" if complaint is None else f"cannot carry calls: {complaint}"
        yield Judgement("bpf", Outcome.PASS, f"not in use; BPF programs {said}")
        return
    if complaint is not None:
        yield Judgement("bpf", Outcome.FAIL, f"BPF programs cannot carry calls: {complaint}",
                        'set gre.datapath to "auto", or make that work')  # fmt: skip
        return
    served, unserved, early = router.programmed()
    for device in unserved:
        yield Judgement(
            "bpf", Outcome.FAIL,
            f"no BPF programs of ours run at {device}: GRE of calls that arrives there is dropped",
            "look into the daemon's log for device-unserved; tc filter show says what runs there",
        )  # fmt: skip
    if not unserved:
        where = f"; before the stack too at {', '.join(early)}" if early else ""
        yield Judgement(
            "bpf", Outcome.PASS, f"BPF programs run at {', '.join(served) or 'none'}{where}"
        )
