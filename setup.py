"""Plain Python by default; with PPTP_NAT_COMPILE=1 the modules that every packet crosses in C.

PPTP_NAT_COMPILE=gre: the rewriting of queued GRE alone, which is written in C.  Both need
a C compiler and Python's headers, the first one mypyc too, which comes with mypy.  See
docs/decisions/0013-compiled-if-wanted.md, 0058-queued-gre-in-c.md and `make compiled`.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

HOT = [
    "pptp_nat/errors.py",
    *sorted(str(path) for path in Path("pptp_nat/core").glob("*.py")),
    *(
        f"pptp_nat/{name}.py"
        for name in (
            "router/carried", "router/carrier", "router/effects", "router/judge", "router/news",
            "router/totals", "router/turns", "state/recorder", "state/records", "state/store",
            "tables/views",
        )
    ),
    *(
        f"pptp_nat/linux/{name}.py"
        for name in (
            "conntrack", "conntrack_counts", "conntrack_ends", "conntrack_path",
            "conntrack_placement", "conntrack_refusals", "conntrack_wire", "datapath", "gre_queue",
            "leg_table", "netlink", "nfqueue", "queue_path", "shares",
        )
    ),
]  # fmt: skip


def extensions() -> list:
    """Return what is to be compiled: nothing, unless it is asked for."""
    wanted = os.environ.get("PPTP_NAT_COMPILE")
    gre = Extension(
        "pptp_nat.linux.gre_rewriting", ["pptp_nat/linux/gre_rewriting.c"],
        extra_compile_args=["-std=gnu11", "-Wall", "-Wextra"],
    )  # fmt: skip
    if wanted != "1":
        return [gre] if wanted == "gre" else []
    from mypyc.build import mypycify  # noqa: PLC0415 - who does not compile need not have it

    hot = mypycify(HOT)
    for each in hot:
        # Nobody replaces what is in it: its functions may be called directly, and become one.
        each.extra_compile_args += ["-fno-semantic-interposition", "-fvisibility=hidden"]
    return [*hot, gre]


setup(ext_modules=extensions())
