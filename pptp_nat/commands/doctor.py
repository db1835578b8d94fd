"""The command doctor: what keeps PPTP from passing, said in one line each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pptp_nat import api
from pptp_nat.commands.run import config_path, overriding
from pptp_nat.config import load
from pptp_nat.doctor import report
from pptp_nat.doctor.checks import examine
from pptp_nat.doctor.model import worst
from pptp_nat.doctor.router import Router
from pptp_nat.doctor.server import consult, uplink
from pptp_nat.errors import ConfigError, UsageError
from pptp_nat.linux.ruleset import Backend
from pptp_nat.router.firewall import rule_settings

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from pptp_nat.doctor.model import Judgement


def doctor(options: Namespace) -> int:
    """Examine this router, and with --server a server; 0, 3 for a warning, 1 for a failure."""
    if options.only_server and options.server is None:
        raise ConfigError("pptp-nat doctor: --only-server: say which with --server ADDR")
    found = []
    for judgement in _judgements(options):
        found.append(judgement)
        if options.output == "text":
            sys.stdout.write(f"{report.line(judgement)}\n")
            sys.stdout.flush()
    if options.output == "json":
        sys.stdout.write(f"{report.as_json(found)}\n")
    else:
        sys.stdout.write(f"{report.summary(found)}\n")
    return report.EXIT_CODES[worst(found)]


def _judgements(options: Namespace) -> Iterator[Judgement]:
    if not options.only_server:
        yield from examine(_router(options))
    if options.server is not None:
        yield from consult(options.server, options.server_port, timeout=options.timeout)


def _router(options: Namespace) -> Router:
    config = load(config_path(options), overriding(options))
    status: dict[str, Any] | None = None
    complaint = ""
    try:
        status = api.ask(config.api.socket, {"do": "status"})
    except UsageError as error:
        complaint = str(error)
    wanted = config.gre.datapath if status is None else status.get("datapath", "auto")
    backend = config.rules.backend
    router = Router(
        rule_settings(config, "conntrack" if wanted == "auto" else wanted),
        backend=None if backend == "auto" else Backend(backend),
        status=status,
        complaint=complaint,
    )
    if options.server is not None and (interface := uplink(options.server)) is not None:
        router.uplinks.add(interface)
    return router
