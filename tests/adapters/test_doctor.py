"""The doctor's checks, handed routers that cannot be built here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat import __version__
from pptp_nat.analysis.conntrack_rules import RULES as RULES_OF_TABLES
from pptp_nat.doctor import checks, kernel, openwrt, ours, programs, report, rules
from pptp_nat.doctor.firewall import Chain, Fate, Match, Packet, Rule, chains, fates
from pptp_nat.doctor.model import Judgement, Outcome, worst
from pptp_nat.doctor.router import Router, Saved
from pptp_nat.errors import AdapterError
from pptp_nat.linux import preflight_helper
from pptp_nat.linux import ruleset_iptables_kernel as iptables
from pptp_nat.linux.conntrack_layout import TableRow
from pptp_nat.linux.conntrack_wire import Tuple
from pptp_nat.linux.nfqueue import QueueCounters
from pptp_nat.linux.ruleset import Backend, Pace, RuleSettings
from pptp_nat.linux.ruleset_settings import UNPACED
from tests.core.effort import effort

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/doctor.schema.json").read_text())
STATUS = {"version": __version__, "datapath": "conntrack", "datapath_reason": "probed",
          "started": 0.0, "opaque": 0}  # fmt: skip
CONTROL = TableRow(
    Tuple(6, b"\x0a\0\0\1", 40000, b"\x0a\0\0\2", 1723),
    Tuple(6, b"\x0a\0\0\2", 1723, b"\x0a\0\0\1", 40000),
    True, 6, "ESTABLISHED", 431_000, None, None, 0, None, 1, None,
)  # fmt: skip


OURS = "*filter\n:PPTP_NAT_CONTROL - [0:0]\nCOMMIT\n"
HELPER = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j CT --helper pptp\nCOMMIT\n"


def saved(text: str) -> list[Saved]:
    """Return what a router with these lines of iptables-save has."""
    policies = {("filter", "FORWARD"): "DROP"} if ":FORWARD DROP" in text else {}
    return [Saved("iptables", iptables.parse(text), policies)]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Give a maker of routers: files by path, and everything else that is looked at by name."""
    monkeypatch.setattr(preflight_helper, "loaded", lambda: True)

    def make(files: dict[str, Any] | None = None, **known: Any) -> Router:
        settings = known.pop("settings", RuleSettings())
        status = known.pop("status", dict(STATUS))
        router = Router(settings, status=status, complaint="nobody answers", root=tmp_path)
        for path, text in (files or {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(f"{text}\n")
        known = {"saved": saved(OURS), "nftables": [], "connections": [], "rule_problems": [],
                 **known}  # fmt: skip
        if (queues := known.pop("queues", None)) is not None:
            router.queue = queues.get
        vars(router).update(known)
        return router

    return make


def told(judgements) -> list[tuple[str, str]]:
    """Return check and outcome of each, after a look at the form."""
    found = list(judgements)
    assert found, "every check says something"
    for check, outcome, text, mend in found:
        assert "\n" not in text + mend
        assert bool(mend) == (outcome is not Outcome.PASS)
        assert check in SCHEMA["properties"]["checks"]["items"]["properties"]["check"]["enum"]
    return [(each.check, each.outcome.value) for each in found]


# --- the kernel -----------------------------------------------------------------------------------


def test_a_kernel_that_does_not_know_gres_call_ids(made) -> None:
    """The data path queue works there: a failure only where conntrack was chosen."""
    router = made(gre_complaint=lambda: "it lacks CONFIG_NF_CT_PROTO_GRE", status=None)
    assert [("conntrack_gre", "warn")] == told(kernel.conntrack_gre(router))
    router = made(gre_complaint=lambda: "it lacks CONFIG_NF_CT_PROTO_GRE")
    [said] = kernel.conntrack_gre(router)
    assert said.outcome is Outcome.FAIL
    assert "CONFIG_NF_CT_PROTO_GRE" in said.text
    router = made(gre_complaint=lambda: None)
    assert [("conntrack_gre", "pass")] == told(kernel.conntrack_gre(router))


def test_bpf_programs_that_are_missing_somewhere(made) -> None:
    """Only where they carry calls is that a failure; elsewhere it is worth knowing."""
    works, fails = (lambda: None), (lambda: "loading libbpf.so.1: no")
    assert [("bpf", "pass")] == told(programs.bpf(made(bpf_complaint=works)))
    [said] = programs.bpf(made(bpf_complaint=fails))
    assert (Outcome.PASS, True) == (said.outcome, "libbpf" in said.text)
    used = RuleSettings(datapath="bpf")
    assert [("bpf", "fail")] == told(programs.bpf(made(settings=used, bpf_complaint=fails)))
    for unserved, outcome in ((["wlan0"], "fail"), ([], "pass")):
        router = made(
            settings=used, bpf_complaint=works, programmed=lambda u=unserved: (["wan"], u, [])
        )
        assert [("bpf", outcome)] == told(programs.bpf(router))


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        ("-p gre -m mark --mark 0x40000000/0x40000000 -j ACCEPT", "pass"),
        ("-p gre -m mark --mark 0x1/0xff -j ACCEPT", "warn"),
        ("-p gre -m conntrack --ctstate ESTABLISHED -j ACCEPT", "fail"),
    ],
)
def test_gre_that_programs_have_marked_is_known_by_it(made, rule: str, outcome: str) -> None:
    used = RuleSettings(datapath="bpf")
    table = f"*filter\n:FORWARD DROP [0:0]\n-A FORWARD {rule}\nCOMMIT\n"
    router = made(settings=used, saved=saved(table))
    assert {("firewall_gre", outcome)} == set(told(rules.firewall_gre(router)))


