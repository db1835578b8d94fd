"""The command line: what scripts rely on, and errors that say what to do."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from pptp_nat import __version__, cli, config
from pptp_nat.errors import AdapterError, UsageError
from pptp_nat.tables import packed, rendering, table
from pptp_nat.tables.table import (
    CallRow,
    ConnectionRow,
    ControlEnds,
    Count,
    End,
    Filter,
    Result,
    Side,
)

from .packed_rows import packed_answer, packed_connections_answer
from .threaded_daemon import ThreadedDaemon

KERNEL_LIBRARIES = ("pyroute2", "netfilterqueue", "scapy", "prometheus_client")
COMMANDS = (
    "run", "status", "list", "connections", "events", "top", "debug", "clear", "rules", "analyze",
    "monitor", "conntrack", "doctor", "demo", "completion",
)  # fmt: skip


def row(number, client, state="up"):
    return CallRow(
        id=number,
        state=state,
        role="PNS",
        direction="outgoing",
        inside=Side(client, 1),
        external=Side("198.18.7.1", 1000 + number),
        remote=Side("198.18.7.2", 101),
        control=ControlEnds(client, 40000, "198.18.7.2", 1723),
        created=1000.0,
        up_since=1000.25 if state == "up" else None,
        setup_seconds=0.25 if state == "up" else None,
        last_seen=None,
        to_remote=Count(1, 52),
        to_inside=Count(2, 104),
        mark=0,
        result=Result(1, "Connected"),
        connection=number,
        cause=None,
    )


CALLS = [row(1, "192.168.77.20"), row(2, "192.168.77.3"), row(3, "192.168.77.3", "requested")]
CONNECTION = ConnectionRow(
    1, "open", End("192.168.77.20", 40000, "alice", None), End("198.18.7.2", 1723),
    "originator", opaque=False, passive=None, calls=1, age=10.0, echo_age=None,
    echo_seconds=None, echo_by=None,
)  # fmt: skip
STATUS = {
    "version": "9.9",
    "pid": 1,
    "started": 1000.0,
    "datapath": "queue",
    "datapath_reason": "it was asked for",
    "queues": [
        {"queue": 1723, "purpose": "control", "bound": True, "waiting": 0, "dropped": 0,
         "user_dropped": 0},
    ],
    "calls": {"up": 2, "requested": 1},
    "connections": {"open": 3},
    "opaque": 0,
    "api": {"clients": 1, "subscribers": 0, "refused": 0, "dropped": 0, "garbled": 0},
}  # fmt: skip


class Daemon(ThreadedDaemon):
    """Answers from the rows above and notes what it was asked."""

    def __init__(self, path):
        self.status = STATUS
        self.columns = packed.COLUMNS
        self.age = 0.0  # of what is counted, seconds
        self.is_fresh = False
        self.asked = []
        super().__init__(path, self.look_up)

    def look_up(self, request):
        self.asked.append((request.do, dict(request.arguments)))
        if request.do == "status":
            return self.status
        if request.do == "connections":
            return packed_connections_answer([CONNECTION])
        if request.do == "broken":
            return [{}]
        asked = dict(request.arguments)
        is_packed, self.is_fresh = asked.pop("packed", False), asked.pop("fresh", False)
        which = Filter.of(asked)
        rows = [each for each in CALLS if which.matches(each)]
        if request.do != "list":
            return {"cleared": len(rows)}
        assert is_packed
        return packed_answer(rows, self.columns, self.age)


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon whose loop runs in a thread."""
    with contextlib.closing(Daemon(tmp_path / "s")) as daemon:
        yield daemon


