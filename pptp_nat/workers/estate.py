"""What an earlier run has left, however many workers it had, divided among those of now.

Each worker keeps its records in places of its own.  At a start all places are read
and put together, and each worker gets what is of its part now: so the count of
workers may change between two runs, and no call is lost.  When all have written
down what they got, the places of workers that are no more are emptied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pptp_nat.config import Config
from pptp_nat.core.parts import Part
from pptp_nat.state.contents import Contents
from pptp_nat.state.store import Found, Journal

_NAME: Final = "worker-"


class Place(NamedTuple):
    """Where one process keeps its records."""

    journal: Path
    copies: Path


def base(config: Config) -> Place:
    """Return the place of a daemon without workers."""
    state = config.state
    return Place(state.journal or config.api.socket.with_suffix(".journal"), state.directory)


def place_of(config: Config, index: int) -> Place:
    """Return the place of worker *index*."""
    journal, copies = base(config)
    return Place(journal / f"{_NAME}{index}", copies / f"{_NAME}{index}")


def workers_places(config: Config) -> list[Place]:
    """Return the places that workers of now or of an earlier run have used."""
    names = {
        path.name
        for folder in base(config)
        for path in folder.glob(f"{_NAME}*")
        if path.name.removeprefix(_NAME).isdecimal()
    }
    indices = sorted(int(name.removeprefix(_NAME)) for name in names)
    return [place_of(config, index) for index in indices]


def read(config: Config, places: Iterable[Place]) -> Found | None:
    """Return what *places* hold, put together.

    Raises:
        UsageError: another process keeps its records in one of them.
    """
    found = []
    for place in places:
        journal = _journal(config, place)
        try:
            found.append(journal.read())
        finally:
            journal.close(astray=False, copy=False)
    return together([each for each in found if each is not None])


def clear(config: Config, places: Iterable[Place]) -> None:
    """Forget what *places* hold: others have written it down."""
    for place in places:
        journal = _journal(config, place)
        try:
            journal.discard()
        finally:
            journal.close(astray=False, copy=False)


def _journal(config: Config, place: Place) -> Journal:
    copies = place.copies if config.state.sync else None
    return Journal(place.journal, copies, sync=config.state.sync)


def together(founds: Sequence[Found]) -> Found | None:
    """Return what all of *founds* say; of two records of one connection the first counts.

    What is of this boot makes older copies worthless; what is less exact makes all so.
    """
    current = [each for each in founds if each.this_boot] or list(founds)
    if len(current) < 2:
        return current[0] if current else None
    whole = Contents()
    ids: set[int] = set()
    fresh = max(each.contents.last_id for each in current)
    known: set[bytes] = set()
    for each in current:
        said = each.contents
        names: dict[int, int] = {}
        for number in [*said.connections, *said.calls]:
            is_free = number not in ids
            if not is_free:
                fresh += 1
            names[number] = number if is_free else fresh
            ids.add(names[number])
        mine = {n: r for n, r in said.connections.items() if r.key not in known}
        known |= {record.key for record in mine.values()}
        for number, record in mine.items():
            name = names[number]
            stood = said.positions.get(number, record.positions)
            whole.connections[name] = record._replace(
                id=name, positions=record.positions._replace(connection=name)
            )
            whole.positions[name] = stood._replace(connection=name)
        for number, call in said.calls.items():
            if call.connection in mine:
                whole.calls[names[number]] = call._replace(
                    id=names[number], connection=names[call.connection]
                )
        for key, until in said.kept_back.items():
            whole.kept_back[key] = max(until, whole.kept_back.get(key, until))
        whole.carried.update(said.carried)
        whole.half_open.update(said.half_open)
    whole.last_id = fresh
    return Found(
        whole, all(each.exact for each in current), current[0].this_boot, current[0].wall,
        f"{len(current)} places",
    )  # fmt: skip


def divided(found: Found | None, part: Part) -> Found | None:
    """Return what of *found* is of *part*."""
    if found is None:
        return None
    said = found.contents
    connections = {
        number: record
        for number, record in said.connections.items()
        if part.has_hosts(record.key[:4], record.key[4:8])
    }
    share = dataclasses.replace(
        said,
        connections=connections,
        positions={n: each for n, each in said.positions.items() if n in connections},
        calls={n: each for n, each in said.calls.items() if each.connection in connections},
        kept_back={
            key: until for key, until in said.kept_back.items() if part.has_number(key[1])
        },
        half_open={
            key: each for key, each in said.half_open.items()
            if part.has_hosts(key[:4], key[4:8])
        },
    )  # fmt: skip
    if part.index:  # totals are told once
        share = dataclasses.replace(share, counts={}, messages={}, ends={})
    return found._replace(contents=share)


def leftovers(config: Config, count: int) -> Iterator[Place]:
    """Yield the places whose records others have now: there are *count* workers, 1 for none."""
    if count > 1:
        yield base(config)
    for place in workers_places(config):
        if count == 1 or int(place.copies.name.removeprefix(_NAME)) >= count:
            yield place
