"""Looks for the kernel's own PPTP helper, and for what carries packets past our rules.

Where nf_nat_pptp is attached to the connections that we translate, every
message is translated twice.  A rule that attaches it is found in what the
firewall's tools list; ports in a form that we cannot read count as ours.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from pptp_nat.errors import AdapterError
from pptp_nat.linux import ruleset_iptables_kernel as iptables
from pptp_nat.linux.ruleset_settings import run

NAME: Final = "pptp"
PORT: Final = 1723  # linux/netfilter/nf_conntrack_pptp.h, PPTP_CONTROL_PORT
MODULE: Final = "nf_conntrack_pptp"
PORT_OPTIONS: Final = {
    "--dport", "--destination-port", "--dports", "--destination-ports", "--ports",
}  # fmt: skip


def assignments(ports: Collection[int]) -> Iterator[str]:
    """Yield where a rule attaches the helper to one of *ports*, in words for people."""
    for command, saved in _iptables():
        yield from (f"{command}, {where}" for where in assigned_by_iptables(saved, ports))
    yield from (f"nftables, {where}" for where in assigned_by_nftables(_nftables(), ports))


def offloads() -> Iterator[str]:
    """Yield where a rule hands forwarded TCP to a flow table."""
    for command, saved in _iptables():
        yield from (f"{command}, {where}" for where in offloaded_by_iptables(saved))
    yield from (f"nftables, {where}" for where in offloaded_by_nftables(_nftables()))


def unreadable() -> Iterator[str]:
    """Yield what the commands say that are installed and cannot list their rules."""
    for command in iptables.variants():
        try:
            iptables.load(command)
        except AdapterError as error:
            yield str(error)
    ran = run("nft", "-j", "list", "ruleset")
    if ran is not None and ran.code:
        yield f"nft: {ran.complaint or f'exit code {ran.code}'}"


def _iptables() -> Iterator[tuple[str, iptables.Saved]]:
    told: list[iptables.Saved] = []
    for command in iptables.variants():
        try:
            saved = iptables.load(command)
        except AdapterError:
            continue  # `unreadable` says so
        if saved not in told:  # iptables is one of the other two by another name
            told.append(saved)
            yield command, saved


def _nftables() -> list[dict[str, Any]]:
    ran = run("nft", "-j", "list", "ruleset")
    if ran is None or ran.code:
        return []
    objects: list[dict[str, Any]] = json.loads(ran.output).get("nftables", [])
    return objects


def loaded(
    modules: Path = Path("/sys/module"), libraries: Path = Path("/lib/modules")
) -> bool | None:
    """Return whether the helper is in the kernel now; None where that cannot be told."""
    if (modules / MODULE).exists():
        return True
    try:
        builtin = (libraries / os.uname().release / "modules.builtin").read_text()
    except OSError:
        return None
    return f"/{MODULE}.ko" in builtin


# --- iptables -----------------------------------------------------------------------------------


def assigned_by_iptables(saved: iptables.Saved, ports: Collection[int]) -> Iterator[str]:
    """Yield the rules with ``-j CT --helper pptp`` that may see a packet to one of *ports*."""
    for table, chain, words in _words(saved):
        helped = "--helper" in words and words[words.index("--helper") + 1 :][:1] == [NAME]
        if helped and "CT" in words and _iptables_covers(words, ports):
            yield f"{table} {chain}: {shlex.join(words)}"


def offloaded_by_iptables(saved: iptables.Saved) -> Iterator[str]:
    """Yield the rules that offload flows (OpenWrt's xt_FLOWOFFLOAD)."""
    for table, chain, words in _words(saved):
        if "FLOWOFFLOAD" in words:
            yield f"{table} {chain}: {shlex.join(words)}"


def _words(saved: iptables.Saved) -> Iterator[tuple[str, str, list[str]]]:
    for table, chains in saved.items():
        for chain, rules in chains.items():
            for rule in rules:
                try:
                    yield table, chain, shlex.split(rule)
                except ValueError:
                    yield table, chain, rule.split()


def _iptables_covers(words: list[str], ports: Collection[int]) -> bool:
    """Whether the rule's port match, if any, takes in one of *ports*."""
    for at, word in enumerate(words):
        if word in PORT_OPTIONS and words[at - 1 : at] != ["!"]:
            return any(_in_list(port, words[at + 1]) for port in ports)
    return True


def _in_list(port: int, listed: str) -> bool:
    """Whether *port* is in a list such as ``1723,4000:4010``."""
    for each in listed.split(","):
        first, _, last = each.partition(":")
        if not first.isdigit() or not (last or first).isdigit():
            return True
        if int(first) <= port <= int(last or first):
            return True
    return False


# --- nftables -----------------------------------------------------------------------------------


def assigned_by_nftables(objects: list[dict[str, Any]], ports: Collection[int]) -> Iterator[str]:
    """Yield the rules that set a ``ct helper`` of type pptp for one of *ports*."""
    helpers = {
        (o["ct helper"]["family"], o["ct helper"]["table"], o["ct helper"]["name"])
        for o in objects
        if o.get("ct helper", {}).get("type") == NAME
    }
    for rule in (o["rule"] for o in objects if "rule" in o):
        names = {name for f, t, name in helpers if (f, t) == (rule["family"], rule["table"])}
        for part in rule["expr"]:
            if "ct helper" in part and _may_name(names, part["ct helper"]):
                if _nftables_covers(rule["expr"], ports):
                    yield _place(rule)
                break


def offloaded_by_nftables(objects: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rules that add TCP flows to a flow table."""
    for rule in (o["rule"] for o in objects if "rule" in o):
        if any("flow" in part for part in rule["expr"]) and _may_be_tcp(rule["expr"]):
            yield _place(rule)


def _place(rule: dict[str, Any]) -> str:
    place = f"table {rule['family']} {rule['table']}, chain {rule['chain']}"
    return f"{place}, handle {rule['handle']}" if "handle" in rule else place


def _may_name(helpers: set[str], value: object) -> bool:
    """Whether *value* is the name of one of *helpers*, or comes from a map that may hold it."""
    strings = _strings(value)
    return bool(helpers & strings) or (bool(helpers) and any(s[:1] == "@" for s in strings))


def _strings(value: object) -> set[str]:
    """Return the strings in *value*: a helper's name may be the result of a map."""
    match value:
        case str():
            return {value}
        case list():
            return {text for each in value for text in _strings(each)}
        case dict():
            return {text for each in value.values() for text in _strings(each)}
        case _:
            return set()


def _nftables_covers(expression: list[dict[str, Any]], ports: Collection[int]) -> bool:
    """Whether the rule's destination ports, if it names any, take in one of *ports*."""
    for part in expression:
        match part:
            case {"match": {"op": "==" | "in", "left": {"payload": {"field": "dport"}},
                            "right": right}}:  # fmt: skip
                return any(_holds(right, port) for port in ports)
    return True


def _holds(right: object, port: int) -> bool:
    match right:
        case int():
            return right == port
        case {"range": [int(first), int(last)]}:
            return first <= port <= last
        case {"set": list(elements)}:
            return any(_holds(element, port) for element in elements)
        case _:
            return True


def _may_be_tcp(expression: list[dict[str, Any]]) -> bool:
    for part in expression:
        match part:
            case {"match": {"op": "==" | "in", "left": {"meta": {"key": "l4proto"}},
                            "right": right}}:  # fmt: skip
                return bool({"tcp", "6"} & _strings(right)) or right == 6
    return True
