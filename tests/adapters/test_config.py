"""The configuration: what is good is taken, what is not is told in full."""

import contextlib
import dataclasses
import re
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.config import (
    DEFAULT_SOCKET,
    LARGEST_FILE,
    SECTIONS,
    Config,
    changes,
    load,
    with_live,
)
from pptp_nat.config_values import Endpoint
from pptp_nat.errors import ConfigError

ROOT = Path(__file__).parents[2]
COMPLAINT = re.compile(r"[ -~]+: [ -~]+; [ -~]+")


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and return its path."""

    def write(text):
        path = tmp_path / "pptp-nat.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def complaints(path, overrides=None):
    with pytest.raises(ConfigError) as raised:
        load(path, overrides)
    lines = str(raised.value).split("\n")
    for line in lines:
        assert COMPLAINT.fullmatch(line), line
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_nothing_configured_is_the_defaults() -> None:
    """A router works without a file."""
    assert Config() == load()


def test_an_empty_file_is_the_defaults(write) -> None:
    """No key is obligatory."""
    assert Config() == load(write(""))


def test_the_shipped_file_holds_every_key_with_its_default() -> None:
    """An administrator reads that file instead of the program."""
    text = (ROOT / "deploy/pptp-nat.toml").read_text()
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(match[1], [])
        elif match := re.match(r"(\w+) = ", line):
            section.append(match[1])

    assert {name: list(keys) for name, keys in SECTIONS.items()} == found
    assert Config() == load(ROOT / "deploy/pptp-nat.toml")


def test_the_shipped_file_says_of_each_key_whether_it_is_live() -> None:
    """An administrator must know what a reload does without trying it."""
    text = (ROOT / "deploy/pptp-nat.toml").read_text()
    for section, keys in SECTIONS.items():
        body = re.search(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)[1]
        for name, key in keys.items():
            comment = re.search(rf"((?:^#.*\n)+)(?:^\w.*\n)*?{name} = ", body, re.MULTILINE)[1]
            said = "(live)" in comment or section == "timers"

            assert key.live == said, f"{section}.{name}"


def test_the_manual_names_every_key_with_its_default() -> None:
    """docs/configuration.md is a table of all keys."""
    text = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| ([^|]+) \| ([^|]+) \| (live|restart) \|$",
                      text, re.MULTILINE)
    shipped = (ROOT / "deploy/pptp-nat.toml").read_text()
    defaults = re.findall(r"^(\w+) = (.*)$", shipped, re.MULTILINE)

    assert defaults == [(name, default) for name, default, *_ in rows]
    assert [
        "live" if key.live else "restart" for keys in SECTIONS.values() for key in keys.values()
    ] == [row[4] for row in rows]


def test_every_kind_of_value_is_taken(write) -> None:
    """One file that changes a key of each kind."""
    config = load(write("""
        control.ports = [1723, 11723]
        control.repeat_mark = "0x00000010"
        gre.external_addresses = ["198.51.100.7", "203.0.113.1"]
        gre.datapath = "queue"
        call_ids.quarantine = 2.5
        timers.gre_idle = 0
        api.mode = "0600"
        api.owner = "root"
        api.group = "0"
        metrics.listen = "[::1]:9723"
        state.directory = "/tmp/state"
    """))

    assert config.control.ports == (1723, 11723)
    assert config.control.repeat_mark == 0x10
    assert config.gre.external_addresses == (
        IPv4Address("198.51.100.7"),
        IPv4Address("203.0.113.1"),
    )
    assert config.gre.datapath == "queue"
    assert config.call_ids.quarantine == 2.5
    assert config.timers.gre_idle == 0
    assert config.api.mode == 0o600
    assert (config.api.owner, config.api.group) == ("root", "0")
    assert Endpoint("::1", 9723) == config.metrics.listen
    assert str(config.metrics.listen) == "[::1]:9723"
    assert Path("/tmp/state") == config.state.directory


def test_files_for_metrics_come_together_or_not_at_all(write) -> None:
    """Half of TLS is none, and nobody would notice."""
    both = "name both the certificate's and the key's file, or neither"
    assert complaints(write('metrics.tls_certificate = "/a.pem"')) == [
        f"metrics.tls_key: not given; {both}"
    ]
    assert complaints(write('metrics.tls_key = "/a.key"\nmetrics.tls_client_ca = "/ca.pem"')) == [
        f"metrics.tls_certificate: not given; {both}",
        ("metrics.tls_client_ca: nothing without TLS; "
        "name metrics.tls_certificate and metrics.tls_key too"),
    ]
    assert complaints(write('metrics.textfile = "pptp.prom"\nmetrics.token_file = "/"')) == [
        ('metrics.textfile: "pptp.prom" is not an absolute path; '
        'write the absolute path of a file, or "" for none'),
        'metrics.token_file: "/" names no file; write the absolute path of a file',
    ]
    config = load(write("""
        [metrics]
        tls_certificate = "/a.pem"
        tls_key = "/a.key"
        tls_client_ca = ""
        top_clients = 20
    """))
    assert (Path("/a.pem"), None, 20) == (
        config.metrics.tls_certificate, config.metrics.tls_client_ca, config.metrics.top_clients
    )  # fmt: skip


NUMBER_OF_A_QUEUE = "write a whole number from 0 to 65535"
ONE_BIT = 'write one bit of 32, such as 0x40000000 or "0x40000000"'
PORTS = "write 1 to 16 different ports from 1 to 65535, such as [1723]"
ADDRESSES = 'write up to 256 IPv4 addresses, such as ["198.51.100.7"]'
SECONDS = "write seconds from 1 to 3600"
MODE = "write read and write bits in octal with the owner's, such as 0o660"
PATH = 'write an absolute path such as "/run/pptp-nat/pptp-nat.sock"'
ENDPOINT = 'write "off" or an address and a port, such as "127.0.0.1:9723" or "[::1]:9723"'
SECTION = "write [control] on a line of its own and its keys below"

BAD = [  # the file, what is wrong, what to write instead
    ("control.queue = 70000", "control.queue: 70000 is out of range", NUMBER_OF_A_QUEUE),
    ("control.queue = true", "control.queue: true is not a whole number", NUMBER_OF_A_QUEUE),
    ("control.queue = 17.0", "control.queue: 17.0 is not a whole number", NUMBER_OF_A_QUEUE),
    ("control.queue_length = 1",
     "control.queue_length: 1 is out of range",
     "write a whole number from 16 to 1048576 (packets)"),
    ("contrl.queue = 1", "contrl: no such section", "did you mean [control]?"),
    ("control.quee = 1", "control.quee: no such key", "did you mean queue?"),
    ("zzz.queue = 1",
     "zzz: no such section",
     f"there are {', '.join(f'[{section}]' for section in SECTIONS)}"),
    ("rules.zzz = 1", "rules.zzz: no such key", "there are manage, backend"),
    ('control = "x"', 'control: "x" is not a section', SECTION),
    ("[[control]]\nqueue = 1", "control: a list of 1 is not a section", SECTION),
    ('gre.datapath = "ebpf"',
     'gre.datapath: "ebpf" is not known',
     'write "auto", "conntrack", "bpf" or "queue"'),
    ("gre.datapath = 1", "gre.datapath: 1 is not known",
     'write "auto", "conntrack", "bpf" or "queue"'),
    ("control.repeat_mark = 3", "control.repeat_mark: 3 is not one bit of 32", ONE_BIT),
    ('control.repeat_mark = "bit"', 'control.repeat_mark: "bit" is not a number', ONE_BIT),
    ("control.repeat_mark = 0x100000000",
     "control.repeat_mark: 4294967296 is not one bit of 32",
     ONE_BIT),
    ("control.ports = 1723", "control.ports: 1723 is not a list", PORTS),
    ("control.ports = []", "control.ports: 0 ports", PORTS),
    ("control.ports = [1, 1]", "control.ports: a port stands here twice", PORTS),
    ('control.ports = ["a"]', 'control.ports: "a" is not a port', PORTS),
    ("control.ports = [[1723]]", "control.ports: a list of 1 is not a port", PORTS),
    (f"control.ports = {list(range(1, 18))}", "control.ports: 17 ports", PORTS),
    ('gre.external_addresses = ["::1"]',
     'gre.external_addresses: "::1" is not an IPv4 address',
     ADDRESSES),
    ("gre.external_addresses = [1]", "gre.external_addresses: 1 is not an IPv4 address", ADDRESSES),
    ('gre.external_addresses = ["224.0.0.1"]',
     "gre.external_addresses: 224.0.0.1 is no host's address",
     ADDRESSES),
    ('gre.external_addresses = ["1.2.3.4", "1.2.3.4"]',
     "gre.external_addresses: 1.2.3.4 stands here twice",
     ADDRESSES),
    ("timers.request = inf", "timers.request: inf is out of range", SECONDS),
    ("timers.request = nan", "timers.request: nan is out of range", SECONDS),
    ("timers.request = 0", "timers.request: 0 is out of range", SECONDS),
    ('timers.request = "3 min"', 'timers.request: "3 min" is not a number of seconds', SECONDS),
    ("timers.gre_idle = -1",
     "timers.gre_idle: -1 is out of range",
     "write seconds from 1 to 2147483648 or 0 (never)"),
    ("timers.request = 2026-01-01",
     "timers.request: 2026-01-01 is not a number of seconds",
     SECONDS),
    ("api.mode = 660", "api.mode: 0o1224 is no mode for a socket", MODE),
    ("api.mode = 440", "api.mode: 0o670 is no mode for a socket", MODE),
    ('api.mode = "rw"', 'api.mode: "rw" is not octal', MODE),
    ('api.socket = "run/x.sock"', 'api.socket: "run/x.sock" is not an absolute path', PATH),
    ('api.socket = "/a\\u0000b"', 'api.socket: "/a\\x00b" is not an absolute path', PATH),
    ('api.owner = "nobody-of-that-name"',
     'api.owner: there is no user "nobody-of-that-name"',
     'write the name of a user of this host, its number in quotes, or ""'),
    ("api.group = 0",
     "api.group: 0 is not a name",
     'write the name of a group of this host, its number in quotes, or ""'),
    ('metrics.listen = ":9723"', 'metrics.listen: ":9723" has no address to listen on', ENDPOINT),
    ('metrics.listen = "::1:9723"',
     'metrics.listen: "::1:9723" has no address to listen on',
     ENDPOINT),
    ('metrics.listen = "127.0.0.1:0"',
     'metrics.listen: "127.0.0.1:0" has no port from 1 to 65535',
     ENDPOINT),
    ("metrics.listen = false", "metrics.listen: false is not an address and a port", ENDPOINT),
    ("gre.queue = 1723",
     "gre.queue: 1723 is control.queue too",
     "write two different queue numbers"),
    ("gre.entry_mark = 0x40000000",
     "gre.entry_mark: 0x40000000 is control.repeat_mark too",
     "write two different bits"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wrong", "instead"), BAD)
def test_a_wrong_value_is_told_with_what_to_write(write, text, wrong, instead) -> None:
    """The complaint is all that an administrator has at three in the morning."""
    expected = f"{wrong}; {instead}"

    assert [expected] == complaints(write(text))


def test_all_complaints_come_at_once(write) -> None:
    """Nobody wants to restart a daemon once per mistake."""
    path = write("x.y = 1\n[control]\nqueue = -1\nquee = 1\n[gre]\nqueue = 1723\n")

    expected = [
        "x: no such section",
        "control.queue: -1 is out of range",
        "control.quee: no such key",
        'command line: gre.datapath: "x" is not known',
        "gre.queue: 1723 is control.queue too",
    ]

    actual = [line.partition(";")[0] for line in complaints(path, {"gre.datapath": "x"})]

    assert expected == actual


def test_a_key_with_control_characters_cannot_forge_a_line(write) -> None:
    """A complaint stays one line, whatever the file holds."""
    [line] = complaints(write('"a\\nb: good" = 1'))

    assert line.startswith('"a\\nb: good": no such section; ')


def test_broken_toml_is_told_with_its_line(write) -> None:
    """The parser knows where."""
    [line] = complaints(write("[control]\nqueue = \n"))

    assert "line 2" in line


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"\xff", "octet 0: not UTF-8; save it as UTF-8"),
        (b"a = " + b"[" * 100000, "nested too deeply; a key's list has no lists in it"),
        (b"#" * (LARGEST_FILE + 1),
         f"longer than {LARGEST_FILE} octets; this is no configuration"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_told(write, octets, expected) -> None:
    """--config may name anything."""
    assert [expected] == complaints(write(octets))


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_of_thousands_of_digits_is_told(write, digits) -> None:
    """Python refuses to convert such numbers, on the way in or in the complaint."""
    [line] = complaints(write(f"control.queue = {digits}"))

    assert len(line) < 300


def test_a_missing_file_is_told(tmp_path) -> None:
    """A typing error in --config must not mean the defaults."""
    expected = "No such file or directory; name a readable file with --config"

    assert [expected] == complaints(tmp_path / "none")


def test_a_directory_is_no_file(tmp_path) -> None:
    """As above."""
    expected = "Is a directory; name a readable file with --config"

    assert [expected] == complaints(tmp_path)


def test_a_nul_in_the_name_is_told() -> None:
    """open() raises ValueError there."""
    with pytest.raises(ConfigError, match="not a file name"):
        load("a\0b")


def test_the_command_line_wins(write) -> None:
    """What is typed now beats what was written then."""
    config = load(write('api.socket = "/a"\ncontrol.queue = 5'), {"api.socket": "/b"})

    assert Path("/b") == config.api.socket
    assert config.control.queue == 5


def test_a_mistake_in_the_file_counts_though_it_is_overridden(write) -> None:
    """Else it would come to light on the day the option is dropped."""
    [line] = complaints(write('gre.datapath = "x"'), {"gre.datapath": "queue"})

    assert line.startswith('gre.datapath: "x" is not known')


def test_a_socket_path_must_fit_its_address(write) -> None:
    """The kernel has room for 107 octets."""
    assert load(write(f'api.socket = "/{"a" * 106}"'))
    [line] = complaints(write(f'api.socket = "/{"a" * 107}"'))

    assert line.endswith("; write the path of a file of at most 107 octets")


def test_a_reload_tells_live_keys_from_those_that_need_a_restart(write) -> None:
    """The daemon says which of the new values are in force."""
    old = Config()
    new = load(write("""
        limits.calls = 7
        timers.request = 9
        log.level = "debug"
        call_ids.quarantine = 0
        call_ids.allocation = "preserve"
        control.queue = 7
        control.ports = [1]
        gre.datapath = "queue"
        api.socket = "/tmp/x"
    """))

    live, restart = changes(old, new)

    assert live == [
        "call_ids.allocation", "call_ids.quarantine", "limits.calls", "timers.request", "log.level",
    ]  # fmt: skip
    assert restart == ["control.ports", "control.queue", "gre.datapath", "api.socket"]
    in_force = with_live(old, new)
    assert (live, []) == changes(old, in_force)
    assert ([], restart) == changes(in_force, new)


def test_no_change_is_no_change() -> None:
    """SIGHUP without an edit does nothing."""
    assert changes(Config(), load(ROOT / "deploy/pptp-nat.toml")) == ([], [])


def test_a_configuration_cannot_be_changed_in_place() -> None:
    """Old and new are compared at a reload; nobody may blur them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().control.queue = 1  # type: ignore[misc]  # that is the test
    assert Config().api.socket == DEFAULT_SOCKET


scalars = (
    st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.dates()
    | st.sampled_from(["0x8", "off", "127.0.0.1:1", "auto", "/x", "", "root", 1 << 31, 1723])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
keys = st.sampled_from([f"{section}.{key}" for section in SECTIONS for key in SECTIONS[section]])


@given(st.dictionaries(keys | st.text(max_size=12), values, max_size=6))
def test_no_value_raises_anything_but_a_config_error(raw) -> None:
    """Whatever TOML can hold, the answer is a configuration or complaints, one per line."""
    try:
        config = load(None, raw)
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert COMPLAINT.fullmatch(line), line
    else:
        assert isinstance(config, Config)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_file_raises_anything_but_a_config_error(tmp_path_factory, octets) -> None:
    """As above, for the octets of the file itself."""
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(octets)
    with contextlib.suppress(ConfigError):
        load(path)
