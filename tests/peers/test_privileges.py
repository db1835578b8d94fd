"""What the daemon may do once it runs: little, and as whoever it runs."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pptp_nat.lab.network import EXTERNAL
from pptp_nat.lab.wire import Gre, encode_gre
from pptp_nat.linux.bpf_object import kernel_release
from tests.paths import every_path

from .conftest import By, World
from .test_metrics import PLACE, get
from .test_restarts import KEPT

pytestmark = pytest.mark.kernel
NET_ADMIN, NET_RAW, BPF = 1 << 12, 1 << 13, 1 << 39
NOBODY = 65534


def _status(pid: int) -> dict[str, set[str]]:
    """Return what the kernel says of each thread of a process, by field."""
    found: dict[str, set[str]] = {}
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name, set()).add(value.strip())
    return found


@pytest.mark.parametrize(("rules", "kept"), [("keep", NET_ADMIN), ("apply", NET_ADMIN | NET_RAW)])
def test_a_daemon_of_root_keeps_one_capability_and_gets_no_other(
    world: Callable[..., World], rules: str, kept: int
) -> None:
    """Whoever finds a way into it has the network's settings, and no file of anybody else."""
    here = world("conntrack", inside=1, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    if rules == "apply":
        daemon.stop()
        daemon._command += ["--rules", "apply"]
        daemon.start()
    else:
        daemon.stop()
        daemon._command += ["--rules", "keep"]
        daemon.start()
    assert daemon.pid is not None
    status = _status(daemon.pid)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert {f"{kept:016x}"} == status[name], name
    assert {"1"} == status["NoNewPrivs"]

    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    here.all_hear(here.up([connection.call(7)]))
    assert 0 == daemon.stop()
    listing = here.lab.run(here.lab.router, ["iptables-save"]).stdout
    assert ("PPTP_NAT" in listing) is (rules == "keep"), "a clean stop removes what is its own"


@every_path
def test_it_works_as_an_ordinary_user_with_one_capability(
    world: Callable[..., World], by: By
) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("not found: setpriv: apt install util-linux")
    here = world(by, inside=2, **KEPT)
    daemon = here.daemon
    assert daemon is not None
    daemon.stop()
    # BPF programs are loaded with one more, which is let go of where the kernel can do without.
    caps = "-all,+net_admin" + (",+bpf" if by == "bpf" else "")
    daemon._command = [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        f"--inh-caps={caps}", f"--ambient-caps={caps}", f"--bounding-set={caps}",
        "--no-new-privs",
        *daemon._command, "--rules", "keep",
    ]  # fmt: skip
    for path in (here.lab.directory, *here.lab.directory.rglob("*")):
        shutil.chown(path, NOBODY, NOBODY)
    daemon.start()
    assert daemon.pid is not None
    status = _status(daemon.pid)
    kept = NET_ADMIN | (BPF if by == "bpf" and kernel_release() < (5, 19) else 0)
    assert {f"{kept:016x}"} == status["CapEff"] | status["CapPrm"]
    bounds = {f"{NET_ADMIN | (BPF if by == 'bpf' else 0):016x}"}
    assert bounds == status["CapBnd"], "worth nothing without new privileges"
    assert {"\t".join([str(NOBODY)] * 4)} == status["Uid"]

    server = here.station(here.lab.outside[0])
    server.listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.all_hear(calls)
    daemon.kill()
    daemon.start()
    here.all_hear(calls)
    assert [] == [line for line in daemon.log.splitlines() if "state-not-kept" in line]


def test_no_log_and_no_file_shows_what_is_said_dialled_or_secret(
    world: Callable[..., World], tmp_path: Path
) -> None:
    """Logs are read by many and sent far; what people say, and a token, are not for them."""
    dialled, token = "0700-dialled-by-nobody-else", "a-token-that-nobody-guesses"
    (tmp_path / "token").write_text(token)
    here = world(
        "queue", inside=1, metrics=PLACE,
        config=f'metrics.token_file = "{tmp_path / "token"}"\nlog.level = "debug"\n',
        options=("--rules", "leave"),
    )  # fmt: skip
    daemon = here.daemon
    assert daemon is not None
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    here.all_hear(here.up([connection.call(7, label=dialled)]))
    assert 200 == get(here, fields={"Authorization": f"Bearer {token}"})[0]
    wrong = "the-wrong-token"
    assert 401 == get(here, fields={"Authorization": f"Bearer {wrong}"})[0]
    with here.lab.open_socket(here.lab.outside[0], socket.SOCK_RAW, socket.IPPROTO_GRE) as stranger:
        stray = encode_gre(Gre(4711, dialled.encode(), 0))
        stranger.sendto(stray, (EXTERNAL, 0))
    here.daemon.kill()  # a clean end would write less
    daemon.start()
    here.listed(1)

    kept = [path for path in here.lab.directory.rglob("*") if path.is_file()]
    assert any("journal" in str(path) for path in kept)
    assert "event=" in daemon.log
    for secret in (dialled, token, wrong):
        shown = [path.name for path in kept if secret.encode() in path.read_bytes()]
        assert [] == shown, secret