@pytest.fixture
def run(daemon, capsys):
    """Run a command against that daemon; give its exit code, output and complaints."""

    def run(command, *arguments):
        code = cli.main([command, "--socket", str(daemon.path), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_list_shows_a_line_per_call_by_client(run, monkeypatch) -> None:
    """And their number beside the output, as conntrack does."""
    monkeypatch.setattr("time.time", lambda: 1031.0)
    code, out, err = run("list")

    assert code == 0
    assert [rendering.call_line(CALLS[n], 1031.0) for n in (1, 2, 0)] == out.splitlines()
    assert [line.rpartition("=")[2] for line in out.splitlines()] == ["2", "3", "1"]
    assert err == f"pptp-nat {__version__}: 3 calls have been shown.\n"


def test_list_as_json_is_one_array_in_the_same_order(run) -> None:
    """For jq and the like; nothing but JSON on standard output, nothing beside it."""
    code, out, err = run("list", "-o", "json")

    assert code == 0
    assert [table.call_json(CALLS[n]) for n in (1, 2, 0)] == json.loads(out)
    assert err == ""


@pytest.mark.parametrize("output", ["extended", "xml"])
def test_list_has_all_its_formats(run, output) -> None:
    """Each names every call."""
    code, out, _ = run("list", "--output", output)

    assert code == 0
    assert out.count("192.168.77.20") >= 2


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], {}),
        (["--state", "UP"], {"state": "up"}),
        (["--client", "192.168.77.3"], {"client": "192.168.77.3"}),
        (["--server", "198.18.7.2"], {"server": "198.18.7.2"}),
        (["--call-id", "1001"], {"call_id": 1001}),
        (["--call-id", "0x3e9"], {"call_id": 1001}),
        (["--call-id", "0"], {"call_id": 0}),
        (["--fresh"], {"fresh": True}),
    ],
)
def test_list_asks_the_daemon_for_what_is_wanted(run, daemon, arguments, asked) -> None:
    """A hundred thousand calls need not cross the socket to show one."""
    assert run("list", *arguments)[0] == 0
    assert [("list", {"packed": True, **asked})] == daemon.asked


def test_counts_that_are_old_are_called_so(run, daemon) -> None:
    """Those of a hundred thousand calls are not read for every list."""
    daemon.age = 45.5
    _, _, err = run("list")

    assert err.endswith("have been shown. Their GRE was counted 45 s ago; --fresh counts anew.\n")


def test_a_daemon_with_other_columns_is_not_understood(run, daemon) -> None:
    """It was not started anew after an upgrade."""
    daemon.columns = packed.COLUMNS[1:]
    code, out, err = run("list")

    assert (code, out) == (1, "")
    assert "other columns" in err


def test_list_watches_until_it_is_interrupted(run, monkeypatch) -> None:
    """Ctrl-C is the way to end it and no failure worth a word."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    code, out, err = run("list", "--watch")

    assert (code, err) == (130, "")
    assert pauses == [2.0, 2.0, 2.0]
    assert len(out.splitlines()) == 3 * len(CALLS) + 2  # a blank line between


def test_watching_on_a_terminal_begins_with_a_clear_screen(run, monkeypatch) -> None:
    """The table stands still and its numbers move."""

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, _ = run("list", "--watch", "0.5")

    assert out.startswith("\x1b[H\x1b[2J")


def test_connections_shows_who_is_inside(run) -> None:
    """And what the ends call themselves."""
    code, out, err = run("connections")

    assert code == 0
    assert 'inside=originator calls=1 src_host="alice" id=1' in out
    assert err == f"pptp-nat {__version__}: 1 control connection has been shown.\n"


def test_connections_as_json(run) -> None:
    """One array."""
    _, out, _ = run("connections", "-o", "json")

    assert [table.connection_item(CONNECTION)] == json.loads(out)


def test_status_is_good_while_the_queues_are_bound(run) -> None:
    """A service manager's readiness check."""
    code, out, err = run("status")

    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        "data path queue: it was asked for",
        "queue 1723 (control) bound waiting=0 dropped=0 user_dropped=0",
        "calls 3 up=2 requested=1",
        "control connections 3 open=3 opaque=0",
        "socket clients=1 subscribers=0 refused=0 dropped=0 garbled=0",
    ]


@pytest.mark.parametrize("output", ["text", "json"])
def test_status_fails_while_a_queue_is_not_bound(run, daemon, output) -> None:
    """An answering daemon without its packets is no use."""
    daemon.status = {**STATUS, "queues": [{**STATUS["queues"][0], "bound": False}]}
    code, out, err = run("status", "-o", output)

    assert code == 1
    assert out
    assert err.startswith("pptp-nat: the daemon is not bound to queue 1723: ")


def test_status_as_json_is_what_the_daemon_said(run) -> None:
    """Keys that a newer daemon adds are not lost."""
    _, out, _ = run("status", "-o", "json")

    assert json.loads(out) == STATUS


