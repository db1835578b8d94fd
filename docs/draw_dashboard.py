# ruff: noqa: INP001  a script beside the pages, in no package
"""Draws docs/dashboard.svg: the dashboard's panels as Prometheus fills them.

    sudo python docs/draw_dashboard.py --write

Builds a laboratory, has calls come, talk, fail and go for two minutes while a real
Prometheus scrapes the daemon, asks it what the panels ask (deploy/grafana/pptp-nat.json)
and draws the answers.  It is no picture of Grafana, whose looks are its own: places,
titles, units and data are the dashboard's.
"""

from __future__ import annotations

import contextlib
import functools
import html
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pptp_nat.lab.network import Host, Lab
from pptp_nat.lab.peers import Call, Connection, Loop, Station
from pptp_nat.lab.prometheus import Prometheus, Series
from pptp_nat.lab.router import daemon
from pptp_nat.lab.wire import Gre, encode_gre

HERE: Final = Path(__file__).parent
DASHBOARD: Final = HERE.parent / "deploy/grafana/pptp-nat.json"
PICTURE: Final = HERE / "dashboard.svg"
SECONDS: Final = 120.0
CELL: Final = (50, 24)  # pixels of a step of the dashboard's grid
GAP: Final = 6
COLOURS: Final = (
    "#3b7dd8", "#d9822b", "#3a9d5d", "#c23c3c", "#8a5cc2", "#7f7f7f", "#c2577e", "#5aa9b8",
)  # fmt: skip
STEPS: Final = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "u"}
UNITS: Final = {"none": "", "ops": "/s", "s": "s", "bps": "bit/s", "pps": "packets/s",
                "bytes": "B"}  # fmt: skip
VARIABLES: Final = {"$__rate_interval": "8s", "$job": "pptp-nat", "$instance": ".*",
                    "[15m]": "[2m]", "[1h]": "[2m]"}  # fmt: skip


def life(lab: Lab, loop: Loop) -> None:
    """Have calls come and go for `SECONDS`."""

    def station(host: Host, **how: Any) -> Station:  # noqa: ANN401  as a station takes it
        return Station(host.name, loop, functools.partial(lab.open_socket, host), **how)

    servers = [station(lab.outside[0]), station(lab.outside[1], refuses=True)]
    for server in servers:
        server.listen()
    clients = [station(host) for host in lab.inside]
    good = [client.dial(lab.outside[0].address) for client in clients]
    bad = clients[0].dial(lab.outside[1].address)
    loop.run_until(lambda: all(each.established for each in (*good, bad)))
    calls: list[tuple[Connection, Call]] = []
    end = time.monotonic() + SECONDS
    for turn in itertools.count():
        left = end - time.monotonic()
        if left <= 0:
            return
        wave = 0.5 + 0.5 * math.sin(turn / 40)
        if turn % 4 == 0 and len(calls) < 10 + 30 * wave:
            connection = good[turn % len(good)]
            calls.append((connection, connection.call(1000 + turn)))
        if turn % 5 == 0 and len(calls) > 5 + 25 * wave:
            connection, call = calls.pop(0)
            if call.up:
                connection.clear(call)
        if turn % 45 == 0:
            bad.call(turn % 65536)
        if 0.3 < left / SECONDS < 0.5:
            servers[0].send_gre(lab.router.address, encode_gre(Gre(turn % 65535 + 1, b"scan", 0)))
        for _, call in calls:
            if call.up:
                call.say(int(1 + 3 * wave), padding=400)
                servers[0].named(call.label).say(int(1 + 5 * wave), padding=900)
        loop.run_dry(0.1)


def filled_in(expression: str) -> str:
    """Return *expression* with values for Grafana's variables, and windows that fit the run."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def ask(prometheus: Prometheus, panel: Mapping[str, Any]) -> list[tuple[str, Series]]:
    """Return what *panel* shows: name and data of each line."""
    lines = []
    for target in panel["targets"]:
        for series in prometheus.query_range(filled_in(target["expr"]), SECONDS - 10):
            name = target["legendFormat"]
            for label, value in series.labels.items():
                name = name.replace(f"{{{{{label}}}}}", value)
            points = tuple((at, value) for at, value in series.points if math.isfinite(value))
            if points:
                lines.append((name, series._replace(points=points)))
    return lines


# Drawing.


def amount(value: float, unit: str) -> str:
    """Return *value* as people write it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bool_yes_no":
        return "yes" if value else "no"
    size = next((each for each in STEPS if abs(value) >= each), 1.0)
    prefix = f"{STEPS[size]}{UNITS[unit]}"
    return f"{value / size:.3g}{' ' if prefix else ''}{prefix}"


