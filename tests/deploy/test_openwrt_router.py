"""OpenWrt: the init script's work, with the daemon it starts, in a scratch root under busybox."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.packages import openwrt
from pptp_nat.config import SECTIONS, Config, load
from pptp_nat.lab.network import Lab, missing
from pptp_nat.lab.peers import Loop

from .clients import Clients
from .router import Router, skip_unless_possible

PATIENCE = 60.0


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return openwrt.build(tmp_path_factory.mktemp("ipk"))


Make = Callable[..., Router]


@pytest.fixture
def make(packages: list[Path], tmp_path: Path) -> Make:
    skip_unless_possible()
    return functools.partial(Router, tmp_path / "router", packages)


@pytest.fixture
def router(make: Make) -> Router:
    return make()


def generated(router: Router, text: str) -> Config:
    """Have the init script make the daemon's configuration of *text*, and read that."""
    router.uci.write_text(text)
    router.service("start")
    assert [] == [line for line in router.logged() if line.startswith("daemon.err")]
    return load(router.toml)


# -- From UCI to TOML ------------------------------------------------------------------------------


def test_the_shipped_configuration_is_the_defaults_but_for_what_a_router_spares(
    router: Router,
) -> None:
    config = generated(router, router.uci.read_text())
    differing = {
        f"{section}.{name}"
        for section, names in SECTIONS.items()
        for name in names
        if getattr(getattr(config, section), name) != getattr(getattr(Config(), section), name)
    }

    # A router's log is a ring in memory, its flash wears out, and metrics cost it memory.
    assert {"log.rate", "metrics.listen", "state.sync"} == differing


def test_every_kind_of_option_arrives(router: Router) -> None:
    config = generated(
        router,
        "config control\n\tlist ports '1723'\n\tlist ports '11723'\n\toption repeat_mark '0x100'\n"
        "config gre 'gre'\n\tlist external_addresses '198.51.100.7'\n\toption queue '9'\n"
        "config call_ids\n\toption quarantine '2.5'\n"
        "config api\n\toption mode '0600'\n"
        'config log\n\toption level "debug"\n',
    )

    assert (1723, 11723) == config.control.ports
    assert 0x100 == config.control.repeat_mark
    assert ["198.51.100.7"] == [str(each) for each in config.gre.external_addresses]
    assert (9, 2.5, 0o600, "debug") == (
        config.gre.queue, config.call_ids.quarantine, config.api.mode, config.log.level,
    )  # fmt: skip


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\t\n"),
        min_size=1, max_size=40,
    ).filter(lambda text: text.strip("\n") == text)
)  # fmt: skip
def test_any_text_arrives_as_it_was_written(shell: Callable[[str], str], text: str) -> None:
    """Quotes, backslashes, line feeds: nobody's value may become somebody else's option."""
    assert {"value": text} == tomllib.loads(f"value = {shell(text)}")


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    """Give a function that has busybox write a text as TOML."""
    skip_unless_possible()
    script = f'. {openwrt.FILES}/generate.sh; pptp_nat_value text "$1"'

    def shell(text: str) -> str:
        return subprocess.run(
            ["busybox", "ash", "-c", script, "ash", text],
            capture_output=True, text=True, check=True, encoding="utf-8",
        ).stdout  # fmt: skip

    return shell


def test_metrics_are_served_on_the_address_of_a_network(router: Router) -> None:
    text = "config metrics\n\toption interface 'lan'\n\toption port '9999'\n"
    assert generated(router, text).metrics.listen is None  # it has no address yet
    (router.kept / "tmp/addresses").write_text("lan 192.168.1.1\n")

    assert "192.168.1.1:9999" == str(generated(router, text).metrics.listen)
    assert ["interface", "lan"] in router.service("triggers")


# -- Reload ----------------------------------------------------------------------------------------


def told(procd: list[list[str]], what: str) -> list[list[str]]:
    return [line[1:] for line in procd if line[0] == what]


def test_a_live_key_changes_the_file_and_another_the_instance(router: Router) -> None:
    """Procd then sends SIGHUP for the one, and restarts the daemon for the other."""
    router.uci.write_text("config log\n\toption level 'info'\n")
    first = told(router.service("start"), "env")
    before = router.toml.read_text()
    router.uci.write_text("config log\n\toption level 'debug'\n")
    second = told(router.service("reload"), "env")
    between = router.toml.read_text()
    router.uci.write_text("config log\n\toption level 'debug'\nconfig gre\n\toption queue '7'\n")
    third = told(router.service("reload"), "env")

    assert before != between
    assert first == second != third


def test_a_mistake_leaves_what_runs_alone(router: Router) -> None:
    router.uci.write_text("config log\n\toption level 'info'\n")
    router.service("start")
    before = router.toml.read_text()
    router.uci.write_text("config log\n\toption level 'loud'\n")

    assert [] == router.service("reload", check=False)
    assert before == router.toml.read_text()


def test_a_service_that_is_not_enabled_does_not_start(router: Router) -> None:
    router.uci.write_text("config main\n\toption enabled '0'\n")

    assert [] == router.service("start")
    assert [] == router.logged()


def test_a_guard_is_asked_for_and_can_start_the_daemon_again(router: Router) -> None:
    assert [] == told(router.service("start"), "append")
    assert [] == router.service("renew", check=False)
    mend = "set main.guard to 1, or call restart"
    assert [f"daemon.err nothing keeps the queues meanwhile: {mend}"] == router.logged()
    router.uci.write_text("config main\n\toption guard '1'\n")
    assert [["command", "--guard"], ["env", "TMPDIR=/var/run/pptp-nat"]] == (
        told(router.service("start"), "append")
    )
    assert [["pptp-nat", "daemon", "USR1"]] == told(router.service("renew"), "signal")