def test_an_answer_of_another_version_is_told(run, daemon) -> None:
    """After an upgrade the daemon may still be the old one."""
    daemon.status = {"version": "0.0"}
    code, _, err = run("status")

    assert code == 1
    assert "use the pptp-nat of the daemon's own version" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "asked", "said"),
    [
        (["2"], {"call": 2}, "1 call cleared\n"),
        (["--client", "192.168.77.3"], {"client": "192.168.77.3"}, "2 calls cleared\n"),
        (["--server", "198.18.7.2"], {"server": "198.18.7.2"}, "3 calls cleared\n"),
    ],
)
def test_clear_says_how_many(run, daemon, arguments, asked, said) -> None:
    """By the id that list shows, or by host."""
    assert run("clear", *arguments) == (0, said, "")
    assert [("clear", asked)] == daemon.asked


def test_clearing_nothing_fails(run) -> None:
    """A script that clears must notice that it did not."""
    code, out, err = run("clear", "77")

    assert (code, out) == (1, "")
    assert err == "pptp-nat: no call matches; `pptp-nat list` shows those that there are\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["list", "--state", "x"],
        ["list", "--client", "host.example"],
        ["list", "--client", ""],
        ["list", "--call-id", "65536"],
        ["list", "--call-id", "-1"],
        ["list", "--call-id", "0xg"],
        ["list", "--watch", "0"],
        ["list", "--watch", "nan"],
        ["list", "--watch", "x"],
        ["list", "-o", "csv"],
        ["list", "--stat", "up"],
        ["list", "extra"],
        ["events", "--types", "new,dance"],
        ["events", "--types", ""],
        ["events", "--count", "0"],
        ["events", "--for", "2d"],
        ["events", "--for", "0s"],
        ["events", "--call", "x"],
        ["top", "--interval", "0"],
        ["debug"],
        ["debug", "somebody"],
        ["debug", "7", "--mask", "gre,dance"],
        ["debug", "7", "--rate", "0"],
        ["debug", "7", "--for", "1w"],
        ["clear"],
        ["clear", "x"],
        ["clear", "1", "--client", "1.2.3.4"],
        ["clear", "--client", "1.2.3.4", "--server", "1.2.3.4"],
        ["rules"],
        ["rules", "mend"],
        ["rules", "show", "--backend", "ipfw"],
        ["run", "--datapath", "ebpf"],
        ["demo", "--clients", "0"],
        ["demo", "--clients", "many"],
    ],
)
def test_a_wrong_use_is_one_line_and_2(arguments, capsys) -> None:
    """It says what, and where to read on."""
    assert cli.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pptp-nat")
    assert "; see `pptp-nat" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(command, capsys) -> None:
    """And every command knows --socket."""
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out

    assert "example:\n" in out
    assert f"pptp-nat {command}" in out.partition("example:\n")[2]
    assert "--socket PATH" in out


def test_help_names_the_commands_that_exist(capsys) -> None:
    """And no others."""
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out

    shown = [line.split()[0] for line in out.partition("COMMAND\n")[2].splitlines()
             if line.startswith("    ") and not line.startswith("     ")]  # fmt: skip
    assert list(COMMANDS) == shown


def test_version(capsys) -> None:
    """For bug reports."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pptp-nat {__version__}\n"


def test_the_default_socket_is_the_daemons(capsys, monkeypatch) -> None:
    """Two constants, one path."""
    asked = []
    monkeypatch.setattr("pptp_nat.api.ask", lambda path, _request: asked.append(path) or STATUS)
    cli.main(["status"])

    assert asked == [config.DEFAULT_SOCKET]


def test_no_daemon_is_one_line_and_1(tmp_path, capsys) -> None:
    """The commonest error."""
    path = tmp_path / "none"
    for command in (["status"], ["list"], ["connections"], ["events"], ["clear", "1"]):
        assert cli.main([*command, "--socket", str(path)]) == 1
        assert capsys.readouterr().err == (
            f"pptp-nat: no daemon answers on {path}: is `pptp-nat run` up? "
            "Another socket is named with --socket\n"
        )


@pytest.mark.parametrize("arguments", [["list", "--help"], ["list", "--socket", "/none"],
                                       ["run", "--check-config", "--config", "/dev/null"]])
def test_a_question_costs_no_kernel_library(arguments) -> None:
    """Pptp-nat list runs every few seconds on small routers."""
    program = (
        "import sys; from pptp_nat.cli import main; main(sys.argv[1:]); "
        f"print([name for name in {KERNEL_LIBRARIES} if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )

    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["argparse", "pptp_nat.cli", "pptp_nat.commands.analyze"])
def test_a_command_is_interrupted_without_a_word_wherever_it_is(module: str) -> None:
    """Ctrl-C comes also while modules are loaded."""
    program = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from pptp_nat.__main__ import main
sys.exit(main())
"""
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, "analyze", "/dev/null"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode in (-signal.SIGINT, 130)
    assert ended.stderr == ""


