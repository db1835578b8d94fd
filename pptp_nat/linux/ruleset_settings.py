"""What the firewall rules depend on, and how the firewall's own tools are run."""

from __future__ import annotations

import enum
import errno
import os
import subprocess
from dataclasses import dataclass
from typing import Final, NamedTuple

from pptp_nat.core.tuples import Address
from pptp_nat.errors import AdapterError
from pptp_nat.linux.datapath import Carrying

APPLY: Final = "run `pptp-nat rules apply`"  #: what mends most of what is wrong with rules
COMMAND_SECONDS: Final = 60  # a lock that somebody else holds for longer is a broken router


class Backend(enum.Enum):
    """Whose rules bring packets to the queues."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"


@dataclass(frozen=True, slots=True)
class Pace:
    """How many packets a second come to the queues; 0: as many as come."""

    openers_per_client: int = 100  #: of no connection that conntrack knows, by source
    openers: int = 4000  #: of all clients
    segments_per_client: int = 1000  #: of the connections that a client has opened, each way
    gre_per_host: int = 50_000  #: GRE of one source, inside or outside, data path "queue" only


UNPACED: Final = Pace(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What the operator decides about the rules."""

    ports: tuple[int, ...] = (1723,)  #: TCP ports of PPTP servers
    control_queue: int = 1723  #: NFQUEUE number of the control messages
    gre_queue: int = 1724  #: NFQUEUE number of GRE, data path "queue" only
    repeat_mark: int = 0x40000000  #: one bit of the packet mark: has been in a queue
    datapath: Carrying = "conntrack"
    #: addresses that the world sees and that are not this router's own, "queue" only
    external_addresses: tuple[Address, ...] = ()
    pace: Pace = Pace()
    workers: int = 1  #: of control connections, by queues that follow `control_queue`

    @property
    def control_queues(self) -> range:
        """The NFQUEUE numbers of the control messages, one per worker."""
        return range(self.control_queue, self.control_queue + self.workers)

    def __post_init__(self) -> None:
        assert self.ports, "rules for no port bring no packet"
        assert self.repeat_mark.bit_count() == 1, "the other bits are the administrator's"
        assert self.workers == 1 or self.datapath == "conntrack", "GRE has one queue"
        same = self.control_queue == self.gre_queue
        assert not same or self.workers > 1, "one queue cannot be bound twice"


@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel and its tools can do.  The defaults are what an ordinary router has."""

    nfqueue: bool = True  #: iptables -j NFQUEUE
    bpf: bool = True  #: iptables -m bpf
    u32: bool = True  #: iptables -m u32
    addrtype: bool = True  #: iptables -m addrtype
    hashlimit: bool = True  #: iptables -m hashlimit
    nft_queue: bool = True  #: nftables' queue statement


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    output: str
    complaint: str  #: what it wrote to its standard error, one line


def run(*command: str, text: str | None = None) -> Ran | None:
    """Run *command* with *text* as its input; None means that it is not installed.

    Rules of others may have comments in any encoding.
    """
    try:
        ended = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
            timeout=COMMAND_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return Ran(1, "", f"no answer in {COMMAND_SECONDS} seconds")
    except OSError as error:  # not ours to run, or no memory for another process
        return Ran(1, "", f"it cannot be started: {error.strerror}")
    return Ran(ended.returncode, ended.stdout, "; ".join(ended.stderr.split("\n")).strip("; "))


def must(doing: str, *command: str, text: str | None = None) -> str:
    """Run *command* and return its output.

    Raises:
        AdapterError: it is not installed, or it ended with anything but 0.
    """
    ran = run(*command, text=text)
    if ran is None:
        raise AdapterError(doing, errno.ENOENT, mend=f"install {command[0]}")
    if ran.code:
        forbidden = "ermission denied" in ran.complaint or "not permitted" in ran.complaint
        code = errno.EPERM if forbidden else errno.EINVAL
        raise AdapterError(doing, code, mend=f"{command[0]} says: {ran.complaint}")
    return ran.output
