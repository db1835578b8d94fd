"""What is looked at on a router: read once, when first asked for.

Checks take a `Router`, so that a test can hand them one that cannot be built here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pptp_nat.linux import ruleset, ruleset_nftables
from pptp_nat.linux import ruleset_iptables_kernel as iptables
from pptp_nat.linux.bpf_early import Programmed, programmed
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.linux.conntrack_layout import TableRow
from pptp_nat.linux.conntrack_path import ConntrackPath
from pptp_nat.linux.conntrack_table import table
from pptp_nat.linux.nfqueue import QueueCounters, queue_counters
from pptp_nat.linux.ruleset import Backend, RuleSettings
from pptp_nat.linux.ruleset_iptables import GRE_PACE, PACE, PREFIX
from pptp_nat.linux.ruleset_settings import run

_POLICY: Final = re.compile(r":(\S+) (ACCEPT|DROP) ")


class Saved(NamedTuple):
    """The rules that one iptables command shows."""

    command: str
    tables: iptables.Saved
    policies: Mapping[tuple[str, str], str]  #: by table and chain


class Router:
    """The router that this process runs on.

    Args:
        settings: what the rules depend on, as configured.
        backend: the one configured; None: find out which works.
        status: what the daemon answers; None: nobody does.
        complaint: why not.
        root: where /proc, /sys and /etc are.
    """

    def __init__(
        self,
        settings: RuleSettings,
        *,
        backend: Backend | None = None,
        status: Mapping[str, Any] | None = None,
        complaint: str = "",
        root: Path = Path("/"),
    ) -> None:
        self.settings = settings
        self.status = status
        self.complaint = complaint
        self.root = root
        self._backend = backend
        self.uplinks: set[str] = set()  #: interfaces towards the world, besides default routes
        self.unreadable: list[str] = []  #: what the tools said that could not list their rules

    def text(self, path: str) -> str | None:
        """Return what is in the file *path* (``proc/sys/...``); None: it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Return the number in the file *path*; None: it cannot be read."""
        words = (self.text(path) or "").split()
        return int(words[0]) if words and words[0].isdigit() else None

    def switch(self, name: str) -> int | None:
        """Return the sysctl *name*, a number; None: this kernel has none."""
        return self.number(f"proc/sys/{name.replace('.', '/')}")

    @functools.cached_property
    def backend(self) -> Backend:
        """The backend whose rules are, or would be, ours.

        Raises:
            AdapterError: none works.
        """
        return self._backend or ruleset.choose_backend()

    @functools.cached_property
    def saved(self) -> list[Saved]:
        """The rules of every iptables that this router has; those that can be read."""
        found: list[Saved] = []
        for command in iptables.variants():
            ran = run(f"{command}-save")
            if ran is None or ran.code:
                said = "is not installed" if ran is None else ran.complaint
                self.unreadable.append(f"{command}-save: {said}")
                continue
            policies = {}
            table_name = ""
            for line in ran.output.splitlines():
                if line.startswith("*"):
                    table_name = line[1:].strip()
                elif policy := _POLICY.match(line):
                    policies[table_name, policy[1]] = policy[2]
            saved = Saved(command, iptables.parse(ran.output), policies)
            if all(saved.tables != other.tables for other in found):
                found.append(saved)
        return found

    @functools.cached_property
    def nftables(self) -> list[dict[str, Any]]:
        """The objects of ``nft -j list ruleset``, without the tables that iptables-nft keeps."""
        ran = run("nft", "-j", "list", "ruleset")
        if ran is None:
            return []
        try:
            objects: list[dict[str, Any]] = json.loads(ran.output)["nftables"]
        except (ValueError, KeyError):
            self.unreadable.append(f"nft: {ran.complaint or f'exit code {ran.code}'}")
            return []
        kept = {name for saved in self.saved for name in saved.tables}
        return [
            each for each in objects
            for inner in [next(iter(each.values()), None)]
            if isinstance(inner, dict)
            and not (inner.get("family") == "ip" and inner.get("table", inner.get("name")) in kept)
        ]  # fmt: skip

    @functools.cached_property
    def connections(self) -> list[TableRow]:
        """Control connections and GRE in the conntrack table.

        Raises:
            AdapterError: it cannot be read.
        """
        return table(self.settings.ports)

    def queue(self, number: int) -> QueueCounters | None:
        """Return the counters of a queue; None: nobody is bound to it."""
        return queue_counters(number)

    #: why the data path conntrack does not work here; None where it does
    gre_complaint: Callable[[], str | None] = staticmethod(ConntrackPath.probe)

    #: the same of the data path bpf
    bpf_complaint: Callable[[], str | None] = staticmethod(BpfPath.probe)

    #: the devices where IPv4 is routed: those that run our programs, and those that do not
    programmed: Callable[[], Programmed] = staticmethod(programmed)

    @functools.cached_property
    def rule_problems(self) -> list[str]:
        """What is wrong with our rules, one line each.

        Raises:
            AdapterError: they cannot be read.
        """
        return ruleset.check(self.settings, self.backend)

    @property
    def has_rules(self) -> bool:
        """Whether anything of ours is in place, of any backend."""
        return any(
            chain.startswith(PREFIX)
            for saved in self.saved for chains in saved.tables.values() for chain in chains
        ) or any(
            each.get("table", {}).get("name") == ruleset_nftables.TABLE for each in self.nftables
        )  # fmt: skip

    @property
    def is_paced(self) -> bool:
        """Whether rules of ours hold a flood back."""
        return any(
            {PACE, GRE_PACE} & chains.keys()
            for saved in self.saved for chains in saved.tables.values()
        ) or any(
            each.get("chain", {}).get("table") == ruleset_nftables.TABLE
            and each["chain"]["name"] in (ruleset_nftables.PACE, ruleset_nftables.GRE_PACE)
            for each in self.nftables
        )  # fmt: skip

    @functools.cached_property
    def wan(self) -> set[str]:
        """The interfaces towards the world: those of default routes, and `uplinks`."""
        found = set(self.uplinks)
        for line in (self.text("proc/net/route") or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) >= 8 and fields[1] == fields[7] == "00000000":
                found.add(fields[0])
        return found

    @functools.cached_property
    def interfaces(self) -> set[str]:
        """All interfaces but the loopback."""
        lines = (self.text("proc/net/dev") or "").splitlines()[2:]
        return {line.split(":")[0].strip() for line in lines} - {"lo"}
