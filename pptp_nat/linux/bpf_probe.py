"""Whether this kernel runs the BPF programs as they are meant, tried without a packet sent."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from pptp_nat.core.tuples import Leg
from pptp_nat.linux import bpf_maps
from pptp_nat.linux.bpf_object import BpfObject
from pptp_nat.linux.traffic_control import Programs, TrafficControl

MARK: Final = 0x40000000
_TRYING: Final = b"\0pptp-nat tries BPF programs"
_PATIENCE: Final = 2.0  # seconds for others who try; it takes a few milliseconds
_PAUSE: Final = 0.002  # seconds
_ETHERNET: Final = bytes(12) + b"\x08\x00"
_GRE: Final = struct.Struct("!BBHHH")
_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_LEG: Final = Leg(
    socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2"), 0x0102,
    socket.inet_aton("192.0.2.1"), socket.inet_aton("198.51.100.3"), 0x0304,
)  # fmt: skip


def flaw(programs: BpfObject) -> str | None:
    """Say what is wrong with *programs* here; None: nothing.

    Raises:
        AdapterError: the kernel refuses to run or to attach them.
    """
    (row,), _ = bpf_maps.rows(_LEG, 0, 0)
    programs.update(programs.map_fd("legs"), *row)
    ran = programs.test_run("ether_arriving", _packet(*_LEG[:3]), came_in_at=1)
    programs.delete(programs.map_fd("legs"), row.key)
    if ran.frame != _packet(*_LEG[3:]) or not ran.mark & MARK:
        return "this kernel runs the BPF programs otherwise than they are meant"
    with _loopback_to_ourselves(), TrafficControl() as tc:
        loopback = tc.loopback()
        if loopback is not None:
            tc.attach(loopback, Programs(
                programs.program_fd("ether_arriving"), programs.program_fd("ether_leaving")
            ))  # fmt: skip
            tc.detach(loopback)
    return None


@contextlib.contextmanager
def _loopback_to_ourselves() -> Iterator[None]:
    """Keep off others who try at the same moment: what they detach would be ours.

    An abstract name belongs to a network namespace, as its loopback device does, and
    goes with who holds it (unix(7)).  Nobody who tries holds it for long.
    """
    deadline = time.monotonic() + _PATIENCE
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        while time.monotonic() < deadline:
            try:
                held.bind(_TRYING)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    break
                time.sleep(_PAUSE)
            else:
                break
        yield


def _packet(source: bytes, destination: bytes, key: int) -> bytes:
    header = _IP.pack(0x45, 0, 28, 1, 0, 64, 47, 0, source, destination)
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + (0xFFFF - total).to_bytes(2, "big") + header[12:]
    return b"".join((_ETHERNET, header, _GRE.pack(0x20, 1, 0x880B, 0, key)))
