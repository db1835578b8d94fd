"""The start-up checks, handed the text of routers that cannot be built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pptp_nat.errors import AdapterError
from pptp_nat.linux import preflight, preflight_helper
from pptp_nat.linux.nfqueue import QueueCounters
from pptp_nat.linux.preflight import Severity
from pptp_nat.linux.ruleset import RuleSettings
from pptp_nat.linux.ruleset_iptables_kernel import parse

SETTINGS = RuleSettings()
PORTS = (1723, 1799)


@pytest.mark.parametrize(
    ("effective", "refused"),
    [("0000003fffffffff", 0), ("0000000000001000", 0), ("0000003fffffefff", 1), ("0" * 16, 1)],
)
def test_without_cap_net_admin_nothing_can_be_done(effective: str, refused: int) -> None:
    """Root in a container may lack it, and a service need not be root to have it."""
    status = f"Name:\tpython3\nCapPrm:\t0000003fffffffff\nCapEff:\t{effective}\n"

    assert refused == len(list(preflight.privileges(status)))


def test_a_router_that_does_not_route_is_warned_of() -> None:
    """The first thing that a new router lacks."""
    assert Severity.WARN is next(preflight.forwarding("0\n")).severity
    assert [] == list(preflight.forwarding("1\n"))
    assert [] == list(preflight.forwarding(None))


def test_calls_without_counters_are_noted() -> None:
    """Idle calls are found by counters."""
    assert Severity.NOTE is next(preflight.accounting("0\n")).severity
    assert [] == list(preflight.accounting("1\n"))


INITIAL = preflight.INITIAL_USER_NAMESPACE
WHOLE = "         0          0 4294967295\n"


@pytest.mark.parametrize(
    ("uid_map", "inode", "release", "severity"),
    [
        (WHOLE, INITIAL, "7.1.0", None),
        (None, INITIAL, "7.1.0", None),
        ("0 1000 1\n", 4026532000, "6.18.44-x", Severity.NOTE),
        (WHOLE, 4026532000, "7.0.9", Severity.NOTE),
        (WHOLE, 4026532000, "7.1.0-rc1", Severity.REFUSE),
        ("0 100000 65536\n", 4026532000, "7.2", Severity.REFUSE),
        ("0 100000 65536\n", 4026532000, "10.0", Severity.REFUSE),
    ],
)
def test_user_namespaces_are_told(
    uid_map: str | None, inode: int, release: str, severity: Severity | None
) -> None:
    """From Linux 7.1 on the verdict with a changed packet fails there, for every packet."""
    found = list(preflight.user_namespace(uid_map, inode, release))

    assert ([] if severity is None else [severity]) == [finding.severity for finding in found]


@pytest.mark.parametrize(
    ("sysctl", "loaded", "severity"),
    [
        (None, True, None),
        ("0\n", True, None),
        ("1\n", True, Severity.REFUSE),
        ("1\n", None, Severity.REFUSE),
        ("1\n", False, Severity.WARN),
    ],
)
def test_kernels_that_attach_helpers_unasked_are_found(
    sysctl: str | None, loaded: bool | None, severity: Severity | None  # noqa: FBT001 - a column
) -> None:
    """The default before 4.7, and settable until 6.0."""
    found = list(preflight.automatic_helper(sysctl, SETTINGS, loaded=loaded))

    assert ([] if severity is None else [severity]) == [finding.severity for finding in found]
    other_ports = RuleSettings(ports=(1799,))
    assert [] == list(preflight.automatic_helper(sysctl, other_ports, loaded=loaded))


def test_whether_the_helper_is_loaded_is_read_from_sysfs_and_the_list_of_builtins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that is built in has no directory in /sys/module."""
    monkeypatch.setattr("os.uname", lambda: type("Uname", (), {"release": "5.4.0"}))
    modules, libraries = tmp_path / "module", tmp_path / "lib"

    assert preflight_helper.loaded(modules, libraries) is None
    (libraries / "5.4.0").mkdir(parents=True)
    builtin = libraries / "5.4.0" / "modules.builtin"
    builtin.write_text("kernel/net/netfilter/nf_nat_pptp.ko\n")
    assert preflight_helper.loaded(modules, libraries) is False
    builtin.write_text("kernel/net/netfilter/nf_conntrack_pptp.ko\n")
    assert preflight_helper.loaded(modules, libraries) is True
    builtin.unlink()
    (modules / "nf_conntrack_pptp").mkdir(parents=True)
    assert preflight_helper.loaded(modules, libraries) is True


def test_without_conntrack_the_daemon_must_not_start(tmp_path: Path) -> None:
    """Nobody could say who is inside."""
    found = list(preflight.conntrack(SETTINGS, limit=tmp_path / "nf_conntrack_max"))

    assert [Severity.REFUSE] == [finding.severity for finding in found]
    assert "load nf_conntrack" in found[0].text


