"""Metrics of a daemon at work: what Prometheus, the table, conntrack and the clients say agrees."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pptp_nat.lab import real_peers
from pptp_nat.lab.prometheus import Prometheus, tool
from pptp_nat.lab.router import daemon
from pptp_nat.lab.wire import Gre, encode_gre
from tests.paths import every_path

from .conftest import By, World

pytestmark = pytest.mark.kernel
PLACE = "127.0.0.1:9723"
PATIENCE = 60.0  #: seconds until Prometheus has seen what there is; it asks every second
needs_prometheus = pytest.mark.skipif(
    tool("prometheus") is None, reason="prometheus is not here: run make venv"
)
needs_real_peers = pytest.mark.skipif(
    real_peers.absent() is not None, reason=real_peers.absent() or "all there"
)

Values = Mapping[tuple[str, ...], float]


def connect(world: World) -> socket.socket:
    """Return a connection to the metrics port, from the router itself."""
    opened = world.lab.open_socket(world.lab.router, socket.SOCK_STREAM)
    opened.settimeout(20)
    opened.connect(("127.0.0.1", 9723))
    return opened


def get(
    world: World, path: str = "/metrics", fields: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Return the status and body of an answer."""
    connection = http.client.HTTPConnection(PLACE)
    connection.sock = connect(world)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=dict(fields or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def scrape(world: World) -> Values:
    """Return all samples by name and label values, in alphabetical order of the labels."""
    status, text = get(world)
    assert status == 200
    return parsed(text)


def parsed(text: str) -> Values:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def gre(values: Values, what: str = "packets") -> tuple[float, float]:
    """Return what calls have carried, to the inside and to the outside."""
    name = f"pptp_nat_gre_{what}_total"
    return values[name, "to_inside"], values[name, "to_remote"]


def carried(rows: list[dict[str, Any]], what: str = "packets") -> tuple[float, float]:
    """Return the same of calls as `pptp-nat list -o json` shows them."""
    counters = [row["counters"] for row in rows]
    return (
        sum(each["to_inside"][what] for each in counters),
        sum(each["to_remote"][what] for each in counters),
    )


def eventually(world: World, wanted: Any, ask: Callable[[], Any]) -> None:
    """Serve everybody until *ask* returns *wanted*."""
    seen: list[Any] = [None]

    def right() -> bool:
        seen[0] = ask()
        return bool(seen[0] == wanted)

    world.loop.run_until(right, PATIENCE, every=0.2)
    assert wanted == seen[0]


@every_path
def test_totals_are_what_the_clients_sent_also_when_calls_are_over(
    world: Callable[..., World], by: By
) -> None:
    """Counters that fell with their calls would be noise to Prometheus."""
    here = world(by, inside=3, metrics=PLACE)
    here.station(here.lab.outside[0]).listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    calls = here.up(each.call(7) for each in connections)
    here.all_hear(calls, count=10, padding=200)
    rows = here.listed(3)
    text = get(here)[1]
    values = parsed(text)
    addresses = [host.address for host in (*here.lab.inside, *here.lab.outside)]
    assert [] == [address for address in addresses if address in text]
    assert (30, 30) == gre(values)
    assert carried(rows) == gre(values)
    assert carried(rows, "bytes") == gre(values, "bytes")
    assert 3 == values["pptp_nat_calls", "up"]

    here.all_hear(calls, count=7)
    connections[0].clear(calls[0])
    here.until(lambda: not calls[1].up, "one call is over")
    here.listed(2, "--state", "up")
    here.all_hear(calls[2:], count=2)
    eventually(here, (3 * 17 + 2 * 2,) * 2, lambda: gre(scrape(here)))
    values = scrape(here)
    assert (3, 3, 1) == tuple(
        values[name]
        for name in (
            ("pptp_nat_call_requests_total",),
            ("pptp_nat_calls_established_total",),
            ("pptp_nat_calls_ended_total", "disconnected"),
        )
    )
    assert 3 == values["pptp_nat_call_setup_duration_seconds_count",]
    assert 1 == values["pptp_nat_call_duration_seconds_count",]
    assert values["pptp_nat_verdict_duration_seconds_count",] == sum(
        values["pptp_nat_control_packets_total", verdict] for verdict in ("accept", "drop", "hold")
    )


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_new_daemon_counts_what_comes_not_what_came(
    world: Callable[..., World], end: str
) -> None:
    """The kernel's counts go on over a restart; as a rate they would be a burst of days."""
    here = world("conntrack", inside=2, metrics=PLACE)
    here.station(here.lab.outside[0]).listen()
    calls = here.up(
        here.dial(here.station(host), here.lab.outside[0].address).call(7)
        for host in here.lab.inside
    )
    here.all_hear(calls, count=10)
    assert (20, 20) == gre(scrape(here))

    assert here.daemon is not None
    getattr(here.daemon, end)()
    here.daemon.start()
    assert (26, 26) == (_heard(here, calls, 3), carried(here.listed(2, "--state", "up"))[0])
    assert (6, 6) == gre(scrape(here))


def _heard(world: World, calls: list[Any], count: int) -> int:
    world.all_hear(calls, count=count)
    return sum(call.right for call in calls[::2])


@needs_prometheus
@needs_real_peers
@pytest.mark.peers
def test_prometheus_says_what_the_table_and_conntrack_say(world: Callable[..., World]) -> None:
    """Twenty real clients come, some go, and four witnesses agree."""
    here = world("conntrack", inside=20, metrics=PLACE)
    real_peers.start_server(here.lab, here.lab.outside[0])
    server = Prometheus(here.lab)
    clients = [
        real_peers.Client(here.lab, host, here.lab.outside[0].address, here.loop, call_id=0x1234)
        for host in here.lab.inside
    ]

    def asked(expression: str) -> Callable[[], float | None]:
        return lambda: server.value(expression)

    for count in (8, 20):
        report = real_peers.converse(here.loop, clients[:count])
        assert report.good, report
        eventually(here, count, asked('pptp_nat_calls{state="up"}'))
    rows: list[dict[str, Any]] = []

    def all_is_said() -> bool:
        """Whether table and conntrack agree, on what they had agreed on: acknowledgements lag."""
        before = carried(rows)
        rows[:] = here.listed(20, "--state", "up")
        kernel = _conntrack(here)
        return carried(rows) == (kernel[True], kernel[False]) == before

    assert here.loop.run_until(all_is_said, PATIENCE, every=1.0)
    for direction, number in zip(("to_inside", "to_remote"), carried(rows), strict=True):
        query = f'pptp_nat_gre_packets_total{{direction="{direction}"}}'
        eventually(here, number, asked(query))
    for direction, number in zip(("to_inside", "to_remote"), carried(rows, "bytes"), strict=True):
        eventually(here, number, asked(f'pptp_nat_gre_bytes_total{{direction="{direction}"}}'))
    assert min(carried(rows)) >= sum(client.right for client in clients)

    for client in clients[:5]:
        client.hang_up()
    eventually(here, 15, asked('pptp_nat_calls{state="up"}'))
    eventually(here, 5, asked("sum(pptp_nat_calls_ended_total)"))
    assert 20 == server.value("pptp_nat_calls_established_total")
    assert 20 == server.value('pptp_nat_call_ids_used{external="198.18.7.1"}')  # 5 in quarantine
    assert 5 == server.value("pptp_nat_call_ids_quarantined")
    fell = "resets(pptp_nat_gre_packets_total[5m]) + resets(pptp_nat_gre_bytes_total[5m])"
    assert 0 == server.value(f"sum({fell})")
    assert 1 == server.value("min(min_over_time(up[5m]))")
    assert 0 == server.value("sum(pptp_nat_http_connections_closed_total)")


@needs_prometheus
def test_prometheus_comes_in_with_a_certificate_or_a_token(
    world: Callable[..., World], tmp_path: Path
) -> None:
    """As deploy/prometheus/prometheus.yml says, with Go's TLS at the other end."""
    pem, key, token = (tmp_path / name for name in ("cert.pem", "key.pem", "token"))
    token.write_text(TOKEN)
    # One certificate is server, client and authority here.
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", pem, "-subj", "/CN=test", "-days", "2",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    here = world(
        "queue", inside=1, metrics=PLACE,
        config=f'[metrics]\ntls_certificate = "{pem}"\ntls_key = "{key}"\n'
        f'tls_client_ca = "{pem}"\ntoken_file = "{token}"\n',
    )  # fmt: skip
    server = Prometheus(here.lab, more=[
        "scheme: https",
        f"tls_config: {{ca_file: {pem}, cert_file: {pem}, key_file: {key}}}",
        f"authorization: {{credentials_file: {token}}}",
    ])  # fmt: skip
    eventually(here, 1, lambda: server.value("up"))
    eventually(here, 3, lambda: server.value("clamp_max(pptp_nat_http_requests_total, 3)"))

    assert 200 == float(server.query("pptp_nat_http_requests_total")[0].labels["code"])
    assert 0 == server.value("sum(pptp_nat_http_connections_closed_total)")