NETFILTER = "proc/sys/net/netfilter/nf_conntrack_"


@pytest.mark.parametrize(
    ("count", "most", "buckets", "expected"),
    [
        (0, 262144, 65536, [("conntrack_room", "pass")]),
        (79, 100, 100, [("conntrack_room", "pass")]),
        (80, 100, 100, [("conntrack_room", "warn")]),
        (98, 100, 100, [("conntrack_room", "fail")]),
        (1000, 262144, 499, [("conntrack_room", "pass"), ("conntrack_buckets", "warn")]),
        (1000, 262144, 500, [("conntrack_room", "pass")]),
        (1000, 262144, "", [("conntrack_room", "pass")]),
        ("", "", "", [("conntrack_room", "warn")]),
    ],
)
def test_room_in_the_conntrack_table(made, count, most, buckets, expected) -> None:
    files = {f"{NETFILTER}count": count, f"{NETFILTER}max": most, f"{NETFILTER}buckets": buckets}
    assert expected == told(kernel.conntrack_room(made(files)))


def test_no_conntrack_at_all(made) -> None:
    """What tells who is inside is missing, or does not answer."""
    assert [("conntrack", "fail")] == told(kernel.conntrack(made()))

    class Mute(Router):
        @property
        def connections(self):
            raise AdapterError("reading the conntrack table", 22)

    router = made({f"{NETFILTER}max": 1})
    mute = Mute(router.settings, root=router.root)
    [said] = kernel.conntrack(mute)
    assert said.outcome is Outcome.FAIL
    assert "kmod-nf-conntrack-netlink" in said.mend


def test_short_timeouts_matter_to_calls_of_the_kernels_helper_alone(made) -> None:
    files = {f"{NETFILTER}gre_timeout_stream": 180}
    helped = [CONTROL._replace(helper="pptp")]
    assert [("gre_timeouts", "pass")] == told(kernel.gre_timeouts(made(files)))
    assert [("gre_timeouts", "warn")] == told(kernel.gre_timeouts(made(files, connections=helped)))
    files = {f"{NETFILTER}gre_timeout_stream": 18000}
    assert [("gre_timeouts", "pass")] == told(kernel.gre_timeouts(made(files, connections=helped)))