def test_a_kernel_without_ctnetlink_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenWrt packs it apart."""

    def refuse(*_: object, **__: object) -> Any:
        raise AdapterError("listing control connections in conntrack", 22)

    monkeypatch.setattr(preflight, "helped", refuse)
    found = list(preflight.conntrack(SETTINGS, limit=tmp_path))

    assert [Severity.REFUSE] == [finding.severity for finding in found]
    assert "kmod-nf-conntrack-netlink" in found[0].text


@pytest.mark.parametrize(
    ("rule", "attached"),
    [
        ("-p tcp -m tcp --dport 1723 -j CT --helper pptp", True),
        ("-p tcp -m multiport --dports 21,1700:1800 -j CT --helper pptp", True),
        ("-p tcp -m multiport --ports 1799 -j CT --helper pptp", True),
        ("-p tcp -j CT --helper pptp", True),
        ("-p tcp -m tcp ! --dport 21 -j CT --helper pptp", True),
        ('-m comment --comment "their \'pptp\'" -j CT --ctevents new --helper pptp', True),
        ("-p tcp -m tcp --dport pptp -j CT --helper pptp", True),
        ("-p tcp -m tcp --dport 1724 -j CT --helper pptp", False),
        ("-p tcp -m tcp --dport 21 -j CT --helper ftp", False),
        ("-p tcp -m helper --helper pptp -j ACCEPT", False),
        ("-p tcp -m tcp --dport 1723 -j CT --notrack", False),
        ('-m comment --comment "it\'s --helper pptp" -j ACCEPT', False),
        ("-p tcp -m tcp --dport 1723 -j CT --helper", False),
    ],
)
def test_iptables_rules_that_attach_the_helper_are_found(rule: str, attached: bool) -> None:  # noqa: FBT001 - a column
    """Never translate twice.  What cannot be read counts as ours."""
    saved = parse(f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n")

    found = list(preflight_helper.assigned_by_iptables(saved, PORTS))

    assert attached == bool(found)
    assert all(where.startswith("raw PREROUTING: ") for where in found)


HELPER = {"ct helper": {"family": "inet", "table": "fw4", "name": "pptp-std", "type": "pptp"}}


def rule(*expression: dict[str, Any], table: str = "fw4") -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": table, "chain": "helper_lan", "handle": 7,
                     "expr": list(expression)}}  # fmt: skip


def dport(right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "right": right,
                      "left": {"payload": {"protocol": "tcp", "field": "dport"}}}}  # fmt: skip


SET = {"ct helper": "pptp-std"}


@pytest.mark.parametrize(
    ("objects", "attached"),
    [
        ([HELPER, rule(dport(1723), SET)], True),
        ([HELPER, rule(dport({"set": [21, 1799]}), SET)], True),
        ([HELPER, rule(dport({"set": [21, {"range": [1700, 1800]}]}), SET)], True),
        ([HELPER, rule(dport({"range": [1, 2000]}), SET)], True),
        ([HELPER, rule(dport("@ports"), SET)], True),
        ([HELPER, rule(dport(1723, "!="), SET)], True),
        ([HELPER, rule(SET)], True),
        ([HELPER, rule({"ct helper": {"map": {"data": {"set": [[1723, "pptp-std"]]}}}})], True),
        ([HELPER, rule({"ct helper": {"map": {"data": "@helpers"}}})], True),
        ([HELPER], False),
        ([HELPER, rule(dport(21), SET)], False),
        ([HELPER, rule(dport({"set": [21, {"range": [2000, 3000]}]}), SET)], False),
        ([HELPER, rule(dport(1723), SET, table="another")], False),
        ([HELPER, rule(dport(1723), {"ct helper": "ftp-std"})], False),
        ([rule(dport(1723), SET)], False),
        ([], False),
    ],
)
def test_nftables_rules_that_attach_the_helper_are_found(
    objects: list[dict[str, Any]], attached: bool  # noqa: FBT001 - a column
) -> None:
    """As OpenWrt's fw4 and firewalld write them."""
    found = list(preflight_helper.assigned_by_nftables(objects, PORTS))

    assert (["table inet fw4, chain helper_lan, handle 7"] if attached else []) == found


def l4proto(right: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": right}}


FLOW = {"flow": {"op": "add", "flowtable": "@ft"}}


@pytest.mark.parametrize(
    ("objects", "offloaded"),
    [
        ([rule(l4proto({"set": ["tcp", "udp"]}), FLOW)], True),
        ([rule(l4proto("tcp"), FLOW)], True),
        ([rule(FLOW)], True),
        ([rule(l4proto("udp"), FLOW)], False),
        ([rule(dport(1723), {"accept": None})], False),
    ],
)
def test_offloaded_control_connections_are_found(
    objects: list[dict[str, Any]], offloaded: bool  # noqa: FBT001 - a column
) -> None:
    """An offloaded connection passes FORWARD no more: its later messages stay untranslated."""
    assert offloaded == bool(list(preflight_helper.offloaded_by_nftables(objects)))


def test_offloading_by_iptables_is_found() -> None:
    """OpenWrt's fw3."""
    saved = parse("*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j FLOWOFFLOAD --hw\n")

    assert 1 == len(list(preflight_helper.offloaded_by_iptables(saved)))


def test_findings_are_one_line_each() -> None:
    """They are printed as they are, by the daemon and by `pptp-nat doctor`."""
    found = [
        *preflight.privileges("CapEff:\t0\n"),
        *preflight.forwarding("0"),
        *preflight.accounting("0"),
        *preflight.user_namespace("0 1 1", 1, "7.1"),
        *preflight.user_namespace("0 1 1", 1, "6.1"),
        *preflight.automatic_helper("1", SETTINGS, loaded=True),
        *preflight.automatic_helper("1", SETTINGS, loaded=False),
    ]

    assert 7 == len(found)
    assert not [finding for finding in found if "\n" in finding.text]


def test_each_workers_queue_must_be_free() -> None:
    """Two programs bound to one queue would each refuse the other's verdicts."""
    bound = {1723: None, 1725: QueueCounters(77, 0, 0, 0, 0)}

    found = list(preflight.bound_queues(RuleSettings(workers=3), bound.get))

    assert [Severity.REFUSE] == [finding.severity for finding in found]
    assert found[0].text.startswith("queue 1725 is bound already")