def text(x: float, y: float, words: str, **looks: object) -> str:
    """Return a line of text."""
    given = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in looks.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" {given}>{html.escape(words)}</text>'


def draw(panel: Mapping[str, Any], lines: Sequence[tuple[str, Series]]) -> Iterator[str]:
    """Yield the picture of *panel*."""
    place = panel["gridPos"]
    x, y = place["x"] * CELL[0] + GAP / 2, place["y"] * CELL[1] + GAP / 2
    width, height = place["w"] * CELL[0] - GAP, place["h"] * CELL[1] - GAP
    if panel["type"] == "row":
        yield text(x + 4, y + 14, panel["title"], font_size=13, font_weight="bold")
        return
    yield (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="#fff" '
        'stroke="#d0d4da"/>'
    )
    yield text(x + 8, y + 17, panel["title"], font_size=12, font_weight="bold")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if not lines:
        words = "nothing to show" if panel["type"] == "stat" else "nothing in this time"
        yield text(x + width / 2, y + height / 2 + 8, words,
                   font_size=11, fill="#888", text_anchor="middle")  # fmt: skip
        return
    if panel["type"] == "stat":
        value = amount(lines[0][1].points[-1][1], unit)
        yield text(x + width / 2, y + height - 22, value,
                   font_size=26, fill="#3a9d5d", text_anchor="middle")  # fmt: skip
        return
    yield from graph(lines, unit, (x + 76, y + 28, width - 88, height - 64))
    yield from legend(lines, unit, (x + 10, y + height - 22, width - 16))


def graph(
    lines: Sequence[tuple[str, Series]], unit: str, box: tuple[float, float, float, float]
) -> Iterator[str]:
    """Yield axes and lines."""
    x, y, width, height = box
    times = [at for _, series in lines for at, _ in series.points]
    top = max(value for _, series in lines for _, value in series.points) * 1.08 or 1.0
    start, span = min(times), (max(times) - min(times)) or 1.0
    for share in (0.0, 0.5, 1.0):
        level = y + height * (1 - share)
        yield f'<path d="M{x:.1f} {level:.1f}h{width:.1f}" stroke="#e4e7eb"/>'
        yield text(x - 5, level + 4, amount(top * share, unit),
                   font_size=9, fill="#666", text_anchor="end")  # fmt: skip
    for colour, (_, series) in zip(itertools.cycle(COLOURS), lines, strict=False):
        path = " ".join(
            f"{x + (at - start) / span * width:.1f},{y + height * (1 - value / top):.1f}"
            for at, value in series.points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>'


def legend(
    lines: Sequence[tuple[str, Series]], unit: str, box: tuple[float, float, float]
) -> Iterator[str]:
    """Yield names with last values, as many as fit into two rows."""
    x, y, width = box
    at, row = 0.0, 0
    for colour, (name, series) in zip(itertools.cycle(COLOURS), lines, strict=False):
        words = f"{name}: {amount(series.points[-1][1], unit)}"
        needed = 18 + 5.3 * len(words)
        if at + needed > width:
            at, row = 0.0, row + 1
        if row > 1:
            return
        yield f'<path d="M{x + at:.1f} {y + row * 12 - 3:.1f}h10" stroke="{colour}" '
        yield 'stroke-width="3"/>'
        yield text(x + at + 13, y + row * 12, words, font_size=9, fill="#333")
        at += needed


def picture(prometheus: Prometheus) -> str:
    """Return the whole dashboard as SVG."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels) * CELL[1]
    width = 24 * CELL[0]
    parts = [
        f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
 width="{width}" height="{height}" font-family="sans-serif">""",
        f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>',
    ]
    for panel in panels:
        lines = [] if panel["type"] == "row" else ask(prometheus, panel)
        parts += draw(panel, lines)
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Draw, and write the picture if asked to."""
    with (
        Lab(inside=6, outside=2) as lab,
        contextlib.closing(Loop()) as loop,
        daemon(
            lab, datapath="conntrack", metrics="127.0.0.1:9723",
            config="[metrics]\ntop_clients = 10\n[call_ids]\nquarantine = 10\n",
        ),
    ):  # fmt: skip
        lab.sysctl(lab.router, "net.netfilter.nf_conntrack_gre_timeout", "3")
        prometheus = Prometheus(lab)
        life(lab, loop)
        drawn = picture(prometheus)
    if "--write" in sys.argv:
        PICTURE.write_text(drawn)
        sys.stdout.write(f"written: {PICTURE}\n")
    else:
        sys.stdout.write(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