@pytest.mark.parametrize(
    ("everywhere", "own", "dropped", "expected"),
    [(1, 0, 500, "warn"), (0, 1, 500, "warn"), (2, 1, 500, "pass"), (0, 2, 500, "pass"),
     (1, 1, 3, "pass"), (0, 0, 500, "pass")],
)  # fmt: skip
def test_reverse_path_filtering(made, everywhere, own, dropped, expected) -> None:
    """The stricter of the two numbers holds (ip-sysctl.rst); 2 is loose."""
    netstat = f"TcpExt: A IPReversePathFilter B\nTcpExt: 1 {dropped} 2\nIpExt: C\nIpExt: 9"
    router = made({
        "proc/sys/net/ipv4/conf/all/rp_filter": everywhere,
        "proc/sys/net/ipv4/conf/wan/rp_filter": own,
        "proc/sys/net/ipv4/conf/lo/rp_filter": 1 if everywhere == 0 else 0,
        "proc/net/netstat": netstat,
    })  # fmt: skip
    assert [("reverse_path", expected)] == told(kernel.reverse_path(router))


def test_a_clock_that_stands_before_our_own_making(made, monkeypatch) -> None:
    """Routers without a battery begin in 1970."""
    assert [("clock", "pass")] == told(kernel.clock(made()))
    monkeypatch.setattr(kernel.time, "time", lambda: 1000.0)
    [said] = kernel.clock(made())
    assert said.outcome is Outcome.WARN
    assert "1970-01-01" in said.text


def test_forwarding_and_accounting(made) -> None:
    router = made({"proc/sys/net/ipv4/ip_forward": 0, f"{NETFILTER}acct": 0})
    assert [("forwarding", "fail")] == told(kernel.forwarding(router))
    assert [("accounting", "warn")] == told(kernel.accounting(router))


# --- ours -----------------------------------------------------------------------------------------

WELL = QueueCounters(7, 0, 0, 0, 12)


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        (WELL, "pass"),
        (WELL._replace(dropped=1), "warn"),
        (WELL._replace(user_dropped=1), "warn"),
        (WELL._replace(waiting=4000), "warn"),
        (WELL._replace(sequence=0), "warn"),
        (None, "fail"),
    ],
)
def test_queues(made, counters, expected) -> None:
    """Full, forgotten, never hit, or listened to by nobody."""
    router = made(queues={1723: counters}, connections=[CONTROL])
    assert [("queue", expected)] == told(ours.queue(router))


def test_a_queue_that_nothing_has_had_time_to_come_to(made) -> None:
    """A control connection is silent for a minute at a time."""
    young = {**STATUS, "started": 1e12}
    router = made(queues={1723: WELL._replace(sequence=0)}, connections=[CONTROL], status=young)
    assert [("queue", "pass")] == told(ours.queue(router))


def test_both_queues_of_the_data_path_queue(made) -> None:
    router = made(queues={1723: WELL, 1724: None}, settings=RuleSettings(datapath="queue"))
    assert [("queue", "pass"), ("queue", "fail")] == told(ours.queue(router))


def test_the_daemon(made) -> None:
    """Not there, of another version, or at a loss."""
    assert [("daemon", "fail")] == told(ours.daemon(made(status=None)))
    old = {**STATUS, "version": "0.0.1"}
    assert [("daemon", "warn"), ("daemon", "pass")] == told(ours.daemon(made(status=old)))
    lost = {**STATUS, "opaque": 2}
    assert [("daemon", "pass"), ("daemon", "warn")] == told(ours.daemon(made(status=lost)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("config zone\n\toption name lan\n", 1),
        ("config zone\n\toption name lan\n\toption auto_helper '0'\n", 0),
        ("config zone\n\toption name wan\n\toption masq '1'\n", 0),
        ("config zone\n\toption name wan\n\toption masq '1'\n\tlist helper 'pptp'\n", 1),
        ("config zone\n\toption name lan\n\tlist helper ftp\n\tlist helper sip\n", 0),
        ("config zone\n\toption name lan\n\tlist helper ftp\n\tlist helper pptp\n", 1),
        ("config defaults\n\toption auto_helper 0\nconfig zone\n\toption name lan\n", 0),
        ("config rule\n\toption name x\n\toption set_helper pptp\n", 1),
        ("# nothing\n", 0),
    ],
)
def test_what_openwrt_is_told_about_helpers(made, text: str, found: int) -> None:
    """As fw4.uc reads it; where the kernel has no pptp helper there is none to attach."""
    assert found == len(openwrt.helper_options(text))
    router = made({"etc/config/firewall": text})
    expected = [("kernel_helper", "warn")] if found else [("kernel_helper", "pass")]
    assert expected == told(ours.kernel_helper(router))