def test_a_jail_has_one_capability(router: Router) -> None:
    router.uci.write_text("config main\n\toption jail '1'\n")
    without = router.service("start")
    assert ["daemon.warn main.jail is 1 and procd-ujail is not installed: it runs without"] == (
        router.logged()
    )
    ujail = router.root / ("usr/sbin/ujail" if Path("/sbin").is_symlink() else "sbin/ujail")
    ujail.parent.mkdir(exist_ok=True)
    ujail.write_text("#!/bin/sh\n")
    ujail.chmod(0o755)
    jailed = router.service("start")
    granted = json.loads((router.root / "etc/capabilities/pptp-nat.json").read_text())

    assert [] == told(without, "jail")
    assert [["pptp-nat", "log", "procfs"]] == told(jailed, "jail")
    assert [["/etc/capabilities/pptp-nat.json"]] == told(jailed, "capabilities")
    assert [["CAP_NET_ADMIN"]] * 5 == list(granted.values())


# -- The firewall ----------------------------------------------------------------------------------


def test_the_defaults_come_out_the_same_however_often_they_run(make: Make) -> None:
    router = make(firewall="fw3")
    for _ in range(3):
        router.run("/etc/uci-defaults/50-pptp-nat")
    settings_made = (router.kept / "var/uci").read_text().splitlines()

    assert 1 == (router.kept / "var/uci.calls").read_text().count("batch")
    assert "firewall.pptp_nat=include" in settings_made
    assert len(settings_made) == len(set(settings_made))


def test_fw4_needs_nothing_of_the_defaults(make: Make) -> None:
    router = make(firewall="fw4")
    router.run("/etc/uci-defaults/50-pptp-nat")

    assert not (router.kept / "var/uci").exists()


def nft_works() -> bool:
    tried = ["unshare", "--net", "nft", "add", "table", "inet", "tried"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def test_our_table_survives_each_way_in_which_fw4_loads_its_rules(make: Make) -> None:
    """A reload, a restart, and a flush with a start behind it; and goes when it is to go.

    The queue statement is swapped for a drop: this kernel's nft may not have it.
    """
    router = make(firewall="fw4")
    if not nft_works():
        pytest.skip("nft cannot make a table here")
    rules = openwrt.ROOT / "rules" / "pptp-nat.nft"
    included = router.kept / "run/pptp-nat/nft.d"
    (router.kept / "var/run").rmdir()
    (router.kept / "var/run").symlink_to("/run")
    included.mkdir(parents=True)
    (included / "pptp-nat.nft").write_text(rules.read_text().replace("queue num 1723", "drop"))
    script = (
        "set -e\n"
        "fw4 start; nft list table ip pptp_nat >/tmp/first\n"
        "fw4 reload; nft list table ip pptp_nat >/tmp/second\n"
        "fw4 flush; ! nft list table ip pptp_nat 2>/dev/null\n"
        "fw4 start; nft list table ip pptp_nat >/tmp/third\n"
        "rm /var/run/pptp-nat/nft.d/pptp-nat.nft; nft delete table ip pptp_nat; fw4 reload\n"
        "! nft list table ip pptp_nat 2>/dev/null\n"
        "nft list table inet fw4 >/dev/null\n"
    )
    router.run("ash", "-c", script)
    lists = [(router.kept / "tmp" / name).read_text() for name in ("first", "second", "third")]

    assert "chain forward" in lists[0]
    assert lists[0] == lists[1] == lists[2]


def test_conflicts_with_fw4_are_told_with_their_remedy(make: Make) -> None:
    router = make(firewall="fw3")  # whose stub needs no kernel; the look is at UCI alone
    (router.root / "etc/config/firewall").write_text(
        "config defaults\n\toption flow_offloading '1'\n"
        "config zone\n\toption name 'lan'\n"
        "config zone\n\toption name 'wan'\n\toption masq '1'\n"
    )
    router.service("start")
    (line,) = router.logged()

    assert line.startswith("daemon.warn flow offloading carries TCP past our rules")
    assert "uci set firewall.@defaults[0].flow_offloading=0" in line


# -- The daemon ------------------------------------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Lab]:
    if why := missing(["iptables", "iptables-restore", "unshare"]):
        pytest.skip(why)
    with Lab(inside=2) as lab:
        yield lab


@pytest.mark.kernel
def test_the_daemon_that_procd_is_told_to_start_carries_calls(make: Make, lab: Lab) -> None:
    """With the generated configuration and the script's rules, which a restart keeps."""
    router = make(firewall="fw3", namespace=lab.router.namespace)
    router.uci.write_text(
        router.uci.read_text() + "\nconfig api\n\toption socket '/tmp/pptp-nat.sock'\n"
    )
    procd = router.service("start")
    assert [] == router.logged()
    (command,) = told(procd, "command")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((router.place / "daemon.log").open("wb"))
        stack.enter_context(router.entered())
        daemon = subprocess.Popen(router.command(*command), stdout=log, stderr=log)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        deadline = time.monotonic() + PATIENCE
        socket = router.kept / "tmp/pptp-nat.sock"
        while router.run("pptp-nat", "status", "--socket", f"/tmp/{socket.name}",
                         check=False).returncode:  # fmt: skip
            assert daemon.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.2)
        with contextlib.closing(Loop()) as loop:
            clients = Clients(lab, loop)
            clients.all_hear(clients.dial())
        assert "PPTP_NAT" in lab.run(lab.router, ["iptables-save"]).stdout
        router.service("restart")
        assert "PPTP_NAT" in lab.run(lab.router, ["iptables-save"]).stdout
        router.service("stop")
        assert "PPTP_NAT" not in lab.run(lab.router, ["iptables-save"]).stdout
