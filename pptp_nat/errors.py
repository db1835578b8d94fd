"""Every exception this package raises on purpose, on one page.

Whose fault is it?  The class answers: a peer's (`WireError`), nobody's
(`ExhaustedError`), the kernel's (`AdapterError`), the operator's
(`ConfigError`, `UsageError`).  A mistake inside our own code is an ``assert``.
"""

from __future__ import annotations

import os


class PptpNatError(Exception):
    """Base of everything raised on purpose.  Never raised itself."""


class WireError(PptpNatError):
    """A peer sent octets that RFC 2637 does not allow."""

    def __init__(self, reason: str, *, offset: int) -> None:
        super().__init__(f"{reason} (octet {offset})")
        self.reason = reason  #: stable slug, safe as a metric label
        self.offset = offset  #: octets from the start of the message


class BadMagic(WireError):
    """The magic cookie is not 0x1A2B3C4D: lost framing, or not PPTP at all."""


class BadLength(WireError):
    """The Length field is one that no message of this type may have."""


class ExhaustedError(PptpNatError):
    """A table is full.  The new call is refused, those that are up stay up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason  #: stable slug, safe as a metric label


class AdapterError(PptpNatError):
    """The kernel refused us.  Carries the ``errno`` and what we asked for."""

    def __init__(self, doing: str, errno: int, *, mend: str = "") -> None:
        text = f"{doing}: {os.strerror(errno)} (errno {errno})"
        super().__init__(f"{text}; {mend}" if mend else text)
        self.doing = doing
        self.errno = errno


class ConfigError(PptpNatError):
    """The operator's file or flags.  Names file and key; the command exits with 2."""


class UsageError(PptpNatError):
    """A command that cannot be carried out as asked.  The command exits with 1."""
