"""The fields of a listed conntrack entry, one by one: what a text says, or None if it says nothing.

Times are as ctime(3) writes them, numbers decimal or 0x..., addresses dotted.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Final

from pptp_nat.analysis.conntrack_entries import Count, Way

_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
_ADDRESS: Final = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")


class Addresses(dict[str, str]):
    """IPv4 addresses by their text, each the very same object: it is hashed many times.

    Raises:
        ValueError: what is asked for is no address.
    """

    def __missing__(self, text: str) -> str:
        """Return *text*, if it is an address."""
        if _ADDRESS.fullmatch(text) is None:
            raise ValueError(text)
        self[text] = text
        return text


def way(
    source: str | None, destination: str | None, source_key: str | None, key: str | None
) -> Way | None:
    """Return the way of source, destination and keys; None where the addresses are not IPv4."""
    for text in (source, destination):
        if text is None or _ADDRESS.fullmatch(text) is None:
            return None
    assert source is not None
    assert destination is not None
    return Way(source, destination, number(source_key), number(key))


def count(packets: str | None, octets: str | None) -> Count | None:
    """Return what was counted; None where one of the two was not."""
    if packets is None or octets is None:
        return None
    return Count(number(packets) or 0, number(octets) or 0)


def number(text: str | None) -> int | None:
    """Return a number in decimal or as 0x...; None for anything else."""
    if text is None or len(text) > 20:
        return None
    try:
        return int(text, 16 if text[:2] == "0x" else 10)
    except ValueError:
        return None


@functools.lru_cache(1 << 12)
def unix(written: str) -> float | None:
    """Return Unix seconds of what ctime(3) wrote, in the local time zone."""
    try:
        return time.mktime(time.strptime(written, "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError):
        return None
