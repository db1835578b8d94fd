"""The configuration: a TOML file and command-line overrides, checked, frozen.

Each key is one field of one section below: its type, the parser that says
what is allowed, `LIVE` if a reload applies it to the running daemon, and its
default.  A parser takes what TOML holds and returns the value, or raises
`Unfit` with a reason and what to write instead.  `load` collects every such
complaint before it raises one `ConfigError`, one line per complaint::

    FILE: section.key: reason; what to write instead

Seconds may be whole or not; sizes are in the unit named beside the key.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pptp_nat.config_values import (
    Endpoint,
    Unfit,
    absolute_path,
    directory_or_none,
    endpoint_or_off,
    file_or_none,
    group_name,
    one_bit,
    one_of,
    outside_addresses,
    port_list,
    seconds,
    shown,
    socket_mode,
    socket_path,
    user_name,
    whole,
)
from pptp_nat.errors import ConfigError

DEFAULT_FILE: Final = Path("/etc/pptp-nat/pptp-nat.toml")
DEFAULT_SOCKET: Final = Path("/run/pptp-nat/pptp-nat.sock")
DEFAULT_STATE: Final = Path("/var/lib/pptp-nat")
DEFAULT_METRICS: Final = Endpoint("127.0.0.1", 9723)
QUEUES: Final = 65536  #: NFQUEUE numbers
LARGEST_FILE: Final = 1 << 20  #: octets; the documented file has a few thousand

Forwarding = Literal["stack", "redirect", "xdp"]
DataPathName = Literal["auto", "conntrack", "bpf", "queue"]
Allocation = Literal["random", "preserve"]
RulesCare = Literal["keep", "apply", "leave"]
RulesBackend = Literal["auto", "iptables", "nftables"]
LogLevel = Literal["error", "warning", "info", "debug"]

LIVE: Final = "live"  #: marks a key that a reload applies without a restart


class Key(NamedTuple):
    """What is known about one key beside its default."""

    parse: Callable[[object], object]
    live: bool


@dataclass(frozen=True, slots=True)
class Control:
    """The control connections and the queue they come through."""

    ports: Annotated[tuple[int, ...], port_list] = (1723,)  #: TCP ports of PPTP servers
    queue: Annotated[int, whole(0, 65535)] = 1723  #: NFQUEUE number
    queue_length: Annotated[int, whole(16, 1 << 20, "packets")] = 4096
    socket_buffer: Annotated[int, whole(64 << 10, 1 << 30, "octets")] = 4 << 20
    workers: Annotated[int, whole(1, 64)] = 1  #: processes; each has a queue, numbered from `queue`
    repeat_mark: Annotated[int, one_bit] = 0x40000000  #: packet mark bit: was in a queue already


@dataclass(frozen=True, slots=True)
class Gre:
    """The data of the calls."""

    datapath: Annotated[DataPathName, one_of("auto", "conntrack", "bpf", "queue")] = "auto"
    queue: Annotated[int, whole(0, 65535)] = 1724  #: NFQUEUE number, data path "queue" only
    queue_length: Annotated[int, whole(16, 1 << 20, "packets")] = 16384
    socket_buffer: Annotated[int, whole(64 << 10, 1 << 30, "octets")] = 8 << 20
    entry_mark: Annotated[int, one_bit] = 0x20000000  #: conntrack mark bit: this entry is ours
    external_addresses: Annotated[tuple[IPv4Address, ...], outside_addresses] = ()
    #: data path "bpf" only: through routing and the firewall, or past them where that is easy
    forwarding: Annotated[Forwarding, one_of("stack", "redirect", "xdp")] = "stack"


@dataclass(frozen=True, slots=True)
class CallIds:
    """The numbers handed out towards the outside."""

    allocation: Annotated[Allocation, one_of("random", "preserve"), LIVE] = "random"
    quarantine: Annotated[float, seconds(0, 86400), LIVE] = 60  #: before a number is used again


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds memory, whatever peers send."""

    connections: Annotated[int, whole(1, 1 << 20), LIVE] = 65536
    calls: Annotated[int, whole(1, 1 << 22), LIVE] = 131072
    calls_per_connection: Annotated[int, whole(0, 65535), LIVE] = 0  #: 0: only `calls` limits
    #: of whoever asks for them, by its address; 0: only `calls` limits
    calls_per_client: Annotated[int, whole(0, 65535), LIVE] = 4096
    #: new calls that one client may ask for; 0: no limit
    setups_per_client: Annotated[int, whole(0, 1_000_000, "calls per second"), LIVE] = 100
    #: what the rules let come to the control queue (`pptp_nat.linux.ruleset_pace`); 0: all of it
    openers_per_client: Annotated[int, whole(0, 100_000, "packets per second")] = 100
    openers: Annotated[int, whole(0, 100_000, "packets per second")] = 4000
    segments_per_client: Annotated[int, whole(0, 100_000, "packets per second")] = 1000
    #: the same of the queue of GRE, data path "queue" only
    gre_per_host: Annotated[int, whole(0, 1_000_000, "packets per second")] = 50_000
    half_open: Annotated[int, whole(16, 1 << 20), LIVE] = 4096  #: SYNs remembered, and doubts
    #: octets of control streams of all connections kept until they are acknowledged
    buffered: Annotated[int, whole(1 << 16, 1 << 34, "octets"), LIVE] = 64 << 20
    #: octets of control stream kept per direction until they are acknowledged
    history: Annotated[int, whole(512, 1 << 20, "octets"), LIVE] = 4096