def test_a_helper_that_the_kernel_does_not_have_is_no_warning(made, monkeypatch) -> None:
    monkeypatch.setattr(preflight_helper, "loaded", lambda: False)
    router = made({"etc/config/firewall": "config zone\n\toption name lan\n"})
    assert [("kernel_helper", "pass")] == told(ours.kernel_helper(router))


def test_a_helper_matters_less_where_we_are_not_at_work(made) -> None:
    assert [("kernel_helper", "fail")] == told(ours.kernel_helper(made(saved=saved(HELPER))))
    alone = made(status=None, saved=saved(HELPER))
    assert [("kernel_helper", "warn")] == told(ours.kernel_helper(alone))
    assert [("daemon", "warn")] == told(ours.daemon(alone))
    connected = made(saved=saved(OURS + HELPER), connections=[CONTROL._replace(helper="pptp")])
    assert 2 == len(told(ours.kernel_helper(connected)))


def test_flow_offloading(made) -> None:
    """By a rule it fails; OpenWrt's configuration alone is a warning."""
    text = "config defaults\n\toption flow_offloading '1'\n\toption flow_offloading_hw '0'\n"
    router = made({"etc/config/firewall": text})
    assert [("flow_offload", "warn")] == told(rules.flow_offload(router))
    rule = {"family": "inet", "table": "fw4", "chain": "forward", "handle": 7,
            "expr": [{"flow": {"op": "add", "flowtable": "@ft"}}]}  # fmt: skip
    [said] = rules.flow_offload(made(nftables=[{"rule": rule}]))
    assert said.outcome is Outcome.FAIL
    assert "nftables, table inet fw4, chain forward, handle 7" in said.text


@pytest.mark.parametrize(
    ("chain", "pace", "expected"),
    [
        ("PPTP_NAT_PACE", Pace(), ["pass"]),
        ("PPTP_NAT_GRE_PACE", Pace(), ["pass"]),
        ("PPTP_NAT_CONTROL", Pace(), ["pass", "warn"]),
        ("PPTP_NAT_CONTROL", UNPACED, ["pass"]),
    ],
)
def test_rules_that_hold_back_no_flood_are_told(
    made, chain: str, pace: Pace, expected: list[str]
) -> None:
    """A kernel without xt_hashlimit gets them without a pace, and nobody would notice."""
    table = f"*filter\n:{chain} - [0:0]\nCOMMIT\n"
    router = made(settings=RuleSettings(pace=pace), saved=saved(table), backend=Backend.IPTABLES)
    found = list(ours.rules(router))
    assert [("rules", outcome) for outcome in expected] == told(found)
    assert all("xt_hashlimit" in each.mend for each in found[1:])


def test_rules_that_cannot_be_read_are_a_warning(made) -> None:
    """Old nft ends itself over some sets; then nobody knows what is in there."""
    router = made()
    router.unreadable.append("nft: Assertion failed")
    [said] = ours.kernel_helper(router)
    assert said.outcome is Outcome.WARN
    assert "Assertion failed" in said.text


@effort(150)
@given(st.text())
def test_no_configuration_ends_the_reading(text: str) -> None:
    openwrt.helper_options(text)
    openwrt.offload_options("config defaults\n" + text)


