"""LuCI's pages: sound, allowed what they ask for, and readable in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.packages import keys, openwrt
from pptp_nat.cli import parser
from pptp_nat.completion import tree

STUB = Path(__file__).with_name("luci_stub.js")
VIEWS = openwrt.LUCI / "htdocs/luci-static/resources/view/pptp-nat"
MENU = openwrt.LUCI / "root/usr/share/luci/menu.d/luci-app-pptp-nat.json"
ACL = openwrt.LUCI / "root/usr/share/rpcd/acl.d/luci-app-pptp-nat.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
#: options that the init script knows and the daemon does not
ROUTERS_OWN = {"main.enabled", "main.guard", "main.jail", "metrics.interface", "metrics.port"}

NOW = 1_800_000_000.0
CALL: dict[str, Any] = {
    "id": 7,
    "state": "up",
    "inside": {"address": "192.168.1.20", "call_id": 7777},
    "external": {"address": "203.0.113.5", "call_id": 25394},
    "remote": {"address": "192.0.2.9", "call_id": 100},
    "up_since": 0,
    "counters": {
        "to_remote": {"packets": 3, "bytes": 2048},
        "to_inside": {"packets": 1, "bytes": 52},
    },
}
STATUS: dict[str, Any] = {
    "version": "9.8.7",
    "started": 0,
    "datapath": "conntrack",
    "datapath_reason": "its probe succeeded",
    "queues": [{"queue": 1723, "purpose": "control", "bound": True, "dropped": 0}],
    "calls": {"up": 1},
    "connections": {"open": 1},
    "opaque": 0,
}
LOG = "daemon.info pptp-nat: call=7 event=call-up\n"


def exits(code: int, stdout: str = "", stderr: str = "") -> dict[str, Any]:
    return {"code": code, "stdout": stdout, "stderr": stderr}


ANSWERS = {
    "/usr/bin/pptp-nat status -o json": exits(0, json.dumps(STATUS)),
    "/usr/bin/pptp-nat list -o json": exits(
        0, json.dumps([CALL, {**CALL, "id": 8, "state": "requested", "up_since": None}])
    ),
    "/usr/bin/pptp-nat doctor --config /var/etc/pptp-nat.toml": exits(
        1, "FAIL flow offloading takes TCP past our rules\n"
    ),
    "/usr/bin/pptp-nat clear 7": exits(1, "", "no call matches"),
    "/sbin/logread -l 200 -e pptp-nat": exits(0, LOG),
}

Show = Callable[..., str]


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Show:
    """Give a function that renders a view and returns the page as it then is.

    A browser takes seconds to start, so what was asked for already is not asked for again.
    """
    if BROWSER is None:
        pytest.skip(f"not found: {', '.join(BROWSERS)}: apt install chromium")
    shown_before: dict[str, str] = {}
    tmp_path = tmp_path_factory.mktemp("luci")

    def show(view: str, answers: dict[str, Any] = ANSWERS, clicks: tuple[str, ...] = ()) -> str:
        given = {
            "SOURCE": (VIEWS / f"{view}.js").read_text(encoding="utf-8"),
            "ANSWERS": answers,
            "CLICKS": clicks,
        }
        key = json.dumps(given)
        if key in shown_before:
            return shown_before[key]
        script = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in given.items())
        script = script.replace("</", "<\\/") + STUB.read_text(encoding="utf-8")
        page = tmp_path / "page.html"
        page.write_text(
            "<!doctype html><meta charset=utf-8><style>body{font-family:sans-serif}"
            "td,th{padding:2px 12px;text-align:left}</style><body>"
            f"<script>{script}</script>",
            encoding="utf-8",
        )
        told = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        shown = re.sub(r"<script>.*?</script>", "", told.stdout, flags=re.DOTALL)
        assert 'id="failed"' not in shown, html.unescape(shown)
        return shown_before.setdefault(key, shown)

    return show


def texts(shown: str, tag: str) -> list[str]:
    """Return what stands in each element of a kind."""
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", shown, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", "", each)) for each in found]


def part(shown: str, name: str) -> str:
    (found,) = re.findall(rf'<pre id="{name}"[^>]*>(.*?)</pre>', shown, re.DOTALL)
    return found


@pytest.mark.parametrize("view", sorted(VIEWS.glob("*.js")), ids=lambda path: path.name)
def test_node_reads_the_view(view: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("not found: node: apt install nodejs")
    told = subprocess.run(
        ["node", "--check", str(view)], capture_output=True, text=True, check=False
    )

    assert ("", 0) == (told.stderr, told.returncode)


def test_each_place_of_the_menu_leads_to_a_view_that_is_there() -> None:
    menu = json.loads(MENU.read_text())
    granted = json.loads(ACL.read_text())
    for place, entry in menu.items():
        assert {"title", "order", "action"} <= set(entry) <= {"title", "order", "action", "depends"}
        parent = place.rpartition("/")[0]
        assert parent in menu or parent == "admin/services"
        if entry["action"]["type"] == "view":
            assert (VIEWS.parent / f"{entry['action']['path']}.js").exists()
        else:
            assert {"type": "firstchild"} == entry["action"]
        assert set(entry.get("depends", {}).get("acl", [])) <= set(granted)


def test_nothing_is_granted_that_the_program_does_not_have() -> None:
    commands = {each.name: each for each in tree(parser())[1]}
    (grants,) = json.loads(ACL.read_text()).values()
    for side in ("read", "write"):
        assert ["pptp-nat"] == grants[side]["uci"]
        for line, rights in grants[side]["file"].items():
            assert ["exec"] == rights
            program, *words = line.split()
            if program == "/usr/bin/pptp-nat":
                command = commands[words[0]]
                flags = {flag for option in command.options for flag in option.flags}
                assert {word for word in words if word.startswith("-")} <= flags


def test_the_views_ask_for_nothing_that_is_not_granted(show: Show) -> None:
    """Each button is pressed; rpcd compares the whole command line, as fnmatch(3) does."""
    shown = show("status", clicks=(".cbi-button-action", ".cbi-button-remove"))
    (grants,) = json.loads(ACL.read_text()).values()
    granted = [line for side in ("read", "write") for line in grants[side]["file"]]
    patterns = [re.compile(re.escape(line).replace(r"\*", ".*")) for line in granted]
    asked = set(part(shown, "asked").splitlines())

    assert [] == [line for line in asked if not any(p.fullmatch(line) for p in patterns)]
    assert [] == [p.pattern for p in patterns if not any(map(p.fullmatch, asked))]


def test_the_calls_are_shown_and_looked_at_again(show: Show) -> None:
    shown = show("status")
    cells = texts(shown, "td")

    assert ["192.168.1.20 #7777", "203.0.113.5 #25394", "192.0.2.9 #100"] == cells[:3]
    assert cells[3].startswith("up for ")
    assert "↑\u00a02.0 KiB ↓\u00a052 B" == cells[4]
    assert "asked for" == cells[9]
    assert "Version 9.8.7" in shown
    assert "Data path conntrack: its probe succeeded." in shown
    assert "event=call-up" in shown
    assert "10" == part(shown, "seconds")
    assert 2 == part(shown, "asked").count("list -o json")


def test_findings_and_refusals_are_shown_in_the_daemons_words(show: Show) -> None:
    shown = show("status", clicks=(".cbi-button-action", ".cbi-button-remove"))

    assert "FAIL flow offloading takes TCP past our rules" in shown
    assert "no call matches" in texts(shown, "p")


def test_a_daemon_that_does_not_answer_is_told(show: Show) -> None:
    dead = {name: exits(1, "", "pptp-nat: no daemon answers") for name in ANSWERS}
    shown = show("status", dead)

    assert "pptp-nat: no daemon answers" in shown
    assert "not known" in texts(shown, "em")


def test_text_from_peers_stays_text(show: Show) -> None:
    """A log line holds host names that peers chose."""
    evil = {**ANSWERS, "/sbin/logread -l 200 -e pptp-nat": exits(0, "<b id=evil>bold</b>\n")}
    assert "&lt;b id=evil&gt;bold&lt;/b&gt;" in show("status", evil)


def test_the_form_has_options_that_are_there(show: Show) -> None:
    shown = show("settings")
    offered = set(re.findall(r'data-option="([^"]+)"', shown))
    known = {line.split()[0] for line in keys.table().splitlines()}

    assert offered <= known | ROUTERS_OWN
    assert ROUTERS_OWN <= offered
    assert {"control.ports", "gre.datapath", "log.level", "metrics.textfile"} <= offered


def test_every_text_can_be_translated() -> None:
    """The template holds what the views and the menu say."""
    template = (openwrt.LUCI / "po/templates/pptp-nat.pot").read_text(encoding="utf-8")

    assert openwrt.translations() == template