@dataclass(frozen=True, slots=True)
class Timers:
    """How long to wait, in seconds."""

    request: Annotated[float, seconds(1, 3600), LIVE] = 180  #: for the reply to a call request
    clearing: Annotated[float, seconds(1, 3600), LIVE] = 30  #: for the notify after a clear
    closing_grace: Annotated[float, seconds(0, 3600), LIVE] = 5  #: GRE after FIN or RST
    gre_idle: Annotated[float, seconds(1, 1 << 31, zero="never"), LIVE] = 21600
    connection_idle: Annotated[float, seconds(1, 1 << 31, zero="never"), LIVE] = 7200


@dataclass(frozen=True, slots=True)
class Rules:
    """The firewall rules that bring packets to the queues."""

    manage: Annotated[RulesCare, one_of("keep", "apply", "leave")] = "keep"
    backend: Annotated[RulesBackend, one_of("auto", "iptables", "nftables")] = "auto"


@dataclass(frozen=True, slots=True)
class Api:
    """The socket that the other commands talk to."""

    socket: Annotated[Path, socket_path] = DEFAULT_SOCKET
    mode: Annotated[int, socket_mode] = 0o660
    owner: Annotated[str, user_name] = ""  #: "": whoever runs the daemon
    group: Annotated[str, group_name] = ""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where metrics are served, to whom, and how many; None is "off" or ""."""

    listen: Annotated[Endpoint | None, endpoint_or_off] = DEFAULT_METRICS
    #: the files of TLS and of the token are read again at a reload, their names are not
    tls_certificate: Annotated[Path | None, file_or_none] = None
    tls_key: Annotated[Path | None, file_or_none] = None
    tls_client_ca: Annotated[Path | None, file_or_none] = None
    token_file: Annotated[Path | None, file_or_none] = None
    textfile: Annotated[Path | None, file_or_none] = None
    textfile_interval: Annotated[float, seconds(1, 3600)] = 15
    top_clients: Annotated[int, whole(0, 1000)] = 0


@dataclass(frozen=True, slots=True)
class State:
    """What outlives the daemon."""

    directory: Annotated[Path, absolute_path] = DEFAULT_STATE  #: copies that outlive a boot
    #: the journal, in a memory file system; None: beside the socket
    journal: Annotated[Path | None, directory_or_none] = None
    sync: Annotated[float, seconds(1, 86400, zero="no copies")] = 300  #: between two copies


@dataclass(frozen=True, slots=True)
class Log:
    """What is written to the standard error output."""

    level: Annotated[LogLevel, one_of("error", "warning", "info", "debug"), LIVE] = "info"
    rate: Annotated[int, whole(0, 1_000_000, "lines per second"), LIVE] = 200  #: 0: no limit


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon can be told.  ``Config()`` holds the defaults."""

    control: Control = Control()
    gre: Gre = Gre()
    call_ids: CallIds = CallIds()
    limits: Limits = Limits()
    timers: Timers = Timers()
    rules: Rules = Rules()
    api: Api = Api()
    metrics: Metrics = Metrics()
    state: State = State()
    log: Log = Log()


