"""The command run: the daemon, or a look at its configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pptp_nat import guard
from pptp_nat.config import DEFAULT_FILE, load
from pptp_nat.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

#: option of the command line -> the key of the configuration that it overrides
OVERRIDES = {
    "socket": "api.socket",
    "state_dir": "state.directory",
    "metrics": "metrics.listen",
    "datapath": "gre.datapath",
    "rules": "rules.manage",
    "backend": "rules.backend",
    "workers": "control.workers",
}


def run(options: Namespace) -> int:
    """Run the daemon in the foreground, or only check its configuration."""
    if options.guard and not options.check_config and not guard.is_guarded():
        if options.takeover:
            raise UsageError(
                "--guard: a successor that takes over is guarded by who guards the daemon that "
                "runs; leave --guard out"
            )
        return guard.run_guard(sys.orig_argv)
    path = config_path(options)
    overrides = overriding(options)
    config = load(path, overrides)
    if options.check_config:
        sys.stdout.write(f"{path or 'built-in defaults'}: good\n")
        return 0
    # A look at the configuration needs no kernel library.
    if config.control.workers > 1:
        if options.takeover:
            raise UsageError(
                "--takeover: workers take nothing over; stop the daemon that runs, then start this "
                "one: established calls go on in the kernel meanwhile"
            )
        from pptp_nat.workers.supervisor import run_supervisor  # noqa: PLC0415  see above

        return run_supervisor(config, path, overrides)
    from pptp_nat.daemon import run_daemon  # noqa: PLC0415  see above

    return run_daemon(config, path, overrides, takes_over=options.takeover)


def config_path(options: Namespace) -> Path | None:
    """Return the file to read: the one named, else the usual one if it is there."""
    if options.config is not None:
        named: Path = options.config
        return named
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def overriding(options: Namespace) -> dict[str, object]:
    """Return the keys that the command line sets, as `pptp_nat.config.load` takes them."""
    given = {key: getattr(options, name, None) for name, key in OVERRIDES.items()}
    return {key: value for key, value in given.items() if value is not None}