def test_a_reader_that_has_seen_enough_ends_quietly(daemon) -> None:
    """Pptp-nat list | head -1."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "pptp_nat", "list", "-o", "json", "--socket", str(daemon.path)],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_told(daemon) -> None:
    """Half a table in a file is a wrong table."""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = subprocess.run(
            [sys.executable, "-m", "pptp_nat", "list", "-o", "json", "--socket", str(daemon.path)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert ended.returncode == 1
    assert ended.stderr == "pptp-nat: output: No space left on device\n"


def test_check_config_says_good(tmp_path, capsys) -> None:
    """Before a restart, in a package's tests, in a reload script."""
    path = tmp_path / "c.toml"
    path.write_text("control.queue = 7")

    assert cli.main(["run", "--config", str(path), "--check-config"]) == 0
    assert capsys.readouterr().out == f"{path}: good\n"


def test_check_config_says_all_that_is_wrong(tmp_path, capsys) -> None:
    """The file's mistakes and the command line's."""
    path = tmp_path / "c.toml"
    path.write_text("control.queue = -7\ncontrol.quee = 1\n")
    code = cli.main(["run", "--config", str(path), "--check-config", "--metrics", "x"])
    captured = capsys.readouterr()

    assert (code, captured.out) == (2, "")
    assert [line.partition(";")[0] for line in captured.err.splitlines()] == [
        f"{path}: control.queue: -7 is out of range",
        f"{path}: control.quee: no such key",
        'command line: metrics.listen: "x" has no address to listen on',
    ]


def test_without_a_file_the_defaults_are_good(tmp_path, capsys, monkeypatch) -> None:
    """The usual file is looked for, and its absence is no error."""
    monkeypatch.setattr("pptp_nat.commands.run.DEFAULT_FILE", tmp_path / "none")
    assert cli.main(["run", "--check-config"]) == 0
    assert capsys.readouterr().out == "built-in defaults: good\n"

    (tmp_path / "usual").write_text("x = 1")
    monkeypatch.setattr("pptp_nat.commands.run.DEFAULT_FILE", tmp_path / "usual")
    assert cli.main(["run", "--check-config"]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'usual'}: x: no such section")


class Recorder:
    """Stands in for a module of the package that needs a kernel."""

    def __init__(self, **returns):
        self.calls = []
        self.returns = returns

    def __getattr__(self, name):
        def note(*arguments, **options):
            self.calls.append((name, arguments, options))
            found = self.returns.get(name)
            if isinstance(found, BaseException):
                raise found
            return found

        return note


def test_run_hands_its_configuration_to_the_daemon(tmp_path, monkeypatch) -> None:
    """With the file's path and the overrides, so that a reload finds both again."""
    daemon = Recorder(run_daemon=0)
    monkeypatch.setitem(sys.modules, "pptp_nat.daemon", daemon)
    path = tmp_path / "c.toml"
    path.write_text("limits.calls = 5")
    code = cli.main(
        ["run", "--config", str(path), "--socket", "/tmp/s", "--state-dir", "/tmp/d",
         "--metrics", "off", "--datapath", "queue", "--rules", "apply"]
    )  # fmt: skip
    overrides = {
        "api.socket": "/tmp/s",
        "state.directory": "/tmp/d",
        "metrics.listen": "off",
        "gre.datapath": "queue",
        "rules.manage": "apply",
    }

    assert code == 0
    [(_, (loaded, its_path, its_overrides), _)] = daemon.calls
    assert its_path == path
    assert {key: str(value) for key, value in its_overrides.items()} == overrides
    assert config.load(path, overrides) == loaded
    assert loaded.limits.calls == 5


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AdapterError("binding queue 1723", errno.EPERM, mend="be root"),
         "pptp-nat: binding queue 1723: Operation not permitted (errno 1); be root\n"),
        (UsageError("a; b"), "pptp-nat: a; b\n"),
        (ModuleNotFoundError("x", name="netfilterqueue"),
         "pptp-nat: Python package netfilterqueue is missing: install it\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"),
         "pptp-nat: /etc/x: Permission denied\n"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_1(monkeypatch, capsys, error, said) -> None:
    """No traceback for what is not our bug."""
    monkeypatch.setitem(sys.modules, "pptp_nat.daemon", Recorder(run_daemon=error))

    assert cli.main(["run", "--config", "/dev/null"]) == 1
    assert capsys.readouterr().err == said


