"""What one configuration value may be: a parser per kind, each with its complaint.

A parser takes what TOML holds and returns the typed value, or raises `Unfit`,
whose text is ``reason; what to write instead``.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PORTS: Final = 16  #: ports in one iptables multiport match: 15, and one rule more
MOST_ADDRESSES: Final = 256
LONGEST_SOCKET_PATH: Final = 107  #: octets of sockaddr_un.sun_path without its final NUL
#: this network, loopback, multicast and class E: no address there is seen on a wire as a host's
NO_HOSTS: Final = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")))
OWNER_BITS: Final = 0o600  #: the daemon's own user reads and writes its socket
LONGEST_SHOWN: Final = 60  #: characters of a wrong value repeated in a complaint

Name = TypeVar("Name", bound=str)


class Unfit(Exception):
    """A value that a key cannot have.  `pptp_nat.config.load` makes it a `ConfigError`."""

    def __init__(self, reason: str, instead: str) -> None:
        super().__init__(f"{reason}; {instead}")


class Endpoint(NamedTuple):
    """An address to listen on, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def shown(value: object) -> str:
    """Return *value* for a complaint: one line, printable, not long."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        # str() refuses an int of some thousand digits, hex() does not
        text = str(value) if abs(value) < 1 << 64 else hex(value)
    elif isinstance(value, str):
        text = '"' + ascii(value[: LONGEST_SHOWN + 1])[1:-1] + '"'
    elif isinstance(value, list):
        return f"a list of {len(value)}"
    elif isinstance(value, dict):
        return "a table"
    else:
        text = ascii(str(value))[1:-1]
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def whole(low: int, high: int, unit: str = "") -> Callable[[object], int]:
    """Return a parser of whole numbers from *low* to *high*."""
    instead = f"write a whole number from {low} to {high}" + (f" ({unit})" if unit else "")

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Unfit(f"{shown(value)} is not a whole number", instead)
        if not low <= value <= high:
            raise Unfit(f"{shown(value)} is out of range", instead)
        return value

    return parse


def seconds(low: float, high: float, *, zero: str = "") -> Callable[[object], float]:
    """Return a parser of seconds from *low* to *high*; 0 as well if *zero* names its meaning."""
    instead = f"write seconds from {low:.15g} to {high:.15g}" + (f" or 0 ({zero})" if zero else "")

    def parse(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Unfit(f"{shown(value)} is not a number of seconds", instead)
        if zero and value == 0:
            return 0
        if not math.isfinite(value) or not low <= value <= high:
            raise Unfit(f"{shown(value)} is out of range", instead)
        return value

    return parse


def one_of(*names: Name) -> Callable[[object], Name]:
    """Return a parser of one of *names*."""
    instead = "write " + ", ".join(f'"{name}"' for name in names[:-1]) + f' or "{names[-1]}"'

    def parse(value: object) -> Name:
        for name in names:
            if name == value:
                return name
        raise Unfit(f"{shown(value)} is not known", instead)

    return parse


def one_bit(value: object) -> int:
    """Parse a mark of one bit, a number or a string such as "0x40000000"."""
    instead = 'write one bit of 32, such as 0x40000000 or "0x40000000"'
    number = value
    if isinstance(value, str):
        try:
            number = int(value, 0)
        except ValueError:
            raise Unfit(f"{shown(value)} is not a number", instead) from None
    if not isinstance(number, int) or isinstance(number, bool):
        raise Unfit(f"{shown(value)} is not a number", instead)
    if not 0 < number < 1 << 32 or number & (number - 1):
        raise Unfit(f"{shown(value)} is not one bit of 32", instead)
    return number


def port_list(value: object) -> tuple[int, ...]:
    """Parse TCP ports, each once."""
    instead = f"write 1 to {MOST_PORTS} different ports from 1 to 65535, such as [1723]"
    ports = _list(value, instead)
    for port in ports:
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 1 << 16:
            raise Unfit(f"{shown(port)} is not a port", instead)
    if len(set(ports)) != len(ports):
        raise Unfit("a port stands here twice", instead)
    if not 0 < len(ports) <= MOST_PORTS:
        raise Unfit(f"{len(ports)} ports", instead)
    return tuple(port for port in ports if isinstance(port, int))


def outside_addresses(value: object) -> tuple[IPv4Address, ...]:
    """Parse IPv4 addresses of hosts, each once."""
    instead = f'write up to {MOST_ADDRESSES} IPv4 addresses, such as ["198.51.100.7"]'
    texts = _list(value, instead)
    if len(texts) > MOST_ADDRESSES:
        raise Unfit(f"{len(texts)} addresses", instead)
    found: list[IPv4Address] = []
    for text in texts:
        try:
            address = IPv4Address(text if isinstance(text, str) else "")
        except ValueError:
            raise Unfit(f"{shown(text)} is not an IPv4 address", instead) from None
        if any(address in network for network in NO_HOSTS):
            raise Unfit(f"{address} is no host's address", instead)
        if address in found:
            raise Unfit(f"{address} stands here twice", instead)
        found.append(address)
    return tuple(found)


def socket_mode(value: object) -> int:
    """Parse the permissions of the socket, a number or a string of octal digits."""
    instead = "write read and write bits in octal with the owner's, such as 0o660"
    mode = value
    if isinstance(value, str):
        try:
            mode = int(value, 8)
        except ValueError:
            raise Unfit(f"{shown(value)} is not octal", instead) from None
    if not isinstance(mode, int) or isinstance(mode, bool):
        raise Unfit(f"{shown(value)} is not a number", instead)
    if mode & ~0o666 or mode & OWNER_BITS != OWNER_BITS:
        reason = f"{mode:#o}" if 0 <= mode < 1 << 32 else shown(mode)
        raise Unfit(f"{reason} is no mode for a socket", instead)
    return mode


def absolute_path(
    value: object, instead: str = 'write an absolute path such as "/run/pptp-nat/pptp-nat.sock"'
) -> Path:
    """Parse an absolute path; *instead* says what to write instead of what is none."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise Unfit(f"{shown(value)} is not a path", instead)
    if not value.isprintable() or not value.startswith("/"):
        raise Unfit(f"{shown(value)} is not an absolute path", instead)
    return Path(value)