# --- the firewall ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-o wan -j MASQUERADE", "pass"),
        ("-o wan -j SNAT --to-source 198.18.7.1", "pass"),
        ('-m comment --comment "-j MASQUERADE would help" -j ACCEPT', "fail"),
        ("-o wan -j LOG", "fail"),
    ],
)
def test_nat_by_iptables(made, rule: str, expected: str) -> None:
    router = made(saved=saved(f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {rule}\nCOMMIT\n"))
    assert [("nat", expected)] == told(rules.nat(router))


def test_nat_by_nftables(made) -> None:
    rule = {"family": "inet", "table": "fw4", "chain": "srcnat_wan", "expr": [{"masquerade": None}]}
    assert [("nat", "pass")] == told(rules.nat(made(nftables=[{"rule": rule}])))


GRE = Packet("GRE", 47, "established", arrives=frozenset({"wan"}), leaves=frozenset({"lan", "dmz"}))


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        ("", Match.YES),
        ("-p gre", Match.YES), ("-p 47", Match.YES), ("! -p gre", Match.NO), ("-p all", Match.YES),
        ("-p tcp --dport 1723", Match.NO), ("! -p tcp", Match.YES),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", Match.YES),
        ("-m conntrack ! --ctstate INVALID", Match.YES), ("-m state --state NEW", Match.NO),
        ("-m conntrack --ctstate DNAT", Match.MAYBE),
        ("-i wan", Match.YES), ("-i lan", Match.NO), ("! -i wan", Match.NO), ("-i w+", Match.YES),
        ("-o lan", Match.MAYBE), ("-o dmz -p gre", Match.MAYBE), ("-o ppp+", Match.NO),
        ("-s 10.0.0.0/8", Match.MAYBE), ("-m mark --mark 0x1/0x1", Match.MAYBE),
        ('-m comment --comment "-p tcp drop"', Match.YES),
        ("-p tcp -m tcp --tcp-flags SYN,RST SYN", Match.NO),
        ("-m limit --limit 5/sec", Match.MAYBE), ("-p unheard-of", Match.MAYBE),
        ('-m comment --comment "unfinished', Match.MAYBE),
    ],
)  # fmt: skip
def test_what_an_iptables_rule_matches(made, rule: str, match: Match) -> None:
    text = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {rule} -j DROP\nCOMMIT\n"
    [chain] = chains(made(saved=saved(text)), GRE)
    [judged] = chain.rules["FORWARD"]
    assert (match, "drop") == (judged.match, judged.verdict)


RULES = st.builds(
    Rule,
    st.sampled_from(Match),
    st.sampled_from(["accept", "drop", "return", "go", "goto", ""]),
    st.sampled_from(["a", "b", "c", "nowhere"]),
    st.booleans(),
    st.just("rule"),
)
TABLES = st.dictionaries(st.sampled_from("abc"), st.lists(RULES, max_size=5))


@effort(150)
@given(TABLES, st.sampled_from(["accept", "drop"]))
def test_a_walk_comes_to_an_end_whatever_the_rules(table, policy) -> None:
    """Chains that call each other in rings, chains that are not there."""
    assert fates(Chain("test", table, "a", policy))


def run_packet(table, policy: str, choices) -> bool:
    """Return whether one packet is dropped: what a kernel does, one rule after the other."""

    def walk(name: str, depth: int) -> bool | None:
        for rule in table.get(name, ()):
            matches = rule.match is Match.YES or (rule.match is Match.MAYBE and next(choices))
            if not matches:
                continue
            if rule.verdict in ("accept", "drop"):
                return rule.verdict == "drop"
            if rule.verdict == "return":
                return None
            if rule.verdict in ("go", "goto") and depth < 4:
                verdict = walk(rule.target, depth + 1)
                if verdict is not None or rule.verdict == "goto":
                    return verdict
        return None

    verdict = walk("a", 0)
    return policy == "drop" if verdict is None else verdict


@effort(150)
@given(TABLES, st.sampled_from(["accept", "drop"]), st.data())
def test_no_packet_meets_a_fate_that_the_walk_did_not_find(table, policy, data) -> None:
    """Whichever of the conditions hold: an independent, single-minded kernel is the oracle."""
    levels = {"a": 0, "b": 1, "c": 2, "nowhere": 3}
    acyclic = {
        name: [
            rule for rule in rules
            if rule.verdict not in ("go", "goto") or levels[rule.target] > levels[name]
        ]
        for name, rules in table.items()
    }
    choices = iter(lambda: data.draw(st.booleans()), None)

    dropped = run_packet(acyclic, policy, choices)

    found = fates(Chain("test", acyclic, "a", policy))
    assert dropped in {fate.drop for fate in found}


@effort(150)
@given(st.lists(st.text(max_size=60), max_size=4))
def test_no_listing_of_iptables_ends_the_doctor(lines) -> None:
    text = "*filter\n:FORWARD DROP [0:0]\n" + "".join(f"-A FORWARD {line}\n" for line in lines)
    router = Router(RuleSettings(), root=Path("/nowhere"))
    vars(router).update(saved=saved(text), nftables=[])
    for chain in chains(router, GRE):
        assert fates(chain)