def test_our_own_bugs_keep_their_traceback(monkeypatch) -> None:
    """A module of ours that is missing is one of them."""
    error = ModuleNotFoundError("x", name="pptp_nat.nothing")
    monkeypatch.setitem(sys.modules, "pptp_nat.daemon", Recorder(run_daemon=error))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["run", "--config", "/dev/null"])


def test_demo_hands_over_what_was_asked_for(monkeypatch) -> None:
    """How many, on what, and whether to leave it there."""
    demo = Recorder(run_demo=3)
    monkeypatch.setitem(sys.modules, "pptp_nat.lab.demo", demo)
    monkeypatch.delitem(sys.modules, "pptp_nat.commands.demo", raising=False)
    code = cli.main(["demo", "--clients", "5", "--datapath", "queue", "--keep"])
    monkeypatch.delitem(sys.modules, "pptp_nat.commands.demo", raising=False)

    assert code == 3
    assert demo.calls == [("run_demo", (), {"clients": 5, "datapath": "queue", "keep": True})]


@pytest.fixture
def ruleset(monkeypatch):
    """Give what stands in for the firewall, and note what is done to it."""
    from pptp_nat.commands import rules

    real = rules.ruleset
    firewall = Recorder(
        choose_backend=real.Backend.IPTABLES, render="-A X\n", check=[], probe_features="features"
    )
    firewall.__dict__.update(Backend=real.Backend, RuleSettings=real.RuleSettings)
    monkeypatch.setattr(rules, "ruleset", firewall)
    return firewall


def rules_command(tmp_path, *arguments):
    return cli.main(["rules", *arguments, "--config", "/dev/null", "--socket",
                     str(tmp_path / "s")])  # fmt: skip


def test_rules_show_prints_them(ruleset, tmp_path, capsys) -> None:
    """For administrators who load them themselves."""
    assert rules_command(tmp_path, "show", "--backend", "nftables") == 0
    assert capsys.readouterr().out == "-A X\n"
    name, (settings, backend, _), _ = ruleset.calls[-1]
    assert (name, backend, settings.datapath) == ("render", ruleset.Backend.NFTABLES, "conntrack")


def test_rules_check_says_what_is_wrong(ruleset, tmp_path, capsys) -> None:
    """One line each, and 1."""
    assert rules_command(tmp_path, "check") == 0
    assert capsys.readouterr().out == "iptables rules for data path conntrack are all in place\n"
    ruleset.returns["check"] = ["no jump in FORWARD; apply them", "and another"]
    assert rules_command(tmp_path, "check") == 1
    assert capsys.readouterr().out == "no jump in FORWARD; apply them\nand another\n"


def test_rules_are_for_the_data_path_that_the_daemon_uses(ruleset, daemon, tmp_path) -> None:
    """Unless another is named; without a daemon, for the usual one."""
    assert rules_command(tmp_path, "apply") == 0
    assert rules_command(tmp_path, "apply", "--datapath", "conntrack") == 0
    assert rules_command(tmp_path / "none", "apply") == 0
    used = [arguments[0].datapath for name, arguments, _ in ruleset.calls if name == "apply"]

    assert used == ["queue", "conntrack", "conntrack"]


