"""How bad what a rule has found is; apart, for `pptp_nat.analysis.model` takes long to load."""

from __future__ import annotations

import enum


class Severity(enum.Enum):
    """How bad it is; the values are stable."""

    OK = "ok"  #: works, and worth saying
    NOTE = "note"  #: unusual, does no harm by itself
    WARNING = "warning"  #: works badly or may fail
    ERROR = "error"  #: does not work