def file_or_none(value: object) -> Path | None:
    """Parse the absolute path of a file, or "" for none."""
    if value == "":
        return None
    path = absolute_path(value, 'write the absolute path of a file, or "" for none')
    if path.name in {"", ".."}:
        raise Unfit(f"{shown(str(path))} names no file", "write the absolute path of a file")
    return path


def directory_or_none(value: object) -> Path | None:
    """Parse the absolute path of a directory, or "" for none."""
    if value == "":
        return None
    return absolute_path(value, 'write the absolute path of a directory, or ""')


def socket_path(value: object) -> Path:
    """Parse an absolute path that fits into a socket's address."""
    path = absolute_path(value)
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH or path.name == "":
        raise Unfit(
            f"{shown(str(path))} cannot name a socket",
            f"write the path of a file of at most {LONGEST_SOCKET_PATH} octets",
        )
    return path


def endpoint_or_off(value: object) -> Endpoint | None:
    """Parse ``ADDRESS:PORT``, an IPv6 address in brackets, or "off"."""
    instead = 'write "off" or an address and a port, such as "127.0.0.1:9723" or "[::1]:9723"'
    if value == "off":
        return None
    if not isinstance(value, str):
        raise Unfit(f"{shown(value)} is not an address and a port", instead)
    host, _, port = value.rpartition(":")
    kind: type[IPv4Address | IPv6Address] = IPv4Address
    if host.startswith("[") and host.endswith("]"):
        host, kind = host[1:-1], IPv6Address
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if not isinstance(address, kind):
        raise Unfit(f"{shown(value)} has no address to listen on", instead)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise Unfit(f"{shown(value)} has no port from 1 to 65535", instead)
    return Endpoint(str(address), int(port))


def user_name(value: object) -> str:
    """Parse the name or number of a user of this host, or ""."""
    return _account(value, "user", pwd.getpwnam)


def group_name(value: object) -> str:
    """Parse the name or number of a group of this host, or ""."""
    return _account(value, "group", grp.getgrnam)


def _account(value: object, kind: str, look_up: Callable[[str], object]) -> str:
    instead = f'write the name of a {kind} of this host, its number in quotes, or ""'
    if not isinstance(value, str):
        raise Unfit(f"{shown(value)} is not a name", instead)
    if value == "" or (value.isascii() and value.isdigit() and int(value[:11]) < (1 << 32) - 1):
        return value
    try:
        look_up(value)
    except (KeyError, ValueError):  # ValueError: a NUL or a surrogate in the name
        raise Unfit(f"there is no {kind} {shown(value)}", instead) from None
    return value


def _list(value: object, instead: str) -> list[object]:
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, list):
        raise Unfit(f"{shown(value)} is not a list", instead)
    return value