def test_rules_follow_the_configuration(ruleset, tmp_path) -> None:
    """Queues, ports, mark and addresses are the daemon's."""
    path = tmp_path / "c.toml"
    path.write_text("""
        control.ports = [1723, 1724]
        control.queue = 3
        control.repeat_mark = 1
        gre.queue = 4
        gre.datapath = "queue"
        gre.external_addresses = ["198.51.100.7"]
        rules.backend = "nftables"
    """)
    cli.main(["rules", "apply", "--config", str(path)])
    expected = ruleset.RuleSettings((1723, 1724), 3, 4, 1, "queue", (b"\xc6\x33\x64\x07",))

    assert [("apply", (expected, ruleset.Backend.NFTABLES), {})] == ruleset.calls


@pytest.mark.parametrize(
    ("option", "backend"), [([], None), (["--backend", "iptables"], "iptables")]
)
def test_rules_remove_takes_all_away(ruleset, tmp_path, option, backend) -> None:
    """Of both backends unless one is named."""
    assert rules_command(tmp_path, "remove", *option) == 0
    [(_, (removed,), _)] = ruleset.calls
    assert backend == (removed and removed.value)


def test_rules_of_a_backend_that_the_configuration_once_named_go_too(ruleset, tmp_path) -> None:
    """Whoever wants them away does not know by what they were made."""
    path = tmp_path / "c.toml"
    path.write_text('rules.backend = "nftables"\n')
    assert cli.main(["rules", "remove", "--config", str(path)]) == 0

    assert [("remove", (None,), {})] == ruleset.calls


def test_an_interrupt_is_130_without_a_word(monkeypatch, capsys) -> None:
    """Shells expect 128 and the signal's number."""
    monkeypatch.setitem(sys.modules, "pptp_nat.daemon", Recorder(run_daemon=KeyboardInterrupt()))

    assert cli.main(["run", "--config", "/dev/null"]) == 130
    assert capsys.readouterr().err == ""


def test_a_broken_pipe_without_a_file_behind_stdout_is_quiet_too(monkeypatch) -> None:
    """Programs that call main() may have put something else there."""
    error = BrokenPipeError(errno.EPIPE, "Broken pipe")
    monkeypatch.setitem(sys.modules, "pptp_nat.daemon", Recorder(run_daemon=error))
    monkeypatch.setattr("sys.stdout", io.StringIO())

    assert cli.main(["run", "--config", "/dev/null"]) == 0


def test_a_file_without_any_entry_is_no_conntrack_table(tmp_path, capsys) -> None:
    """It was shown as an empty table, with exit code 0; one that is empty still is."""
    file = tmp_path / "capture.pcap"
    file.write_bytes(bytes(range(256)) * 4)
    assert cli.FAILED == cli.main(["conntrack", str(file)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "no conntrack entry" in line
    assert line.endswith("it takes what `conntrack -L` shows")

    file.write_bytes(b"")
    assert 0 == cli.main(["conntrack", str(file)])


@pytest.mark.parametrize(
    "words", [["doctor", "--only-server"], ["conntrack", "--follow", "listing.txt"]], ids=str
)
def test_options_that_do_not_go_together_are_wrong_use(words, capsys) -> None:
    """Exit code 2, as for every other one; 1 would say that the router is in a bad way."""
    assert cli.MISUSED == cli.main(words)
    assert 1 == len(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "given", ["1.2.3", "127.1", "0x7f.1", "16909060", "01.2.3.4", "1.2.3.4:1723", "a b", "::1", "."]
)
def test_a_server_is_a_name_or_an_address_in_four_numbers(given: str, capsys) -> None:
    """Resolvers take 1.2.3 for 1.2.0.3, and the doctor would have dialled that."""
    assert cli.MISUSED == cli.main(["doctor", "--server", given])

    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --server: {given!r} is " in line


@pytest.mark.parametrize("given", ["vpn.example.org", "10.0.0.1", "router", "büro.example", "3com"])
def test_names_and_addresses_of_servers_are_taken_as_they_are(given: str) -> None:
    assert given == cli.parser().parse_args(["doctor", "--server", given]).server


@pytest.mark.parametrize("given", ["x", "0", "65", "1.5", ""])
def test_a_number_of_workers_is_told_in_words(given: str, capsys) -> None:
    """And not as what a function of Python's thinks of it."""
    assert cli.MISUSED == cli.main(["run", "--workers", given])

    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --workers: {given!r} is not a number of workers from 1 to 64" in line
