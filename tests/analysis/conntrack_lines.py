"""Writes conntrack entries as conntrack-tools and /proc do: a second, independent hand."""

from __future__ import annotations

from pptp_nat.analysis.conntrack_entries import GRE, Count, ListedEntry, Way, listed


def gre(source, destination, key, *back, **more):
    """Return a GRE entry; *back*: who answers whom with which source and destination key."""
    answers, answered, source_key, spare = back or (destination, source, key, 0)
    more = {"seconds_left": 170, **more}
    own = more.pop("own", 0)
    original = Way(source, destination, own, key)
    counts = more.pop("carried", None), more.pop("returned", None)
    return listed(GRE, original, Way(answers, answered, source_key, spare), counts, **more)


def control(source, destination, *, seen_as=None, port=40000, forwarded=None, **more):
    """Return a control connection's entry."""
    more = {"state": "ESTABLISHED", "seconds_left": 431_990, "assured": True, **more}
    original = Way(source, destination, port, 1723)
    reply = Way(forwarded or destination, seen_as or source, 1723, port)
    return listed(6, original, reply, **more)


def _tuple(way: Way, count: Count | None, *, is_gre: bool) -> str:
    words = [f"src={way.source} dst={way.destination} "]
    if way.source_key is not None:
        words.append(
            f"srckey={way.source_key:#x} dstkey={way.destination_key:#x} "
            if is_gre
            else f"sport={way.source_key} dport={way.destination_key} "
        )
    if count is not None:
        words.append(f"packets={count.packets} bytes={count.octets} ")
    return "".join(words)


def line(entry: ListedEntry, form: str) -> str:
    """Return *entry* as a line of ``text``, ``extended`` or ``proc``."""
    is_gre = entry.protocol == GRE
    name = "unknown" if entry.original.source_key is None else "gre" if is_gre else "tcp"
    parts = [f"{name:8} {entry.protocol} {entry.seconds_left} "]
    if form != "text":
        parts.insert(0, "ipv4     2 ")
    if form == "proc" and is_gre:
        parts.append("timeout=30, stream_timeout=180 ")
    if entry.state:
        parts.append(f"{entry.state} ")
    parts.append(_tuple(entry.original, entry.carried, is_gre=is_gre))
    parts.append("[UNREPLIED] " if entry.unreplied else "")
    parts.append(_tuple(entry.reply, entry.returned, is_gre=is_gre))
    parts.append("[ASSURED] " if entry.assured else "")
    parts.append("[OFFLOAD] " if entry.offloaded else "")
    parts.append(f"mark={entry.mark} ")
    if form == "proc":
        parts.append("zone=0 use=2")
    else:
        parts.append(f"helper={entry.helper} " if entry.helper else "")
        parts.append("use=1")
        parts.append(f" id={entry.identity}" if form == "extended" and entry.identity else "")
    return "".join(parts) + "\n"


def flow(entry: ListedEntry) -> str:
    """Return *entry* as ``conntrack -o xml,id`` has it."""
    is_gre = entry.protocol == GRE
    proto = "gre" if is_gre else "tcp"
    names = ("srckey", "dstkey") if is_gre else ("sport", "dport")
    metas = []
    for direction, way, count in (
        ("original", entry.original, entry.carried),
        ("reply", entry.reply, entry.returned),
    ):
        keys = "".join(
            f"<{name}>{key:#x}</{name}>" if is_gre else f"<{name}>{key}</{name}>"
            for name, key in zip(names, way[2:], strict=True)
            if key is not None
        )
        counters = (
            ""
            if count is None
            else f"<counters><packets>{count.packets}</packets><bytes>{count.octets}</bytes>"
            "</counters>"
        )
        metas.append(
            f'<meta direction="{direction}"><layer3 protonum="2" protoname="ipv4">'
            f"<src>{way.source}</src><dst>{way.destination}</dst></layer3>"
            f'<layer4 protonum="{entry.protocol}" protoname="{proto}">{keys}</layer4>'
            f"{counters}</meta>"
        )
    state = f"<state>{entry.state}</state>" if entry.state else ""
    identity = f"<id>{entry.identity}</id>" if entry.identity else ""
    flags = "<assured/>" * entry.assured + "<unreplied/>" * entry.unreplied
    flags += "<offload/>" * entry.offloaded
    helper = f"<helper>{entry.helper}</helper>" if entry.helper else ""
    return (
        f'<flow>{"".join(metas)}<meta direction="independent">{state}'
        f"<timeout>{entry.seconds_left}</timeout><mark>{entry.mark}</mark><use>1</use>"
        f"{identity}{flags}</meta>{helper}</flow>\n"
    )
