"""Dials a PPTP server from this host and says at which step it fails.  No account is needed.

The steps are those of every client (RFC 2637 section 3.1.1): TCP to port 1723,
Start-Control-Connection, Outgoing-Call, then GRE both ways with LCP in it.  Before
anybody is asked for a name, the call is cleared and the connection stopped.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pptp_nat.doctor.model import Judgement, Outcome
from pptp_nat.doctor.server_control import Dialogue, Failed
from pptp_nat.doctor.server_gre import converse


def consult(server: str, port: int = 1723, *, timeout: float = 5.0) -> Iterator[Judgement]:
    """Yield one judgement per step; the first failure is the last but for the farewell.

    Args:
        server: name or dotted address.
        port: its TCP port.
        timeout: seconds for each step; the whole takes four times that at most.
    """
    try:
        address = _resolve(server)
        yield _route(address)
        dialled = Dialogue(_connect(address, port, timeout), timeout)
        yield Judgement("server_port", Outcome.PASS, f"TCP port {port} of {address} is open")
    except Failed as failed:
        yield failed.judgement
        return
    with contextlib.closing(dialled):
        try:
            yield dialled.start()
            yield dialled.call()
            yield from converse(dialled, address, timeout)
        except Failed as failed:
            yield failed.judgement
        yield dialled.farewell()


def uplink(server: str) -> str | None:
    """Return the interface by which *server* is reached; None: there is no route, or no name."""
    try:
        address = _resolve(server)
    except Failed:
        return None
    number = int.from_bytes(socket.inet_aton(address), "big")
    best: tuple[int, str] | None = None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            destination, mask = (
                int.from_bytes(bytes.fromhex(fields[at])[::-1], "big") for at in (1, 7)
            )
            if number & mask == destination and (best is None or mask > best[0]):
                best = mask, fields[0]
    return None if best is None else best[1]


def _resolve(server: str) -> str:
    try:
        found = socket.getaddrinfo(server, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed(
            "server_route", f"{server} has no IPv4 address: {error}",
            "check the name, and that this router can ask a name server",
        ) from error  # fmt: skip
    return str(found[0][4][0])


def _route(address: str) -> Judgement:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            source = probe.getsockname()[0]
        except OSError as error:
            raise Failed(
                "server_route", f"no route to {address}: {error.strerror}",
                "set a default route, or one to the server",
            ) from error  # fmt: skip
    return Judgement("server_route", Outcome.PASS, f"{address} is reached from {source}")


_REFUSED = "no PPTP server runs there, or a firewall rejects port {port}: ask for its address"
_FILTERED = (
    "something drops TCP port {port}: a firewall of the provider, of the server, or of this router"
)
_CONNECT_MENDS: Final = {
    errno.ECONNREFUSED: ("closed: the connection is refused", _REFUSED),
    errno.EHOSTUNREACH: ("not reachable: a router says that the host is not there", _FILTERED),
    errno.ENETUNREACH: ("not reachable: a router knows no way", _FILTERED),
    errno.EACCES: ("forbidden by a firewall", _FILTERED),
    errno.EPERM: ("forbidden by this router's own OUTPUT rules", _FILTERED),
    errno.ETIMEDOUT: ("filtered: nothing answers", _FILTERED),
}


def _connect(address: str, port: int, timeout: float) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.settimeout(timeout)
    try:
        opened.connect((address, port))
    except OSError as error:
        opened.close()
        code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
        what, mend = _CONNECT_MENDS.get(code, (f"not open: {error.strerror}", _FILTERED))
        raise Failed(
            "server_port", f"TCP port {port} of {address} is {what}", mend.format(port=port)
        ) from error
    return opened