def _conntrack(world: World) -> dict[bool, int]:
    """Return the packets that conntrack(8) shows for GRE, by "to the inside"."""
    listing = world.lab.run(world.lab.router, ["conntrack", "-L", "-p", "gre"]).stdout
    total = {True: 0, False: 0}
    for line in listing.splitlines():
        source, packets = re.search(r"src=(\S+) .*?packets=(\d+)", line).groups()  # type: ignore[union-attr]
        total[source == world.lab.outside[0].address] += int(packets)
    return total


@every_path
def test_gre_of_no_call_is_counted_where_it_went(world: Callable[..., World], by: By) -> None:
    """Scans, and peers that have not noticed the end of their call."""
    here = world(by, inside=1, metrics=PLACE)
    here.lab.sysctl(here.lab.router, "net.netfilter.nf_conntrack_gre_timeout", "1")
    server = here.station(here.lab.outside[0])
    client = here.station(here.lab.inside[0])
    for number in range(1, 6):
        server.send_gre(here.lab.router.address, encode_gre(Gre(number, b"scan", 0)))
    for number in range(1, 4):  # on the data path conntrack a rule of ours drops these
        client.send_gre(here.lab.outside[0].address, encode_gre(Gre(number, b"late", 0)))
    name = "pptp_nat_gre_unmatched_packets_total"

    def counted() -> tuple[float, float]:
        if by != "queue":
            # The kernel ends what has timed out when somebody walks past; by itself it looks
            # once a minute or so, the later the fuller its table is (gc_worker).
            here.lab.run(here.lab.router, ["conntrack", "-L", "-p", "gre"])
        values = scrape(here)
        return values[name, "to_inside"], values.get((name, "to_remote"))

    eventually(here, (5, 3 if by == "queue" else None), counted)


