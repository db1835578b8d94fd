"""Plain Python by default; with PPTP_NAT_COMPILE=1 the modules that every packet crosses in C.

The compiler is mypyc, which comes with mypy; it needs a C compiler and Python's
headers.  See docs/decisions/0013-compiled-if-wanted.md and `make compiled`.
"""

import os
from pathlib import Path

from setuptools import setup

HOT = [
    "pptp_nat/errors.py",
    *sorted(str(path) for path in Path("pptp_nat/core").glob("*.py")),
    *(
        f"pptp_nat/{name}.py"
        for name in (
            "router/carried", "router/carrier", "router/effects", "router/news", "state/recorder",
            "state/records", "tables/views",
        )
    ),
    *(
        f"pptp_nat/linux/{name}.py"
        for name in (
            "conntrack", "conntrack_path", "conntrack_placement", "conntrack_wire", "datapath",
            "netlink", "nfqueue", "leg_table", "queue_path", "shares",
        )
    ),
]  # fmt: skip


def extensions() -> list:
    """Return what is to be compiled: nothing, unless it is asked for."""
    if os.environ.get("PPTP_NAT_COMPILE") != "1":
        return []
    from mypyc.build import mypycify  # noqa: PLC0415 - who does not compile need not have it

    return mypycify(HOT)


setup(ext_modules=extensions())