def test_our_own_rules_and_other_families_are_left_alone(made) -> None:
    objects = [
        {"chain": {"family": family, "table": table, "name": "forward", "type": "filter",
                   "hook": "forward", "policy": "drop"}}
        for family, table in (("ip", "pptp_nat"), ("ip6", "filter"), ("arp", "x"))
    ]  # fmt: skip
    assert [] == list(chains(made(saved=[], nftables=objects), GRE))
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p gre -j PPTP_NAT_STRAY\n"
    text += "-A PPTP_NAT_STRAY -j DROP\nCOMMIT\n"
    [chain] = chains(made(saved=saved(text)), GRE)
    assert [Fate(False, False, "iptables filter FORWARD: policy accept")] == fates(chain)


# --- all together ---------------------------------------------------------------------------------


def test_a_check_that_cannot_look_says_so_and_the_others_go_on(made, monkeypatch) -> None:
    """One broken tool must not hide what else is wrong."""

    def refuse(router: Router):
        raise AdapterError("reading the iptables rules", 1, mend="be root")
        yield

    table = {"nat": (refuse, True), "clock": (kernel.clock, False)}
    monkeypatch.setattr(checks, "CHECKS", table)
    assert [("nat", "warn"), ("clock", "pass")] == [
        (each.check, each.outcome.value) for each in checks.examine(made())
    ]


def test_without_rights_only_what_needs_none_is_looked_at(made, monkeypatch) -> None:
    table = {"nat": (rules.nat, True), "clock": (kernel.clock, False)}
    monkeypatch.setattr(checks, "CHECKS", table)
    router = made({"proc/self/status": "CapEff:\t0000000000000000"})
    assert [("privileges", "warn"), ("clock", "pass")] == told(checks.examine(router))


def test_a_daemon_that_is_not_there_is_a_warning_to_who_may_not_look_further(made) -> None:
    """The kernel's helper may be at work: an ordinary user cannot know."""

    class Blind(Router):
        @property
        def connections(self):
            raise AdapterError("reading the conntrack table", 1)

    blind = Blind(RuleSettings(), complaint="nobody answers", root=made().root)
    vars(blind).update(saved=[], nftables=[])
    assert [("daemon", "warn")] == told(ours.daemon(blind))


def test_json_is_what_the_schema_says(made) -> None:
    """docs/doctor.schema.json is a promise to other tools."""
    found = [
        Judgement("nat", Outcome.FAIL, "none", "make some"),
        *checks.examine(made(queues={}, gre_complaint=lambda: None, wan=set())),
    ]
    jsonschema.validate(json.loads(report.as_json(found)), SCHEMA)
    named = set(SCHEMA["properties"]["checks"]["items"]["properties"]["check"]["enum"])
    assert set(checks.CHECKS) <= named
    assert worst(found) is Outcome.FAIL


def test_a_line_does_no_harm_to_a_terminal() -> None:
    """Servers choose their names, and files hold anything."""
    said = Judgement("server_start", Outcome.PASS, "the server calls itself '\x1b[2J\n'")
    assert "PASS server_start: the server calls itself '?[2J?'" == report.line(said)
    assert "0 passed, 1 with a warning, 0 failed" == report.summary(
        [Judgement("nat", Outcome.WARN, "x", "y")]
    )


def test_mends_name_commands_that_shells_can_read(made) -> None:
    """What is to be typed must be typable."""
    for each in checks.examine(made(queues={}, gre_complaint=lambda: "no", status=None)):
        shlex.split(each.mend.replace("'", ""))


def test_the_checks_and_rules_that_errors_are_put_down_to_are_ours() -> None:
    """The guide's table of error numbers names what there is to find, and no more."""
    page = Path(__file__).parents[2] / "docs/guides/troubleshooting.md"
    rows = re.findall(r"^\| ([\d, ]+) \([^)]*\) \|(.*) \|$", page.read_text(), re.MULTILINE)
    found = set(SCHEMA["properties"]["checks"]["items"]["properties"]["check"]["enum"])
    found |= {rule.slug for rule in RULES_OF_TABLES}

    assert {"800", "868", "806", "807", "619", "691", "734"} == {
        number for numbers, _ in rows for number in numbers.split(", ")
    }
    assert {name for _, cells in rows for name in re.findall(r"`(\w+)`", cells)} <= found