def test_the_port_answers_health_checks_and_people(world: Callable[..., World]) -> None:
    """A service manager asks for more than a scrape."""
    here = world("queue", inside=1, metrics=PLACE)

    assert (200, "ok\n") == get(here, "/healthz")
    assert (200, "ready\n") == get(here, "/readyz")
    assert "/metrics" in get(here, "/")[1]
    assert 404 == get(here, "/favicon.ico")[0]
    assert get(here, fields={"Accept": "application/openmetrics-text"})[1].endswith("# EOF\n")


@pytest.mark.parametrize(("metrics", "megabytes"), [("off", 32), (PLACE, 45)])
def test_who_wants_no_metrics_has_no_memory_for_them(
    world: Callable[..., World], metrics: str, megabytes: int
) -> None:
    """Small routers have 64 MB."""
    here = world("conntrack", inside=1, metrics=metrics)
    if metrics == PLACE:
        scrape(here)
    assert here.daemon is not None
    status = Path(f"/proc/{here.daemon.pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]
    maps = Path(f"/proc/{here.daemon.pid}/maps").read_text()

    assert resident / 1024 < megabytes
    assert ("libssl" in maps) <= (metrics == PLACE)


def test_a_flood_on_the_port_delays_no_call(world: Callable[..., World]) -> None:
    """Garbage, silence and deaf readers at once: calls come up, scrapes are answered."""
    here = world("conntrack", inside=2, metrics=PLACE)
    here.station(here.lab.outside[0]).listen()
    connections = [
        here.dial(here.station(host), here.lab.outside[0].address) for host in here.lab.inside
    ]
    flood: list[socket.socket] = []
    for number in range(300):
        octets = (b"", b"GET / HT", b"\x16\x03\x01 no request\r\n\r\n", ASK * 20)[number % 4]
        with contextlib.suppress(OSError):
            opened = connect(here)
            flood.append(opened)
            opened.sendall(octets)
    calls = here.up(connections[number % 2].call(number) for number in range(40))
    here.all_hear(calls)
    before = _turns(here, flood)

    assert before["pptp_nat_calls", "up"] == 40
    closed = sum(v for k, v in before.items() if k[0] == "pptp_nat_http_connections_closed_total")
    answered = sum(v for k, v in before.items() if k[0] == "pptp_nat_http_requests_total")
    assert closed + answered > 200
    assert before["pptp_nat_http_requests_total", "400"] > 0
    eventually(here, True, lambda: _descriptors(here) < 60)


ASK = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def _turns(world: World, flood: list[socket.socket]) -> Values:
    """Let go of the flood and scrape: a place is free at once, or after a second."""
    for opened in flood:
        opened.close()
    found: list[Values] = []

    def works() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            found.append(scrape(world))
        return bool(found)

    assert world.loop.run_until(works, PATIENCE, every=0.2)
    return found[0]


def _descriptors(world: World) -> int:
    assert world.daemon is not None
    return len(list(Path(f"/proc/{world.daemon.pid}/fd").iterdir()))


TOKEN = "let-me-see"


def test_a_token_is_asked_for_and_read_again(world: Callable[..., World], tmp_path: Path) -> None:
    """Who has it may read; a reload changes it; what is wrong with the new one changes nothing."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    here = world(
        "queue", inside=1, metrics=PLACE, config=f'metrics.token_file = "{file}"\n'
    )
    with_token = {"Authorization": f"Bearer {TOKEN}"}

    assert [401, 401, 200, 200] == [
        get(here, path)[0] for path in ("/metrics", "/", "/healthz", "/readyz")
    ]
    assert 401 == get(here, fields={"Authorization": "Bearer let-me"})[0]
    assert 200 == get(here, fields=with_token)[0]

    def reload(text: str, event: str) -> None:
        assert here.daemon is not None
        file.write_text(text)
        before = here.daemon.log.count(event)
        here.lab.run(here.lab.router, ["kill", "-HUP", str(here.daemon.pid)])
        eventually(here, before + 1, lambda: here.daemon and here.daemon.log.count(event))

    reload("", "reload-refused")
    status, text = get(here, fields=with_token)
    assert 200 == status
    assert 0 == parsed(text)["pptp_nat_config_last_reload_successful",]
    reload("another", "event=reloaded")
    assert 401 == get(here, fields=with_token)[0]
    status, text = get(here, fields={"Authorization": "bearer another"})
    assert (200, 1) == (status, parsed(text)["pptp_nat_config_last_reload_successful",])


def test_the_textfile_is_whole_whenever_it_is_read_and_gone_at_the_end(
    world: Callable[..., World], tmp_path: Path
) -> None:
    """node_exporter reads whenever it likes."""
    file = tmp_path / "pptp-nat.prom"
    here = world(
        "queue", inside=1,
        config=f'[metrics]\ntextfile = "{file}"\ntextfile_interval = 1\ntop_clients = 5\n',
    )  # fmt: skip
    here.station(here.lab.outside[0]).listen()
    connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
    here.all_hear(here.up([connection.call(7)]), count=4)

    def seen() -> float | None:
        text = file.read_text() if file.exists() else ""
        assert not text or text.endswith("\n")
        return parsed(text).get(("pptp_nat_client_packets_total", "192.168.77.10", "to_inside"))

    eventually(here, 4, seen)
    text = file.read_text()
    assert "process_" not in text
    assert 0o644 == file.stat().st_mode & 0o777
    assert here.daemon is not None
    here.daemon.stop()
    assert [] == list(tmp_path.iterdir())


def test_a_port_that_is_taken_costs_no_call(world: Callable[..., World]) -> None:
    """Metrics are of use; calls are what it is for."""
    here = world("nothing", inside=1)
    here.station(here.lab.outside[0]).listen()
    taken = here.lab.open_socket(here.lab.router, socket.SOCK_STREAM)
    taken.bind(("127.0.0.1", 9723))
    taken.listen()
    with daemon(here.lab, datapath="queue", metrics=PLACE) as other:
        connection = here.dial(here.station(here.lab.inside[0]), here.lab.outside[0].address)
        here.all_hear(here.up([connection.call(7)]))
        complaint = "metrics.listen: 127.0.0.1:9723: Address already in use"
        eventually(here, True, lambda: complaint in other.log)


def test_an_open_port_is_warned_about(world: Callable[..., World]) -> None:
    """Whoever can reach it can read who uses the router."""
    here = world("queue", inside=1, metrics="0.0.0.0:9723")
    assert here.daemon is not None

    assert re.search(r"level=warn.*metrics\.listen: 0\.0\.0\.0:9723 is open", here.daemon.log)
    assert 200 == get(here)[0]