def _declared(section: Any) -> Mapping[str, Key]:  # noqa: ANN401  dataclasses.fields() takes any
    """Return the keys of a section, from the annotations of its fields."""
    keys = {}
    for entry in dataclasses.fields(section):
        parse, *marks = entry.type.__metadata__  # type: ignore[union-attr]  # Annotated, see above
        keys[entry.name] = Key(parse, LIVE in marks)
    return keys


SECTIONS: Final[Mapping[str, Mapping[str, Key]]] = {
    section.name: _declared(section.type) for section in dataclasses.fields(Config)
}


class _Source(NamedTuple):
    """Where raw values came from, and those values by section."""

    name: str
    tables: Mapping[str, object]


def load(path: Path | str | None = None, overrides: Mapping[str, object] | None = None) -> Config:
    """Return the configuration of the file at *path* with *overrides* on top.

    Args:
        path: a TOML file; None for the defaults alone.
        overrides: raw values by ``section.key``, as TOML would hold them; they
            are checked like the file and named "command line" in complaints.

    Raises:
        ConfigError: one line per complaint, all of them.
    """
    sources = [] if path is None else [_Source(str(path), _read(path))]
    sources.append(_Source("command line", _nested(overrides or {})))
    complaints: list[str] = []
    config = Config()
    for source in sources:
        config = _with(config, _checked(source, complaints))
    complaints += (f"{sources[0].name}: {text}" for text in _at_odds(config))
    if complaints:
        raise ConfigError("\n".join(complaints))
    return config


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Return the keys that differ: those applied live, and those that need a restart."""
    differing = [
        (f"{section}.{name}", key.live)
        for section, name, key in _keys()
        if _get(old, section, name) != _get(new, section, name)
    ]
    return [key for key, live in differing if live], [key for key, live in differing if not live]


def with_live(old: Config, new: Config) -> Config:
    """Return *old* with those keys of *new* that a reload applies: what then is in force."""
    return _with(
        old,
        {
            (section, name): _get(new, section, name)
            for section, name, key in _keys()
            if key.live
        },
    )


def live_values(config: Config) -> dict[str, object]:
    """Return by ``section.key`` what a reload can change, as `load` takes it."""
    return {
        f"{section}.{name}": _get(config, section, name)
        for section, name, key in _keys()
        if key.live
    }


def _keys() -> Iterator[tuple[str, str, Key]]:
    for section, keys in SECTIONS.items():
        for name, key in keys.items():
            yield section, name, key


def _get(config: Config, section: str, name: str) -> object:
    return getattr(getattr(config, section), name)


def _with(config: Config, values: Mapping[tuple[str, str], object]) -> Config:
    sections: dict[str, dict[str, object]] = {}
    for (section, name), value in values.items():
        sections.setdefault(section, {})[name] = value
    replaced = {
        section: dataclasses.replace(getattr(config, section), **named)
        for section, named in sections.items()
    }
    return dataclasses.replace(config, **replaced)


def _read(path: Path | str) -> Mapping[str, object]:
    try:
        with Path(path).open("rb") as file:
            octets = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; name a readable file with --config"
        ) from error
    except ValueError as error:  # an embedded NUL
        raise ConfigError(f"{shown(str(path))}: not a file name; mend --config") from error
    if len(octets) > LARGEST_FILE:
        raise ConfigError(f"{path}: longer than {LARGEST_FILE} octets; this is no configuration")
    try:
        return tomllib.loads(octets.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: octet {error.start}: not UTF-8; save it as UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; a key's list has no lists in it") from error
    except ValueError as error:  # TOMLDecodeError is one, int() of too many digits another
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: {reason}; mend the TOML there") from error


def _nested(overrides: Mapping[str, object]) -> Mapping[str, object]:
    tables: dict[str, dict[str, object]] = {}
    for dotted, value in overrides.items():
        section, _, name = dotted.partition(".")
        tables.setdefault(section, {})[name] = value
    return tables


def _checked(source: _Source, complaints: list[str]) -> dict[tuple[str, str], object]:
    """Return the fit values of *source*; add its complaints to *complaints*."""
    values: dict[tuple[str, str], object] = {}
    for section, table in source.tables.items():
        keys = SECTIONS.get(section)
        if keys is None:
            complaints.append(
                f"{source.name}: {_plain(section)}: no such section; "
                f"{_instead(section, SECTIONS, '[{}]')}"
            )
            continue
        if not isinstance(table, Mapping):
            complaints.append(
                f"{source.name}: {section}: {shown(table)} is not a section; "
                f"write [{section}] on a line of its own and its keys below"
            )
            continue
        for name, raw in table.items():
            where = f"{source.name}: {section}.{_plain(name)}"
            if name not in keys:
                complaints.append(f"{where}: no such key; {_instead(name, keys, '{}')}")
                continue
            try:
                values[section, name] = keys[name].parse(raw)
            except Unfit as unfit:
                complaints.append(f"{where}: {unfit}")
    return values


def _at_odds(config: Config) -> Iterator[str]:
    """Yield what no single key shows: two keys that exclude each other."""
    if config.control.queue == config.gre.queue and config.control.workers == 1:
        yield (
            f"gre.queue: {config.gre.queue} is control.queue too; "
            "write two different queue numbers"
        )
    if config.control.workers > 1:
        if config.gre.datapath in ("bpf", "queue"):
            yield (
                f'control.workers: several cannot share the data path "{config.gre.datapath}"; '
                'write gre.datapath = "conntrack", or control.workers = 1'
            )
        if config.rules.backend == "nftables":
            yield (
                "control.workers: nftables cannot divide connections among several; "
                'write rules.backend = "iptables", or control.workers = 1'
            )
        if config.control.queue + config.control.workers > QUEUES:
            yield (
                f"control.workers: there is no queue {QUEUES}; "
                "write a lower control.queue, or fewer workers"
            )
    if config.control.repeat_mark == config.gre.entry_mark:
        yield (
            f"gre.entry_mark: {config.gre.entry_mark:#x} is control.repeat_mark too; "
            "write two different bits"
        )
    metrics = config.metrics
    if (metrics.tls_certificate is None) != (metrics.tls_key is None):
        lacking = "tls_key" if metrics.tls_key is None else "tls_certificate"
        yield (
            f"metrics.{lacking}: not given; name both the certificate's and the key's file, "
            "or neither"
        )
    if metrics.tls_client_ca is not None and metrics.tls_certificate is None:
        yield (
            "metrics.tls_client_ca: nothing without TLS; "
            "name metrics.tls_certificate and metrics.tls_key too"
        )


def _plain(name: str) -> str:
    """Return *name* as it stands where it may stand bare in TOML, else quoted."""
    return name if name.isascii() and name.replace("-", "_").isidentifier() else shown(name)


def _instead(name: str, known: Mapping[str, object], form: str) -> str:
    near = difflib.get_close_matches(name[:64], known, n=1)
    if near:
        return f"did you mean {form.format(near[0])}?"
    return f"there are {', '.join(form.format(each) for each in known)}"
